"""AMUSE's own tests of its channels (package amuse-tests), their codes started by us. What is left out does so over AMUSE's
own sockets channel too; why what fails does, stands beside it."""
import os
import pathlib
import re
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
SUITES = {
    # file: (tests, way, workers at least, left out, failing)
    "test_c_distributed_implementation": ("TestCDistributedImplementationInterface", "relayed", 35,
                                          ["test29"],  # two mpiexecs connect by MPI: hangs
                                          []),
    "test_c_sockets_implementation": ("TestCSocketsImplementationInterface", "handed over", 35, ["test29"], []),
    "test_fortran_sockets_implementation": ("TestInterface", "handed over", 20, [], []),
    "test_python_sockets_implementation": ("TestInterfaceSockets", "relayed", 30,
                                           ["test26"],  # waits for ever
                                           []),
    "test_async": ("TestASyncDistributed", "handed over", 60, [],
                   ["test10", "test13", "test14"]),  # expect another class name in an error's text than AMUSE writes
}


@pytest.mark.parametrize("name", SUITES)
def test_amuses_own_tests_pass_over_our_channel(name, user):
    tests, way, workers, left_out, failing = SUITES[name]
    wanted = f"({tests})" + "".join(f" and not {each}" for each in left_out)
    report = user.folder / "report.xml"
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "over_flotilla", "--timeout", "120", "--tb=line", "-rfE",
         "--junitxml", report, "--pyargs", f"amuse.test.suite.compile_tests.{name}", "-k", wanted],
        cwd=user.folder, env=user.environment | {"PYTHONPATH": str(HERE), "PATH": os.environ["PATH"], "FLOTILLA_TEST_WAY": way},
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=280)
    failed = re.findall(r"^FAILED .*::(\w+)", ran.stdout, re.M)
    assert sorted(failed) == sorted(failing), ran.stdout + ran.stderr
    assert not re.findall(r"^ERROR .*", ran.stdout, re.M), ran.stdout
    passed = int(re.search(r"(\d+) passed", ran.stdout)[1])
    started = dict(re.findall(r"(\w+Channel) (\d+)", ran.stdout))
    assert passed >= 20 and int(started["DistributedChannel"]) >= workers, ran.stdout
    assert set(started) == {"DistributedChannel"}, "a test that uses another channel tests nothing of ours"
