"""`flotilla amuse test`: the real command, in the AMUSE of these tests and in folders that are made to look like one."""
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import tempfile

import amuse
import pytest
from conftest import MPI, PROGRAM, processes_with

COMMUNITY = pathlib.Path(amuse.__path__[0]) / "community"
TEST_S = 150    # of one run: every code is started, on a busy machine
PROGRAMS = {"hermite_worker", "bhtree_worker", "ph4_worker", "sse_worker", "fi_worker"}    # among others


class Checker:
    """A user with a daemon of their own."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "config.toml").write_text("[local_pilot]\nstart = false\n")
        self.environment = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ} | MPI | {
            "HOME": str(folder), "FLOTILLA_STATE_DIR": str(folder / "state"), "FLOTILLA_CONFIG": str(folder / "config.toml")}
        self.started = []

    def run(self, *words):
        return subprocess.run([PROGRAM, *words], env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TEST_S)

    def test(self, *words, code=0, python=sys.executable):
        done = self.run("amuse", "test", "--python", python, *words)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def steps(self, *words, code=0, **more):
        return {step["name"]: step for step in json.loads(self.test("--json", *words, code=code, **more))}

    def start(self, *words):
        process = subprocess.Popen([PROGRAM, "amuse", "test", "--python", sys.executable, *words], env=self.environment,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.started.append(process)
        return process

    def pilots(self):
        return json.loads(self.run("pilot", "list", "--json").stdout)

    def left(self):
        return processes_with(f"HOME={self.folder}\0")

    def wait_only_daemon_left(self):
        while others := {pid: words for pid, words in self.left().items() if " daemon run" not in words}:
            try:
                process = os.pidfd_open(next(iter(others)))
            except OSError:
                continue    # it has ended
            ended = select.select([process], [], [], 20)[0]
            os.close(process)
            assert ended, others


@pytest.fixture
def checker():
    folder = pathlib.Path(tempfile.mkdtemp(prefix="flotilla-check-"))
    made = Checker(folder)
    try:
        yield made
        made.wait_only_daemon_left()
        assert made.pilots() == []
    finally:
        made.run("daemon", "stop", "--all")
        for process in made.started:
            if process.poll() is None:
                process.kill()
                process.wait()
            process.stdout.close()
            process.stderr.close()
        for pid in made.left():
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        shutil.rmtree(folder, ignore_errors=True)


def fake_amuse(folder):
    """A tree with one real code, one that does not start, and one in Python."""
    for name in ("hermite", "broken", "scripted"):
        (folder / "amuse/community" / name).mkdir(parents=True)
    community = folder / "amuse/community"
    shutil.copy(COMMUNITY / "hermite/hermite_worker", community / "hermite/hermite_worker")
    broken = community / "broken/broken_worker"
    broken.write_text("#!/bin/sh\necho first >&2\necho no licence for today >&2\nexit 3\n")
    broken.chmod(0o755)
    (community / "scripted/scripted_worker").write_text(f"""#!{sys.executable}
import socket, sys
channel = socket.create_connection((sys.argv[2], int(sys.argv[1])))
channel.sendall(channel.recv(44, socket.MSG_WAITALL))
""")
    (community / "scripted/scripted_worker").chmod(0o755)
    (community / "scripted/not_worker.py").write_text("a module, and no program\n")
    return folder / "amuse"


def test_all_is_right_and_both_forms_have_the_same_steps(checker):
    out = checker.test()
    assert "All is right." in out
    assert "To do:" not in out
    assert "\033" not in out    # no terminal
    steps = checker.steps()
    assert PROGRAMS <= set(steps)
    assert "distributed_worker" not in steps
    assert {name: step["status"] for name, step in steps.items()} == dict.fromkeys(steps, "ok")
    assert all(step["hint"] == "" for step in steps.values())
    assert [line.split("  ")[0] for line in out.splitlines()[:-1]] == ["ok"] * len(steps)
    for line, name in zip(out.splitlines(), steps):
        assert line[8:].startswith(name)
    assert amuse.__path__[0] in steps["AMUSE here"]["message"]
    assert "2 ranks" in steps["two ranks"]["message"]
    assert "built with MPI" in steps["hermite_worker"]["message"]
    assert list(steps)[:8] == ["AMUSE here", "distributed", "mpiexec here", "resource", "pilot", "channel", "AMUSE there", "MPI"]


def test_a_python_without_amuse_and_one_without_flotilla(checker):
    python = checker.folder / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -S \"$@\"\n")    # no site-packages
    python.chmod(0o755)
    checker.environment["PATH"] = f"{checker.folder}:/usr/bin:/bin"
    tree = fake_amuse(checker.folder)
    (tree / "community/broken/broken_worker").unlink()
    steps = checker.steps("--amuse-dir", str(tree), code=1, python=str(python))
    assert steps["AMUSE here"]["status"] == "failed"
    assert "--python" in steps["AMUSE here"]["hint"]
    assert steps["distributed"]["status"] == "skipped"
    assert steps["hermite_worker"]["status"] == "ok"    # the rest is tested all the same

    subprocess.run([PROGRAM, "amuse", "uninstall", "--python", sys.executable], check=True, capture_output=True)
    try:
        steps = checker.steps("--amuse-dir", str(tree), code=1)
    finally:
        subprocess.run([PROGRAM, "amuse", "install", "--python", sys.executable], check=True, capture_output=True)
    assert steps["distributed"]["status"] == "failed"
    assert steps["distributed"]["hint"] == f"flotilla amuse install --python {sys.executable}"


def test_a_code_that_does_not_start_is_told_with_its_last_words(checker):
    tree = fake_amuse(checker.folder)
    out = checker.test("--amuse-dir", str(tree), code=1)
    assert "no licence for today" in out
    assert "1 step failed" in out
    steps = checker.steps("--amuse-dir", str(tree), code=1)
    assert steps["broken_worker"]["status"] == "failed"
    assert "exited with code 3" in steps["broken_worker"]["message"]
    assert steps["broken_worker"]["message"].endswith("first\nno licence for today")
    assert str(tree / "community/broken/broken_worker") in steps["broken_worker"]["hint"]
    assert [steps[name]["status"] for name in ("hermite_worker", "scripted_worker", "MPI", "two ranks")] == ["ok"] * 4
    assert "a script" in steps["scripted_worker"]["message"]
    assert "not_worker.py" not in steps


def test_mpi_that_does_not_fit_is_told(checker):
    tools = checker.folder / "tools"
    tools.mkdir()
    (tools / "mpiexec").write_text("#!/bin/sh\necho 'HYDRA build details:'\necho '    Version:      4.0.2'\n")
    (tools / "mpiexec").chmod(0o755)
    checker.environment["PATH"] = f"{tools}:{checker.environment['PATH']}"
    tree = fake_amuse(checker.folder)
    (tree / "community/broken/broken_worker").unlink()
    steps = checker.steps("--amuse-dir", str(tree), code=1)
    assert steps["MPI"]["status"] == "failed"
    assert "Open MPI" in steps["MPI"]["message"] and "MPICH 4.0.2" in steps["MPI"]["message"]
    assert "in PATH" in steps["MPI"]["hint"]
    assert steps["hermite_worker"]["status"] == "ok"    # alone it needs no mpiexec
    assert steps["two ranks"]["status"] == "skipped"


def test_no_amuse_where_it_is_said_to_be(checker):
    steps = checker.steps("--amuse-dir", "/nowhere", code=1)
    assert steps["channel"]["status"] == "ok"
    assert steps["AMUSE there"]["status"] == "failed"
    assert "/nowhere" in steps["AMUSE there"]["message"]
    assert "--amuse-dir" in steps["AMUSE there"]["hint"]
    assert steps["two ranks"]["status"] == "skipped"


def test_root_is_told_what_mpiexec_wants(checker):
    for name in MPI:
        checker.environment.pop(name)
    tools = checker.folder / "tools"
    tools.mkdir()
    # AMUSE's own mpiexec as Open MPI answers root, whoever runs this test.
    (tools / "python").write_text(f"""#!{sys.executable}
import subprocess, sys
if "find_spec" in sys.argv[2]:
    sys.exit(subprocess.call([{sys.executable!r}, *sys.argv[1:]]))
print("\\nflotilla:mpiexec\\t{tools}/mpiexec --quiet")
""")
    (tools / "mpiexec").write_text("#!/bin/sh\necho 'refused for root: set OMPI_ALLOW_RUN_AS_ROOT' >&2\nexit 1\n")
    for name in ("python", "mpiexec"):
        (tools / name).chmod(0o755)
    steps = checker.steps("--amuse-dir", "/nowhere", code=1, python=str(tools / "python"))
    assert steps["mpiexec here"]["status"] == "failed"
    assert "export OMPI_ALLOW_RUN_AS_ROOT=1" in steps["mpiexec here"]["hint"]


def test_a_resource_that_is_not_there(checker):
    done = checker.run("amuse", "test", "--python", sys.executable, "--on", "nowhere")
    assert done.returncode == 3
    assert "'nowhere'" in done.stderr


def test_a_resource_that_cannot_be_reached(checker):
    checker.run("resource", "add", "shut", "--location", "me@127.0.0.1:1")
    steps = checker.steps("--on", "shut", code=1)
    assert steps["resource"]["status"] == "failed"
    assert steps["resource"]["hint"]
    assert {steps[name]["status"] for name in ("pilot", "channel", "AMUSE there", "MPI", "two ranks")} == {"skipped"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_pilot_too(checker, number):
    process = checker.start()
    for line in process.stdout:
        if " bhtree_worker " in line:    # the codes' turn
            break
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "All is right" not in out
