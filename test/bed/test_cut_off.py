"""Nobody comes back: after the cut-off nothing is left of ours or of a job, whatever it did to get away."""
import contextlib
import time

import pytest

from bed import BedError, wait_until
from test_failures import daemon_process, hub_processes

HOSTS = ("laptop", "frontend", "node1", "node2", "gateway", "inner")
CUTOFF = 5.0
SILENCE = 35.0                   # until a hub takes a link that tells nothing for lost
ENDING = 15.0                    # jobs have a grace
STOPPING = 10.0                  # six hubs are started to be asked


@pytest.fixture
def everywhere(flotilla):
    """A pilot each on the front end, on a node and behind the gateway, by both transports: each has a link of its own."""
    flotilla.host.write("/home/alice/short.toml", f'[pilots]\ncutoff = "{CUTOFF:.0f}s"\n')
    flotilla.env["FLOTILLA_CONFIG"] = "/home/alice/short.toml"
    for transport in ("libssh", "openssh"):
        to = ("--transport", transport)
        flotilla.add_cluster(f"front-{transport}", *to)
        flotilla.add_cluster(f"nodes-{transport}", *to, "--host", "node1" if transport == "libssh" else "node2")
        flotilla.run("resource", "add", f"gate-{transport}", "--location", "asmith@gateway", *to)
        flotilla.run("resource", "add", f"deep-{transport}", "--location", "asmith@inner", "--gateway", f"gate-{transport}", *to)
        for name in ("front", "nodes", "deep"):
            flotilla.start_pilot(f"{name}-{transport}", "--slots", "1")
    return flotilla


@pytest.mark.parametrize("how", ["daemon", "hub and daemon", "sshd", "cut"])
def test_nothing_is_left_after_the_cut_off(bed, everywhere, how):
    far = [host for host in bed.hosts.values() if host is not bed.laptop]
    assert len(hub_processes(bed.frontend)) == 4 and len(hub_processes(bed.inner)) == 2
    with contextlib.ExitStack() as healing:
        if how == "hub and daemon":
            for host in (bed.frontend, bed.inner):
                for hub in hub_processes(host):
                    hub.kill()
        if how in ("daemon", "hub and daemon"):
            daemon_process(bed).kill()
        if how == "sshd":
            for host in (bed.frontend, bed.gateway):
                healing.enter_context(host.closed_to("pub"))
                assert host.kill_sshd_sessions() >= 1
        if how == "cut":
            bed.laptop.cut("pub")
            healing.callback(bed.laptop.heal, "pub")
        begin = time.monotonic()
        gone = far if how in ("sshd", "cut") else list(bed.hosts.values())
        left = lambda: [f"{h.name}: {p}" for h in gone for p in h.processes_of_flotilla()]  # noqa: E731
        limit = CUTOFF + ENDING + (SILENCE if how == "cut" else 0)
        with contextlib.suppress(BedError):
            wait_until(lambda: not left(), limit, "nothing is left")
        assert left() == []
        took = time.monotonic() - begin
        assert took > CUTOFF - 1, f"after {took:.1f} s: sooner than asked"
        if how in ("sshd", "cut"):
            assert len(bed.laptop.runaways()) == 5, "this machine's own pilot is not concerned"
    begin = time.monotonic()
    stopped = everywhere.run("daemon", "stop", "--all", check=False)
    said = stopped.stdout + stopped.stderr
    if how == "hub and daemon":
        # Nobody saw the end of the pilots on nodes: who looked after them was dead. They are named, with the time.
        assert stopped.returncode == 4 and said.count("; it ends by itself when it is cut off: by ") == 2, said
        assert all(f"does not reach node 0 of pilot {pilot} on {node};" in said for pilot, node in ((3, "node1"), (6, "node2"))), said
    else:
        assert stopped.returncode == 0 and said == "", said
    assert time.monotonic() - begin < STOPPING, f"nothing had to be waited for:\n{said}"
    assert [f"{h.name}: {p}" for h in bed.hosts.values() for p in h.processes_of_flotilla()] == []
