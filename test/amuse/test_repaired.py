"""flotilla.amuse: AMUSE's classes without their faults, and what they can do more."""
import json
import os
import re
import select
import subprocess
import sys

import pytest
from conftest import flotilla
from test_distributed import lines, script


def repaired(text, **more):
    return script(text, **more).replace("from amuse.community.distributed.interface", "from flotilla.amuse")


def test_an_error_says_what_went_wrong(user):
    out, _ = user.run(repaired("""
pilot = Pilot(resource_name="nowhere", node_count=1, time=1 | units.hour, slots_per_node=1, label="", options="")
print("error", said(lambda: instance.pilots.add_pilot(pilot)))
print("window", said(instance.startup_viz))
print("late", said(lambda: setattr(instance.parameters, "worker_queue_timeout", 3 | units.s)))
"""))
    assert "errorcode is -10" in out and "there is no resource 'nowhere'" in out
    assert "open the web page" in lines(out, "window")[0]
    assert "worker_queue_timeout cannot be changed any more" in lines(out, "late")[0]


def test_output_is_shown_on_the_console(user):
    out, _ = user.run(repaired("""
code = Fi(redirection="none")
code.dm_particles.add_particles(new_plummer_model(10))
code.evolve_model(0.01 | nbody_system.time)
code.stop()
print("codes", flush=True)
"""))
    assert "end of run" in out.lower() or len(out.splitlines()) > 20, out


def test_output_goes_on_after_the_stream_refused_some(user):
    """A script's stdout that is full for a while."""
    out, _ = user.run(repaired("""
import errno, threading
class Stream:
    refused, taken = threading.Event(), threading.Event()
    def write(self, text):
        if not self.refused.is_set():
            self.refused.set()
            raise OSError(errno.ENOSPC, "no space left on device")
        self.taken.set()
    def flush(self): pass
real, sys.stdout = sys.stdout, Stream()
def print_something():
    code = Fi(redirection="none")
    code.dm_particles.add_particles(new_plummer_model(10))
    code.evolve_model(0.01 | nbody_system.time)
    code.stop()
print_something()
refused = Stream.refused.wait(30)
Stream.taken.clear()
print_something()
taken = Stream.taken.wait(30)
sys.stdout = real
print("refused", refused)
print("taken", taken)
"""))
    assert lines(out, "refused") == ["True"] and lines(out, "taken") == ["True"]


def test_it_is_a_context_manager(user):
    out, _ = user.run("""
from flotilla.amuse import DistributedAmuse, Pilot
from amuse.community.bhtree.interface import BHTree
from amuse.units import units
with DistributedAmuse(redirection="none") as instance:
    instance.pilots.add_pilot(Pilot(resource_name="local", node_count=1, time=1 | units.hour, slots_per_node=1, label=""))
    instance.use_for_distributed_workers()
    print("particles", BHTree(channel_type="distributed").get_number_of_particles())
print("the end")
""")
    assert "the end" in out and lines(out, "particles")


def test_names_of_any_language(user):
    """In the message that starts a worker, and in those of the control connection."""
    out, _ = user.run(repaired("""
print("error", said(lambda: instance.pilots.add_pilot(Pilot(resource_name="größe-木", time=1 | units.hour, label=""))))
print("label", said(lambda: Fi(label="größe-木")))
code = Fi(redirection="file", redirect_stdout_file="ausgäbe-木.out", redirect_stderr_file="fehlér.err")
code.dm_particles.add_particles(new_plummer_model(10))
code.evolve_model(0.01 | nbody_system.time)
code.stop()
"""))
    assert "there is no resource 'größe-木'" in lines(out, "error")[0]
    assert "größe-木" in lines(out, "label")[0]
    assert (user.folder / "ausgäbe-木.out").stat().st_size > 0


def test_what_a_resource_does_not_have_is_told(user):
    out, err = user.run(repaired("""
wrong = Resource(name="far", location="nobody@127.0.0.1:1", amuse_dir="", schedular_type="ssh")
print("reached", said(lambda: instance.resources.add_resource(wrong)))
documented = Resource()
documented.name = "queue"
documented.location = "nobody@127.0.0.1:1"
documented.scheduler = "no-such-scheduler"
documented.amuse_dir = "/home/user/amuse"
print("scheduler", said(lambda: instance.resources.add_resource(documented)))
here = Resource(name="here", location="", amuse_dir="", scheduler="local")
print("added", type(instance.resources.add_resource(here)).__name__, instance.resources[1].scheduler_type, len(instance.resources))
instance.resources.remove_resource(instance.resources[1])
print("then", [each.name for each in instance.resources])
"""))
    assert "a Resource has no 'schedular_type', it is ignored; there are: name, location" in err
    assert "cannot reach 127.0.0.1 port 1" in lines(out, "reached")[0]
    assert "no-such-scheduler" in lines(out, "scheduler")[0]
    assert lines(out, "added") == ["Resource local 2"]
    assert lines(out, "then") == ["['local']"]


def test_the_link_to_the_page_opens_it(user):
    out, _ = user.run(repaired("""
import urllib.request
browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
with browser.open(instance.get_webinterface_url()) as page:
    print("page", page.status, len(page.read()) > 100)
"""))
    assert lines(out, "page") == ["200 True"]


def test_asynchronous_calls(user):
    """In pools, after one another, with arrays that are split, and in coroutines."""
    out, _ = user.run(repaired("""
import asyncio
from amuse.rfi.async_request import AsyncRequestsPool
from flotilla.amuse import finished
codes = [BHTree(max_message_length=7), Hermite(), Hermite()]
stars = new_plummer_model(20)
for code in codes: code.particles.add_particles(stars)

pool, order = AsyncRequestsPool(), []
for index, code in enumerate(codes):
    pool.add_request(code.evolve_model.asynchronous(0.01 | nbody_system.time), lambda request, index: order.append(index), (index,))
pool.waitall()
print("pool", sorted(order))

indices = list(codes[0].particles.get_all_indices_in_store())
request = codes[0].legacy_interface.get_mass.asynchronous(indices)
print("split", len(request.result()["mass"]), codes[0].get_number_of_particles())

first = codes[1].get_number_of_particles.asynchronous()
second = codes[1].kinetic_energy, codes[1].get_number_of_particles.asynchronous()
print("after", first.result(), second[1].result())

async def all_at_once():
    ticks = 0
    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)
    beside = asyncio.ensure_future(tick())
    await asyncio.gather(*(finished(code.evolve_model.asynchronous(0.02 | nbody_system.time)) for code in codes))
    counts = [await finished(code.get_number_of_particles.asynchronous()) for code in codes]
    beside.cancel()
    os.kill(int(subprocess.check_output(["pgrep", "-n", "-x", "hermite_worker"])), signal.SIGKILL)
    try:
        await finished(codes[2].evolve_model.asynchronous(1 | nbody_system.time))
    except Exception as error:
        print("died", str(error).replace(chr(10), " "))
    return ticks > 1, counts
print("coroutines", *asyncio.run(all_at_once()))
"""))
    assert lines(out, "pool") == ["[0, 1, 2]"]
    assert lines(out, "split") == ["20 20"]
    assert lines(out, "after") == ["20 20"]
    assert lines(out, "coroutines") == ["True [20, 20, 20]"]
    assert "killed by signal 9 (SIGKILL)" in lines(out, "died")[0]


def own(user, *words):
    """The program as the user calls it, with a daemon that stays."""
    done = flotilla(*words, env=user.environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def own_pilot(user):
    """The user's own daemon, with a pilot that was there before the script."""
    own(user, "daemon", "start")
    yield own(user, "pilot", "start", "local", "--slots", "2", "--label", "mine").strip()
    own(user, "daemon", "stop", "--all")
    for file in sorted(user.state.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()


ATTACHED = """
import sys, time
from flotilla.amuse import DistributedAmuse, Pilot, Resource
from amuse.community.bhtree.interface import BHTree
from amuse.units import units
instance = DistributedAmuse(attach={attach}, redirection="none")
instance.use_for_all_workers()
code = BHTree(label="mine")
print("there", code.get_number_of_particles(), len(instance.pilots), instance.workers[0].status)
job = instance.submit_function_job("mine", "", "", time.sleep, 1000)
instance.resources.add_resource(Resource(name="more", location="", amuse_dir=""))
instance.pilots.add_pilot(Pilot(resource_name="more", node_count=1, time=1 | units.hour, slots_per_node=1, label="new"))
other = BHTree(label="new")
print("added", other.get_number_of_particles(), len(instance.workers), flush=True)
{end}
"""


def there_is(user):
    pilots = sorted(each["id"] for each in json.loads(own(user, "pilot", "list", "--json")))
    resources = sorted(each["spec"]["name"] for each in json.loads(own(user, "resource", "list", "--json")))
    return pilots, resources


def wait_for_its_jobs(user):
    """They are told to end before the script is over, and end soon."""
    for each in json.loads(own(user, "job", "list", "--state", "running", "--json")):
        flotilla("job", "wait", str(each["id"]), env=user.environment)
    assert json.loads(own(user, "job", "list", "--state", "running", "--json")) == []


@pytest.mark.parametrize("attach", ["True", "the state directory"])
def test_a_script_attached_to_a_daemon_ends_what_it_started_alone(user, own_pilot, attach):
    before = there_is(user)
    text = ATTACHED.format(attach=attach if attach == "True" else repr(str(user.state)), end="instance.stop()")
    if attach != "True":
        kept = user.environment.pop("FLOTILLA_STATE_DIR")
    out, _ = user.run(text)
    if attach != "True":
        user.environment["FLOTILLA_STATE_DIR"] = kept
    assert lines(out, "there") == ["0 0 RUNNING"]
    assert lines(out, "added") == ["0 2"]
    assert there_is(user) == before
    wait_for_its_jobs(user)


def test_a_killed_script_that_was_attached_leaves_the_daemon_as_it_was(user, own_pilot):
    before = there_is(user)
    process = user.start(ATTACHED.format(attach=True, end="sys.stdin.read()"), stdin=subprocess.PIPE)
    for line in process.stdout:
        if line.startswith("added"):
            break
    assert there_is(user) != before
    serving = [os.pidfd_open(pid) for pid, words in user.left().items() if " amuse serve " in words]
    assert len(serving) == 1
    process.kill()
    process.communicate(timeout=30)
    assert select.select(serving, [], [], 20)[0] == serving
    os.close(serving[0])
    assert there_is(user) == before
    wait_for_its_jobs(user)


def test_attaching_wants_a_daemon_that_runs(user):
    _, err = user.run("""
from flotilla.amuse import DistributedAmuse
DistributedAmuse(attach=True).commit_parameters()
""", code=1)
    assert re.search(r"no daemon runs.*flotilla daemon start", err, re.S)


def test_jobs_are_in_sets(user):
    (user.folder / "scripts").mkdir()
    (user.folder / "scripts/s.py").write_text("import sys; print(sys.argv[1:])")
    out, _ = user.run(repaired("""
from flotilla.amuse import ScriptJob
added = instance.script_jobs.submit_script_job(ScriptJob(script_dir="scripts", script_name="s.py", arguments="a 'b c'", stdout_file="s.out", label="here"))
print("script", type(added).__name__, added.script_name, added.label)
number = instance.submit_function_job("here", "", "", sum, [1, 2, 3])
print("function", len(instance.function_jobs), instance.function_jobs[0].label, instance.get_function_job_result(number))
print("function is", instance.function_jobs[0].status)
instance.wait_for_script_jobs()
print("script is", instance.script_jobs[0].status)
instance.script_jobs.remove_script_job(instance.script_jobs[0])
instance.function_jobs.remove_function_job(instance.function_jobs[0])
print("left", len(instance.script_jobs), len(instance.function_jobs))
"""))
    assert lines(out, "script") == ["ScriptJob s.py here", "is DONE"]
    assert lines(out, "function") == ["1 here 6", "is DONE"]
    assert lines(out, "left") == ["0 0"]
    assert (user.folder / "s.out").read_text() == "['a', 'b c']\n"


STRUCK = """
def pid_of(name):
    return int(subprocess.check_output(["pgrep", "-n", "-x", name]))
def ended(pid):
    try:
        return bool(select.select([os.pidfd_open(pid)], [], [], 10)[0])
    except ProcessLookupError:
        return True
import select
serving = instance.legacy_interface.channel.process.pid
code = Hermite()
code.particles.add_particles(new_plummer_model(10))
worker = pid_of("hermite_worker")
"""


def test_calls_go_to_the_workers_own_socket(user):
    """With what serves the script stopped: nothing of it is in the way of a call."""
    out, _ = user.run(repaired(STRUCK + """
os.kill(serving, signal.SIGSTOP)
code.evolve_model(0.01 | nbody_system.time)
print("calls", code.get_number_of_particles(), len(code.particles.copy()))
os.kill(serving, signal.SIGCONT)
code.stop()
print("stopped", len(instance.workers), ended(worker))
"""))
    assert lines(out, "calls") == ["10 10"]
    assert lines(out, "stopped") == ["0 True"]


def test_a_dead_worker_tells_why_over_the_connection_that_brought_its_socket(user):
    out, _ = user.run(repaired(STRUCK + """
os.kill(worker, signal.SIGKILL)
before = time.time()
print("first", str(said(lambda: code.evolve_model(1 | nbody_system.time))).replace(chr(10), " "))
print("second", str(said(lambda: code.get_number_of_particles())).replace(chr(10), " "))
print("status", [each.status for each in instance.workers])
said(code.stop)                     # AMUSE calls cleanup_code first
code.legacy_interface._stop()
print("took", time.time() - before, len(instance.workers))

closed = Hermite()
worker = pid_of("hermite_worker")
closed.legacy_interface.channel.stop()
print("closed", ended(worker))
"""))
    for each in ("first", "second"):
        assert re.search(r"worker hermite_worker on .* killed by signal 9 \(SIGKILL\)", lines(out, each)[0])
    assert lines(out, "status") == ["['FAILED']"]
    took, left = lines(out, "took")[0].split()
    assert float(took) < 2 and left == "0"
    assert lines(out, "closed") == ["True"]


def test_when_what_serves_the_script_is_killed_its_workers_end(user):
    out, _ = user.run(repaired(STRUCK + """
os.kill(serving, signal.SIGKILL)
before = time.time()
print("call", said(lambda: [code.evolve_model((10 + i) | nbody_system.time) for i in range(10000)]))
print("ended", ended(worker), time.time() - before < 5, flush=True)
os._exit(0)
"""))
    assert "the distributed code, too, has ended" in lines(out, "call")[0]
    assert lines(out, "ended") == ["True True"]
