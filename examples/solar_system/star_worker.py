#!/usr/bin/env python3
"""A star that loses mass, as a worker. Runs on a bare Python 3: worker.py of the SDK is sent along with it.

The wind is Reimers' law, dM/dt = -4e-13 eta L R / M in units of the Sun and years, or a rate that is set. L and R are those of the main sequence,
L = M^3.5 and R = M^0.8, unless they are set (a giant has a thousand times the Sun's wind). Masses are in solar masses, times in years."""

import sys

try:
    from flotilla.worker import ResultCode, WorkerProgram
except ImportError:  # sent along
    from worker import ResultCode, WorkerProgram  # type: ignore[no-redef,import-not-found]

REIMERS = 4e-13  # solar masses a year
LONGEST_STEP = 1.0e6  # years; a wind changes slowly
program = WorkerProgram()


class Star:
    def __init__(self, mass):
        self.mass = mass
        self.luminosity = None  # None: of the main sequence
        self.radius = None
        self.rate = None  # None: Reimers' law
        self.eta = 1.0

    def loss(self, mass):
        """Solar masses a year."""
        if self.rate is not None:
            return self.rate
        luminosity = mass**3.5 if self.luminosity is None else self.luminosity
        radius = mass**0.8 if self.radius is None else self.radius
        return REIMERS * self.eta * luminosity * radius / mass

    def evolve(self, years):
        """Fourth-order Runge-Kutta; a step never takes more than a hundredth of the mass."""
        while years > 0:
            step = min(years, LONGEST_STEP)
            if self.loss(self.mass) * step > 0.01 * self.mass:
                step = 0.01 * self.mass / self.loss(self.mass)
            a = self.loss(self.mass)
            b = self.loss(self.mass - 0.5 * step * a)
            c = self.loss(self.mass - 0.5 * step * b)
            d = self.loss(self.mass - step * c)
            self.mass -= step * (a + 2 * b + 2 * c + d) / 6
            years -= step
            if self.mass < 1e-3:
                raise RuntimeError("the star has lost all its mass")


stars = {}
time = 0.0


def star(index):
    if index not in stars:
        raise ResultCode(-1)
    return stars[index]


@program.function("float64 mass -> int32 index")
def new_particle(mass):
    if not 0 < mass < 1000:
        raise ValueError(f"a star of {mass} solar masses")
    index = len(stars)
    stars[index] = Star(mass)
    return index


@program.function("float64 time ->")
def evolve_model(until):
    global time
    if until < time:
        raise ValueError(f"a star cannot go back from {time} to {until} years")
    for each in stars.values():
        each.evolve(until - time)
    time = until


@program.function("int32 index -> float64 mass")
def get_mass(index):
    return star(index).mass


@program.function("int32 index -> float64 radius")
def get_radius(index):
    it = star(index)
    return it.mass**0.8 if it.radius is None else it.radius


@program.function("int32 index -> float64 luminosity")
def get_luminosity(index):
    it = star(index)
    return it.mass**3.5 if it.luminosity is None else it.luminosity


@program.function("int32 index -> float64 rate")
def get_wind_mass_loss_rate(index):
    it = star(index)
    return it.loss(it.mass)


@program.function("int32 index, float64 rate ->")
def set_wind_mass_loss_rate(index, rate):
    if rate < 0:
        raise ResultCode(-2)
    star(index).rate = rate


@program.function("int32 index, float64 luminosity, float64 radius ->")
def set_giant(index, luminosity, radius):
    star(index).luminosity, star(index).radius = luminosity, radius


@program.function("-> float64 time")
def get_time():
    return time


if __name__ == "__main__":
    sys.exit(program.run())
