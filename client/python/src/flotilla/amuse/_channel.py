"""AMUSE's channels to the distributed code and to its workers, without their faults. Source of the format: AMUSE 2024.6, ``amuse.rfi.channel``."""

import codecs
import os
import socket
import threading

import numpy
from amuse.rfi import channel as upstream
from amuse.rfi import core
from amuse.rfi.async_request import FakeASyncRequest
from amuse.support.exceptions import CodeException

_PIECE = 1 << 20  # bytes: a message up to this size is sent at once
_START_WORKER = 10101010  # function id of what a worker is asked for with


class Message(upstream.SocketMessage):
    """Lengths of strings in bytes; a short message is one segment on the wire."""

    def send(self, connection):
        texts = [str(each).encode() for each in self.strings]
        flags = numpy.array([self.big_endian, self.error, len(self.encoded_units) > 0, False], dtype="b")
        blocks = [
            (self.ints, "i4"),
            (self.longs, "i8"),
            (self.floats, "f4"),
            (self.doubles, "f8"),
            (self.booleans, "b"),
            ([len(each) for each in texts], "i4"),
        ]
        counts = [len(block) for block, _ in blocks] + [len(self.encoded_units)]
        header = numpy.array([self.call_id, self.function_id, self.call_count, *counts], dtype="i4")
        parts = [flags.tobytes() + header.tobytes()]
        parts += [memoryview(numpy.ascontiguousarray(block, dtype=kind)).cast("B") for block, kind in blocks if len(block)]
        if texts:
            parts.append(b"\0".join(texts) + b"\0")
        if len(self.encoded_units):
            parts.append(numpy.asarray(self.encoded_units, dtype="f8").tobytes())
        if sum(len(part) for part in parts) <= _PIECE:
            connection.sendall(b"".join(parts))
        else:
            for part in parts:
                connection.sendall(part)

    def _receive_all(self, size, connection):
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            count = connection.recv_into(rest)
            if count == 0:
                raise CodeException("lost connection to code")
            rest = rest[count:]
        return data


def connect(port):
    connection = socket.create_connection(("localhost", int(port)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


class OutputHandler(threading.Thread):
    """Writes what codes print to the script's stdout or stderr: both are streams of text."""

    def __init__(self, stream, port):
        super().__init__(daemon=True)
        self.stream = stream
        self.socket = connect(port)
        self.socket.sendall(b"TYPE_OUTPUT")
        answer = Message()
        answer.receive(self.socket)
        self.id = answer.strings[0]
        self.start()

    def run(self):
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while True:
            try:
                data = self.socket.recv(1 << 16)
            except OSError:
                return
            try:
                self.stream.write(decoder.decode(data, not data))
                self.stream.flush()
            except (OSError, ValueError):
                pass  # closed, or full: it may take the next; who does not read holds up every code
            if not data:
                return


class _Calls:
    """Calls over a stream socket, one at a time."""

    def send_message(self, call_id, function_id, dtype_to_arguments={}, encoded_units=()):  # noqa: B006 (AMUSE's signature)
        if self.is_inuse():
            raise CodeException("this code is still busy with another call")
        if self.socket is None:
            raise CodeException("this code is not running: it was stopped, or did not start")
        rows = self.determine_length_from_data(dtype_to_arguments)
        if rows > self.max_message_length:
            self.split_message(call_id, function_id, rows, dtype_to_arguments, encoded_units)
            return
        units = () if encoded_units is None else encoded_units
        try:
            Message(call_id, function_id, rows, dtype_to_arguments, encoded_units=units).send(self.socket)
        except OSError as error:
            raise self.broken(error) from None
        self._is_inuse = True

    def recv_message(self, call_id, function_id, handle_as_array, has_units=False):
        self._is_inuse = False
        if self._communicated_splitted_message:
            return self._merged()
        message = _Answer(self)
        message.receive(self.socket)
        return self._result(message, call_id, function_id, handle_as_array, has_units)

    def nonblocking_recv_message(self, call_id, function_id, handle_as_array, has_units=False):
        if self._communicated_splitted_message:
            # Its parts were answered one by one as they were sent.
            self._is_inuse = False
            return FakeASyncRequest(self._merged())

        def result(message):
            self._is_inuse = False
            return self._result(message(), call_id, function_id, handle_as_array, has_units)

        request = _Answer(self).nonblocking_receive(self.socket)
        request.add_result_handler(result)
        return request

    def _merged(self):
        self._communicated_splitted_message = False
        return self.__dict__.pop("_merged_results_splitted_message")

    def _result(self, message, call_id, function_id, handle_as_array, has_units):
        if message.error:
            raise CodeException("Error in code: " + (message.strings[0] if len(message.strings) else "it gave no text"))
        if (message.call_id, message.function_id) != (call_id, function_id):
            self.stop()
            raise CodeException(f"the code answered call {message.call_id} of function {message.function_id}, not {call_id} of {function_id}")
        result = message.to_result(handle_as_array)
        return (result, message.encoded_units) if has_units else result

    def broken(self, error):
        """The exception for a socket that broke."""
        return CodeException(f"lost connection to code: {error}" if isinstance(error, OSError) else str(error))


class _Answer(Message):
    def __init__(self, channel):
        super().__init__()
        self._channel = channel

    def receive(self, connection):
        try:
            super().receive(connection)
        except (OSError, CodeException) as error:
            raise self._channel.broken(error) from None


class ControlChannel(_Calls, upstream.SocketChannel):
    """To the program that stands for the distributed code."""

    initialize_mpi = False  # it is no MPI program, and what it starts must not think itself in one


class DistributedChannel(_Calls, upstream.DistributedChannel):
    """To a worker on a pilot."""

    @staticmethod
    def getStdoutID(instance):
        return DistributedChannel._output(instance, "_stdoutHandler", upstream.sys.stdout)

    @staticmethod
    def getStderrID(instance):
        return DistributedChannel._output(instance, "_stderrHandler", upstream.sys.stderr)

    @staticmethod
    def _output(instance, name, stream):
        if getattr(instance, name, None) is None:
            setattr(instance, name, OutputHandler(stream, instance.port))
        return getattr(instance, name).id

    def start(self):
        instance = self.distributed_instance
        none = self.redirect_stdout_file == "none", self.redirect_stderr_file == "none"
        self.redirect_stdout_file = self.getStdoutID(instance) if none[0] else os.path.abspath(self.redirect_stdout_file)
        self.redirect_stderr_file = self.getStderrID(instance) if none[1] else os.path.abspath(self.redirect_stderr_file)
        # The worker port takes the interpreter behind the directory; AMUSE's channel does not send it.
        folder = self.worker_dir + ("\0" + os.path.abspath(self.interpreter_executable) if self.interpreter_executable else "")
        wanted = {
            "string": [self.executable, self.redirect_stdout_file, self.redirect_stderr_file, self.label, folder],
            "int32": [self.number_of_workers, self.number_of_threads],
            "bool": [self.dynamic_python_code],
        }
        answer = Message()
        try:
            self.socket = connect(self.daemon_port)
            self.socket.sendall(b"TYPE_WORKER")
            Message(1, _START_WORKER, 1, wanted).send(self.socket)
            answer.receive(self.socket)
        except (OSError, CodeException) as error:
            self.stop()
            raise CodeException(f"cannot start a worker for {self.name_of_the_worker}: the distributed code does not answer ({error})") from None
        if answer.error:
            self.stop()
            raise CodeException(f"Could not start worker for {self.name_of_the_worker}: {answer.strings[0]}")
        self.remote_amuse_dir = answer.strings[0]


def repair():
    """From now on every code over the distributed channel uses this one. Again does nothing more."""
    core.DistributedChannel = DistributedChannel
