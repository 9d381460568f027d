"""The program `flotilla` as a user calls it, with a daemon of its own in a folder of its own."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
WAIT_S = float(os.environ.get("FLOTILLA_TEST_WAIT", "60"))  # for what should take milliseconds, on a machine that is busy


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


def until(condition, what: str, wait_s: float = WAIT_S):
    """Asks again and again, with a deadline; for what can only be asked."""
    end = time.monotonic() + wait_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            pytest.fail(f"not within {wait_s} s: {what}")
        time.sleep(0.02)


def processes_of(marker: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if marker.encode() in (entry / "environ").read_bytes() and (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(int(entry.name))
        except OSError:
            continue
    return found


class Cli:
    """One user: a home, a state folder, a daemon when something needs it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.program = find_program("flotilla")
        self.started: list[subprocess.Popen] = []
        for name in ("home", "state", "work"):
            (folder / name).mkdir()
        (folder / "config.toml").touch()
        self.work = folder / "work"
        keep = ("PATH", "LANG", "ASAN_OPTIONS", "UBSAN_OPTIONS", "LSAN_OPTIONS", "TSAN_OPTIONS")
        self.environment = {name: os.environ[name] for name in keep if name in os.environ} | {
            "HOME": str(folder / "home"),
            "SHELL": "/bin/sh",
            "TERM": "xterm",
            "TZ": "UTC",
            "FLOTILLA_STATE_DIR": str(folder / "state"),
            "FLOTILLA_RUNTIME_DIR": str(folder / "run"),
            "FLOTILLA_CONFIG": str(folder / "config.toml"),
            "FLOTILLA_AGENT": str(find_program("flotilla-agent")),
        }

    def start(self, *words: str, **more) -> subprocess.Popen:
        environment = self.environment | more.pop("env", {})
        more.setdefault("stdin", subprocess.DEVNULL)
        more.setdefault("stdout", subprocess.PIPE)
        more.setdefault("stderr", subprocess.PIPE)
        more.setdefault("cwd", self.work)
        more.setdefault("bufsize", 0)  # what readline() has not asked for stays for communicate()
        process = subprocess.Popen([self.program, *words], env=environment, **more)
        self.started.append(process)
        return process

    def run(self, *words: str, input: bytes | None = None, code: int | None = 0, **more) -> "Ran":
        if input is not None:
            more["stdin"] = subprocess.PIPE
        process = self.start(*words, **more)
        try:
            out, err = process.communicate(input, timeout=WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            pytest.fail(f"flotilla {' '.join(words)} did not end: {out!r} {err!r}")
        ran = Ran(process.returncode, (out or b"").decode(errors="replace"), (err or b"").decode(errors="replace"))
        if code is not None:
            assert ran.code == code, f"flotilla {' '.join(words)}: code {ran.code}\n{ran.out}\n{ran.err}"
        return ran

    def json(self, *words: str):
        return json.loads(self.run(*words, "--json").out)

    def job(self, number: int | str) -> dict:
        return self.json("job", "show", str(number))

    def until_state(self, number: int | str, *states: str) -> dict:
        return until(lambda: (job := self.job(number))["state"] in states and job, f"job {number} in {states}")

    def daemon_pid(self) -> int:
        return self.json("daemon", "status")["pid"]

    def end(self) -> None:
        """All of it, in the way of a user; and, should that not do, by force, which is a failure."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
                process.wait()
        said = "'daemon stop --all' did not end"
        try:
            ran = self.run("daemon", "stop", "--all", code=None)
            said = f"code {ran.code}: {ran.err}"
            end = time.monotonic() + WAIT_S
            while time.monotonic() < end and processes_of(str(self.folder)):
                time.sleep(0.05)
        finally:
            left = {}
            for pid in processes_of(str(self.folder)):
                try:
                    left[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    continue
        assert not left, f"left running after 'daemon stop --all' ({said}): {left}"


class Ran:
    def __init__(self, code: int, out: str, err: str):
        self.code, self.out, self.err = code, out, err


def make_cli():
    folder = Path(tempfile.mkdtemp(prefix="flotilla-cli-"))
    cli = Cli(folder)
    try:
        yield cli
    finally:
        try:
            cli.end()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cli():
    """Shared by the tests of a file: starting a daemon for each would take longer than the tests."""
    yield from make_cli()


@pytest.fixture
def own_cli():
    """For tests that end or break the daemon."""
    yield from make_cli()


class Terminal:
    """A program on a pseudo terminal, and what a user would see and type."""

    def __init__(self, cli: Cli, *words: str, rows: int = 30, columns: int = 100, env: dict | None = None):
        import fcntl
        import termios

        self.master, slave = os.openpty()
        self.slave_name = os.ttyname(slave)
        self.size(rows, columns)
        self.before = termios.tcgetattr(slave)
        self.seen = b""

        def own_terminal():
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen([cli.program, *words], stdin=slave, stdout=slave, stderr=slave, cwd=cli.work,
                                        env=cli.environment | (env or {}), start_new_session=True, preexec_fn=own_terminal)
        self.slave = slave  # kept: its settings are looked at after the end

    def size(self, rows: int, columns: int) -> None:
        import fcntl
        import termios

        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str | bytes) -> None:
        os.write(self.master, text.encode() if isinstance(text, str) else text)

    def until(self, text: str, wait_s: float = WAIT_S) -> str:
        """Reads until the terminal has shown it; what was shown up to there is taken away."""
        end = time.monotonic() + wait_s
        pattern = re.compile(text.encode())
        while not (found := pattern.search(self.seen)):
            left = end - time.monotonic()
            ready, _, _ = select.select([self.master], [], [], max(0, left))
            if not ready:
                pytest.fail(f"the terminal did not show {text!r}, but {self.seen.decode(errors='replace')!r}")
            try:
                self.seen += os.read(self.master, 65536)
            except OSError:
                pytest.fail(f"the terminal was closed before it showed {text!r}: {self.seen.decode(errors='replace')!r}")
        shown = self.seen[: found.end()]
        self.seen = self.seen[found.end():]
        return shown.decode(errors="replace")

    def wait(self, wait_s: float = WAIT_S) -> int:
        end = time.monotonic() + wait_s
        while self.process.poll() is None:
            if time.monotonic() > end:
                pytest.fail(f"it did not end; shown: {self.seen.decode(errors='replace')!r}")
            if select.select([self.master], [], [], 0.05)[0]:
                self.seen += os.read(self.master, 65536)
        while select.select([self.master], [], [], 0)[0]:
            self.seen += os.read(self.master, 65536)
        return self.process.returncode

    def text(self) -> str:
        return self.seen.decode(errors="replace")

    def settings_restored(self) -> bool:
        import termios

        return termios.tcgetattr(self.slave) == self.before

    def is_raw(self) -> bool:
        import termios

        return not termios.tcgetattr(self.slave)[3] & termios.ICANON

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for fd in (self.master, self.slave):
            try:
                os.close(fd)
            except OSError:
                pass


@pytest.fixture
def terminal(request):
    """terminal(cli, "run", ...): closed at the end of the test."""
    opened: list[Terminal] = []

    def make(cli: Cli, *words: str, **more) -> Terminal:
        opened.append(Terminal(cli, *words, **more))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


sys.dont_write_bytecode = True
