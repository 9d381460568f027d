"""Daemon, Resource, Pilot, Job, Worker for asyncio: the same words as in `flotilla`, to be awaited.

    async with flotilla.aio.Daemon() as daemon:
        result = await daemon.run(["hostname"])
        async with await daemon.start_worker("./gravity_worker", files=["gravity_worker"]) as worker:
            gravity = flotilla.RemoteCode(worker)
            await gravity.evolve_model.async_call(10.0)
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from types import TracebackType
from typing import Any, AsyncIterator, Awaitable, Callable, Iterable, List, Optional, Sequence, Tuple, Type, Union

import grpc
import grpc.aio

from . import _convert, _rpc, _waits
from ._channel import ChannelEnd, take
from ._client import (
    DETACH_LIMIT,
    Followed,
    WorkerChannel,
    attach_inputs,
    deadline_of,
    explanation,
    left_until,
    lost_worker,
    wait_jobs_request,
    wait_pilots_request,
    waited_job,
    waited_pilot,
)
from ._errors import FailedPreconditionError, FlotillaError, InternalError, NotFoundError, TimedOutError, UnavailableError, WorkerFailedError
from ._prompts import Asker, PromptHandler, choose
from ._start import reach_daemon
from ._types import (
    CommandSpec,
    DaemonInfo,
    ExitReason,
    JobInfo,
    JobResult,
    OutputEvent,
    PilotInfo,
    PilotSpec,
    ResourceInfo,
    ResourceSpec,
    Seconds,
    TestStep,
    WhyJob,
    WorkerSpec,
)
from .v1 import client_pb2, types_pb2

__all__ = ["Attachment", "Daemon", "Job", "Pilot", "Resource", "Worker"]

OnProgress = Callable[[str, float], Any]


class Session:
    def __init__(self, path: str, prompts: Optional[PromptHandler], accept_new_host_keys: bool) -> None:
        self._channel = grpc.aio.insecure_channel(_rpc.target(path), options=_rpc.CHANNEL_OPTIONS)
        self.stub = _rpc.Stub(self._channel)
        self._prompts = prompts
        self._accept_new_host_keys = accept_new_host_keys
        self._prompt_task: Optional[asyncio.Task[None]] = None
        self._closed = False
        self._reasons = _waits.Reasons()

    async def close(self) -> None:
        self._closed = True
        if self._prompt_task is not None:
            self._prompt_task.cancel()
            await asyncio.wait([self._prompt_task])
        await self._channel.close(None)

    def check_open(self) -> None:
        if self._closed:
            raise FailedPreconditionError("this Daemon object was closed", "make a new one, or keep it open as long as what it gave is used")

    async def call(self, method: str, request: Any, timeout: Optional[float] = None, wait_for_ready: bool = False) -> Any:
        self.check_open()
        _rpc.check_size(request)
        try:
            return await getattr(self.stub, method)(request, timeout=timeout, wait_for_ready=wait_for_ready)
        except grpc.aio.AioRpcError as error:
            raise _rpc.as_error(error) from None

    async def call_through_restart(
        self, method: str, request: Callable[[], Any], deadline: Optional[float], restart_limit: float = _rpc.RESTART_LIMIT
    ) -> Any:
        lost_at: Optional[float] = None
        self.check_open()
        while True:
            try:
                return await getattr(self.stub, method)(request())
            except grpc.aio.AioRpcError as error:
                lost_at = lost_at or time.monotonic()
                if not _rpc.lost(error):
                    raise _rpc.as_error(error) from None
                limit = lost_at + restart_limit
                await self._await_daemon(error, limit if deadline is None else min(limit, deadline))

    async def _await_daemon(self, error: grpc.aio.AioRpcError, deadline: float) -> None:
        while not self._closed and time.monotonic() < deadline:
            try:
                await self.call("GetInfo", client_pb2.GetInfoRequest(), left_until(deadline), wait_for_ready=True)
                return
            except TimedOutError:
                break
            except UnavailableError:
                pass  # this one ended too
        raise _rpc.as_error(error) from None

    async def stream(self, method: str, request: Any) -> AsyncIterator[Any]:
        self.check_open()
        call = getattr(self.stub, method)(request)
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise _rpc.as_error(error) from None
        finally:
            call.cancel()

    async def progress(self, method: str, request: Any, on_progress: Optional[OnProgress] = None) -> None:
        async for step in self.stream(method, request):
            if step.HasField("error"):
                raise _convert.error(step.error)
            if on_progress is not None:
                on_progress(step.message, step.fraction)

    async def prepare(self, spec: Union[CommandSpec, WorkerSpec], uploads: Optional[_convert.Uploads] = None) -> types_pb2.JobSpec:
        self.check_open()
        uploads = uploads or _convert.Uploads()
        wire, blobs = await asyncio.get_running_loop().run_in_executor(None, _convert.job_spec, spec, uploads)  # it reads files
        try:
            for blob in filter(uploads.is_new, blobs):
                if not (await self.stub.PutBlob(iter([blob.question()]))).present:
                    await self.stub.PutBlob(blob.chunks())
        except grpc.aio.AioRpcError as error:
            raise _rpc.as_error(error) from None
        return wire

    async def job_info(self, id: int) -> JobInfo:
        reply = await self.call("ListJobs", client_pb2.ListJobsRequest(ids=[id]))
        if not reply.jobs:
            raise NotFoundError(f"there is no job {id}", "see 'flotilla job list'")
        return _convert.job_info(reply.jobs[0])

    async def wait_job(self, id: int, running: bool, deadline: Optional[float], restart_limit: float = _rpc.RESTART_LIMIT) -> JobInfo:
        async with self.watch(_waits.of_job(id)):
            while True:
                reply = await self.call_through_restart("WaitJobs", lambda: wait_jobs_request([id], running, deadline), deadline, restart_limit)
                info = waited_job(id, running, reply, deadline)
                if info is not None:
                    return info

    async def wait_jobs(self, ids: List[int], deadline: Optional[float]) -> List[JobInfo]:
        if not ids:
            return []
        async with self.watch(_waits.of_job(ids[-1])):
            reply = await self.call_through_restart("WaitJobs", lambda: wait_jobs_request(ids, False, deadline), deadline)
        return [_convert.job_info(job) for job in reply.jobs]

    async def wait_pilot(self, id: int, ended: bool, deadline: Optional[float]) -> PilotInfo:
        while True:
            reply = await self.call_through_restart("WaitPilots", lambda: wait_pilots_request(id, ended, deadline), deadline)
            info = waited_pilot(id, ended, reply, deadline)
            if info is not None:
                return info

    async def follow(self, followed: Followed, deadline: Optional[float]) -> AsyncIterator[Tuple[int, bytes]]:
        async with self.watch(_waits.of_followed(followed.open)):
            async for each in self._follow(followed, deadline):
                yield each

    async def _follow(self, followed: Followed, deadline: Optional[float]) -> AsyncIterator[Tuple[int, bytes]]:
        self.check_open()
        _rpc.check_size(followed.open)
        lost_at: Optional[float] = None
        while True:
            call = self.stub.Attach(timeout=left_until(deadline))
            try:
                await call.write(client_pb2.AttachInput(open=followed.open))
                async for output in call:
                    lost_at = None
                    new = followed.take(output)
                    if new is not None:
                        yield new
                if followed.exit is None:
                    raise InternalError("the daemon ended the output of a job without its end", retry=True)
                return
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as raised:
                if followed.exit is not None:
                    return
                error = raised if isinstance(raised, grpc.aio.AioRpcError) else await _status_of(call)
                if not followed.may_go_on(error):
                    raise _rpc.as_error(error) from None
                lost_at = lost_at or time.monotonic()
                limit = lost_at + _rpc.RESTART_LIMIT
                await self._await_daemon(error, limit if deadline is None else min(limit, deadline))
                followed.go_on()
            finally:
                call.cancel()

    async def result(self, open: client_pb2.AttachOpen, deadline: Optional[float]) -> JobResult:
        open.output_only = True
        followed = Followed(open)
        texts: Tuple[List[bytes], List[bytes]] = ([], [])
        try:
            async for stream, data in self.follow(followed, deadline):
                texts[stream - 1].append(data)
        except TimedOutError:
            raise TimedOutError("the job has not ended within the time given", retry=True) from None
        info = await self.job_info(followed.open.job) if followed.stale() else followed.info
        return followed.result(info, b"".join(texts[0]), b"".join(texts[1]))

    def watch(self, ask: _waits.Ask, worker: bool = False) -> _Watched:
        return _Watched(self._look, _waits.Wait(ask, worker), self._reasons)

    async def _look(self, request: client_pb2.WhyJobRequest) -> Optional[client_pb2.WhyJobReply]:
        try:
            reply: client_pb2.WhyJobReply = await self.stub.WhyJob(request, timeout=_waits.WHY_LIMIT)
            return reply
        except grpc.aio.AioRpcError:  # the daemon restarts, or the job is over
            return None

    def answer_prompts(self) -> None:
        handler = choose(self._prompts)
        if (handler is None and not self._accept_new_host_keys) or self._prompt_task is not None or self._closed:
            return
        self._prompt_task = asyncio.get_running_loop().create_task(self._run_prompts(handler))

    async def _run_prompts(self, handler: Optional[PromptHandler]) -> None:
        loop = asyncio.get_running_loop()
        answers: asyncio.Queue[client_pb2.PromptAnswer] = asyncio.Queue()

        def answer(id: int, said: Optional[str]) -> None:  # on the asker's thread
            try:
                loop.call_soon_threadsafe(answers.put_nowait, _convert.prompt_answer(id, said))
            except RuntimeError:
                pass  # the loop was closed meanwhile

        asker = Asker(handler, answer)
        call = self.stub.Prompts()
        sending = loop.create_task(self._send_answers(call, answers))
        try:
            async for wire in call:
                if wire.withdrawn:
                    asker.withdraw(wire.id)
                else:
                    asker.ask(wire.id, _convert.prompt(wire))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the daemon ended
        finally:
            asker.close()
            sending.cancel()
            call.cancel()
            self._prompt_task = None

    async def _send_answers(self, call: Any, answers: asyncio.Queue[client_pb2.PromptAnswer]) -> None:
        try:
            await call.write(client_pb2.PromptAnswer(accept_new_host_keys=self._accept_new_host_keys))
            while True:
                await call.write(await answers.get())
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # who reads is told too


class _Watched:
    """While inside, the wait is watched (`_waits`). A task is made only when the wait has lasted."""

    def __init__(self, why: Callable[[client_pb2.WhyJobRequest], Awaitable[Optional[client_pb2.WhyJobReply]]], wait: _waits.Wait, reasons: _waits.Reasons) -> None:
        self._why = why
        self._wait = wait
        self._reasons = reasons
        self._timer: Optional[asyncio.TimerHandle] = None
        self._task: Optional[asyncio.Task[None]] = None

    async def __aenter__(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_waits.FIRST_LOOK, self._begin)

    async def __aexit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
        self._reasons.forget(self._wait)

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while True:
            request = self._wait.ask()
            reply = await self._why(request) if request is not None else None
            now = time.monotonic()
            if reply is not None:
                self._reasons.tell(self._wait, reply, now)
            self._wait.look_later(now)
            await asyncio.sleep(self._wait.next_look - now)


async def _status_of(call: Any) -> grpc.aio.AioRpcError:
    """What a write into an ended call would have said."""
    return grpc.aio.AioRpcError(await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details())


class Resource:
    def __init__(self, session: Session, name: str) -> None:
        self._session = session
        self.name = name

    def __repr__(self) -> str:
        return f"Resource({self.name!r})"

    async def info(self) -> ResourceInfo:
        reply = await self._session.call("ListResources", client_pb2.ListResourcesRequest(name=self.name))
        if not reply.resources:
            raise NotFoundError(f"there is no resource '{self.name}'", "see 'flotilla resource list'")
        return _convert.resource_info(reply.resources[0])

    async def connect(self, on_progress: Optional[OnProgress] = None) -> None:
        self._session.answer_prompts()
        await self._session.progress("ConnectResource", client_pb2.ConnectResourceRequest(name=self.name), on_progress)

    async def disconnect(self) -> None:
        await self._session.progress("ConnectResource", client_pb2.ConnectResourceRequest(name=self.name, disconnect=True))

    async def test(self) -> AsyncIterator[TestStep]:
        self._session.answer_prompts()
        async for step in self._session.stream("TestResource", client_pb2.TestResourceRequest(name=self.name)):
            yield _convert.test_step(step)

    async def remove(self, force: bool = False) -> None:
        await self._session.call("RemoveResource", client_pb2.RemoveResourceRequest(name=self.name, force=force))


class Pilot:
    """Leaving it as a context manager stops it."""

    def __init__(self, session: Session, id: int) -> None:
        self._session = session
        self.id = id

    def __repr__(self) -> str:
        return f"Pilot({self.id})"

    async def __aenter__(self) -> Pilot:
        return self

    async def __aexit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        await self.stop()

    async def info(self) -> PilotInfo:
        reply = await self._session.call("ListPilots", client_pb2.ListPilotsRequest(ids=[self.id], ended=True))
        if not reply.pilots:
            raise NotFoundError(f"there is no pilot {self.id}", "see 'flotilla pilot list'")
        return _convert.pilot_info(reply.pilots[0])

    async def wait(self, limit: Optional[Seconds] = None) -> PilotInfo:
        return await self._session.wait_pilot(self.id, False, deadline_of(limit))

    async def wait_ended(self, limit: Optional[Seconds] = None) -> PilotInfo:
        return await self._session.wait_pilot(self.id, True, deadline_of(limit))

    async def stop(self) -> None:
        await self._session.call("StopPilots", client_pb2.StopPilotsRequest(ids=[self.id]))

    async def drain(self) -> None:
        await self._session.call("StopPilots", client_pb2.StopPilotsRequest(ids=[self.id], drain=True))


class Attachment:
    """``async for event in attachment``. Closing it detaches; the job goes on."""

    def __init__(self, session: Session, open: client_pb2.AttachOpen) -> None:
        session.check_open()
        self._open: Optional[client_pb2.AttachInput] = client_pb2.AttachInput(open=open)
        self._call = session.stub.Attach()
        self._closed = False
        self._over = False  # the call
        self._reading = asyncio.Lock()

    async def __aenter__(self) -> Attachment:
        return self

    async def __aexit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        await self.close()

    def __aiter__(self) -> AsyncIterator[OutputEvent]:
        return self

    async def _start(self) -> None:
        if self._open is not None:
            open, self._open = self._open, None
            await self._call.write(open)

    async def __anext__(self) -> OutputEvent:
        if self._closed:
            raise StopAsyncIteration
        try:
            await self._start()
            async with self._reading:
                output = await self._call.read()
            if output is not grpc.aio.EOF:
                return _convert.output_event(output)
            error = None if await self._call.code() == grpc.StatusCode.OK else await _status_of(self._call)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as raised:
            error = raised if isinstance(raised, grpc.aio.AioRpcError) else await _status_of(self._call)
        self._closed = self._over = True
        if error is None:
            raise StopAsyncIteration
        raise _rpc.as_error(error) from None

    async def _send(self, what: client_pb2.AttachInput) -> None:
        try:
            if not self._closed:
                await self._start()
                await self._call.write(what)
                return
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass
        raise FailedPreconditionError("the job has ended, or the connection to it: no input can be sent")

    async def write(self, what: Union[bytes, str]) -> None:
        for message in attach_inputs(what):
            await self._send(message)

    async def close_input(self) -> None:
        await self._send(client_pb2.AttachInput(stdin_eof=True))

    async def signal(self, number: int) -> None:
        await self._send(client_pb2.AttachInput(signal=number))

    async def resize(self, rows: int, columns: int) -> None:
        await self._send(client_pb2.AttachInput(window=types_pb2.WindowSize(rows=rows, columns=columns)))

    async def close(self) -> None:
        """Returns when the daemon has taken what was written, or after some seconds."""
        if self._closed:
            return
        self._closed = True
        if self._open is None and not self._over and not self._call.done():
            try:
                await asyncio.wait_for(self._detach(), DETACH_LIMIT)
            except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError, asyncio.TimeoutError):
                pass  # the job ended, or the connection; or it does not take its input
        self._call.cancel()

    async def _detach(self) -> None:
        await self._call.write(client_pb2.AttachInput(detach=True))
        await self._call.done_writing()
        async with self._reading:
            while await self._call.read() is not grpc.aio.EOF:
                pass


class Job:
    def __init__(self, session: Session, id: int) -> None:
        self._session = session
        self.id = id

    def __repr__(self) -> str:
        return f"Job({self.id})"

    async def info(self) -> JobInfo:
        return await self._session.job_info(self.id)

    async def wait(self, limit: Optional[Seconds] = None) -> JobInfo:
        return await self._session.wait_job(self.id, False, deadline_of(limit))

    async def wait_running(self, limit: Optional[Seconds] = None) -> JobInfo:
        return await self._session.wait_job(self.id, True, deadline_of(limit))

    async def result(self, limit: Optional[Seconds] = None) -> JobResult:
        return await self._session.result(client_pb2.AttachOpen(job=self.id), deadline_of(limit))

    async def output(self, stream: int = 1) -> bytes:
        followed = Followed(client_pb2.AttachOpen(job=self.id, no_follow=True, output_only=True))
        return b"".join([data async for from_stream, data in self._session.follow(followed, None) if from_stream == stream])

    def follow(self) -> AsyncIterator[Tuple[int, bytes]]:
        return self._session.follow(Followed(client_pb2.AttachOpen(job=self.id, output_only=True)), None)

    def attach(self, from_end: bool = False) -> Attachment:
        return Attachment(self._session, client_pb2.AttachOpen(job=self.id, from_end=from_end))

    async def cancel(self) -> None:
        await self._session.call("CancelJobs", client_pb2.CancelJobsRequest(ids=[self.id]))

    async def signal(self, number: int) -> None:
        await self._session.call("SignalJobs", client_pb2.SignalJobsRequest(ids=[self.id], signal=number))

    async def why(self) -> WhyJob:
        reply = await self._session.call("WhyJob", client_pb2.WhyJobRequest(id=self.id))
        return WhyJob(reply.sentence, list(reply.details))


class Worker(WorkerChannel):
    """Its ``socket`` is a blocking one; flotilla.RemoteCode's ``async_call`` can be awaited. Closing it ends the worker."""

    def __init__(self, session: Session, id: int, taken: Tuple[Any, Any, Any]) -> None:
        super().__init__(id, taken[0], taken[1], ChannelEnd(taken[2]))
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._news: Optional[asyncio.Future[None]] = None  # shared by all who wait for what the control connection says
        self._exits = 0  # who wait

    def __repr__(self) -> str:
        return f"Worker({self.id})"

    async def __aenter__(self) -> Worker:
        return self

    async def __aexit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        self.close()

    @property
    def job(self) -> Job:
        return Job(self._session, self.id)

    async def info(self) -> JobInfo:
        return await self._session.job_info(self.id)

    async def why(self) -> WhyJob:
        return await self.job.why()

    async def exit(self, limit: Optional[Seconds] = 0) -> Optional[ExitReason]:
        deadline = deadline_of(limit)
        try:
            while True:
                reason = self._end.read(time.monotonic())
                left = left_until(deadline)
                if reason is not None or self.closed or left == 0:
                    return reason
                await self._wait_for_news(left)
        except UnavailableError as gone:
            try:
                return await self._journalled_exit(deadline, _rpc.RESTART_LIMIT)
            except FlotillaError:
                return self._end.settle(lost_worker(self.id, gone))

    async def _wait_for_news(self, limit: Optional[float]) -> None:
        """Until the control connection says something, this is closed, or the time is over."""
        if self._news is None:
            self._news = self._loop.create_future()
            self._loop.add_reader(self._end.fileno(), self._wake)
        self._exits += 1
        try:
            await asyncio.wait([self._news], timeout=limit)
        finally:
            self._exits -= 1
            if not self._exits:
                self._wake()

    def _wake(self) -> None:
        if self._news is None:
            return
        if not self._loop.is_closed():
            self._loop.remove_reader(self._end.fileno())
            if not self._news.done():
                self._news.set_result(None)
        self._news = None

    def close(self) -> None:
        """Ends the worker."""
        self._wake()
        super().close()

    async def _journalled_exit(self, deadline: Optional[float], restart_limit: float) -> ExitReason:
        at_least = time.monotonic() + _rpc.CAUSE_LIMIT
        info = await self._session.wait_job(self.id, False, None if deadline is None else max(deadline, at_least), restart_limit)
        return self._end.settle(info.exit)

    def explain_end(self) -> str:
        """For an error message after the stream ended. On another thread than the loop's it tells what the daemon knows; on the loop's,
        which must not wait for itself, only what the channel said."""
        try:
            return explanation(self._end.read(deadline_of(_rpc.CAUSE_LIMIT)))
        except UnavailableError as gone:
            text = explanation(lost_worker(self.id, gone))
            if self._loop is _running_loop() or not self._loop.is_running():
                return text
            asked = asyncio.run_coroutine_threadsafe(self._journalled_exit(time.monotonic(), _rpc.DEAD_LIMIT), self._loop)
            try:
                return explanation(asked.result(_rpc.CAUSE_LIMIT + 2 * _rpc.DEAD_LIMIT))
            except FlotillaError as silent:
                return f"{text}; {silent.message}"
            except (TimeoutError, concurrent.futures.TimeoutError, concurrent.futures.CancelledError):  # the loop ends, or is busy
                asked.cancel()
                return text

    async def check(self) -> None:
        reason = await self.exit(0)
        if reason is not None and not self.closed:
            raise WorkerFailedError(reason.message, exit=reason)

    async def cancel(self) -> None:
        await self.job.cancel()


def _running_loop() -> Optional[asyncio.AbstractEventLoop]:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class Daemon:
    """``async with Daemon() as daemon``, or ``daemon = await Daemon().open()`` and ``await daemon.close()``. Arguments as in flotilla.Daemon."""

    def __init__(
        self,
        socket: Optional[str] = None,
        *,
        start: bool = True,
        program: Optional[str] = None,
        prompts: Optional[PromptHandler] = None,
        accept_new_host_keys: bool = False,
    ) -> None:
        self._reach = (socket, start, program)
        self._answers = (prompts, accept_new_host_keys)
        self._opened: Optional[Session] = None

    @property
    def _session(self) -> Session:
        if self._opened is None:
            raise FailedPreconditionError("this Daemon object is not open", "write: async with Daemon() as daemon")
        return self._opened

    async def open(self) -> Daemon:
        path = await asyncio.get_running_loop().run_in_executor(None, reach_daemon, *self._reach)
        session = Session(path, *self._answers)
        try:
            _rpc.check_protocol(await session.call("GetInfo", client_pb2.GetInfoRequest()))
        except BaseException:
            await session.close()
            raise
        self._opened = session
        return self

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.close()

    async def __aenter__(self) -> Daemon:
        return await self.open()

    async def __aexit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        await self.close()

    async def info(self) -> DaemonInfo:
        return _convert.daemon_info(await self._session.call("GetInfo", client_pb2.GetInfoRequest()))

    async def shutdown(self, all: bool = False) -> None:
        await self._session.progress("Shutdown", client_pb2.ShutdownRequest(all=all))

    async def add_resource(self, spec: Union[ResourceSpec, str], *, replace: bool = False, **more: Any) -> Resource:
        made = _convert.make_spec(ResourceSpec, "name", spec, more)
        await self._session.call("AddResource", client_pb2.AddResourceRequest(spec=_convert.resource_spec(made), replace=replace))
        return Resource(self._session, made.name)

    async def resource(self, name: str) -> Resource:
        resource = Resource(self._session, name)
        await resource.info()
        return resource

    async def resources(self) -> List[ResourceInfo]:
        return [_convert.resource_info(each) for each in (await self._session.call("ListResources", client_pb2.ListResourcesRequest())).resources]

    async def start_pilot(self, spec: Union[PilotSpec, str], **more: Any) -> Pilot:
        self._session.answer_prompts()
        made = _convert.make_spec(PilotSpec, "resource", spec, more)
        reply = await self._session.call("StartPilot", client_pb2.StartPilotRequest(spec=_convert.pilot_spec(made), count=1))
        return Pilot(self._session, reply.id)

    async def pilot(self, id: int) -> Pilot:
        pilot = Pilot(self._session, id)
        await pilot.info()
        return pilot

    async def pilots(self, ended: bool = False) -> List[PilotInfo]:
        return [_convert.pilot_info(each) for each in (await self._session.call("ListPilots", client_pb2.ListPilotsRequest(ended=ended))).pilots]

    async def submit(self, spec: Union[CommandSpec, Sequence[str]], **more: Any) -> Job:
        return (await self.submit_many([_convert.make_spec(CommandSpec, "argv", spec, more)]))[0]

    async def submit_many(self, specs: Iterable[CommandSpec]) -> List[Job]:
        uploads = _convert.Uploads()
        wires = [await self._session.prepare(spec, uploads) for spec in specs]
        ids = (await self._session.call("Submit", client_pb2.SubmitRequest(specs=wires))).ids
        if len(ids) != len(wires):
            raise InternalError(f"the daemon took {len(ids)} of {len(wires)} jobs")
        return [Job(self._session, id) for id in ids]

    async def wait_all(self, jobs: Iterable[Job], limit: Optional[Seconds] = None) -> List[JobInfo]:
        """Waits for the ends of all, in one call."""
        return await self._session.wait_jobs([job.id for job in jobs], deadline_of(limit))

    async def run(self, spec: Union[CommandSpec, Sequence[str]], **more: Any) -> JobResult:
        wire = await self._session.prepare(_convert.make_spec(CommandSpec, "argv", spec, more))
        return await self._session.result(client_pb2.AttachOpen(submit=wire), None)

    async def job(self, id: int) -> Job:
        job = Job(self._session, id)
        await job.info()
        return job

    async def jobs(self, limit: int = 0) -> List[JobInfo]:
        return [_convert.job_info(each) for each in (await self._session.call("ListJobs", client_pb2.ListJobsRequest(limit=limit))).jobs]

    async def start_worker(self, spec: Union[WorkerSpec, str], args: Optional[Sequence[str]] = None, **more: Any) -> Worker:
        """Canceled, it is withdrawn at the daemon too."""
        session = self._session
        session.answer_prompts()
        if args is not None:
            more["args"] = args
        wire = await session.prepare(_convert.make_spec(WorkerSpec, "executable", spec, more))
        request = client_pb2.StartWorkerRequest(spec=wire, start_key=_waits.new_start_key())
        async with session.watch(_waits.of_start(request), worker=True):
            where = await session.call("StartWorker", request)
        taking: Awaitable[Tuple[Any, Any, Any]] = asyncio.get_running_loop().run_in_executor(None, take, where.socket, where.ticket)
        return Worker(session, where.job, await taking)
