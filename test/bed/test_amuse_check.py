"""`flotilla amuse test --on` a resource whose AMUSE is not where anybody would look."""
import json
import signal

import bed as beds
import pytest

HOSTS = ("laptop", "frontend")
CODE = """#!/usr/bin/env python3
import socket, sys
channel = socket.create_connection((sys.argv[2], int(sys.argv[1])))
channel.sendall(channel.recv(44, socket.MSG_WAITALL))
"""
WITHOUT_LIBRARY = "#!/bin/sh\necho 'x: error while loading shared libraries: libgsl.so.99: cannot open shared object file' >&2\nexit 127\n"
WAITS = "#!/bin/sh\nexec tail -f /dev/null\n"


@pytest.fixture
def community(bed):
    """community(name, text): a code of that name in ~/codes/amuse there."""
    def add(name, text):
        bed.frontend.as_user(["mkdir", "-p", f"/home/asmith/codes/amuse/community/{name}"])
        bed.frontend.write(f"/home/asmith/codes/amuse/community/{name}/{name}_worker", text, 0o755)
    yield add
    bed.frontend.as_user("rm -rf ~/codes")


def steps_of(done):
    return {step["name"]: step for step in json.loads(done.stdout)}


def test_codes_there_are_started_and_what_fails_has_its_hint(bed, flotilla, community):
    community("good", CODE)
    community("poor", WITHOUT_LIBRARY)
    flotilla.add_cluster("hpc1")
    done = flotilla.run("amuse", "test", "--on", "hpc1", "--amuse-dir", "codes", "--accept-new", "--json", check=False, timeout=120)
    steps = steps_of(done)
    assert done.returncode == 1, done.stderr
    assert {name: steps[name]["status"] for name in ("resource", "pilot", "channel", "AMUSE there", "good_worker")} == {
        "resource": "ok", "pilot": "ok", "channel": "ok", "AMUSE there": "ok", "good_worker": "ok"}, steps
    assert "/home/asmith/codes/amuse on frontend" in steps["AMUSE there"]["message"]
    assert steps["poor_worker"]["status"] == "failed"
    assert "libgsl.so.99" in steps["poor_worker"]["message"]
    assert "--setup" in steps["poor_worker"]["hint"]
    assert steps["MPI"]["status"] == "skipped"
    assert [pilot for pilot in flotilla.json("pilot", "list") if pilot["spec"]["resource"] == "hpc1"] == []


def test_no_amuse_there(bed, flotilla):
    flotilla.add_cluster("hpc1")
    steps = steps_of(flotilla.run("amuse", "test", "--on", "hpc1", "--amuse-dir", "nowhere", "--accept-new", "--json", check=False, timeout=120))
    assert steps["channel"]["status"] == "ok", steps
    assert steps["AMUSE there"]["status"] == "failed"
    assert "does not exist on frontend: /home/asmith/nowhere" in steps["AMUSE there"]["message"]
    assert "--amuse-dir" in steps["AMUSE there"]["hint"]


def test_a_signal_while_a_code_starts_leaves_nothing_there(bed, flotilla, community):
    community("slow", WAITS)
    flotilla.add_cluster("hpc1")
    with flotilla.popen("amuse", "test", "--on", "hpc1", "--amuse-dir", "codes", "--accept-new") as outside:
        beds.wait_until(lambda: any(p.argv[:2] == ["tail", "-f"] for p in bed.frontend.processes()), 120, "the code runs")
        test, = (p for p in bed.laptop.processes() if p.argv[1:3] == ["amuse", "test"] and p.argv[0].startswith("flotilla"))
        test.kill(signal.SIGINT)
        assert outside.wait(20) == 128 + signal.SIGINT
    pilot, = (pilot["id"] for pilot in flotilla.json("pilot", "list", "--ended") if pilot["spec"]["label"] == "amuse-test")
    flotilla.wait_pilot(pilot, "finished", timeout=20)
    assert not [p for p in bed.frontend.processes() if p.argv[:2] == ["tail", "-f"]]
