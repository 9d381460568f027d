"""The example as a user runs it: a real daemon, its local pilot, both host programs."""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest
from conftest import SOURCES, find_program
from sdk_support import ROOT

import numpy  # noqa: F401
import de421
EXAMPLE = ROOT / "examples/solar_system"
RUN_S = 120  # a second or two of work on a machine that does nothing else


@pytest.fixture(scope="module")
def environment(shared_place):
    import flotilla

    messages = next(path for path in flotilla.__path__ if "flotilla-messages" in path)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(SOURCES), str(EXAMPLE)]),
        "FLOTILLA_TEST_MESSAGES": messages,
        "DE421_DIR": str(Path(de421.__file__).parent),
        "PATH": os.pathsep.join([str(find_program("gravity_worker").parent), os.environ["PATH"]]),
    }


def python_host(*options):
    # The script as it is; only the package's generated part is where the tests have made it.
    start = "import os, sys, runpy, flotilla; flotilla.__path__.append(os.environ['FLOTILLA_TEST_MESSAGES']); sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    return [sys.executable, "-c", start, str(EXAMPLE / "solar_system.py"), *options]


def cpp_host(*options):
    return [str(find_program("solar_system")), *options]


@pytest.fixture(params=[python_host, cpp_host], ids=["Python", "C++"])
def host(request):
    return request.param


def run(command, environment):
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=RUN_S)


def test_newton(host, environment):
    done = run(host("--json"), environment)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert abs(result["energy_error"]) < 1e-11
    assert 1500 < result["distance_km"]["Mercury"] < 2200
    assert 500 < result["distance_km"]["Earth"] < 620
    assert result["distance_km"]["Neptune"] < 1
    # no terminal: plain lines, one for each tenth
    lines = [line for line in done.stderr.splitlines() if "energy error" in line and "of 10 years" in line]
    assert len(lines) == 10 and "\r" not in done.stderr
    assert any(line.split()[0] == "Earth" for line in done.stderr.splitlines() if line.strip())


def test_with_the_star(host, environment):
    done = run(host("--json", "--years=2", "--mass-loss=1e-5"), environment)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["sun_mass"] == pytest.approx(1 - 2e-5)
    assert abs(result["energy_error"]) < 1e-11
    assert result["distance_km"]["Earth"] == pytest.approx(2 * 3.14159 * 1e-5 * 4 * 149597870.7, rel=0.1)


def test_both_hosts_agree(environment):
    results = []
    for host in (python_host, cpp_host):
        done = run(host("--json", "--years=1", "--relativity", "--moon"), environment)
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout)["distance_km"])
    assert results[0] == pytest.approx(results[1], abs=0.1)
    assert all(distance < 10 for distance in results[0].values())


def test_plot(environment, tmp_path):
    import matplotlib  # noqa: F401  (scripts/setup installs it; without it the picture would be left out)
    picture = tmp_path / "picture.png"
    done = run(python_host("--years=0.5", "--plot", str(picture)), environment)
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000


def test_plot_and_table_of_both_hosts(host, environment, tmp_path):
    import matplotlib  # noqa: F401  (scripts/setup installs it; without it the picture would be left out)
    done = run(host("--years=0.5", "--plot", str(tmp_path / "picture.svg"), "--table", str(tmp_path / "table")), environment)
    assert done.returncode == 0, done.stderr
    picture = xml.etree.ElementTree.parse(tmp_path / "picture.svg")
    assert picture.getroot().tag.endswith("}svg")
    lines = (tmp_path / "table").read_text().splitlines()
    assert lines[1].split() == ["#", "days", "Sun", "Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune", "Pluto"]
    assert len(lines) == 2 + 10 and float(lines[-1].split()[0]) == pytest.approx(0.5 * 365.25, abs=1e-3)
    done = run(host("--plot", str(tmp_path / "none/picture.svg")), environment)
    assert done.returncode in (1, 2) and f"there is no folder {tmp_path}/none" in done.stderr


@pytest.mark.parametrize("options", [["--years=0"], ["--years=60"], ["--mass-loss=-1"], ["--on-star=x"], ["--segment=0"], ["--step-parameter=0"], ["--nonsense"]])
def test_options_that_cannot_be_are_refused(host, options, environment):
    done = run(host(*options), environment)
    assert done.returncode in (1, 2)
    assert options[0].partition("=")[0] in done.stderr and done.stdout == ""


def test_a_worker_that_is_not_built_is_told(environment, tmp_path):
    done = run(python_host(f"--gravity-worker={tmp_path}/none"), environment)
    assert done.returncode == 1 and f"there is no {tmp_path}/none" in done.stderr
