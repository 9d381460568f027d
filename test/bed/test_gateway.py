"""A machine that only a gateway reaches."""
import contextlib
import subprocess

import pytest

from bed import wait_until

HOSTS = ("laptop", "gateway", "inner")


@pytest.mark.parametrize("transport", ["libssh", "openssh"])
@pytest.mark.parametrize("forwarding", [True, False])
def test_through_a_gateway(bed, flotilla, transport, forwarding):
    bed.gateway.configure_sshd(forwarding=forwarding)
    try:
        flotilla.run("resource", "add", "gate", "--location", "asmith@gateway", "--transport", transport)
        flotilla.run("resource", "add", "deep", "--location", "asmith@inner", "--gateway", "gate", "--transport", transport)
        flotilla.start_pilot("deep", "--slots", "2")
        assert flotilla.output("run", "--on", "deep", "--", "hostname") == "inner"
        flotilla.python("""
            with flotilla.Daemon() as daemon:
                worker, code = start_code(daemon, label="deep")
                assert code.compute(0.0) == "inner"
                code.close()
            """)
        assert bed.gateway.output("ls ~/.ssh").split() == ["authorized_keys", "id_ed25519", "id_ed25519.pub", "known_hosts"], \
            "the laptop authenticated end to end: nothing was left on the gateway"
    finally:
        bed.gateway.configure_sshd()


@pytest.mark.parametrize("transport", ["libssh", "openssh"])
@pytest.mark.parametrize("victim", ["gateway", "inner"])
def test_a_link_that_is_lost_in_a_call(bed, flotilla, transport, victim):
    flotilla.run("resource", "add", "gate", "--location", "asmith@gateway", "--transport", transport)
    flotilla.run("resource", "add", "deep", "--location", "asmith@inner", "--gateway", "gate", "--transport", transport)
    flotilla.start_pilot("deep", "--slots", "2")
    with flotilla.python_live("""
        with flotilla.Daemon() as daemon:
            worker, code = start_code(daemon, label="deep")
            print("ready", flush=True)
            print(code.compute(2.0), flush=True)
            print(code.echo(5), flush=True)
            code.close()
        """) as script:
        assert script.line(60) == "ready"
        assert bed.hosts[victim].kill_sshd_sessions() >= 1
        assert script.line(30) == "inner"
        assert script.line(20) == "5"
        flotilla.wait_runaways()


@pytest.mark.parametrize("transport", ["libssh", "openssh"])
def test_a_test_through_a_gateway(bed, flotilla, transport):
    flotilla.run("resource", "add", "gate", "--location", "asmith@gateway", "--transport", transport)
    flotilla.run("resource", "add", "deep", "--location", "asmith@inner", "--gateway", "gate", "--transport", transport)
    steps, code = flotilla.test_resource("deep")
    assert code == 0, steps
    assert {name for name, step in steps.items() if step["status"] != "ok"} == {"name"}, steps
    assert steps["name"]["status"] == "skipped", steps
    assert len(steps) >= 8 and "inner" in steps["hub"]["message"], steps


@contextlib.contextmanager
def down(bed, what):
    """A host, or its sshd."""
    if what == "inner":
        bed.inner.power_off()
        bed.gateway.as_root("ip neighbour flush dev site")   # it asks anew who has that address
    else:
        bed.hosts[what.removeprefix("sshd of ")].as_root("kill $(cat /run/sshd.pid)")
    try:
        yield
    finally:
        bed.inner.power_on()
        for host in (bed.gateway, bed.inner):
            host.configure_sshd()


@pytest.mark.parametrize("transport", ["libssh", "openssh"])
@pytest.mark.parametrize("what, forwarding, cause, to_do", [
    ("inner", True, "the gateway gate (asmith@gateway) cannot reach inner port 22: No route to host", "is inner up"),
    ("sshd of inner", True, "the gateway gate (asmith@gateway) cannot reach inner port 22: Connection refused", "is sshd running on inner"),
    ("sshd of inner", False, "the gateway gate (asmith@gateway) cannot reach inner port 22: Connection refused", "is sshd running on inner"),
    ("sshd of gateway", True, "the gateway 'gate' cannot be reached: cannot reach gat", "is sshd running")],
    ids=["inner", "sshd of inner", "sshd of inner, forwarding forbidden", "sshd of gateway"])
def test_a_test_says_what_is_down(bed, flotilla, transport, what, forwarding, cause, to_do):
    bed.gateway.configure_sshd(forwarding=forwarding)
    flotilla.run("resource", "add", "gate", "--location", "asmith@gateway", "--transport", transport)
    flotilla.run("resource", "add", "deep", "--location", "asmith@inner", "--gateway", "gate", "--transport", transport)
    with down(bed, what):
        steps, code = flotilla.test_resource("deep")
    assert code == 1
    said = steps["reachability"]
    assert said["status"] == "failed", steps
    assert {step["status"] for step in steps.values()} == {"failed", "skipped"}, steps
    assert said["message"].startswith(cause) and to_do in said["hint"], said


def test_a_target_that_takes_the_connection_and_says_nothing(bed, flotilla):
    """Told in time, by each way, and nothing stays on the gateway."""
    bed.gateway.configure_sshd(forwarding=False)
    listens = "import socket; s = socket.create_server(('', 2222)); print('listens', flush=True); held = [s.accept() for _ in range(9)]"
    with bed.inner.popen(["python3", "-c", listens], stdout=subprocess.PIPE, text=True) as mute:
        try:
            assert mute.stdout.readline() == "listens\n"
            tests = []
            for transport in ("libssh", "openssh"):
                flotilla.run("resource", "add", f"gate-{transport}", "--location", "asmith@gateway", "--transport", transport)
                flotilla.run("resource", "add", f"deep-{transport}", "--location", "asmith@inner:2222", "--gateway", f"gate-{transport}",
                             "--transport", transport)
                tests.append(flotilla.popen("resource", "test", f"deep-{transport}", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
            for test in tests:
                said, _ = test.communicate(timeout=60)
                assert test.returncode == 1 and "cannot reach inner port 2222: it takes the connection, and then says nothing" in said, said
            wait_until(lambda: not [p for p in bed.gateway.processes() if "dial" in p.argv], 10, "nobody dials any more")
        finally:
            mute.kill()
