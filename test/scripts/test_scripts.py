"""The commands that a newcomer types, as they stand."""
import os
import pathlib
import re
import signal
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = ROOT / "build" / "demo"


def processes_of_the_demo():
    """Whatever was started with the demonstration's own state."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes()
            ended = (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            continue
        if not ended and int(entry.name) != os.getpid() and f"FLOTILLA_STATE_DIR={DEMO}/state".encode() in environment:
            found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


@pytest.fixture(autouse=True)
def nothing_of_it_runs():
    assert processes_of_the_demo() == []
    yield
    assert processes_of_the_demo() == []


def script(name, *arguments):
    return subprocess.run([ROOT / "scripts" / name, *arguments], capture_output=True, text=True, timeout=1500)


def test_the_demonstration_shows_the_solar_system_and_leaves_nothing():
    for plot in DEMO.glob("*.png"):
        plot.unlink()
    ran = script("demo", "--no-setup", "--", "--years", "1")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"web page: http://(127\.0\.0\.1|localhost):\d+/\S+", ran.stdout)
    assert re.search(r"[Ee]nergy error\D*\d", ran.stdout)
    for planet in ("Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune"):
        assert re.search(rf"{planet}.*\d", ran.stdout), planet
    assert (DEMO / "solar_system.png").read_bytes().startswith(b"\x89PNG")
    assert "the daemon, its page and its pilot have ended" in ran.stdout


def test_the_demonstration_can_be_kept_and_says_how_to_end_it():
    ran = script("demo", "--no-setup", "--keep", "--", "--years", "1")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert processes_of_the_demo() != []
    setting = re.search(r"export (FLOTILLA_STATE_DIR=.*)", ran.stdout)[0]
    ended = subprocess.run(["bash", "-c", f"{setting}; flotilla pilot list && flotilla daemon stop --all"], capture_output=True, text=True,
                           timeout=60)
    assert ended.returncode == 0 and "running" in ended.stdout, ended.stdout + ended.stderr


def test_the_demonstration_is_interrupted_and_leaves_nothing():
    process = subprocess.Popen([ROOT / "scripts" / "demo", "--no-setup", "--", "--years", "100000"], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, start_new_session=True)
    with process:
        try:
            for line in process.stdout:
                if "The solar system" in line:
                    break
            os.killpg(process.pid, signal.SIGINT)
            process.stdout.read()
            assert process.wait(60) == 130
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("name", ["demo", "test", "dist", "build", "setup", "fuzz", "bench", "check"])
def test_an_unknown_option_is_named_and_help_is_there(name):
    wrong = script(name, "--no-such-thing")
    assert wrong.returncode not in (0, None) and "--no-such-thing" in wrong.stderr
    told = script(name, "--help")
    assert told.returncode == 0 and "Usage" in told.stdout


def test_the_tarball_runs_in_an_empty_root_and_on_an_older_distribution():
    ran = script("dist", "--no-setup", "--test")
    if os.geteuid() != 0:
        assert ran.returncode != 0 and "--test needs root" in ran.stderr
        return
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr
    tried = re.findall(r"In (an empty root|Debian 11 \(glibc 2\.31\))", ran.stdout)
    assert tried == ["an empty root", "Debian 11 (glibc 2.31)"] and ran.stdout.count("\nworks\n") == 2, ran.stdout[-4000:]
    [tarball] = (ROOT / "build").glob("flotilla-*-linux-*.tar.xz")
    assert subprocess.run(["sha256sum", "-c", f"{tarball.name}.sha256"], cwd=tarball.parent, capture_output=True).returncode == 0
