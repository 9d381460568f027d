"""Script and function jobs: what goes there, and what comes back."""
import re
import subprocess
import sys

from conftest import ROOT
from test_distributed import BEGIN, lines

REPAIRED = BEGIN.replace("from amuse.community.distributed.interface", "from flotilla.amuse").replace("{slots}", "2").replace("{queue}", "20")
END = "\ninstance.stop()\nprint('the end')\n"


def test_functions_give_their_values_and_raise_their_exceptions(user):
    out, err = user.run(REPAIRED + """
import traceback
FACTOR = 3
class Odd(ValueError): pass
def helper(x): return FACTOR * x
def function(x, y=2, *, z=0):
    print("printed", x)
    return helper(x) + y + z, os.getcwd()
def bad(x): raise Odd("äöü %s" % x)
jobs = [instance.submit_function_job("here", "f.out", "f.err", function, 5, z=100),
        instance.submit_function_job("here", "", "", bad, 5),
        instance.submit_function_job("here", "", "", lambda mass: mass.sum(), [1, 2, 3] | units.kg),
        instance.submit_function_job("here", "", "", os._exit, 5)]
value, folder = instance.get_function_job_result(jobs[0])
print("value", value, folder != os.getcwd())
try: instance.get_function_job_result(jobs[1])
except Odd as error: print("error", type(error).__name__, error, "in bad" in str(error.__cause__))
print("sum", instance.get_function_job_result(jobs[2]))
print("gone", said(lambda: instance.get_function_job_result(jobs[3])))
low = instance.overridden()
print("status", *[low.get_function_job_status(each) for each in jobs])
print("state", low.get_function_job_state(jobs[0]))
low.delete_function_job(jobs[0])
print("deleted", said(lambda: low.get_function_job_status(jobs[0])))
slow = instance.submit_function_job("here", "", "", time.sleep, 1000)
low.delete_function_job(slow)
sqrt = low.submit_function_job("cmath\\nsqrt\\np0\\n.", "(F4.0\\ntp0\\n.", "(dp0\\n.", "", "", "here")
print("plain", repr(low.get_function_job_result(sqrt)))
""" + END)
    assert lines(out, "value") == ["117 True"]
    assert lines(out, "error") == ["Odd äöü 5 True"]
    assert lines(out, "sum") == ["6 kg"]
    assert "exited with code 5" in lines(out, "gone")[0]
    assert lines(out, "status") == ["DONE FAILED DONE FAILED"]
    assert lines(out, "state") == ["['f.out', 'f.err', 'here', 'DONE']"]
    assert "there is no function job 0" in lines(out, "deleted")[0]
    assert lines(out, "plain") == [r"'F2.0\n.'"]
    assert (user.folder / "f.out").read_text() == "printed 5\n"
    assert "the end" in out


def test_a_script_gets_its_folders_and_what_it_makes_comes_back(user):
    (user.folder / "scripts").mkdir()
    (user.folder / "scripts/lib.py").write_text("def shout(text): return text.upper()\n")
    (user.folder / "scripts/s.py").write_text("""
import os, sys
import amuse.units, lib
print(sys.argv[1:], os.environ.get("DISPLAY"))
print("to stderr", file=sys.stderr)
if "fail" in sys.argv: sys.exit(3)
os.makedirs("out/deep", exist_ok=True)
with open("out/deep/big.bin", "wb") as file: file.write(bytes(range(256)) * 4000)
with open("out/result.txt", "w") as file: file.write(lib.shout(open("in/data.txt").read()))
os.chmod("out/result.txt", 0o750)
""")
    (user.folder / "elsewhere/in").mkdir(parents=True)
    (user.folder / "elsewhere/in/data.txt").write_text("hello\n")
    user.environment["DISPLAY"] = ":7"
    out, err = user.run(REPAIRED + """
low = instance.overridden()
first = low.submit_script_job("scripts", "s.py", "one 'two words'", os.path.abspath("elsewhere/in"), "out", "s.out", "s.err", "here")
second = low.submit_script_job("scripts", "s.py", "fail", "", "", "", "", "here")
low.wait_for_script_jobs()
print("status", low.get_script_job_status(first), low.get_script_job_status(second))
print("state", low.get_script_job_state(first))
print("no folder", said(lambda: low.submit_script_job("nowhere", "s.py", "", "", "", "", "", "")))
print("no script", said(lambda: low.submit_script_job("scripts", "x.py", "", "", "", "", "", "")))
code = BHTree()     # ids are not mixed up by jobs before
print("code", code.get_number_of_particles())
""" + END)
    assert lines(out, "status") == ["DONE FAILED"]
    assert lines(out, "state")[0].startswith("['scripts', 's.py', \"one 'two words'\"")
    assert "script_dir nowhere cannot be read: No such file or directory" in out
    assert "there is no script x.py in scripts" in out
    assert lines(out, "code") == ["0"]
    assert (user.folder / "out/result.txt").read_text() == "HELLO\n"
    assert (user.folder / "out/result.txt").stat().st_mode & 0o777 == 0o750
    assert (user.folder / "out/deep/big.bin").read_bytes() == bytes(range(256)) * 4000
    assert sorted(each.name for each in (user.folder / "out").rglob("*")) == ["big.bin", "deep", "result.txt"]
    assert "['one', 'two words'] None" in (user.folder / "s.out").read_text()
    assert (user.folder / "s.err").read_text() == "to stderr\n"
    assert re.search(r"script job 1 \(s\.py\) failed: command s\.py on \S+ exited with code 3\nlast lines of its stderr:\nto stderr", err)


def run_there(folder, text):
    """The runner by itself, as on a machine where it gets `text`."""
    for name, content in (("function", text), ("arguments", ""), ("kwarguments", "")):
        (folder / name).write_text(content)
    done = subprocess.run([sys.executable, ROOT / "client/amuse/job_runner.py", "function"], cwd=folder, capture_output=True, timeout=60)
    value = b""
    rest = done.stdout
    while rest:
        size = int.from_bytes(rest[1:5], "big")
        if rest[:1] == b"v":
            value += rest[5 : 5 + size]
        rest = rest[5 + size :]
    return value.decode(), done.stderr.decode()


HELPERS = """
import math
import numpy as np
SCALE = [2, 3]
class Base: pass
class Point(Base):
    def __init__(self, x): self.x = x
    def norm(self): return math.fabs(self.x)
def scaled(x): return [each * x for each in SCALE]
def function(x): return [np.sum(scaled(Point(x).norm())).item(), (lambda y: y + SCALE[0])(x)]
def outer():
    def inner(): return 1
    return inner
"""


def test_another_python_runs_the_source(tmp_path):
    """The same Python, told that the function comes from another one."""
    (tmp_path / "made.py").write_text(HELPERS + """
import base64, pickle, sys
from flotilla.amuse import _functions
def as_from_another(function, *args):
    made = pickle.loads(base64.b64decode(_functions.dumps(function, args, {})[len(_functions.FUNCTION):]))
    made["python"] = [2, 7]
    return _functions.FUNCTION + base64.b64encode(pickle.dumps(made, 4)).decode()
for number, text in enumerate([as_from_another(function, -5), as_from_another(lambda: 1), as_from_another(outer()), as_from_another(os.path.join, "a", "b")]):
    open(f"text{number}", "w").write(text)
""".replace("import base64", "import base64, os"))
    subprocess.run([sys.executable, "made.py"], cwd=tmp_path, check=True, timeout=60)
    from flotilla.amuse import _functions

    values = [run_there(tmp_path, (tmp_path / f"text{number}").read_text()) for number in range(4)]
    assert _functions.loads(values[0][0]) == [25.0, -3], values[0][1]
    for (value, _), why in ((values[1], "it is a lambda"), (values[2], "inner was made inside another function")):
        try:
            _functions.loads(value)
        except RuntimeError as error:
            assert "comes from Python 2.7 and cannot run under the Python 3" in str(error) and why in str(error)
        else:
            raise AssertionError(f"it ran: {value}")
    assert _functions.loads(values[3][0]) == "a/b"
