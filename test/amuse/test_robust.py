"""What happens around a script: pilots that do not start, scripts that leave, a daemon that dies, the page's link."""
import os
import re
import select
import subprocess
import sys
import time

import pytest
from conftest import BUILD, PROGRAM
from test_distributed import lines, script

# The instance as far as its parameters. {debug}
INSTANCE = """
import os, signal, subprocess, sys, time
from amuse.lab import *
from amuse.community.distributed.interface import DistributedAmuse, Resource, Pilot
from amuse.community.hermite.interface import Hermite
instance = DistributedAmuse(redirection="none")
instance.parameters.debug = {debug}
instance.commit_parameters()
def said(what):
    try:
        what()
    except Exception as error:
        return str(error)
    return None
def add(label, **more):
    pilot = Pilot()
    pilot.resource_name, pilot.node_count, pilot.time, pilot.slots_per_node, pilot.label = "local", 1, 2 | units.hour, 1, label
    for name, value in more.items(): setattr(pilot, name, value)
    instance.pilots.add_pilot(pilot)
"""


def instance(text, debug=False):
    return INSTANCE.replace("{debug}", str(debug)) + text


# The daemons of this script.
DAEMONS = '''
def ours(pid):
    try:
        return ("HOME=" + os.environ["HOME"] + "\\0").encode() in open("/proc/" + pid + "/environ", "rb").read()
    except OSError:
        return False      # it has ended
def daemons():
    found = subprocess.run(["pgrep", "-f", "^flotilla daemon run"], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in found if ours(pid)]
'''


@pytest.fixture
def slow_agent(user):
    """Pilots with the label 'held' never come, those with 'broken' fail."""
    agent = user.folder / "flotilla-agent"
    agent.write_text(f"""#!/bin/sh
[ "$1" = pilot ] || exec {BUILD}/bin/flotilla-agent "$@"
config=$(cat)
case $config in
  *'"held"'*) exec tail -f /dev/null ;;
  *'"broken"'*) echo "no licence" >&2; exit 3 ;;
esac
printf %s "$config" | {BUILD}/bin/flotilla-agent pilot
""")
    agent.chmod(0o755)
    user.environment["FLOTILLA_AGENT"] = str(agent)
    return user


def wait_for(process, word):
    for line in process.stdout:
        if line.startswith(word):
            return line
    pytest.fail(f"'{word}' was not said\n{process.stderr.read()}")


def ask(user, folder, *words):
    return subprocess.run([PROGRAM, *words], env=user.environment | {"FLOTILLA_STATE_DIR": str(folder / "state")}, capture_output=True,
                          text=True, timeout=60, check=True).stdout


def of_script(user):
    (folder,) = user.state.iterdir()
    return folder


def test_a_pilot_that_fails_is_told_while_one_before_it_waits(slow_agent):
    out, err = slow_agent.run(instance("""
add("held")
add("broken")
before = time.time()
print("pilots", said(instance.wait_for_pilots), file=sys.stderr)
print("took", time.time() - before, flush=True)
print("text", instance.overridden().get_current_error(), file=sys.stderr)
instance.stop()
"""))
    assert re.search(r"text .*pilot 2 on 'local' \(label 'broken'\) has failed: .*exit code 3", str(err)), err
    assert float(lines(out, "took")[0]) < 20


def test_a_script_that_is_killed_while_it_waits_for_pilots_leaves_nothing(slow_agent):
    process = slow_agent.start(instance("""
add("held")
print("waits", flush=True)
instance.wait_for_pilots()
"""))
    wait_for(process, "waits")
    process.kill()
    process.communicate(timeout=30)
    slow_agent.wait_nothing_left(30)


def test_a_code_that_waits_in_the_queue_goes_with_its_connection(user):
    process = user.start(script("""
import socket, struct
first = Hermite()
port = int(instance.port)
def string(*texts):
    return struct.pack("=%di" % len(texts), *[len(text) for text in texts]) + b"".join(text.encode() + b"\\0" for text in texts)
asked = socket.create_connection(("localhost", port))
asked.sendall(b"TYPE_WORKER" + struct.pack("=4B10i", 0, 0, 0, 0, 1, 10101010, 1, 2, 0, 0, 0, 1, 5, 0) + struct.pack("=2i", 1, 1) + b"\\0" +
              string("hermite_worker", "/dev/null", "/dev/null", "", "/"))
print("asked", flush=True)
sys.stdin.readline()
asked.close()
print("closed", flush=True)
sys.stdin.readline()
instance.stop()
os._exit(0)
""", slots=1, queue=600), stdin=subprocess.PIPE)
    wait_for(process, "asked")
    folder = of_script(user)
    asked = r'"state": ?"(submitted|queued)"'
    end = time.monotonic() + 30
    while not re.search(asked, ask(user, folder, "job", "list", "--json")) and time.monotonic() < end:
        pass
    assert re.search(asked, ask(user, folder, "job", "list", "--json"))
    process.stdin.write("close\n")
    process.stdin.flush()
    wait_for(process, "closed")
    end = time.monotonic() + 20
    while re.search(asked, ask(user, folder, "job", "list", "--json")) and time.monotonic() < end:
        pass
    assert not re.search(asked, ask(user, folder, "job", "list", "--json"))
    process.communicate("end\n", timeout=60)


def test_a_code_that_has_not_connected_yet_is_initializing(user):
    slow = user.folder / "slow_worker"
    slow.write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    slow.chmod(0o755)
    out, _ = user.run(script("""
import socket, struct
first = Hermite()
def ask(name):
    texts = [name, "/dev/null", "/dev/null", "", "/"]
    asked = socket.create_connection(("localhost", int(instance.port)))
    asked.sendall(b"TYPE_WORKER" + struct.pack("=4B10i", 0, 0, 0, 0, 1, 10101010, 1, 2, 0, 0, 0, 1, 5, 0) + struct.pack("=2i", 1, 1) + b"\\0" +
                  struct.pack("=5i", *[len(text) for text in texts]) + b"".join(text.encode() + b"\\0" for text in texts))
    return asked
def status(number):
    return instance.overridden().get_worker_status(number)
asked = [ask(os.getcwd() + "/slow_worker")]
end = time.time() + 20
while instance.get_number_of_workers() < 2 or (status(2) != "INITIALIZING" and time.time() < end): pass
asked.append(ask(os.getcwd() + "/slow_worker"))
while instance.get_number_of_workers() < 3: pass
print("states", *[status(number) for number in (1, 2, 3)])
for each in asked: each.close()
""", slots=2, queue=600))
    assert lines(out, "states") == ["RUNNING INITIALIZING PENDING"]


def test_the_end_does_not_wait_for_codes_in_the_queue(user):
    out, _ = user.run(script("""
import threading
first = Hermite()
threads = [threading.Thread(target=lambda: said(Hermite), daemon=True) for _ in range(3)]
for thread in threads: thread.start()
while instance.get_number_of_workers() < 4: pass
before = time.time()
instance.stop()
print("took", time.time() - before, flush=True)
os._exit(0)
""", slots=1, queue=600))
    assert float(lines(out, "took")[0]) < 20


def test_a_script_that_fails_with_codes_in_the_queue_ends(user):
    _, err = user.run(script("""
import threading
first = Hermite()
for _ in range(3): threading.Thread(target=lambda: said(Hermite), daemon=True).start()
while instance.get_number_of_workers() < 4: pass
raise RuntimeError("a mistake of the script")
""", slots=1, queue=600), code=1)
    assert "a mistake of the script" in err


def test_a_daemon_that_is_killed_comes_back(user):
    out, err = user.run(script(DAEMONS + """
code = Hermite()
code.particles.add_particles(new_plummer_model(10))
for round in range(2):
    (old,) = daemons()
    os.kill(old, signal.SIGKILL)
    other = Hermite()          # is asked for while there is none
    print("new", other.get_number_of_particles())
    (now,) = daemons()
    print("changed", now != old)
    code.evolve_model((round + 1) * 0.01 | nbody_system.time)
    print("old", len(code.particles))
    other.stop()
print("pilot", instance.pilots[0].status)
code.stop()
"""))
    assert lines(out, "new") == ["0", "0"]
    assert lines(out, "changed") == ["True", "True"]
    assert lines(out, "old") == ["10", "10"]
    assert lines(out, "pilot") == ["RUNNING"]
    assert err.count("the daemon of this script died; it is started again") == 2


def test_a_code_in_the_queue_outlives_the_daemon(user):
    out, _ = user.run(script(DAEMONS + """
import threading
first = Hermite()
made = []
waiting = threading.Thread(target=lambda: made.append(Hermite()))
waiting.start()
while instance.get_number_of_workers() < 2: pass
os.kill(*daemons(), signal.SIGKILL)
print("pilot", instance.pilots[0].status)    # asked while there is none
before = time.time()
first.stop()
waiting.join()
print("took", time.time() - before)
print("made", made[0].get_number_of_particles())
made[0].stop()
""", slots=1, queue=100))
    assert lines(out, "pilot") == ["RUNNING"]
    assert lines(out, "made") == ["0"]
    assert float(lines(out, "took")[0]) < 40


def test_after_the_end_all_can_begin_again(user):
    process = user.start("""
import os, sys
from amuse.community.distributed.interface import DistributedAmuseInterface
interface = DistributedAmuseInterface(redirection="none")
interface.commit_parameters()
print("ended", interface.end_all(), flush=True)
sys.stdin.readline()
print("again", interface.commit_parameters(), flush=True)
sys.stdin.readline()
interface.end_all()
interface.stop()
""", stdin=subprocess.PIPE)
    wait_for(process, "ended")
    assert list(user.state.iterdir()) == []
    process.stdin.write("\n")
    process.stdin.flush()
    wait_for(process, "again")
    folder = of_script(user)
    assert folder.name.startswith("amuse-")
    assert "local" in ask(user, folder, "resource", "list")
    process.communicate("\n", timeout=60)


def test_what_cannot_be_done_says_why(user):
    _, err = user.run(instance("""
interface = instance.overridden()
def told(name, what):
    print(name, said(what), interface.get_current_error(), file=sys.stderr)
told("queue", lambda: add("here", queue_name="gpu"))
told("late", lambda: interface.get_pilot_status(7))
add("here")
instance.wait_for_pilots()
print("delete", interface.delete_resource(0), file=sys.stderr)
print("again", interface.new_resource("local", "", "/nowhere", "", "", "local", "", 1 | units.minute), file=sys.stderr)
instance.stop()
"""))
    assert re.search(r"queue .*errorcode is -10.*asks for the queue 'gpu', and pilots here do not go into queues.*leave queue_name empty", err, re.S), err
    assert "resource 'local' is deleted: the pilots on it end (1), and the codes there" in err
    assert "errorcode" not in re.search(r"delete .*", err)[0]
    assert "errorcode" not in re.search(r"again .*", err)[0]


@pytest.mark.parametrize("name", ["worker_queue_timeout", "worker_startup_timeout"])
def test_a_time_that_is_none_is_refused(user, name):
    _, err = user.run(f"""
import sys
from amuse.community.distributed.interface import DistributedAmuseInterface
interface = DistributedAmuseInterface(redirection="none")
for value in (0, -5):
    interface.set_{name}(value)
    print("said", interface.get_current_error()["string"], file=sys.stderr)
interface.stop()
""")
    assert f"said {name} is 0 s; it must be 1 s or more" in err
    assert f"said {name} is -5 s; it must be 1 s or more" in err


PAGE = """
import sys, urllib.request, urllib.error
def get(path, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(sys.argv[1] + path, headers=headers), timeout=30) as answer:
            return str(answer.status), answer.readline().decode() + answer.readline().decode()
    except urllib.error.HTTPError as error:
        return str(error.code), ""
print("page", *get("/")[0:1])
print("events", *get("/api/v1/events"))
print("site", *get("/api/v1/info", Origin="http://evil.example")[0:1])
print("name", *get("/", Host="evil.example")[0:1])
"""


def test_the_link_opens_the_page_for_this_user_alone(user):
    process = user.start(instance("""
print("url", instance.get_webinterface_url(), flush=True)
sys.stdin.readline()
instance.stop()
"""), stdin=subprocess.PIPE)
    url = wait_for(process, "url").split()[1]
    ours = subprocess.run([sys.executable, "-c", PAGE, url], capture_output=True, text=True, timeout=60, check=True).stdout
    stranger = subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", PAGE, url], cwd="/",
                              env={}, capture_output=True, text=True, timeout=60, check=True).stdout
    _, err = process.communicate("\n", timeout=60)
    assert lines(ours, "page") == ["200"]
    assert lines(ours, "events")[0].startswith("200 ")
    assert "event: snapshot" in ours
    assert lines(ours, "site") == ["403"]
    assert lines(ours, "name") == ["421"]
    assert lines(stranger, "page") == ["401"]
    assert lines(stranger, "events") == ["401 "]
    assert re.search(r"the web page of this script: http://127\.0\.0\.1:\d+/\?token=[0-9a-f]+", err)


def test_with_debug_the_files_of_a_killed_script_are_kept_and_named(user):
    process = user.start(instance("""
add("here")
instance.wait_for_pilots()
print("ready", flush=True)
signal.pause()
""", debug=True))
    wait_for(process, "ready")
    folder = of_script(user)
    process.kill()
    _, err = process.communicate(timeout=60)
    assert f"debug: the files of this script are kept in {folder}" in err
    end = time.monotonic() + 60
    while (left := user.left()) and time.monotonic() < end:
        try:
            one = os.pidfd_open(next(iter(left)))
        except OSError:
            continue
        select.select([one], [], [], 30)
        os.close(one)
    assert user.left() == {}
    assert (folder / "state/logs/daemon.log").stat().st_size > 0
    subprocess.run(["rm", "-r", folder], check=True)


def test_a_command_that_a_text_names_reaches_the_scripts_own_daemon(user):
    _, err = user.run(script("""
print("label", said(lambda: Hermite(label="nowhere")), file=sys.stderr)
""", queue=1))
    assert re.search(r"label .*FLOTILLA_STATE_DIR=\S+/state flotilla pilot", err)
