"""The Python client against a real daemon with its local pilot."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import flotilla
import flotilla.aio
from flotilla import ExitKind, InputFile, JobState

WORKER_PY = Path(flotilla.__file__).with_name("worker.py")

WORKER = b"""#!/usr/bin/env python3
import os, signal, sys
from worker import WorkerProgram
program = WorkerProgram()

@program.function("int32 a, int32 b -> int32 sum")
def add(a, b):
    return a + b

@program.array_function("float64 x -> float64 twice")
def twice(x):
    return [2 * each for each in x]

@program.function("int32 code ->")
def leave(code):
    print("the last words", file=sys.stderr, flush=True)
    os._exit(code)

@program.function("->")
def fall():
    os.kill(os.getpid(), signal.SIGSEGV)

raise SystemExit(program.run())
"""


def worker_files():
    return [InputFile(name="code.py", content=WORKER, mode=0o755), WORKER_PY]


def start(daemon, **more):
    return daemon.start_worker("code.py", files=worker_files(), **more)


# ---- the daemon


def test_the_daemon_is_started_and_tells_of_itself(daemon, shared_place):
    info = daemon.info()
    assert info.pid > 0 and info.socket.startswith(shared_place.environment["FLOTILLA_RUNTIME_DIR"])
    assert info.started is not None and info.started.tzinfo is not None
    assert "local" in [each.spec.name for each in daemon.resources()]


def test_no_daemon_is_an_error_that_says_what_to_do(place):
    with pytest.raises(flotilla.UnavailableError) as raised:
        flotilla.Daemon(start=False)
    assert raised.value.retry and "flotilla daemon start" in str(raised.value)


def test_a_program_that_is_not_there_is_named(place):
    with pytest.raises(flotilla.UnavailableError, match="no-such-flotilla"):
        flotilla.Daemon(program="/no-such-flotilla")


def test_a_closed_daemon_says_so(shared_place, daemon):
    other = flotilla.Daemon()
    job = other.submit(["true"])
    other.close()
    with pytest.raises(flotilla.FailedPreconditionError, match="closed"):
        job.info()
    assert daemon.job(job.id).wait(30).state is JobState.FINISHED


# ---- resources and pilots


def test_resources_are_added_shown_replaced_and_removed(daemon):
    resource = daemon.add_resource("far", location="me@far.example.org:2222", setup=["module load mpi"], env={"A": "1"})
    assert resource.info().spec.location == "me@far.example.org:2222"
    with pytest.raises(flotilla.AlreadyExistsError):
        daemon.add_resource("far", location="other")
    daemon.add_resource(flotilla.ResourceSpec("far", location="other.example.org"), replace=True)
    info = daemon.resource("far").info()
    assert info.spec.location == "other.example.org" and not info.spec.env
    resource.remove()
    with pytest.raises(flotilla.NotFoundError) as raised:
        daemon.resource("far")
    assert "local" in str(raised.value)


def test_what_is_wrong_with_a_description_is_said_by_name(daemon):
    with pytest.raises(flotilla.InvalidArgumentError, match="loction"):
        daemon.add_resource("x", loction="typo")
    with pytest.raises(flotilla.InvalidArgumentError) as raised:
        daemon.add_resource("bad name!", location="h", transport="pigeon")
    assert "pigeon" in str(raised.value)
    with pytest.raises(flotilla.InvalidArgumentError, match="argv"):
        daemon.submit("true")


def test_a_pilot_runs_and_is_stopped(daemon):
    with daemon.start_pilot("local", label="extra", slots_per_node=1) as pilot:
        info = pilot.wait(30)
        assert info.state is flotilla.PilotState.RUNNING and info.slots == 1
        assert daemon.run(["echo", "on it"], label="extra").text == "on it\n"
    ended = pilot.wait_ended(30)
    assert ended.state is flotilla.PilotState.FINISHED
    with pytest.raises(flotilla.FailedPreconditionError):
        pilot.wait(30)


def test_a_pilot_ends_at_its_time(daemon):
    pilot = daemon.start_pilot("local", label="short", slots_per_node=1, time=1.5)
    assert pilot.wait_ended_async(30).result(40).state is flotilla.PilotState.FINISHED


# ---- commands


def test_a_command_gives_its_output_and_its_end(daemon):
    result = daemon.run(["sh", "-c", "echo out; echo err >&2"])
    assert (result.text, result.standard_error) == ("out\n", b"err\n")
    assert result.info.state is JobState.FINISHED and result.info.exit.ok


def test_a_failed_command_is_an_error_with_its_exit_reason(daemon):
    with pytest.raises(flotilla.JobFailedError) as raised:
        daemon.run(["sh", "-c", "echo so it was >&2; exit 3"])
    assert raised.value.exit.kind is ExitKind.EXITED and raised.value.exit.code == 3
    assert "so it was" in str(raised.value)
    copy = pickle.loads(pickle.dumps(raised.value))
    assert type(copy) is flotilla.JobFailedError and copy.exit == raised.value.exit


def test_a_command_that_is_not_there_is_named(daemon):
    with pytest.raises(flotilla.JobFailedError, match="no-such-command"):
        daemon.run(["no-such-command"])


def test_output_is_followed_as_it_comes(daemon, tmp_path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    job = daemon.submit(["sh", "-c", f"echo first; cat {gate}; echo last"])
    seen = job.follow()
    assert next(seen) == (1, b"first\n")
    gate.write_text("middle\n")  # only now does it go on
    assert b"".join(data for _, data in seen) == b"middle\nlast\n"
    assert job.output() == b"first\nmiddle\nlast\n"


def test_large_output_arrives_whole(daemon):
    size = 8 << 20
    result = daemon.run([sys.executable, "-c", f"import sys; sys.stdout.buffer.write(bytes(range(256)) * {size // 256})"])
    assert result.standard_output == bytes(range(256)) * (size // 256)


def test_input_is_given_at_once_or_bit_by_bit(daemon):
    assert daemon.run(["cat"], standard_input=b"\x00\xff").standard_output == b"\x00\xff"
    job = daemon.submit(["cat"], open_input=True)
    with job.attach() as attached:
        attached.write("hello ")
        attached.write(b"there")
        attached.close_input()
        events = list(attached)
    assert b"".join(each.data for each in events) == b"hello there"
    assert events[-1].kind == "end" and events[-1].exit.ok


def test_files_are_laid_into_a_private_folder(daemon, tmp_path):
    script = tmp_path / "run.sh"
    script.write_text("#!/bin/sh\ncat data.txt; ls; pwd\n")
    script.chmod(0o755)
    files = [script, InputFile(name="data.txt", content=b"data\n"), InputFile(name="empty", content=b"")]
    text = daemon.run(["./run.sh"], files=files).text.splitlines()
    assert text[0] == "data" and text[1:4] == ["data.txt", "empty", "run.sh"]
    # Gone with the job: the pilot removes a folder before it lays the next job's files.
    assert daemon.run(["cat", "next"], files=[InputFile(name="next", content=b"data\n")]).text == "data\n"
    assert not os.path.exists(text[4])
    with pytest.raises(flotilla.NotFoundError, match="no-such-file"):
        daemon.run(["true"], files=["no-such-file"])


def test_a_command_runs_where_the_client_stands(daemon, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert daemon.run(["pwd"]).text == f"{tmp_path}\n"
    assert daemon.run(["sh", "-c", "echo $GREETING"], env={"GREETING": "hi"}).text == "hi\n"


def test_cancel_signal_and_limits(daemon):
    job = daemon.submit(["sleep", "600"])
    job.wait_running(30)
    with pytest.raises(flotilla.TimedOutError):
        job.wait(0.05)
    with pytest.raises(flotilla.TimedOutError):
        job.result(0.05)
    with pytest.raises(TimeoutError):  # it is one of Python's too
        job.wait(0.05)
    job.cancel()
    assert job.wait(30).state is JobState.CANCELED

    job = daemon.submit(["sleep", "600"])
    assert job.wait_running_async(30).result(40).state is JobState.RUNNING
    job.signal(signal.SIGUSR1)
    ended = job.wait(30)
    assert ended.exit.kind is ExitKind.SIGNALED and ended.exit.signal == signal.SIGUSR1

    ended = daemon.submit(["sleep", "600"], time_limit=0.2).wait(30)
    assert ended.exit.kind is ExitKind.TIME_LIMIT


def test_why_a_job_waits(daemon):
    job = daemon.submit(["true"], label="nobody-has-this")
    assert "nobody-has-this" in job.why().sentence
    job.cancel()
    assert job.wait_async(30).result(40).state is JobState.CANCELED


class Said:
    """What the logger `flotilla` said; `next` waits for it."""

    def __init__(self, monkeypatch):
        self.lines = queue.SimpleQueue()
        handler = logging.Handler()
        handler.emit = lambda record: self.lines.put((record.levelno, record.getMessage()))
        self.logger = logging.getLogger("flotilla")
        monkeypatch.setattr(self.logger, "handlers", [handler])
        monkeypatch.setattr(self.logger, "propagate", False)

    def next(self):
        return self.lines.get(timeout=30)


@pytest.fixture
def said(monkeypatch):
    from flotilla import _waits

    monkeypatch.setattr(_waits, "FIRST_LOOK", 0.05)
    monkeypatch.setattr(_waits, "PATIENCE", 0.2)
    return Said(monkeypatch)


def test_a_wait_that_lasts_tells_why_once(daemon, said):
    jobs = daemon.submit_many(flotilla.CommandSpec(["true"], label="nobody-has-this") for _ in range(3))
    waiting = [jobs[0].wait_async(60), jobs[1].result_async(60), jobs[2].wait_async(60)]
    level, text = said.next()
    assert level == logging.WARNING
    assert text.startswith("job ") and "no pilot has the label 'nobody-has-this'" in text and "flotilla pilot start" in text
    assert "nobody-has-this" in jobs[0].why_async().result(10).sentence

    started = daemon.start_worker_async("true", label="nor-this")
    level, text = said.next()
    assert level == logging.WARNING and "'nor-this'" in text  # and not the other jobs' reason again
    workers = [info.id for info in daemon.jobs() if info.label == "nor-this"]
    daemon.job(workers[0]).cancel()
    with pytest.raises(flotilla.FlotillaError):
        started.result(30)
    for job, future in zip(jobs, waiting):
        job.cancel()
        try:
            future.result(30)
        except flotilla.JobFailedError:
            pass
    assert said.lines.empty()


def test_a_worker_that_waits_for_the_slots_of_others_tells_it(daemon, said):
    with daemon.start_pilot("local", label="narrow", slots_per_node=1) as pilot:
        pilot.wait(30)
        with start(daemon, label="narrow") as first:
            assert "running" in first.why().sentence and first.why_async().result(10) == first.why()
            second = daemon.start_worker_async("code.py", files=worker_files(), label="narrow")
            level, text = said.next()
            assert level == logging.WARNING and "slots" in text
        second.result(30).close()
    assert said.lines.empty()


def test_what_waits_at_a_busy_pilot_moves_to_one_that_has_room(daemon):
    with daemon.start_pilot("local", label="pair", slots_per_node=1) as busy:
        busy.wait(30)
        long = daemon.submit(["sleep", "1000"], label="pair")
        long.wait_running(30)
        waiting = daemon.submit_many(flotilla.CommandSpec(["true"], label="pair") for _ in range(3))
        assert f"waits at pilot {busy.id} " in waiting[0].why().sentence
        assert waiting[0].info().state is JobState.DISPATCHED
        assert busy.info().jobs_running == 1
        last = waiting.pop()
        last.cancel()
        assert last.wait(30).state is JobState.CANCELED
        with daemon.start_pilot("local", label="pair", slots_per_node=1) as free:
            infos = daemon.wait_all(waiting, 60)
            assert [(info.state, info.pilot) for info in infos] == [(JobState.FINISHED, free.id)] * 2
        # A pilot that ends gives back what waits there; it has not failed.
        kept = daemon.submit(["true"], label="pair")
        assert f"waits at pilot {busy.id} " in kept.why().sentence
        busy.stop()
        busy.wait_ended(30)
        assert long.wait(30).state is JobState.FAILED
        assert kept.info().state is JobState.QUEUED
        kept.cancel()


def test_many_jobs_at_once(daemon):
    jobs = daemon.submit_many(flotilla.CommandSpec(["echo", str(number)]) for number in range(50))
    assert [info.state for info in daemon.wait_all(jobs)] == [flotilla.JobState.FINISHED] * 50
    assert daemon.wait_all([]) == []
    futures = [job.result_async(60) for job in jobs]
    assert [future.result(90).text for future in futures] == [f"{number}\n" for number in range(50)]
    with pytest.raises(flotilla.NotFoundError):
        daemon.job(10**9)
    ids = [info.id for info in daemon.jobs()]
    assert {job.id for job in jobs} <= set(ids) and ids == sorted(ids)  # the newest at the end
    assert [info.id for info in daemon.jobs(3)] == ids[-3:]
    assert [info.id for info in daemon.wait_all_async(jobs[:2]).result(30)] == [job.id for job in jobs[:2]]


# ---- workers


def test_a_worker_is_called_counted_and_ended(daemon):
    with start(daemon) as worker:
        code = flotilla.RemoteCode(worker)
        assert code.add(2, 3) == 5
        assert list(code.twice([1.5, 2.5])) == [3.0, 5.0]
        calls, to_worker, from_worker = memoryview(worker.counters).cast("Q")
        assert calls >= 2 and to_worker > 88 and from_worker > 88
        assert worker.exit() is None
        worker.check()
        pid = worker.info().pid
        job = worker.job
    info = job.wait(30)
    assert info.state is JobState.FINISHED, info
    assert not os.path.exists(f"/proc/{pid}")
    assert worker.closed and worker.exit() is None


def test_a_worker_that_dies_says_how(daemon):
    worker = start(daemon)
    code = flotilla.RemoteCode(worker)
    began = time.monotonic()
    with pytest.raises(flotilla.ChannelClosed) as raised:
        code.leave(7)
    assert time.monotonic() - began < 5
    assert "7" in str(raised.value) and "the last words" in str(raised.value)
    reason = worker.exit(10)
    assert reason.kind is ExitKind.EXITED and reason.code == 7 and "the last words" in reason.stderr_tail
    with pytest.raises(flotilla.WorkerFailedError) as failed:
        worker.check()
    assert failed.value.exit == reason
    worker.close()

    with start(daemon) as worker:
        with pytest.raises(flotilla.ChannelClosed, match="SEGV"):
            flotilla.RemoteCode(worker).fall()
        assert worker.exit(10).signal == signal.SIGSEGV
    assert daemon.job(worker.id).wait(30).state is JobState.FAILED


def test_a_worker_that_cannot_start_says_why(daemon):
    with pytest.raises(flotilla.WorkerFailedError) as raised:
        daemon.start_worker("sh", ["-c", "echo no licence >&2; exit 5"])
    assert raised.value.exit is not None and raised.value.exit.code == 5
    assert "no licence" in str(raised.value)
    with pytest.raises(flotilla.WorkerFailedError, match="no-such-code"):
        daemon.start_worker("no-such-code")
    with pytest.raises(flotilla.TimedOutError, match="did not connect"):
        daemon.start_worker("sh", ["-c", "sleep 600"], start_timeout=0.3)


def test_several_workers_compute_at_once(daemon):
    with daemon.start_pilot("local", label="four", slots_per_node=4) as pilot:
        pilot.wait(30)
        workers = [future.result(60) for future in [daemon.start_worker_async("code.py", files=worker_files(), label="four") for _ in range(4)]]
        codes = [flotilla.RemoteCode(worker) for worker in workers]
        calls = [code.add.async_call(number, 1) for number, code in enumerate(codes)]
        assert flotilla.wait_all(calls, 30) == [1, 2, 3, 4]
        for worker in workers:
            worker.close()


def test_closing_wakes_who_waits_for_the_end(daemon):
    worker = start(daemon)
    said = []
    waiting = threading.Thread(target=lambda: said.append(worker.exit(60)))
    waiting.start()
    worker.close()
    waiting.join(10)
    assert said == [None]


def test_a_client_that_dies_ends_its_worker(daemon, tmp_path):
    script = """
import os, sys, time
import flotilla
flotilla.__path__.append(os.environ["FLOTILLA_TEST_MESSAGES"])
worker = flotilla.Daemon().start_worker("code.py", files=sys.argv[1:])
print(worker.id, flush=True)
time.sleep(600)
"""
    code = tmp_path / "code.py"
    code.write_bytes(WORKER)
    code.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(Path(flotilla.__file__).parents[1]), "FLOTILLA_TEST_MESSAGES": flotilla.__path__[-1]}
    client = subprocess.Popen([sys.executable, "-c", script, str(code), str(WORKER_PY)], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        id = int(client.stdout.readline())
        assert daemon.job(id).info().state is JobState.RUNNING
    finally:
        client.kill()
        client.wait()
        client.stdout.close()
    info = daemon.job(id).wait(30)
    assert info.exit.kind in (ExitKind.CLIENT_GONE, ExitKind.EXITED), info


# ---- asyncio


def test_asyncio_has_the_same_words(shared_place, daemon):
    async def main():
        async with flotilla.aio.Daemon() as remote:
            assert (await remote.info()).pid == daemon.info().pid
            results = await asyncio.gather(*(remote.run(["echo", str(number)]) for number in range(10)))
            assert [result.text for result in results] == [f"{number}\n" for number in range(10)]
            with pytest.raises(flotilla.JobFailedError) as raised:
                await remote.run(["sh", "-c", "exit 4"])
            assert raised.value.exit.code == 4

            job = await remote.submit(["cat"], open_input=True)
            async with job.attach() as attached:
                await attached.write("through")
                await attached.close_input()
                events = [event async for event in attached]
            assert b"".join(event.data for event in events) == b"through" and events[-1].kind == "end"
            assert await job.output() == b"through"

            job = await remote.submit(["sleep", "600"])
            await job.wait_running(30)
            with pytest.raises(flotilla.TimedOutError):
                await job.wait(0.05)
            await job.cancel()
            assert (await job.wait(30)).state is JobState.CANCELED

            async with await remote.start_worker("code.py", files=worker_files()) as worker:
                code = flotilla.RemoteCode(worker)
                assert await code.add.async_call(20, 22) == 42
                assert await worker.exit() is None
                with pytest.raises(flotilla.ChannelClosed, match="the last words"):
                    await code.leave.async_call(9)
                assert (await worker.exit(10)).code == 9
            with pytest.raises(flotilla.NotFoundError):
                await remote.resource("none")

    asyncio.run(main())


def test_asyncio_tells_why_it_waits(shared_place, daemon, said):
    async def main():
        loop = asyncio.get_running_loop()
        async with flotilla.aio.Daemon() as remote:
            job = await remote.submit(["true"], label="nobody-has-this")
            waiting = asyncio.ensure_future(job.wait(60))
            level, text = await loop.run_in_executor(None, said.next)
            assert level == logging.WARNING and text.startswith(f"job {job.id} waits: no pilot has the label 'nobody-has-this'")
            starting = asyncio.ensure_future(remote.start_worker("true", label="nor-this"))
            assert "'nor-this'" in (await loop.run_in_executor(None, said.next))[1]
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            await job.cancel()
            await waiting
            async with await remote.start_worker("code.py", files=worker_files()) as worker:
                assert "running" in (await worker.why()).sentence

    asyncio.run(main())
    assert said.lines.empty()


# ---- restarts


def replace_daemon(place, pid):
    """Kills it, and starts the next one."""
    descriptor = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert select.select([descriptor], [], [], 20)[0]
    os.close(descriptor)
    subprocess.run([place.environment["FLOTILLA_PROGRAM"], "daemon", "start"], check=True, timeout=60)


def test_waiting_outlives_daemons_that_are_killed_one_after_the_other(place, tmp_path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with flotilla.Daemon() as daemon:
        job = daemon.submit(["sh", "-c", f"echo before; cat {gate}; echo after"])
        job.wait_running(30)
        waiting = job.wait_async(120)
        following = job.result_async(120)
        attached = job.follow()
        assert next(attached) == (1, b"before\n")
        pids = [daemon.info().pid]
        for _ in range(3):
            replace_daemon(place, pids[-1])
            with flotilla.Daemon(start=False) as now:  # at once: the waits may not have noticed yet
                pids.append(now.info().pid)
        gate.write_text("between\n")
        assert waiting.result(130).state is JobState.FINISHED
        assert following.result(130).text == "before\nbetween\nafter\n"
        assert b"".join(data for _, data in attached) == b"between\nafter\n"
        assert daemon.info().pid == pids[-1] and len(set(pids)) == 4


def test_asyncio_outlives_daemons_that_are_killed_one_after_the_other(place, tmp_path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)

    async def main():
        async with flotilla.aio.Daemon() as daemon:
            job = await daemon.submit(["sh", "-c", f"echo before; cat {gate}; echo after"])
            await job.wait_running(30)
            attached = job.follow()
            assert await attached.__anext__() == (1, b"before\n")
            waiting = asyncio.ensure_future(job.wait(120))
            following = asyncio.ensure_future(job.result(120))
            for _ in range(3):
                with flotilla.Daemon(start=False) as now:
                    pid = now.info().pid
                await asyncio.get_running_loop().run_in_executor(None, replace_daemon, place, pid)
            gate.write_text("between\n")
            assert (await waiting).state is JobState.FINISHED
            assert (await following).text == "before\nbetween\nafter\n"
            assert b"".join([data async for _, data in attached]) == b"between\nafter\n"

    asyncio.run(main())


def pilot_of(job):
    """Its process: the parent of the job's."""
    return int(Path(f"/proc/{job.pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_the_cause_of_an_end_is_told_soon_without_a_daemon(place):
    with flotilla.Daemon() as daemon:
        worker = start(daemon)
        code = flotilla.RemoteCode(worker)
        assert code.add(1, 2) == 3
        for pid in (daemon.info().pid, pilot_of(worker.info())):
            os.kill(pid, signal.SIGKILL)
        begin = time.monotonic()
        with pytest.raises(flotilla.ChannelClosed) as raised:
            while time.monotonic() - begin < 10:  # its guard ends it a moment later
                code.add(1, 2)
        said = worker.explain_end()
        assert time.monotonic() - begin < 2 * 2.0, "twice asked, each within 2 s"
        assert "was lost" in said and "daemon" in said, said
        assert "was lost" in str(raised.value)


def test_asyncio_tells_the_cause_of_an_end_soon(place):
    async def main():
        async with flotilla.aio.Daemon() as daemon:
            for with_daemon in (True, False):
                worker = await daemon.start_worker("code.py", files=worker_files())
                code = flotilla.RemoteCode(worker)
                assert await code.add.async_call(1, 2) == 3
                pilot = pilot_of(await worker.info())
                for pid in (pilot,) if with_daemon else ((await daemon.info()).pid, pilot):
                    os.kill(pid, signal.SIGKILL)
                begin = time.monotonic()
                with pytest.raises(flotilla.ChannelClosed) as raised:
                    while time.monotonic() - begin < 10:
                        await asyncio.get_running_loop().run_in_executor(None, code.add, 1, 2)
                assert time.monotonic() - begin < (8.0 if with_daemon else 4.0)
                assert ("pilot" if with_daemon else "was lost") in str(raised.value), str(raised.value)
                worker.close()

    asyncio.run(main())


def test_a_worker_that_does_not_connect_in_time_says_what_it_printed(daemon):
    with pytest.raises(flotilla.TimedOutError, match="did not connect back within 500 ms") as raised:
        daemon.start_worker("sh", ["-c", "echo waiting for a licence >&2; sleep 600"], start_timeout=0.5)
    assert raised.value.exit is not None and raised.value.exit.kind is ExitKind.START_TIMEOUT
    assert "waiting for a licence" in raised.value.exit.stderr_tail
    assert "waiting for a licence" in str(raised.value)


# ---- the stream of Attach


@pytest.mark.parametrize("script", ["echo out; echo err >&2", "true", "head -c 3000000 /dev/zero"])
def test_the_end_comes_after_the_last_state_and_that_after_the_last_output(daemon, script):
    from flotilla.v1 import client_pb2, types_pb2

    for _ in range(10):
        spec = types_pb2.JobSpec(command=types_pb2.CommandSpec(argv=["sh", "-c", script]))
        kinds = []
        for message in daemon._session.stub.Attach(iter([client_pb2.AttachInput(open=client_pb2.AttachOpen(submit=spec))]), timeout=60):
            kind = message.WhichOneof("body")
            if kind == "job":
                kind += " ended" if message.job.state >= types_pb2.JOB_FINISHED else ""
            kinds.append(kind)
        assert kinds[-1] == "end" and kinds[-2] == "job ended", kinds
        assert kinds.count("job ended") == 1, kinds
