"""The worker SDK: the Python calling side against workers of both languages, with numpy and without."""

import array
import asyncio
import math
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading

import numpy
import pytest

from sdk_support import ROOT, WORKER_PY, WORKERS, StartedWorker, build_cpp

from flotilla import code as code_module
from flotilla import worker as worker_module
from flotilla.code import CallError, ChannelClosed, CodeError, MessageError, RemoteCode, Unit, wait_all, wait_any
from flotilla.worker import Header, MessageStream, WorkerProgram, format_header, function_id, parse_header


@pytest.fixture(scope="session")
def cpp_worker(tmp_path_factory):
    return build_cpp(WORKERS / "echo_worker.cpp", tmp_path_factory.mktemp("sdk") / "echo_worker")


@pytest.fixture(params=["C++", "Python", "Python without numpy"])
def command(request, cpp_worker, tmp_path):
    if request.param == "C++":
        return [cpp_worker]
    shutil.copy(WORKER_PY, tmp_path)
    shutil.copy(WORKERS / "echo_worker.py", tmp_path)
    # -S: no site-packages, as on a bare node
    return [sys.executable, *(["-S", "-E"] if request.param.endswith("numpy") else []), tmp_path / "echo_worker.py"]


@pytest.fixture
def started(command):
    with StartedWorker(command) as worker:
        yield worker


@pytest.fixture
def code(started):
    return RemoteCode(started)


def test_every_type_there_and_back(code, started):
    assert code.echo_int32(-(2**31)) == -(2**31)
    assert code.echo_int64(2**63 - 1) == 2**63 - 1
    assert code.echo_float32(0.5) == 0.5
    assert code.echo_float64(0.1) == 0.1
    assert code.echo_bool(True) is True and code.echo_bool(False) is False
    assert code.echo_string("Grüße, 銀河") == "Grüße, 銀河"
    assert code.echo_string("") == ""
    assert code.echo_all(1.5, "zwei", 3, True, 2**40, 2.5, 9) == (2.5, 2**40, True, 3, "zwei", 1.5, 9)
    assert code.double_it(21) == 42
    assert list(code.double_it([1, 2, 3])) == [2, 4, 6]
    assert code.no_result() is None
    assert code.half(5) == 2.5
    assert math.isnan(code.echo_float64(float("nan")))
    assert code.by_hand.id == function_id("by_hand")  # the id is not told: declare it
    assert code.declare("by_hand", "-> int32 answer", id=4711)() == 42
    code.stop()
    assert started.wait() == 0
    with pytest.raises(ChannelClosed):
        code.echo_int32(1)
    assert not code.usable


def test_arrays_of_every_type(code):
    for name, values in {
        "echo_int32": numpy.arange(5, dtype="int32"),
        "echo_int64": numpy.arange(5, dtype="int64") << 40,
        "echo_float32": numpy.linspace(0, 1, 5, dtype="float32"),
        "echo_float64": numpy.linspace(0, 1, 5),
        "echo_bool": numpy.array([True, False, True]),
    }.items():
        back = getattr(code, name)(values)
        assert back.dtype == values.dtype and (back == values).all()
    assert code.echo_string(["a", "", "ß"]) == ["a", "", "ß"]
    text, flags, numbers = code.echo_arrays(["x", "y"], [True, False], [1, 2])
    assert text == ["x", "y"] and list(flags) == [True, False] and list(numbers) == [1, 2]
    assert list(code.double_all(numpy.arange(6.0)[::2])) == [0.0, 4.0, 8.0]  # not contiguous
    assert list(code.double_all([1.0, 2.0])) == [2.0, 4.0]
    assert len(code.echo_float64(numpy.empty(0))) == 0
    # a scalar beside an array is repeated
    assert [list(column) for column in code.echo_all([1.0, 2.0], "t", 3, True, 4, 5.0, 6)][5] == [1.0, 2.0]


def test_units(code):
    units = [Unit(1000.0, 1.0, (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, -2.0)), Unit()]
    assert code.echo_units(4.0, units=units) == 4.0
    assert code.last_units == units
    assert code.echo_units(4.0) == 4.0
    assert list(code.last_units) == []


def test_errors(code):
    with pytest.raises(CallError, match="function fail: fail: because of ü"):
        code.fail("because of ü")
    code.return_code(3)
    assert code.last_result == 3
    with pytest.raises(CodeError) as caught:
        code.return_code(-3)
    assert caught.value.result == -3 and caught.value.function == "return_code"
    with pytest.raises(CodeError) as caught:
        code.return_code([0, 2, -7, -8])
    assert (caught.value.result, caught.value.row) == (-7, 2)
    with pytest.raises(AttributeError, match="no function 'ecco_int32'; it has .*echo_int32"):
        code.ecco_int32(1)
    with pytest.raises(TypeError, match="takes 1 arguments"):
        code.echo_int32(1, 2)
    with pytest.raises(TypeError):
        code.echo_int32("one")
    with pytest.raises(TypeError):
        code.echo_int32([1.5, 2.0])
    with pytest.raises((TypeError, OverflowError)):
        code.echo_int32([2**31])
    with pytest.raises(TypeError):
        code.echo_string(5)
    with pytest.raises(ValueError, match="arrays of 2 and of 3"):
        code.echo_all([1.0, 2.0], "t", [1, 2, 3], True, 4, 5.0, 6)
    with pytest.raises(CallError, match="unknown function id"):
        code.declare("nothing", "->")()
    with pytest.raises(CallError, match="takes 1 items of int32 for 1 rows, the call has 0"):
        code.declare("echo_int32", "float64 -> int32")(1.0)
    with pytest.raises(MessageError, match="1 items of float64 instead of 0"):
        code.declare("echo_float64", "float64 -> float32")(1.0)
    assert code.echo_int64(7) == 7  # and still in step


def test_a_million_doubles_into_arrays_that_are_there(code):
    rows = 200_003
    columns = [numpy.random.default_rng(i).random(rows) for i in range(7)]
    back = [numpy.empty(rows) for _ in range(7)]
    code.put(*columns)
    result = code.get(out=back)
    assert all(a is b for a, b in zip(result, back))
    assert all((a == b).all() for a, b in zip(columns, back))
    with pytest.raises(TypeError, match="contiguous array of 200003 items of float64"):
        code.get(out=[numpy.empty(rows, dtype="float32")] * 7, rows=rows)
    with pytest.raises(TypeError, match="out has 1 arrays"):
        code.get(out=back[0])
    assert all((a == b).all() for a, b in zip(columns, code.get(rows=rows)))


def test_arrays_are_not_copied_on_the_way(code, monkeypatch):
    """The very memory of the arguments and of `out` reaches the system calls."""
    code.functions()
    sent, received = [], []
    stream = code._stream
    plain_write, plain_read = stream.write, stream.read_into
    monkeypatch.setattr(stream, "write", lambda parts: (sent.extend(parts), plain_write(parts))[1])
    monkeypatch.setattr(stream, "read_into", lambda parts: (received.extend(parts), plain_read(parts))[1])
    address = lambda buffer: numpy.frombuffer(buffer, dtype="uint8").ctypes.data  # noqa: E731
    columns = [numpy.arange(1000.0) for _ in range(7)]
    back = [numpy.empty(1000) for _ in range(7)]
    code.put(*columns)
    assert [address(part) for part in sent[1:]] == [column.ctypes.data for column in columns]
    received.clear()
    code.get(out=back)
    assert [address(part) for part in received[1:8]] == [column.ctypes.data for column in back]


def test_the_channel_closes_and_the_worker_ends(started):
    RemoteCode(started).echo_int32(1)
    started.socket.close()
    assert started.wait() == 0


def test_context_manager_stops_the_worker(started):
    with RemoteCode(started) as code:
        assert code.echo_int32(1) == 1
    assert started.wait() == 0


def test_a_worker_dies_in_a_call(started):
    code = RemoteCode(started.socket, explain=lambda: "exit code 7, last lines of stderr: ...")
    with pytest.raises(ChannelClosed, match="function die: .*exit code 7"):
        code.die(7)
    with pytest.raises(ChannelClosed, match="the channel has ended: exit code 7"):
        code.die(7)
    assert started.wait() == 7


def test_own_arguments(command):
    with StartedWorker([*command, "--table=solar"]) as worker:
        assert RemoteCode(worker).own_argument() == "--table=solar"


def test_counters(started):
    counters = bytearray(24)
    code = RemoteCode(started.socket, counters=counters, functions={"echo_int32": "int32 -> int32"})
    code.echo_int32(1)
    code.echo_int32([1, 2])
    assert struct.unpack("=3Q", counters) == (2, 44 * 2 + 3 * 4, 44 * 2 + 6 * 4)


@pytest.fixture
def two(cpp_worker, tmp_path):
    pipes = [tmp_path / "a", tmp_path / "b"]
    for pipe in pipes:
        os.mkfifo(pipe)
    with StartedWorker([cpp_worker]) as a, StartedWorker([sys.executable, WORKERS / "echo_worker.py"], env={**os.environ, "PYTHONPATH": str(ROOT / "client/python/src")}) as b:
        yield [(RemoteCode(a), pipes[0]), (RemoteCode(b), pipes[1])]


def test_several_workers_at_once(two):
    (a, pipe_a), (b, pipe_b) = two
    first, second = a.wait_for.async_call(str(pipe_a)), b.wait_for.async_call(str(pipe_b))
    seen = []
    second.add_done_callback(seen.append)
    assert not first.done() and not second.done()
    assert wait_any([first, second], timeout=0.001) is None
    with pytest.raises(TimeoutError):
        first.result(timeout=0.001)
    pipe_b.write_text("two\n")
    assert wait_any([first, second], timeout=20) is second
    assert second.result() == "two" and seen == [second]
    assert not first.done()
    pipe_a.write_text("one\n")
    assert wait_all([first, second], timeout=20) == ["one", "two"]

    kept = a.echo_int32.async_call(1)
    assert a.echo_int32(2) == 2  # takes the first one's reply before
    assert kept.result() == 1
    failing = b.fail.async_call("no")
    assert isinstance(failing.exception(), CallError)


def test_asyncio(two):
    (a, pipe_a), (b, pipe_b) = two
    rows = 100_000
    columns = [numpy.arange(float(rows)) for _ in range(7)]

    async def main():
        first = a.wait_for.async_call(str(pipe_a))
        second = b.wait_for.async_call(str(pipe_b))
        order = []

        async def wait(name, call):
            order.append((name, await call))

        tasks = [asyncio.create_task(wait("a", first)), asyncio.create_task(wait("b", second))]
        await asyncio.sleep(0)
        pipe_b.write_text("two\n")
        await tasks[1]
        pipe_a.write_text("one\n")
        await tasks[0]
        assert order == [("b", "two"), ("a", "one")]
        await asyncio.gather(a.put.async_call(*columns), b.put.async_call(*columns))
        both = await asyncio.gather(a.get.async_call(rows=rows), b.get.async_call(rows=rows))
        assert all((x == y).all() for got in both for x, y in zip(got, columns))
        with pytest.raises(CallError):
            await a.fail.async_call("no")

    asyncio.run(asyncio.wait_for(main(), 30))


def test_tasks_share_a_code(two):
    (code, pipe), _ = two
    code.functions()

    async def main():
        order = []

        async def call(name, function, *arguments):
            result = await function.async_call(*arguments)
            order.append(name)
            return result

        slow = asyncio.create_task(call("slow", code.wait_for, str(pipe)))
        dropped = asyncio.create_task(call("dropped", code.echo_int32, 1))
        fast = asyncio.create_task(call("fast", code.double_it, 21))
        await asyncio.sleep(0)
        values = numpy.array([1.0, 2.0])
        later = code.double_all.async_call(values)
        values[:] = 0  # it may change, also while the call waits to be sent
        await asyncio.sleep(0)
        assert not later.done() and not fast.done()
        dropped.cancel()
        pipe.write_text("now\n")  # the loop goes on meanwhile
        assert await fast == 42 and await slow == "now" and order == ["slow", "fast"]
        assert list(await later) == [2.0, 4.0] and list(await later) == [2.0, 4.0]
        rows = 100_000
        columns = [numpy.arange(float(rows)) for _ in range(7)]
        calls = [code.put.async_call(*columns), *(code.get.async_call(rows=rows) for _ in range(3)), code.double_it.async_call(4)]
        results = await asyncio.gather(*calls)
        assert all((x == y).all() for got in results[1:4] for x, y in zip(got, columns)) and results[4] == 8

    asyncio.run(asyncio.wait_for(main(), 30))
    assert code.double_it(2) == 4  # and in step


@pytest.mark.parametrize("who", ["the code", "the owner of the socket"])
def test_closing_wakes_tasks_that_wait_for_a_reply(two, who):
    (code, pipe), (other, _) = two

    async def main():
        calls = [code.wait_for.async_call(str(pipe)), code.double_it.async_call(1)]
        tasks = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(0)
        if who == "the code":
            code.close()
        else:
            code._stream.sock.shutdown(socket.SHUT_RDWR)
            code._stream.sock.close()
        for task in tasks:
            with pytest.raises(ChannelClosed, match="the channel was closed"):
                await task
        assert await other.double_it.async_call(4) == 8

    pipe_end = os.open(pipe, os.O_RDWR)  # the worker waits for a line
    asyncio.run(asyncio.wait_for(main(), 30))
    assert not code.usable
    os.write(pipe_end, b"\n")
    os.close(pipe_end)


def test_a_send_that_is_interrupted_leaves_the_channel_out_of_step(cpp_worker, monkeypatch):
    def interrupt(parts):
        raise KeyboardInterrupt

    for call in (lambda code: code.double_it(1), lambda code: code.double_all([1.0]), lambda code: code.double_it.async_call(1)):
        with StartedWorker([cpp_worker]) as worker:
            code = RemoteCode(worker)
            code.functions()
            monkeypatch.setattr(code._stream, "write", interrupt)
            with pytest.raises(KeyboardInterrupt):
                call(code)
            assert not code.usable
            with pytest.raises(ChannelClosed, match="out of step: sending a call was interrupted"):
                code.double_it(1)


def test_a_wait_that_is_interrupted_leaves_the_reply_to_the_next_call(code, monkeypatch):
    def interrupt():
        monkeypatch.undo()
        raise KeyboardInterrupt

    code.functions()
    for call in (lambda: code.double_it(1), lambda: code.double_all([1.0])):
        monkeypatch.setattr(code._stream, "fill", interrupt)
        with pytest.raises(KeyboardInterrupt):
            call()
        assert code.double_it(21) == 42


def test_threads_share_a_code(code):
    wrong = []

    def many(value):
        for _ in range(200):
            if code.echo_int32(value) != value:
                wrong.append(value)

    threads = [threading.Thread(target=many, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- the format ---


def vectors():
    message = {}
    for line in (ROOT / "test/compat/amuse_messages.txt").read_text().splitlines():
        key, _, rest = line.partition(" ")
        if key == "message":
            message = {"name": rest, "bytes": b"", "string": [], "unit": []}
        elif key == "bytes":
            message["bytes"] += bytes.fromhex(rest.partition("#")[0])
        elif key == "is":
            message["is"] = dict(item.split("=") for item in rest.split())
        elif key in ("string", "unit"):
            message[key].append(rest)
        elif key == "end":
            yield message
        elif message and key in worker_module.TYPES:
            message[key] = [float(word) if "float" in key else int(word) for word in rest.split()]


@pytest.mark.parametrize("with_numpy", [True, False])
@pytest.mark.parametrize("vector", list(vectors()), ids=lambda vector: vector["name"])
def test_messages_as_recorded(vector, with_numpy, monkeypatch):
    if not with_numpy:
        monkeypatch.setattr(worker_module, "numpy", None)
    here, there = socket.socketpair()
    with here, there:
        there.sendall(vector["bytes"])
        there.shutdown(socket.SHUT_WR)
        stream = MessageStream(here)
        message = stream.receive()
        assert stream.receive() is None
    header = message.header
    said = vector["is"]
    assert [header.call_id, header.function_id, header.call_count] == [int(said[k]) for k in ("call", "function", "rows")]
    assert (header.error, header.big_endian) == (said["error"] == "1", said["order"] == "big")
    for kind, name in enumerate(worker_module.TYPES[:5]):
        assert list(message.blocks[kind]) == vector.get(name, [])
    assert message.strings == vector["string"]
    assert message.units == [Unit(f[0], f[1], tuple(f[2:])) for f in ([float(w) for w in u.split()] for u in vector["unit"])]

    # and the same bytes are written
    if header.big_endian == (sys.byteorder == "big"):
        here, there = socket.socketpair()
        with here, there:
            parts = [worker_module.raw(block) for block in message.blocks if len(block)]
            if message.strings:
                parts += worker_module.pack_strings(message.strings)
            MessageStream(here).write([format_header(header), *parts, worker_module.pack_units(message.units)])
            here.shutdown(socket.SHUT_WR)
            assert b"".join(iter(lambda: there.recv(4096), b"")) == vector["bytes"]


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda b: b"HTTP" + b[4:], "cannot begin with the bytes 72, 84"),
        (lambda b: b[:12] + struct.pack("<i", -1) + b[16:], "says -1 items"),
        (lambda b: b[:28] + struct.pack("<i", 2**27) + b[32:], "longer than the 1048576"),
        (lambda b: b[:44] + struct.pack("<i", -2) + b[48:], "a string of -2 bytes"),
        (lambda b: b[:44] + struct.pack("<i", 6) + b[48:], "does not end where its length says"),
    ],
)
def test_what_is_no_message_is_refused(change, why):
    data = change(next(v for v in vectors() if v["name"] == "strings_not_ascii")["bytes"])
    here, there = socket.socketpair()
    with here, there:
        there.sendall(data)
        there.shutdown(socket.SHUT_WR)
        with pytest.raises(MessageError, match=why):
            MessageStream(here, max_message_bytes=1 << 20).receive()


def test_a_stream_out_of_step_ends_the_worker():
    here, there = socket.socketpair()
    with here, there:
        here.sendall(b"x" * 100)
        assert WorkerProgram().serve(there) == 1
        there.shutdown(socket.SHUT_RDWR)
        reply = MessageStream(here).receive()
        assert reply.header.error and "out of step" in reply.strings[0]


def test_a_caller_of_the_other_order():
    program = WorkerProgram()
    program.function("float64 a, float64 b -> float64 sum", name="add")(lambda a, b: a + b)
    here, there = socket.socketpair()
    with here, there:
        other = sys.byteorder == "little"
        header = Header(77, function_id("add"), 2, (0, 0, 0, 4, 0, 0), 0, False, other)
        here.sendall(format_header(header) + struct.pack(">4d" if other else "<4d", 1, 2, 10, 20))
        here.shutdown(socket.SHUT_WR)
        assert program.serve(there) == 0
        reply = MessageStream(here).receive()
        assert reply.header[:3] == (77, function_id("add"), 2)
        assert list(reply.blocks[3]) == [11, 22]


def test_function_ids_are_amuses():
    assert function_id("initialize_code") == 1768994498
    assert function_id("commit_parameters") == 2069478464
    assert function_id("recommit_parameters") == 1744145122
    assert parse_header(format_header(Header(1, 2, 3))) == Header(1, 2, 3)


def test_declarations_that_cannot_work():
    program = WorkerProgram()
    program.function("->", name="a")(lambda: None)
    with pytest.raises(ValueError, match="functions a and a have the same id"):
        program.function("->", name="a")(lambda: None)
    with pytest.raises(ValueError, match="function id 0"):
        program.function("->", name="b", id=0)(lambda: None)
    for signature in ("int32", "int33 ->", "-> result", "-> result what", "int32 a b ->"):
        with pytest.raises(ValueError, match="signature"):
            program.function(signature, name="c")


def test_worker_py_needs_only_the_standard_library():
    """And Python 3.9: what newer ones brought is not used."""
    names = subprocess.run(
        [sys.executable, "-S", "-E", "-c", "import sys; before = set(sys.modules); sys.path.insert(0, sys.argv[1]); import worker; print(*set(sys.modules) - before)", str(WORKER_PY.parent)],
        check=True, capture_output=True, text=True, timeout=60,
    ).stdout.split()
    assert {name.partition(".")[0] for name in names} - {"worker"} <= sys.stdlib_module_names if sys.version_info >= (3, 10) else True
    import ast

    for module in (worker_module, code_module):
        ast.parse(open(module.__file__).read(), feature_version=(3, 9))


def test_without_numpy_arrays_are_memoryviews(cpp_worker, monkeypatch):
    for module in (worker_module, code_module):
        monkeypatch.setattr(module, "numpy", None)
    with StartedWorker([cpp_worker]) as worker:
        code = RemoteCode(worker)
        assert code.double_all([1.5, 2.5]).tolist() == [3.0, 5.0]
        assert code.echo_bool([True, False]).tolist() == [True, False]
        out = array.array("d", bytes(16))
        code.double_all(array.array("d", [1, 2]), out=out)
        assert list(out) == [2.0, 4.0]
        assert code.echo_all(1.5, "zwei", 3, True, 2**40, 2.5, 9) == (2.5, 2**40, True, 3, "zwei", 1.5, 9)


def test_ranks_that_wait_sleep_between_two_looks(monkeypatch):
    """A rank whose polling interval is set looks whether rank 0 has something, and sleeps; the ranks are played."""
    done = []

    class Barrier:
        looks = 0

        def Test(self):
            self.looks += 1
            return self.looks > 3

    class Comm:
        def Ibarrier(self):
            done.append("barrier")
            return Barrier()

        def bcast(self, given, root):
            done.append("bcast")
            return None, 0

    monkeypatch.setattr(worker_module.time, "sleep", done.append)
    program = WorkerProgram()
    program.rank, program.ranks, program._comm = 1, 2, Comm()
    assert program.serve(None) == 0 and done == ["bcast"]
    done.clear()
    program._set_polling_interval(500)
    assert program.serve(None) == 0 and done == ["barrier", 0.0005, 0.0005, 0.0005, "bcast"]
