"""The Python client against a service that is played here: questions of the daemon, errors, a daemon of another protocol."""

from __future__ import annotations

import asyncio
import queue
import threading
from concurrent import futures

import grpc
import pytest
from google.protobuf import message_factory

import flotilla
import flotilla.aio
from flotilla.v1 import client_pb2, types_pb2


class PlayedDaemon:
    """Answers what it is told to; `asked` are the answers that its questions got."""

    def __init__(self, folder, protocol=1):
        self.path = str(folder / "daemon.sock")
        self.protocol = protocol
        self.questions: list[client_pb2.Prompt] = []
        self.asked: queue.Queue = queue.Queue()
        self.failure = None
        self._ready = threading.Event()
        service = client_pb2.DESCRIPTOR.services_by_name["ClientService"]
        handlers = {}
        for method in service.methods:
            kinds = {(False, False): "unary_unary", (False, True): "unary_stream", (True, False): "stream_unary", (True, True): "stream_stream"}
            make = getattr(grpc, kinds[bool(method.client_streaming), bool(method.server_streaming)] + "_rpc_method_handler")
            handlers[method.name] = make(
                getattr(self, method.name, self._unknown),
                request_deserializer=message_factory.GetMessageClass(method.input_type).FromString,
                response_serializer=message_factory.GetMessageClass(method.output_type).SerializeToString,
            )
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
        self._server.add_insecure_port("unix:" + self.path)
        self._server.start()

    def stop(self):
        self._server.stop(0).wait()

    def _unknown(self, request, context):
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "the pretender has no such call")

    def GetInfo(self, request, context):
        return client_pb2.DaemonInfo(build="played", protocol=self.protocol, pid=1)

    def Prompts(self, answers, context):
        first = next(answers)
        self.asked.put(("accepts new host keys", first.accept_new_host_keys))
        self._ready.set()
        for question in self.questions:
            yield question
            answer = next(answers)
            self.asked.put((answer.id, None if answer.refused else answer.text))
        self.asked.put("over")

    def ConnectResource(self, request, context):
        self._ready.wait(10)
        yield client_pb2.Progress(message="connecting", fraction=-1)
        if self.failure is not None:
            yield client_pb2.Progress(done=True, error=self.failure)
        else:
            yield client_pb2.Progress(message="connected", fraction=1, done=True)

    def ListJobs(self, request, context):
        if self.failure is not None:
            context.set_trailing_metadata((("grpc-status-details-bin", self.failure.SerializeToString()),))
            context.abort(grpc.StatusCode.ABORTED, self.failure.message)
        return client_pb2.ListJobsReply()

    def ListResources(self, request, context):
        return client_pb2.ListResourcesReply(resources=[types_pb2.Resource(spec=types_pb2.ResourceSpec(name=request.name))])


@pytest.fixture
def played(tmp_path):
    daemon = PlayedDaemon(tmp_path)
    yield daemon
    daemon.stop()


QUESTIONS = [
    client_pb2.Prompt(id=3, kind=client_pb2.PROMPT_HOST_KEY, resource="far", text="ED25519 key", fingerprint="SHA256:abc"),
    client_pb2.Prompt(id=4, kind=client_pb2.PROMPT_SECRET, resource="far", text="Password:"),
    client_pb2.Prompt(id=5, kind=client_pb2.PROMPT_TEXT, resource="far", text="Code:"),
    client_pb2.Prompt(id=6, kind=client_pb2.PROMPT_TEXT, resource="far", text="Again:"),
]


def answer(prompt):
    if prompt.kind == "host_key":
        assert prompt.fingerprint == "SHA256:abc"
        return "yes"
    if prompt.kind == "secret":
        return "s3cret"
    if prompt.text == "Code:":
        return None  # refused
    raise RuntimeError("a handler that fails refuses")


EXPECTED = [("accepts new host keys", True), (3, "yes"), (4, "s3cret"), (5, None), (6, None), "over"]


def test_questions_are_answered_by_the_handler(played):
    played.questions = QUESTIONS
    with flotilla.Daemon(played.path, prompts=answer, accept_new_host_keys=True) as daemon:
        said = []
        daemon.resource("far").connect(lambda text, fraction: said.append((text, fraction)))
        assert said == [("connecting", -1), ("connected", 1)]
        assert [played.asked.get(timeout=20) for _ in EXPECTED] == EXPECTED


def test_questions_are_answered_under_asyncio(played):
    played.questions = QUESTIONS

    async def main():
        async with flotilla.aio.Daemon(played.path, prompts=answer, accept_new_host_keys=True) as daemon:
            await (await daemon.resource("far")).connect()
            return [await asyncio.get_running_loop().run_in_executor(None, played.asked.get, True, 20) for _ in EXPECTED]

    assert asyncio.run(main()) == EXPECTED


def test_every_error_code_has_its_class(played):
    with flotilla.Daemon(played.path) as daemon:
        seen = set()
        for code in types_pb2.ErrorCode.values():
            played.failure = types_pb2.Error(code=code, message="it broke", hint="mend it", retry=True, faults=["one", "two"])
            with pytest.raises(flotilla.FlotillaError) as raised:
                daemon.jobs()
            error = raised.value
            assert (error.message, error.hint, error.retry, error.faults) == ("it broke", "mend it", True, ("one", "two"))
            assert str(error) == "it broke\n  - one\n  - two\nmend it"
            if code != 0:  # unspecified is a defect
                assert error.code == code
                seen.add(type(error))
        assert len(seen) == len(types_pb2.ErrorCode.values()) - 1
        played.failure = types_pb2.Error(code=99, message="of a newer daemon")
        with pytest.raises(flotilla.InternalError, match="newer"):
            daemon.jobs()
        played.failure = types_pb2.Error(code=types_pb2.WORKER_FAILED, message="died", exit=types_pb2.ExitReason(kind=types_pb2.SIGNALED, signal=9, stderr_tail="help\n"))
        with pytest.raises(flotilla.WorkerFailedError) as raised:
            daemon.jobs()
        assert raised.value.exit.signal == 9 and "help" in str(raised.value)


def test_an_error_at_the_end_of_a_stream_is_raised(played):
    played._ready.set()
    played.failure = types_pb2.Error(code=types_pb2.AUTHENTICATION_FAILED, message="wrong password", hint="try again")
    with flotilla.Daemon(played.path) as daemon, pytest.raises(flotilla.AuthenticationFailedError, match="wrong password"):
        daemon.resource("far").connect()


def test_a_call_that_the_daemon_does_not_know_is_another_version(played):
    with flotilla.Daemon(played.path) as daemon, pytest.raises(flotilla.VersionMismatchError, match="flotilla daemon restart"):
        daemon.start_pilot("local")


def test_a_daemon_of_another_protocol_is_refused(tmp_path):
    daemon = PlayedDaemon(tmp_path, protocol=2)
    try:
        with pytest.raises(flotilla.VersionMismatchError, match="protocol 2"):
            flotilla.Daemon(daemon.path)
    finally:
        daemon.stop()


def test_the_words_of_python_and_cplusplus_are_the_same():
    import re

    from conftest import ROOT

    header = (ROOT / "client/include/flotilla/client.hpp").read_text()
    for name in ("Daemon", "Resource", "Pilot", "Job", "Worker", "Attachment"):
        body = re.search(rf"class FLOTILLA_API {name} \{{(.*?)\n private:", header, re.S).group(1)
        methods = set(re.findall(r"^  [A-Za-z0-9_:<>&\*, ]*?\b([a-z_]+)\(", body, re.M)) - {"code_options"}
        missing = {method for method in methods if not hasattr(getattr(flotilla, name), method)}
        # Names that Python says by other means: attributes of the object, iteration.
        missing -= {"Worker": {"fd", "counters", "id"}, "Resource": {"name"}, "Pilot": {"id"}, "Job": {"id"}, "Attachment": {"next"}}.get(name, set())
        assert not missing, f"{name} has no {missing} in Python"
    for name in re.findall(r"^FLOTILLA_ERROR\((\w+)\)", header, re.M):
        assert issubclass(getattr(flotilla, name), flotilla.FlotillaError)
    for name in ("ResourceSpec", "PilotSpec", "CommandSpec", "WorkerSpec", "InputFile", "ExitReason"):
        body = re.search(rf"^struct {name} \{{(.*?)\n\}};", header, re.S | re.M).group(1)
        fields = set(re.findall(r"^  [A-Za-z0-9_:<>, ]+? ([a-z_]+)(?:\{0\}| = [^;]+)?;", body, re.M))
        python = set(getattr(flotilla, name).__dataclass_fields__)
        assert fields == python, f"{name}: {fields ^ python}"


def test_asyncio_has_every_word():
    for name in ("Daemon", "Resource", "Pilot", "Job", "Worker", "Attachment"):
        words = {word for word in vars(getattr(flotilla, name)) if not word.startswith("_") and not word.endswith("_async")}
        assert not {word for word in words if not hasattr(getattr(flotilla.aio, name), word)}
