"""The Python client against a service that is played here: questions of the daemon, errors, a daemon of another protocol."""

from __future__ import annotations

import asyncio
import hashlib
import os
import pty
import queue
import select
import subprocess
import sys
import termios
import threading
import time
from concurrent import futures

import grpc
import pytest
from google.protobuf import message_factory

from conftest import SOURCES

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
        self.attached = threading.Event()
        self.holds = False  # an attachment that is left
        self.limits = []
        self.blobs = []
        self._ready = threading.Event()
        self.connects = threading.Event()
        self.connects.set()
        service = client_pb2.DESCRIPTOR.services_by_name["ClientService"]
        handlers = {}
        for method in service.methods:
            kinds = {(False, False): "unary_unary", (False, True): "unary_stream", (True, False): "stream_unary", (True, True): "stream_stream"}
            make = getattr(grpc, kinds[bool(method.client_streaming), bool(method.server_streaming)] + "_rpc_method_handler")
            handlers[method.name] = make(
                lambda *given, name=method.name: getattr(self, name, self._unknown)(*given),
                request_deserializer=message_factory.GetMessageClass(method.input_type).FromString,
                response_serializer=message_factory.GetMessageClass(method.output_type).SerializeToString,
            )
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
        self._server.add_insecure_port("unix:" + self.path)
        self._server.start()

    def stop(self):
        self.connects.set()
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
        self.connects.wait(20)
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

    def Attach(self, inputs, context):
        self.inputs = []
        self.attached.set()
        for message in inputs:
            self.inputs.append(message)
            if message.detach and not self.holds:
                return
            yield client_pb2.AttachOutput(output=client_pb2.OutputChunk(stream=1, data=b"."))

    def WaitJobs(self, request, context):
        self.limits.append(request.timeout_ms)
        if len(self.limits) == 1:
            time.sleep(0.02)  # what the first try took
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return client_pb2.ListJobsReply(jobs=[types_pb2.Job(id=request.ids[0], state=types_pb2.JOB_FINISHED)])

    def WaitPilots(self, request, context):
        self.limits.append(request.timeout_ms)
        if len(self.limits) == 1:
            time.sleep(0.02)
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return client_pb2.ListPilotsReply(pilots=[types_pb2.Pilot(id=request.ids[0], state=types_pb2.PILOT_RUNNING)])

    def PutBlob(self, chunks, context):
        self.blobs.append([bytes(chunk.data) for chunk in chunks])
        return client_pb2.BlobInfo()

    def Submit(self, request, context):
        return client_pb2.SubmitReply(ids=range(1, len(request.specs) + 1))

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


# ---- questions on a terminal

ASKED = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
import flotilla
flotilla.__path__.append(sys.argv[2])
import flotilla.aio

def blocking():
    flotilla.Daemon(sys.argv[3]).resource("far").connect()

async def tasks():
    daemon = await flotilla.aio.Daemon(sys.argv[3]).open()
    await (await daemon.resource("far")).connect()

blocking() if sys.argv[4] == "blocking" else asyncio.run(tasks())
"""


class Asked:
    """A program on a terminal of its own that connects to a resource."""

    def __init__(self, played, form):
        self.master, self.slave = pty.openpty()
        command = [sys.executable, "-c", ASKED, str(SOURCES), flotilla.__path__[-1], played.path, form]
        self.process = subprocess.Popen(["setsid", "--ctty", *command], stdin=self.slave, stdout=self.slave, stderr=self.slave)
        self._text = b""

    def until(self, text):
        while text not in self._text:
            assert select.select([self.master], [], [], 20)[0], f"no {text!r}, but {self._text!r}"
            self._text += os.read(self.master, 4096)
        self._text = self._text.partition(text)[2]

    def echoes(self):
        return bool(termios.tcgetattr(self.slave)[3] & termios.ECHO)

    def type(self, text):
        os.write(self.master, text)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.mark.parametrize("form", ["blocking", "asyncio"])
def test_a_program_that_is_interrupted_at_a_question_leaves_the_terminal_as_it_was(played, form):
    played.questions = [QUESTIONS[1]]
    played.connects.clear()
    with Asked(played, form) as asked:
        asked.until(b"far: Password:")
        assert not asked.echoes()
        asked.type(b"\x03")
        asked.until(b"KeyboardInterrupt")
        assert asked.process.wait(20) != 0
        assert asked.echoes()


@pytest.mark.parametrize("form", ["blocking", "asyncio"])
def test_a_question_that_is_withdrawn_leaves_the_terminal(played, form):
    shown = threading.Event()
    def prompts(answers, context):
        next(answers)
        played._ready.set()
        yield QUESTIONS[1]
        shown.wait(20)
        yield client_pb2.Prompt(id=QUESTIONS[1].id, withdrawn=True)
        yield QUESTIONS[2]
        answer = next(answers)
        played.asked.put((answer.id, answer.text))

    played.Prompts = prompts
    played.connects.clear()
    with Asked(played, form) as asked:
        asked.until(b"Password:")
        shown.set()
        asked.until(b"far: Code:")
        assert asked.echoes()
        asked.type(b"1234\n")
        assert played.asked.get(timeout=20) == (QUESTIONS[2].id, "1234")
        played.connects.set()
        assert asked.process.wait(20) == 0


# ---- what is sent


def test_what_is_written_just_before_leaving_reaches_the_job(played):
    with flotilla.Daemon(played.path) as daemon:
        with flotilla.Job(daemon._session, 1).attach() as attached:
            for number in range(1000):
                attached.write(str(number))
            attached.close_input()
        assert [each.stdin for each in played.inputs[1:1001]] == [str(number).encode() for number in range(1000)]
        assert played.inputs[1001].stdin_eof and played.inputs[1002].detach


def test_what_is_written_just_before_leaving_reaches_the_job_under_asyncio(played):
    async def main():
        async with flotilla.aio.Daemon(played.path) as daemon:
            async with flotilla.aio.Job(daemon._session, 1).attach() as attached:
                for number in range(1000):
                    await attached.write(str(number))
                await attached.close_input()

    asyncio.run(main())
    assert [each.stdin for each in played.inputs[1:1001]] == [str(number).encode() for number in range(1000)]
    assert played.inputs[1001].stdin_eof and played.inputs[1002].detach


def test_a_daemon_that_does_not_take_the_input_holds_nobody_up_for_ever(played, monkeypatch):
    monkeypatch.setattr(flotilla._client, "DETACH_LIMIT", 0.05)
    monkeypatch.setattr(flotilla.aio, "DETACH_LIMIT", 0.05)
    played.holds = True
    with flotilla.Daemon(played.path) as daemon:
        with flotilla.Job(daemon._session, 1).attach() as attached:
            attached.write("x")

    async def main():
        async with flotilla.aio.Daemon(played.path) as daemon:
            async with flotilla.aio.Job(daemon._session, 1).attach() as attached:
                await attached.write("x")

    asyncio.run(main())


def test_leaving_wakes_who_reads_in_another_thread(played):
    with flotilla.Daemon(played.path) as daemon:
        attached = flotilla.Job(daemon._session, 1).attach()
        assert next(attached).data == b"."
        seen = []
        reading = threading.Thread(target=lambda: seen.extend(attached))
        reading.start()
        attached.close()
        reading.join(20)
        assert not reading.is_alive()


def test_a_limit_holds_over_a_restart(played):
    async def wait(kind):
        async with flotilla.aio.Daemon(played.path) as daemon:
            await getattr(flotilla.aio, kind)(daemon._session, 7).wait(6)

    for kind in ("Job", "Pilot"):
        for act in (lambda: getattr(flotilla, kind)(flotilla.Daemon(played.path)._session, 7).wait(6), lambda: asyncio.run(wait(kind))):
            played.limits.clear()
            act()
            first, second = played.limits
            assert 0 < second <= first - 20 and first <= 6000


def test_a_daemon_that_does_not_come_back_is_not_waited_for_after_the_limit(played):
    with flotilla.Daemon(played.path) as daemon:
        job = flotilla.Job(daemon._session, 7)
        played.stop()
        begin = time.monotonic()
        with pytest.raises(flotilla.UnavailableError):
            job.wait(0.3)
        assert time.monotonic() - begin < 10  # a restart would be waited for longer


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(argv=["caf\udce9"]), "argv\\[0\\] is not UTF-8"),
        (dict(argv=["true", 5]), "argv\\[1\\] is no text: 5"),
        (dict(argv=["true"], env={"A": 1}), "env\\['A'\\] is no text: 1"),
        (dict(argv=["true"], env={"A": "\udce9"}), "env\\['A'\\] is not UTF-8"),
        (dict(argv=["true"], env="A=1"), "env is no mapping"),
        (dict(argv=["true"], working_folder="/\udce9"), "working_folder is not UTF-8"),
        (dict(argv=["true"], label=7), "label is no text: 7"),
        (dict(argv=["true"], processes="two"), "processes cannot be 'two'"),
        (dict(argv=["true"], processes=2**40), "processes cannot be 1099511627776"),
        (dict(argv=["true"], time_limit="long"), "time_limit is no number of seconds: 'long'"),
        (dict(argv=["true"], time_limit=float("inf")), "time_limit is no number"),
        (dict(argv=["true"], standard_input="\udce9"), "standard_input is a text that is not UTF-8"),
        (dict(argv=["true"], standard_input=5), "standard_input is neither bytes nor text: int"),
        (dict(argv=["true"], files=[5]), "an input file is no path: 5"),
        (dict(argv=["true"], files=[flotilla.InputFile(name="\udce9", content=b"")]), "the name of an input file is not UTF-8"),
        (dict(argv=["true"], files=[flotilla.InputFile(name="a", content=5)]), "the content of an input file is neither bytes nor text"),
    ],
)
def test_what_does_not_fit_a_message_is_named(played, wrong, words):
    with flotilla.Daemon(played.path) as daemon:
        with pytest.raises(flotilla.InvalidArgumentError, match=words):
            daemon.submit(wrong.pop("argv"), **wrong)
    assert not played.blobs


def test_a_folder_that_is_not_utf8_is_refused_where_it_matters(played, tmp_path, monkeypatch):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    monkeypatch.chdir(os.fsdecode(folder))
    with flotilla.Daemon(played.path) as daemon:
        with pytest.raises(flotilla.InvalidArgumentError, match="the folder that this program runs in is not UTF-8"):
            daemon.submit(["true"])
        assert daemon.submit(["true"], working_folder="/").id == 1


def test_a_request_that_is_too_large_says_what_to_do(played):
    much = b"x" * (64 << 20)

    async def main():
        async with flotilla.aio.Daemon(played.path) as daemon:
            await daemon.submit(["cat"], standard_input=much)

    with flotilla.Daemon(played.path) as daemon:
        for act in (
            lambda: daemon.submit(["cat"], standard_input=much),
            lambda: daemon.run(["cat"], standard_input=much),
            lambda: daemon.start_worker("code", ["x" * (64 << 20)]),
            lambda: asyncio.run(main()),
        ):
            with pytest.raises(flotilla.ResourceExhaustedError, match="input file"):
                act()


def test_a_file_that_many_descriptions_name_is_read_and_asked_for_once(played, tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.write_bytes(b"content")
    made = []
    sha256 = hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda *given: made.append(given) or sha256(*given))
    specs = [flotilla.CommandSpec(["true"], files=[data, str(data), flotilla.InputFile(data, name=f"data{number}")]) for number in range(100)]

    async def main():
        async with flotilla.aio.Daemon(played.path) as daemon:
            await daemon.submit_many(specs)

    with flotilla.Daemon(played.path) as daemon:
        for act in (lambda: daemon.submit_many(specs), lambda: asyncio.run(main())):
            made.clear()
            played.blobs.clear()
            act()
            assert len(made) == 1
            assert played.blobs == [[b""], [b"content"]]  # asked for, then sent
        data.write_bytes(b"changed")
        made.clear()
        daemon.submit_many(specs)
        assert len(made) == 1 and played.blobs[-1] == [b"changed"]


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
