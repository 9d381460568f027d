"""What the SDK's tests share: building the C++ echo worker, starting workers the AMUSE way, ending only these."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "client/python/src"))  # tests run against the sources, installed or not

HEADERS = ROOT / "client/worker/include"
WORKERS = ROOT / "test/unit/worker"
WORKER_PY = ROOT / "client/python/src/flotilla/worker.py"
CONNECT_S = 20  # a worker that has not connected by then does not


def build_cpp(source, target, *options, compiler="c++"):
    ccache = shutil.which("ccache")
    object_file = str(target) + ".o"
    prefix = [ccache] if ccache else []
    subprocess.run([*prefix, compiler, "-std=c++20", "-O2", f"-I{HEADERS}", *options, "-c", str(source), "-o", object_file], check=True, timeout=300)
    subprocess.run([compiler, object_file, "-o", str(target), *[o for o in options if o.startswith("-l") or o == "-static"]], check=True, timeout=300)
    return Path(target)


class StartedWorker:
    """A worker process and the socket that it opened, as a pilot would have it."""

    def __init__(self, command, mpi="false", prefix=(), **options):
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(CONNECT_S)
            self.process = subprocess.Popen([*prefix, *map(str, command), str(server.getsockname()[1]), "127.0.0.1", mpi], **options)
            try:
                self.socket, _ = server.accept()
            except BaseException:
                self.process.kill()
                self.process.wait()
                raise

    def wait(self):
        return self.process.wait(timeout=CONNECT_S)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()
        try:
            self.process.wait(timeout=CONNECT_S)  # a worker whose channel is closed ends by itself
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
