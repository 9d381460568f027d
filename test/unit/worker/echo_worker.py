#!/usr/bin/env python3
"""The twin of echo_worker.cpp."""

import os
import sys

try:
    from flotilla.worker import ResultCode, WorkerProgram
except ImportError:  # beside a copy of worker.py
    from worker import ResultCode, WorkerProgram  # type: ignore[no-redef,import-not-found]

program = WorkerProgram()
kept = []

for kind in ("int32", "int64", "float32", "float64", "bool", "string"):
    program.function(f"{kind} value -> {kind} value", name=f"echo_{kind}")(lambda value: value)


@program.function(
    "float64 a, string b, int32 c, bool d, int64 e, float32 f, int32 g -> float32 f, int64 e, bool d, int32 c, string b, float64 a, int32 g"
)
def echo_all(a, b, c, d, e, f, g):
    return f, e, d, c, b, a, g


@program.array_function("string text, bool flag, int32 number -> string text, bool flag, int32 number")
def echo_arrays(text, flag, number):
    return text, flag, number


@program.function("int32 x -> int32 x")
def double_it(x):
    return 2 * x


@program.array_function("float64 x -> float64 x")
def double_all(x):
    return [2 * value for value in x]


@program.function("int32 code ->")
def return_code(code):
    raise ResultCode(code)


@program.function("string text ->")
def fail(text):
    raise RuntimeError(text)


@program.function("-> result none")
def no_result():
    pass


@program.function("float64 x -> result float64")
def half(x):
    return x / 2


@program.function("float64 x -> float64 x")
def echo_units(x):
    program.reply_units = program.units
    return x


SEVEN = ", ".join(["float64"] * 7)


@program.array_function(SEVEN + " ->")
def put(*columns):
    kept[:] = columns


@program.array_function("-> " + SEVEN)
def get():
    return tuple(kept)


@program.array_function(SEVEN + " ->")
def sink(*columns):
    pass


@program.array_function("-> " + SEVEN)
def source():
    return tuple(kept)


@program.function("string path -> string line")
def wait_for(path):
    with open(path) as pipe:
        return pipe.readline().rstrip("\n")


@program.function("int32 code ->")
def die(code):
    os._exit(code)


@program.function("-> int32 answer", id=4711)
def by_hand():
    return 42


@program.function("-> int32 ranks")
def ranks():
    return program.ranks


@program.function("int32 rank ->")
def fail_on_rank(rank):
    if program.rank == rank:
        raise RuntimeError("as told")


@program.function("-> string first")
def own_argument():
    return program.arguments[0] if program.arguments else ""


sys.exit(program.run())
