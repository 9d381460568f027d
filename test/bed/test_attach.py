"""`flotilla attach` to a job on a node, over a link that is cut and on a laptop that sleeps: it goes on where it was."""
import signal
import time

import pytest

COUNT = "i=0; while [ ! -e go ]; do echo $((i += 1)); sleep 0.05; done; echo end"


def begin(flotilla, transport):
    flotilla.add_cluster("nodes", "--host", "node1", "--transport", transport)
    flotilla.start_pilot("nodes", "--slots", "1")
    job = flotilla.submit("--on", "nodes", "--", "sh", "-c", COUNT)
    flotilla.wait_job(job, "running")
    return job


def take_until(attached, number):
    """Its lines up to the one that says this number; pytest's time limit ends the waiting."""
    lines = []
    while not lines or int(lines[-1]) < number:
        line = attached.stdout.readline()
        assert line, f"attach ended with {attached.wait(10)}: {attached.stderr.read()}"
        lines.append(line.rstrip("\n"))
    return lines


def wake(processes, attached):
    for process in processes:
        process.kill(signal.SIGCONT)
    attached.send_signal(signal.SIGCONT)     # nsenter has stopped itself with the program that it waits for


@pytest.mark.parametrize("transport", ["libssh", "openssh"])
@pytest.mark.parametrize("how", ["laptop's cable", "silence", "asleep"])
def test_attach_goes_on_where_it_was(bed, flotilla, how, transport):
    job = begin(flotilla, transport)
    attached = flotilla.popen("attach", str(job), "--from-start", "-n", stdout=-1, stderr=-1, text=True)
    asleep = []
    cut = bed.frontend if how == "silence" else bed.laptop
    try:
        lines = take_until(attached, 20)
        cut.cut("pub")
        if how == "asleep":
            asleep = bed.laptop.processes_of_flotilla()
            for process in asleep:
                process.kill(signal.SIGSTOP)
        time.sleep(8)           # the length of the cut
        cut.heal("pub")
        wake(asleep, attached)
        healed = time.monotonic()
        lines += take_until(attached, int(lines[-1]) + 100)
        came_back = time.monotonic() - healed
        bed.frontend.as_user(["touch", flotilla.job(job)["folder"] + "/go"])
        lines += attached.stdout.read().split()
        assert attached.wait(10) == 0, attached.stderr.read()
        assert lines == [str(i) for i in range(1, len(lines))] + ["end"], "no line is lost, none twice"
        assert came_back < 20, f"{came_back:.1f} s"
        assert flotilla.output("job", "logs", str(job)).split() == lines
        assert flotilla.job(job)["attempt"] == 1
    finally:
        wake(asleep, attached)
        attached.kill()
        attached.communicate()
