"""Daemon, Resource, Pilot, Job, Worker: the blocking form. The words are those of C++'s <flotilla/client.hpp>."""

from __future__ import annotations

import mmap
import queue
import socket as sockets
import threading
import time
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Callable, Iterable, Iterator, List, Optional, Sequence, Tuple, Type, TypeVar, Union

import grpc

from . import _convert, _rpc, _waits
from ._channel import ChannelEnd, take
from ._errors import CanceledError, FailedPreconditionError, FlotillaError, InternalError, JobFailedError, NotFoundError, TimedOutError, UnavailableError, WorkerFailedError
from ._prompts import Asker, PromptHandler, choose
from ._start import reach_daemon
from ._types import (
    CommandSpec,
    DaemonInfo,
    ExitKind,
    ExitReason,
    JobInfo,
    JobResult,
    JobState,
    OutputEvent,
    PilotInfo,
    PilotSpec,
    PilotState,
    ResourceInfo,
    ResourceSpec,
    Seconds,
    TestStep,
    WhyJob,
    WorkerSpec,
)
from .v1 import client_pb2, types_pb2

T = TypeVar("T")


def deadline_of(limit: Optional[Seconds]) -> Optional[float]:
    return None if limit is None else time.monotonic() + _convert.seconds(limit)


def left_until(deadline: Optional[float]) -> Optional[float]:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def in_thread(what: Callable[[], T], name: str) -> Future[T]:
    """A thread for each: a bound could let waits stand in the way of what they wait for."""
    future: Future[T] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(what())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=f"flotilla {name}", daemon=True).start()
    return future


# ---- what the blocking and the asyncio form share


def wait_jobs_request(ids: List[int], running: bool, deadline: Optional[float]) -> client_pb2.WaitJobsRequest:
    left = left_until(deadline)
    return client_pb2.WaitJobsRequest(ids=ids, running=running, timeout_ms=0 if left is None else max(1, _convert.milliseconds(left)))


def waited_job(id: int, running: bool, reply: client_pb2.ListJobsReply, deadline: Optional[float]) -> Optional[JobInfo]:
    """None: go on waiting."""
    if not reply.jobs:
        raise NotFoundError(f"there is no job {id}", "see 'flotilla job list'")
    info = _convert.job_info(reply.jobs[0])
    if info.state.ended or (running and info.state is JobState.RUNNING):
        return info
    if left_until(deadline) == 0:
        raise TimedOutError(f"job {id} is still {info.state}" + (f": {info.message}" if info.message else ""), retry=True)
    return None


def wait_pilots_request(id: int, ended: bool, deadline: Optional[float]) -> client_pb2.WaitPilotsRequest:
    left = left_until(deadline)
    return client_pb2.WaitPilotsRequest(ids=[id], ended=ended, timeout_ms=0 if left is None else max(1, _convert.milliseconds(left)))


def waited_pilot(id: int, ended: bool, reply: client_pb2.ListPilotsReply, deadline: Optional[float]) -> Optional[PilotInfo]:
    if not reply.pilots:
        raise NotFoundError(f"there is no pilot {id}", "see 'flotilla pilot list'")
    info = _convert.pilot_info(reply.pilots[0])
    reason = f": {info.message}" if info.message else ""
    if info.state.ended:
        if ended:
            return info
        raise FailedPreconditionError(f"pilot {id} has ended{reason}")
    if not ended and info.state in (PilotState.RUNNING, PilotState.DRAINING):
        return info
    if left_until(deadline) == 0:
        raise TimedOutError(f"pilot {id} is still {info.state}{reason}", retry=True)
    return None


class Followed:
    """Where one stands in a job's output, over restarts of the daemon."""

    def __init__(self, open: client_pb2.AttachOpen) -> None:
        self.open = open
        self.info: Optional[JobInfo] = None
        self.exit: Optional[ExitReason] = None
        self._offsets = {1: open.stdout_offset, 2: open.stderr_offset}

    def take(self, output: client_pb2.AttachOutput) -> Optional[Tuple[int, bytes]]:
        """New output that it brings."""
        if output.HasField("job"):
            self.info = _convert.job_info(output.job)
            self.open.ClearField("submit")  # from now on it is joined, not submitted again
            self.open.job = output.job.id
        elif output.HasField("output"):
            chunk = output.output
            stream = 2 if chunk.stream == 2 else 1
            known = max(0, self._offsets[stream] - chunk.offset)  # what came before a restart may come again
            if known < len(chunk.data):
                self._offsets[stream] = chunk.offset + len(chunk.data)
                return stream, chunk.data[known:] if known else chunk.data
        elif output.HasField("end"):
            self.exit = _convert.exit_reason(output.end)
        return None

    def may_go_on(self, error: grpc.RpcError) -> bool:
        return _rpc.lost(error) and not self.open.HasField("submit")

    def go_on(self) -> None:
        self.open.stdout_offset = self._offsets[1]
        self.open.stderr_offset = self._offsets[2]

    def stale(self) -> bool:
        """The end overtook the last change of state."""
        return self.info is None or not self.info.state.ended

    def result(self, info: Optional[JobInfo], out: bytes, err: bytes) -> JobResult:
        exit = self.exit
        if exit is None or info is None:
            raise InternalError("the daemon ended the output of a job without its end", retry=True)
        if not exit.ok:
            raise JobFailedError(exit.message or f"job {info.id} failed", f"see 'flotilla job logs {info.id}'", exit=exit)
        return JobResult(info, out, err)


DETACH_LIMIT = 5.0  # for a daemon to take what was written before one leaves; a job that does not read holds it up
_INPUT_CHUNK = 1 << 20


def attach_inputs(what: Union[bytes, str]) -> Iterator[client_pb2.AttachInput]:
    data = _convert.content("what is written", what)
    for at in range(0, len(data), _INPUT_CHUNK):
        yield client_pb2.AttachInput(stdin=data[at : at + _INPUT_CHUNK])


def lost_worker(id: int, error: FlotillaError) -> ExitReason:
    return ExitReason(ExitKind.PILOT_LOST, message=f"the channel to worker {id} was lost: {error.message}")


def explanation(reason: Optional[ExitReason]) -> str:
    if reason is None:
        return ""
    text = reason.message
    if reason.stderr_tail:
        text += f"\nlast lines of its stderr:\n{reason.stderr_tail}"
    return text.rstrip("\n")


# ---- the session


class Session:
    """The connection to the daemon, shared by all that was got from it."""

    def __init__(self, path: str, prompts: Optional[PromptHandler], accept_new_host_keys: bool) -> None:
        self._channel = grpc.insecure_channel(_rpc.target(path), options=_rpc.CHANNEL_OPTIONS)
        self.stub = _rpc.Stub(self._channel)
        self._prompts = prompts
        self._accept_new_host_keys = accept_new_host_keys
        self._lock = threading.Lock()
        self._prompt_call: Any = None
        self._asker: Optional[Asker] = None
        self._closed = False
        self.watch = _waits.Watch(self._why)
        try:
            _rpc.check_protocol(self.call("GetInfo", client_pb2.GetInfoRequest()))
        except BaseException:
            self._channel.close()
            raise

    def close(self) -> None:
        with self._lock:
            self._closed = True
            asker = self._asker
            if self._prompt_call is not None:
                self._prompt_call.cancel()
        if asker is not None:
            asker.close()
        self.watch.close()
        self._channel.close()

    def _why(self, request: client_pb2.WhyJobRequest) -> Optional[client_pb2.WhyJobReply]:
        try:
            reply: client_pb2.WhyJobReply = self.stub.WhyJob(request, timeout=_waits.WHY_LIMIT)
            return reply
        except (grpc.RpcError, ValueError):  # the daemon restarts, the job is over, or this Daemon was closed
            return None

    def call(self, method: str, request: Any, timeout: Optional[float] = None, wait_for_ready: bool = False) -> Any:
        self.check_open()
        _rpc.check_size(request)
        try:
            return getattr(self.stub, method)(request, timeout=timeout, wait_for_ready=wait_for_ready)
        except grpc.RpcError as error:
            raise _rpc.as_error(error) from None

    def check_open(self) -> None:
        if self._closed:
            raise FailedPreconditionError("this Daemon object was closed", "make a new one, or keep it open as long as what it gave is used")

    def call_long(self, method: str, request: Any) -> Any:
        """For what may take long: given up (Ctrl-C), it is withdrawn at the daemon too."""
        self.check_open()
        _rpc.check_size(request)
        call = getattr(self.stub, method).future(request)
        try:
            return call.result()
        except grpc.FutureCancelledError:
            raise CanceledError("canceled") from None
        except grpc.RpcError as error:
            raise _rpc.as_error(error) from None
        except BaseException:
            call.cancel()
            raise

    def call_through_restart(
        self, method: str, request: Callable[[], Any], deadline: Optional[float], restart_limit: float = _rpc.RESTART_LIMIT
    ) -> Any:
        """Calls until it has an answer: a daemon that is being restarted is waited for, ``restart_limit`` seconds at most, and not
        after the deadline. ``request`` is made anew for each: it says what is left of the time."""
        lost_at: Optional[float] = None
        self.check_open()
        while True:
            call = getattr(self.stub, method).future(request())
            try:
                return call.result()
            except grpc.FutureCancelledError:
                raise CanceledError("canceled") from None
            except grpc.RpcError as error:
                lost_at = lost_at or time.monotonic()
                if not _rpc.lost(error):
                    raise _rpc.as_error(error) from None
                limit = lost_at + restart_limit
                self._await_daemon(error, limit if deadline is None else min(limit, deadline))
            except BaseException:
                call.cancel()
                raise

    def _await_daemon(self, error: grpc.RpcError, deadline: float) -> None:
        """Until one answers; raises the ``error`` by which it was lost when none does by the deadline (time.monotonic)."""
        while not self._closed and time.monotonic() < deadline:
            try:
                self.call("GetInfo", client_pb2.GetInfoRequest(), left_until(deadline), wait_for_ready=True)
                return
            except TimedOutError:
                break
            except UnavailableError:
                pass  # this one ended too
        raise _rpc.as_error(error) from None

    def stream(self, method: str, request: Any) -> Iterator[Any]:
        self.check_open()
        call = getattr(self.stub, method)(request)
        try:
            yield from call
        except grpc.RpcError as error:
            raise _rpc.as_error(error) from None
        finally:
            call.cancel()

    def progress(self, method: str, request: Any, on_progress: Optional[Callable[[str, float], Any]] = None) -> None:
        for step in self.stream(method, request):
            if step.HasField("error"):
                raise _convert.error(step.error)
            if on_progress is not None:
                on_progress(step.message, step.fraction)

    def prepare(self, spec: Union[CommandSpec, WorkerSpec], uploads: Optional[_convert.Uploads] = None) -> types_pb2.JobSpec:
        self.check_open()
        uploads = uploads or _convert.Uploads()
        wire, blobs = _convert.job_spec(spec, uploads)
        try:
            for blob in filter(uploads.is_new, blobs):
                if not self.stub.PutBlob(iter([blob.question()])).present:
                    self.stub.PutBlob(blob.chunks())
        except grpc.RpcError as error:
            raise _rpc.as_error(error) from None
        return wire

    def job_info(self, id: int) -> JobInfo:
        reply = self.call("ListJobs", client_pb2.ListJobsRequest(ids=[id]))
        if not reply.jobs:
            raise NotFoundError(f"there is no job {id}", "see 'flotilla job list'")
        return _convert.job_info(reply.jobs[0])

    def wait_job(self, id: int, running: bool, deadline: Optional[float], restart_limit: float = _rpc.RESTART_LIMIT) -> JobInfo:
        with self.watch(_waits.of_job(id)):
            while True:
                reply = self.call_through_restart("WaitJobs", lambda: wait_jobs_request([id], running, deadline), deadline, restart_limit)
                info = waited_job(id, running, reply, deadline)
                if info is not None:
                    return info

    def wait_jobs(self, ids: List[int], deadline: Optional[float]) -> List[JobInfo]:
        if not ids:
            return []
        with self.watch(_waits.of_job(ids[-1])):
            reply = self.call_through_restart("WaitJobs", lambda: wait_jobs_request(ids, False, deadline), deadline)
        return [_convert.job_info(job) for job in reply.jobs]

    def wait_pilot(self, id: int, ended: bool, deadline: Optional[float]) -> PilotInfo:
        while True:
            reply = self.call_through_restart("WaitPilots", lambda: wait_pilots_request(id, ended, deadline), deadline)
            info = waited_pilot(id, ended, reply, deadline)
            if info is not None:
                return info

    def follow(self, followed: Followed, deadline: Optional[float]) -> Iterator[Tuple[int, bytes]]:
        with self.watch(_waits.of_followed(followed.open)):
            yield from self._follow(followed, deadline)

    def _follow(self, followed: Followed, deadline: Optional[float]) -> Iterator[Tuple[int, bytes]]:
        self.check_open()
        _rpc.check_size(followed.open)
        lost_at: Optional[float] = None
        while True:
            inputs: queue.SimpleQueue[Optional[client_pb2.AttachInput]] = queue.SimpleQueue()
            inputs.put(client_pb2.AttachInput(open=followed.open))
            call = self.stub.Attach(iter(inputs.get, None), timeout=left_until(deadline))
            try:
                for output in call:
                    lost_at = None
                    new = followed.take(output)
                    if new is not None:
                        yield new
                if followed.exit is None:
                    raise InternalError("the daemon ended the output of a job without its end", retry=True)
                return
            except grpc.RpcError as error:
                if followed.exit is not None:
                    return
                if not followed.may_go_on(error):
                    raise _rpc.as_error(error) from None
                lost_at = lost_at or time.monotonic()
                limit = lost_at + _rpc.RESTART_LIMIT
                self._await_daemon(error, limit if deadline is None else min(limit, deadline))
                followed.go_on()
            finally:
                call.cancel()
                inputs.put(None)

    def result(self, open: client_pb2.AttachOpen, deadline: Optional[float]) -> JobResult:
        open.output_only = True
        followed = Followed(open)
        texts: Tuple[List[bytes], List[bytes]] = ([], [])
        try:
            for stream, data in self.follow(followed, deadline):
                texts[stream - 1].append(data)
        except TimedOutError:
            raise TimedOutError("the job has not ended within the time given", retry=True) from None
        info = self.job_info(followed.open.job) if followed.stale() else followed.info
        return followed.result(info, b"".join(texts[0]), b"".join(texts[1]))

    def answer_prompts(self) -> None:
        """From now on questions are answered here. Does nothing the second time, or when there is nobody to ask."""
        handler = choose(self._prompts)
        if handler is None and not self._accept_new_host_keys:
            return
        with self._lock:
            if self._prompt_call is not None or self._closed:
                return
            answers: queue.SimpleQueue[Optional[client_pb2.PromptAnswer]] = queue.SimpleQueue()
            answers.put(client_pb2.PromptAnswer(accept_new_host_keys=self._accept_new_host_keys))
            call = self._prompt_call = self.stub.Prompts(iter(answers.get, None))
            asker = self._asker = Asker(handler, lambda id, said: answers.put(_convert.prompt_answer(id, said)))

        def run() -> None:
            try:
                for wire in call:
                    if wire.withdrawn:
                        asker.withdraw(wire.id)
                    else:
                        asker.ask(wire.id, _convert.prompt(wire))
            except grpc.RpcError:
                pass  # the daemon ended, or this Daemon was closed
            finally:
                asker.close()
                answers.put(None)
                with self._lock:
                    self._prompt_call = None

        threading.Thread(target=run, name="flotilla prompts", daemon=True).start()


# ---- handles


class Resource:
    """A machine or cluster one can get at."""

    def __init__(self, session: Session, name: str) -> None:
        self._session = session
        self.name = name

    def __repr__(self) -> str:
        return f"Resource({self.name!r})"

    def info(self) -> ResourceInfo:
        reply = self._session.call("ListResources", client_pb2.ListResourcesRequest(name=self.name))
        if not reply.resources:
            raise NotFoundError(f"there is no resource '{self.name}'", "see 'flotilla resource list'")
        return _convert.resource_info(reply.resources[0])

    def connect(self, on_progress: Optional[Callable[[str, float], Any]] = None) -> None:
        """Logs in, brings the agent there, starts the hub; nothing if that is done. ``on_progress(sentence, fraction)``."""
        self._session.answer_prompts()
        self._session.progress("ConnectResource", client_pb2.ConnectResourceRequest(name=self.name), on_progress)

    def disconnect(self) -> None:
        self._session.progress("ConnectResource", client_pb2.ConnectResourceRequest(name=self.name, disconnect=True))

    def test(self) -> Iterator[TestStep]:
        """Step by step; each comes when it begins ("running") and when it has ended."""
        self._session.answer_prompts()
        for step in self._session.stream("TestResource", client_pb2.TestResourceRequest(name=self.name)):
            yield _convert.test_step(step)

    def remove(self, force: bool = False) -> None:
        self._session.call("RemoveResource", client_pb2.RemoveResourceRequest(name=self.name, force=force))

    def connect_async(self) -> Future[None]:
        return in_thread(self.connect, f"connect {self.name}")


class Pilot:
    """A process on the nodes of a resource that offers slots. Leaving it as a context manager stops it."""

    def __init__(self, session: Session, id: int) -> None:
        self._session = session
        self.id = id

    def __repr__(self) -> str:
        return f"Pilot({self.id})"

    def __enter__(self) -> Pilot:
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        self.stop()

    def info(self) -> PilotInfo:
        reply = self._session.call("ListPilots", client_pb2.ListPilotsRequest(ids=[self.id], ended=True))
        if not reply.pilots:
            raise NotFoundError(f"there is no pilot {self.id}", "see 'flotilla pilot list'")
        return _convert.pilot_info(reply.pilots[0])

    def wait(self, limit: Optional[Seconds] = None) -> PilotInfo:
        """Returns when it runs; raises at once when it fails, TimedOutError after ``limit`` seconds."""
        return self._session.wait_pilot(self.id, False, deadline_of(limit))

    def wait_ended(self, limit: Optional[Seconds] = None) -> PilotInfo:
        return self._session.wait_pilot(self.id, True, deadline_of(limit))

    def stop(self) -> None:
        self._session.call("StopPilots", client_pb2.StopPilotsRequest(ids=[self.id]))

    def drain(self) -> None:
        """It ends when the running jobs have."""
        self._session.call("StopPilots", client_pb2.StopPilotsRequest(ids=[self.id], drain=True))

    def wait_async(self, limit: Optional[Seconds] = None) -> Future[PilotInfo]:
        return in_thread(lambda: self.wait(limit), f"pilot {self.id}")

    def wait_ended_async(self, limit: Optional[Seconds] = None) -> Future[PilotInfo]:
        return in_thread(lambda: self.wait_ended(limit), f"pilot {self.id}")


class Attachment:
    """A connection to a job's output and input: iterate over it for what happens. Closing it detaches; the job goes on."""

    def __init__(self, session: Session, open: client_pb2.AttachOpen) -> None:
        session.check_open()
        self._inputs: queue.SimpleQueue[Optional[client_pb2.AttachInput]] = queue.SimpleQueue()
        self._inputs.put(client_pb2.AttachInput(open=open))
        self._call = session.stub.Attach(iter(self._inputs.get, None))
        self._closed = False
        self._over = False  # the call
        self._reading = threading.Lock()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        self.close()

    def __iter__(self) -> Iterator[OutputEvent]:
        return self

    def __next__(self) -> OutputEvent:
        if self._closed:
            raise StopIteration
        try:
            with self._reading:
                output = next(self._call)
            return _convert.output_event(output)
        except StopIteration:
            self._over = True
            self.close()
            raise
        except grpc.RpcError as error:
            closed = self._closed
            self._over = True
            self.close()
            if closed:
                raise StopIteration from None
            raise _rpc.as_error(error) from None

    def _send(self, what: client_pb2.AttachInput) -> None:
        if self._closed:
            raise FailedPreconditionError("the job has ended, or the connection to it: no input can be sent")
        self._inputs.put(what)

    def write(self, what: Union[bytes, str]) -> None:
        for message in attach_inputs(what):
            self._send(message)

    def close_input(self) -> None:
        self._send(client_pb2.AttachInput(stdin_eof=True))

    def signal(self, number: int) -> None:
        self._send(client_pb2.AttachInput(signal=number))

    def resize(self, rows: int, columns: int) -> None:
        self._send(client_pb2.AttachInput(window=types_pb2.WindowSize(rows=rows, columns=columns)))

    def close(self) -> None:
        """Returns when the daemon has taken what was written, or after some seconds."""
        if self._closed:
            return
        self._closed = True
        self._inputs.put(client_pb2.AttachInput(detach=True))
        self._inputs.put(None)
        limit = threading.Timer(DETACH_LIMIT, self._call.cancel)
        limit.daemon = True
        try:
            if not self._over:
                limit.start()
                with self._reading:
                    for _ in self._call:
                        pass
        except grpc.RpcError:
            pass  # the job ended, or the connection; or it does not take its input
        finally:
            limit.cancel()
            self._call.cancel()


class Job:
    """Work for a pilot. A handle: letting go of it changes nothing."""

    def __init__(self, session: Session, id: int) -> None:
        self._session = session
        self.id = id

    def __repr__(self) -> str:
        return f"Job({self.id})"

    def info(self) -> JobInfo:
        return self._session.job_info(self.id)

    def wait(self, limit: Optional[Seconds] = None) -> JobInfo:
        """Returns when it has ended, however it did. TimedOutError after ``limit`` seconds; the job goes on then."""
        return self._session.wait_job(self.id, False, deadline_of(limit))

    def wait_running(self, limit: Optional[Seconds] = None) -> JobInfo:
        return self._session.wait_job(self.id, True, deadline_of(limit))

    def result(self, limit: Optional[Seconds] = None) -> JobResult:
        """Waits for the end and brings what it wrote; JobFailedError unless it exited with 0."""
        return self._session.result(client_pb2.AttachOpen(job=self.id), deadline_of(limit))

    def output(self, stream: int = 1) -> bytes:
        """What it has written up to now. stream: 1 stdout, 2 stderr."""
        followed = Followed(client_pb2.AttachOpen(job=self.id, no_follow=True, output_only=True))
        return b"".join(data for from_stream, data in self._session.follow(followed, None) if from_stream == stream)

    def follow(self) -> Iterator[Tuple[int, bytes]]:
        """Output as it comes, from the beginning, until the end: pairs of stream (1 stdout, 2 stderr) and bytes."""
        return self._session.follow(Followed(client_pb2.AttachOpen(job=self.id, output_only=True)), None)

    def attach(self, from_end: bool = False) -> Attachment:
        return Attachment(self._session, client_pb2.AttachOpen(job=self.id, from_end=from_end))

    def cancel(self) -> None:
        """TERM, then KILL, to the whole process group."""
        self._session.call("CancelJobs", client_pb2.CancelJobsRequest(ids=[self.id]))

    def signal(self, number: int) -> None:
        self._session.call("SignalJobs", client_pb2.SignalJobsRequest(ids=[self.id], signal=number))

    def why(self) -> WhyJob:
        """Why it waits, where it runs, or how it ended."""
        reply = self._session.call("WhyJob", client_pb2.WhyJobRequest(id=self.id))
        return WhyJob(reply.sentence, list(reply.details))

    def why_async(self) -> Future[WhyJob]:
        return in_thread(self.why, f"job {self.id}")

    def wait_async(self, limit: Optional[Seconds] = None) -> Future[JobInfo]:
        return in_thread(lambda: self.wait(limit), f"job {self.id}")

    def wait_running_async(self, limit: Optional[Seconds] = None) -> Future[JobInfo]:
        return in_thread(lambda: self.wait_running(limit), f"job {self.id}")

    def result_async(self, limit: Optional[Seconds] = None) -> Future[JobResult]:
        return in_thread(lambda: self.result(limit), f"job {self.id}")


class WorkerChannel:
    """What a Worker is in both forms: the stream, its counters, and how it ended."""

    def __init__(self, id: int, stream: sockets.socket, counters: mmap.mmap, end: ChannelEnd) -> None:
        self.id = id  # of its job
        self.socket = stream  # the connected stream socket, blocking; stays this object's
        # Three 64-bit numbers that the caller keeps up to date and the daemon shows: calls, bytes to the worker, bytes from it.
        self.counters = counters
        self._end = end

    def fileno(self) -> int:
        return self.socket.fileno()

    @property
    def closed(self) -> bool:
        return self._end.closed

    def close(self) -> None:
        """Ends the worker."""
        if self._end.closed:
            return
        try:
            self.socket.shutdown(sockets.SHUT_RDWR)  # wakes who waits for it
        except OSError:
            pass
        self._end.close()
        self.socket.close()

    def __del__(self) -> None:
        try:
            self.close()
        except Exception:  # half made, or the interpreter ends
            pass


class Worker(WorkerChannel):
    """A code that stays up and is called over a byte stream (flotilla.RemoteCode). Closing it ends the worker."""

    def __init__(self, session: Session, where: client_pb2.WorkerChannel) -> None:
        stream, counters, control = take(where.socket, where.ticket)
        super().__init__(where.job, stream, counters, ChannelEnd(control))
        self._session = session

    def __repr__(self) -> str:
        return f"Worker({self.id})"

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        self.close()

    @property
    def job(self) -> Job:
        return Job(self._session, self.id)

    def info(self) -> JobInfo:
        return self._session.job_info(self.id)

    def why(self) -> WhyJob:
        """Where it runs, or how it ended."""
        return self.job.why()

    def why_async(self) -> Future[WhyJob]:
        return self.job.why_async()

    def exit(self, limit: Optional[Seconds] = 0) -> Optional[ExitReason]:
        """How it ended; None when it has not within ``limit`` seconds (None: no limit). Waits on the channel itself, no poll."""
        deadline = deadline_of(limit)
        try:
            return self._end.read(deadline)
        except UnavailableError as gone:
            try:
                return self._journalled_exit(deadline, _rpc.RESTART_LIMIT)
            except FlotillaError:
                return self._end.settle(lost_worker(self.id, gone))

    def _journalled_exit(self, deadline: Optional[float], restart_limit: float) -> ExitReason:
        # The pilot is gone, or the daemon (remote workers): the journal knows, at the latest when the loss was noticed.
        at_least = time.monotonic() + _rpc.CAUSE_LIMIT
        return self._end.settle(self._session.wait_job(self.id, False, None if deadline is None else max(deadline, at_least), restart_limit).exit)

    def explain_end(self) -> str:
        """For an error message after the stream ended: waits shortly for the cause, and hardly for a daemon that is dead."""
        try:
            return explanation(self._end.read(deadline_of(_rpc.CAUSE_LIMIT)))
        except UnavailableError as gone:
            try:
                return explanation(self._journalled_exit(time.monotonic(), _rpc.DEAD_LIMIT))
            except FlotillaError as silent:
                # A daemon that is started later may know more: exit() asks it.
                return explanation(lost_worker(self.id, gone)) + f"; {silent.message}"

    def check(self) -> None:
        """Raises WorkerFailedError with the cause when it has ended otherwise than by close()."""
        reason = self.exit(0)
        if reason is not None and not self.closed:
            raise WorkerFailedError(reason.message, exit=reason)

    def cancel(self) -> None:
        self.job.cancel()


class Daemon:
    """The coordinator on this machine; it is started when none runs.

    ``socket``: of another daemon than this user's; ``start``: start it when it does not run; ``program``: the program ``flotilla``
    ($FLOTILLA_PROGRAM, else from PATH); ``prompts``: answers questions (passwords, host keys), by default the terminal;
    ``accept_new_host_keys``: unknown ones; a changed key is never accepted."""

    def __init__(
        self,
        socket: Optional[str] = None,
        *,
        start: bool = True,
        program: Optional[str] = None,
        prompts: Optional[PromptHandler] = None,
        accept_new_host_keys: bool = False,
    ) -> None:
        self._session = Session(reach_daemon(socket, start, program), prompts, accept_new_host_keys)

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection, not the daemon. What was got from this is not usable any more; workers' sockets are."""
        self._session.close()

    def info(self) -> DaemonInfo:
        return _convert.daemon_info(self._session.call("GetInfo", client_pb2.GetInfoRequest()))

    def shutdown(self, all: bool = False) -> None:
        """Ends the daemon; with ``all`` first every job, pilot and hub."""
        self._session.progress("Shutdown", client_pb2.ShutdownRequest(all=all))

    # ---- resources

    def add_resource(self, spec: Union[ResourceSpec, str], *, replace: bool = False, **more: Any) -> Resource:
        """``add_resource("hpc1", location="me@hpc1.example.org")``, or a ResourceSpec."""
        made = _convert.make_spec(ResourceSpec, "name", spec, more)
        self._session.call("AddResource", client_pb2.AddResourceRequest(spec=_convert.resource_spec(made), replace=replace))
        return Resource(self._session, made.name)

    def resource(self, name: str) -> Resource:
        """NotFoundError names what there is."""
        resource = Resource(self._session, name)
        resource.info()
        return resource

    def resources(self) -> List[ResourceInfo]:
        return [_convert.resource_info(each) for each in self._session.call("ListResources", client_pb2.ListResourcesRequest()).resources]

    # ---- pilots

    def start_pilot(self, spec: Union[PilotSpec, str], **more: Any) -> Pilot:
        """``start_pilot("hpc1", label="big", time=3600)``, or a PilotSpec. Accepted when this returns; ``wait()`` for it to run."""
        self._session.answer_prompts()
        made = _convert.make_spec(PilotSpec, "resource", spec, more)
        return Pilot(self._session, self._session.call("StartPilot", client_pb2.StartPilotRequest(spec=_convert.pilot_spec(made), count=1)).id)

    def pilot(self, id: int) -> Pilot:
        pilot = Pilot(self._session, id)
        pilot.info()
        return pilot

    def pilots(self, ended: bool = False) -> List[PilotInfo]:
        return [_convert.pilot_info(each) for each in self._session.call("ListPilots", client_pb2.ListPilotsRequest(ended=ended)).pilots]

    # ---- jobs

    def submit(self, spec: Union[CommandSpec, Sequence[str]], **more: Any) -> Job:
        """``submit(["hostname"], label="big")``, or a CommandSpec."""
        return self.submit_many([_convert.make_spec(CommandSpec, "argv", spec, more)])[0]

    def submit_many(self, specs: Iterable[CommandSpec]) -> List[Job]:
        """All or none."""
        uploads = _convert.Uploads()
        wires = [self._session.prepare(spec, uploads) for spec in specs]
        ids = self._session.call("Submit", client_pb2.SubmitRequest(specs=wires)).ids
        if len(ids) != len(wires):
            raise InternalError(f"the daemon took {len(ids)} of {len(wires)} jobs")
        return [Job(self._session, id) for id in ids]

    def wait_all(self, jobs: Iterable[Job], limit: Optional[Seconds] = None) -> List[JobInfo]:
        """Waits for the ends of all, in one call."""
        return self._session.wait_jobs([job.id for job in jobs], deadline_of(limit))

    def run(self, spec: Union[CommandSpec, Sequence[str]], **more: Any) -> JobResult:
        """Submits, waits, and brings what it wrote; JobFailedError unless it exited with 0."""
        wire = self._session.prepare(_convert.make_spec(CommandSpec, "argv", spec, more))
        return self._session.result(client_pb2.AttachOpen(submit=wire), None)

    def job(self, id: int) -> Job:
        job = Job(self._session, id)
        job.info()
        return job

    def jobs(self, limit: int = 0) -> List[JobInfo]:
        """Oldest first; a limit leaves the newest, 0 = all."""
        return [_convert.job_info(each) for each in self._session.call("ListJobs", client_pb2.ListJobsRequest(limit=limit)).jobs]

    def start_worker(self, spec: Union[WorkerSpec, str], args: Optional[Sequence[str]] = None, **more: Any) -> Worker:
        """``start_worker("./gravity_worker", label="big", files=["gravity_worker"])``, or a WorkerSpec. Returns when the worker
        has connected back; WorkerFailedError says why it did not."""
        self._session.answer_prompts()
        if args is not None:
            more["args"] = args
        wire = self._session.prepare(_convert.make_spec(WorkerSpec, "executable", spec, more))
        request = client_pb2.StartWorkerRequest(spec=wire, start_key=_waits.new_start_key())
        with self._session.watch(_waits.of_start(request), worker=True):
            where = self._session.call_long("StartWorker", request)
        return Worker(self._session, where)

    # ---- futures

    def start_pilot_async(self, spec: Union[PilotSpec, str], **more: Any) -> Future[Pilot]:
        return in_thread(lambda: self.start_pilot(spec, **more), "start pilot")

    def submit_async(self, spec: Union[CommandSpec, Sequence[str]], **more: Any) -> Future[Job]:
        return in_thread(lambda: self.submit(spec, **more), "submit")

    def wait_all_async(self, jobs: Iterable[Job], limit: Optional[Seconds] = None) -> Future[List[JobInfo]]:
        return in_thread(lambda: self.wait_all(jobs, limit), "wait for jobs")

    def run_async(self, spec: Union[CommandSpec, Sequence[str]], **more: Any) -> Future[JobResult]:
        return in_thread(lambda: self.run(spec, **more), "run")

    def start_worker_async(self, spec: Union[WorkerSpec, str], args: Optional[Sequence[str]] = None, **more: Any) -> Future[Worker]:
        return in_thread(lambda: self.start_worker(spec, args, **more), "start worker")
