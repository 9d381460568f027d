"""Resources, pilots and commands: on the laptop, on the front end, on nodes behind it."""
import base64
import contextlib
import json
import pathlib
import re
import subprocess
import time

import pytest

from bed import PASSWORD, wait_until
from test_failures import hub_processes


def test_on_this_machine(flotilla):
    assert flotilla.output("run", "--", "echo", "hello") == "hello"
    assert flotilla.run("run", "--", "sh", "-c", "exit 7", check=False).returncode == 7
    assert flotilla.run("run", "--", "sh", "-c", "kill -9 $$", check=False).returncode == 137
    assert flotilla.output("run", "--", "cat", input="from stdin") == "from stdin"
    done = flotilla.run("run", "--", "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    missing = flotilla.run("run", "--", "no-such-program", check=False)
    assert missing.returncode == 127
    assert "no-such-program" in missing.stderr


def test_the_front_end_with_nothing_installed(bed, flotilla):
    flotilla.add_cluster()
    before = bed.frontend.logins()
    pilot = flotilla.start_pilot("hpc1", "--slots", "2")
    assert flotilla.output("run", "--on", "hpc1", "--", "hostname") == "frontend"
    assert flotilla.output("run", "--on", "hpc1", "--", "id", "-un") == "asmith"
    shown = flotilla.pilot(pilot)
    assert shown["state"] == "running"
    assert shown["slots"] == 2
    assert bed.frontend.logins() == before + 1, "one authentication for a resource"
    resource = next(r for r in flotilla.json("resource", "list") if r["spec"]["name"] == "hpc1")
    assert resource["hub_state"] == "connected"


def test_resource_test_says_what_works(bed, flotilla):
    flotilla.add_cluster()
    steps = {step["name"]: step for step in flotilla.json("resource", "test", "hpc1")}
    assert {"ok", "warning"} >= {step["status"] for step in steps.values() if step["status"] != "skipped"}, steps
    assert len(steps) >= 7, steps
    flotilla.run("resource", "add", "nowhere", "--location", "asmith@nosuchhost")
    done = flotilla.run("resource", "test", "nowhere", check=False)
    assert done.returncode != 0
    assert "nosuchhost" in done.stdout + done.stderr
    flotilla.run("resource", "add", "firewalled", "--location", "asmith@frontend:8080")
    done = flotilla.run("resource", "test", "firewalled", check=False, timeout=90)
    assert done.returncode != 0
    assert "8080" in done.stdout + done.stderr


def test_a_file_for_a_slow_node_does_not_pile_up_at_the_hub(bed, flotilla):
    flotilla.add_cluster("hpc1", "--host", "node1")
    flotilla.start_pilot("hpc1", "--slots", "1")
    want = flotilla.host.output(["sh", "-c", "head -c 100M /dev/urandom > big; sha256sum big"])
    highest = lambda process: int(re.search(r"VmHWM:\s*(\d+) kB", pathlib.Path(f"/proc/{process.pid}/status").read_text())[1])  # noqa: E731
    bed.node1.limit_rate("priv", 100)
    try:
        begin = time.monotonic()
        said = flotilla.output("run", "--on", "hpc1", "--file", "big", "--", "sha256sum", "big", timeout=120)
        assert time.monotonic() - begin > 5, "the node was not slow"
    finally:
        bed.node1.unlimit_rate("priv")
    assert said.split() == want.split()
    [hub] = hub_processes(bed.frontend)
    assert highest(hub) < 80_000, f"{highest(hub)} kB"


def test_nodes_behind_the_front_end(bed, flotilla):
    flotilla.add_cluster("hpc1", "--host", "node1", "--host", "node2")
    pilot = flotilla.start_pilot("hpc1", "--nodes", "2", "--slots", "1")
    nodes = wait_until(lambda: (n := flotilla.pilot(pilot)["nodes"]) and all(x["connected"] for x in n) and n, 20, "both nodes are there")
    assert sorted(n["host"] for n in nodes) == ["node1", "node2"]
    jobs = [flotilla.submit("--on", "hpc1", "--", "sh", "-c", "hostname; sleep 1") for _ in range(2)]
    flotilla.run("job", "wait", *map(str, jobs), timeout=30)
    assert sorted(flotilla.output("job", "logs", str(j)) for j in jobs) == ["node1", "node2"]


def test_one_of_the_nodes_is_down(bed, flotilla):
    bed.node1.power_off()
    try:
        flotilla.add_cluster("hpc1", "--host", "node1", "--host", "node2")
        begin = time.monotonic()
        pilot = flotilla.start_pilot("hpc1", "--nodes", "2", "--slots", "1", runaways=False)
        assert flotilla.output("run", "--on", "hpc1", "--", "hostname") == "node2"
        told = wait_until(lambda: [n for n in flotilla.pilot(pilot)["nodes"] if not n["connected"] and "node1" in n["message"]], 15,
                          "it is said that node1 cannot be reached")
        assert time.monotonic() - begin < 15, told
    finally:
        bed.node1.power_on()


def test_a_pilot_that_cannot_start_says_why(bed, flotilla):
    flotilla.add_cluster("hpc1", "--setup", "echo the licence server is down >&2", "--setup", "exit 9")
    begin = time.monotonic()
    done = flotilla.run("pilot", "start", "hpc1", check=False)
    took = time.monotonic() - begin
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "the licence server is down" in said and "9" in said and "frontend" in said, said
    assert took < 10


@pytest.mark.parametrize("how", ["off", "silent"])
@pytest.mark.parametrize("nodes", ["1", "2"])
def test_a_pilot_all_of_whose_hosts_are_down_says_so(bed, flotilla, how, nodes):
    flotilla.add_cluster("hpc1", "--host", "node1", "--host", "node2")
    flotilla.run("resource", "connect", "hpc1")
    with contextlib.ExitStack() as healing:
        for host in (bed.node1, bed.node2):
            if how == "off":
                host.power_off()
                healing.callback(host.power_on)
            else:
                healing.enter_context(host.closed_to("priv"))
        begin = time.monotonic()
        done = flotilla.run("pilot", "start", "hpc1", "--nodes", nodes, check=False, timeout=120)
        took = time.monotonic() - begin
        said = done.stdout + done.stderr
        assert done.returncode != 0
        assert "node1" in said and "node2" in said, said
        assert "exit code 255" in said, said
        assert "No route to host" in said or "timed out" in said, said
        assert took < 10, f"{took:.1f} s: {said}"
        failed = max(flotilla.json("pilot", "list", "--ended"), key=lambda p: p["id"])
        assert failed["state"] == "failed" and "node2" in failed["message"], failed


def connect_with_password(flotilla, resource):
    """`resource connect` on a terminal where somebody answers once; what the terminal showed."""
    with flotilla.terminal("resource", "connect", resource) as terminal:
        terminal.until(r"[Pp]assword.*: ?$", 60)
        terminal.type(PASSWORD + "\n")
        assert terminal.wait(60) == 0, terminal.shown
        return terminal.shown


def test_keyboard_interactive_is_asked_once(bed, flotilla):
    bed.frontend.configure_sshd(authentication="interactive")
    try:
        flotilla.run("daemon", "start")
        flotilla.add_cluster()
        # Without a terminal: no hanging, but a sentence that says what to do.
        silent = flotilla.run("pilot", "start", "hpc1", check=False, timeout=60)
        assert silent.returncode != 0
        assert "resource connect" in silent.stdout + silent.stderr
        before = bed.frontend.logins()
        seen = connect_with_password(flotilla, "hpc1")
        assert PASSWORD not in seen, "what is typed is not shown"
        assert bed.frontend.logins() == before + 1
        flotilla.start_pilot("hpc1", "--slots", "1")
        assert flotilla.output("run", "--on", "hpc1", "--", "hostname") == "frontend"
        assert bed.frontend.logins() == before + 1, "everything goes inside the one connection"
        logs = flotilla.host.as_root(f"grep -rl --exclude='*.py' --exclude-dir=__pycache__ '{PASSWORD}' /home/alice /tmp /home/alice/state || true").stdout
        assert logs == "", "no secret is ever written down"
    finally:
        bed.frontend.configure_sshd()


def test_a_dead_hub_costs_no_second_login(bed, flotilla):
    bed.frontend.configure_sshd(authentication="interactive")
    try:
        flotilla.run("daemon", "start")
        flotilla.add_cluster()
        before = bed.frontend.logins()
        connect_with_password(flotilla, "hpc1")
        pilot = flotilla.start_pilot("hpc1", "--slots", "1")
        job = flotilla.submit("--on", "hpc1", "--", "sh", "-c", "while ! test -e ~/go; do sleep 0.1; done; echo went on")
        flotilla.wait_job(job, "running")
        hubs = lambda: [p for p in bed.frontend.processes() if "hub" in p.argv[1:2]]  # noqa: E731
        old = hubs()
        assert len(old) == 1
        old[0].kill()
        wait_until(lambda: [p for p in hubs() if p.pid != old[0].pid], 20, "the daemon started a new hub")
        flotilla.wait_hub("hpc1", "connected", 20)
        flotilla.wait_pilot(pilot, "running", 20)
        bed.frontend.as_user("touch ~/go")
        flotilla.wait_job(job, "finished", 20)
        assert flotilla.output("job", "logs", str(job)) == "went on"
        assert flotilla.job(job)["attempt"] == 1
        assert bed.frontend.logins() == before + 1, "nobody was asked again"
    finally:
        bed.frontend.as_user("rm -f ~/go")
        bed.frontend.configure_sshd()


def test_a_test_of_a_resource_in_use_disturbs_nothing(bed, flotilla):
    flotilla.add_cluster("hpc1", "--host", "node1")
    pilot = flotilla.start_pilot("hpc1", "--slots", "1")
    job = flotilla.submit("--on", "hpc1", "--", "sh", "-c", "while ! test -e ~/go; do sleep 0.1; done; echo went on")
    flotilla.wait_job(job, "running")
    try:
        state = lambda: bed.frontend.as_user("cat ~/.cache/flotilla/hubs/*.json; ls ~/.cache/flotilla/hubs ~/.cache/flotilla/logs").stdout  # noqa: E731
        before = state()
        flotilla.run("resource", "test", "hpc1")
        assert state() == before
        # The file is what a hub that follows a dead one goes by.
        next(p for p in bed.frontend.processes() if "hub" in p.argv[1:2]).kill()
        flotilla.wait_pilot(pilot, "running", 20)
    finally:
        bed.frontend.as_user("touch ~/go")
    flotilla.wait_job(job, "finished", 20)
    bed.frontend.as_user("rm ~/go")
    assert flotilla.output("job", "logs", str(job)) == "went on"
    assert flotilla.job(job)["attempt"] == 1


def test_an_unknown_host_key_is_never_taken_silently(bed, flotilla):
    known = "/home/alice/.ssh/known_hosts"
    kept = bed.laptop.read(known)
    bed.laptop.write(known, "", 0o600, "alice")
    try:
        flotilla.add_cluster()
        refused = flotilla.run("pilot", "start", "hpc1", check=False, timeout=60)
        assert refused.returncode != 0
        fingerprint = bed.frontend.as_root("ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub").stdout.split()[1]
        assert fingerprint in refused.stdout + refused.stderr, "it is shown for comparing"
        assert "--accept-new" in refused.stdout + refused.stderr
        assert bed.laptop.read(known) == ""
        flotilla.run("resource", "connect", "hpc1", "--accept-new")
        assert "ssh-ed25519" in bed.laptop.read(known)
        # A changed one is never taken.
        flotilla.run("resource", "disconnect", "hpc1")
        other = bed.laptop.as_user("ssh-keygen -q -t ed25519 -N '' -f /tmp/other; cat /tmp/other.pub").stdout.split()
        bed.laptop.write(known, f"frontend,{bed.frontend.addresses['pub']} {other[0]} {other[1]}\n", 0o600, "alice")
        changed = flotilla.run("resource", "connect", "hpc1", "--accept-new", check=False)
        assert changed.returncode != 0
        assert "known_hosts" in changed.stdout + changed.stderr
    finally:
        bed.laptop.write(known, kept, 0o600, "alice")
    flotilla.run("resource", "connect", "hpc1")      # so that its hub can be ended


def test_the_second_hub_needs_no_upload(bed, flotilla):
    bed.frontend.as_user("rm -rf ~/.cache/flotilla")
    flotilla.add_cluster()
    before = bed.frontend.tcp_bytes()
    flotilla.run("resource", "connect", "hpc1")
    first = bed.frontend.tcp_bytes() - before
    flotilla.run("resource", "disconnect", "hpc1")
    before = bed.frontend.tcp_bytes()
    flotilla.run("resource", "connect", "hpc1")
    second = bed.frontend.tcp_bytes() - before
    assert first > 1_000_000, "the agent travelled"
    assert first < 12_000_000, "compressed"
    assert second < 200_000, "it is found by its hash"


def test_listening_ports(bed, flotilla):
    """Seen from outside with the firewall away: it is not what hides a port."""
    outside_before = bed.frontend.listening()
    flotilla.add_cluster("hpc1", "--host", "node1")
    flotilla.start_pilot("hpc1", "--slots", "1")
    with flotilla.python_live("""
        with flotilla.Daemon() as daemon:
            worker, code = start_code(daemon, label="hpc1")
            print(code.echo(42), flush=True)
            sys.stdin.readline()
            code.close()
        """) as script, bed.frontend.without_firewall():
        assert script.line(60) == "42"
        laptop = [(address, port) for address, port in bed.laptop.listening() if port != 22]
        assert laptop, "the web page"
        assert all(address in ("127.0.0.1", "[::1]") for address, _ in laptop), laptop
        new = [entry for entry in bed.frontend.listening() if entry not in outside_before]
        assert new, "where pilots of nodes dial in"
        assert {address for address, _ in new} == {bed.frontend.addresses["priv"]}, new
        assert bed.laptop.can_reach(bed.frontend.addresses["pub"], 22)
        for address, port in new:
            assert bed.node2.can_reach(bed.frontend.addresses["priv"], port), "what is looked for can be seen"
            assert not bed.laptop.can_reach(bed.frontend.addresses["pub"], port), f"{address}:{port} is seen from outside"
            assert not bed.laptop.can_reach(bed.frontend.addresses["priv"], port), f"{address}:{port} is seen from outside"
        assert all(address in ("127.0.0.1", "[::1]") for address, port in bed.node1.listening() if port != 22)
        script.tell("")
        script.end()


def test_no_secret_is_logged(bed, flotilla):
    """Keys by their value; and what looks like a token or a secret must be a hash that everybody may know."""
    flotilla.add_cluster("hpc1", "--host", "node1", "--debug")
    flotilla.start_pilot("hpc1", "--slots", "1")
    flotilla.python("""
        with flotilla.Daemon() as daemon:
            for label in ("hpc1", "local"):
                worker, code = start_code(daemon, label=label)
                assert code.echo(42) == 42
                code.close()
        """)
    assert flotilla.output("run", "--on", "hpc1", "--", "cat", input="from stdin") == "from stdin"
    token = flotilla.json("daemon", "status")["web_url"].rpartition("=")[2]
    assert len(token) >= 32
    state = flotilla.env["FLOTILLA_STATE_DIR"]
    kept = base64.b64decode(bed.laptop.as_root(f"find {state} -type f -size -20M ! -name '*.log' ! -name '*.zst' | xargs cat | base64 -w0").stdout)
    keys = [line for block in re.findall(rb"PRIVATE KEY-----\n([A-Za-z0-9+/=\n]+)-----END", kept) for line in block.split(b"\n") if len(line) > 40]
    assert len(keys) >= 3, "the CA's and a hub's"
    public = set(re.findall(r"[0-9a-f]{64}", bed.laptop.as_root(f"find {state} /home/*/.cache/flotilla -name '*[0-9a-f]*'").stdout
                            + bed.frontend.as_root("find /home/*/.cache/flotilla").stdout))
    everything = ""
    for host in (bed.laptop, bed.frontend):     # the nodes have the front end's home
        everything += host.as_root("find /home/*/state /home/*/.cache /home/*/.local /tmp/fl-* /tmp/flotilla-* /dev/shm -name '*.log' -o -name daemon.out "
                                   "2> /dev/null | xargs cat").stdout
    for part in (" info flotilla 0", " info hub ", "info pilot 1.0 of local", " of hpc1 on node1"):
        assert part in everything, everything
    assert token not in everything
    assert PASSWORD not in everything
    assert "PRIVATE KEY" not in everything
    assert [key for key in keys if key.decode() in everything] == []
    # 32 digits and more: instances (32) are no secret, tokens of links (32), the page's and join secrets (64) are.
    instance = flotilla.instance()
    words = set(re.findall(r"(?<![0-9a-f])[0-9a-f]{32,}(?![0-9a-f])", everything))
    found = {word for word in words if word not in public and word != instance}
    assert [line for line in everything.splitlines() if any(word in line for word in found)] == []


def test_debug_logs_more_and_keeps_folders_and_logs_are_followed(bed, flotilla):
    flotilla.add_cluster("quiet", "--host", "node1")
    flotilla.add_cluster("loud", "--host", "node2", "--debug")
    folders, logs = {}, {}
    for name, resource, options in (("quiet", "quiet", ()), ("loud resource", "loud", ()), ("loud pilot", "quiet", ("--debug",))):
        pilot = str(flotilla.start_pilot(resource, "--slots", "1", *options))
        follow = flotilla.popen("logs", pilot, "-f", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert "pilot" in follow.stdout.readline(), "what is there already"
            folders[name] = flotilla.output("run", "--pilot", pilot, "--", "pwd")
            if name != "quiet":
                line = follow.stdout.readline()
                while "got start_attempt" not in line:
                    assert line, "the log has ended"
                    line = follow.stdout.readline()
                assert " debug " in line
        finally:
            follow.terminate()
            follow.communicate()
        logs[name] = flotilla.output("logs", pilot)
        logs[f"hub of {name}"] = flotilla.output("logs", resource)
    assert [name for name, log in logs.items() if " info " not in log] == []
    assert [name for name, log in logs.items() if " debug " in log] == ["loud resource", "hub of loud resource", "loud pilot"]
    there = lambda folder: bed.frontend.as_user(["test", "-d", folder], check=False).returncode == 0  # noqa: E731; one home for all
    wait_until(lambda: not there(folders["quiet"]), 10, "the folder of a job is removed")
    assert there(folders["loud resource"]) and there(folders["loud pilot"])


def test_forwarding_forbidden(bed, flotilla):
    bed.frontend.configure_sshd(forwarding=False)
    try:
        flotilla.add_cluster()
        flotilla.start_pilot("hpc1", "--slots", "1")
        assert flotilla.output("run", "--on", "hpc1", "--", "hostname") == "frontend"
        flotilla.python("""
            with flotilla.Daemon() as daemon:
                worker, code = start_code(daemon, label="hpc1")
                assert code.echo(42) == 42
                code.close()
            """)
    finally:
        bed.frontend.configure_sshd()


def test_the_systems_own_ssh(bed, flotilla):
    flotilla.add_cluster("hpc1", "--transport", "openssh")
    before = bed.frontend.logins()
    flotilla.start_pilot("hpc1", "--slots", "1")
    assert flotilla.output("run", "--on", "hpc1", "--", "hostname") == "frontend"
    flotilla.python("""
        with flotilla.Daemon() as daemon:
            worker, code = start_code(daemon, label="hpc1")
            assert code.compute(0.0) == "frontend"
            code.close()
        """)
    assert bed.frontend.logins() == before + 1


def test_output_comes_live_and_whole(flotilla):
    begin = time.monotonic()
    process = flotilla.popen("run", "--", "sh", "-c", "echo first; read line; echo $line; head -c 20000000 /dev/zero", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"first\n", "while it runs"
    process.stdin.write(b"second\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"second\n"
    rest = process.stdout.read()
    process.stdin.close()
    process.stdout.close()
    assert len(rest) == 20_000_000 and rest.count(b"\0") == len(rest)
    assert process.wait(30) == 0
    assert time.monotonic() - begin < 30


def test_cancel_ends_all_of_it(bed, flotilla):
    script = "setsid sleep 4444 & (sleep 4445 &) ; trap '' TERM; echo ready; sleep 4446"
    job = flotilla.submit("--", "bash", "-c", script)
    flotilla.wait_job(job, "running")
    wait_until(lambda: "ready" in flotilla.output("job", "logs", str(job)), 10, "it runs")
    assert len([p for p in bed.laptop.processes() if p.name == "sleep" and p.argv[-1].startswith("444")]) == 3
    flotilla.run("job", "cancel", str(job))
    wait_until(lambda: flotilla.job(job)["state"] == "canceled", 15, "it is canceled")
    assert [p for p in bed.laptop.processes() if p.name == "sleep" and p.argv[-1].startswith("444")] == []


def test_time_limit(flotilla):
    done = flotilla.run("run", "--time", "1s", "--", "sleep", "100", check=False, timeout=30)
    assert done.returncode == 124


@pytest.mark.parametrize("listing", [("resource", "list"), ("pilot", "list"), ("job", "list")])
def test_listings_as_json(flotilla, listing):
    flotilla.run("run", "--", "true")
    assert isinstance(json.loads(flotilla.run(*listing, "--json").stdout), list)


def test_setup_lines_may_take_their_time(bed, flotilla):
    flotilla.add_cluster("hpc1", "--host", "node1", "--setup", "echo loading modules; sleep 14")     # longer than a start without may take
    flotilla.run("resource", "connect", "hpc1")

    def begin():
        pilot = flotilla.json("pilot", "start", "hpc1", "--no-wait")
        pilot = (pilot[0] if isinstance(pilot, list) else pilot)["id"]
        wait_until(lambda: "setting up: loading modules" in flotilla.pilot(pilot)["message"], 15, "what the setup lines say is shown", every=0.1)
        return pilot

    started = time.monotonic()
    pilot = begin()
    flotilla.wait_pilot(pilot, "running", 30)
    assert time.monotonic() - started > 14
    flotilla.run("pilot", "stop", str(pilot))
    flotilla.wait_pilot(pilot, "finished", 15)
    # Told to stop, it does not go on setting up.
    pilot = begin()
    flotilla.run("pilot", "stop", str(pilot))
    wait_until(lambda: bed.node1.processes_of_flotilla() == [], 10, "nothing of it is left on the node")
