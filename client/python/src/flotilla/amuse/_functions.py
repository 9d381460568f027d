"""Functions for function jobs, as text that goes through AMUSE's messages, and what comes back.

The same Python on both sides: cloudpickle, which takes functions of the script itself, lambdas and closures. Another one: the function's source,
with what it uses of its module: other functions and classes of the same module (as source), modules (by name), plain values.
"""

import base64
import dis
import inspect
import pathlib
import pickle
import sys
import textwrap
import types

import cloudpickle

FUNCTION, RESULT = "flotilla-function-1:", "flotilla-result-1:"
_PROTOCOL = 4  # of Python 3.4 and newer


class RemoteTraceback(Exception):
    """The cause of an exception that a function raised where it ran: its traceback there."""

    def __init__(self, text):
        super().__init__(text)
        self.text = text

    def __str__(self):
        return "\n" + self.text


class FunctionFailed(Exception):
    """A function failed with an exception that cannot be brought here as it is."""


def dumps(function, args, kwargs):
    """The function with its arguments as one text. Raises TypeError for arguments that cannot be sent."""
    try:
        arguments = cloudpickle.dumps((args, kwargs), _PROTOCOL)
    except Exception as error:
        raise TypeError(f"the arguments of {_name(function)} cannot be sent: {error}") from error
    made = {
        "python": list(sys.version_info[:2]),
        "name": _name(function),
        "packed": cloudpickle.dumps(function, _PROTOCOL),
        "packages": _cloudpickle_itself(),
        "arguments": arguments,
        "sources": None,
        "no_source": "",
    }
    try:
        made.update(_source(function))
    except _NoSource as error:
        made["no_source"] = str(error)
    return FUNCTION + base64.b64encode(pickle.dumps(made, _PROTOCOL)).decode()


def loads(text):
    """The value; raises what the function raised, with its traceback there as the cause."""
    made = pickle.loads(base64.b64decode(text[len(RESULT) :]))
    if made["ok"]:
        return pickle.loads(made["value"])
    error = None
    if made["error"] is not None:
        try:
            error = pickle.loads(made["error"])
        except Exception:  # of a class that is not here
            error = None
    if error is None:
        error = FunctionFailed(f"{made['kind']}: {made['message']}")
    raise error from RemoteTraceback(made["trace"])


def _name(function):
    return getattr(function, "__name__", None) or type(function).__name__


def _cloudpickle_itself():
    folder = pathlib.Path(cloudpickle.__file__).parent
    return {f"cloudpickle/{file.name}": file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.py"))}


class _NoSource(Exception):
    pass


def _source(function):
    if not isinstance(function, types.FunctionType):
        raise _NoSource("it is no function that was written in Python")
    if function.__module__ != "__main__" and "." not in function.__qualname__:
        # Of a module that is imported there as here.
        return {"sources": [], "modules": {}, "values": pickle.dumps({}, _PROTOCOL), "name": function.__name__, "from": function.__module__}
    sources, modules, values = {}, {}, {}
    _collect(function, sources, modules, values)
    try:
        packed = pickle.dumps(values, _PROTOCOL)
    except Exception as error:
        raise _NoSource(f"it uses a value that cannot be sent: {error}") from error
    return {"sources": list(sources.items()), "modules": modules, "values": packed, "from": None}


def _collect(thing, sources, modules, values):
    name = thing.__name__
    if name in sources:
        return
    if name == "<lambda>":
        raise _NoSource("it is a lambda")
    if "<locals>" in thing.__qualname__:
        raise _NoSource(f"{name} was made inside another function")
    try:
        text = textwrap.dedent(inspect.getsource(thing))
        code = compile(text, f"<{name}>", "exec")
    except (OSError, TypeError, SyntaxError) as error:
        raise _NoSource(f"the source of {name} is not there") from error
    sources[name] = text
    space = sys.modules[thing.__module__].__dict__
    for used in _globals_used(code):
        if used in sources or used not in space:
            continue  # collected, a builtin, or an error that it makes itself
        value = space[used]
        if isinstance(value, types.ModuleType):
            modules[used] = value.__name__
        elif isinstance(value, (types.FunctionType, type)) and value.__module__ == thing.__module__ and value.__name__ == used:
            _collect(value, sources, modules, values)
        else:
            values[used] = value
    sources[name] = sources.pop(name)  # behind what it needs: a base class, a decorator


def _globals_used(code):
    names = {each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(_globals_used(constant))
    return sorted(names)
