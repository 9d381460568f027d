"""What the keys of the configuration change, seen from outside."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import time
import urllib.request
from pathlib import Path

from conftest import WAIT_S


def configure(cli, text: str) -> None:
    (cli.folder / "config.toml").write_text(text)


# ---- [daemon] durability


def test_what_is_acknowledged_for_the_disk_survives_a_kill(own_cli):
    configure(own_cli, '[daemon]\ndurability = "disk"\n')
    running = own_cli.run("submit", "--", "sh", "-c", "while [ ! -e go ]; do sleep 0.02; done; echo done").out.strip()
    own_cli.run("job", "wait", "--running", running)
    waiting = own_cli.run("submit", "--on", "nobody-has-this", "--name", "kept", "--", "true").out.strip()
    pid = own_cli.daemon_pid()
    process = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert select.select([process], [], [], WAIT_S)[0], "it has not ended"
    os.close(process)
    assert own_cli.job(waiting)["spec"]["name"] == "kept"
    (own_cli.work / "go").touch()
    own_cli.run("job", "wait", running)
    assert own_cli.run("job", "logs", running).out == "done\n"
    following = own_cli.run("submit", "--", "true").out.strip()
    assert int(following) == int(waiting) + 1


# ---- [daemon] agent


def agent_of(cli) -> str:
    """The program that the local pilot is."""
    return cli.run("run", "--on", "local", "--", "sh", "-c", "readlink /proc/$PPID/exe").out.strip()


def test_another_agent_is_used_and_known_again_after_a_restart(own_cli):
    agent = own_cli.folder / "another"  # its name is of no account
    shutil.copy(own_cli.environment.pop("FLOTILLA_AGENT"), agent)
    configure(own_cli, f'[daemon]\nagent = "{agent}"\n')
    assert agent_of(own_cli) == str(agent)
    job = own_cli.run("submit", "--", "sh", "-c", "while [ ! -e go ]; do sleep 0.02; done; exit 6").out.strip()
    own_cli.run("job", "wait", "--running", job)
    pilots = [pilot["id"] for pilot in own_cli.json("pilot", "list")]
    own_cli.run("daemon", "restart")
    (own_cli.work / "go").touch()
    own_cli.run("job", "wait", job, code=1)
    assert own_cli.job(job)["exit"]["code"] == 6
    assert [pilot["id"] for pilot in own_cli.json("pilot", "list")] == pilots


def test_the_variable_comes_before_the_configured_agent(own_cli):
    configure(own_cli, '[daemon]\nagent = "/no/such/agent"\n')
    assert agent_of(own_cli) == str(Path(own_cli.environment["FLOTILLA_AGENT"]).resolve())


def test_what_is_no_agent_is_refused(own_cli):
    del own_cli.environment["FLOTILLA_AGENT"]
    text, folder, program = own_cli.folder / "notes.txt", own_cli.folder / "folder", shutil.which("true")
    text.write_text("not a program\n")
    folder.mkdir()
    for path, why in (("/no/such/agent", "no such file"), (text, "not executable"), (folder, "is a folder")):
        configure(own_cli, f'[daemon]\nagent = "{path}"\n')
        ran = own_cli.run("daemon", "start", code=4)
        assert str(path) in ran.err and why in ran.err and "[daemon] agent" in ran.err, ran.err
        own_cli.run("daemon", "status", code=3)
    configure(own_cli, f'[daemon]\nagent = "{program}"\n')
    ran = own_cli.run("pilot", "start", "local", "--slots", "1", code=None)
    assert ran.code != 0 and f"{Path(program).resolve()} is no flotilla-agent" in ran.err, ran.err


# ---- [daemon] web_port


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_the_page_is_at_the_port_that_was_given(own_cli):
    for _ in range(2):  # and at another one after a change
        port = free_port()
        configure(own_cli, f"[daemon]\nweb_port = {port}\n")
        own_cli.run("daemon", "restart")
        link = own_cli.run("web").out.strip()
        assert link.startswith(f"http://127.0.0.1:{port}/?token=")
        with urllib.request.build_opener(urllib.request.HTTPCookieProcessor()).open(link, timeout=20) as page:
            assert page.status == 200 and b"<html" in page.read()


def test_a_port_that_is_taken_is_told(own_cli):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        configure(own_cli, f"[daemon]\nweb_port = {port}\n")
        assert own_cli.run("run", "--", "echo", "works").out == "works\n"
        told = f"127.0.0.1:{port}: Address already in use"
        ran = own_cli.run("web", code=1)
        assert told in ran.err and "flotilla daemon restart" in ran.err, ran.err
        assert told in own_cli.run("daemon", "status").out
        assert told in own_cli.run("logs", "daemon").out
    own_cli.run("daemon", "restart")
    assert own_cli.run("web").out.startswith(f"http://127.0.0.1:{port}/")
    assert "already in use" not in own_cli.run("daemon", "status").out


# ---- [pilots] idle


def test_pilots_end_when_they_are_idle_for_as_long_as_configured(own_cli):
    configure(own_cli, '[pilots]\nidle = "1500ms"\n')
    job = own_cli.run("submit", "--on", "busy", "--", "sh", "-c", "while [ ! -e go ]; do sleep 0.02; done").out.strip()
    idle, busy, asked = (own_cli.run("pilot", "start", "local", "--slots", "1", "--label", label, *more, "--no-wait").out.strip()
                         for label, more in (("idle", ()), ("busy", ()), ("asked", ("--idle", "never"))))
    own_cli.run("job", "wait", "--running", job)
    own_cli.run("pilot", "wait", "--ended", idle)
    ended = own_cli.json("pilot", "show", idle)
    assert ended["state"] == "finished" and "no job for as long as it may be idle" in ended["message"]
    assert "no job for as long as it may be idle" in own_cli.run("pilot", "show", idle).out
    (own_cli.work / "go").touch()
    begin = time.monotonic()
    own_cli.run("pilot", "wait", "--ended", busy)
    assert time.monotonic() - begin > 1  # it counts from the end of the job
    assert own_cli.job(job)["state"] == "finished"
    # What was started with --idle goes by that; the pilot of this machine stays.
    assert own_cli.json("pilot", "show", asked)["state"] == "running"
    assert agent_of(own_cli)
