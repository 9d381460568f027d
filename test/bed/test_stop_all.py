"""`flotilla daemon stop --all` in bad weather: what can be reached in time ends, the rest is named; nothing is left in silence."""
import time

import pytest

from bed import wait_until
from test_failures import daemon_process, hub_processes, pilot_processes


@pytest.fixture
def cluster(flotilla):
    flotilla.add_cluster("front")
    flotilla.add_cluster("nodes", "--host", "node1", "--host", "node2")
    return flotilla


def busy(cluster):
    for label in ("nodes", "front"):
        cluster.start_pilot(label, "--slots", "2")
        job = cluster.submit("--on", label, "--", "sleep", "4444")
        cluster.wait_job(job, "running")


def nothing_left(bed, *hosts):
    hosts = hosts or tuple(bed.hosts.values())
    wait_until(lambda: not any(h.processes_of_flotilla() for h in hosts), 5, "nothing of ours is left")
    assert not [p for h in hosts for p in h.processes() if p.argv[-1] == "4444"]


def begin_to_stop(cluster):
    return cluster.popen("daemon", "stop", "--all", text=True, stdout=-1, stderr=-1)


def test_a_lost_connection_is_made_again(bed, cluster):
    busy(cluster)
    bed.laptop.cut("pub")
    bed.frontend.kill_sshd_sessions()
    stop = begin_to_stop(cluster)
    # The daemon finds a silent link, and attempts that go nowhere.
    log = f"{cluster.env['FLOTILLA_STATE_DIR']}/logs/daemon.log"
    wait_until(lambda: ": connecting, for" in bed.laptop.read(log).partition("stopping everything:")[2], 30, "it is tried again", every=0.1)
    bed.laptop.heal("pub")
    _, said = stop.communicate(timeout=60)
    assert stop.returncode == 0, said
    nothing_left(bed)


def test_a_hub_that_has_just_died(bed, cluster):
    busy(cluster)
    for hub in hub_processes(bed.frontend):
        hub.kill()
    cluster.run("daemon", "stop", "--all", timeout=60)
    nothing_left(bed)


def test_what_cannot_be_reached_is_named(bed, cluster):
    cluster.start_pilot("front", "--slots", "2", "--cutoff", "2h")
    cluster.wait_job(cluster.submit("--on", "front", "--", "sleep", "4444"), "running")
    bed.laptop.cut("pub")
    begin = time.monotonic()
    stopped = cluster.run("daemon", "stop", "--all", timeout=60, check=False)
    took = time.monotonic() - begin
    assert stopped.returncode != 0
    assert took < 40, f"{took:.1f} s"
    assert "front: not reached within 20 s" in stopped.stderr, stopped.stderr
    assert "pilot 2 with 2 jobs" in stopped.stderr and "cut off: by 20" in stopped.stderr, stopped.stderr
    nothing_left(bed, bed.laptop)
    assert pilot_processes(bed.frontend)
    bed.laptop.heal("pub")
    cluster.run("daemon", "stop", "--all", timeout=60)   # as the message says
    nothing_left(bed)


def test_the_first_command_after_a_killed_daemon(bed, cluster):
    busy(cluster)
    cluster.add_cluster("idle")
    cluster.run("resource", "connect", "idle")           # a hub without pilots
    assert len(hub_processes(bed.frontend)) == 3
    daemon_process(bed).kill()
    cluster.run("daemon", "stop", "--all", timeout=60)
    nothing_left(bed)
