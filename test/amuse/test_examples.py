"""The scripts of examples/amuse on this machine; test_far.py has them on others."""
import re
import subprocess
import sys

from conftest import ROOT

EXAMPLES = ROOT / "examples/amuse"


def run(user, name, *options):
    done = subprocess.run([sys.executable, EXAMPLES / name, *options], cwd=user.folder, env=user.environment, capture_output=True, text=True,
                          timeout=110)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_stars_lose_mass(user):
    out = run(user, "stars_that_lose_mass.py", "--stars", "40", "--time", "8", "--step", "2")
    steps = [[float(number) for number in found] for found in re.findall(r"^ *([\d.]+) Myr +([\d.]+) MSun +([\d.]+) pc$", out, re.M)]
    assert [time for time, _, _ in steps] == [2, 4, 6, 8]
    masses = [mass for _, mass, _ in steps]
    assert masses == sorted(masses, reverse=True) and masses[-1] > 0
    assert (user.folder / "cluster.png").read_bytes().startswith(b"\x89PNG")


def test_twenty_codes(user):
    out = run(user, "twenty_codes.py", "--stars", "30", "--time", "0.5")
    assert sorted(int(seed) for seed in re.findall(r"seed (\d+) ends at", out)) == list(range(20))
    mean = float(re.search(r"at the end: ([\d.]+) \+-", out)[1])
    assert 0.4 < mean < 0.7                                   # near 0.5, as the virial theorem has it
    assert (user.folder / "codes.png").read_bytes().startswith(b"\x89PNG")
    assert not list(user.folder.glob(".codes*"))
