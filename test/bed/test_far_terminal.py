"""Terminals and commands beside a job, on a node behind the front end."""
import pytest

from bed import wait_until


@pytest.fixture
def pilot(flotilla):
    flotilla.add_cluster("nodes", "--host", "node1")
    return flotilla.start_pilot("nodes", "--slots", "2")


def test_a_terminal_there_has_the_size_of_ours_and_follows_it(flotilla, pilot):
    script = "trap 'stty size' WINCH; test -t 0 && test -t 1 && echo term $TERM on $(hostname); stty size; echo ready; while :; do sleep 0.05; done"
    with flotilla.terminal("run", "-t", "--on", "nodes", "--", "sh", "-c", script, rows=33, columns=77) as terminal:
        terminal.until("term xterm on node1")
        terminal.until("33 77")
        terminal.until("ready")
        for rows, columns in ((44, 88), (20, 132)):
            terminal.size(rows, columns)
            terminal.until(f"{rows} {columns}")
        terminal.type("\x03")   # a key like others: the terminal there makes it a signal
        assert terminal.wait() == 130


def test_a_command_beside_a_job_there(bed, flotilla, pilot):
    job = flotilla.submit("--on", "nodes", "--env", "MARK=here", "--", "sh", "-c", "echo made > file; exec sleep 1000")
    wait_until(lambda: flotilla.run("exec", str(job), "--", "cat", "file", check=False).stdout == "made\n", 15, "the job has made its file")
    folder = flotilla.job(job)["folder"]
    done = flotilla.run("exec", str(job), "--", "sh", "-c", "echo $MARK on $(hostname) in $PWD; cat; exit 5", input="given", check=False)
    assert (done.returncode, done.stdout) == (5, f"here on node1 in {folder}\ngiven"), done
    with flotilla.terminal("exec", "-t", str(job), "--", "bash", "--norc") as terminal:
        terminal.type("PS1=; echo $MARK-$((40 + 2)) > typed; cat typed; stty size; exit 4\r")
        terminal.until("here-42")
        terminal.until("30 100")
        assert terminal.wait() == 4
    assert bed.node1.output(["cat", f"{folder}/typed"]) == "here-42"
    assert flotilla.job(job)["state"] == "running"


def test_a_shell_on_a_pilot_there(flotilla, pilot):
    with flotilla.terminal("shell", str(pilot)) as terminal:
        terminal.type("shopt -q login_shell && echo in-$FLOTILLA_RESOURCE-$((40 + 2))-$(hostname)-$(id -un)-$PWD; stty size; exit 3\r")
        terminal.until(r"in-nodes-42-node1-asmith-/home/asmith\r")
        terminal.until("30 100")
        assert terminal.wait() == 3
    done = flotilla.run("shell", str(pilot), "--", "sh", "-c", "echo $FLOTILLA_RESOURCE on $(hostname); cat; exit 6", input="given", check=False)
    assert (done.returncode, done.stdout) == (6, "nodes on node1\ngiven"), done
