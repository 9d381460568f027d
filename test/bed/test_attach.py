"""`flotilla attach` to a job on a node, over a link that is cut and on a laptop that sleeps: it goes on where it was."""
import time

import pytest
from bed import wait_until

# How far it is stands in a file too: that can be seen while the link is cut.
COUNT = "i=0; while [ ! -e go ]; do i=$((i + 1)); echo $i | tee at; sleep 0.05; done; echo end"


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


@pytest.mark.parametrize("transport", ["libssh", "openssh"])
@pytest.mark.parametrize("how", ["laptop's cable", "silence", "asleep"])
def test_attach_goes_on_where_it_was(bed, flotilla, how, transport):
    job = begin(flotilla, transport)
    attached = flotilla.popen("attach", str(job), "--from-start", "-n", stdout=-1, stderr=-1, text=True)
    cut = bed.frontend if how == "silence" else bed.laptop
    try:
        lines = take_until(attached, 20)
        folder = flotilla.job(job)["folder"]
        def far():
            return int(bed.frontend.as_user(["cat", f"{folder}/at"]).stdout or 0)
        if how == "asleep":
            bed.laptop.fall_asleep()
        else:
            cut.cut("pub")
        begun = far()
        wait_until(lambda: far() > begun + 100, 60, "the job has gone on meanwhile")
        cut.heal_all()
        healed = time.monotonic()
        lines += take_until(attached, int(lines[-1]) + 100)
        came_back = time.monotonic() - healed
        bed.frontend.as_user(["touch", f"{folder}/go"])
        lines += attached.stdout.read().split()
        assert attached.wait(10) == 0, attached.stderr.read()
        assert lines == [str(i) for i in range(1, len(lines))] + ["end"], "no line is lost, none twice"
        assert came_back < 20, f"{came_back:.1f} s"
        assert flotilla.output("job", "logs", str(job)).split() == lines
        assert flotilla.job(job)["attempt"] == 1
    finally:
        bed.laptop.wake_up()
        attached.kill()
        attached.communicate()
