"""What a user sees and types on a terminal."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import WAIT_S, until


def test_a_job_with_a_terminal_has_our_size_and_follows_it(cli, terminal):
    script = "trap 'stty size' WINCH; test -t 0 && test -t 1 && echo term $TERM; stty size; echo ready; while :; do sleep 0.05; done"
    on = terminal(cli, "run", "-t", "--", "sh", "-c", script, rows=33, columns=77)
    on.until("term xterm")
    on.until("33 77")
    on.until("ready")
    assert on.is_raw()
    on.size(44, 88)
    os.kill(on.process.pid, signal.SIGWINCH)
    on.until("44 88")
    on.type("\x03")  # a key like others: the job's terminal makes it a signal
    assert on.wait() == 128 + signal.SIGINT
    assert on.settings_restored()


def test_keys_go_one_by_one_and_the_code_comes_back(cli, terminal):
    on = terminal(cli, "run", "-t", "--", "sh", "-c", "stty -echo; echo ready; read a; echo got:$a; exit 6")
    on.until("ready")
    on.type("hello\r")
    on.until("got:hello\r\n")
    assert on.wait() == 6
    assert on.settings_restored()


def test_leaving_a_job_and_coming_back(cli, terminal):
    on = terminal(cli, "run", "-t", "--name", "left", "--", "sh", "-c", "printf '\\033[?1049h\\033[?25l'; echo ready; read a; echo got:$a; sleep 0.05; exit 4")
    on.until("ready")
    number = next(job["id"] for job in cli.json("job", "list") if job["spec"]["name"] == "left")
    on.type("\x10\x11")
    assert on.wait() == 0
    shown = on.text()
    assert f"flotilla attach {number}" in shown
    assert "\x1b[?1049l" in shown and "\x1b[?25h" in shown  # the screen is as it was
    assert on.settings_restored()
    assert cli.job(number)["state"] == "running"

    back = terminal(cli, "attach", str(number))
    back.until("ready")  # what it showed last
    back.type("again\r")
    back.until("got:again")
    assert back.wait() == 4
    assert back.settings_restored()


def test_attach_new_shows_nothing_earlier_after_a_restart_either(own_cli, terminal):
    script = "echo earlier; trap 'touch drawn' WINCH; echo ready; while [ ! -e go ]; do sleep 0.02; done; echo later"
    on = terminal(own_cli, "run", "-t", "--", "sh", "-c", script)
    on.until("ready")
    on.type("\x10\x11")
    assert on.wait() == 0
    number = own_cli.json("job", "list")[0]["id"]
    back = terminal(own_cli, "attach", "--new", str(number))
    until((own_cli.work / "drawn").exists, "it is attached, and had the job draw itself")
    own_cli.run("daemon", "restart")
    (own_cli.work / "go").touch()
    shown = back.until("later")
    assert "earlier" not in shown and "ready" not in shown
    assert back.wait() == 0


def test_closing_the_window_leaves_an_attached_job_running(cli, terminal):
    number = cli.run("submit", "--", "sh", "-c", "echo ready; exec sleep 1000").out.strip()
    on = terminal(cli, "attach", number)
    on.until("ready")
    on.process.send_signal(signal.SIGHUP)
    on.wait()
    assert cli.job(number)["state"] == "running"
    cli.run("job", "cancel", number)


def test_ctrl_c_without_a_terminal_of_its_own(cli, terminal):
    on = terminal(cli, "run", "--", "sh", "-c", "trap 'echo got-int' INT; echo ready; while :; do sleep 0.05; done")
    on.until("ready")
    on.type("\x03")
    on.until("got-int")
    on.type("\x03")
    on.until("canceling job")
    assert on.wait() == 130
    assert on.settings_restored()


def test_detach_keys_work_in_line_mode_too(cli, terminal):
    on = terminal(cli, "run", "--name", "lines", "--", "sh", "-c", "echo ready; read a; echo got:$a; exec sleep 1000")
    on.until("ready")
    on.type("word\n")
    on.until("got:word")
    on.type("\x10\x11")
    assert on.wait() == 0
    assert on.settings_restored()
    number = next(job["id"] for job in cli.json("job", "list") if job["spec"]["name"] == "lines")
    assert cli.job(number)["state"] == "running"
    cli.run("job", "cancel", str(number))


def test_ctrl_d_ends_the_input(cli, terminal):
    on = terminal(cli, "run", "--", "cat")
    on.type("one\n")
    on.until("one\r\n.*one\r\n")
    on.type("\x04")
    assert on.wait() == 0


def test_a_waiting_job_says_why_on_one_line(cli, terminal):
    on = terminal(cli, "run", "--on", "nobody-has-this", "--", "true", columns=60)
    shown = on.until(r"job \d+: [^\r]*nobody-has-this")
    assert "\n" not in shown.lstrip()
    on.type("\x03")
    on.until("canceling job")
    assert on.wait() == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGABRT])
def test_the_terminal_is_restored_when_a_signal_ends_it(cli, terminal, number):
    on = terminal(cli, "run", "-t", "--", "sh", "-c", "echo ready; exec sleep 1000")
    on.until("ready")
    until(on.is_raw, "raw mode")
    on.process.send_signal(number)
    assert on.wait() != 0
    assert on.settings_restored()


def test_colours_and_tables_only_on_a_terminal(cli, terminal):
    cli.run("run", "--", "false", code=1)
    assert "\x1b[" not in cli.run("job", "list").out
    on = terminal(cli, "job", "list")
    assert on.wait() == 0
    assert "COMMAND" in on.text() and "\x1b[31mfailed" in on.text()
    plain = terminal(cli, "job", "list", env={"NO_COLOR": "1"})
    plain.wait()
    assert "COMMAND" in plain.text() and "\x1b[" not in plain.text()


def screen(text: str) -> list[str]:
    """The lines that are left to see of what was written: line feeds, carriage returns, and erasing to the end of the line."""
    lines, column = [""], 0
    for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if token == "\n":
            lines.append("")
        elif token == "\r":
            column = 0
        elif token == "\x1b[K":
            lines[-1] = lines[-1][:column]
        elif not token.startswith("\x1b"):
            lines[-1] = lines[-1][:column].ljust(column) + token + lines[-1][column + len(token):]
            column += len(token)
    return [line.rstrip() for line in lines if line.strip()]


@pytest.mark.parametrize("columns", [100, 24])
def test_a_file_on_its_way_is_shown_on_one_line_that_goes_again(cli, terminal, columns):
    with open(cli.work / f"big{columns}", "wb") as file:
        file.write(os.urandom(32))  # new to the daemon
        file.truncate(64 << 20)
    on = terminal(cli, "run", "-f", f"big{columns}", "--", "echo", "it ran", columns=columns)
    shown = on.until(f"uploading big{columns}: ")
    assert on.wait() == 0
    shown += on.text()
    steps = re.findall(r"uploading [^\r\x1b]*", shown)
    assert len(set(steps)) > 10 and len(set(steps)) == len(steps)
    assert max(map(len, steps)) < columns and "\n" not in shown[:shown.rindex("uploading")]
    if columns == 100:
        assert steps[-1] == "uploading big100: 64 MiB of 64 MiB (100 %)"
        percents = [int(re.search(r"\((\d+) %\)", step)[1]) for step in steps]
        assert percents == sorted(percents)
    assert screen(shown) == ["it ran"]


def test_in_a_pipe_nothing_is_said_of_files_on_their_way(cli):
    (cli.work / "other").write_bytes(os.urandom(1 << 20))
    ran = cli.run("run", "-f", "other", "--", "true")
    assert (ran.out, ran.err) == ("", "")


def test_shell_on_a_pilot(cli, terminal):
    cli.run("run", "--", "true")
    pilot = cli.json("pilot", "list")[0]["id"]
    on = terminal(cli, "shell", str(pilot))
    on.type("echo in-$FLOTILLA_RESOURCE; exit 3\r")
    on.until("in-local")
    assert on.wait() == 3
    assert on.settings_restored()


def test_the_link_with_its_token_is_in_no_programs_arguments(cli, terminal, tmp_path):
    browser = tmp_path / "xdg-open"
    browser.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/making && mv {tmp_path}/making {tmp_path}/arguments\n')
    browser.chmod(0o755)
    on = terminal(cli, "web", env={"DISPLAY": ":0", "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert on.wait() == 0
    until((tmp_path / "arguments").exists, "the browser is started")
    link = on.text().split()[0]
    page = Path((tmp_path / "arguments").read_text().strip())
    assert link.startswith("http://127.0.0.1:") and page.is_absolute()
    assert f'content="0; url={link}"' in page.read_text()
    assert page.stat().st_mode & 0o777 == 0o600 and page.parent.stat().st_mode & 0o777 == 0o700


# ---- waits over a restart of the daemon


@pytest.mark.parametrize("how", [["daemon", "restart"], ["daemon", "stop", "--kill"]])
def test_waits_go_on_when_the_daemon_does(own_cli, terminal, how):
    go = "while [ ! -e go ]; do sleep 0.02; done; exit 3"
    number = own_cli.run("submit", "--", "sh", "-c", go).out.strip()
    pilot = own_cli.run("pilot", "start", "local", "--slots", "1").out.strip()
    waits = [
        (terminal(own_cli, "job", "wait", number), "waiting for job", 1),
        (terminal(own_cli, "submit", "--wait", "--", "sh", "-c", go), "waiting for job", 1),
        (terminal(own_cli, "job", "wait", number, "--timeout", "4s"), "waiting for job", 5),
        (terminal(own_cli, "pilot", "wait", "--ended", pilot), "waiting for pilots", 0),
    ]
    for on, text, _ in waits:
        on.until(text)
    own_cli.run(*how)
    if "--kill" in how:
        own_cli.run("daemon", "start")  # a daemon that was stopped is not started by who waits
    assert waits[2][0].wait() == 5
    (own_cli.work / "go").touch()
    own_cli.run("pilot", "stop", pilot)
    for on, _, code in waits:
        assert on.wait() == code, on.text()


# ---- questions


@pytest.fixture
def ssh_host(own_cli):
    """sshd on loopback with a key of its own, which takes the key of this user's home."""
    sshd = shutil.which("sshd") or "/usr/sbin/sshd"
    if not Path(sshd).exists() or os.getuid() != 0:
        pytest.skip("needs sshd, and root to start it")
    import pwd
    import socket

    folder = own_cli.folder / "sshd"
    folder.mkdir()
    ssh = own_cli.folder / "home" / ".ssh"
    ssh.mkdir(mode=0o700)
    for path in (folder / "host_key", ssh / "id_ed25519"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    shutil.copy(ssh / "id_ed25519.pub", folder / "authorized_keys")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    Path("/run/sshd").mkdir(exist_ok=True)
    (folder / "config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host_key\nPidFile none\nAuthorizedKeysFile {folder}/authorized_keys\n"
        f"StrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nSetEnv HOME={own_cli.folder}/home\n"
    )
    log = open(folder / "log", "wb")
    process = subprocess.Popen([sshd, "-D", "-e", "-f", folder / "config"], stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)

    def listens():
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    until(listens, "sshd takes connections")
    fingerprint = subprocess.run(["ssh-keygen", "-lf", folder / "host_key.pub"], check=True, capture_output=True, text=True).stdout.split()[1]
    own_cli.run("resource", "add", "host", "--location", f"{pwd.getpwuid(os.getuid()).pw_name}@127.0.0.1:{port}")
    yield fingerprint
    own_cli.run("daemon", "stop", "--all", code=None)
    process.terminate()
    process.wait(WAIT_S)
    log.close()


def test_an_unknown_host_key_is_shown_and_accepted_by_the_user_only(own_cli, terminal, ssh_host):
    # Without a terminal it is refused, and what to do is said.
    ran = own_cli.run("resource", "connect", "host", code=None)
    assert ran.code in (1, 4) and ssh_host in ran.err and "--accept-new" in ran.err, ran.err
    no = terminal(own_cli, "resource", "connect", "host")
    no.until(ssh_host.replace("+", r"\+"))
    no.until(r"\[yes/no\] ")
    no.type("no\r")
    assert no.wait() != 0
    assert no.settings_restored()
    yes = terminal(own_cli, "resource", "connect", "host")
    yes.until(r"\[yes/no\] ")
    yes.type("perhaps\r")
    yes.until("yes or no")
    yes.type("yes\r")
    yes.until("host is connected")
    assert yes.wait() == 0
    steps = own_cli.json("resource", "test", "host")
    assert {step["status"] for step in steps} <= {"ok", "warning", "skipped"}, steps
    assert own_cli.json("resource", "show", "host")["hub_state"] == "connected"


def test_accept_new_needs_no_terminal(own_cli, ssh_host):
    number = own_cli.run("pilot", "start", "host", "--slots", "1", "--accept-new").out.strip()
    assert own_cli.run("run", "--on", "host", "--", "sh", "-c", "echo $FLOTILLA_PILOT $FLOTILLA_RESOURCE").out.strip() == f"{number} host"
    assert own_cli.run("logs", "host").out
    assert own_cli.run("logs", number).out


@pytest.mark.parametrize("options", [[], ["-t"]])
def test_keys_at_a_question_are_its_answer_and_not_the_jobs_input(own_cli, terminal, ssh_host, options):
    started = terminal(own_cli, "pilot", "start", "host", "--slots", "1")  # asks too, until it is answered elsewhere
    started.until(r"\[yes/no\] ")
    on = terminal(own_cli, "run", *options, "--on", "host", "--", "sh", "-c", "stty -echo 2>/dev/null; read a; echo got:$a.")
    on.until(r"\[yes/no\] ")
    on.type("perhaps\r")
    on.until("yes or no: ")
    on.type("yes\r")
    on.until("yes\r?\n")
    job = until(lambda: next((job for job in own_cli.json("job", "list") if job["state"] == "running"), None), "the job runs")
    on.type("input\r")
    on.until(r"got:input\.")
    assert on.wait() == 0
    assert own_cli.job(job["id"])["exit"]["code"] == 0
    assert on.settings_restored()
    assert started.wait() == 0
    assert started.settings_restored()


def test_accept_new_of_run_needs_no_terminal(own_cli, ssh_host):
    own_cli.run("pilot", "start", "host", "--slots", "1", "--no-wait")
    assert own_cli.run("run", "--accept-new", "--on", "host", "--", "echo", "there").out == "there\n"


def test_a_pilots_start_goes_on_when_the_daemon_does(own_cli, terminal, ssh_host):
    on = terminal(own_cli, "pilot", "start", "host", "--slots", "1")
    on.until(r"\[yes/no\] ")
    own_cli.run("daemon", "restart")
    on.until(r"\[yes/no\] ")
    on.type("yes\r")
    assert on.wait() == 0, on.text()
    assert on.settings_restored()
