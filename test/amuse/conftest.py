"""Flotilla is put into the AMUSE of this Python for the time of the tests."""
import os
import pathlib
import select
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("FLOTILLA_BUILD_DIR") or ROOT / "build/release")
PROGRAM = BUILD / "bin/flotilla"
SCRIPT_S = 120  # the longest script here

# As a user has who runs MPI as root on two processors; AMUSE's own channel needs the same.
MPI = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1"}


def pytest_report_header():
    return f"flotilla: {PROGRAM}"


@pytest.fixture(scope="session", autouse=True)
def installed():
    done = subprocess.run([PROGRAM, "amuse", "install", "--python", sys.executable], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    yield
    subprocess.run([PROGRAM, "amuse", "uninstall", "--python", sys.executable], check=True, capture_output=True, timeout=60)


def flotilla(*words, **more):
    return subprocess.run([PROGRAM, *words], capture_output=True, text=True, timeout=60, **more)


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory):
    """A Python whose AMUSE has no amuse.community.distributed; all else is this one's."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
    here = pathlib.Path(sysconfig.get_path("purelib"))
    there = next(folder.glob("lib/python*/site-packages"))

    def link(*parts, but):
        (there / pathlib.Path(*parts)).mkdir(exist_ok=True)
        for entry in (here / pathlib.Path(*parts)).iterdir():
            if entry.name not in (but, "__pycache__"):
                (there / pathlib.Path(*parts) / entry.name).symlink_to(entry)

    link(but="amuse")
    link("amuse", but="community")
    link("amuse", "community", but="distributed")
    return folder / "bin/python"


def processes_with(mark):
    found = {}
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (entry / "environ").read_bytes() and (entry / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            pass  # ended
    return found


class User:
    """A home of their own, and scripts run in a folder of their own."""

    def __init__(self, folder):
        self.folder = folder
        self.state = folder / "state"
        self.environment = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ} | MPI | {
            "HOME": str(folder), "FLOTILLA_STATE_DIR": str(self.state), "PYTHONUNBUFFERED": "1"}
        self.started = []

    def start(self, text, python=sys.executable, **more):
        script = self.folder / f"script{len(self.started)}.py"
        script.write_text(text)
        more.setdefault("stdin", subprocess.DEVNULL)
        process = subprocess.Popen([python, script], cwd=self.folder, env=self.environment, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True, **more)
        self.started.append(process)
        return process

    def run(self, text, code=0, **more):
        process = self.start(text, **more)
        try:
            out, err = process.communicate(timeout=SCRIPT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            pytest.fail(f"the script did not end\n{out}\n{err}")
        assert process.returncode == code, f"{out}\n{err}"
        return out, err

    def left(self):
        # The home, which codes keep too: of Flotilla's own variables jobs see none.
        return processes_with(f"HOME={self.folder}\0")

    def wait_nothing_left(self, within=20):
        end = time.monotonic() + within
        while (left := self.left()) and time.monotonic() < end:
            try:
                process = os.pidfd_open(next(iter(left)))
            except OSError:
                continue  # it has ended
            select.select([process], [], [], max(0, end - time.monotonic()))
            os.close(process)
        assert self.left() == {}
        assert not self.state.exists() or list(self.state.iterdir()) == []


@pytest.fixture
def user():
    folder = pathlib.Path(tempfile.mkdtemp(prefix="flotilla-amuse-"))
    made = User(folder)
    try:
        yield made
        made.wait_nothing_left()
    finally:
        for process in made.started:
            if process.poll() is None:
                process.kill()
                process.wait()
            for stream in (process.stdout, process.stderr):
                stream.close()
        for pid in made.left():
            try:
                os.kill(pid, 9)
            except OSError:
                pass
        shutil.rmtree(folder, ignore_errors=True)
