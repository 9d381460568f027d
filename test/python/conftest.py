"""What the tests of the Python package share: the package itself out of the sources, and a real daemon of their own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "client/python/src"
PROTOS = ("flotilla/v1/types.proto", "flotilla/v1/client.proto")
END_S = 20  # after `shutdown(all=True)` nothing is left within this

sys.path.insert(0, str(SOURCES))


def _make_messages() -> None:
    """flotilla.v1, which the package's build makes, for the package as it lies in the sources."""
    import flotilla

    target = Path(tempfile.mkdtemp(prefix="flotilla-messages-"))
    protoc = [shutil.which("protoc")] if shutil.which("protoc") else [sys.executable, "-m", "grpc_tools.protoc"]
    subprocess.run([*protoc, f"-I{ROOT / 'proto'}", f"--python_out={target}", *PROTOS], check=True)
    (target / "flotilla/v1/__init__.py").touch()
    flotilla.__path__.append(str(target / "flotilla"))
    import atexit

    atexit.register(shutil.rmtree, target, True)


_make_messages()


def find_program(name: str) -> Path:
    """Of the build that is tested; without one, of the newest there is."""
    given = os.environ.get("FLOTILLA_BUILD_DIR")
    places = [Path(given)] if given else sorted((ROOT / "build").glob("*"))
    found = [path for place in places for folder in ("bin", "client/cli", "proto") if (path := place / folder / name).is_file()]
    if found:
        return max(found, key=lambda path: path.stat().st_mtime)
    if given:
        pytest.fail(f"the build in {given} has no program {name}")
    pytest.skip(f"no build has a program {name}: run scripts/build")


def processes_with(environment: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if environment.encode() in (entry / "environ").read_bytes().split(b"\0") and (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    found.append(int(entry.name))
            except OSError:
                pass  # ended, or another user's
    return found


class Place:
    """A state directory, configuration and runtime directory of their own: a daemon that no other test meets."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fl-py-"))  # short: socket paths have 107 bytes
        self.environment = {
            "FLOTILLA_STATE_DIR": str(self.folder / "state"),
            "FLOTILLA_CONFIG": str(self.folder / "config.toml"),
            "FLOTILLA_RUNTIME_DIR": str(self.folder / "run"),
            "FLOTILLA_PROGRAM": str(find_program("flotilla")),
            "FLOTILLA_AGENT": str(find_program("flotilla-agent")),
            "HOME": str(self.folder / "home"),
        }
        (self.folder / "home").mkdir()
        (self.folder / "config.toml").touch()
        self._before = {name: os.environ.get(name) for name in self.environment}
        os.environ.update(self.environment)

    def mark(self) -> str:
        return f"FLOTILLA_RUNTIME_DIR={self.environment['FLOTILLA_RUNTIME_DIR']}"

    def end(self) -> list[str]:
        """Ends the daemon and all of its. Returns what was left and had to be killed."""
        import flotilla

        try:
            with flotilla.Daemon(start=False) as daemon:
                daemon.shutdown(all=True)
        except flotilla.FlotillaError:
            pass
        deadline = time.monotonic() + END_S
        while (left := processes_with(self.mark())) and time.monotonic() < deadline:
            try:
                descriptor = os.pidfd_open(left[0])
            except OSError:
                continue
            import select

            select.select([descriptor], [], [], max(0, deadline - time.monotonic()))
            os.close(descriptor)
        names = []
        for pid in left:
            try:
                names.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(self.folder, ignore_errors=True)
        return names


@pytest.fixture
def place():
    place = Place()
    try:
        yield place
    finally:
        left = place.end()
    assert not left, f"these processes were left: {left}"


@pytest.fixture(scope="module")
def shared_place():
    place = Place()
    try:
        yield place
    finally:
        left = place.end()
    assert not left, f"these processes were left: {left}"


@pytest.fixture(scope="module")
def daemon(shared_place):
    import flotilla

    with flotilla.Daemon() as daemon:
        yield daemon
