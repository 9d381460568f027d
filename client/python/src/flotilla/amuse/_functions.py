"""A function and its arguments as text, and what it returned from text: a pickle of protocol 0, read as latin-1.

A function of the script itself goes by its source, with what it uses of the script's other functions, modules and values, so
that the machine where it runs needs neither the script nor the same Python. One of a module goes by its name.
"""

import inspect
import io
import pickle
import textwrap
import types

# Of builtins alone: what unpickles it has nothing of ours.
_MAKE = (
    "lambda name, source, names, modules: (lambda space: (exec(source, space), space[name])[1])"
    "(dict(names, **{each: __import__('importlib').import_module(path) for each, path in modules.items()}))"
)


def _used(code):
    yield from code.co_names
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from _used(each)


class _Maker:
    def __call__(self, *_):
        raise NotImplementedError  # only what it is unpickled to is called

    def __reduce__(self):
        return eval, (_MAKE,)


class _Pickler(pickle.Pickler):
    def reducer_override(self, thing):
        if not isinstance(thing, types.FunctionType) or thing.__module__ != "__main__":
            return NotImplemented
        if thing.__closure__ or thing.__name__ == "<lambda>":
            what = f"{thing.__qualname__} is a lambda or uses variables of another function"
            raise pickle.PicklingError(f"{what}: make it a function of the script, or of a module")
        known = {name: thing.__globals__[name] for name in _used(thing.__code__) if name in thing.__globals__ and name != thing.__name__}
        modules = {name: value.__name__ for name, value in known.items() if isinstance(value, types.ModuleType)}
        names = {name: value for name, value in known.items() if name not in modules}
        return _Maker(), (thing.__name__, textwrap.dedent(inspect.getsource(thing)), names, modules)


def as_text(thing):
    out = io.BytesIO()
    _Pickler(out, 0).dump(thing)
    return out.getvalue().decode("latin-1")


def from_text(text):
    return pickle.loads(text.encode("latin-1"))
