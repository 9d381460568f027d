"""Between what users write and see, and what travels. Nothing here does I/O, except that input files are read to know their hash."""

from __future__ import annotations

import datetime
import hashlib
import os
import stat
from dataclasses import dataclass, fields
from typing import Any, Iterator, List, Mapping, Optional, Sequence, Tuple, Type, TypeVar, Union

from ._errors import BY_CODE, FlotillaError, InternalError, InvalidArgumentError, NotFoundError
from ._types import (
    CommandSpec,
    DaemonInfo,
    ExitKind,
    ExitReason,
    HubState,
    InputFile,
    JobInfo,
    JobState,
    NodeInfo,
    OutputEvent,
    PathLike,
    PilotInfo,
    PilotSpec,
    PilotState,
    Prompt,
    ResourceInfo,
    ResourceSpec,
    Seconds,
    TestStep,
    WorkerSpec,
)
from .v1 import client_pb2, types_pb2

BLOB_CHUNK = 1 << 20  # PROTOCOL.md 3.2

_HUB_STATES = tuple(HubState)  # in the order of the messages' enumerators
_PILOT_STATES = tuple(PilotState)
_JOB_STATES = tuple(JobState)
_EXIT_KINDS = tuple(ExitKind)
_STEP_STATES = ("running", "ok", "warning", "failed", "skipped")
_PROMPT_KINDS = ("host_key", "secret", "text")

Spec = TypeVar("Spec")


def seconds(value: Seconds) -> float:
    return value.total_seconds() if isinstance(value, datetime.timedelta) else float(value)


def milliseconds(value: Seconds) -> int:
    """Rounded up: a short time must not become 0, which means none."""
    ms = seconds(value) * 1000
    return int(ms) + (ms > int(ms)) if ms > 0 else int(ms)


def moment(ms: int) -> Optional[datetime.datetime]:
    return datetime.datetime.fromtimestamp(ms / 1000, datetime.timezone.utc) if ms else None


def make_spec(kind: Type[Spec], first: str, given: Any, more: Mapping[str, Any]) -> Spec:
    """A description, or its first field and the others by keyword; unknown ones are refused by name."""
    if isinstance(given, kind):
        if more:
            raise InvalidArgumentError(f"a {kind.__name__} was given, and beside it {', '.join(sorted(more))}", "put everything into one of the two")
        return given
    known = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(more) - known)
    if unknown:
        raise InvalidArgumentError(f"a {kind.__name__} has no {', '.join(unknown)}", f"it has {', '.join(sorted(known))}")
    if given is not None:
        more = {first: given, **more}
    try:
        return kind(**more)
    except TypeError as error:
        raise InvalidArgumentError(f"a {kind.__name__} cannot be made: {error}") from None


# ---- out


def resource_spec(spec: ResourceSpec) -> types_pb2.ResourceSpec:
    return types_pb2.ResourceSpec(
        name=spec.name,
        location=spec.location,
        driver=spec.driver,
        gateway=spec.gateway,
        scratch_dir=spec.scratch_dir,
        env=dict(spec.env),
        setup=_texts("setup", spec.setup),
        transport=spec.transport,
        hosts=_texts("hosts", spec.hosts),
        options=dict(spec.options),
        debug=spec.debug,
        setup_timeout_ms=milliseconds(spec.setup_timeout),
    )


def pilot_spec(spec: PilotSpec) -> types_pb2.PilotSpec:
    return types_pb2.PilotSpec(
        resource=spec.resource,
        node_count=spec.node_count,
        slots_per_node=spec.slots_per_node,
        time_ms=milliseconds(spec.time),
        label=spec.label,
        options=dict(spec.options),
        idle_ms=-1 if seconds(spec.idle) < 0 else milliseconds(spec.idle),
        cutoff_ms=milliseconds(spec.cutoff),
        debug=spec.debug,
    )


def _texts(name: str, given: Sequence[str]) -> List[str]:
    if isinstance(given, (str, bytes)):
        raise InvalidArgumentError(f"{name} is one text, not a list of them: {given!r}", f"write [{given!r}]")
    return [os.fspath(each) for each in given]


def _common(spec: Union[CommandSpec, WorkerSpec]) -> types_pb2.JobSpec:
    try:
        folder = os.getcwd()
    except OSError:  # it was removed
        folder = ""
    return types_pb2.JobSpec(
        name=spec.name,
        label=spec.label,
        processes=spec.processes,
        threads=spec.threads,
        env=dict(spec.env),
        working_folder=os.fspath(spec.working_folder),
        client_folder=folder,
        time_limit_ms=milliseconds(spec.time_limit),
        queue_timeout_ms=milliseconds(spec.queue_timeout),
        kill_grace_ms=milliseconds(spec.kill_grace),
        private_folder=spec.private_folder,
        debug=spec.debug,
        pilot=spec.pilot,
    )


@dataclass(frozen=True)
class Blob:
    """The content of an input file, to be uploaded unless the daemon has it."""

    sha256: bytes
    path: Optional[PathLike]
    content: bytes

    def chunks(self) -> Iterator[client_pb2.BlobChunk]:
        if self.path is None:
            for at in range(0, max(1, len(self.content)), BLOB_CHUNK):
                yield client_pb2.BlobChunk(sha256=self.sha256 if at == 0 else b"", data=self.content[at : at + BLOB_CHUNK])
            return
        with open(self.path, "rb") as file:
            first = True
            while True:
                data = file.read(BLOB_CHUNK)
                if not data and not first:
                    return
                yield client_pb2.BlobChunk(sha256=self.sha256 if first else b"", data=data)
                first = False

    def question(self) -> client_pb2.BlobChunk:
        return client_pb2.BlobChunk(sha256=self.sha256)


def job_spec(spec: Union[CommandSpec, WorkerSpec]) -> Tuple[types_pb2.JobSpec, List[Blob]]:
    """What is submitted, and what has to be uploaded before."""
    wire = _common(spec)
    if isinstance(spec, CommandSpec):
        command = wire.command
        command.argv.extend(_texts("argv", spec.argv))
        command.stdin_data = spec.standard_input.encode() if isinstance(spec.standard_input, str) else spec.standard_input
        command.stdin_open = spec.open_input
        command.stdout_file = os.fspath(spec.stdout_file)
        command.stderr_file = os.fspath(spec.stderr_file)
        command.merge_stderr = spec.merge_stderr
    else:
        wire.start_timeout_ms = milliseconds(spec.start_timeout)
        worker = wire.worker
        worker.executable = os.fspath(spec.executable)
        worker.args.extend(_texts("args", spec.args))
        worker.mpi = spec.mpi
        worker.stdout_file = os.fspath(spec.stdout_file)
        worker.stderr_file = os.fspath(spec.stderr_file)
    blobs = []
    if isinstance(spec.files, (str, bytes, os.PathLike)):
        raise InvalidArgumentError(f"files is one path, not a list of them: {spec.files!r}", f"write [{spec.files!r}]")
    for each in spec.files:
        file = each if isinstance(each, InputFile) else InputFile(path=each)
        blob, size, mode = _read(file)
        name = file.name or (os.path.basename(os.fspath(file.path)) if file.path is not None else "")
        wire.files.add(name=name, sha256=blob.sha256, size=size, mode=file.mode or mode)
        blobs.append(blob)
    return wire, blobs


def _read(file: InputFile) -> Tuple[Blob, int, int]:
    if file.path is None:
        content = file.content.encode() if isinstance(file.content, str) else bytes(file.content)
        return Blob(hashlib.sha256(content).digest(), None, content), len(content), 0
    digest = hashlib.sha256()
    size = 0
    try:
        with open(file.path, "rb") as opened:
            info = os.fstat(opened.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise InvalidArgumentError(f"the input file {os.fspath(file.path)} is not a regular file")
            while True:
                data = opened.read(BLOB_CHUNK)
                if not data:
                    break
                digest.update(data)
                size += len(data)
    except OSError as error:
        raise NotFoundError(f"cannot read the input file {os.fspath(file.path)}: {error.strerror}") from None
    return Blob(digest.digest(), os.path.abspath(file.path), b""), size, info.st_mode & 0o777


# ---- in


def _of(words: Sequence[Any], index: int) -> Any:
    """A newer daemon may know more of them."""
    return words[index] if index < len(words) else words[-1]


def daemon_info(wire: client_pb2.DaemonInfo) -> DaemonInfo:
    return DaemonInfo(
        build=wire.build,
        pid=wire.pid,
        host=wire.host,
        instance=wire.instance,
        started=moment(wire.started_ms),
        socket=wire.socket,
        web_url=wire.web_url,
        state_dir=wire.state_dir,
        log_file=wire.log_file,
        config_file=wire.config_file,
        resources=wire.resources,
        pilots_running=wire.pilots_running,
        jobs_waiting=wire.jobs_waiting,
        jobs_running=wire.jobs_running,
    )


def resource_info(wire: types_pb2.Resource) -> ResourceInfo:
    spec = wire.spec
    return ResourceInfo(
        spec=ResourceSpec(
            name=spec.name,
            location=spec.location,
            driver=spec.driver,
            gateway=spec.gateway,
            scratch_dir=spec.scratch_dir,
            env=dict(spec.env),
            setup=list(spec.setup),
            transport=spec.transport,
            hosts=list(spec.hosts),
            options=dict(spec.options),
            debug=spec.debug,
            setup_timeout=spec.setup_timeout_ms / 1000,
        ),
        hub_state=_of(_HUB_STATES, wire.hub_state),
        hub_message=wire.hub_message,
        hub_host=wire.hub_host,
        hub_build=wire.hub_build,
        round_trip=wire.round_trip_us / 1e6 if wire.round_trip_us else None,
    )


def pilot_info(wire: types_pb2.Pilot) -> PilotInfo:
    spec = wire.spec
    return PilotInfo(
        id=wire.id,
        spec=PilotSpec(
            resource=spec.resource,
            node_count=spec.node_count or 1,
            slots_per_node=spec.slots_per_node,
            time=spec.time_ms / 1000,
            label=spec.label,
            options=dict(spec.options),
            idle=spec.idle_ms / 1000 if spec.idle_ms >= 0 else -1,
            cutoff=spec.cutoff_ms / 1000,
            debug=spec.debug,
        ),
        state=_of(_PILOT_STATES, wire.state),
        message=wire.message,
        nodes=[NodeInfo(each.index, each.host, each.slots, each.slots_used, each.connected, each.message) for each in wire.nodes],
        slots=wire.slots,
        slots_used=wire.slots_used,
        jobs_running=wire.jobs_running,
        jobs_done=wire.jobs_done,
        submitted=moment(wire.submitted_ms),
        running=moment(wire.running_ms),
        ended=moment(wire.ended_ms),
        ends_at=moment(wire.ends_at_ms),
    )


def exit_reason(wire: types_pb2.ExitReason) -> ExitReason:
    return ExitReason(_of(_EXIT_KINDS, wire.kind), wire.code, wire.signal, wire.message, wire.stderr_tail, wire.host, wire.core_dumped)


def job_info(wire: types_pb2.Job) -> JobInfo:
    return JobInfo(
        id=wire.id,
        name=wire.spec.name,
        label=wire.spec.label,
        state=_of(_JOB_STATES, wire.state),
        message=wire.message,
        exit=exit_reason(wire.exit),
        attempt=wire.attempt,
        pilot=wire.pilot,
        host=wire.host,
        pid=wire.pid,
        folder=wire.folder,
        is_worker=wire.spec.HasField("worker"),
        pilot_unreachable=wire.pilot_unreachable,
        stdout_bytes=wire.stdout_bytes,
        stderr_bytes=wire.stderr_bytes,
        calls=wire.channel.calls,
        bytes_to_worker=wire.channel.bytes_to_worker,
        bytes_from_worker=wire.channel.bytes_from_worker,
        submitted=moment(wire.submitted_ms),
        queued=moment(wire.queued_ms),
        dispatched=moment(wire.dispatched_ms),
        running=moment(wire.running_ms),
        ended=moment(wire.ended_ms),
    )


def test_step(wire: client_pb2.TestStep) -> TestStep:
    return TestStep(wire.name, _of(_STEP_STATES, wire.status), wire.message, wire.hint, wire.took_ms / 1000)


def prompt(wire: client_pb2.Prompt) -> Prompt:
    return Prompt(_of(_PROMPT_KINDS, wire.kind), wire.resource, wire.text, wire.fingerprint)


def output_event(wire: client_pb2.AttachOutput) -> OutputEvent:
    if wire.HasField("job"):
        return OutputEvent("state", info=job_info(wire.job))
    if wire.HasField("output"):
        return OutputEvent("output", wire.output.stream, wire.output.offset, wire.output.data)
    return OutputEvent("end", exit=exit_reason(wire.end))


def error(wire: types_pb2.Error) -> FlotillaError:
    kind = BY_CODE.get(wire.code, InternalError)
    return kind(wire.message, wire.hint, retry=wire.retry, faults=list(wire.faults), exit=exit_reason(wire.exit) if wire.HasField("exit") else None)
