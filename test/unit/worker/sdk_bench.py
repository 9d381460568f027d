"""What the Python side costs: scalar calls and arrays of seven columns, on the C++ and the Python echo worker.

    sdk_bench.py [ROWS]     of each column, default 1000000 (7 x 10^6 doubles)
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))

from sdk_support import ROOT, WORKERS, StartedWorker, build_cpp  # noqa: E402

import numpy  # noqa: E402

from flotilla.code import RemoteCode  # noqa: E402

CALLS = 5000
ROUNDS = 7


def timed(act):
    begin = time.perf_counter()
    act()
    return time.perf_counter() - begin


def main():
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    megabytes = 7 * rows * 8 / 1e6
    columns = [numpy.random.default_rng(i).random(rows) for i in range(7)]
    back = [numpy.empty(rows) for _ in columns]
    with tempfile.TemporaryDirectory() as folder:
        for name, command in (
            ("C++ worker", [build_cpp(WORKERS / "echo_worker.cpp", Path(folder) / "echo_worker")]),
            ("Python worker", [sys.executable, WORKERS / "echo_worker.py"]),
        ):
            with StartedWorker(command, env={**os.environ, "PYTHONPATH": str(ROOT / "client/python/src")}) as worker, RemoteCode(worker) as code:
                echo = code.echo_float64
                for _ in range(CALLS // 10):
                    echo(1.0)
                call = statistics.median(timed(lambda: echo(1.0)) for _ in range(CALLS))
                rates = {
                    what: megabytes / min(timed(act) for _ in range(ROUNDS))
                    for what, act in (
                        ("put", lambda: code.put(*columns)),
                        ("get", lambda: code.get(out=back)),
                        ("sink", lambda: code.sink(*columns)),
                        ("source", lambda: code.source(out=back)),
                    )
                }
                if not all((a == b).all() for a, b in zip(columns, back)) and name.startswith("Python"):
                    raise SystemExit("the arrays are not what they were")
                print(f"{name:14s} call {call * 1e6:5.1f} us, " + ", ".join(f"{what} {rate:.0f} MB/s" for what, rate in rates.items()))


if __name__ == "__main__":
    main()
