#!/usr/bin/env python3
"""Runs a script or a function where a pilot is. What comes back goes through standard output in pieces: a letter, a 4-byte length
(big-endian), that many bytes.

    o  what the script or function wrote to its standard output
    v  the function's value, as text (further pieces are appended)
    f  a file begins: three octal digits of its mode, a blank, its path below the output folder; d  its bytes; e  it is whole
    z  all has come

    job_runner.py script SCRIPT OUTPUT_FOLDER [ARGUMENT]...
    job_runner.py function                        reads ./function, ./arguments and ./kwarguments

A function comes as text in one of two forms: of flotilla.amuse (a prefix, then base64), or a pickle of protocol 0, as AMUSE's own class makes.
"""

import ast
import base64
import importlib
import importlib.util
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback

PIECE = 1 << 16
FUNCTION, RESULT = "flotilla-function-1:", "flotilla-result-1:"


class Pieces:
    def __init__(self, fd):
        self.fd = fd
        self.lock = threading.Lock()

    def send(self, kind, data=b""):
        with self.lock:
            for at in range(0, max(len(data), 1), PIECE):
                part = data[at : at + PIECE]
                self._write(kind + len(part).to_bytes(4, "big") + part)

    def _write(self, data):
        while data:
            data = data[os.write(self.fd, data) :]

    def pump(self, fd):
        while True:
            data = os.read(fd, PIECE)
            if not data:
                return
            self.send(b"o", data)


def send_folder(pieces, folder):
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(parent, name)
            if not os.path.isfile(path):
                continue
            head = "%03o %s" % (os.stat(path).st_mode & 0o777, os.path.relpath(path, folder))
            pieces.send(b"f", os.fsencode(head))
            with open(path, "rb") as file:
                for data in iter(lambda: file.read(PIECE), b""):
                    pieces.send(b"d", data)
            pieces.send(b"e")


def environment():
    made = dict(os.environ)
    made.pop("DISPLAY", None)
    home = made.get("AMUSE_DIR", "")
    if home and importlib.util.find_spec("amuse") is None:
        made["PYTHONPATH"] = os.pathsep.join([os.path.dirname(home)] + [each for each in [made.get("PYTHONPATH")] if each])
    return made


def run_script(pieces, script, folder, arguments):
    if folder:
        os.makedirs(folder, exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-u", script] + arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment())
    pump = threading.Thread(target=pieces.pump, args=(process.stdout.fileno(),), daemon=True)
    pump.start()
    code = process.wait()
    pump.join(1)  # whatever the script left behind may keep its output open
    if folder:
        send_folder(pieces, folder)
    pieces.send(b"z")
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def read(name):
    with open(name, "rb") as file:
        return file.read()


def loads(text):
    """A pickle of protocol 0 that went through a string."""
    if text[:2] in (b"b'", b'b"'):
        return pickle.loads(ast.literal_eval(text.decode()))
    return pickle.loads(text.decode().encode("latin-1"))


class Plain:
    def __init__(self):
        self.function = loads(read("function"))
        self.args = loads(read("arguments"))
        self.kwargs = loads(read("kwarguments"))

    def done(self, value):
        return pickle.dumps(value, 0).decode("latin-1")

    failed = None


def pack(value):
    try:
        return pickle.dumps(value, 4)
    except (pickle.PicklingError, AttributeError, TypeError):  # of a class that came with the function
        import cloudpickle

        return cloudpickle.dumps(value, 4)


def from_source(made):
    if made["from"]:
        return getattr(importlib.import_module(made["from"]), made["name"])
    space = {"__name__": "__main__", "__builtins__": __builtins__}
    for name, module in made["modules"].items():
        space[name] = importlib.import_module(module)
    space.update(pickle.loads(made["values"]))
    for name, text in made["sources"]:
        exec(compile(text, "<%s>" % name, "exec"), space)
    return space[made["name"]]


class Ours:
    def __init__(self, text):
        made = pickle.loads(base64.b64decode(text))
        if made["packed"]:
            folder = os.path.join(os.getcwd(), ".packages")
            for name, content in made["packages"].items():
                path = os.path.join(folder, name)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "w", encoding="utf-8") as file:
                    file.write(content)
            sys.path.append(folder)
        here, there = list(sys.version_info[:2]), made["python"]
        if here == there:
            self.function = pickle.loads(made["packed"])
        elif made["sources"] is not None:
            self.function = from_source(made)
        else:
            raise RuntimeError(
                "%s comes from Python %s and cannot run under the Python %s here: %s" % (
                    made["name"], ".".join(map(str, there)), ".".join(map(str, here)), made["no_source"]))
        self.args, self.kwargs = pickle.loads(made["arguments"])

    def _text(self, **what):
        what["python"] = list(sys.version_info[:2])
        return RESULT + base64.b64encode(pickle.dumps(what, 4)).decode()

    def done(self, value):
        return self._text(ok=True, value=pack(value))

    def failed(self, error, trace):
        try:
            packed = pack(error)
            pickle.loads(packed)  # some can be written and not read
        except Exception:
            packed = None
        return self._text(ok=False, error=packed, kind=type(error).__name__, message=str(error), trace=trace)


def run_function(pieces):
    os.environ.update(environment())
    os.environ.pop("DISPLAY", None)
    sys.path[:0] = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each and each not in sys.path]
    call = None
    try:
        text = read("function")
        prefix = FUNCTION.encode()
        call = Ours(text[len(prefix) :]) if text.startswith(prefix) else Plain()
        value = call.done(call.function(*call.args, **call.kwargs))
        code = 0
    except Exception as error:
        trace = traceback.format_exc()
        sys.stderr.write(trace)
        failed = Ours.failed if text.startswith(prefix) else None
        value = failed(call or Ours.__new__(Ours), error, trace) if failed else None
        code = 1
    sys.stdout.flush()
    return value, code


def main():
    pieces = Pieces(os.dup(1))
    if sys.argv[1] == "script":
        return run_script(pieces, sys.argv[2], sys.argv[3], sys.argv[4:])
    inner, outer = os.pipe()
    os.dup2(outer, 1)  # what the function prints, C code in it too
    os.close(outer)
    pump = threading.Thread(target=pieces.pump, args=(inner,), daemon=True)
    pump.start()
    value, code = run_function(pieces)
    os.dup2(2, 1)
    pump.join(1)
    if value is not None:
        pieces.send(b"v", value.encode("utf-8"))
    pieces.send(b"z")
    return code


if __name__ == "__main__":
    sys.exit(main())
