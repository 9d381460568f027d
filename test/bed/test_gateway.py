"""A machine that only a gateway reaches."""
import pytest

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
