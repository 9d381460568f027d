"""Everything that goes wrong, typed: the same classes as in C++ (<flotilla/client.hpp>)."""

from __future__ import annotations

import enum
from typing import Dict, Optional, Sequence, Tuple, Type

from ._types import ExitReason


class ErrorCode(enum.IntEnum):
    INVALID_ARGUMENT = 1
    NOT_FOUND = 2
    ALREADY_EXISTS = 3
    FAILED_PRECONDITION = 4
    UNAVAILABLE = 5
    PERMISSION_DENIED = 6
    AUTHENTICATION_FAILED = 7
    HOST_KEY_UNKNOWN = 8
    HOST_KEY_CHANGED = 9
    TIMED_OUT = 10
    CANCELED = 11
    UNSUPPORTED = 12
    RESOURCE_EXHAUSTED = 13
    VERSION_MISMATCH = 14
    WORKER_FAILED = 15
    INTERNAL = 16
    JOB_FAILED = 100  # made here: Job.result() of a job that did not finish well


class FlotillaError(Exception):
    """What all errors derive from. ``str()`` is the message with faults, the last lines of stderr, and the hint."""

    code: ErrorCode = ErrorCode.INTERNAL

    def __init__(
        self,
        message: str,
        hint: str = "",
        *,
        retry: bool = False,
        faults: Sequence[str] = (),
        exit: Optional[ExitReason] = None,
    ) -> None:
        super().__init__(message)
        self.message = message  # names the thing and the cause
        self.hint = hint  # the next step, often a command
        self.retry = retry  # the same call may succeed later
        self.faults: Tuple[str, ...] = tuple(faults)  # all that is wrong with a description
        self.exit = exit  # how the worker or job ended

    def __str__(self) -> str:
        lines = [self.message, *(f"  - {fault}" for fault in self.faults)]
        if self.exit is not None and self.exit.stderr_tail:
            lines += ["last lines of its stderr:", self.exit.stderr_tail.rstrip("\n")]
        if self.hint:
            lines.append(self.hint)
        return "\n".join(lines)

    def __reduce__(self) -> Tuple[object, ...]:  # survives pickling: process pools hand exceptions on
        return (_make, (type(self), self.message, self.hint, self.retry, self.faults, self.exit))


def _make(kind: Type[FlotillaError], message: str, hint: str, retry: bool, faults: Sequence[str], exit: Optional[ExitReason]) -> FlotillaError:
    return kind(message, hint, retry=retry, faults=faults, exit=exit)


class InvalidArgumentError(FlotillaError):
    """What was asked for can never be right; ``faults`` lists all that is wrong."""

    code = ErrorCode.INVALID_ARGUMENT


class NotFoundError(FlotillaError):
    code = ErrorCode.NOT_FOUND


class AlreadyExistsError(FlotillaError):
    code = ErrorCode.ALREADY_EXISTS


class FailedPreconditionError(FlotillaError):
    """Right in itself, not in the present state."""

    code = ErrorCode.FAILED_PRECONDITION


class UnavailableError(FlotillaError):
    """A machine or process cannot be reached."""

    code = ErrorCode.UNAVAILABLE


class PermissionDeniedError(FlotillaError):
    code = ErrorCode.PERMISSION_DENIED


class AuthenticationFailedError(FlotillaError):
    code = ErrorCode.AUTHENTICATION_FAILED


class HostKeyUnknownError(FlotillaError):
    code = ErrorCode.HOST_KEY_UNKNOWN


class HostKeyChangedError(FlotillaError):
    code = ErrorCode.HOST_KEY_CHANGED


class TimedOutError(FlotillaError, TimeoutError):
    code = ErrorCode.TIMED_OUT


class CanceledError(FlotillaError):
    code = ErrorCode.CANCELED


class UnsupportedError(FlotillaError):
    code = ErrorCode.UNSUPPORTED


class ResourceExhaustedError(FlotillaError):
    code = ErrorCode.RESOURCE_EXHAUSTED


class VersionMismatchError(FlotillaError):
    code = ErrorCode.VERSION_MISMATCH


class WorkerFailedError(FlotillaError):
    """A code worker did not start, or died; ``exit`` says how."""

    code = ErrorCode.WORKER_FAILED


class JobFailedError(FlotillaError):
    """``exit`` says how."""

    code = ErrorCode.JOB_FAILED


class InternalError(FlotillaError):
    """A defect of Flotilla."""

    code = ErrorCode.INTERNAL


BY_CODE: Dict[int, Type[FlotillaError]] = {
    int(kind.code): kind
    for kind in (
        InvalidArgumentError,
        NotFoundError,
        AlreadyExistsError,
        FailedPreconditionError,
        UnavailableError,
        PermissionDeniedError,
        AuthenticationFailedError,
        HostKeyUnknownError,
        HostKeyChangedError,
        TimedOutError,
        CanceledError,
        UnsupportedError,
        ResourceExhaustedError,
        VersionMismatchError,
        WorkerFailedError,
        JobFailedError,
        InternalError,
    )
}
