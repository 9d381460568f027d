"""AMUSE over Flotilla. Each figure is the median of the ratios of rounds: ours, and its floor right beside it."""
import json
import pathlib
import subprocess
import threading

import bed as beds

PYTHON = beds.ROOT / ".venv-amuse/bin/python"
SESSION = pathlib.Path(__file__).with_name("amuse_session.py")
MESSAGE = 200_000_000
ROUNDS = 9


class Missing(SystemExit):
    pass


def check():
    if subprocess.run([PYTHON, "-c", "import amuse.community.bhtree.interface, flotilla.amuse"], capture_output=True).returncode \
            if PYTHON.exists() else True:
        raise Missing("the benchmark 'amuse' needs AMUSE with BHTree and flotilla.amuse in .venv-amuse; run scripts/setup amuse")


class Installed:
    """Flotilla in that AMUSE, as long as it is needed."""

    def __enter__(self):
        self.program = beds.program("flotilla")
        self._do("install")
        return self

    def __exit__(self, *_):
        self._do("uninstall")

    def _do(self, what):
        subprocess.run([self.program, "amuse", what, "--python", PYTHON], check=True, capture_output=True)


class Served:
    """A script with an instance, beside which the driver speaks to its worker port; its pilots here and far."""

    def __init__(self, bench):
        self.bench = bench
        self.process = bench.hold(bench.laptop.popen([PYTHON, "-u", SESSION, "serve"], env=bench.env, stdin=subprocess.PIPE,
                                                     stdout=subprocess.PIPE, text=True))
        line = next((line for line in iter(self.process.stdout.readline, "") if line.startswith("{")), None)
        if line is None:
            raise beds.BedError("AMUSE's script with the distributed instance ended; what it said is above")
        self.port = json.loads(line)["port"]
        folder = bench.laptop.output(f"ls -d {bench.state}/amuse-*")
        self.flotilla = beds.Flotilla(bench.laptop, env=bench.env | {"FLOTILLA_STATE_DIR": f"{folder}/state",
                                                                     "FLOTILLA_CONFIG": f"{folder}/config.toml"})

    def far_pilots(self):
        for host in (self.bench.bed.frontend, self.bench.bed.node1):
            self.bench.bring_worker(host)
        # Resources and pilots as any user of this daemon has them: AMUSE's own have no nodes behind a front end.
        self.flotilla.add_cluster("front")
        self.flotilla.add_cluster("nodes", "--host", "node1")
        self.flotilla.start_pilot("front", "--slots", "8", "--label", "at-front", runaways=False)
        self.flotilla.start_pilot("nodes", "--slots", "8", "--label", "at-node", runaways=False)

    def way(self, label):
        # An absolute path: no code of AMUSE's has to be there.
        return ["amuse", str(self.port), label, f"{self.bench.where}/bench_worker" if label == "here" else "/tmp/bench_worker"]

    def end(self):
        self.process.stdin.close()
        self.process.wait(60)


def relay_to(bench, host, target, port):
    return bench.listener(host, "--relay", "127.0.0.1", "0", target, str(port))


def floors(bench):
    """{label: (the floor's name, its words for the driver)}"""
    here = bench.listener(bench.laptop, "--listen", "0")
    front = bench.listener(bench.bed.frontend, "--listen", "0")
    node = bench.listener(bench.bed.node1, "--listen", "0")
    at_node = bench.listener(bench.bed.node1, "--relay", "0.0.0.0", "0", "127.0.0.1", str(node))  # the pilot
    hub = relay_to(bench, bench.bed.frontend, bench.bed.node1.addresses["priv"], at_node)
    script = relay_to(bench, bench.laptop, "127.0.0.1", bench.tunnel(hub))                       # what AMUSE's script speaks to
    tunnel = lambda port: ["tunnel", "127.0.0.1", str(port)]  # noqa: E731
    return {"here": ("a bare relay", tunnel(relay_to(bench, bench.laptop, "127.0.0.1", here))),
            "at-front": ("ssh -L", tunnel(bench.tunnel(front))),
            "at-node": ("ssh -L, three relays", tunnel(script))}


def in_turn(bench, what, rounds, *ways, pinned=False):
    """{what is measured: [[p50 and p99 of each round] of each way]}"""
    words = []
    for way in ways:
        words += ["/", *way]
    found = {}
    for line in bench.drive("turns", what, str(rounds), *words[1:], pinned=pinned, timeout=590):
        found.setdefault(line["what"], [[] for _ in ways])[line["way"]].append((line["p50"], line["p99"]))
    return found


def column(rows, at):
    return [row[at] for row in rows]


def raw(bench, report, served):
    titles = {"here": "local pilot", "at-front": "pilot on the front end", "at-node": "pilot on a node"}
    call = {"here": 1.15, "at-front": 1.25, "at-node": 1.25}
    bulk = {"here": 0.9, "at-front": 0.85, "at-node": 0.85}
    made = floors(bench)
    for pinned in (True, False):
        bench.pin_all(pinned)
        how = "one core" if pinned else "not pinned"
        for label, (floor_name, floor) in made.items():
            report.say(f"\n  {titles[label]}, {how}: {floor_name}, ours")
            got = in_turn(bench, "calls", ROUNDS, floor, served.way(label), pinned=pinned)["call"]
            for at, name in enumerate(("p50", "p99")):
                report.ratio(f"{label}, {how}: call {name}", "us", floor_name, column(got[0], at), column(got[1], at),
                             None if at else call[label])
            got = in_turn(bench, "arrays", ROUNDS, floor, served.way(label), pinned=pinned)
            for name in ("put", "get"):
                report.ratio(f"{label}, {how}: {name} 10^6 doubles", "MB/s", floor_name, column(got[name][0], 0), column(got[name][1], 0),
                             bulk[label], at_least=True)
    bench.pin_all(False)
    for label, (floor_name, floor) in made.items():
        report.say(f"\n  {titles[label]}: calls while another worker moves 16 MiB arrays: {floor_name}, ours")
        got = in_turn(bench, "beside", 5, floor, served.way(label))
        alone, beside = (column(got[what][1], 1) for what in ("alone", "beside"))
        report.ratio(f"{label}: p99 beside bulk / alone", "us", "its own p99 alone", alone, beside, 2 if label == "here" else None)
        report.ratio(f"{label}: p99 beside bulk", "us", floor_name, column(got["beside"][0], 1), beside, None if label == "here" else 1)
        report.ratio(f"{label}: that bulk", "MB/s", floor_name, column(got["bulk"][0], 0), column(got["bulk"][1], 0))
    report.say("\n  the first call of a worker / its thousandth: a worker on its own socket, ours")
    got = in_turn(bench, "first", 15, ["direct", f"{bench.where}/bench_worker"], served.way("here"))
    direct, ours = ([first / late for first, late in zip(column(got["first"][way], 0), column(got["thousandth"][way], 0), strict=True)]
                    for way in (0, 1))
    report.ratio("first call / thousandth", "x", "a worker on its own socket", direct, ours, 1.15)


def api(bench, report):
    report.say("\n  get_number_of_particles of BHTree: plain sockets channel, ours")
    # Both kinds on one core, and as they come.
    for pinned in (True, False):
        how = "one core" if pinned else "not pinned"
        got = run(bench, "calls", "0.3", str(ROUNDS), pinned=pinned)
        for name, target in (("distributed", 1.3), ("flotilla.amuse", 1.1)):
            for key in ("p50", "p99"):
                report.ratio(f"{name}, {how}: {key}", "us", "sockets channel", [r[key] for r in got["sockets"]], [r[key] for r in got[name]],
                             target if key == "p50" else None)


def twenty(bench, report):
    report.say("\n  20 codes from 20 threads: plain sockets channel, ours")
    got = run(bench, "twenty", "5")
    report.ratio("20 workers from 20 threads", "s", "sockets channel", column_of(got, "sockets"), column_of(got, "distributed"), 1)


def column_of(got, way):
    return [row["p50"] for row in got[way]]


def run(bench, *words, pinned=False):
    pin = ["taskset", "-c", "0"] if pinned else []
    done = bench.laptop.as_user([*pin, PYTHON, SESSION, *words], env=bench.env, timeout=500)
    found = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            row = json.loads(line)
            found.setdefault(row["way"], []).append(row)
    return found


def early(bench, report, served):
    """A worker asked for before its pilot: by the daemon's own record of both."""
    report.say("\n  a worker asked for before its pilot runs: from the pilot's to the worker's, and to its first answer")
    started, answered = [], []
    for turn in range(7):
        label = f"early{turn}"
        way = served.way("here")
        way[2] = label
        process = bench.laptop.popen([f"{bench.where}/bench_driver", "start", *way], env=bench.env, stdout=subprocess.PIPE, text=True)
        waiting = lambda: [j for j in served.flotilla.json("job", "list", "--all") if j["spec"].get("label") == label]  # noqa: E731
        beds.wait_until(waiting, 20, "the worker is asked for", every=0.02)
        pilot = served.flotilla.pilot(served.flotilla.start_pilot("local", "--slots", "1", "--label", label, runaways=False))
        times = json.loads(process.communicate(timeout=60)[0])
        job = served.flotilla.job(waiting()[0]["id"])
        started.append(int(job["running_ms"]) - int(pilot["running_ms"]))
        answered.append(times["answered_ms"] - int(pilot["running_ms"]))
        served.flotilla.run("pilot", "stop", str(pilot["id"]))
    ready = []
    for _ in range(7):
        times = json.loads(bench.laptop.as_user([f"{bench.where}/bench_driver", "start", *served.way("here")], env=bench.env).stdout)
        ready.append(times["answered_ms"] - times["asked_ms"])
    report.most("pilot runs -> worker runs", "ms", started, 50)
    report.ratio("pilot runs -> first answer", "ms", "a worker on a running pilot, asked for -> first answer", ready, answered)


def ours_in_memory(bench):
    """{what: its share of the memory in MB}"""
    found = {}
    for host in (bench.laptop, bench.bed.frontend, bench.bed.node1):
        for process in bench.programs_of(host):
            try:
                rollup = pathlib.Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            except OSError:
                continue
            share = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) / 1024
            words = " ".join(pathlib.Path(word).name for word in process.argv[:2])
            found[f"{host.name} {words} {process.host_pid}"] = share
    return found


def memory(bench, report, served):
    report.say("\n  memory under messages of 200 MB, there and back: its share before, the highest, after")
    for label in ("here", "at-front", "at-node"):
        bench.drive("message", "1000000", *served.way(label))
    before = ours_in_memory(bench)
    highest, over = dict(before), threading.Event()

    def watch():
        while not over.wait(0.02):
            for name, share in ours_in_memory(bench).items():
                highest[name] = max(share, highest.get(name, 0))
    watcher = threading.Thread(target=watch)
    watcher.start()
    for label in ("here", "at-front", "at-node") * 2:
        bench.drive("message", str(MESSAGE), *served.way(label))
    over.set()
    watcher.join()
    after = ours_in_memory(bench)
    for name, share in before.items():
        report.say(f"    {name:60}{share:8.1f}{highest[name]:8.1f}{after.get(name, 0):8.1f} MB")
    # What a few buffers of a connection take; a message that is kept anywhere is ten times that.
    grown = [highest[name] - share for name, share in before.items()]
    report.most("the most that one of them grows", "MB", [max(grown)], 20)
    report.most("what all have grown by afterwards", "MB", [sum(after.get(name, 0) - share for name, share in before.items())], 20)


PARTS = ("api", "twenty", "early", "raw", "memory")


def amuse(bench, report, parts=""):
    """`parts`: some of PARTS with commas between; none = all."""
    chosen = parts.split(",") if parts else PARTS
    if unknown := set(chosen) - set(PARTS):
        raise SystemExit(f"the benchmark 'amuse' has no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    report.say("\nAMUSE over Flotilla: medians of rounds in turn, the ratios' median and spread")
    wants = lambda name: name in chosen  # noqa: E731
    with Installed():
        if wants("api"):
            api(bench, report)
        if wants("twenty"):
            twenty(bench, report)
        if any(map(wants, ("early", "raw", "memory"))):
            served = Served(bench)
            try:
                if wants("early"):
                    early(bench, report, served)
                served.far_pilots()
                if wants("raw"):
                    raw(bench, report, served)
                if wants("memory"):
                    memory(bench, report, served)
            finally:
                served.end()
