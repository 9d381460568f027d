"""Flotilla: say where work runs, start it, and use a remote code as if it were local.

    import flotilla

    with flotilla.Daemon() as daemon:                                    # starts the daemon when none runs
        daemon.add_resource("hpc1", location="me@hpc1.example.org")
        pilot = daemon.start_pilot("hpc1", label="big")
        print(daemon.run(["hostname"], label="big").text)
        with daemon.start_worker("./gravity_worker", files=["gravity_worker"], label="big") as worker:
            gravity = flotilla.RemoteCode(worker)
            gravity.evolve_model(10.0)

Calls that wait for a job, a pilot, a login or a worker's start have a twin with ``_async`` that returns a concurrent.futures.Future; in
flotilla.aio, which has the same classes for asyncio, all are awaited.
What goes wrong is raised as a FlotillaError. For people who write codes: flotilla.worker, which needs nothing but the standard library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List

# What needs gRPC is imported when it is first asked for: `flotilla.worker` must work where gRPC is not installed.
_HOMES = {
    "_client": ("Attachment", "Daemon", "Job", "Pilot", "Resource", "Worker"),
    "_errors": (
        "AlreadyExistsError",
        "AuthenticationFailedError",
        "CanceledError",
        "ErrorCode",
        "FailedPreconditionError",
        "FlotillaError",
        "HostKeyChangedError",
        "HostKeyUnknownError",
        "InternalError",
        "InvalidArgumentError",
        "JobFailedError",
        "NotFoundError",
        "PermissionDeniedError",
        "ResourceExhaustedError",
        "TimedOutError",
        "UnavailableError",
        "UnsupportedError",
        "VersionMismatchError",
        "WorkerFailedError",
    ),
    "_prompts": ("PromptHandler", "ask_on_terminal"),
    "_types": (
        "CommandSpec",
        "DaemonInfo",
        "ExitKind",
        "ExitReason",
        "HubState",
        "InputFile",
        "JobInfo",
        "JobResult",
        "JobState",
        "NodeInfo",
        "OutputEvent",
        "PilotInfo",
        "PilotSpec",
        "PilotState",
        "Prompt",
        "ResourceInfo",
        "ResourceSpec",
        "TestStep",
        "WhyJob",
        "WorkerSpec",
    ),
    "code": ("CallError", "ChannelClosed", "CodeError", "MessageError", "PendingCall", "RemoteCode", "wait_all", "wait_any"),
}
_MODULES = ("aio", "code", "worker")
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)

if TYPE_CHECKING:
    from . import aio, code, worker
    from ._client import Attachment, Daemon, Job, Pilot, Resource, Worker
    from ._errors import (
        AlreadyExistsError,
        AuthenticationFailedError,
        CanceledError,
        ErrorCode,
        FailedPreconditionError,
        FlotillaError,
        HostKeyChangedError,
        HostKeyUnknownError,
        InternalError,
        InvalidArgumentError,
        JobFailedError,
        NotFoundError,
        PermissionDeniedError,
        ResourceExhaustedError,
        TimedOutError,
        UnavailableError,
        UnsupportedError,
        VersionMismatchError,
        WorkerFailedError,
    )
    from ._prompts import PromptHandler, ask_on_terminal
    from ._types import (
        CommandSpec,
        DaemonInfo,
        ExitKind,
        ExitReason,
        HubState,
        InputFile,
        JobInfo,
        JobResult,
        JobState,
        NodeInfo,
        OutputEvent,
        PilotInfo,
        PilotSpec,
        PilotState,
        Prompt,
        ResourceInfo,
        ResourceSpec,
        TestStep,
        WhyJob,
        WorkerSpec,
    )
    from .code import CallError, ChannelClosed, CodeError, MessageError, PendingCall, RemoteCode, wait_all, wait_any


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _MODULES:
        return import_module(f".{name}", __name__)
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'flotilla' has no attribute '{name}'")
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> List[str]:
    return sorted({*globals(), *_HOME_OF, *_MODULES})
