"""For people who write codes in Python: declare functions, the rest is done here.

    from flotilla.worker import WorkerProgram     # or `from worker import ...` where this file lies beside the code
    program = WorkerProgram()

    @program.function("int32 index -> float64 mass")
    def get_mass(index):
        return masses[index]

    @program.array_function("int32 index, float64 mass ->")   # all rows at once: numpy arrays, memoryviews without numpy
    def set_mass(index, mass):
        masses[index] = mass

    if __name__ == "__main__":
        raise SystemExit(program.run())

Types are int32, int64, float32, float64, bool and string. What a function returns are its outputs (none, one, or a tuple). As in
AMUSE an int32 result code goes in front, 0 unless ``ResultCode`` is raised; ``-> result none`` leaves it out, ``-> result float64``
puts another first. Any other exception becomes an error reply with its text.

This file needs nothing but the standard library of Python 3.9, so it can be sent along with a code to a machine that has no more
(``source_file()`` is its path); numpy is used where it is there. The program is started as ``program [its own arguments] PORT HOST true|false``, as
AMUSE does; ``true`` = under MPI: with mpi4py rank 0 has the channel and all ranks run every function with the same inputs.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
import traceback
import zlib
from array import array
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple, TypeVar, Union

try:
    import numpy
except ImportError:  # a bare node
    numpy = None  # type: ignore[assignment]

__all__ = ["WorkerProgram", "ResultCode", "MessageError", "ChannelClosed", "Unit", "function_id", "source_file"]

TYPES = ("int32", "int64", "float32", "float64", "bool", "string")
SIZES = (4, 8, 4, 8, 1, 4)  # of an item; of a string its length word
FORMATS = ("i", "q", "f", "d", "?", "i")  # struct, memoryview and array letters
STRING = 5
HEADER_SIZE = 44
STOP_ID = 0
UNIT_DOUBLES = 9
# The longest message that is taken: more is a stream out of step, or must be split into several calls.
MAX_MESSAGE_BYTES = 16 << 30
_BIG = sys.byteorder == "big"
_HEADERS = (struct.Struct("<4B10i"), struct.Struct(">4B10i"))
_NATIVE_HEADER = _HEADERS[_BIG]
_IOV_MAX = 1024  # Linux
_INT32_MAX = 2**31 - 1


class MessageError(Exception):
    """What came is not a message, or not the expected one."""


class ChannelClosed(ConnectionError):
    """The other side is gone."""


class ResultCode(Exception):
    """Raised by a worker's function to return another result code than 0 (its outputs are then 0)."""

    def __init__(self, code: int) -> None:
        super().__init__(f"result code {code}")
        self.code = code


class Unit(NamedTuple):
    """A unit of one argument as AMUSE encodes it; all 0 = no unit."""

    factor: float = 0.0
    system: float = 0.0  # number of the unit system
    powers: Tuple[float, ...] = (0.0,) * 7  # of the system's base units


def source_file() -> str:
    """The path of this file, to be sent along with a worker."""
    return os.path.abspath(__file__)


def function_id(name: str) -> int:
    """AMUSE's number of a function: abs(signed32(crc32(name)))."""
    crc = zlib.crc32(name.encode("ascii"))
    return crc if crc < 2**31 else 2**32 - crc


def encode_text(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def decode_text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


# --- signatures ------------------------------------------------------------------------------------------------------


class Signature:
    """``"int32 index, float64 mass -> float64 radius"``: types, each with a name if one likes, outputs after the arrow."""

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        left, arrow, right = self.text.partition("->")
        if not arrow:
            raise ValueError(f"signature '{text}' has no '->' between inputs and outputs")
        self.inputs, self.input_names = self._parse(left)
        words = right.split(",")
        self.result: Optional[int] = 0  # type of the result code, which goes first
        first = words[0].split()
        if first and first[0] == "result":
            if len(first) != 2 or (first[1] != "none" and first[1] not in TYPES):
                raise ValueError(f"signature '{text}': 'result' is followed by a type or 'none'")
            self.result = None if first[1] == "none" else TYPES.index(first[1])
            right = ",".join(words[1:])
        self.outputs, self.output_names = self._parse(right)
        self.input_counts = [self.inputs.count(t) for t in range(6)]
        self.output_counts = [self.outputs.count(t) for t in range(6)]
        if self.result is not None:
            self.output_counts[self.result] += 1

    def _parse(self, text: str) -> Tuple[Tuple[int, ...], Tuple[str, ...]]:
        types: List[int] = []
        names: List[str] = []
        if text.strip():
            for item in text.split(","):
                words = item.split()
                if len(words) not in (1, 2) or words[0] not in TYPES:
                    raise ValueError(f"signature '{self.text}': '{item.strip()}' is not a type ({', '.join(TYPES)}) with a name or without")
                types.append(TYPES.index(words[0]))
                names.append(words[1] if len(words) == 2 else "")
        return tuple(types), tuple(names)


# --- messages --------------------------------------------------------------------------------------------------------


class Header(NamedTuple):
    call_id: int
    function_id: int
    call_count: int
    counts: Tuple[int, ...] = (0,) * 6
    units: int = 0  # doubles
    error: bool = False
    big_endian: bool = _BIG


class Message(NamedTuple):
    header: Header
    blocks: List[Any]  # one for each number type: numpy array, or memoryview of that type
    strings: List[str]
    units: List[Unit]


def format_header(header: Header) -> bytes:
    return _HEADERS[header.big_endian].pack(
        header.big_endian, header.error, header.units != 0, 0, header.call_id, header.function_id, header.call_count, *header.counts, header.units
    )


def parse_header(data: Union[bytes, bytearray, memoryview]) -> Header:
    big, error = data[0], data[1]
    if big > 1 or error > 1:
        raise MessageError(f"the channel is out of step: a message cannot begin with the bytes {big}, {error}")
    words = _HEADERS[big].unpack_from(data)[4:]
    if min(words[2:]) < 0:
        raise MessageError(f"the channel is out of step: a message says {min(words[2:])} items")
    return Header(words[0], words[1], words[2], words[3:9], words[9], bool(error), bool(big))


def check_size(size: int, limit: int) -> None:
    if size > limit:
        raise MessageError(f"a message of {size} bytes is longer than the {limit} that are taken; split the call, or raise max_message_bytes")


def check_count(items: int, what: str) -> None:
    if items > _INT32_MAX:
        raise MessageError(f"a message cannot hold {items} items of {what} ({_INT32_MAX} at most); split the call into several")


def new_block(kind: int, count: int) -> Any:
    """Memory for the items of one type; numpy's is not cleared first."""
    if numpy is not None:
        return numpy.empty(count, dtype=TYPES[kind])
    return memoryview(bytearray(count * SIZES[kind])).cast(FORMATS[kind])


def raw(block: Any) -> memoryview:
    """The bytes of a contiguous block, without a copy."""
    view = memoryview(block)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B") if view.nbytes else memoryview(b"")


def swap_block(kind: int, block: Any) -> None:
    if numpy is not None and isinstance(block, numpy.ndarray):
        block.byteswap(inplace=True)
    elif SIZES[kind] > 1 and len(block):
        items = array(FORMATS[kind], bytes(raw(block)))
        items.byteswap()
        raw(block)[:] = items.tobytes()


def normalise_bools(block: Any) -> None:
    """Any byte that is not 0 means true."""
    if numpy is not None and isinstance(block, numpy.ndarray):
        numpy.not_equal(block.view(numpy.uint8), 0, out=block)
    else:
        view = raw(block)
        for i, value in enumerate(view):
            if value > 1:
                view[i] = 1


def pack_strings(strings: Iterable[str]) -> Tuple[bytes, bytes]:
    """Length words (of the encoded bytes, without the NUL), and the text."""
    encoded = [encode_text(s) for s in strings]
    lengths = array("i", map(len, encoded))
    return lengths.tobytes(), b"".join(part + b"\0" for part in encoded)


def unpack_strings(lengths: Sequence[int], text: memoryview) -> List[str]:
    strings = []
    at = 0
    for length in lengths:
        if text[at + length] != 0:
            raise MessageError("the channel is out of step: a string does not end where its length says")
        strings.append(decode_text(bytes(text[at : at + length])))
        at += length + 1
    return strings


def pack_units(units: Sequence[Unit]) -> bytes:
    return b"".join(struct.pack("=9d", unit.factor, unit.system, *unit.powers) for unit in units)


def unpack_units(values: Sequence[float]) -> List[Unit]:
    return [Unit(float(values[i]), float(values[i + 1]), tuple(float(v) for v in values[i + 2 : i + 9])) for i in range(0, len(values) - 8, UNIT_DOUBLES)]


class MessageStream:
    """Messages over a connected stream socket. Short ones are taken with one read, long arrays go where they belong."""

    def __init__(self, sock: socket.socket, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        sock.setblocking(True)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.max_message_bytes = max_message_bytes
        self.bytes_read = 0
        self.bytes_written = 0
        self.buffer = bytearray(8192)
        self._view = memoryview(self.buffer)
        self.begin = 0  # of what was read and not taken
        self.end = 0

    def write(self, parts: List[Any]) -> None:
        """Bytes-like objects, in one system call unless the socket's buffer is full."""
        try:
            total = sum(len(part) for part in parts)
            sent = self.sock.sendmsg(parts if len(parts) <= _IOV_MAX else parts[:_IOV_MAX])
            self.bytes_written += total
            while sent < total:
                total -= sent
                i = 0
                while sent >= len(parts[i]):
                    sent -= len(parts[i])
                    i += 1
                parts = [memoryview(parts[i])[sent:]] + parts[i + 1 :]
                sent = self.sock.sendmsg(parts[:_IOV_MAX])
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelClosed(f"cannot write to the channel: {error.strerror}") from None

    def fill(self) -> bool:
        """Reads what is there behind what was read. False: the peer has closed."""
        if self.begin == self.end:
            self.begin = self.end = 0
        elif self.begin:
            self.buffer[: self.end - self.begin] = self.buffer[self.begin : self.end]
            self.end -= self.begin
            self.begin = 0
        try:
            n = self.sock.recv_into(self._view[self.end :])
        except ConnectionResetError as error:
            raise ChannelClosed(f"cannot read from the channel: {error.strerror}") from None
        self.end += n
        self.bytes_read += n
        return n > 0

    def read_header(self) -> Optional[Header]:
        """None: the peer has closed between two messages."""
        while self.end - self.begin < HEADER_SIZE:
            if not self.fill():
                if self.begin == self.end:
                    return None
                raise ChannelClosed("the channel ended in the middle of a message")
        header = parse_header(self._view[self.begin : self.end])
        self.begin += HEADER_SIZE
        return header

    def read_into(self, parts: List[memoryview]) -> None:
        parts = [part for part in parts if len(part)]
        i = 0
        while i < len(parts):
            part = parts[i]
            have = min(len(part), self.end - self.begin)
            if have:
                part[:have] = self._view[self.begin : self.begin + have]
                self.begin += have
                if have < len(part):
                    parts[i] = part[have:]
            if have == len(part):
                i += 1
            if self.begin == self.end:
                break
        while i < len(parts):
            try:
                n = self.sock.recvmsg_into(parts[i : i + _IOV_MAX])[0]
            except ConnectionResetError as error:
                raise ChannelClosed(f"cannot read from the channel: {error.strerror}") from None
            if n == 0:
                raise ChannelClosed("the channel ended in the middle of a message")
            self.bytes_read += n
            while i < len(parts) and n >= len(parts[i]):
                n -= len(parts[i])
                i += 1
            if n:
                parts[i] = parts[i][n:]

    def read_body(self, header: Header, targets: Optional[List[Any]] = None, kinds: Sequence[int] = ()) -> Message:
        """Numbers go to `targets` (of these `kinds`, in the message's order) where given, else to new blocks, one for each type."""
        check_size(sum(c * s for c, s in zip(header.counts, SIZES)) + header.units * 8, self.max_message_bytes)
        if targets is None:
            kinds = range(5)
            targets = [new_block(kind, header.counts[kind]) for kind in kinds]
        lengths = new_block(STRING - 5, header.counts[STRING])
        units = new_block(3, header.units)
        parts = [raw(block) for block in targets]
        if header.counts[STRING]:
            parts.append(raw(lengths))
        elif header.units:
            parts.append(raw(units))
        self.read_into(parts)
        swap = header.big_endian != _BIG
        for kind, block in zip(kinds, targets):
            if swap:
                swap_block(kind, block)
            if kind == 4 and len(block):
                normalise_bools(block)
        strings: List[str] = []
        if header.counts[STRING]:
            if swap:
                swap_block(0, lengths)
            if min(lengths) < 0:
                raise MessageError(f"the channel is out of step: a string of {min(lengths)} bytes")
            words = [int(length) for length in lengths]
            size = sum(words) + len(words)
            check_size(size, self.max_message_bytes)
            text = memoryview(bytearray(size))
            self.read_into([text, raw(units)])
            strings = unpack_strings(words, text)
        if swap:
            swap_block(3, units)
        return Message(header, targets, strings, unpack_units(units))

    def receive(self) -> Optional[Message]:
        header = self.read_header()
        return None if header is None else self.read_body(header)


def _as_type(block: Any, kind: int, what: str) -> Any:
    """The same values as items of another type; a fraction for an integer, or a number that is too large, is refused."""
    if block.dtype.kind not in ("biu", "biu", "fiub", "fiub", "biu")[kind] and block.size:
        raise TypeError(f"{what} is {TYPES[kind]}, not {block.dtype}")
    if kind == 0 and block.size and block.dtype.itemsize >= 4 and (block.max() > _INT32_MAX or block.min() < -_INT32_MAX - 1):
        raise OverflowError(f"{what} is int32, and holds {block.max() if block.max() > _INT32_MAX else block.min()}")
    return block.astype(TYPES[kind])


def as_block(kind: int, values: Any, rows: int, what: str) -> Any:
    """Values of one argument as contiguous memory of its type; without a copy where they are that already. A scalar is repeated."""
    if numpy is not None:
        block = numpy.asarray(values)
        if block.dtype != TYPES[kind]:
            block = _as_type(block, kind, what)
        if block.ndim == 0:
            return numpy.full(rows, block)
        if block.shape != (rows,):
            raise ValueError(f"{what} has the shape {block.shape}, not {rows} items")
        return numpy.ascontiguousarray(block)
    if isinstance(values, (int, float)):
        values = [values] * rows
    if len(values) != rows:
        raise ValueError(f"{what} has {len(values)} items, not {rows}")
    try:
        view = memoryview(values)
        if view.format == FORMATS[kind] and view.contiguous and view.ndim == 1:
            return view
    except TypeError:
        pass
    if kind == 4:
        return bytes(bool(v) for v in values)
    return array(FORMATS[kind], values)


# --- the worker ------------------------------------------------------------------------------------------------------


class _Function:
    def __init__(self, name: str, signature: Signature, body: Callable[..., Any], whole: bool, builtin: bool) -> None:
        self.name = name
        self.signature = signature
        self.body = body
        self.array = whole
        self.builtin = builtin


F = TypeVar("F", bound=Callable[..., Any])


class WorkerProgram:
    """Functions by their numbers, and the loop that answers calls. The functions that AMUSE calls on every code are there
    from the start and may be declared again."""

    def __init__(self, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self.arguments: List[str] = []  # the program's own: those before PORT HOST FLAG
        self.units: List[Unit] = []  # of the present call, as its caller sent them
        self.reply_units: List[Unit] = []  # set by a function for its reply
        self.rank = 0
        self.ranks = 1
        self.max_message_bytes = max_message_bytes
        self._comm: Any = None
        self._polling_interval_us = 0
        self._functions: Dict[int, _Function] = {}
        for name in ("initialize_code", "cleanup_code", "commit_parameters", "recommit_parameters"):
            self._declare(name, "->", lambda: None, builtin=True)
        self._declare("set_working_directory", "string directory ->", self._set_directory, builtin=True)
        self._declare("get_working_directory", "-> string directory", os.getcwd, builtin=True)
        self._declare("internal__get_message_polling_interval", "-> int32 interval", lambda: self._polling_interval_us, builtin=True)
        self._declare("internal__set_message_polling_interval", "int32 interval ->", self._set_polling_interval, builtin=True)
        self._declare("flotilla_describe", "-> string functions", self._describe, builtin=True)
        # Codes that talk to one another over MPI ports: not offered, and said so.
        self._without_ports = {
            function_id("internal__" + name): "internal__" + name
            for name in ("open_port", "accept_on_port", "connect_to_port", "activate_communicator", "become_code")
        }

    def function(self, signature: str, name: Optional[str] = None, id: Optional[int] = None) -> Callable[[F], F]:
        """Declares a function that is called once for each row, with Python scalars."""
        return self._decorator(signature, name, id, False)

    def array_function(self, signature: str, name: Optional[str] = None, id: Optional[int] = None) -> Callable[[F], F]:
        """Declares a function that is called once with all rows, as arrays; it returns arrays (or scalars, repeated)."""
        return self._decorator(signature, name, id, True)

    def _decorator(self, signature: str, name: Optional[str], id: Optional[int], whole: bool) -> Callable[[F], F]:
        Signature(signature)  # a fault in it is told here

        def declare(body: F) -> F:
            self._declare(name or body.__name__, signature, body, id, whole)
            return body

        return declare

    def _declare(
        self, name: str, signature: str, body: Callable[..., Any], id: Optional[int] = None, whole: bool = False, builtin: bool = False
    ) -> None:
        number = function_id(name) if id is None else id
        if number == STOP_ID:
            raise ValueError(f"{name}: function id 0 ends the worker")
        there = self._functions.get(number)
        if there and not there.builtin:
            raise ValueError(f"functions {there.name} and {name} have the same id {number}; give one of them an id by hand")
        self._functions[number] = _Function(name, Signature(signature), body, whole, builtin)

    def run(self, argv: Optional[Sequence[str]] = None) -> int:
        """Connects and serves. The exit code: 0 when told to stop and when the caller closed the channel."""
        argv = sys.argv if argv is None else argv
        if len(argv) < 4 or argv[-1] not in ("true", "false") or not argv[-3].isdigit():
            print(
                f"{argv[0]} is a worker: it is started as '{argv[0]} PORT HOST true|false' by a pilot or by AMUSE's sockets channel, and connects there.",
                file=sys.stderr,
            )
            return 64
        self.arguments = list(argv[1:-3])
        if isinstance(sys.stdout, __import__("io").TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)  # a line that is printed is seen while the worker runs
        if argv[-1] == "true":
            try:
                from mpi4py import MPI  # type: ignore[import-not-found,unused-ignore]
            except ImportError:
                pass  # the flag then only says how the program was launched
            else:
                self._comm = MPI.COMM_WORLD
                self.rank = self._comm.Get_rank()
                self.ranks = self._comm.Get_size()
        sock: Optional[socket.socket] = None
        try:
            if self.rank == 0:
                sock = socket.create_connection((argv[-2], int(argv[-3])))
            return self.serve(sock)
        except OSError as error:
            print(f"{argv[0]}: {argv[-2]}:{argv[-3]}: {error}", file=sys.stderr)
            if self._comm is not None and self.ranks > 1:
                self._comm.Abort(1)
            return 1
        finally:
            if sock is not None:
                sock.close()

    def serve(self, sock: Optional[socket.socket]) -> int:
        """Answers calls on a connected socket until told to stop (0) or the peer closes (0); a stream that is out of step
        is answered with an error and ends it (1). Ranks other than 0 give None."""
        stream = MessageStream(sock, self.max_message_bytes) if sock is not None else None
        while True:
            message: Optional[Message] = None
            code = 0
            if stream is not None:
                try:
                    message = stream.receive()
                except ChannelClosed:
                    pass
                except MessageError as error:
                    print(f"worker: {error}", file=sys.stderr)
                    code = 1
                    try:
                        self._send_error(stream, Header(0, 0, 1), str(error))
                    except OSError:
                        pass  # the caller is gone too: nobody to tell
            if self.ranks > 1:
                message, code = self._share(message, code)
            if message is None:
                return code
            header = message.header
            stop = header.function_id == STOP_ID
            parts: List[Any] = []
            counts = [0] * 6
            problem = ""
            self.reply_units = []
            if not stop:
                function = self._functions.get(header.function_id)
                if function is None:
                    name = self._without_ports.get(header.function_id)
                    problem = f"{name}: this worker has no MPI ports" if name else f"unknown function id {header.function_id}"
                else:
                    try:
                        counts, parts = self._execute(function, message)
                    except Exception as error:
                        traceback.print_exc()
                        problem = f"{function.name}: {error or type(error).__name__}"
            if self.ranks > 1:
                problem = self._agree_on(problem)
            if stream is not None:
                try:
                    if problem:
                        self._send_error(stream, header, problem)
                    else:
                        units = pack_units(self.reply_units)
                        reply = Header(header.call_id, header.function_id, header.call_count, tuple(counts), len(units) // 8)
                        stream.write([format_header(reply), *parts, units] if units else [format_header(reply), *parts])
                except ChannelClosed:
                    if self.ranks > 1:
                        self._share(None, 0)
                    return 0
            if stop:
                return 0

    def _send_error(self, stream: MessageStream, header: Header, text: str) -> None:
        lengths, blob = pack_strings([text])
        reply = Header(header.call_id, header.function_id, header.call_count, (0, 0, 0, 0, 0, 1), 0, True)
        stream.write([format_header(reply), lengths, blob])

    def _execute(self, function: _Function, message: Message) -> Tuple[List[int], List[Any]]:
        signature = function.signature
        rows = message.header.call_count
        for kind, (have, each) in enumerate(zip(message.header.counts, signature.input_counts)):
            if have != each * rows:
                raise MessageError(
                    f"takes {each * rows} items of {TYPES[kind]} for {rows} rows, the call has {have} ({function.name}: {signature.text})"
                )
            check_count(signature.output_counts[kind] * rows, TYPES[kind])
        check_size(sum(n * rows * size for n, size in zip(signature.output_counts, SIZES)), self.max_message_bytes)
        self.units = message.units
        arguments: List[Any] = []
        used = [0] * 6
        for kind in signature.inputs:
            source = message.strings if kind == STRING else message.blocks[kind]
            arguments.append(source[used[kind] * rows : (used[kind] + 1) * rows])
            used[kind] += 1
        codes, columns = (self._call_whole if function.array else self._call_rows)(function, arguments, rows)
        return self._gather(signature, codes, columns, rows, function.name)

    def _call_whole(self, function: _Function, arguments: List[Any], rows: int) -> Tuple[Any, List[Any]]:
        signature = function.signature
        try:
            outputs = self._outputs(function, function.body(*arguments))
        except ResultCode as result:
            return result.code, ["" if kind == STRING else 0 for kind in signature.outputs]
        return (0, outputs) if signature.result in (0, None) else (outputs[0], outputs[1:])

    def _call_rows(self, function: _Function, arguments: List[Any], rows: int) -> Tuple[Any, List[Any]]:
        signature = function.signature
        columns: List[List[Any]] = [[] for _ in signature.outputs]
        codes: List[Any] = []
        inputs = [column.tolist() if hasattr(column, "tolist") else column for column in arguments]
        for row in range(rows):
            code: Any = 0
            try:
                outputs = self._outputs(function, function.body(*[column[row] for column in inputs]))
                if signature.result not in (0, None):
                    code, outputs = outputs[0], outputs[1:]
            except ResultCode as result:
                code = result.code
                outputs = ["" if kind == STRING else 0 for kind in signature.outputs]
            codes.append(code)
            for column, value in zip(columns, outputs):
                column.append(value)
        return codes, columns

    def _outputs(self, function: _Function, returned: Any) -> List[Any]:
        signature = function.signature
        expected = len(signature.outputs) + (signature.result not in (0, None))
        outputs = [] if returned is None else list(returned) if isinstance(returned, tuple) else [returned]
        if len(outputs) != expected:
            raise TypeError(f"returned {len(outputs)} outputs instead of {expected} ({signature.text})")
        return outputs

    def _gather(self, signature: Signature, codes: Any, columns: List[Any], rows: int, name: str) -> Tuple[List[int], List[Any]]:
        by_type: List[List[Any]] = [[] for _ in range(6)]
        if signature.result is not None:
            by_type[signature.result].append(codes)
        for kind, column in zip(signature.outputs, columns):
            by_type[kind].append(column)
        parts: List[Any] = []
        for kind in range(5):
            for column in by_type[kind]:
                if rows:
                    parts.append(raw(as_block(kind, column, rows, f"an output of {name}")))
        strings: List[str] = []
        for column in by_type[STRING]:
            column = [column] * rows if isinstance(column, str) else column
            if len(column) != rows:
                raise ValueError(f"an output of {name} has {len(column)} strings, not {rows}")
            strings.extend(column)
        if strings:
            parts.extend(pack_strings(strings))
        return [count * rows for count in signature.output_counts], parts

    # MPI: everything is told to the other ranks by mpi4py's object broadcast.

    def _share(self, message: Optional[Message], code: int) -> Tuple[Optional[Message], int]:
        plain = None
        if message is not None:
            plain = (message.header, [bytes(raw(block)) for block in message.blocks], message.strings, message.units)
        if self._polling_interval_us:  # the same on all ranks; bcast() by itself would keep their processors busy
            begun = self._comm.Ibarrier()
            while not begun.Test():
                if self.rank != 0:
                    time.sleep(self._polling_interval_us / 1e6)
        plain, code = self._comm.bcast((plain, code), root=0)
        if self.rank == 0 or plain is None:
            return message, code
        header, blocks, strings, units = plain
        filled = []
        for kind, data in enumerate(blocks):
            block = new_block(kind, header.counts[kind])
            if data:
                raw(block)[:] = data
            filled.append(block)
        return Message(Header(*header), filled, strings, units), code

    def _agree_on(self, problem: str) -> str:
        """The error of the lowest rank that has one."""
        for rank, theirs in enumerate(self._comm.allgather(problem)):
            if theirs:
                return theirs if rank == 0 else f"rank {rank}: {theirs}"
        return ""

    def _set_directory(self, directory: str) -> None:
        try:
            os.chdir(directory)
        except OSError:
            raise ResultCode(-1) from None

    def _set_polling_interval(self, interval: int) -> None:
        if interval < 0:
            raise ResultCode(-1)
        self._polling_interval_us = interval

    def _describe(self) -> str:
        return "".join(f"{function.name}: {function.signature.text}\n" for function in self._functions.values())
