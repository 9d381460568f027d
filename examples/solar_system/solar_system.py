#!/usr/bin/env python3
"""Ten years of the solar system, its gravity code wherever you say, compared with JPL's DE421 ephemeris.

    solar_system.py                                                  all on this machine
    solar_system.py --on-gravity hpc1                                the gravity code on a pilot with that label, or of that resource
    solar_system.py --mass-loss 1e-6 --on-gravity hpc1 --on-star local
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, List, Optional, TextIO

import flotilla
from flotilla import worker as worker_sdk

from model import EARTH, NAMES, STEP_PARAMETER, SUN, Options, Result, Run

HERE = Path(__file__).resolve().parent


def parse(argv: Optional[List[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_argument_group("where the codes run")
    where.add_argument("--on-gravity", metavar="LABEL", default="", help="pilot label or resource for the gravity code (default: any pilot)")
    where.add_argument("--on-star", metavar="LABEL", default="", help="the same for the star")
    where.add_argument("--gravity-worker", metavar="FILE", type=Path, help="the program gravity_worker (default: from PATH, else the newest build)")
    what = parser.add_argument_group("what is computed")
    what.add_argument("--years", type=float, default=10.0, help="default: 10; DE421 reaches to the year 2052")
    what.add_argument(
        "--mass-loss", metavar="RATE", type=float, nargs="?", const=0.0,
        help="the Sun loses mass, by a star code: RATE solar masses a year, or as its wind does when no rate is given",
    )  # fmt: skip
    what.add_argument("--relativity", action="store_true", help="add the leading relativistic term of the Sun's gravity")
    what.add_argument("--moon", action="store_true", help="Earth and Moon as two bodies")
    what.add_argument("--segment", metavar="DAYS", type=float, default=20.0, help="between two exchanges of the codes (default: 20)")
    what.add_argument("--step-parameter", type=float, default=STEP_PARAMETER, help="of the gravity code: the error goes with its square (default: %(default)s)")
    out = parser.add_argument_group("what comes out")
    out.add_argument("--plot", metavar="FILE", type=Path, help="a picture of the orbits and of the distances from DE421 (.png, .svg, .pdf)")
    out.add_argument("--table", metavar="FILE", type=Path, help="the distances from DE421 over time, as text")
    out.add_argument("--json", action="store_true", help="the result as JSON on standard output; all else goes to standard error")
    arguments = parser.parse_args(argv)
    if not 0 < arguments.years <= 50:
        parser.error("--years: more than 0, and at most 50: DE421 ends in 2052")
    if not arguments.segment > 0:
        parser.error("--segment: more than 0 days")
    if arguments.mass_loss is not None and arguments.mass_loss < 0:
        parser.error("--mass-loss: a star gives mass away")
    if not arguments.step_parameter > 0:
        parser.error("--step-parameter: more than 0")
    for file in (arguments.plot, arguments.table):  # before ten years are computed for nothing
        if file is not None and not file.absolute().parent.is_dir():
            parser.error(f"there is no folder {file.parent} for {file}")
    if arguments.on_star and arguments.mass_loss is None:
        parser.error("--on-star: the star takes part with --mass-loss only")
    return arguments


def gravity_program(given: Optional[Path]) -> Path:
    if given is not None:
        if not given.is_file():
            raise SystemExit(f"there is no {given}")
        return given.resolve()
    found = shutil.which("gravity_worker")
    if found:
        return Path(found).resolve()
    built = sorted(HERE.parents[1].glob("build/*/bin/gravity_worker"), key=lambda path: path.stat().st_mtime)
    if not built:
        raise SystemExit("gravity_worker is not built; run scripts/build gravity_worker, or give its place by --gravity-worker")
    return built[-1]


class Progress:
    """A bar on a terminal, else a line at each tenth."""

    WIDTH = 40

    def __init__(self, years: float, stream: TextIO) -> None:
        self.years = years
        self.stream = stream
        self.terminal = stream.isatty()
        self.tenth = 0

    def __call__(self, fraction: float, energy_error: float) -> None:
        text = f"{fraction * self.years:5.2f} of {self.years:g} years, energy error {energy_error:+.1e}"
        if self.terminal:
            done = round(fraction * self.WIDTH)
            self.stream.write(f"\r[{'#' * done}{'.' * (self.WIDTH - done)}] {text}" + ("\n" if fraction >= 1 else ""))
        elif int(fraction * 10 + 1e-9) > self.tenth:
            self.tenth = int(fraction * 10 + 1e-9)
            self.stream.write(text + "\n")
        self.stream.flush()


def start(daemon: flotilla.Daemon, stack: contextlib.ExitStack, name: str, label: str, executable: str, files: List[Any], say: Any) -> Any:
    worker = stack.enter_context(daemon.start_worker(executable, name=name, label=label, files=files))
    say(f"{name:15s} on {worker.info().host or 'this machine'}")
    return stack.enter_context(flotilla.RemoteCode(worker))


def report(result: Result, arguments: argparse.Namespace, seconds: float, say: Any) -> None:
    say("")
    say(f"{result.years:g} years in {result.steps} steps and {seconds:.2f} s; energy error {result.energy_error:+.1e}")
    if arguments.mass_loss is not None:
        say(f"the Sun has lost {1 - result.sun_mass:.3e} of its mass")
    say(f"distance from DE421 after {result.years:g} years, in km:")
    for name, distance in result.distance_km.items():
        note = "" if name != "Earth" else "   (with the Moon, their barycentre)"
        say(f"  {name:8s}{distance:14.1f}{note}")
    if not arguments.relativity and arguments.mass_loss is None:
        say("This is Newton's gravity: most of it is the relativity that is missing (--relativity), strongest near the Sun.")


def plot(result: Result, file: Path, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (inner, outer, apart) = pyplot.subplots(1, 3, figsize=(15, 5), constrained_layout=True)
    colours = ["orange", "gray", "peru", "royalblue", "firebrick", "sandybrown", "goldenrod", "turquoise", "slateblue", "dimgray"]
    for axes, bodies, size in ((inner, range(0, 5), 1.8), (outer, range(0, len(NAMES)), 42)):
        for body in bodies:
            track = result.track[:, body]
            axes.plot(track[:, 0], track[:, 1], ".", markersize=1.5, color=colours[body], alpha=0.6)
            axes.plot(*track[-1, :2], "o", markersize=9 if body == SUN else 5, color=colours[body], label=NAMES[body])
        axes.set(xlim=(-size, size), ylim=(-size, size), aspect="equal", xlabel="x [au] (equator of J2000)", ylabel="y [au]")
    inner.set_title(title)
    inner.legend(fontsize="small", loc="upper right")
    outer.set_title("the outer planets")
    outer.legend(fontsize="small", loc="upper right")
    years = [day / 365.25 for day in result.days]
    for body in range(1, len(NAMES)):
        apart.plot(years[1:], result.distance[1:, body], color=colours[body], linewidth=2.5 if body == EARTH else 1.2, label=NAMES[body])
    apart.set(yscale="log", xlabel="years after J2000", ylabel="distance from DE421 [km]")
    apart.set_title("distance from DE421")
    apart.legend(fontsize="small")
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def write_table(result: Result, file: Path) -> None:
    with file.open("w") as out:
        out.write("# distance from DE421 in km\n# days\t" + "\t".join(NAMES) + "\n")
        for day, distances in list(zip(result.days, result.distance))[1:]:
            out.write(f"{day:.3f}\t" + "\t".join(f"{each:.3f}" for each in distances) + "\n")


def main(argv: Optional[List[str]] = None) -> int:
    arguments = parse(argv)
    if arguments.plot:
        try:
            import matplotlib  # noqa: F401  # before ten years are computed for nothing
        except ImportError as error:
            raise SystemExit(f"--plot needs matplotlib ({error}); pip install matplotlib") from None
    out = sys.stderr if arguments.json else sys.stdout

    def say(text: str) -> None:
        print(text, file=out, flush=True)

    options = Options(
        years=arguments.years,
        segment_days=arguments.segment,
        step_parameter=arguments.step_parameter,
        relativity=arguments.relativity,
        moon=arguments.moon,
        mass_loss=arguments.mass_loss,
    )
    gravity_file = gravity_program(arguments.gravity_worker)
    with flotilla.Daemon() as daemon, contextlib.ExitStack() as stack:
        gravity = start(
            daemon, stack, "gravity_worker", arguments.on_gravity, "./gravity_worker",
            [flotilla.InputFile(gravity_file, name="gravity_worker", mode=0o755)], say,
        )  # fmt: skip
        star = None
        if arguments.mass_loss is not None:
            # The SDK goes along: the machine needs nothing but Python.
            star = start(
                daemon, stack, "star_worker", arguments.on_star, "./star_worker.py",
                [flotilla.InputFile(HERE / "star_worker.py", mode=0o755), flotilla.InputFile(worker_sdk.source_file(), name="worker.py")], say,
            )  # fmt: skip
        begin = time.monotonic()
        result = Run(gravity, star, options).run(Progress(arguments.years, sys.stderr if arguments.json else sys.stdout))
        seconds = time.monotonic() - begin
    report(result, arguments, seconds, say)
    if arguments.json:
        print(json.dumps(result.summary(), indent=2))
    if arguments.table:
        write_table(result, arguments.table)
    if arguments.plot:
        plot(result, arguments.plot, f"{result.years:g} years from J2000")
        say(f"plot: {os.path.relpath(arguments.plot)}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except flotilla.FlotillaError as error:
        sys.exit(f"solar_system.py: {error}")
    except (flotilla.CallError, flotilla.CodeError, flotilla.ChannelClosed) as error:
        sys.exit(f"solar_system.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
