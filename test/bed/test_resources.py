"""Resources that are changed, removed or disconnected while something goes on there; and logs, when they are needed."""
import os
import pty
import select

import pytest

from bed import wait_until
from test_failures import hub_processes, pilot_processes


def hub_of(flotilla, name):
    return next(r for r in flotilla.json("resource", "list") if r["spec"]["name"] == name)


def test_what_runs_goes_on_when_its_resource_is_changed(bed, flotilla):
    flotilla.add_cluster("hpc1")
    pilot = flotilla.start_pilot("hpc1", "--slots", "2")
    job = flotilla.submit("--on", "hpc1", "--", "sh", "-c", "while [ ! -e go ]; do sleep 0.1; done; echo went on")
    flotilla.wait_job(job, "running")
    hub = hub_of(flotilla, "hpc1")["hub_pid"]
    flotilla.add_cluster("hpc1", "--replace", "--env", "SEASON=winter", "--setup", "true", "--debug")
    second = flotilla.start_pilot("hpc1", "--slots", "1", "--label", "later")
    assert flotilla.output("run", "--on", "later", "--", "sh", "-c", "echo $SEASON") == "winter"
    # Another way to the same hub: the link is made anew, nothing else.
    flotilla.add_cluster("hpc1", "--replace", "--transport", "openssh")
    flotilla.wait_hub("hpc1", "connected")
    flotilla.wait_pilot(pilot, "running")
    assert flotilla.output("run", "--on", "later", "--", "hostname") == "frontend"
    folder = flotilla.job(job)["folder"]
    bed.frontend.as_user(["touch", folder + "/go"])
    assert flotilla.output("job", "logs", "-f", str(job), timeout=20) == "went on"
    assert hub_of(flotilla, "hpc1")["hub_pid"] == hub
    moved = flotilla.run("resource", "add", "hpc1", "--location", "asmith@frontend", "--scratch-dir", "/tmp/elsewhere", "--replace", check=False)
    assert moved.returncode != 0
    assert "scratch_dir" in moved.stderr and str(pilot) in moved.stderr
    assert flotilla.pilot(second)["state"] == "running"


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_a_pilot_starts_at_once_where_another_resource_was(bed, flotilla, how):
    flotilla.add_cluster("hpc1")
    flotilla.run("resource", "connect", "hpc1")
    before = hub_of(flotilla, "hpc1")["hub_pid"]
    if how == "removed":
        flotilla.run("resource", "remove", "hpc1")
        flotilla.add_cluster("hpc1")
    else:
        flotilla.add_cluster("hpc1", "--replace", "--scratch-dir", "/tmp/elsewhere")
    flotilla.start_pilot("hpc1", "--slots", "1", timeout=30)
    assert flotilla.output("run", "--on", "hpc1", "--", "hostname") == "frontend"
    assert hub_of(flotilla, "hpc1")["hub_pid"] != before
    assert len(hub_processes(bed.frontend)) == 1


def test_disconnected_while_it_is_tried(bed, flotilla):
    flotilla.add_cluster("hpc1")
    pilot = flotilla.start_pilot("hpc1", "--slots", "1")
    bed.laptop.cut("pub")
    bed.frontend.kill_sshd_sessions()
    bed.laptop.change_address("pub", "10.91.0.77")   # the daemon notices at once
    flotilla.wait_pilot(pilot, "unreachable", 60)
    parent, child = pty.openpty()
    waiting = flotilla.popen("resource", "connect", "hpc1", stderr=child)
    os.close(child)
    assert select.select([parent], [], [], 60)[0], "it shows how the connecting goes"
    flotilla.run("resource", "disconnect", "hpc1", timeout=10)
    assert waiting.wait(20) != 0
    os.close(parent)
    shown = hub_of(flotilla, "hpc1")
    assert (shown["hub_state"], shown["hub_message"]) == ("unreachable", "disconnected by the user")
    bed.laptop.heal("pub")
    flotilla.run("resource", "connect", "hpc1")
    flotilla.wait_pilot(pilot, "running")


def test_removed_by_force_behind_a_cut_link(bed, flotilla):
    flotilla.add_cluster("hpc1")
    pilot = flotilla.start_pilot("hpc1", "--slots", "1", "--cutoff", "8s")
    flotilla.run("resource", "disconnect", "hpc1")
    flotilla.wait_pilot(pilot, "unreachable")
    said = flotilla.run("resource", "remove", "hpc1", "--force").stderr
    assert f"Pilot {pilot}" in said and "ends by itself by" in said, said
    wait_until(lambda: pilot_processes(bed.frontend) == [], 30, "its cut-off has ended it")
    # Its hub stays for a daemon that may come back.
    for process in hub_processes(bed.frontend):
        process.kill()


def test_the_log_of_a_pilot_that_cannot_start(bed, flotilla):
    flotilla.add_cluster("front", "--setup", "echo the licence server is down >&2", "--setup", "exit 9")
    flotilla.add_cluster("nodes", "--host", "node1", "--setup", "exit 9")
    flotilla.run("resource", "add", "here", "--setup", "exit 9")
    for name in ("front", "nodes", "here"):
        flotilla.run("pilot", "start", name, check=False)
        pilot = max(p["id"] for p in flotilla.json("pilot", "list", "--ended"))
        text = flotilla.output("logs", str(pilot))
        assert f"pilot {pilot}.0 of {name}" in text, text
        assert "exit code 9" in text, text


def test_the_log_of_a_pilot_that_has_ended(bed, flotilla):
    flotilla.add_cluster("front")
    flotilla.run("resource", "add", "here")
    for name in ("front", "here"):
        pilot = flotilla.start_pilot(name, "--slots", "1")
        assert f"pilot {pilot}.0 of {name}" in flotilla.output("logs", str(pilot))
        flotilla.run("pilot", "stop", str(pilot))
        flotilla.wait_pilot(pilot, "finished")
        assert f"pilot {pilot}.0 of {name}" in flotilla.output("logs", str(pilot))
    flotilla.run("resource", "disconnect", "front")
    first = min(p["id"] for p in flotilla.json("pilot", "list", "--ended") if p["spec"]["resource"] == "front")
    away = flotilla.run("logs", str(first), check=False)
    assert away.returncode != 0
    assert "resource connect front" in away.stderr


@pytest.mark.parametrize("of", ["pilot", "resource"])
def test_who_follows_a_log_is_told_when_the_link_ends(bed, flotilla, of):
    flotilla.add_cluster("front")
    pilot = flotilla.start_pilot("front", "--slots", "1")
    following = flotilla.popen("logs", "-f", str(pilot) if of == "pilot" else "front", stdout=-1, stderr=-1, text=True)
    assert following.stdout.readline()
    bed.frontend.kill_sshd_sessions()
    _, said = following.communicate(timeout=20)
    assert following.returncode != 0
    assert "does not come any more" in said, said


def test_the_configured_cut_off_is_the_hubs_too(bed, flotilla):
    flotilla.host.write("/home/alice/short.toml", '[pilots]\ncutoff = "5s"\n')
    flotilla.env["FLOTILLA_CONFIG"] = "/home/alice/short.toml"
    flotilla.add_cluster("hpc1")
    flotilla.start_pilot("hpc1", "--slots", "1")
    flotilla.run("daemon", "stop")
    wait_until(lambda: not bed.frontend.processes_of_flotilla(), 30, "hub and pilot have ended")
