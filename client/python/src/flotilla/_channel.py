"""Taking a worker's channel (PROTOCOL.md 5.1), and learning how it ended. Plain sockets: nothing of gRPC is in the way of a call."""

from __future__ import annotations

import mmap
import os
import select
import socket
import threading
import time
from typing import List, Optional, Tuple

from google.protobuf import json_format

from . import _convert
from ._errors import InternalError, TimedOutError, UnavailableError
from ._start import connect_unix
from ._types import ExitReason
from .v1 import types_pb2

TAKE_LIMIT = 10.0  # the giver of a channel answers at once; it may be busy
_LINE_LIMIT = 256 << 10
_COUNTERS_BYTES = 24


def _wait_readable(sock: socket.socket, deadline: Optional[float]) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(None if deadline is None else max(0, int((deadline - time.monotonic()) * 1000 + 0.999))))


def take(path: str, ticket: bytes, limit: float = TAKE_LIMIT) -> Tuple[socket.socket, mmap.mmap, socket.socket]:
    """The stream, the counters, and the connection that brought them."""
    deadline = time.monotonic() + limit
    try:
        control = connect_unix(path)
    except OSError as error:
        raise UnavailableError(f"the channel cannot be taken at {path}: {error.strerror}") from None
    fds: List[int] = []
    try:
        control.sendall(b"FLOTILLA-TAKE 1 " + ticket.hex().encode() + b"\n")
        reply = b""
        while reply != b"OK\n" and not reply.endswith(b"\n"):
            if not _wait_readable(control, deadline):
                raise TimedOutError(f"nobody handed the channel over at {path} within {limit:g} s")
            # The first three bytes by themselves: what follows an OK is another message.
            data, received, _, _ = socket.recv_fds(control, 3 - len(reply) if len(reply) < 3 else 4096, 8, socket.MSG_CMSG_CLOEXEC)
            fds += received
            if not data:
                raise UnavailableError(f"the channel's giver at {path} closed the connection without an answer")
            reply += data
            if len(reply) > _LINE_LIMIT:
                raise InternalError("the answer to a request for a channel has no end")
        if reply != b"OK\n":
            wire = types_pb2.Error()
            _parse(b"ERROR ", reply[:-1], wire)
            raise _convert.error(wire)
        if len(fds) != 2:
            raise InternalError(f"a channel was handed over with {len(fds)} sockets instead of 2")
        counters = mmap.mmap(fds[1], _COUNTERS_BYTES)
        stream = socket.socket(fileno=fds[0])
        fds.remove(stream.fileno())
        stream.setblocking(True)
        if stream.family in (socket.AF_INET, socket.AF_INET6):
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return stream, counters, control
    except BaseException:
        control.close()
        raise
    finally:
        for fd in fds:
            os.close(fd)


def _parse(word: bytes, line: bytes, into: object) -> None:
    if not line.startswith(word):
        raise InternalError(f"what came over a channel's control connection is no line that starts with {word.decode()}")
    try:
        json_format.Parse(line[len(word) :], into, ignore_unknown_fields=True)  # type: ignore[type-var]
    except json_format.ParseError as error:
        raise InternalError(f"a line on a channel's control connection is not understood: {error}") from None


class ChannelEnd:
    """The control connection of a taken channel: closing it tells the giver that the client is gone; it says how the worker ended."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._lock = threading.Lock()  # never held while waiting: a wait with a limit may stand beside one without
        self._waiting = 0
        self._partial = b""
        self._ended: Optional[ExitReason] = None
        self.closed = False

    def fileno(self) -> int:
        return self._control.fileno()

    def known(self) -> Optional[ExitReason]:
        return self._ended

    def settle(self, reason: ExitReason) -> ExitReason:
        self._ended = self._ended or reason
        return self._ended

    def read(self, deadline: Optional[float]) -> Optional[ExitReason]:
        """None: not within that time, or closed here. UnavailableError: the giver went away without a word."""
        with self._lock:
            self._waiting += 1
        try:
            while True:
                with self._lock:
                    if self.closed or self._take_line():
                        return self._ended
                if not _wait_readable(self._control, deadline):
                    return None
        finally:
            with self._lock:
                self._waiting -= 1
                self._let_go()

    def _take_line(self) -> bool:
        """What is there, without waiting. True: the end is known."""
        while self._ended is None:
            line, newline, _ = self._partial.partition(b"\n")
            if newline:
                wire = types_pb2.ExitReason()
                _parse(b"END ", line, wire)
                self._ended = _convert.exit_reason(wire)
                break
            if len(self._partial) > _LINE_LIMIT:
                raise InternalError("the end of a channel is told by a line without an end")
            try:
                data = self._control.recv(4096, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError:
                data = b""
            if not data:
                raise UnavailableError("the process that gave the channel went away without a word")
            self._partial += data
        return True

    def _let_go(self) -> None:
        if self.closed and not self._waiting:
            self._control.close()

    def close(self) -> None:
        with self._lock:
            if self.closed:
                return
            self.closed = True
            try:
                self._control.shutdown(socket.SHUT_RDWR)  # wakes who waits in read(); the last of them closes it
            except OSError:
                pass
            self._let_go()
