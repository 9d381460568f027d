"""What happens when something breaks: told within seconds and with the cause, or gone on with as if nothing had been."""
import hashlib
import signal
import time

import pytest

from bed import wait_until

LOSSES = ("cut", "sshd", "reset", "address")


def lose_link(bed, how):
    """Returns what heals it."""
    if how == "cut":
        bed.laptop.cut("pub")
        return lambda: bed.laptop.heal("pub")
    if how == "sshd":
        assert bed.frontend.kill_sshd_sessions() >= 1
        return lambda: None
    if how == "reset":
        assert bed.frontend.reset_connections() >= 1
        return lambda: None
    bed.laptop.change_address("pub", "10.91.0.88")
    return lambda: None          # the new address stays for the rest of the test


def pilot_processes(host):
    return [p for p in host.processes() if p.argv[0].rsplit("/", 1)[-1].startswith("flotilla-agent") and "--serve" in p.argv]


def hub_processes(host):
    return [p for p in host.processes() if p.argv[0].rsplit("/", 1)[-1].startswith("flotilla-agent") and "hub" in p.argv[1:2]]


def guard_processes(host):
    return [p for p in host.processes() if p.argv[0].rsplit("/", 1)[-1].startswith("flotilla-agent") and "pilot" in p.argv[1:2] and "--serve" not in p.argv]


def daemon_process(bed):
    found = [p for p in bed.laptop.processes() if p.name == "flotilla" and "daemon" in p.argv]
    assert len(found) == 1
    return found[0]


@pytest.fixture
def cluster(flotilla):
    flotilla.add_cluster("front")
    flotilla.add_cluster("nodes", "--host", "node1", "--host", "node2")
    return flotilla


# ---- something dies behind a live link: told within 5 s


@pytest.mark.parametrize("victim", ["pilot", "guard"])
def test_a_killed_pilot_is_told_at_once(bed, cluster, victim):
    pilot = cluster.start_pilot("nodes", "--slots", "2")
    host = bed.hosts[cluster.pilot(pilot)["nodes"][0]["host"]]
    with cluster.python_live("""
        with flotilla.Daemon() as daemon:
            worker, code = start_code(daemon, label="nodes")
            print(code.start_runaway(), flush=True)
            try:
                code.compute(600.0)
            except Exception as error:
                print(type(error).__name__, repr(str(error) + " " + worker.explain_end()), flush=True)
        """) as script:
        script.line(60)
        (pilot_processes(host) if victim == "pilot" else guard_processes(host))[0].kill()
        begin = time.monotonic()
        said = script.line(10)
        assert time.monotonic() - begin < 5
        assert said.startswith("ChannelClosed"), said
        assert "pilot" in said, said
        wait_until(lambda: host.processes_of_flotilla() == [], 10, "the guard left nothing of the pilot's jobs")
    cluster.wait_pilot(pilot, "failed", 10)


def test_a_node_without_power_is_told(bed, cluster):
    pilot = cluster.start_pilot("nodes", "--slots", "2")
    name = cluster.pilot(pilot)["nodes"][0]["host"]
    job = cluster.submit("--on", "nodes", "--", "sleep", "600")
    cluster.wait_job(job, "running")
    with cluster.python_live("""
        with flotilla.Daemon() as daemon:
            worker, code = start_code(daemon, label="nodes")
            print("ready", flush=True)
            try:
                code.compute(600.0)
            except Exception as error:
                print(type(error).__name__, repr(str(error) + " " + worker.explain_end()), flush=True)
        """) as script:
        assert script.line(60) == "ready"
        begin = time.monotonic()
        bed.hosts[name].power_off()
        try:
            said = script.line(15)
            took = time.monotonic() - begin
            assert took < 5, f"told after {took:.1f} s"      # keepalive 3.5 s, grace of the hub 1.3 s
            assert said.startswith("ChannelClosed"), said
            assert name in said, said
            ended = cluster.wait_job(job, "failed", 5)
            assert ended["exit"]["kind"] == "pilot_lost", ended["exit"]
            assert name in ended["message"] + ended["exit"]["message"], ended
        finally:
            bed.hosts[name].power_on()


def test_a_killed_hub_is_started_again(bed, cluster):
    pilot = cluster.start_pilot("nodes", "--slots", "2")
    job = cluster.submit("--on", "nodes", "--", "sh", "-c", "sleep 6; echo went on")
    cluster.wait_job(job, "running")
    old = hub_processes(bed.frontend)
    assert len(old) == 1
    old[0].kill()
    wait_until(lambda: [p for p in hub_processes(bed.frontend) if p.pid != old[0].pid], 20, "the daemon started a new hub")
    cluster.wait_pilot(pilot, "running", 20)
    cluster.wait_job(job, "finished", 30)
    assert cluster.output("job", "logs", str(job)) == "went on"
    assert cluster.output("run", "--on", "nodes", "--", "echo", "again") == "again"
    assert cluster.job(job)["attempt"] == 1
    cluster.wait_runaways()


def test_a_killed_daemon_takes_up_again(bed, cluster):
    here = next(p["id"] for p in cluster.json("pilot", "list"))
    far = cluster.start_pilot("nodes", "--slots", "4")
    jobs = [cluster.submit("--on", label, "--", "sh", "-c", "echo begin; sleep 5; echo went on") for label in ("nodes", "local")]
    for job in jobs:
        cluster.wait_job(job, "running")
    with cluster.python_live("""
        with flotilla.Daemon() as daemon:
            near, near_code = start_code(daemon, label="local")
            far, far_code = start_code(daemon, label="nodes")
            print("ready", flush=True)
            try:
                far_code.compute(600.0)
            except Exception as error:
                print(type(error).__name__, flush=True)
            # The near one has its worker's own socket: the daemon is not in the way.
            print(near_code.echo(7), flush=True)
            near_code.close()
        """) as script:
        assert script.line(60) == "ready"
        daemon_process(bed).kill()
        begin = time.monotonic()
        cluster.run("daemon", "start")
        assert time.monotonic() - begin < 5
        assert script.line(15) == "ChannelClosed", "who held a remote channel is told"
        assert script.line(10) == "7", "who held a local worker's own socket is not concerned"
    for job in jobs:
        cluster.wait_job(job, "finished", 30)
        assert cluster.output("job", "logs", str(job)) == "begin\nwent on"
        assert cluster.job(job)["attempt"] == 1, "it was not started again"
    assert cluster.pilot(here)["state"] == "running"
    cluster.wait_pilot(far, "running", 20)
    assert cluster.output("run", "--on", "nodes", "--", "echo", "again") == "again"
    cluster.wait_runaways()


# ---- the link is lost while a worker computes, and in the middle of an array


@pytest.mark.parametrize("label", ["front", "nodes"])
@pytest.mark.parametrize("how", LOSSES)
def test_a_lost_link_in_a_call(bed, cluster, label, how):
    cluster.start_pilot(label, "--slots", "2")
    with cluster.python_live(f"""
        with flotilla.Daemon() as daemon:
            worker, code = start_code(daemon, label={label!r})
            print("ready", flush=True)
            print(code.compute(4.0), flush=True)
            print(code.echo(5), flush=True)
            code.close()
        """) as script:
        assert script.line(60) == "ready"
        heal = lose_link(bed, how)
        begin = time.monotonic()
        if how == "cut":
            time.sleep(6)       # the length of the cut, longer than the call
        heal()
        said = script.line(60)
        took = time.monotonic() - begin
        assert said in ("frontend", "node1", "node2")
        assert script.line(20) == "5"
        assert took < 15, f"{took:.1f} s"
        cluster.wait_runaways()


def test_a_lost_link_of_the_systems_own_ssh_in_a_call(bed, flotilla):
    flotilla.add_cluster("front", "--transport", "openssh")
    flotilla.start_pilot("front", "--slots", "2")
    with flotilla.python_live("""
        with flotilla.Daemon() as daemon:
            worker, code = start_code(daemon, label="front")
            print("ready", flush=True)
            print(code.compute(2.0), flush=True)
            print(code.echo(5), flush=True)
            code.close()
        """) as script:
        assert script.line(60) == "ready"
        assert bed.frontend.kill_sshd_sessions() >= 1
        assert script.line(20) == "frontend"
        assert script.line(20) == "5"
        flotilla.wait_runaways()


@pytest.mark.parametrize("transport", ["libssh", "openssh"])
@pytest.mark.parametrize("wakes_up", ["connected", "forgotten", "elsewhere"])
def test_the_laptop_sleeps_during_a_call(bed, flotilla, transport, wakes_up):
    flotilla.add_cluster("front", "--transport", transport)
    flotilla.start_pilot("front", "--slots", "2")
    with flotilla.python_live("""
        with flotilla.Daemon() as daemon:
            worker, code = start_code(daemon, label="front")
            print("ready", flush=True)
            print(code.compute_until_told("/home/asmith"), flush=True)
            print(code.echo(5), flush=True)
            code.close()
        """) as script:
        assert script.line(60) == "ready"
        computing = lambda: bed.frontend.as_user("test -e ~/computing", check=False).returncode == 0  # noqa: E731
        wait_until(computing, 10, "it computes")
        bed.laptop.fall_asleep()
        bed.frontend.as_user("touch ~/go")
        wait_until(lambda: not computing(), 10, "it has computed")
        if wakes_up != "connected":
            assert bed.frontend.kill_sshd_sessions() >= 1
        if wakes_up == "elsewhere":
            bed.laptop.change_address("pub", "10.91.0.88")
        bed.laptop.wake_up()
        begin = time.monotonic()
        assert script.line(30) == "frontend"
        took = time.monotonic() - begin
        assert script.line(20) == "5"
        assert took < 10, f"{took:.1f} s"
        flotilla.wait_runaways()


def test_a_call_over_a_slow_line_takes_one_round_trip(bed, flotilla):
    round_trip = 0.1
    flotilla.add_cluster("front")
    flotilla.start_pilot("front", "--slots", "1")
    with flotilla.python_live("""
        with flotilla.Daemon() as daemon:
            worker, code = start_code(daemon, label="front")
            print("ready", flush=True)
            input()
            took = []
            for value in range(20):
                begin = time.monotonic()
                assert code.echo(value) == value
                took.append(time.monotonic() - begin)
            print(sorted(took)[len(took) // 2], flush=True)
            code.close()
        """) as script:
        assert script.line(60) == "ready"
        bed.laptop.delay("pub", int(round_trip * 1000) // 2)
        script.tell("go")
        took = float(script.line(60))
    assert round_trip <= took < 1.6 * round_trip, f"{took * 1000:.0f} ms"


@pytest.mark.parametrize("label", ["front", "nodes"])
@pytest.mark.parametrize("how, way", [(how, way) for how in LOSSES for way in ("there", "back") if (how, way) != ("cut", "there")])
def test_a_lost_link_in_the_middle_of_an_array(bed, cluster, label, how, way):
    """On its way to the worker, or on its way back."""
    cluster.start_pilot(label, "--slots", "2")
    with cluster.python_live(f"""
        import array
        with flotilla.Daemon() as daemon:
            worker, code = start_code(daemon, label={label!r})
            data = array.array("d", range(6_553_600))      # 50 MiB
            want = hashlib.sha256(data.tobytes()).hexdigest()
            print("ready", flush=True)
            input()
            back = code.echo_array(data)
            assert hashlib.sha256(bytes(memoryview(back).cast("B"))).hexdigest() == want
            print("whole", flush=True)
            code.close()
        """) as script:
        came = lambda host: host.tcp_bytes("pub")  # noqa: E731
        taker = bed.frontend if way == "there" else bed.laptop
        for host in (bed.laptop, bed.frontend):
            host.limit_rate("pub", 400)
        try:
            assert script.line(60) == "ready"
            before = [came(host) for host in (bed.laptop, bed.frontend)]
            begun = came(taker)
            script.tell("go")
            wait_until(lambda: came(taker) - begun > 10_000_000, 30, "the array is under way", every=0.005)
            heal = lose_link(bed, how)
            assert came(taker) - begun < 45_000_000, "it is in the middle"
            if how == "cut":
                time.sleep(60)  # the length of the cut
            heal()
            begin = time.monotonic()
            assert script.line(60) == "whole"
            took = time.monotonic() - begin
            assert took < 25, f"{took:.1f} s"     # two ways at 400 Mbit/s, and the new connection
            cluster.wait_runaways()
        finally:
            for host in (bed.laptop, bed.frontend):
                host.unlimit_rate("pub")
        assert all(came(host) - count > 50_000_000 for host, count in zip((bed.laptop, bed.frontend), before))


@pytest.mark.parametrize("where", ["laptop", "frontend"])
def test_a_cut_of_a_minute(bed, cluster, where):
    """The laptop's own cable is out, or (nothing here tells) that of the front end."""
    pilot = cluster.start_pilot("front", "--slots", "2")
    job = cluster.submit("--on", "front", "--", "sh", "-c", "for i in $(seq 90); do echo $i; sleep 1; done")
    cluster.wait_job(job, "running")
    with cluster.python_live("""
        with flotilla.Daemon() as daemon:
            worker, code = start_code(daemon, label="front")
            print("ready", flush=True)
            print(code.compute(10.0), flush=True)
            code.close()
        """) as script:
        assert script.line(60) == "ready"
        begin = time.monotonic()
        bed.hosts[where].cut("pub")
        cluster.wait_pilot(pilot, "unreachable", 50)
        assert cluster.job(job)["pilot_unreachable"]
        waiting = cluster.submit("--on", "front", "--", "true")
        assert "cut" in cluster.output("job", "why", str(waiting))
        time.sleep(max(0.0, begin + 60 - time.monotonic()))     # the length of the cut
        bed.hosts[where].heal("pub")
        healed = time.monotonic()
        assert script.line(30) == "frontend"
        assert time.monotonic() - healed < 15, "right after the link is back"
    cluster.wait_pilot(pilot, "running", 20)
    cluster.wait_job(job, "finished", 60)
    assert cluster.output("job", "logs", str(job)).split() == [str(i) for i in range(1, 91)], "no line is lost, none twice"
    assert cluster.job(job)["attempt"] == 1
    cluster.wait_runaways()


def test_the_front_end_loses_power(bed, cluster):
    pilot = cluster.start_pilot("front", "--slots", "2")
    job = cluster.submit("--on", "front", "--", "sleep", "600")
    cluster.wait_job(job, "running")
    bed.frontend.power_off()
    try:
        cluster.wait_pilot(pilot, ("unreachable", "failed"), 60)
        assert cluster.job(job)["state"] == "running", "unknown, and not started elsewhere"
    finally:
        bed.frontend.power_on()
    # A new boot: what ran there is surely gone.
    cluster.wait_pilot(pilot, "failed", 60)
    assert cluster.wait_job(job, "failed", 10)["exit"]["kind"] == "pilot_lost"


# ---- ends


def test_cut_off_pilots_end_themselves(bed, cluster):
    cluster.start_pilot("nodes", "--slots", "1", "--cutoff", "3s")
    job = cluster.submit("--on", "nodes", "--", "sh", "-c", "setsid sleep 5555 & (setsid sleep 5556 &) ; sleep 5557")
    cluster.wait_job(job, "running")
    bed.laptop.cut("pub")
    wait_until(lambda: not any(p.name == "sleep" and p.argv[-1].startswith("555") for h in (bed.node1, bed.node2) for p in h.processes()),
               90, "cut off too long: the pilot has ended all that it started")
    wait_until(lambda: not bed.node1.processes_of_flotilla() and not bed.node2.processes_of_flotilla(), 20, "and itself")
    bed.laptop.heal("pub")
    cluster.wait_hub("nodes", "connected")


def test_pilots_end_at_their_time_and_when_idle(bed, cluster):
    timed = cluster.start_pilot("nodes", "--slots", "1", "--time", "3s")
    idle = cluster.start_pilot("front", "--slots", "1", "--idle", "2s", runaways=False)
    cluster.wait_pilot(timed, "finished", 15)
    cluster.wait_pilot(idle, "finished", 15)
    wait_until(lambda: not pilot_processes(bed.node1) and not pilot_processes(bed.node2) and not pilot_processes(bed.frontend), 10, "no pilot is left")


def test_stop_all_leaves_nothing(bed, cluster):
    cluster.start_pilot("nodes", "--slots", "2", "--nodes", "2")
    cluster.start_pilot("front", "--slots", "2")
    for label in ("nodes", "front", "local"):
        job = cluster.submit("--on", label, "--", "sh", "-c", "setsid sleep 6666 & (setsid sleep 6667 & setsid setsid sleep 6668 &) ; trap '' TERM HUP INT; sleep 6669")
        cluster.wait_job(job, "running")
    cluster.run("daemon", "stop", "--all", timeout=60)
    wait_until(lambda: not bed.processes_of_flotilla(), 5, "nothing of ours is left")
    left = [f"{h.name}: {p}" for h in bed.hosts.values() for p in h.processes() if p.name == "sleep" and p.argv[-1].startswith("666")]
    assert left == []


def test_a_killed_job_tree_cannot_hide(bed, cluster):
    """kill -9 of the pilot itself: the guard ends what forked twice and called setsid, with an emptied environment too."""
    cluster.start_pilot("front", "--slots", "1")
    job = cluster.submit("--on", "front", "--", "sh", "-c", "(setsid env -i /usr/bin/sleep 7777 &) ; sleep 7778")
    cluster.wait_job(job, "running")
    wait_until(lambda: [p for p in bed.frontend.processes() if p.argv[-1] == "7777"], 10, "the runaway runs")
    pilot_processes(bed.frontend)[0].kill(signal.SIGKILL)
    wait_until(lambda: not [p for p in bed.frontend.processes() if p.argv[-1] in ("7777", "7778")], 10, "it is gone")


@pytest.mark.parametrize("how", ["cut", "sshd"])
def test_input_goes_on_where_it_was(bed, cluster, how):
    cluster.start_pilot("front", "--slots", "1")
    run = cluster.popen("run", "--on", "front", "--", "sh", "-c", "echo ready; sha256sum", text=False, stdin=-1, stdout=-1, stderr=-1)
    assert run.stdout.readline() == b"ready\n"
    want = hashlib.sha256()

    def give(count):
        for i in range(count):
            line = b"%07d %s\n" % (i, b"x" * 91)
            want.update(line)
            run.stdin.write(line)
        run.stdin.flush()

    give(2_000)
    heal = lose_link(bed, how)
    give(5_000)                 # below what may wait in the daemon
    if how == "cut":
        time.sleep(5)           # the length of the cut
    heal()
    give(30_000)                # more than what may wait anywhere
    out, said = run.communicate(timeout=90)
    assert run.returncode == 0, said
    assert out.decode().split()[0] == want.hexdigest()


def test_what_a_node_kept_over_a_reboot_is_cleared_away(bed, cluster):
    folders = lambda: bed.frontend.as_user("ls ~/.cache/flotilla/pilots").stdout.split()  # noqa: E731; one home for all
    other = cluster.start_pilot("front", "--slots", "1")
    pilot = cluster.start_pilot("nodes", "--slots", "1")
    mine = [f for f in folders() if f"-{pilot}.0-" in f]
    assert len(mine) == 1
    assert cluster.pilot(pilot)["nodes"][0]["host"] == "node1"
    bed.node1.power_off()
    cluster.wait_pilot(pilot, "failed", 30)
    bed.node1.power_on()
    assert mine[0] in folders()
    again = cluster.start_pilot("nodes", "--slots", "1")
    wait_until(lambda: mine[0] not in folders(), 10, "the next pilot there has removed it")
    instance = mine[0].split("-")[0]  # what other tests' nodes kept is not ours
    assert sorted(f.split("-")[1] for f in folders() if f.startswith(instance)) == sorted([f"{other}.0", f"{again}.0"]), folders()
