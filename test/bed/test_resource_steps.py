"""`flotilla resource test` and `resource connect`: what they say of a machine that is not as it should be."""
import re

import pytest

HOSTS = ("laptop", "frontend")
FAKE = "/usr/local/fake"
# What else an account there may write in, taken away.
NO_PLACE = """
mkdir -p /home/asmith/.cache
for place in /home/asmith/.cache/flotilla /tmp/flotilla-$uid /dev/shm/flotilla-$uid; do
  [ ! -e $place ] || mv $place $place.away
  echo in the way > $place
done
"""
PLACE_AGAIN = """
for place in /home/asmith/.cache/flotilla /tmp/flotilla-$uid /dev/shm/flotilla-$uid; do
  rm -f $place
  [ ! -e $place.away ] || mv $place.away $place
done
"""


@pytest.fixture
def says(bed):
    """says(program, text): that program there, for the user's logins, is a script that says this."""
    def say(program, text):
        bed.frontend.write(f"{FAKE}/{program}", f"#!/bin/sh\n{text}\n", 0o755)
        bed.frontend.configure_sshd(more=f"SetEnv PATH={FAKE}:/usr/bin:/bin\n")
    yield say
    bed.frontend.as_root(["rm", "-rf", FAKE])
    bed.frontend.configure_sshd()


@pytest.fixture
def no_place(bed):
    """Nowhere of its own can the account there write."""
    bed.frontend.as_root(["sh", "-euc", f"uid={bed.frontend.uid}\n{NO_PLACE}"])
    yield
    bed.frontend.as_root(["sh", "-euc", f"uid={bed.frontend.uid}\n{PLACE_AGAIN}"])


@pytest.fixture
def scratch(bed):
    """scratch(how): makes /scratch there."""
    def make(how):
        size = {"full": "16k", "nearly full": "1m", "read-only": "100m"}[how]
        bed.frontend.as_root(f"mkdir -p /scratch && mount -t tmpfs -o size={size},mode=1777 tmpfs /scratch")
        if how == "full":
            bed.frontend.as_user("head -c 1m /dev/zero > /scratch/much", check=False)
        if how == "read-only":
            bed.frontend.as_root("mount -o remount,ro /scratch")
    yield make
    bed.frontend.as_root("umount /scratch")


def check_failed(steps, code, at):
    """This step failed, those before it are well, those after it were not tried."""
    assert code == 1, steps
    names = list(steps)
    states = [steps[name]["status"] for name in names]
    where = names.index(at)
    assert states[where] == "failed", steps
    assert {"ok", "skipped"} >= set(states[:where]) and set(states[where + 1:]) == {"skipped"}, steps


@pytest.mark.parametrize("how, cause", [("full", "No space left on device"), ("read-only", "Read-only file system")])
def test_a_scratch_directory_that_cannot_be_written(bed, flotilla, scratch, how, cause):
    scratch(how)
    flotilla.add_cluster("hpc1", "--scratch-dir", "/scratch")
    steps, code = flotilla.test_resource("hpc1")
    check_failed(steps, code, "scratch")
    said = steps["scratch"]
    assert "scratch_dir of resource hpc1 cannot be used there: /scratch/flotilla: " in said["message"] and cause in said["message"], said
    assert "free some space there, or choose another scratch_dir" in said["hint"], said


def test_a_scratch_directory_without_room_for_the_agent(bed, flotilla, scratch):
    scratch("nearly full")
    flotilla.add_cluster("hpc1", "--scratch-dir", "/scratch")
    steps, code = flotilla.test_resource("hpc1")
    assert code == 0 and steps["agent"]["status"] == "warning", steps
    said = steps["agent"]
    assert "it could not be sent to /scratch/flotilla: cannot write: no space is left on the device" in said["message"], said
    assert "free some space there" in said["hint"], said
    assert {step["status"] for name, step in steps.items() if name != "agent"} == {"ok"}, steps


def test_no_place_at_all(bed, flotilla, no_place):
    flotilla.add_cluster("hpc1")
    steps, code = flotilla.test_resource("hpc1")
    check_failed(steps, code, "scratch")
    said = steps["scratch"]
    for place in ("/home/asmith/.cache/flotilla", f"/tmp/flotilla-{bed.frontend.uid}", f"/dev/shm/flotilla-{bed.frontend.uid}"):
        assert f"{place}: mkdir: cannot create directory" in said["message"], said
    assert "as the resource's scratch_dir" in said["hint"], said


def test_a_processor_that_no_agent_is_for(bed, flotilla, says):
    says("uname", "if [ \"$1\" = -m ]; then echo mips64; else exec /usr/bin/uname \"$@\"; fi")
    flotilla.add_cluster("hpc1")
    steps, code = flotilla.test_resource("hpc1")
    check_failed(steps, code, "architecture")
    assert "mips64 processors" in steps["architecture"]["message"] and "the agent of this installation is for" in steps["architecture"]["message"]
    assert "built for mips64" in steps["architecture"]["hint"]


@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_is_an_hour_off(bed, flotilla, says, hours):
    says("date", f"exec /usr/bin/date -d '{hours} hour' \"$@\"")
    flotilla.add_cluster("hpc1")
    steps, code = flotilla.test_resource("hpc1")
    assert code == 0, steps
    skew = steps["time skew"]
    assert skew["status"] == "warning", steps
    found = re.fullmatch(r"the clock there is (\d+) s (ahead of|behind) this one", skew["message"])
    assert found and abs(int(found[1]) - 3600) < 10 and (found[2] == "ahead of") == (hours > 0), skew
    assert "NTP" in skew["hint"]
    assert {step["status"] for name, step in steps.items() if name != "time skew"} == {"ok"}, steps


@pytest.mark.parametrize("transport", ["libssh", "openssh"])
def test_sending_the_agent_is_seen_to_go_on(bed, flotilla, transport):
    bed.frontend.as_user("rm -rf ~/.cache/flotilla")
    flotilla.add_cluster("hpc1", "--transport", transport)
    bed.frontend.limit_rate("pub", 20)
    try:
        with flotilla.terminal("resource", "connect", "hpc1") as terminal:
            assert terminal.wait(60) == 0, terminal.shown
    finally:
        bed.frontend.unlimit_rate("pub")
    fractions = [int(number) for number in re.findall(r"sending the agent to \S+ (\d+) %", terminal.shown)]
    assert fractions == sorted(fractions), fractions
    assert fractions[0] <= 10 and fractions[-1] >= 90 and len(set(fractions)) >= 20, fractions
    flotilla.run("resource", "disconnect", "hpc1")
    with flotilla.terminal("resource", "connect", "hpc1") as terminal:
        assert terminal.wait(30) == 0, terminal.shown
    assert "sending" not in terminal.shown and "starting" in terminal.shown, terminal.shown
