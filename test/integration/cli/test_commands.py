"""Commands against a real daemon with its local pilot."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT, WAIT_S, processes_of, until


def left_of(cli) -> list[int]:
    return processes_of(str(cli.folder))


# ---- without a daemon


def test_wrong_words_are_named_with_the_nearest_right_one(own_cli):
    for words, wrong, meant in (
        (("jbo",), "'jbo'", "'job'"),
        (("job", "lsit"), "'lsit'", "'list'"),
        (("jbo", "--help"), "'jbo'", "'job'"),
        (("job", "lsit", "-h"), "'lsit'", "'list'"),
        (("run", "--slts", "3", "--", "x"), "'--slts'", "'--slots'"),
        (("pilot", "start", "--nods", "2"), "'--nods'", "'--nodes'"),
        (("help", "exit-code"), "'exit-code'", "'exit-codes'"),
    ):
        ran = own_cli.run(*words, code=2)
        assert wrong in ran.err and meant in ran.err, ran.err
        assert ran.out == ""
    for words, named in (
        (("run", "--time", "soon", "--", "x"), "--time"),
        (("run", "--slots", "0", "--", "x"), "--slots"),
        (("run", "--env", "1X=2", "--", "x"), "1X"),
        (("run",), "nothing to run"),
        (("job", "show", "twelve"), "twelve"),
        (("job", "show"), "JOB"),
        (("job", "signal", "NOPE", "1"), "NOPE"),
        (("job", "cancel"), "no job is named"),
        (("resource", "add", "x", "--transport", "telnet"), "telnet"),
        (("run", "--slots", "2", "--threads", "2", "--", "x"), "--threads"),
        (("exec", "--", "ls"), "no job is named"),
        (("job",), "COMMANDS"),
        ((), "COMMANDS"),
        (("run", "-f", "nosuchfile", "--", "x"), "nosuchfile"),
        (("submit", "--from-file", "nosuchfile"), "nosuchfile"),
        (("version", "surplus"), "surplus"),
    ):
        ran = own_cli.run(*words, code=2)
        assert named in ran.err, (words, ran.err)
    # None of this needed a daemon.
    assert own_cli.run("daemon", "status", code=3).out.startswith("The daemon is not running")
    assert json.loads(own_cli.run("daemon", "status", "--json", code=3).out) == {"running": False}


def test_every_command_has_a_page_with_an_example(own_cli):
    paths = own_cli.run("__commands").out.splitlines()
    assert {"run", "pilot start", "job why", "resource test", "daemon restart", "topic exit-codes"} <= set(paths)
    for path in paths:
        if path.startswith("topic "):
            assert own_cli.run("help", path.split()[1]).out
            continue
        page = own_cli.run(*path.split(), "--help").out
        assert f"flotilla {path} - " in page and "SYNOPSIS" in page and "DESCRIPTION" in page
        assert "EXAMPLES" in page or path == "version", f"{path} has no example"
        assert page == own_cli.run("help", *path.split()).out
        assert max(len(line) for line in page.split("EXAMPLES")[0].splitlines()) <= 100


def test_the_documentation_is_what_help_says(own_cli):
    ran = subprocess.run(["python3", ROOT / "client/cli/make_docs.py", "--check", own_cli.program], env=own_cli.environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_completion_scripts_are_understood_by_their_shells(own_cli):
    script = own_cli.run("completion", "bash").out
    asked = (
        script
        + '\nCOMP_WORDS=("$FLOTILLA" job ca); COMP_CWORD=2; _flotilla; echo "${COMPREPLY[*]}"'
        + '\nCOMP_WORDS=("$FLOTILLA" resource add x --transport = o); COMP_CWORD=6; _flotilla; echo "${COMPREPLY[*]}"'
    )
    ran = subprocess.run(["bash", "-c", asked], env=own_cli.environment | {"FLOTILLA": str(own_cli.program)}, capture_output=True, text=True)
    assert ran.stdout.splitlines() == ["cancel", "openssh"], ran.stderr
    for shell in ("zsh", "fish"):
        assert "__complete" in own_cli.run("completion", shell).out
    own_cli.run("completion", "tcsh", code=2)
    own_cli.run("daemon", "status", code=3)  # a key that was pressed starts nothing


# ---- the daemon


def test_a_daemon_that_cannot_start_says_why(own_cli):
    (own_cli.folder / "config.toml").write_text("nonsense = 1\n")
    ran = own_cli.run("daemon", "start", code=4)
    assert "nonsense" in ran.err
    ran = own_cli.run("run", "--", "true", code=125)
    assert "nonsense" in ran.err
    (own_cli.folder / "config.toml").unlink()


def test_many_commands_at_once_start_one_daemon(own_cli):
    running = [own_cli.start("daemon", "start") for _ in range(8)]
    for process in running:
        out, err = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0, err
    log = (own_cli.folder / "state" / "logs" / "daemon.log").read_text()
    pid = own_cli.daemon_pid()
    assert log.count(f"(pid {pid})") == 1 and log.count("(pid ") == 1


def test_stop_start_restart(own_cli):
    own_cli.run("daemon", "start")
    first = own_cli.daemon_pid()
    own_cli.run("daemon", "restart")
    second = own_cli.daemon_pid()
    assert first != second
    own_cli.run("daemon", "stop")
    own_cli.run("daemon", "status", code=3)
    own_cli.run("daemon", "stop")
    assert own_cli.run("run", "--", "echo", "back").out == "back\n"
    own_cli.run("daemon", "stop", "--kill")
    own_cli.run("daemon", "status", code=3)


def test_stop_all_returns_when_nothing_is_left(own_cli):
    """With a local pilot that has just been begun, with one that runs, and without a daemon, which need not start any."""
    for wait in (False, True, True):
        own_cli.run("daemon", "start")
        if wait:
            own_cli.run("run", "--", "true")
        own_cli.run("daemon", "stop", "--all")
        assert not left_of(own_cli)
    before = own_cli.json("pilot", "list", "--ended")
    own_cli.run("daemon", "stop", "--all")
    own_cli.run("daemon", "stop", "--all")
    assert not left_of(own_cli)
    # The list starts the daemon, and that a local pilot.
    assert len(own_cli.json("pilot", "list", "--ended")) == len(before) + 1


def begin_to_stop(own_cli) -> subprocess.Popen:
    """`daemon stop --all`, under way, which takes as long as a job has that does not heed TERM."""
    own_cli.run("submit", "--on", "local", "--", "sh", "-c", "trap '' TERM; echo $$ > pid; while :; do sleep 0.1; done")
    until(lambda: (own_cli.work / "pid").exists(), "it runs")
    stop = own_cli.start("daemon", "stop", "--all")
    until(lambda: "is being stopped" in own_cli.run("submit", "--on", "nowhere", "--", "true", code=None).err, "new work is refused")
    return stop


def test_while_all_is_being_stopped_nothing_new_begins(own_cli):
    first = begin_to_stop(own_cli)
    daemon = own_cli.daemon_pid()
    others = [own_cli.start(*words) for words in (("pilot", "start", "local"), ("run", "--", "true"), ("daemon", "stop", "--all"))]
    said = [process.communicate(timeout=WAIT_S)[1] for process in others]
    assert b"is being stopped" in said[0] and b"is being stopped" in said[1], (said, daemon)
    assert others[2].returncode == 0, said
    assert first.wait(WAIT_S) == 0, first.stderr.read()
    assert not left_of(own_cli)


def test_stop_all_of_a_daemon_that_dies_meanwhile_has_failed(own_cli):
    stop = begin_to_stop(own_cli)
    os.kill(own_cli.daemon_pid(), signal.SIGKILL)
    err = stop.communicate(timeout=WAIT_S)[1]
    assert stop.returncode != 0 and b"before everything had" in err, err


def test_a_configuration_that_is_named_has_to_be_there(own_cli):
    (own_cli.folder / "config.toml").unlink()
    ran = own_cli.run("daemon", "start", code=None)
    assert ran.code != 0 and "config.toml" in ran.err and "FLOTILLA_CONFIG" in ran.err, ran.err
    (own_cli.folder / "config.toml").touch()


def test_other_slots_of_the_local_pilot_after_a_restart(own_cli):
    own_cli.run("run", "--", "true")
    (own_cli.folder / "config.toml").write_text("[local_pilot]\nslots = 7\n")
    own_cli.run("daemon", "restart")
    until(lambda: [pilot["slots"] for pilot in own_cli.json("pilot", "list")] == [7], "one with 7 slots, and no other")
    (own_cli.folder / "config.toml").write_text("[local_pilot]\nstart = false\n")
    own_cli.run("daemon", "restart")
    until(lambda: own_cli.json("pilot", "list") == [], "none")


def test_a_local_pilot_that_cannot_start_is_not_started_in_a_circle(own_cli):
    agent = own_cli.folder / "agent"
    agent.write_text("#!/bin/sh\ncat > /dev/null\necho no luck >&2\nexit 1\n")
    agent.chmod(0o755)
    own_cli.environment["FLOTILLA_AGENT"] = str(agent)
    own_cli.run("daemon", "start")
    # Once more at once, then after 10 s; the first failure is forgotten.
    ended = until(lambda: (pilots := own_cli.json("pilot", "list", "--ended")) and pilots[-1]["id"] == 2 and pilots[-1]["state"] == "failed" and pilots,
                  "the second has failed")
    assert "no luck" in ended[-1]["message"]
    until(lambda: [pilot["id"] for pilot in own_cli.json("pilot", "list", "--ended")] == [2], "only the last is kept")


def test_a_pilots_start_says_soon_why_its_front_end_is_not_reached(own_cli):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and nobody listens
        own_cli.run("resource", "add", "far", "--location", f"127.0.0.1:{nobody.getsockname()[1]}")
        waiting = own_cli.start("pilot", "start", "far")
        begin = time.monotonic()
        said = waiting.stderr.readline().decode()
        assert time.monotonic() - begin < 10
        assert re.search(r"pilot \d+ on far waits: .*Connection refused.*tried again", said), said
        waiting.send_signal(signal.SIGINT)
        waiting.communicate(timeout=20)
        (far,) = [pilot for pilot in own_cli.json("pilot", "list") if pilot["spec"]["resource"] == "far"]
        assert far["state"] == "submitted" and "Connection refused" in far["message"]
        own_cli.run("pilot", "stop", str(far["id"]))


def test_a_daemon_of_another_build_is_not_spoken_to(own_cli, tmp_path):
    own_cli.run("daemon", "start")
    program = own_cli.program.read_bytes()
    build = own_cli.run("version").out.split()[1]
    other = build[:-1] + ("0" if build[-1] != "0" else "1")
    changed = tmp_path / "flotilla"
    changed.write_bytes(program.replace(build.encode(), other.encode()))
    changed.chmod(0o755)
    original, own_cli.program = own_cli.program, changed
    try:
        ran = own_cli.run("job", "list", code=4)
        assert build in ran.err and other in ran.err and "flotilla daemon restart" in ran.err
        assert "flotilla daemon restart" in own_cli.run("daemon", "status").out
    finally:
        own_cli.program = original


# ---- run


def test_run_is_like_running_it_here(cli):
    ran = cli.run("run", "--", "sh", "-c", "echo out; echo err >&2; exit 7", code=7)
    assert (ran.out, ran.err) == ("out\n", "err\n")
    assert cli.run("run", "cat", "-", input=b"through\x00\xff\n").out.startswith("through\x00")
    assert cli.run("run", "--", "sh", "-c", "kill -9 $$", code=137).err.startswith("flotilla: job ")
    assert cli.run("run", "ls", "-d", "--", "/").out == "/\n"  # its options are its own
    assert cli.run("run", "-eA=1", "--env", "B=x y", "-e", "HOME", "--", "sh", "-c", 'echo "$A,$B,$HOME"').out == f"1,x y,{cli.folder}/home\n"
    assert "cannot run" in cli.run("run", "--", "no-such-program", code=None).err
    assert cli.run("run", "--threads", "2", "--", "sh", "-c", "echo $OMP_NUM_THREADS").out == "2\n"


def test_run_stands_in_the_folder_where_it_was_typed(cli):
    assert cli.run("run", "--", "pwd").out == f"{cli.work}\n"
    (cli.work / "sub").mkdir(exist_ok=True)
    assert cli.run("run", "--cwd", "sub", "--", "pwd").out == f"{cli.work}/sub\n"
    assert str(cli.work) not in cli.run("run", "--private-folder", "--", "pwd").out


def test_run_moves_much_in_both_directions(cli):
    data = bytes(range(256)) * (20 * 4096)  # 20 MiB
    process = cli.start("run", "--", "cat", stdin=subprocess.PIPE)
    out, err = process.communicate(data, timeout=WAIT_S)
    assert process.returncode == 0, err
    assert hashlib.sha256(out).hexdigest() == hashlib.sha256(data).hexdigest()


def test_without_a_terminal_too_a_wait_tells_why_once(cli):
    waiting = cli.start("run", "--on", "nobody-has-this", "--", "true")
    assert b"waits: no pilot has the label 'nobody-has-this'" in waiting.stderr.readline()
    waiting.terminate()
    assert waiting.wait(WAIT_S) != 0
    assert b"waits" not in waiting.stderr.read()


def test_limits_of_time(cli):
    ran = cli.run("run", "--time", "200ms", "--", "sleep", "1000", code=124)
    assert "time" in ran.err
    assert cli.run("run", "--queue-timeout", "200ms", "--on", "nowhere-at-all", "--", "true", code=None).code in (124, 125)


def test_a_reader_that_goes_away_is_no_error(cli):
    process = cli.start("run", "--", "sh", "-c", "while :; do echo yes; done")
    process.stdout.read(100)
    process.stdout.close()
    assert process.wait(WAIT_S) == 128 + signal.SIGPIPE
    assert process.stderr.read() == b""
    listed = cli.start("job", "list", "--json")
    listed.stdout.close()
    listed.wait(WAIT_S)
    assert listed.stderr.read() == b""


def test_signals_go_to_the_job_and_two_interrupts_cancel_it(cli):
    script = "trap 'echo got-int' INT; trap 'echo got-usr1' USR1; echo ready; while :; do sleep 0.05; done"
    process = cli.start("run", "--", "sh", "-c", script)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == b"got-usr1\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == b"got-int\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(WAIT_S) == 130
    assert b"canceling job" in process.stderr.read()

    ends = cli.start("run", "--", "sh", "-c", "echo ready; exec sleep 1000")
    assert ends.stdout.readline() == b"ready\n"
    ends.send_signal(signal.SIGINT)
    assert ends.wait(WAIT_S) == 128 + signal.SIGINT
    ends.communicate()


def test_a_job_ends_with_its_client(cli):
    process = cli.start("run", "--name", "orphan", "--", "sh", "-c", "echo ready; exec sleep 1000")
    assert process.stdout.readline() == b"ready\n"
    number = next(job["id"] for job in cli.json("job", "list") if job["spec"]["name"] == "orphan")
    process.kill()
    process.communicate()
    assert cli.until_state(number, "canceled")


def opened(process: subprocess.Popen, path) -> bool:
    links = []
    for fd in Path(f"/proc/{process.pid}/fd").iterdir():
        try:
            links.append(os.readlink(fd))
        except OSError:
            continue
    return str(path) in links


def test_ctrl_c_while_files_are_sent(cli):
    with open(cli.work / "huge", "wb") as file:
        file.truncate(1 << 40)  # takes longer than any test to read
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            process = cli.start("run", "--name", "never", "-f", "huge", "--", "true")
            until(lambda: opened(process, cli.work / "huge"), "it reads the file")
            process.send_signal(number)
            assert process.wait(WAIT_S) == 130
            assert b"nothing runs" in process.stderr.read()
    finally:
        (cli.work / "huge").unlink()
    assert "never" not in [job["spec"]["name"] for job in cli.json("job", "list")]


def test_ctrl_c_while_the_daemon_starts(own_cli):
    import fcntl

    own_cli.run("daemon", "start")
    lock = Path(own_cli.json("daemon", "status")["socket"]).parent / "start.lock"
    own_cli.run("daemon", "stop")
    with open(lock) as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as if another command were starting it, for long
        process = own_cli.start("run", "--", "true")
        until(lambda: opened(process, lock), "it waits for the daemon")
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == -signal.SIGINT


def test_files_are_sent_along(cli):
    (cli.work / "data.txt").write_text("content\n")
    (cli.work / "tool").write_text("#!/bin/sh\ncat data.txt in/empty\n")
    (cli.work / "tool").chmod(0o755)
    (cli.work / "empty").touch()
    ran = cli.run("run", "-f", "data.txt", "-f", "tool", "-f", "in/empty=empty", "--", "./tool")
    assert ran.out == "content\n"


# ---- submit, job


def test_submit_wait_logs(cli):
    number = cli.run("submit", "--name", "made", "--", "sh", "-c", "echo one; echo two >&2; exit 3").out.strip()
    assert number.isdigit()
    assert cli.run("job", "wait", number, code=1).out == ""
    logs = cli.run("job", "logs", number)
    assert (logs.out, logs.err) == ("one\n", "two\n")
    assert cli.run("job", "logs", "--stderr", number).out == ""
    job = cli.job(number)
    assert (job["state"], job["exit"]["kind"], job["exit"]["code"], job["spec"]["name"]) == ("failed", "exited", 3, "made")
    assert "code 3" in cli.run("job", "why", number).out
    assert cli.json("job", "why", number)["sentence"]
    shown = cli.run("job", "show", number).out
    assert "failed" in shown and "two" in shown
    heading, *lines = cli.run("job", "list").out.splitlines()  # in a pipe as on a terminal, but never cut
    assert heading.split() == ["ID", "STATE", "LABEL", "PILOT", "HOST", "TIME", "COMMAND"]
    fields = next(fields for line in lines if (fields := line.split())[0] == number)
    assert fields[1] == "failed" and "made" in fields
    assert str(number) in cli.run("job", "list", "--all", "--state", "failed").out
    assert cli.run("job", "list", "--state", "finished", "--limit", "1").out.count("\n") <= 2  # with the heading
    (cli.work / "in.txt").write_text("from a file\n")
    fed = cli.run("submit", "--stdin", "in.txt", "--wait", "--", "cat").out.strip()
    assert cli.run("job", "logs", fed).out == "from a file\n"


def test_jobs_from_a_file(cli):
    (cli.work / "good.toml").write_text('[[job]]\nargv = ["echo", "a"]\n[[job]]\nshell = "echo $X"\nenv = { X = "b" }\ntime_limit = "1min"\n')
    numbers = json.loads(cli.run("submit", "--json", "--from-file", "good.toml").out)
    assert len(numbers) == 2
    cli.run("job", "wait", *map(str, numbers))
    assert [cli.run("job", "logs", str(number)).out for number in numbers] == ["a\n", "b\n"]
    (cli.work / "bad.toml").write_text('lable = "x"\nargv = "ls"\nslots = 0\n')
    ran = cli.run("submit", "--from-file", "bad.toml", code=2)
    assert "line 1: unknown key 'lable'; did you mean 'label'?" in ran.err
    assert "line 2" in ran.err and "line 3" in ran.err
    # What would be passed over is refused by name.
    for words in (("--slots", "2"), ("--on", "local"), ("--stdin", "good.toml")):
        assert words[0] in cli.run("submit", "--from-file", "good.toml", *words, code=2).err


def test_a_file_of_many_jobs_is_read_once(cli):
    import time

    (cli.work / "large").write_bytes(b"x" * (64 << 20))
    for count in (1, 60):
        (cli.work / f"{count}.toml").write_text('[[job]]\nargv = ["true"]\nlabel = "nobody-has-this"\nfiles = ["large"]\n' * count)

    def took(count: int) -> float:
        begin = time.monotonic()
        numbers = cli.run("submit", "--from-file", f"{count}.toml").out.split()
        end = time.monotonic()
        cli.run("job", "cancel", *numbers)
        return end - begin

    took(1)  # it goes to the daemon
    assert took(60) < 10 * min(took(1) for _ in range(3))


def test_what_a_message_cannot_hold_is_refused(cli):
    assert "argv[1] is not UTF-8: 'caf\\xe9'" in cli.run("run", "--", "echo", b"caf\xe9", code=2).err
    assert "argv[0]" in cli.run("submit", "--", b"\xff", code=2).err
    assert "variable A" in cli.run("run", "-e", b"A=\xff", "--", "true", code=2).err
    folder = os.fsencode(cli.work) + b"/caf\xe9"
    os.mkdir(folder)
    assert "the folder where this runs is not UTF-8" in cli.run("run", "--", "true", cwd=folder, code=2).err
    (cli.work / "much").write_bytes(b"x" * (30 << 20))
    (cli.work / "much.toml").write_text('[[job]]\nargv = ["cat"]\nstdin_file = "much"\n' * 3)
    ran = cli.run("submit", "--from-file", "much.toml", code=1)
    assert "90 MiB" in ran.err and "input file" in ran.err


def test_follow_signal_cancel(cli):
    number = cli.run("submit", "--", "sh", "-c", "trap 'echo caught; exit 4' USR1; echo ready; while :; do sleep 0.05; done").out.strip()
    following = cli.start("job", "logs", "-f", number)
    assert following.stdout.readline() == b"ready\n"
    assert "running" in cli.run("job", "list", "--state", "running").out
    cli.run("job", "wait", "--running", number)
    assert cli.run("job", "wait", number, "--timeout", "100ms", code=5).err
    cli.run("job", "signal", "usr1", number)
    assert following.stdout.readline() == b"caught\n"
    assert following.wait(WAIT_S) == 0
    following.communicate()
    cli.run("job", "wait", number, code=1)
    other = cli.run("submit", "--", "sleep", "1000").out.strip()
    cli.run("job", "cancel", other)
    assert cli.until_state(other, "canceled")["exit"]["kind"] == "canceled_by_user"
    # Of jobs that have ended it is said that they have.
    assert re.search(rf"job {number} had ended already: .*code 4\n", cli.run("job", "cancel", number).err)
    ran = cli.run("attach", number, code=4)
    assert ran.out == "ready\ncaught\n" and re.search(rf"job {number} has ended: .*code 4\n", ran.err)


def test_what_is_not_there_is_said(cli):
    for words in (("job", "show", "999999"), ("job", "logs", "999999"), ("job", "why", "999999"), ("pilot", "show", "999999"), ("resource", "show", "nowhere")):
        ran = cli.run(*words, code=3)
        assert "999999" in ran.err or "nowhere" in ran.err
    assert cli.run("attach", "999999", code=125).err
    assert cli.run("exec", "999999", "--", "true", code=None).code != 0


def test_exec_runs_beside_a_job(cli):
    number = cli.run("submit", "--private-folder", "--env", "MARK=here", "--", "sh", "-c", "echo made > file; exec sleep 1000").out.strip()
    cli.run("job", "wait", "--running", number)
    until(lambda: cli.run("exec", number, "--", "cat", "file", code=None).out == "made\n", "the job made its file")
    assert cli.run("exec", number, "sh", "-c", "echo $MARK; exit 5", code=5).out == "here\n"
    assert cli.run("exec", number, "--", "cat", input=b"in\n").out == "in\n"
    cli.run("job", "cancel", number)


def test_exec_on_all_jobs_of_a_label(cli):
    numbers = sorted(int(cli.run("submit", "--on", "local", "-e", f"WHO={i}", "--", "sleep", "1000").out) for i in range(2))
    cli.run("job", "wait", "--running", *map(str, numbers))
    ran = cli.run("exec", "--on", "local", "--", "sh", "-c", "echo I am $WHO")
    assert sorted(ran.out.splitlines()) == [f"{number}: I am {i}" for i, number in enumerate(numbers)]
    cut = cli.run("exec", "--on", "local", "--", "sh", "-c", "head -c 200000 /dev/zero | tr '\\0' x").out.splitlines()
    assert len(cut) == 8 and max(map(len, cut)) < 65536 + 20 and sum(line.count("x") for line in cut) == 400_000
    endless = cli.start("exec", "--on", "local", "--", "sh", "-c", "while :; do echo more; sleep 0.02; done")
    assert endless.stdout.readline().endswith(b": more\n")
    endless.stdout.close()
    assert endless.wait(WAIT_S) == 128 + signal.SIGPIPE
    until(lambda: {job["id"] for job in cli.json("job", "list", "--state", "running")} == set(numbers), "its commands have ended")
    cli.run("exec", "--on", "local", "--", "false", code=1)
    cli.run("exec", "--on", "no-such-label", "--", "true", code=125)
    cli.run("job", "cancel", *map(str, numbers))


# ---- pilots, resources, logs


def test_pilots(cli):
    pilots = cli.json("pilot", "list")
    assert pilots[0]["spec"]["resource"] == "local" and pilots[0]["state"] in ("running", "starting")
    number = cli.run("pilot", "start", "local", "--slots", "1", "--label", "extra", "--time", "1h").out.strip()
    pilot = cli.json("pilot", "show", number)
    assert (pilot["state"], pilot["slots"], pilot["spec"]["label"], pilot["spec"]["time_ms"]) == ("running", 1, "extra", 3_600_000)
    assert cli.run("run", "--on", "extra", "--", "sh", "-c", "echo $FLOTILLA_PILOT").out.strip() == number
    assert cli.run("shell", number, "--", "echo", "there").out == "there\n"
    assert "extra" in cli.run("pilot", "list", "--label", "extra").out
    cli.run("pilot", "wait", number)
    cli.run("pilot", "drain", number)
    cli.run("pilot", "wait", "--ended", number)
    assert cli.json("pilot", "show", number)["state"] == "finished"
    assert number not in [line.split()[0] for line in cli.run("pilot", "list").out.splitlines()]
    assert number in [line.split()[0] for line in cli.run("pilot", "list", "--ended").out.splitlines()]
    ran = cli.run("pilot", "start", "local", "--no-wait", "--accept-new", code=2)
    assert "--accept-new" in ran.err and "resource connect local" in ran.err
    cli.run("pilot", "start", "nowhere", code=3)
    cli.run("pilot", "stop", code=2)


def test_resources(cli):
    cli.run("resource", "add", "desk", "--location", "me@desk.invalid:2222", "--env", "A=1", "--setup", "ulimit -c 0", "--host", "n1", "--host", "n2")
    shown = cli.json("resource", "show", "desk")
    assert shown["spec"]["location"] == "me@desk.invalid:2222" and shown["spec"]["hosts"] == ["n1", "n2"] and shown["spec"]["env"] == {"A": "1"}
    assert cli.run("resource", "add", "desk", "--location", "me@other.invalid", code=None).code != 0
    cli.run("resource", "add", "desk", "--location", "me@other.invalid", "--replace")
    assert "me@other.invalid" in cli.run("resource", "list").out
    (cli.work / "r.toml").write_text('name = "two"\nlocation = "u@two.invalid"\ngateway = "desk"\n')
    cli.run("resource", "add", "--from-file", "r.toml")
    assert "--scratch-dir" in cli.run("resource", "add", "--from-file", "r.toml", "--scratch-dir", "/x", code=2).err
    cli.run("resource", "remove", "two")
    cli.run("resource", "remove", "desk")
    assert [resource["spec"]["name"] for resource in cli.json("resource", "list")] == ["local"]
    assert cli.run("resource", "add", "bad name", "--location", "x", code=2).err


def test_logs_and_web(cli):
    assert "sockets in" in cli.run("logs", "daemon").out
    following = cli.start("logs", "daemon", "-f")
    assert following.stdout.readline()
    following.kill()
    following.communicate()
    assert cli.run("logs", "no-such-thing", code=3).err
    ran = cli.run("web", code=None)
    assert ran.out.startswith("http://127.0.0.1:") if ran.code == 0 else "web page" in ran.err


def test_completion_asks_the_daemon(cli):
    cli.run("daemon", "start")
    assert "local\tthis machine" in cli.run("__complete", "pilot", "start", "").out
    assert "local" in cli.run("__complete", "run", "--on", "lo").out
    assert "--on=local" in cli.run("__complete", "run", "--on=lo").out
    number = cli.run("submit", "--", "true").out.strip()
    assert f"{number}\t" in cli.run("__complete", "job", "show", number[0]).out
    assert ":file" in cli.run("__complete", "run", "--", "").out
    assert "--slots" in cli.run("__complete", "run", "--s").out
    assert cli.run("__complete", "job", "list", "--state", "q").out.startswith("queued")


def test_commands_that_messages_name_are_understood(cli):
    """In hints, help, and on the page: `flotilla pilot list --ended` has to be something that can be typed."""
    words_of: dict[tuple[str, ...], set[str]] = {}

    def words(*command: str) -> set[str]:
        if command not in words_of:
            words_of[command] = {line.split("\t")[0] for line in cli.run("__complete", *command, "").out.splitlines()}
        return words_of[command]

    wrong, seen = [], 0
    places = [path for folder in ("client/amuse", "client/cli", "client/lib", "client/python/src", "daemon", "hub", "pilot", "proto/base", "web/src")
              for path in sorted((ROOT / folder).rglob("*")) if path.suffix in (".cpp", ".hpp", ".py", ".ts", ".tsx")]
    for path in places:
        for match in re.finditer(r"\bflotilla ((?:[a-z]+|--[a-z-]+|\{[^}]*\}|[A-Z]+)(?: (?:[a-z]+|-[a-z]|--[a-z-]+|\{[^}]*\}|[A-Z]+))*)", path.read_text()):
            typed = match[1].split()
            if typed[0] not in words():
                continue  # prose
            command = [typed.pop(0)]
            if command[0] in ("amuse", "daemon", "job", "pilot", "resource") and typed and typed[0].islower() and typed[0].isalpha():
                command.append(typed.pop(0))
                if command[1] not in words(command[0]):
                    wrong.append(f"{path.relative_to(ROOT)}: {match[0]}")
                    continue
            seen += 1
            help_text = None
            for word in typed:
                if not word.startswith("--") or word == "--":
                    continue
                help_text = help_text or cli.run(*command, "--help").out
                if not re.search(rf"(?<![\w-]){word}(?![\w-])", help_text):
                    wrong.append(f"{path.relative_to(ROOT)}: {match[0]}")
    assert not wrong
    assert seen > 50


# ---- the daemon goes away


@pytest.mark.parametrize("how", ["killed", "restarted"])
def test_run_goes_on_when_the_daemon_is(own_cli, how):
    script = "i=0; while [ $i -lt 400 ]; do i=$((i+1)); echo line $i; if [ $i = 50 ]; then while [ ! -e go ]; do sleep 0.02; done; fi; done; exit 9"
    process = own_cli.start("run", "--", "sh", "-c", script)
    assert process.stdout.readline() == b"line 1\n"
    if how == "killed":
        os.kill(own_cli.daemon_pid(), signal.SIGKILL)
    else:
        own_cli.run("daemon", "restart")
    (own_cli.work / "go").touch()
    out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 9, err
    assert out.decode().split("\n") == [f"line {i}" for i in range(2, 401)] + [""]


def give(process, data):
    """All of it, and the end: a pipe without a buffer may take less than it is given at once."""
    left = memoryview(data)
    while left:
        left = left[process.stdin.write(left):]
    process.stdin.close()


def test_input_of_a_job_that_waits_outlives_the_daemon(own_cli):
    """It was with the daemon alone: the next one gets it from the client."""
    own_cli.run("pilot", "start", "local", "--slots", "1", "--label", "narrow")
    blocker = own_cli.start("run", "--on", "narrow", "--", "sh", "-c", "echo ready; while [ ! -e free ]; do sleep 0.02; done")
    assert blocker.stdout.readline() == b"ready\n"
    data = bytes(range(256)) * 400
    fed = own_cli.start("run", "--on", "narrow", "--", "sha256sum", stdin=subprocess.PIPE)
    give(fed, data)
    fed.stdin = None
    until(lambda: any(job["spec"]["command"]["argv"] == ["sha256sum"] for job in own_cli.json("job", "list")), "it waits")
    os.kill(own_cli.daemon_pid(), signal.SIGKILL)
    (own_cli.work / "free").touch()
    out, err = fed.communicate(timeout=WAIT_S)
    assert fed.returncode == 0, err
    assert out.decode().split()[0] == hashlib.sha256(data).hexdigest()
    assert blocker.wait(WAIT_S) == 0


def test_input_under_way_outlives_the_daemon(own_cli):
    """The daemon is killed while much of it is in the daemon, in the pilot and in the job's pipe."""
    data = bytes(range(256)) * (20 * 4096)  # 20 MiB
    fed = own_cli.start("run", "--", "sh", "-c", "echo ready; while [ ! -e go ]; do sleep 0.02; done; exec sha256sum", stdin=subprocess.PIPE)
    assert fed.stdout.readline() == b"ready\n"
    writer = threading.Thread(target=give, args=(fed, data))
    writer.start()
    for _ in range(2):
        os.kill(own_cli.daemon_pid(), signal.SIGKILL)
        until(lambda: own_cli.run("daemon", "status", code=None).code == 0, "the client starts it again")
    (own_cli.work / "go").touch()
    out = fed.stdout.read()
    assert fed.wait(WAIT_S) == 0, fed.stderr.read()
    writer.join()
    assert out.decode().split()[0] == hashlib.sha256(data).hexdigest()


def test_run_is_bound_to_its_job_again_after_a_restart(own_cli):
    process = own_cli.start("run", "--", "sh", "-c", "echo ready; while [ ! -e go ]; do sleep 0.02; done; echo on; exec sleep 1000")
    assert process.stdout.readline() == b"ready\n"
    os.kill(own_cli.daemon_pid(), signal.SIGKILL)
    (own_cli.work / "go").touch()
    assert process.stdout.readline() == b"on\n"      # it is with the new daemon
    job = next(job for job in own_cli.json("job", "list") if job["state"] == "running")
    process.kill()
    process.wait(WAIT_S)
    own_cli.run("job", "wait", str(job["id"]), code=None)
    ended = own_cli.json("job", "show", str(job["id"]))
    ended = ended[0] if isinstance(ended, list) else ended
    assert ended["state"] == "canceled" and "client went away" in ended["message"], ended


def test_a_stopped_daemon_is_not_started_by_who_is_attached(own_cli):
    process = own_cli.start("run", "--", "sh", "-c", "echo ready; exec sleep 1000")
    assert process.stdout.readline() == b"ready\n"
    own_cli.run("daemon", "stop")
    assert process.wait(WAIT_S) == 125
    err = process.communicate()[1].decode()
    assert "goes on" in err and "flotilla attach" in err
    own_cli.run("daemon", "status", code=3)
    job = next(job for job in own_cli.json("job", "list") if job["state"] == "running")
    own_cli.run("job", "cancel", str(job["id"]))


@pytest.mark.skipif(os.geteuid() != 0, reason="a disk of its own is mounted by root only")
def test_output_waits_while_the_disk_is_full(own_cli):
    own_cli.run("daemon", "start")
    status = own_cli.json("daemon", "status")
    disk = Path(status["state_dir"]) / "output"
    disk.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], check=True)
    try:
        long = own_cli.run("submit", "--", "seq", "400000").out.strip()  # more than may be under way
        short = own_cli.run("submit", "--", "sh", "-c", "seq 30000; seq 10 >&2").out.strip()
        log = Path(status["log_file"])
        for job in (long, short):
            until(lambda: f"keep the output of job {job}:" in log.read_text(), f"the disk full for job {job}")
        reader = own_cli.start("job", "logs", "-f", long)
        subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
        out, err = reader.communicate(timeout=WAIT_S)
        assert out.decode() == "".join(f"{i}\n" for i in range(1, 400001))
        assert own_cli.run("job", "logs", "-f", short).out == "".join(f"{i}\n" for i in range(1, 30001))
        assert own_cli.job(long)["state"] == "finished"
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_large_input_file_passes_through_the_daemon_in_pieces(own_cli):
    size = 400 << 20
    with open(own_cli.work / "large", "wb") as file:
        file.truncate(size)  # holes: reads as zeros, and takes no disk here
    assert own_cli.run("run", "-f", "large", "--", "sh", "-c", "wc -c < large").out.split() == [str(size)]
    # The same content again needs no transfer: another one, with the daemon's high-water mark set anew.
    with open(own_cli.work / "large", "r+b") as file:
        file.write(b"other")
    pid = own_cli.daemon_pid()
    own_cli.run("run", "--", "true")
    Path(f"/proc/{pid}/clear_refs").write_text("5")

    def megabytes(field):
        return int(next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(field)).split()[1]) >> 10

    before = megabytes("VmRSS:")
    own_cli.run("run", "-f", "large", "--", "sh", "-c", "head -c 5 large")
    assert megabytes("VmHWM:") - before < 100


def test_what_other_programs_say_may_be_of_any_encoding(cli):
    """In messages text is UTF-8; what is not, in error output, must not stop them."""
    cli.run("resource", "add", "odd", "--setup", "printf 'caf\\351 \\377' >&2; exit 4")
    failed = cli.run("pilot", "start", "odd", "--slots", "1", code=1)
    assert "exit code 4" in failed.err and "caf\ufffd \ufffd" in failed.err
    [pilot] = [p for p in cli.json("pilot", "list", "--ended") if p["spec"]["resource"] == "odd"]
    assert pilot["state"] == "failed"


def test_words_that_are_not_utf8_are_refused_by_name(cli):
    refused = cli.run("resource", "add", "odder", "--setup", os.fsdecode(b"caf\xe9"), code=2)
    assert "setup[0] is not UTF-8: 'caf\\xe9'" in refused.err
    assert "odder" not in [r["spec"]["name"] for r in cli.json("resource", "list")]
