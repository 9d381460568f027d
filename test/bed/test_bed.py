"""The test bed itself is what the other tests believe it to be."""
import signal
import subprocess
import sys
import time

import pytest

from bed import PASSWORD, BedError, wait_until

HOSTS = ("laptop", "frontend", "node1", "node2", "gateway", "inner")


def test_every_host_is_a_machine_of_its_own(bed):
    assert {n: h.output("hostname") for n, h in bed.hosts.items()} == {n: n for n in HOSTS}
    assert bed.laptop.output("id -un") == "alice"
    assert bed.frontend.output("id -un") == "asmith"
    assert bed.laptop.uid != bed.frontend.uid
    assert [p.name for p in bed.node1.processes() if p.name != "sleep"] == ["sshd"]
    bed.laptop.as_user("echo laptop > /tmp/mine")
    assert bed.frontend.output("ls /tmp") == ""


def test_home_is_shared_inside_the_cluster_only(bed):
    bed.frontend.as_user("echo shared > ~/file")
    assert bed.node2.output("cat ~/file") == "shared"
    assert bed.laptop.as_user("cat /home/*/file", check=False).returncode != 0
    assert bed.inner.as_user("cat ~/file", check=False).returncode != 0


def test_who_reaches_whom(bed):
    listener = bed.frontend.popen(["python3", "-c", "import socket; s = socket.create_server(('', 8080)); print('up', flush=True); s.accept()"],
                                  stdout=subprocess.PIPE, text=True)
    try:
        assert listener.stdout.readline() == "up\n"
        assert bed.laptop.can_reach(bed.frontend.addresses["pub"], 22)
        assert not bed.laptop.can_reach(bed.frontend.addresses["pub"], 8080), "only ssh is let in from outside"
        assert bed.node1.can_reach(bed.frontend.addresses["priv"], 8080)
    finally:
        listener.kill()
        listener.wait()
        listener.stdout.close()
    assert not bed.laptop.can_reach(bed.node1.addresses["priv"], 22)
    assert not bed.node1.can_reach(bed.laptop.addresses["pub"], 22)
    assert not bed.laptop.can_reach(bed.inner.addresses["site"], 22)
    assert bed.gateway.can_reach(bed.inner.addresses["site"], 22)


def test_nothing_of_ours_is_on_the_far_side(bed):
    for host in (bed.frontend, bed.node1, bed.inner):
        assert host.as_user("command -v flotilla flotilla-agent", check=False).returncode != 0
        assert host.processes_of_flotilla() == []


def test_ssh_goes_where_it_should(bed):
    assert bed.laptop.output("ssh -o BatchMode=yes frontend hostname") == "frontend"
    assert bed.frontend.output("ssh -o BatchMode=yes node1 hostname") == "node1"
    assert bed.laptop.output("ssh -o BatchMode=yes -J gateway inner hostname") == "inner"
    assert bed.gateway.as_user("ssh -o BatchMode=yes inner true", check=False).returncode != 0, "no key lies on the gateway"


@pytest.mark.parametrize("authentication", ["password", "interactive"])
def test_password_login(bed, authentication):
    bed.frontend.configure_sshd(authentication=authentication)
    try:
        assert bed.laptop.as_user("ssh -o BatchMode=yes frontend true", check=False).returncode != 0
        bed.laptop.write("/home/alice/answer", f"#!/bin/sh\necho '{PASSWORD}'\n", 0o700, "alice")
        before = bed.frontend.logins()
        assert bed.laptop.output("ssh frontend hostname", env={"SSH_ASKPASS": "/home/alice/answer", "SSH_ASKPASS_REQUIRE": "force"}) == "frontend"
        assert bed.frontend.logins() == before + 1
        bed.laptop.write("/home/alice/answer", "#!/bin/sh\necho wrong\n", 0o700, "alice")
        assert bed.laptop.as_user("ssh -o NumberOfPasswordPrompts=1 frontend true", check=False, env={"SSH_ASKPASS": "/home/alice/answer", "SSH_ASKPASS_REQUIRE": "force"}).returncode != 0
    finally:
        bed.frontend.configure_sshd()


def test_forwarding_can_be_forbidden(bed):
    ask = "ssh -o ExitOnForwardFailure=yes -W node1:22 frontend < /dev/null"
    assert bed.laptop.as_user(ask).stdout.startswith("SSH-2.0")
    bed.frontend.configure_sshd(forwarding=False)
    try:
        assert bed.laptop.as_user(ask, check=False).returncode != 0
        assert bed.laptop.output("ssh frontend hostname") == "frontend"
    finally:
        bed.frontend.configure_sshd()


def _session(bed):
    """An ssh session that prints what it is told."""
    talk = bed.laptop.popen(["ssh", "-o", "ServerAliveInterval=0", "frontend", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, text=True)
    talk.stdin.write("hello\n")
    talk.stdin.flush()
    assert talk.stdout.readline() == "hello\n"
    return talk


def _end(talk):
    talk.kill()
    talk.wait()
    talk.stdin.close()
    talk.stdout.close()


def test_a_cut_is_silent_and_heals(bed):
    talk = _session(bed)
    try:
        bed.laptop.cut("pub")
        assert not bed.laptop.can_reach(bed.frontend.addresses["pub"], 22)
        talk.stdin.write("later\n")
        talk.stdin.flush()
        assert talk.poll() is None
        bed.laptop.heal("pub")
        assert talk.stdout.readline() == "later\n", "TCP itself survives a short cut"
    finally:
        _end(talk)


def test_a_reset_is_told(bed):
    talk = _session(bed)
    try:
        assert bed.frontend.reset_connections() == 1
        assert talk.wait(10) == 255
    finally:
        _end(talk)


def test_killed_sshd_sessions_are_told(bed):
    talk = _session(bed)
    try:
        assert bed.frontend.kill_sshd_sessions() >= 1
        assert talk.wait(10) == 255
        assert bed.laptop.output("ssh frontend hostname") == "frontend", "the listener lives"
    finally:
        _end(talk)


def test_another_address(bed):
    talk = _session(bed)
    try:
        bed.laptop.change_address("pub", "10.91.0.77")
        assert bed.laptop.output("ssh frontend hostname") == "frontend"
        assert "10.91.0.77" in bed.frontend.read("/var/log/sshd.log")
        assert talk.poll() is None, "nobody told the old connection"
    finally:
        bed.laptop.change_address("pub", "10.91.0.1")
        _end(talk)


def test_delay(bed):
    def round_trip():
        begin = time.monotonic()
        bed.laptop.as_user(["bash", "-c", "exec 3<>/dev/tcp/10.91.0.10/22; read -r banner <&3"])
        return time.monotonic() - begin
    quick = round_trip()
    bed.laptop.delay("pub", 100)
    try:
        assert round_trip() > quick + 0.25, "connect and banner: two round trips of 200 ms"
        assert bed.laptop.output("ssh frontend 'head -c 3000000 /dev/zero | wc -c'") == "3000000"
    finally:
        bed.laptop.delay("pub", 0)
    assert round_trip() < 0.25


def test_power_off_and_on(bed):
    sleeper = bed.node1.popen(["sleep", "1000"])
    bed.node1.power_off()
    assert sleeper.wait(10) != 0, "every process of the host ends with it"
    assert bed.node1.processes() == []
    assert bed.frontend.as_user("ssh -o BatchMode=yes -o ConnectTimeout=2 node1 true", check=False).returncode == 255
    with pytest.raises(BedError):
        bed.node1.as_user("true")
    bed.node1.power_on()
    assert bed.frontend.output("ssh -o BatchMode=yes node1 hostname") == "node1", "the disk survived: users, keys, host key"
    assert bed.node1.output("ls /tmp") == ""


def test_a_dead_test_run_leaves_nothing(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(f"""
import sys, time
sys.path.insert(0, {str(sys.path[0])!r}); sys.path.insert(0, {__file__.rsplit('/', 1)[0]!r})
from bed import Bed
with Bed(hosts=("laptop", "frontend")) as bed:
    inside = bed.laptop.popen(["sleep", "12345"])
    print(bed.keeper.pid_inside, bed.laptop.pid, flush=True)
    time.sleep(1000)
""")
    run = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, cwd=tmp_path, env={"TMPDIR": str(tmp_path), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    keeper, laptop = map(int, run.stdout.readline().split())
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()

    def gone(pid):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                return stat.read().rsplit(")", 1)[1].split()[0] in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return True
    wait_until(lambda: gone(keeper) and gone(laptop), 10, "the hosts end with the run that made them")
