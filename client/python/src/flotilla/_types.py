"""What users describe and what they see. Durations are seconds (float) or timedelta, moments are aware datetimes."""

from __future__ import annotations

import datetime
import enum
import os
from dataclasses import dataclass, field
from typing import Dict, List, Mapping, Optional, Sequence, Union

Seconds = Union[float, int, datetime.timedelta]
PathLike = Union[str, "os.PathLike[str]"]


class _Word(str, enum.Enum):
    def __str__(self) -> str:
        return str(self.value)


class ExitKind(_Word):
    NONE = "none"  # has not ended
    EXITED = "exited"  # `code`
    SIGNALED = "signaled"  # `signal`
    TIME_LIMIT = "time_limit"
    CANCELED = "canceled"
    QUEUE_TIMEOUT = "queue_timeout"
    START_TIMEOUT = "start_timeout"  # a worker did not connect in time
    START_FAILED = "start_failed"  # could not be started at all
    PILOT_LOST = "pilot_lost"
    PILOT_ENDED = "pilot_ended"  # its time was up, or it was stopped
    CLIENT_GONE = "client_gone"  # a worker's client went away
    REFUSED = "refused"


class HubState(_Word):
    NONE = "none"
    CONNECTING = "connecting"
    AUTHENTICATING = "authenticating"
    UPLOADING = "uploading"
    STARTING = "starting"
    CONNECTED = "connected"
    UNREACHABLE = "unreachable"
    FAILED = "failed"


class PilotState(_Word):
    SUBMITTED = "submitted"
    STARTING = "starting"
    RUNNING = "running"
    UNREACHABLE = "unreachable"
    DRAINING = "draining"
    FINISHED = "finished"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        return self in (PilotState.FINISHED, PilotState.FAILED)


class JobState(_Word):
    SUBMITTED = "submitted"
    QUEUED = "queued"
    DISPATCHED = "dispatched"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def ended(self) -> bool:
        return self in (JobState.FINISHED, JobState.FAILED, JobState.CANCELED)


@dataclass(frozen=True)
class ExitReason:
    kind: ExitKind = ExitKind.NONE
    code: int = 0
    signal: int = 0
    message: str = ""  # one sentence: "worker gravity_worker on node1 was killed by signal 11 (SIGSEGV)"
    stderr_tail: str = ""  # the last lines
    host: str = ""
    core_dumped: bool = False

    @property
    def ok(self) -> bool:
        return self.kind is ExitKind.EXITED and self.code == 0


# ---- descriptions


@dataclass
class ResourceSpec:
    name: str
    location: str = ""  # user@host:port; empty = this machine
    driver: str = ""  # "local", "ssh"; empty = local without a location, else ssh
    gateway: str = ""  # name of the resource that the connection goes through
    scratch_dir: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    setup: Sequence[str] = ()  # shell lines, run once before each pilot
    transport: str = ""  # "libssh" (default) or "openssh"
    hosts: Sequence[str] = ()  # nodes that the front end reaches by its own ssh; none = the front end itself
    options: Mapping[str, str] = field(default_factory=dict)
    debug: bool = False
    setup_timeout: Seconds = 0  # for all lines of setup together; 0 = 10 minutes


@dataclass
class PilotSpec:
    resource: str
    node_count: int = 1
    slots_per_node: int = 0  # 0 = the node's processors
    time: Seconds = 0  # the pilot ends by itself after this; 0 = no limit
    label: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    idle: Seconds = 0  # ends after this long without a job; 0 = as configured, negative = never
    cutoff: Seconds = 0  # ends after this long without a link; 0 = as configured
    debug: bool = False


@dataclass
class InputFile:
    """Laid into the job's folder before it starts. Sent once, and kept by content."""

    path: Optional[PathLike] = None  # here; None: `content` is what is sent
    name: str = ""  # in the job's folder; empty = the last part of `path`
    content: bytes = b""
    mode: int = 0  # permission bits; 0 = those of the file, or 0644


Files = Sequence[Union[InputFile, PathLike]]


@dataclass
class CommandSpec:
    argv: Sequence[str]  # argv[0] is looked up in PATH of the job's environment
    name: str = ""
    label: str = ""  # empty = any pilot; else the pilot's label or its resource's name
    processes: int = 1
    threads: int = 1  # per process; slots = processes x threads
    env: Mapping[str, str] = field(default_factory=dict)
    working_folder: str = ""  # on the node; empty = here, on this machine; elsewhere a private folder
    files: Files = ()  # if any, or private_folder: runs in a private folder
    private_folder: bool = False
    standard_input: bytes = b""
    open_input: bool = False  # more input comes by Attachment.write
    stdout_file: str = ""  # on the node; empty = kept by the daemon
    stderr_file: str = ""
    merge_stderr: bool = False
    time_limit: Seconds = 0
    queue_timeout: Seconds = 0
    start_timeout: Seconds = 0  # until its input files are there
    kill_grace: Seconds = 0  # between TERM and KILL; 0 = 5 s
    pilot: int = 0  # only this pilot
    debug: bool = False  # the private folder is kept


@dataclass
class WorkerSpec:
    """A code in the AMUSE convention: it is started with port, host and a flag, and connects back."""

    executable: PathLike  # absolute, relative to the job's folder (an input file's name), or in PATH
    args: Sequence[str] = ()  # before port, host and flag
    name: str = ""
    label: str = ""
    processes: int = 1
    threads: int = 1
    mpi: bool = False  # started by mpiexec -n processes
    env: Mapping[str, str] = field(default_factory=dict)
    working_folder: str = ""
    files: Files = ()
    private_folder: bool = False
    stdout_file: str = ""
    stderr_file: str = ""
    time_limit: Seconds = 0
    queue_timeout: Seconds = 0
    start_timeout: Seconds = 0
    kill_grace: Seconds = 0
    pilot: int = 0
    debug: bool = False


# ---- what one sees


@dataclass(frozen=True)
class DaemonInfo:
    build: str
    pid: int
    host: str
    instance: str
    started: Optional[datetime.datetime]
    socket: str
    web_url: str
    state_dir: str
    log_file: str
    config_file: str
    resources: int
    pilots_running: int
    jobs_waiting: int
    jobs_running: int


@dataclass(frozen=True)
class ResourceInfo:
    spec: ResourceSpec
    hub_state: HubState
    hub_message: str  # progress, or the reason for unreachable/failed
    hub_host: str
    hub_build: str
    round_trip: Optional[float]  # seconds


@dataclass(frozen=True)
class TestStep:
    name: str
    status: str  # "running", "ok", "warning", "failed", "skipped"
    message: str
    hint: str
    took: float

    __test__ = False  # no test of pytest


@dataclass(frozen=True)
class NodeInfo:
    index: int
    host: str
    slots: int
    slots_used: int
    connected: bool
    message: str  # why it is not there


@dataclass(frozen=True)
class PilotInfo:
    id: int
    spec: PilotSpec
    state: PilotState
    message: str  # the reason for the state
    nodes: List[NodeInfo]
    slots: int
    slots_used: int
    jobs_running: int
    jobs_done: int
    submitted: Optional[datetime.datetime]
    running: Optional[datetime.datetime]
    ended: Optional[datetime.datetime]
    ends_at: Optional[datetime.datetime]


@dataclass(frozen=True)
class JobInfo:
    id: int
    name: str
    label: str
    state: JobState
    message: str  # why it waits or how it ended
    exit: ExitReason
    attempt: int
    pilot: int
    host: str
    pid: int
    folder: str
    is_worker: bool
    pilot_unreachable: bool  # what is shown is the last that was known
    stdout_bytes: int
    stderr_bytes: int
    calls: int  # workers
    bytes_to_worker: int
    bytes_from_worker: int
    submitted: Optional[datetime.datetime]
    queued: Optional[datetime.datetime]
    dispatched: Optional[datetime.datetime]
    running: Optional[datetime.datetime]
    ended: Optional[datetime.datetime]


@dataclass(frozen=True)
class JobResult:
    info: JobInfo
    standard_output: bytes
    standard_error: bytes

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.standard_output.decode("utf-8", "replace")


@dataclass(frozen=True)
class WhyJob:
    sentence: str
    details: List[str]


@dataclass(frozen=True)
class OutputEvent:
    """Of an Attachment. ``kind``: "state" (`info`), "output" (`stream`, `offset`, `data`), "end" (`exit`; the last one)."""

    kind: str
    stream: int = 1  # 1 stdout, 2 stderr
    offset: int = 0
    data: bytes = b""
    info: Optional[JobInfo] = None
    exit: Optional[ExitReason] = None


@dataclass(frozen=True)
class Prompt:
    kind: str  # "host_key" (answer "yes" or "no"), "secret", "text"
    resource: str
    text: str
    fingerprint: str = ""


Env = Dict[str, str]
