"""AMUSE's own classes on a laptop, their codes on machines behind ssh: on the test bed of test/bed, AMUSE's environment at another place there."""
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "test/bed"))
os.environ.setdefault("FLOTILLA_BUILD_DIR", str(ROOT / "build/release"))
import bed as beds  # noqa: E402

HERE = pathlib.Path(sys.prefix)                          # AMUSE's environment, as the laptop has it
BASE = pathlib.Path(sys.base_prefix).resolve()           # the Python that it was made of
PACKAGE = "lib/python{}.{}/site-packages/amuse".format(*sys.version_info)
SETTLED_S = 20                                           # until nothing of ours is left anywhere

# What a login there sets, as modules and environments do; and what a batch job would.
LOGIN = """
case $(uname -n) in
  frontend) PATH=/opt/amuse/bin:$PATH ;;
  node1) export VIRTUAL_ENV=/opt/amuse ;;
  node2) export CONDA_PREFIX=/opt/amuse ;;
esac
export SLURM_JOB_ID=5 PBS_NODEFILE=/none PMI_RANK=3 OMPI_COMM_WORLD_SIZE=7 OMP_NUM_THREADS=9
"""

# Read by each script.
BEGIN = """
import json, os, signal, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
import numpy
from amuse.lab import *
from amuse.community.distributed.interface import DistributedAmuse, Resource, Pilot
from amuse.community.hermite.interface import Hermite
from amuse.community.bhtree.interface import BHTree
from amuse.community.fi.interface import Fi
from amuse.community.sse.interface import SSE
from amuse.ic.plummer import new_plummer_model

def begin(debug=False, queue=20):
    global instance
    instance = DistributedAmuse(redirection="none")
    instance.parameters.debug = debug
    instance.parameters.worker_queue_timeout = queue | units.s
    instance.parameters.worker_startup_timeout = 30 | units.s
    instance.commit_parameters()
    instance.use_for_all_workers()

def resource(name, location, amuse_dir="", **more):
    made = Resource()
    made.name, made.location, made.amuse_dir, made.scheduler_type = name, location, amuse_dir, "ssh"
    for key, value in more.items(): setattr(made, key, value)
    instance.resources.add_resource(made)

def pilot(where, label, slots=4, **more):
    instance.pilots.add_pilot(Pilot(**({"resource_name": where, "node_count": 1, "time": 1 | units.hour, "slots_per_node": slots,
                                        "label": label} | more)))

def said(what):
    try:
        what()
    except Exception as error:
        return str(error) + " | " + instance.overridden().get_current_error()
    return None

def put(name, *values): print(name, json.dumps(values, default=int), flush=True)
def took(what):
    before = time.time()
    text = said(what)
    return text, time.time() - before
def heard(): return sys.stdin.readline()
def hermite(**options):
    code = Hermite(**options)
    code.particles.add_particles(new_plummer_model(10))
    return code
"""

# A code in Python with a module beside it: what it finds where it runs.
TELLER = """
import os, signal
from amuse.rfi.core import PythonCodeInterface, legacy_function, LegacyFunctionSpecification
from beside import twice

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

class Teller:
    def wait(self):
        signal.sigwait({signal.SIGUSR1})
        return 0
    def variable(self, name, value):
        value.value = os.environ.get(name, "")
        return 0
    def where(self, host):
        host.value = os.uname().nodename
        return 0
    def double(self, number, doubled):
        doubled.value = twice(number)
        return 0

class TellerInterface(PythonCodeInterface):
    def __init__(self, **options):
        PythonCodeInterface.__init__(self, Teller, **options)
    @legacy_function
    def wait():
        function = LegacyFunctionSpecification()
        function.result_type = "int32"
        return function
    @legacy_function
    def variable():
        function = LegacyFunctionSpecification()
        function.addParameter("name", dtype="string", direction=function.IN)
        function.addParameter("value", dtype="string", direction=function.OUT)
        function.result_type = "int32"
        return function
    @legacy_function
    def where():
        function = LegacyFunctionSpecification()
        function.addParameter("host", dtype="string", direction=function.OUT)
        function.result_type = "int32"
        return function
    @legacy_function
    def double():
        function = LegacyFunctionSpecification()
        function.addParameter("number", dtype="float64", direction=function.IN)
        function.addParameter("doubled", dtype="float64", direction=function.OUT)
        function.result_type = "int32"
        return function
"""


@pytest.fixture(scope="module")
def bed():
    with tempfile.TemporaryDirectory() as nothing:
        os.chmod(nothing, 0o755)
        # The disks of the cluster show this machine's: AMUSE is hidden where it would be the laptop's.
        cluster = [(HERE, "/opt/amuse"), (nothing, HERE), (BASE, BASE)]
        with beds.Bed(hosts=("laptop", "frontend", "node1", "node2", "gateway", "inner"),
                      binds={"frontend": cluster, "node1": cluster, "node2": cluster, "inner": [(BASE, BASE)]}) as made:
            made.frontend.write("/home/asmith/.bashrc", LOGIN, owner="asmith")
            for name, text in (("teller.py", TELLER), ("beside.py", "def twice(number): return 2 * number\n"), ("begin.py", BEGIN)):
                made.laptop.write(f"/home/alice/{name}", text, owner="alice")
            yield made


class Far:
    def __init__(self, bed):
        self.bed = bed

    def live(self, text):
        script = "exec(open('begin.py').read())\n" + text
        return beds.Script(self.bed.laptop.popen([HERE / "bin/python", "-u", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                                 stderr=subprocess.PIPE, text=True))

    def run(self, text):
        """What it put, by name, and its stderr."""
        with self.live(text) as script:
            out, err = script.process.communicate(timeout=150)
            assert script.process.returncode == 0, f"{out}\n{err}"
            return said(out), err

    def processes(self, name):
        return [p for h in self.bed.hosts.values() for p in h.processes() if p.name.startswith(name)]

    def left(self):
        """Processes, and files but the agent's, on the machines far away."""
        left = self.bed.processes_of_flotilla()
        for host in self.bed.hosts.values():
            where = "~alice/.cache ~alice/.local /tmp /dev/shm" if host.name == "laptop" else "/home /tmp /dev/shm"
            found = host.as_root(f"find {where} -not -type d -not -path '*/.ssh/*' -not -name '.bashrc' -not -name 'flotilla-agent-*'; "
                                 "find /tmp/* /dev/shm/* -maxdepth 0 -not -name scratch", check=False).stdout
            left += [f"{host.name}: {line}" for line in found.splitlines()]
        return left

    def clean(self):
        for host in self.bed.hosts.values():
            host.as_root("rm -rf /home/*/.cache /home/*/.local /home/*/distributed-amuse-logs /tmp/* /dev/shm/*")

    def nothing_left(self, within=SETTLED_S):
        end = time.monotonic() + within
        while (left := self.left()) and time.monotonic() < end:
            pass
        assert left == []


def said(out):
    found = {}
    for line in out.splitlines():
        name, _, rest = line.partition(" ")
        if rest.startswith("["):
            found[name] = json.loads(rest)
    return found


def next_said(script, name, timeout=60):
    """What it puts under this name next."""
    while True:
        found = said(script.line(timeout))
        if name in found:
            return found[name]


@pytest.fixture
def far(bed):
    made = Far(bed)
    yield made
    try:
        made.nothing_left()
    finally:
        for host in bed.hosts.values():
            host.heal_all()
            for process in host.processes_of_flotilla():
                process.kill()
        made.clean()


def test_codes_run_everywhere_and_give_what_they_give_here(far):
    found, err = far.run("""
begin()
resource("front", "asmith@frontend")
resource("gate", "asmith@gateway")
resource("deep", "asmith@inner", gateway="gate", tmp_dir="/tmp/scratch")
resource("given", "asmith@node1", amuse_dir="/opt/amuse", gateway="front")
resource("wrong", "asmith@frontend", amuse_dir="/opt/nothing")
resource("bare", "asmith@frontend", amuse_dir="~")
resource("sent", "asmith@node2", amuse_dir="bundle", gateway="front")
pilot("front", "front")
pilot("front", "one", options="hosts=node1")
pilot("front", "two", options="hosts=node2")
pilot("deep", "deep"); pilot("given", "given"); pilot("wrong", "wrong"); pilot("bare", "bare"); pilot("sent", "sent")
instance.wait_for_pilots()
put("pilots", [each.status for each in instance.pilots])

def energies(code):
    stars = new_plummer_model(50, random=numpy.random.mtrand.RandomState(5))
    (code.dm_particles if hasattr(code, "dm_particles") else code.particles).add_particles(stars)
    code.evolve_model(0.05 | nbody_system.time)
    return code.kinetic_energy.number, code.potential_energy.number
def light(code):
    code.particles.add_particles(Particles(2, mass=[1, 10] | units.MSun))
    code.evolve_model(5 | units.Myr)
    return list(code.particles.luminosity.value_in(units.LSun))
for label, kind, result in (("front", Hermite, energies), ("one", BHTree, energies), ("two", Fi, energies), ("deep", Hermite, energies),
                            ("given", SSE, light), ("sent", Hermite, energies)):
    code = kind(label=label)
    folder = code.get_working_directory() if kind is not SSE else ""
    put(label, code.legacy_interface.channel.get_amuse_root_directory(), folder, result(code) == result(kind(channel_type="sockets")))
    code.stop()
for label in ("wrong", "bare"):
    put(label, said(lambda: Hermite(label=label)))
put("ranks", said(lambda: Hermite(label="sent", number_of_workers=2)))
put("hosts", said(lambda: pilot("front", "no", node_count=3, options="hosts=node1,node2")))
instance.stop()
""")
    assert found["pilots"] == [["RUNNING"] * 8], err
    for label in ("front", "one", "two", "given"):
        root, folder, same = found[label]
        assert root == f"/opt/amuse/{PACKAGE}" and same, (label, found[label])
        assert not folder or folder.startswith("/home/asmith/.cache/flotilla/"), folder
    assert found["deep"][0] == f"{HERE}/{PACKAGE}" and found["deep"][2], found["deep"]
    assert found["deep"][1].startswith("/tmp/scratch/flotilla/"), found["deep"]
    # Nothing of AMUSE is asked of that machine: the code, its libraries and MPI came from the laptop.
    assert found["sent"][0] == found["sent"][1] + "/bundle/amuse" and found["sent"][2], found["sent"]
    assert "a bundle runs codes in one process: for number_of_workers=2 install AMUSE on node2" in found["ranks"][0], found["ranks"]
    assert "amuse_dir of this resource does not exist on frontend: /opt/nothing" in found["wrong"][0], found["wrong"]
    assert "there is no AMUSE in amuse_dir of this resource on frontend: /home/asmith\nSet it to" in found["bare"][0], found["bare"]
    assert "node_count: 3 are asked for, the option hosts names 2 hosts" in found["hosts"][0]


def test_many_codes_ranks_threads_and_python(far):
    found, err = far.run("""
begin(queue=3)
resource("front", "asmith@frontend")
resource("gate", "asmith@gateway")
resource("deep", "asmith@inner", gateway="gate")
pilot("front", "nodes", 6, node_count=2, options="hosts=node1,node2")
pilot("deep", "deep", 10)
instance.wait_for_pilots()
with ThreadPoolExecutor(20) as pool:
    codes = list(pool.map(lambda i: BHTree(label="deep" if i % 2 else "nodes"), range(20)))
put("many", len(instance.workers), [code.get_number_of_particles() for code in codes])
for code in codes: code.stop()

code = hermite(label="nodes", number_of_workers=2)
code.evolve_model(0.01 | nbody_system.time)
put("ranks", instance.workers[0].worker_count, len(instance.workers))
code.stop()
put("wide", said(lambda: Hermite(label="nodes", number_of_workers=7)))

import teller
telling = [teller.TellerInterface(label="nodes", number_of_threads=6, redirection="none") for _ in range(2)]
put("hosts", sorted(each.where()["host"] for each in telling))
put("twice", telling[0].double(21.0)["doubled"])
put("variables", {name: telling[0].variable(name)["value"]
                  for name in ("OMP_NUM_THREADS", "SLURM_JOB_ID", "PBS_NODEFILE", "PMI_RANK", "OMPI_COMM_WORLD_SIZE", "HOME")})
put("full", said(lambda: Hermite(label="nodes", number_of_threads=7)))
for each in telling: each.stop()
instance.stop()
""")
    assert found["many"] == [20, [0] * 20], err
    assert found["ranks"] == [2, 1]
    assert "waited 3 s in the queue" in found["wide"][0] and "all ranks of a worker are on one node" in found["wide"][0], found["wide"]
    assert found["hosts"] == [["node1", "node2"]]            # six threads fill a node
    assert found["twice"] == [42.0]
    assert found["variables"] == [{"OMP_NUM_THREADS": "6", "SLURM_JOB_ID": "", "PBS_NODEFILE": "", "PMI_RANK": "", "OMPI_COMM_WORLD_SIZE": "",
                                   "HOME": "/home/asmith"}]
    assert "no node has 7 slots" in found["full"][0], found["full"]


# What is done is told line by line.
CLUSTER = """
begin()
resource("front", "asmith@frontend")
pilot("front", "front")
pilot("front", "node", options="hosts=node1")
instance.wait_for_pilots()
put("ready")
for line in sys.stdin: exec(line)
"""
EVOLVE = "put('call', *took(lambda: code.evolve_model(1000 | nbody_system.time)))"
LATER = "put('later', *took(code.get_number_of_particles)); put('stop', *took(code.stop))"


def agent(host, word):
    return next(p for p in host.processes() if os.path.basename(p.argv[0]).startswith("flotilla-agent") and word in p.argv)


def cpu_s(process):
    fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def waits_for_signal(process):
    return pathlib.Path(f"/proc/{process.pid}/wchan").read_text().startswith("do_sigtimedwait")


def computing(host, count=1):
    """The workers there, in a call."""
    def all_busy():
        found = [p for p in host.processes() if p.name == "hermite_worker"]
        return len(found) == count and all(cpu_s(p) > 0.5 for p in found) and found
    return beds.wait_until(all_busy, 30, "they compute")


def test_what_dies_is_told_and_nothing_hangs(far, bed):
    with far.live(CLUSTER) as script:
        next_said(script, "ready")

        def told(cause, within):
            killed = time.monotonic()
            text, _ = next_said(script, "call")
            assert time.monotonic() - killed < within, text
            assert cause in text, text
            script.tell(LATER)
            text, seconds = next_said(script, "later")
            assert cause in text and seconds < 1, (text, seconds)
            assert next_said(script, "stop")[1] < 1

        # A worker in a call, and one at rest.
        script.tell("code = hermite(label='node'); " + EVOLVE)
        computing(bed.node1)[0].kill(11)
        told("hermite_worker on node1 was killed by signal 11 (SIGSEGV)", 2)
        script.tell("code = hermite(label='node'); put('made')")
        next_said(script, "made")
        next(p for p in bed.node1.processes() if p.name == "hermite_worker").kill()
        script.tell(EVOLVE)
        told("hermite_worker on node1 was killed by signal 9 (SIGKILL)", 2)
        # One of two ranks; what mpiexec says of it is shown.
        script.tell("code = hermite(label='front', number_of_workers=2); " + EVOLVE)
        computing(bed.frontend, 2)[1].kill()
        told("last lines of its stderr:", 3)

        # The hub, and the login: a call goes on.
        script.tell("import teller; code = teller.TellerInterface(label='node'); put('call', *took(code.wait)); code.stop()")
        waiting = beds.wait_until(lambda: [p for p in bed.node1.processes() if "./teller" in p.argv and waits_for_signal(p)],
                                  30, "it is in the call")
        agent(bed.frontend, "hub").kill()
        assert bed.frontend.kill_sshd_sessions() > 0
        waiting[0].kill(signal.SIGUSR1)
        assert next_said(script, "call", 20)[0] is None
        # The pilot.
        script.tell("code = hermite(label='node'); " + EVOLVE)
        worker = computing(bed.node1)[0]
        agent(bed.node1, "--serve").kill()
        told("pilot", 5)
        script.tell("put('pilots', [each.status for each in instance.pilots])")
        assert next_said(script, "pilots") == [["RUNNING", "FAILED"]]
        assert worker.pid not in [p.pid for p in bed.node1.processes()]
        script.tell("instance.stop(); put('stopped')")
        next_said(script, "stopped")
        script.process.stdin.close()
        assert script.process.wait(20) == 0, script.process.stderr.read()
        # The hub that saw the pilot's end was killed itself: the next one can only say by when it is over.
        assert "pilot 2 on node1; it ends by itself" in script.process.stderr.read()


@pytest.mark.parametrize("victim", ["script", "serve", "script, with its sshd"])
def test_a_script_that_is_killed_leaves_nothing(far, bed, victim):
    with far.live(CLUSTER) as script:
        next_said(script, "ready")
        script.tell("codes = [hermite(label=each) for each in ('front', 'node')]; put('made')")
        next_said(script, "made")
        assert len(far.processes("hermite_worker")) == 2
        if "sshd" in victim:
            bed.frontend.kill_sshd_sessions()
        words = ["amuse", "serve"] if victim == "serve" else ["-u", "-c"]
        next(p for p in bed.laptop.processes() if p.argv[1:3] == words and p.name in ("flotilla", "python")).kill()
        # Their peer is gone: a code of AMUSE would spin for ever.
        beds.wait_until(lambda: not far.processes("hermite_worker"), 2 if "sshd" not in victim else 20, "the codes have ended")
        far.nothing_left()


def test_debug_keeps_logs_and_folders_where_they_were_made(far, bed):
    found, _ = far.run("""
begin(debug=True)
resource("front", "asmith@frontend")
resource("gate", "asmith@gateway")
resource("deep", "asmith@inner", gateway="gate")
pilot("local", "local"); pilot("front", "node", options="hosts=node1"); pilot("deep", "deep")
instance.wait_for_pilots()
folders = []
for label in ("node", "deep"):
    code = hermite(label=label)
    folders.append(code.get_working_directory())
    code.stop()
put("folders", *folders)
instance.stop()
""")
    def logs(host):
        """Those that can be read and have something in them."""
        found = host.output('cd ~/distributed-amuse-logs && for each in *; do [ -s "$each" ] && echo "$each"; done').split()
        return sorted(re.sub("[0-9a-f]{8,}", "ID", name) for name in found)

    assert logs(bed.laptop) == ["laptop-ID-pilot-1.0.log", "laptop-daemon.log"]
    assert logs(bed.frontend) == ["frontend-hub-ID.log", "node1-ID-pilot-2.0.log"]       # one home
    assert logs(bed.gateway) == ["gateway-hub-ID.log"]
    assert logs(bed.inner) == ["inner-ID-pilot-3.0.log", "inner-hub-ID.log"]
    assert " debug " in bed.frontend.output("cat ~/distributed-amuse-logs/node1-*.log")
    for host, folder in zip((bed.node1, bed.inner), found["folders"]):
        assert "start-code" in host.output(["ls", folder])
    far.clean()


def test_the_example_with_gravity_on_a_node(far):
    found, err = far.run(f"""
import runpy
from amuse.rfi import channel
folder = {str(ROOT / "examples/amuse")!r}
os.environ["MPLCONFIGDIR"] = os.getcwd()
sys.path.insert(0, folder)
sys.argv = ["stars_that_lose_mass.py", "--location", "asmith@frontend", "--hosts", "node1", "--stars", "20", "--time", "2"]
start = channel.DistributedChannel.start
def started(self):
    start(self)
    put(self.name_of_the_worker, self.get_amuse_root_directory())
channel.DistributedChannel.start = started
runpy.run_path(folder + "/stars_that_lose_mass.py", run_name="__main__")
put("picture", open("cluster.png", "rb").read(4)[1:].decode())
""")
    assert found == {"ph4_worker": [f"/opt/amuse/{PACKAGE}"], "sse_worker": [f"{HERE}/{PACKAGE}"], "picture": ["PNG"]}, err
