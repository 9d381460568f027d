"""Between what users write and see, and what travels. Nothing here does I/O, except that input files are read to know their hash."""

from __future__ import annotations

import datetime
import hashlib
import os
import stat
from dataclasses import dataclass, fields
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple, Type, TypeVar, Union

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
    wire = types_pb2.ResourceSpec()
    _put(
        wire,
        name=_text("name", spec.name),
        location=_text("location", spec.location),
        driver=_text("driver", spec.driver),
        gateway=_text("gateway", spec.gateway),
        scratch_dir=_text("scratch_dir", spec.scratch_dir),
        env=_map("env", spec.env),
        setup=_texts("setup", spec.setup),
        transport=_text("transport", spec.transport),
        hosts=_texts("hosts", spec.hosts),
        options=_map("options", spec.options),
        debug=spec.debug,
        setup_timeout_ms=_ms("setup_timeout", spec.setup_timeout),
    )
    return wire


def pilot_spec(spec: PilotSpec) -> types_pb2.PilotSpec:
    wire = types_pb2.PilotSpec()
    idle = _ms("idle", spec.idle)
    _put(
        wire,
        resource=_text("resource", spec.resource),
        node_count=spec.node_count,
        slots_per_node=spec.slots_per_node,
        time_ms=_ms("time", spec.time),
        label=_text("label", spec.label),
        options=_map("options", spec.options),
        idle_ms=-1 if seconds(spec.idle) < 0 else idle,
        cutoff_ms=_ms("cutoff", spec.cutoff),
        debug=spec.debug,
    )
    return wire


def _put(wire: Any, **given: Any) -> None:
    """Each into the field of its name; what does not fit there is named."""
    for name, value in given.items():
        try:
            if isinstance(value, dict):
                getattr(wire, name).update(value)
            elif isinstance(value, list):
                getattr(wire, name).extend(value)
            else:
                setattr(wire, name, value)
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(f"{name} cannot be {value!r}: {error}") from None


def _text(name: str, given: Any, hint: str = "") -> str:
    try:
        text = os.fsdecode(given)
    except TypeError:
        raise InvalidArgumentError(f"{name} is no text: {given!r}", f"write {str(given)!r}" if isinstance(given, (int, float)) else hint) from None
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"{name} is not UTF-8: {given!r}", hint) from None
    return text


def _texts(name: str, given: Sequence[Any]) -> List[str]:
    if isinstance(given, (str, bytes)):
        raise InvalidArgumentError(f"{name} is one text, not a list of them: {given!r}", f"write [{given!r}]")
    return [_text(f"{name}[{at}]", each) for at, each in enumerate(given)]


def _map(name: str, given: Mapping[str, Any]) -> Dict[str, str]:
    try:
        items = dict(given).items()
    except (TypeError, ValueError):
        raise InvalidArgumentError(f"{name} is no mapping of names to texts: {given!r}") from None
    return {_text(f"a name in {name}", key): _text(f"{name}[{key!r}]", value) for key, value in items}


def _ms(name: str, given: Seconds) -> int:
    try:
        return milliseconds(given)
    except (TypeError, ValueError, OverflowError):
        raise InvalidArgumentError(f"{name} is no number of seconds: {given!r}") from None


def content(name: str, given: Any) -> bytes:
    try:
        return given.encode() if isinstance(given, str) else bytes(memoryview(given))
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"{name} is a text that is not UTF-8", "give it as bytes") from None
    except TypeError:
        raise InvalidArgumentError(f"{name} is neither bytes nor text: {type(given).__name__}") from None


def _client_folder(working_folder: str) -> str:
    try:
        folder = os.getcwd()
        folder.encode()
    except OSError:  # it was removed
        return ""
    except UnicodeEncodeError:
        if working_folder.startswith("/"):
            return ""  # not needed
        raise InvalidArgumentError(f"the folder that this program runs in is not UTF-8: {folder!r}", "give working_folder, or go elsewhere") from None
    return folder


def _common(spec: Union[CommandSpec, WorkerSpec]) -> types_pb2.JobSpec:
    wire = types_pb2.JobSpec()
    working_folder = _text("working_folder", spec.working_folder)
    _put(
        wire,
        name=_text("name", spec.name),
        label=_text("label", spec.label),
        processes=spec.processes,
        threads=spec.threads,
        env=_map("env", spec.env),
        working_folder=working_folder,
        client_folder=_client_folder(working_folder),
        time_limit_ms=_ms("time_limit", spec.time_limit),
        queue_timeout_ms=_ms("queue_timeout", spec.queue_timeout),
        start_timeout_ms=_ms("start_timeout", spec.start_timeout),
        kill_grace_ms=_ms("kill_grace", spec.kill_grace),
        private_folder=spec.private_folder,
        debug=spec.debug,
        pilot=spec.pilot,
    )
    return wire


@dataclass(frozen=True)
class Blob:
    """The content of an input file, to be uploaded unless the daemon has it."""

    sha256: bytes
    path: Optional[str]
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


class Uploads:
    """The input files of one call: one that many descriptions name is read once, and asked for once."""

    def __init__(self) -> None:
        self._digests: Dict[Tuple[object, ...], bytes] = {}
        self._sent: Set[bytes] = set()

    def is_new(self, blob: Blob) -> bool:
        new = blob.sha256 not in self._sent
        self._sent.add(blob.sha256)
        return new

    def read(self, file: InputFile) -> Tuple[Blob, int, int]:
        """With size and mode."""
        if file.path is None:
            data = content("the content of an input file", file.content)
            return Blob(hashlib.sha256(data).digest(), None, data), len(data), 0
        try:
            path = os.path.abspath(os.fsdecode(file.path))
            with open(path, "rb") as opened:
                info = os.fstat(opened.fileno())
                if not stat.S_ISREG(info.st_mode):
                    raise InvalidArgumentError(f"the input file {path} is not a regular file")
                key = (path, info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)
                if key not in self._digests:
                    digest = hashlib.sha256()
                    while data := opened.read(BLOB_CHUNK):
                        digest.update(data)
                    self._digests[key] = digest.digest()
        except TypeError:
            raise InvalidArgumentError(f"an input file is no path: {file.path!r}") from None
        except (OSError, ValueError) as error:
            raise NotFoundError(f"cannot read the input file {os.fsdecode(file.path)!r}: {getattr(error, 'strerror', None) or error}") from None
        return Blob(self._digests[key], path, b""), info.st_size, info.st_mode & 0o777


def job_spec(spec: Union[CommandSpec, WorkerSpec], uploads: Uploads) -> Tuple[types_pb2.JobSpec, List[Blob]]:
    """What is submitted, and what has to be uploaded before."""
    wire = _common(spec)
    if isinstance(spec, CommandSpec):
        _put(
            wire.command,
            argv=_texts("argv", spec.argv),
            stdin_data=content("standard_input", spec.standard_input),
            stdin_open=spec.open_input,
            stdout_file=_text("stdout_file", spec.stdout_file),
            stderr_file=_text("stderr_file", spec.stderr_file),
            merge_stderr=spec.merge_stderr,
        )
    else:
        _put(
            wire.worker,
            executable=_text("executable", spec.executable),
            args=_texts("args", spec.args),
            mpi=spec.mpi,
            stdout_file=_text("stdout_file", spec.stdout_file),
            stderr_file=_text("stderr_file", spec.stderr_file),
        )
    blobs = []
    if isinstance(spec.files, (str, bytes, os.PathLike)):
        raise InvalidArgumentError(f"files is one path, not a list of them: {spec.files!r}", f"write [{spec.files!r}]")
    for each in spec.files:
        file = each if isinstance(each, InputFile) else InputFile(path=each)
        blob, size, mode = uploads.read(file)
        name = file.name or (os.path.basename(blob.path) if blob.path is not None else "")
        _put(wire.files.add(), name=_text("the name of an input file", name, "give another: InputFile(path, name)"), sha256=blob.sha256, size=size, mode=file.mode or mode)
        blobs.append(blob)
    return wire, blobs


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


def prompt_answer(id: int, said: Any) -> client_pb2.PromptAnswer:
    try:
        return client_pb2.PromptAnswer(id=id, text=said or "", refused=said is None)
    except (TypeError, ValueError):  # a handler's answer that is no text
        return client_pb2.PromptAnswer(id=id, refused=True)


def output_event(wire: client_pb2.AttachOutput) -> OutputEvent:
    if wire.HasField("job"):
        return OutputEvent("state", info=job_info(wire.job))
    if wire.HasField("output"):
        return OutputEvent("output", wire.output.stream, wire.output.offset, wire.output.data)
    return OutputEvent("end", exit=exit_reason(wire.end))


def error(wire: types_pb2.Error) -> FlotillaError:
    kind = BY_CODE.get(wire.code, InternalError)
    return kind(wire.message, wire.hint, retry=wire.retry, faults=list(wire.faults), exit=exit_reason(wire.exit) if wire.HasField("exit") else None)
