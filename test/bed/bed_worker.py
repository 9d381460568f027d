#!/usr/bin/env python3
"""A code for the tests of channels: it echoes, computes (waits), dies in ways, and starts children that try to get away."""
import os
import select
import signal
import subprocess
import sys
import time

try:
    from flotilla.worker import WorkerProgram
except ImportError:  # sent along
    from worker import WorkerProgram

program = WorkerProgram()


@program.function("int32 value -> int32 same")
def echo(value):
    return value


@program.array_function("float64 values -> float64 same")
def echo_array(values):
    return values


@program.function("float64 seconds -> string host")
def compute(seconds):
    time.sleep(seconds)      # stands for work: nothing waits for an event here
    return os.uname().nodename


@program.function("string folder -> string host")
def compute_until_told(folder):
    """`computing` is there meanwhile, `go` ends it."""
    computing, go = os.path.join(folder, "computing"), os.path.join(folder, "go")
    os.mkfifo(go)
    told = os.open(go, os.O_RDONLY | os.O_NONBLOCK)
    open(computing, "w").close()
    select.select([told], [], [])
    os.close(told)
    os.remove(go)
    os.remove(computing)
    return os.uname().nodename


@program.function("-> int32 pid")
def process_id():
    return os.getpid()


@program.function("int32 code ->")
def leave(code):
    print(f"leaving with {code}", file=sys.stderr, flush=True)
    os._exit(code)


@program.function("int32 number ->")
def die(number):
    print("something is badly wrong", file=sys.stderr, flush=True)
    os.kill(os.getpid(), number)
    signal.pause()


@program.function("-> int32 pid")
def start_runaway():
    """A grandchild in a session of its own, whose parent is gone: only a subreaper knows of it."""
    first = subprocess.run(["sh", "-c", "setsid sleep 3333 > /dev/null 2>&1 & echo $!"], capture_output=True, text=True, check=True)
    return int(first.stdout)


if __name__ == "__main__":
    raise SystemExit(program.run())
