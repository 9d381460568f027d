"""AMUSE's own classes on this machine, as its documentation uses them."""
import os
import re
import signal
import subprocess
import sys

import pytest

# What AMUSE's documentation begins with. {pilot}: more of the pilot's attributes.
BEGIN = """
import os, signal, subprocess, sys, time
from amuse.lab import *
from amuse.community.distributed.interface import DistributedAmuse, Resource, Resources, Pilot, Pilots, DistributedAmuseInterface
from amuse.community.hermite.interface import Hermite
from amuse.community.bhtree.interface import BHTree
from amuse.community.ph4.interface import ph4
from amuse.community.fi.interface import Fi
from amuse.community.sse.interface import SSE
from amuse.ic.plummer import new_plummer_model

instance = DistributedAmuse(redirection="none")
instance.parameters.worker_queue_timeout = {queue} | units.s
instance.parameters.worker_startup_timeout = 30 | units.s
instance.commit_parameters()
pilot = Pilot()
pilot.resource_name = "local"
pilot.node_count = 1
pilot.time = 2 | units.hour
pilot.slots_per_node = {slots}
pilot.label = "here"
instance.pilots.add_pilot(pilot)
instance.wait_for_pilots()
instance.use_for_all_workers()

def said(what):
    try:
        what()
    except Exception as error:
        return str(error)
    return None
"""


def script(text, slots=4, queue=20):
    return BEGIN.replace("{slots}", str(slots)).replace("{queue}", str(queue)) + text + "\ninstance.stop()\nprint('the end')\n"


def lines(out, word):
    return [line[len(word) + 1:] for line in out.splitlines() if line.startswith(word + " ")]


def test_resources_pilots_and_workers_are_seen(user):
    out, _ = user.run(script("""
print("resource", instance.resources[0].name, instance.resources[0].scheduler_type, instance.resources[0].amuse_dir)
print("pilot", instance.pilots[0].status, instance.pilots[0].slots_per_node, instance.pilots[0].label, instance.pilots[0].time)
code = Hermite()
print("worker", len(instance.workers), instance.workers[0].status, instance.workers[0].executable, instance.workers[0].worker_count)
code.stop()
print("then", len(instance.workers))
print("url", instance.get_webinterface_url())
import urllib.request
"""))
    assert lines(out, "resource")[0].startswith("local local /")
    assert lines(out, "pilot") == ["RUNNING 4 here 120 min"]
    assert re.fullmatch(r"1 RUNNING \S*hermite_worker 1", lines(out, "worker")[0])
    assert lines(out, "then") == ["0"]
    assert re.fullmatch(r"http://localhost:\d+", lines(out, "url")[0])
    assert "the end" in out


@pytest.mark.parametrize("made", ["Hermite()", "BHTree()", "ph4()", "ph4(number_of_workers=2)", "Fi()"])
def test_a_code_gives_what_it_gives_over_its_own_channel(user, made):
    out, _ = user.run(script(f"""
import numpy
def energies(code):
    stars = new_plummer_model(50, random=numpy.random.mtrand.RandomState(5))
    (code.dm_particles if hasattr(code, "dm_particles") else code.particles).add_particles(stars)
    code.evolve_model(0.05 | nbody_system.time)
    both = code.kinetic_energy.number, code.potential_energy.number
    print("workers", len(instance.workers))
    code.stop()
    return both
here = energies({made})
sockets = energies({made[:-1]}{"" if made.endswith("()") else ", "}channel_type="sockets"))
print("same", here == sockets, here, sockets)
"""))
    assert lines(out, "same")[0].startswith("True"), out
    assert lines(out, "workers") == ["1", "0"]    # the first was ours, the second was not


def test_stars_evolve_in_fortran(user):
    out, _ = user.run(script("""
code = SSE()
code.particles.add_particles(Particles(2, mass=[1, 10] | units.MSun))
code.evolve_model(5 | units.Myr)
print("light", *["%.1f" % each for each in code.particles.luminosity.value_in(units.LSun)])
code.stop()
"""))
    assert lines(out, "light") == ["0.7 6203.0"]


def test_what_cannot_be_started_says_why(user):
    _, err = user.run(script("""
print("slots", said(lambda: Hermite(number_of_workers=9)), file=sys.stderr)
print("label", said(lambda: Hermite(label="nowhere")), file=sys.stderr)
""", queue=1))
    assert re.search(r"slots .*waited 1 s in the queue.*no node has 9 slots", err)
    assert re.search(r"label .*no pilot has the label 'nowhere'", err)


def test_a_worker_that_dies_is_told_and_nothing_hangs(user):
    out, _ = user.run(script("""
code = Hermite()
code.particles.add_particles(new_plummer_model(10))
before = time.time()
os.kill(int(subprocess.check_output(["pgrep", "-n", "-x", "hermite_worker"])), signal.SIGKILL)
print("first", said(lambda: code.evolve_model(1 | nbody_system.time)))
print("second", said(lambda: code.get_number_of_particles()))
said(code.stop)
print("took", time.time() - before)
other = Hermite()
print("other", other.get_number_of_particles())
"""))
    assert "worker hermite_worker on" in lines(out, "first")[0] and "killed by signal 9 (SIGKILL)" in lines(out, "first")[0]
    assert "killed by signal 9 (SIGKILL)" in lines(out, "second")[0]
    assert float(lines(out, "took")[0]) < 2
    assert "other" in out


def test_output_goes_where_the_script_says(user):
    out, _ = user.run(script("""
code = Fi(redirection="file", redirect_stdout_file="fi.out", redirect_stderr_file="fi.err")
code.dm_particles.add_particles(new_plummer_model(10))
code.evolve_model(0.01 | nbody_system.time)
code.stop()
"""))
    assert (user.folder / "fi.out").stat().st_size > 0
    assert "flotilla-amuse-home" not in (user.folder / "fi.err").read_text()


def test_a_parameter_set_too_late_is_refused(user):
    _, err = user.run(script("""
print(said(lambda: setattr(instance.parameters, "worker_queue_timeout", 3 | units.s)), file=sys.stderr)
"""))
    assert "worker_queue_timeout cannot be changed any more" in err


def test_a_resource_that_cannot_be_reached_is_an_error_with_its_text(user):
    _, err = user.run(script("""
resource = Resource()
resource.name = "far"
resource.location = "nobody@127.0.0.1:1"
resource.scheduler_type = "ssh"
resource.amuse_dir = ""
print("resource", said(lambda: instance.resources.add_resource(resource)), file=sys.stderr)
print("text", instance.overridden().get_current_error(), file=sys.stderr)
"""))
    assert "errorcode is -10" in err
    assert re.search(r"text cannot reach 127\.0\.0\.1 port 1 for resource far .*Connection refused", err)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_script_that_is_killed_leaves_nothing(user, number):
    process = user.start(script("""
code = Hermite()
code.particles.add_particles(new_plummer_model(10))
print("ready", flush=True)
signal.pause()
"""))
    for line in process.stdout:
        if line.startswith("ready"):
            break
    assert len(user.left()) > 3
    process.send_signal(number)
    process.communicate(timeout=30)
    user.wait_nothing_left(15)


@pytest.mark.parametrize("victims", ["serve", "daemon", "serve|daemon"])
def test_what_is_killed_beside_the_script_leaves_nothing(user, victims):
    process = user.start(script("""
code = Hermite()
code.particles.add_particles(new_plummer_model(10))
print("ready", flush=True)
sys.stdin.read()
before = time.time()
print("call", said(lambda: [code.evolve_model((10 + i) | nbody_system.time) for i in range({count})]) is not None)
print("took", time.time() - before, flush=True)
os._exit(0)
""").replace("{count}", "10000" if "serve" in victims else "2"), stdin=subprocess.PIPE)
    for line in process.stdout:
        if line.startswith("ready"):
            break
    wanted = {"serve": " amuse serve ", "daemon": "flotilla daemon run"}
    killed = [pid for pid, words in user.left().items() if any(wanted[each] in words for each in victims.split("|")) and "mpiexec" not in words]
    assert len(killed) == len(victims.split("|"))
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    out, _ = process.communicate("go", timeout=60)
    # The worker's channel is the worker's own socket: it does not need the daemon.
    assert lines(out, "call") == [str("serve" in victims)]
    assert float(lines(out, "took")[0]) < 5
    user.wait_nothing_left(30)


def test_a_connection_that_says_nothing_delays_nobody(user):
    out, _ = user.run(script("""
import socket
silent = [socket.create_connection(("localhost", int(instance.port))) for _ in range(5)]
wrong = socket.create_connection(("localhost", int(instance.port)))
wrong.sendall(b"GET / HTTP/1.1")
before = time.time()
code = Hermite()
print("took", time.time() - before)
print("said", b"TYPE_WORKER" in wrong.recv(1000))
code.stop()
"""))
    assert float(lines(out, "took")[0]) < 3
    assert lines(out, "said") == ["True"]


def test_twenty_workers_from_twenty_threads(user):
    out, _ = user.run(script("""
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(20) as pool:
    codes = list(pool.map(lambda _: BHTree(), range(20)))
print("workers", len(instance.workers))
print("calls", [code.get_number_of_particles() for code in codes] == [0] * 20)
for code in codes: code.stop()
""", slots=20))
    assert lines(out, "workers") == ["20"]
    assert lines(out, "calls") == ["True"]
