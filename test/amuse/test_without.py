"""An AMUSE that has no amuse.community.distributed of its own, as newer ones."""
import pathlib
import subprocess

from conftest import PROGRAM, flotilla
from test_distributed import lines, script
from test_repaired import repaired

CODE = """
import amuse.community.distributed.interface as interface
print("file", interface.__file__)
print("resources", [each.name for each in instance.resources], type(instance.resources).__name__, type(instance.resources[0]).__name__)
code = BHTree()
print("workers", [each.status for each in instance.workers], code.get_number_of_particles())
code.stop()
print("then", len(instance.workers))
"""


def package_of(python):
    where = "import importlib.util; print(importlib.util.find_spec('amuse').submodule_search_locations[0])"
    return pathlib.Path(subprocess.check_output([python, "-c", where], text=True).strip()) / "community/distributed"


def test_scripts_run_as_they_stand_over_our_package(bare_python, user):
    folder = package_of(bare_python)
    made = flotilla("amuse", "install", "--python", bare_python)
    assert made.returncode == 0, made.stderr
    for name in ("__init__.py", "interface.py", "distributed_worker"):
        assert f"made {folder / name}" in made.stdout
    again = flotilla("amuse", "install", "--python", bare_python).stdout
    assert again.count("is ours already") == 3 and again.count("\n") == 3

    out, _ = user.run(script(CODE), python=bare_python)
    assert lines(out, "file") == [str(folder / "interface.py")]
    assert lines(out, "resources") == ["['local'] Resources Resource"]
    assert lines(out, "workers") == ["['RUNNING'] 0"]
    assert lines(out, "then") == ["0"]

    gone = flotilla("amuse", "uninstall", "--python", bare_python)
    assert gone.stdout.count("removed ") == 3, gone.stdout
    assert not folder.exists()
    assert flotilla("amuse", "uninstall", "--python", bare_python).stdout == "it is not installed there\n"


def test_flotilla_amuse_needs_nothing_in_amuse(bare_python, user):
    assert not package_of(bare_python).exists()
    text = repaired(CODE.replace("import amuse.community.distributed.interface", "import flotilla.amuse"))
    path, user.environment["PATH"] = user.environment["PATH"], "/usr/bin:/bin"
    said = user.run(text, python=bare_python, code=1)[1]
    assert "the program flotilla is not found" in said and "flotilla amuse install" in said
    user.environment["FLOTILLA_PROGRAM"] = str(PROGRAM)
    assert lines(user.run(text, python=bare_python)[0], "workers") == ["['RUNNING'] 0"]
    del user.environment["FLOTILLA_PROGRAM"]
    user.environment["PATH"] = f"{PROGRAM.parent}:{path}"
    assert lines(user.run(text, python=bare_python)[0], "workers") == ["['RUNNING'] 0"]


def test_install_says_what_is_missing_for_our_package(bare_python, tmp_path):
    """A Python with AMUSE, without the package flotilla."""
    subprocess.run([bare_python, "-m", "venv", "--without-pip", tmp_path], check=True, timeout=60)
    next(tmp_path.glob("lib/python*/site-packages")).joinpath("amuse").symlink_to(package_of(bare_python).parent.parent)
    said = flotilla("amuse", "install", "--python", tmp_path / "bin/python")
    assert said.returncode != 0
    assert "has no amuse.community.distributed" in said.stderr and "-m pip install 'flotilla[amuse]'" in said.stderr
    assert not package_of(bare_python).exists()
