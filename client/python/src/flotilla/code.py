"""The calling side: a code worker over its connected socket.

    gravity = RemoteCode(worker)                       # a flotilla.Worker, a socket, or a file descriptor
    energy = gravity.get_total_energy()                # functions by their names, as the worker declares them
    gravity.set_mass(ids, masses)                      # numpy arrays, lists: one message, arrays are not copied
    gravity.get_mass(ids, out=masses)                  # a reply straight into an array that is there
    step = gravity.evolve_model.async_call(10.0)       # sent now; step.result(), or `await step`
    done = wait_any([step, other])                     # several workers at once

A worker made with this project's SDK tells its functions when it is first asked; for any other AMUSE code say them:
``gravity.declare("get_mass", "int32 index -> float64 mass")``. Arguments are scalars, or all those that are arrays have one length and scalars are
repeated. One output is returned as it is, several as a tuple. As in AMUSE, a function's int32 result code comes first: negative raises CodeError, others are
in ``last_result``. Used from several threads, the calls of one code follow one another.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Callable, Deque, Dict, Generator, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

from .worker import (
    _BIG,
    FORMATS,
    HEADER_SIZE,
    MAX_MESSAGE_BYTES,
    SIZES,
    STOP_ID,
    STRING,
    TYPES,
    ChannelClosed,
    Header,
    MessageError,
    MessageStream,
    Signature,
    Unit,
    as_block,
    check_count,
    format_header,
    function_id,
    new_block,
    pack_strings,
    pack_units,
    raw,
)

try:
    import numpy
except ImportError:
    numpy = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import asyncio

__all__ = ["RemoteCode", "Function", "PendingCall", "CallError", "CodeError", "MessageError", "ChannelClosed", "Unit", "wait_any", "wait_all"]

# A reply that is longer is read by a thread, so that an asyncio loop goes on meanwhile.
_THREAD_BYTES = 256 << 10


class CallError(Exception):
    """The worker answered with an error: its text."""


class CodeError(Exception):
    """The function ran and returned a negative result code."""

    def __init__(self, function: str, result: int, row: int) -> None:
        super().__init__(f"function {function} returned {result} (row {row})")
        self.function = function
        self.result = result
        self.row = row


class PendingCall:
    """A call under way. Dropping it is allowed: the reply is then read before the next call."""

    def __init__(
        self,
        code: RemoteCode,
        function: Function,
        rows: int,
        scalar: bool,
        out: Optional[Sequence[Any]],
        call_id: int = 0,
        counts: Tuple[int, ...] = (),
        units: int = 0,
    ) -> None:
        self._code = code
        self._function = function
        self._rows = rows
        self._scalar = scalar
        self._out = out
        self._call_id = call_id  # given when it is sent
        self._counts = counts  # for its header
        self._units = units
        self._done = False
        self._value: Any = None
        self._error: Optional[BaseException] = None
        self._callbacks: List[Callable[[PendingCall], Any]] = []
        self._begun = False  # bytes of the reply were taken
        self.units: List[Unit] = []  # of the reply

    def done(self) -> bool:
        """The reply was read, or has begun to come in, or the channel ended."""
        return self._done or (self._code._pending is self and self._code._readable(0))

    def result(self, timeout: Optional[float] = None) -> Any:
        """The outputs; waits for them. TimeoutError when none came in `timeout` seconds."""
        self._finish(timeout)
        if self._error is not None:
            raise self._error
        return self._value

    def exception(self, timeout: Optional[float] = None) -> Optional[BaseException]:
        self._finish(timeout)
        return self._error

    def add_done_callback(self, callback: Callable[[PendingCall], Any]) -> None:
        """Called with this when the reply was read (at once if it was), by the thread that reads it."""
        self._callbacks.append(callback)
        if self._done:
            self._call_back()

    def fileno(self) -> int:
        """For an event loop: readable = done."""
        return self._code.fileno()

    def _finish(self, timeout: Optional[float] = None) -> None:
        until = None if timeout is None else time.monotonic() + timeout
        while not self._done:
            if until is not None and not self._code._readable(max(0.0, until - time.monotonic())):
                raise TimeoutError(f"function {self._function.name} has not answered within {timeout} s")
            self._code._take_next(self)

    def _set(self, value: Any, error: Optional[BaseException]) -> None:
        self._value, self._error, self._done = value, error, True
        self._call_back()

    def _call_back(self) -> None:
        while True:
            try:
                callback = self._callbacks.pop(0)  # each once, whichever thread comes first
            except IndexError:
                return
            callback(self)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._wait().__await__()

    async def _wait(self) -> Any:
        if not self._done:
            import asyncio

            loop = asyncio.get_running_loop()
            answered: asyncio.Future[None] = loop.create_future()

            def wake() -> None:
                if not answered.done():
                    answered.set_result(None)

            def tell(_: PendingCall) -> None:
                try:
                    loop.call_soon_threadsafe(wake)
                except RuntimeError:
                    pass  # the loop was closed: nobody waits there any more

            self.add_done_callback(tell)
            self._code._taker(loop).serve(self)
            await answered
        return self.result()


class _Taker:
    """Takes the replies of one code in an asyncio loop, as long as calls are awaited there."""

    def __init__(self, code: RemoteCode, loop: asyncio.AbstractEventLoop) -> None:
        self._code = code
        self._loop = loop
        self._calls = 0
        # While the loop looks at the channel: a descriptor of our own, as the channel's may be closed by others meanwhile.
        self._fd = -1
        self._busy = False  # a thread takes a reply

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def serve(self, call: PendingCall) -> None:
        """Takes what comes until this call is done."""
        self._calls += 1
        call.add_done_callback(self._answered)
        if self._fd < 0 and not self._busy and (self._code._pending is None or self._code._readable(0)):
            self._take()
        else:
            self._look()

    def _answered(self, _: PendingCall) -> None:  # by the thread that has read the reply
        try:
            self._loop.call_soon_threadsafe(self._release)
        except RuntimeError:  # the loop was closed
            self._code._takers.pop(self._loop, None)

    def _release(self) -> None:
        self._calls -= 1
        if not self._calls:
            self._look_away()
            if not self._busy:
                self._code._takers.pop(self._loop, None)

    def _look(self) -> None:
        if not self._calls or self._busy or self._fd >= 0:
            return
        if self._code._pending is None and self._code._queue:  # queued while another thread had the channel
            self._loop.call_soon(self._take)
            return
        try:
            self._fd = os.dup(self._code.fileno())
        except OSError:  # closed meanwhile: taking its reply tells so
            self._loop.call_soon(self._take)
            return
        self._loop.add_reader(self._fd, self._take)

    def _look_away(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _take(self) -> None:
        self._look_away()
        code = self._code
        call = code._pending
        if call is not None and call._rows * call._function.reply_bytes <= _THREAD_BYTES and code._lock.acquire(blocking=False):
            try:
                code._take_ready()
            finally:
                code._lock.release()
            self._look()
        elif self._calls:  # a long reply, or another thread is at the channel: the loop goes on meanwhile
            self._busy = True
            self._loop.run_in_executor(None, code._take_ready).add_done_callback(self._taken)

    def _taken(self, taking: asyncio.Future[None]) -> None:
        self._busy = False
        if not taking.cancelled():
            taking.exception()  # what was wrong is told by the call
        if self._calls:
            self._look()
        else:
            self._code._takers.pop(self._loop, None)


class Function:
    """One function of a code."""

    def __init__(self, code: RemoteCode, name: str, signature: str, id: Optional[int] = None, result_code: bool = True) -> None:
        self._code = code
        self.name = name
        self.signature = Signature(signature)
        if not result_code:
            if self.signature.result == 0:
                self.signature.output_counts[0] -= 1
            self.signature.result = None
        self.id = function_id(name) if id is None else id
        self.reply_bytes = sum(c * s for c, s in zip(self.signature.output_counts, SIZES))
        s = self.signature
        self.returned = s.outputs if s.result in (0, None) else (s.result, *s.outputs)
        # Scalar calls without strings are packed and unpacked in one go; `order` is the arguments' order on the wire.
        self.order = sorted(range(len(s.inputs)), key=lambda i: s.inputs[i])
        self.fast = STRING not in s.inputs and STRING not in self.returned
        self.request = struct.Struct("=4B10i" + "".join(FORMATS[s.inputs[i]] for i in self.order))
        reply_order = sorted(range(len(self.returned)), key=lambda i: self.returned[i])
        coded = s.result == 0
        self.reply = struct.Struct("=4B10i" + "i" * coded + "".join(FORMATS[self.returned[i]] for i in reply_order))
        self.places = [15 - (not coded) + reply_order.index(i) for i in range(len(self.returned))]
        self.coded = coded
        self.scalar_header = (self.id, 1, *s.input_counts, 0)
        self.reply_counts = tuple(s.output_counts)

    def __repr__(self) -> str:
        return f"<function {self.name}: {self.signature.text}>"

    def __call__(self, *arguments: Any, out: Any = None, rows: Optional[int] = None, units: Sequence[Unit] = (), **named: Any) -> Any:
        """Calls and waits. `out`: an array, or a sequence of them, for the outputs; `rows`: how many, where no argument tells."""
        code = self._code
        if named:
            arguments = self._bind(arguments, named)
        if self.fast and out is None and rows is None and not units:
            with code._lock:
                pending = code._send_scalar(self, arguments)
                if pending is not None:
                    value = code._receive_scalar(self, pending)
                    return pending.result() if value is code else value
        with code._lock:
            pending, parts = code._prepare(self, arguments, out, rows, units)
            code._finish_all()
            code._send(pending, parts)
            return pending.result()

    def async_call(self, *arguments: Any, out: Any = None, rows: Optional[int] = None, units: Sequence[Unit] = (), **named: Any) -> PendingCall:
        """Sends, and returns what gives the outputs later: by result(), or with `await`. The arguments may change
        then; `out` stays the call's until it is done. A second call on the same code first takes the reply of the first; in a
        running asyncio loop, which must not wait for it, it is sent by the loop when that reply has come."""
        if named:
            arguments = self._bind(arguments, named)
        code = self._code
        pending, parts = code._prepare(self, arguments, out, rows, units)
        loop = _running_loop()
        with code._lock if loop is None else _NotWaiting(code._lock) as locked:
            if loop is None or (locked and code._pending is None and not code._queue):
                code._finish_all()
                code._send(pending, parts)
                return pending
            if code._broken:
                raise ChannelClosed(f"function {self.name} cannot be called: the channel {code._broken}")
            code._queue.append((pending, [b"".join(parts)]))
        code._taker(loop).serve(pending)
        return pending

    def _bind(self, arguments: Tuple[Any, ...], named: Mapping[str, Any]) -> Tuple[Any, ...]:
        names = self.signature.input_names
        values = dict(zip(names, arguments))
        for name, value in named.items():
            if name not in names or name in values:
                raise TypeError(f"function {self.name} ({self.signature.text}): argument '{name}' is {'there twice' if name in values else 'not known'}")
            values[name] = value
        missing = [name for name in names if name not in values]
        if missing:
            raise TypeError(f"function {self.name} ({self.signature.text}): no argument '{missing[0]}'")
        return tuple(values[name] for name in names)


def _running_loop() -> Optional[asyncio.AbstractEventLoop]:
    """Of this thread."""
    if "asyncio" not in sys.modules:
        return None
    import asyncio

    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class _NotWaiting:
    """`with` a lock, if nobody else has it."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._locked = False

    def __enter__(self) -> bool:
        self._locked = self._lock.acquire(blocking=False)
        return self._locked

    def __exit__(self, *exception: Any) -> None:
        if self._locked:
            self._lock.release()


class RemoteCode:
    """A code that runs somewhere, called over `channel`: a connected stream socket, its descriptor (which is taken over), or
    an object with an attribute `socket` (a flotilla.Worker). Leaving it as a context manager tells the code to stop."""

    last_result: int = 0  # result code of the last call (its first row)
    last_units: Sequence[Unit] = ()  # of the last reply

    def __init__(
        self,
        channel: Any,
        functions: Optional[Mapping[str, str]] = None,
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        explain: Optional[Callable[[], str]] = None,
        counters: Optional[Any] = None,
    ) -> None:
        """`functions`: name to signature, for codes that do not tell. `explain`: asked why, when the channel has ended.
        `counters`: three 64-bit numbers (a writable buffer) that are kept up to date: calls, bytes to the worker, bytes from it."""
        self._owner = channel
        if isinstance(channel, int):
            sock = socket.socket(fileno=channel)
        elif isinstance(channel, socket.socket):
            sock = channel
        else:
            sock = channel.socket() if callable(channel.socket) else channel.socket
            explain = explain or getattr(channel, "explain_end", None)
            counters = counters if counters is not None else getattr(channel, "counters", None)
        self._stream = MessageStream(sock, max_message_bytes)
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._lock = threading.RLock()
        self._functions: Dict[str, Function] = {}
        self._described = False
        self._pending: Optional[PendingCall] = None  # whose reply comes next
        self._queue: Deque[Tuple[PendingCall, List[Any]]] = deque()  # sent one after the other when the reply before has come
        self._takers: Dict[asyncio.AbstractEventLoop, _Taker] = {}
        self._call_id = 0
        self._calls = 0
        self._broken = ""
        self._closed = False
        self._explain = explain
        self._counters = memoryview(counters).cast("B").cast("Q") if counters is not None else None
        self._stop = Function(self, "_stop_worker", "-> result none", STOP_ID, False)
        for name, signature in (functions or {}).items():
            self.declare(name, signature)

    def declare(self, name: str, signature: str, id: Optional[int] = None, result_code: bool = True) -> Function:
        """Says what a function takes and gives: ``"int32 index, float64 mass -> float64 radius"``."""
        function = self._functions[name] = Function(self, name, signature, id, result_code)
        return function

    def function(self, name: str) -> Function:
        """The function of that name, also where it is a word of this class (`stop`, `close`, ...)."""
        function = self._functions.get(name) or self.functions().get(name)
        if function is None:
            raise AttributeError(f"the code has no function '{name}'; it has {', '.join(sorted(self._functions)) or 'told none: declare() them'}")
        return function

    def functions(self) -> Mapping[str, Function]:
        """What was declared here and what the worker tells of itself."""
        if not self._described:
            describe = Function(self, "flotilla_describe", "-> string functions")
            try:
                text = describe()
            except CallError:  # another AMUSE code, which does not tell
                text = ""
            self._described = True
            for line in text.splitlines():
                name, _, signature = line.partition(": ")
                if name not in self._functions:
                    self.declare(name, signature)
        return self._functions

    def __getattr__(self, name: str) -> Function:
        if name.startswith("_"):
            raise AttributeError(name)
        function = self.function(name)
        self.__dict__[name] = function  # the next time without coming here
        return function

    def __dir__(self) -> Iterator[str]:
        yield from super().__dir__()
        yield from self._functions

    @property
    def usable(self) -> bool:
        return not self._broken

    def fileno(self) -> int:
        fd: int = self._stream.sock.fileno()
        return fd

    def stop(self) -> None:
        """Ends the worker: it answers and exits."""
        self._stop()

    def close(self) -> None:
        """Closes the channel, which ends a worker too. Calls that wait for their reply raise ChannelClosed."""
        self._closed = True
        self._broken = self._broken or "was closed"
        try:
            self._stream.sock.shutdown(socket.SHUT_RDWR)  # wakes who waits for it
        except OSError:
            pass
        self._stream.sock.close()
        if self._lock.acquire(blocking=False):  # else who has it finds the channel closed
            try:
                self._finish_all()
            finally:
                self._lock.release()

    def __enter__(self) -> RemoteCode:
        return self

    def __exit__(self, *exception: Any) -> None:
        try:
            if self.usable and exception[0] is None:
                self.stop()
        except (ChannelClosed, OSError):
            pass  # it is gone already
        finally:
            self.close()

    # --- sending and receiving; all under the lock ---

    def _taker(self, loop: asyncio.AbstractEventLoop) -> _Taker:
        taker = self._takers.get(loop)
        if taker is None:
            taker = self._takers[loop] = _Taker(self, loop)
        return taker

    def _finish_all(self) -> None:
        """What is under way, and what waits to be sent."""
        while self._pending is not None or self._queue:
            self._take_next()

    def _new_call(self, name: str) -> int:
        """Its number."""
        if self._broken:
            raise ChannelClosed(f"function {name} cannot be called: the channel {self._broken}")
        self._call_id = self._call_id % 1000 + 1
        return self._call_id

    def _guard(self, function: Function, error: BaseException) -> BaseException:
        """What is raised for an error that leaves the channel unusable."""
        if self._closed or self._stream.sock.fileno() < 0:  # here, or by the owner of the socket
            self._broken = self._broken or "was closed"
            return ChannelClosed(f"function {function.name}: the channel {self._broken}")
        if isinstance(error, ChannelClosed):
            why = str(self._explain()) if self._explain else ""
            self._broken = "has ended" + (f": {why}" if why else "")
            return ChannelClosed(f"function {function.name}: {error}" + (f": {why}" if why else ""))
        self._broken = "is out of step" if isinstance(error, MessageError) else f"failed: {error}"
        return error

    def _send_scalar(self, function: Function, arguments: Tuple[Any, ...]) -> Optional[PendingCall]:
        """None: not a call with scalars alone."""
        if len(arguments) != len(function.order):
            return None
        for argument in arguments:
            if not isinstance(argument, (int, float)):  # numpy.float64 is one; bool too
                return None
        if self._pending is not None or self._queue:
            self._finish_all()
        call_id = self._new_call(function.name)
        try:
            request = function.request.pack(
                _BIG, 0, 0, 0, call_id, *function.scalar_header, *[arguments[i] for i in function.order]
            )
        except struct.error as error:
            raise TypeError(f"function {function.name} ({function.signature.text}) cannot take {arguments}: {error}") from None
        self._write(function, [request])
        pending = self._pending = PendingCall(self, function, 1, True, None, call_id)
        return pending

    def _write(self, function: Function, parts: List[Any]) -> None:
        try:
            self._stream.write(parts)
        except OSError as error:
            raise self._guard(function, error) from None
        except BaseException:
            self._broken = "is out of step: sending a call was interrupted"
            raise

    def _receive_scalar(self, function: Function, pending: PendingCall) -> Any:
        """The outputs, or this code itself when the reply is not a plain short one (what was read is in the stream then)."""
        stream = self._stream
        try:
            if stream.begin == stream.end and not stream.fill():
                return self  # the end: told by the usual way
        except OSError:
            return self  # so is this
        reply = function.reply
        if stream.end - stream.begin != reply.size:
            return self
        words = reply.unpack_from(stream.buffer, stream.begin)
        if words[0] != _BIG or words[1] or words[4] != pending._call_id or words[5] != function.id or words[6] != 1 or words[7:13] != function.reply_counts or words[13]:
            return self
        stream.begin = stream.end
        self._pending = None
        self._count()
        if self._queue:
            self._send_queued()
        self.last_units = ()
        if function.coded:
            self.last_result = words[14]
            if words[14] < 0:
                raise CodeError(function.name, words[14], 0)
        places = function.places
        return None if not places else words[places[0]] if len(places) == 1 else tuple([words[i] for i in places])

    def _prepare(
        self, function: Function, arguments: Sequence[Any], out: Any, rows: Optional[int], units: Sequence[Unit]
    ) -> Tuple[PendingCall, List[Any]]:
        """The call, and what follows its header."""
        signature = function.signature
        if len(arguments) != len(signature.inputs):
            raise TypeError(f"function {function.name} takes {len(signature.inputs)} arguments ({signature.text}), not {len(arguments)}")
        scalar = rows is None
        for kind, argument in zip(signature.inputs, arguments):
            if isinstance(argument, str) or not hasattr(argument, "__len__") or (hasattr(argument, "shape") and argument.shape == ()):
                continue
            scalar = False
            if rows is not None and len(argument) != rows:
                raise ValueError(f"function {function.name} is called with arrays of {rows} and of {len(argument)} items")
            rows = len(argument)
        targets = None
        if out is not None:
            targets = list(out) if isinstance(out, (tuple, list)) else [out]
            if rows is None and targets:
                rows = len(targets[0])
        count = 1 if rows is None else rows
        if targets is not None:
            self._check_out(function, targets, count)
            scalar = False
        check_count(count, "rows")
        counts = [n * count for n in signature.input_counts]
        for kind in range(6):
            check_count(counts[kind], TYPES[kind])
        parts: List[Any] = []
        for i in function.order:
            kind = signature.inputs[i]
            if kind != STRING:
                what = f"argument {i + 1} of {function.name} ({signature.text})"
                try:
                    parts.append(raw(as_block(kind, arguments[i], count, what)))
                except (TypeError, OverflowError) as error:
                    raise TypeError(f"{what}: {error}") from None
        strings: List[str] = []
        for kind, argument in zip(signature.inputs, arguments):
            if kind == STRING:
                strings.extend([argument] * count if isinstance(argument, str) else argument)
        for text in strings:
            if not isinstance(text, str):
                raise TypeError(f"function {function.name} ({signature.text}) takes a string, not {type(text).__name__}")
        if strings:
            parts.extend(pack_strings(strings))
        packed_units = pack_units(units)
        if packed_units:
            parts.append(packed_units)
        return PendingCall(self, function, count, scalar, targets, counts=tuple(counts), units=len(packed_units) // 8), parts

    def _send(self, pending: PendingCall, parts: List[Any]) -> None:
        function = pending._function
        pending._call_id = self._new_call(function.name)
        header = Header(pending._call_id, function.id, pending._rows, pending._counts, pending._units)
        self._write(function, [format_header(header), *parts])
        self._pending = pending

    def _send_queued(self) -> None:
        """What waits, the next that can be sent."""
        while self._queue and self._pending is None:
            pending, parts = self._queue.popleft()
            try:
                self._send(pending, parts)
            except Exception as error:
                pending._set(None, error)
            except BaseException:
                pending._set(None, ChannelClosed(f"function {pending._function.name}: the channel {self._broken}"))
                raise

    def _check_out(self, function: Function, targets: List[Any], rows: int) -> None:
        if len(targets) != len(function.returned):
            raise TypeError(f"function {function.name} has {len(function.returned)} outputs ({function.signature.text}), out has {len(targets)} arrays")
        for kind, target in zip(function.returned, targets):
            if kind == STRING:
                raise TypeError(f"function {function.name}: strings cannot be read into `out`")
            view = memoryview(target)
            wanted = FORMATS[kind]
            same = view.format == wanted or (view.format in ("l", "q") and wanted == "q" and view.itemsize == 8)
            if not same or view.readonly or not view.c_contiguous or view.ndim != 1 or len(view) != rows:
                raise TypeError(f"function {function.name}: out must be a writable contiguous array of {rows} items of {TYPES[kind]}")

    def _readable(self, timeout: Optional[float]) -> bool:
        if self._stream.begin < self._stream.end or self._stream.sock.fileno() < 0:
            return True
        return bool(self._poll.poll(None if timeout is None else max(0.0, timeout * 1000)))

    def _take_next(self, call: Optional[PendingCall] = None) -> None:
        """Waits for the reply that comes next, unless `call` is done."""
        with self._lock:
            if call is not None and call._done:
                return
            if self._pending is not None:
                self._take_reply(self._pending)
            else:
                self._send_queued()

    def _take_ready(self) -> None:
        """Does what can be done without waiting for the worker."""
        with self._lock:
            if self._pending is None:
                self._send_queued()
            elif self._readable(0):
                self._take_reply(self._pending)

    def _take_reply(self, pending: PendingCall) -> None:
        value: Any = None
        failure: Optional[BaseException] = None
        try:
            value = self._receive(pending)
        except (CallError, CodeError) as error:
            failure = error
        except _ReplyError as error:
            failure = MessageError(str(error))
        except Exception as error:
            failure = self._guard(pending._function, error)
        except BaseException:
            if pending._begun:  # else its reply is taken before the next call
                self._broken = "is out of step: reading a reply was interrupted"
                self._settle(pending, None, ChannelClosed(f"function {pending._function.name}: the channel {self._broken}"))
            raise
        self._settle(pending, value, failure)

    def _settle(self, pending: PendingCall, value: Any, error: Optional[BaseException]) -> None:
        self._pending = None
        self._count()
        self._send_queued()
        pending._set(value, error)

    def _count(self) -> None:
        self._calls += 1
        if self._counters is not None:
            self._counters[0] = self._calls
            self._counters[1] = self._stream.bytes_written
            self._counters[2] = self._stream.bytes_read

    def _receive(self, pending: PendingCall) -> Any:
        stream = self._stream
        function = pending._function
        signature = function.signature
        rows = pending._rows
        header = stream.read_header()
        pending._begun = True
        if header is None:
            raise ChannelClosed("the worker's channel ended before its reply")
        same = (header.call_id, header.function_id, header.call_count) == (pending._call_id, function.id, rows)
        if header.error:
            message = stream.read_body(header)
            text = message.strings[0] if message.strings else "the worker refused the call without a reason"
            if not same:
                raise MessageError(f"function {function.name}: {text} - code probably died, sorry.")
            raise CallError(f"function {function.name}: {text}")
        if not same:
            raise MessageError(
                f"function {function.name}: the reply belongs to another call (function id {header.function_id}, call {header.call_id} "
                f"instead of {pending._call_id}) - code probably died, sorry."
            )
        expected = tuple(n * rows for n in signature.output_counts)
        if header.counts != expected:
            stream.read_body(header)
            faults = ", ".join(f"{have} items of {name} instead of {want}" for name, have, want in zip(TYPES, header.counts, expected) if have != want)
            raise _ReplyError(
                f"function {function.name}: the reply has {faults}{' (the result code among them)' if function.coded else ''}; "
                f"compare the outputs with the worker's declaration"
            )
        kinds: List[int] = []
        targets: List[Any] = []
        values: List[Any] = [None] * len(function.returned)
        codes: Any = ()
        for kind in range(5):
            if kind == 0 and function.coded:
                codes = new_block(0, rows)
                kinds.append(0)
                targets.append(codes)
            for i, output in enumerate(function.returned):
                if output == kind:
                    values[i] = pending._out[i] if pending._out is not None else new_block(kind, rows)
                    kinds.append(kind)
                    targets.append(values[i])
        message = stream.read_body(header, targets, kinds)
        first = 0
        for i, output in enumerate(function.returned):
            if output == STRING:
                values[i] = message.strings[first * rows : (first + 1) * rows]
                first += 1
        pending.units = message.units
        self.last_units = message.units
        self.last_result = int(codes[0]) if len(codes) else 0
        if len(codes):
            lowest = int(codes.min()) if numpy is not None else min(codes)
            if lowest < 0:
                row = next(i for i in range(rows) if codes[i] < 0)
                self.last_result = int(codes[row])
                raise CodeError(function.name, self.last_result, row)
        if pending._scalar:
            values = [value[0].item() if hasattr(value[0], "item") else value[0] for value in values]
        return None if not values else values[0] if len(values) == 1 else tuple(values)


class _ReplyError(Exception):
    """A reply that does not fit, but was read to its end: the channel is still in step."""


def wait_any(calls: Sequence[PendingCall], timeout: Optional[float] = None) -> Optional[PendingCall]:
    """Waits until one of the calls, on whatever codes, is done: that one, or None when the time is over."""
    for call in calls:
        if call.done():
            return call
    poll = select.poll()
    by_fd: Dict[int, PendingCall] = {}
    for call in calls:
        by_fd[call.fileno()] = call
        poll.register(call.fileno(), select.POLLIN)
    found = poll.poll(None if timeout is None else max(0.0, timeout * 1000))
    return by_fd[found[0][0]] if found else None


def wait_all(calls: Sequence[PendingCall], timeout: Optional[float] = None) -> List[Any]:
    """The outputs of all calls, in their order. TimeoutError when they are not there within `timeout` seconds."""
    until = None if timeout is None else time.monotonic() + timeout
    return [call.result(None if until is None else max(0.0, until - time.monotonic())) for call in calls]

