"""Code workers: on the laptop, on the front end, on a node; how they end; the example with its workers on the nodes."""
import importlib.util
import json
import os
import pathlib
import sys

import pytest

from bed import ROOT, programs, wait_until


@pytest.fixture
def cluster(flotilla):
    """A pilot on the front end and one on a node, by labels."""
    flotilla.add_cluster("front")
    flotilla.add_cluster("nodes", "--host", "node1", "--host", "node2")
    flotilla.start_pilot("front", "--slots", "4", "--label", "at-front")
    flotilla.start_pilot("nodes", "--slots", "4", "--nodes", "2", "--label", "at-nodes")
    return flotilla


def test_calls_everywhere(cluster):
    script = """
        with flotilla.Daemon() as daemon:
            for label in ("local", "at-front", "at-nodes"):
                worker, code = start_code(daemon, label=label)
                hosts = code.compute(0.0)
                for value in range(300):
                    assert code.echo(value) == value
                import array
                data = array.array("d", range(1_000_000))
                back = code.echo_array(data)
                assert hashlib.sha256(bytes(memoryview(back).cast("B"))).digest() == hashlib.sha256(data.tobytes()).digest()
                print(label, hosts)
                code.close()
        """
    said = dict(line.split() for line in cluster.python(script).stdout.splitlines())
    assert said["local"] == "laptop"
    assert said["at-front"] == "frontend"
    assert said["at-nodes"] in ("node1", "node2")


def test_several_at_once(cluster):
    cluster.python("""
        with flotilla.Daemon() as daemon:
            codes = [start_code(daemon, label=label)[1] for label in ("local", "local", "at-front", "at-front", "at-nodes", "at-nodes")]
            begin = time.monotonic()
            calls = [code.compute.async_call(1.0) for code in codes]
            hosts = [call.result() for call in calls]
            took = time.monotonic() - begin
            assert took < 4, took          # one after another they would take six seconds
            assert len(hosts) == 6
            for code in codes:
                code.close()
        """)


@pytest.mark.parametrize("label", ["local", "at-front", "at-nodes"])
def test_a_dying_worker_tells_its_cause(cluster, label):
    said = cluster.python(f"""
        with flotilla.Daemon() as daemon:
            for how, number in (("leave", 3), ("die", 11)):
                worker, code = start_code(daemon, label={label!r})
                begin = time.monotonic()
                try:
                    getattr(code, how)(number)
                except flotilla.ChannelClosed as error:
                    assert time.monotonic() - begin < 5
                    print(repr(str(error) + " " + worker.explain_end()))
                else:
                    raise SystemExit("the call returned")
        """).stdout.splitlines()
    assert "3" in said[0] and "leaving with 3" in said[0], said[0]
    assert "SIGSEGV" in said[1] or "signal 11" in said[1], said[1]
    assert "something is badly wrong" in said[1], said[1]


def test_calls_where_nodes_cannot_reach_the_data_port(bed, cluster):
    with bed.frontend.closed_to("priv"):
        cluster.python("""
            with flotilla.Daemon() as daemon:
                begin = time.monotonic()
                worker, code = start_code(daemon, label="at-nodes")
                for value in range(100):
                    assert code.echo(value) == value
                assert time.monotonic() - begin < 10, time.monotonic() - begin
                import array
                data = array.array("d", range(1_000_000))
                assert bytes(memoryview(code.echo_array(data)).cast("B")) == data.tobytes()
                code.close()
            """)


def test_a_worker_that_cannot_start(cluster):
    said = cluster.python("""
        with flotilla.Daemon() as daemon:
            begin = time.monotonic()
            try:
                daemon.start_worker("sh", args=["-c", "echo no licence >&2; exit 5"], label="at-nodes")
            except flotilla.WorkerFailedError as error:
                print(repr(str(error)), time.monotonic() - begin < 10)
            try:
                daemon.start_worker("/no/such/worker", label="at-front")
            except flotilla.FlotillaError as error:
                print(repr(str(error)))
        """).stdout
    assert "no licence" in said and "5" in said and "True" in said, said
    assert "/no/such/worker" in said, said


@pytest.mark.parametrize("label", ["local", "at-front", "at-nodes"])
@pytest.mark.parametrize("way", ["close", "killed"])
def test_a_closing_client_ends_its_worker(bed, cluster, label, way):
    with cluster.python_live(f"""
        daemon = flotilla.Daemon()
        worker, code = start_code(daemon, label={label!r})
        print(worker.id, code.start_runaway(), flush=True)
        sys.stdin.readline()
        code.close()
        worker.close()
        print("closed", flush=True)
        sys.stdin.readline()
        """) as script:
        job, _ = map(int, script.line(60).split())
        if way == "close":
            script.tell("go on")
            assert script.line() == "closed"
        else:
            script.process.kill()
        ended = cluster.wait_job(job, ("finished", "canceled", "failed"), 10)
        assert ended["exit"]["kind"] in ("exited", "client_gone"), ended["exit"]
        wait_until(lambda: not [p for h in bed.hosts.values() for p in h.processes() if p.environment.get("FLOTILLA_JOB") == str(job)],
                   10, "nothing of the job is left, not even what called setsid")


def test_an_mpi_worker(bed, flotilla):
    worker = next(programs().parent.rglob("sdk_echo_worker_mpi"), None)
    assert worker is not None, "the MPI worker of the SDK's tests is not built"
    flotilla.add_cluster("front")
    flotilla.start_pilot("front", "--slots", "4")
    flotilla.python(f"""
        with flotilla.Daemon() as daemon:
            worker = daemon.start_worker("./echo", files=[flotilla.InputFile({str(worker)!r}, name="echo", mode=0o755)],
                                         processes=2, mpi=True, label="front")
            code = flotilla.RemoteCode(worker)
            assert code.functions()
            code.close()
        """)


PYTHON_HOST = [sys.executable, ROOT / "examples" / "solar_system" / "solar_system.py"]


def _solar(flotilla, *options, host=PYTHON_HOST):
    worker = programs() / "gravity_worker"
    assert worker.exists(), "gravity_worker is not built"
    done = flotilla.host.as_user([*host, "--years=2", "--json", f"--gravity-worker={worker}", *options],
                                 env=flotilla.env | {"FLOTILLA_PROGRAM": "/opt/flotilla/bin/flotilla"}, timeout=180)
    ran_on = dict(line.split(" on ", 1) for line in done.stderr.splitlines() if "_worker " in line)
    return json.loads(done.stdout), {name.strip(): host for name, host in ran_on.items()}


def _agree(one, other, kilometres):
    assert one["distance_km"].keys() == other["distance_km"].keys()
    for name, distance in one["distance_km"].items():
        assert abs(other["distance_km"][name] - distance) < kilometres, name


@pytest.mark.parametrize("gravity, star", [("at-nodes", "at-front"), ("local", "at-front"), ("at-front", "local")])
def test_the_example_with_its_workers_elsewhere(cluster, gravity, star):
    hosts = {"local": ("laptop", "this machine"), "at-front": ("frontend",), "at-nodes": ("node1", "node2")}
    here, _ = _solar(cluster, "--mass-loss")
    there, ran_on = _solar(cluster, "--mass-loss", "--on-gravity", gravity, "--on-star", star)
    assert ran_on["gravity_worker"] in hosts[gravity] and ran_on["star_worker"] in hosts[star], ran_on
    assert abs(there["energy_error"]) < 1e-8
    assert 0 < there["distance_km"]["Neptune"] < 1000
    _agree(here, there, 0.001)


def test_the_example_in_cpp_with_its_workers_elsewhere(cluster):
    program = programs() / "solar_system"
    assert program.exists(), "solar_system is not built"
    ephemeris = pathlib.Path(importlib.util.find_spec("de421").origin).parent
    options = ("--mass-loss", "--on-gravity", "at-nodes", "--on-star", "at-front")
    said, ran_on = _solar(cluster, *options, f"--ephemeris={ephemeris}", host=[program])
    assert ran_on["gravity_worker"] in ("node1", "node2") and ran_on["star_worker"] == "frontend", ran_on
    _agree(_solar(cluster, *options)[0], said, 0.1)
