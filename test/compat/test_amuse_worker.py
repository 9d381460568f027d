"""Workers of the SDK under AMUSE itself: its sockets channel, its interface classes, MPI. Where AMUSE is not installed there is nothing to test."""

import os
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "test/python"))

numpy = pytest.importorskip("numpy")
rfi = pytest.importorskip("amuse.rfi.core")
from amuse.community.interface.gd import GravitationalDynamics, GravitationalDynamicsInterface  # noqa: E402
from amuse.datamodel import Particles  # noqa: E402
from amuse.support.exceptions import CodeException  # noqa: E402
from amuse.units import nbody_system, units  # noqa: E402

from sdk_support import WORKER_PY, WORKERS, build_cpp  # noqa: E402

COMMON = {"channel_type": "sockets", "hostname": "localhost", "must_check_if_worker_is_up_to_date": False}


def function(result, inputs=(), outputs=(), both=()):
    def specification():
        made = rfi.LegacyFunctionSpecification()
        made.can_handle_array = True
        for names, direction in ((inputs, made.IN), (both, made.INOUT), (outputs, made.OUT)):
            for name, kind in names:
                made.addParameter(name, dtype=kind, direction=direction)
        made.result_type = result
        return made

    return specification


def named(name, specification):
    specification.__name__ = name
    return rfi.legacy_function(specification)


ALL = list(zip("abcdefg", ("float64", "string", "int32", "bool", "int64", "float32", "int32")))


class EchoInterface(rfi.CodeInterface):
    echo_float64 = named("echo_float64", function("int32", [("a", "float64")], [("b", "float64")]))
    echo_string = named("echo_string", function("int32", [("a", "string")], [("b", "string")]))
    double_it = named("double_it", function("int32", both=[("a", "int32")]))
    echo_all = named("echo_all", function("int32", [(n + "_in", t) for n, t in ALL], [ALL[i] for i in (5, 4, 3, 2, 1, 0, 6)]))
    half = named("half", function("float64", [("a", "float64")]))
    fail = named("fail", function("int32", [("text", "string")]))
    ranks = named("ranks", function("int32", outputs=[("ranks", "int32")]))

    def __init__(self, worker, **options):
        rfi.CodeInterface.__init__(self, name_of_the_worker=str(worker), **{**COMMON, **options})


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("amuse")
    build_cpp(WORKERS / "echo_worker.cpp", folder / "echo_cpp")
    script = (WORKERS / "echo_worker.py").read_text().partition("\n")[2]
    (folder / "echo_python").write_text(f"#!{sys.executable}\n{script}")
    (folder / "echo_python").chmod(0o755)
    shutil.copy(WORKER_PY, folder)
    build_cpp(ROOT / "examples/solar_system/gravity_worker.cpp", folder / "gravity_worker")
    return folder


def check(code):
    assert code.echo_float64(1.5)["b"] == 1.5
    assert list(code.echo_float64([1.0, 2.0, 3.0])["b"]) == [1.0, 2.0, 3.0]
    assert code.echo_string("hello")["b"] == "hello"
    assert list(code.echo_string(["a", "bc", ""])["b"]) == ["a", "bc", ""]
    assert list(code.double_it([1, 2])["a"]) == [2, 4]
    got = code.echo_all(1.5, "zwei", 3, True, 2**40, 2.5, 9)
    assert [got[name] for name in "abcdefg"] == [1.5, "zwei", 3, True, 2**40, 2.5, 9]
    assert code.half(5.0) == 2.5
    assert code.set_working_directory("/") == 0
    assert code.get_working_directory()["working_directory"] == "/"
    with pytest.raises(CodeException, match="as told"):
        code.fail("as told")
    long = numpy.arange(2.5e6)  # more than AMUSE sends in one message
    assert (code.echo_float64(long)["b"] == long).all()
    asked = code.echo_float64.asynchronous(3.0)
    asked.wait()
    assert asked.result()["b"] == 3.0


@pytest.mark.parametrize("name", ["echo_cpp", "echo_python"])
def test_plain(programs, name):
    code = EchoInterface(programs / name, initialize_mpi=False)
    try:
        check(code)
    finally:
        code.stop()


@pytest.mark.parametrize("name", ["echo_mpi", "echo_python"])
def test_two_ranks(programs, name, monkeypatch):
    if not shutil.which("mpiexec") or not shutil.which("mpicxx"):
        pytest.skip("no MPI")
    if name == "echo_python":
        pytest.importorskip("mpi4py")
    else:
        build_cpp(WORKERS / "echo_worker.cpp", programs / name, "-DFLOTILLA_WORKER_MPI", "-DOMPI_SKIP_MPICXX", compiler="mpicxx")
    for variable in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "OMPI_MCA_rmaps_base_oversubscribe"):
        monkeypatch.setitem(os.environ, variable, "1")
    code = EchoInterface(programs / name, initialize_mpi=True, number_of_workers=2, mpiexec="mpiexec")
    try:
        assert code.ranks()["ranks"] == 2
        check(code)
    finally:
        code.stop()


class GravityInterface(rfi.CodeInterface, GravitationalDynamicsInterface):
    def __init__(self, worker, **options):
        rfi.CodeInterface.__init__(self, name_of_the_worker=str(worker), **{**COMMON, **options})


def test_the_gravity_worker_is_a_gravity_code_of_amuse(programs):
    class Gravity(GravitationalDynamics):
        def __init__(self, converter):
            GravitationalDynamics.__init__(self, GravityInterface(programs / "gravity_worker", initialize_mpi=False), converter)

    code = Gravity(nbody_system.nbody_to_si(1 | units.MSun, 1 | units.AU))
    try:
        code.initialize_code()
        code.commit_parameters()
        bodies = Particles(2)
        bodies.mass = [1.0, 3e-6] | units.MSun
        bodies.radius = 0 | units.km
        bodies.position = [[0, 0, 0], [1, 0, 0]] | units.AU
        bodies.velocity = [[0, 0, 0], [0, 29.7847, 0]] | units.kms
        code.particles.add_particles(bodies)
        before = code.kinetic_energy + code.potential_energy
        code.evolve_model(1 | units.yr)
        assert abs((code.kinetic_energy + code.potential_energy) / before - 1) < 1e-9
        assert code.particles.position.value_in(units.AU)[1] == pytest.approx([1, 0, 0], abs=0.01)
        code.particles.remove_particle(code.particles[1])
        assert len(code.particles) == 1
    finally:
        code.stop()
