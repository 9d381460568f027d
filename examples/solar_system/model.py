"""The physics of the example: where the bodies are at J2000 by DE421, and the coupled run of a gravity code and a star."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy

J2000 = 2451545.0  # Julian date, TDB
DAYS_PER_YEAR = 365.25
SECONDS_PER_DAY = 86400.0
# The gravity code works in astronomical units and days; a mass is the body's GM in au^3/day^2, the constant of gravity 1.
BODIES = (  # DE421's name, ours, the constant with its GM
    ("sun", "Sun", "GMS"),
    ("mercury", "Mercury", "GM1"),
    ("venus", "Venus", "GM2"),
    ("earthmoon", "Earth", "GMB"),  # the barycentre of Earth and Moon, with the mass of both
    ("mars", "Mars", "GM4"),
    ("jupiter", "Jupiter", "GM5"),
    ("saturn", "Saturn", "GM6"),
    ("uranus", "Uranus", "GM7"),
    ("neptune", "Neptune", "GM8"),
    ("pluto", "Pluto", "GM9"),
)
NAMES = tuple(name for _, name, _ in BODIES)
SUN, EARTH = 0, 3
# Of the gravity code: the error of its scheme is then a few kilometres for Mercury after ten years, less for all others.
STEP_PARAMETER = 1e-4


class Ephemeris:
    """Positions by DE421, in km and days, relative to the solar system's barycentre, axes of the ICRF."""

    def __init__(self) -> None:
        try:
            import de421
            from jplephem.ephem import Ephemeris as Reader
        except ImportError as error:
            raise SystemExit(f"the packages de421 and jplephem are needed ({error}); pip install de421 jplephem") from None
        self._reader = Reader(de421)
        self.au = float(self._reader.AU)  # km
        self.speed_of_light = float(self._reader.CLIGHT) * SECONDS_PER_DAY / self.au  # au/day
        self.moon_share = float(1 / (1 + self._reader.EMRAT))  # of the mass of Earth and Moon

    def gm(self) -> numpy.ndarray:
        return numpy.array([float(getattr(self._reader, constant)) for _, _, constant in BODIES])

    def state(self, name: str, days: float) -> Tuple[numpy.ndarray, numpy.ndarray]:
        """Position (km) and velocity (km/day) so many days after J2000."""
        position, velocity = self._reader.position_and_velocity(name, J2000, days)
        return position[:, 0], velocity[:, 0]

    def states(self, days: float = 0.0) -> Tuple[numpy.ndarray, numpy.ndarray]:
        both = [self.state(name, days) for name, _, _ in BODIES]
        return numpy.array([p for p, _ in both]), numpy.array([v for _, v in both])

    def positions(self, days: float) -> numpy.ndarray:
        return self.states(days)[0]


@dataclasses.dataclass
class Options:
    years: float = 10.0
    segment_days: float = 20.0  # between two looks at the bodies, and two exchanges with the star
    step_parameter: float = STEP_PARAMETER
    relativity: bool = False  # first post-Newtonian order of the Sun's field
    moon: bool = False  # Earth and Moon as two bodies
    mass_loss: Optional[float] = None  # solar masses a year; 0 = as the star's own wind law says; None = no star


@dataclasses.dataclass
class Result:
    years: float
    energy_error: float  # relative to the energy at the start
    distance_km: Dict[str, float]  # from DE421 at the end
    sun_mass: float  # of its mass at the start
    steps: int
    days: List[float]  # moments of `track` and of the distances
    track: numpy.ndarray  # [moment, body, axis], au
    distance: numpy.ndarray  # [moment, body], km

    def summary(self) -> Dict[str, Any]:
        return {
            "years": self.years,
            "energy_error": self.energy_error,
            "distance_km": self.distance_km,
            "sun_mass": self.sun_mass,
            "steps": self.steps,
        }


class Run:
    """One run on a gravity code (and a star): codes that are called, wherever they are."""

    def __init__(self, gravity: Any, star: Any = None, options: Optional[Options] = None, ephemeris: Optional[Ephemeris] = None) -> None:
        self.gravity = gravity
        self.star = star
        self.options = options or Options()
        self.ephemeris = ephemeris or Ephemeris()
        if (self.star is not None) != (self.options.mass_loss is not None):
            raise ValueError("a star takes part when, and only when, it loses mass")
        self._set_up()

    def _set_up(self) -> None:
        ephemeris, gravity = self.ephemeris, self.gravity
        gm = ephemeris.gm()
        position, velocity = ephemeris.states()
        if self.options.moon:
            # The Moon is added at the end, Earth moves to its own place beside the barycentre.
            share = ephemeris.moon_share
            offset, drift = ephemeris.state("moon", 0.0)  # from the Earth
            gm = numpy.append(gm, gm[EARTH] * share)
            gm[EARTH] *= 1 - share
            position = numpy.vstack([position, position[EARTH] + (1 - share) * offset])
            velocity = numpy.vstack([velocity, velocity[EARTH] + (1 - share) * drift])
            position[EARTH] -= share * offset
            velocity[EARTH] -= share * drift
        gravity.initialize_code()
        gravity.set_dt_param(self.options.step_parameter)
        gravity.set_speed_of_light(ephemeris.speed_of_light if self.options.relativity else 0.0)
        gravity.commit_parameters()
        self.sun_gm = gm[SUN]
        self.ids = gravity.new_particle(gm, *(position.T / ephemeris.au), *(velocity.T / ephemeris.au), 0.0)
        gravity.commit_particles()
        if self.star is not None:
            self.star.initialize_code()
            self.star_id = self.star.new_particle(1.0)
            if self.options.mass_loss:
                self.star.set_wind_mass_loss_rate(self.star_id, self.options.mass_loss)
            self.star.commit_parameters()

    def positions(self) -> numpy.ndarray:
        """[body, axis] in au; Earth is the barycentre with its Moon."""
        position = numpy.array(self.gravity.get_position(self.ids)).T
        if self.options.moon:
            share = self.ephemeris.moon_share
            position[EARTH] = (1 - share) * position[EARTH] + share * position[-1]
        return position[: len(BODIES)]

    def run(self, on_progress: Callable[[float, float], None] = lambda fraction, energy_error: None) -> Result:
        """`on_progress` gets the fraction done and the energy error up to then."""
        options, gravity = self.options, self.gravity
        total = options.years * DAYS_PER_YEAR
        segments = max(1, math.ceil(total / options.segment_days))
        edges = [total * i / segments for i in range(segments + 1)]
        first_energy = energy = gravity.get_total_energy()
        energy_change = 0.0  # what the integration adds; what a changed mass takes is no error
        track = [self.positions()]
        distance = [self._distance(track[0], 0.0)]
        if self.star is not None:
            # The star's mass in the middle of a segment counts for all of it: of second order in the segment's length. The next
            # middle is computed while the gravity code is busy.
            self._evolve_star(edges[0], edges[1]).result()
        for begin, end, after in zip(edges, edges[1:], [*edges[2:], None]):
            if self.star is not None:
                gravity.set_mass([int(self.ids[SUN])], self.sun_gm * self.star.get_mass(self.star_id))
                energy = gravity.get_total_energy()
            moving = gravity.evolve_model.async_call(end)
            ageing = self._evolve_star(end, after) if self.star is not None else None
            moving.result()
            if ageing is not None:
                ageing.result()
            new_energy = gravity.get_total_energy()
            energy_change += new_energy - energy
            energy = new_energy
            track.append(self.positions())
            distance.append(self._distance(track[-1], end))
            on_progress(end / total, energy_change / abs(first_energy))
        return Result(
            years=options.years,
            energy_error=energy_change / abs(first_energy),
            distance_km=dict(zip(NAMES, (float(d) for d in distance[-1]))),
            sun_mass=self.star.get_mass(self.star_id) if self.star is not None else 1.0,
            steps=gravity.get_number_of_steps(),
            days=edges,
            track=numpy.array(track),
            distance=numpy.array(distance),
        )

    def _evolve_star(self, begin: float, end: Optional[float]) -> Any:
        middle = begin if end is None else (begin + end) / 2
        return self.star.evolve_model.async_call(middle / DAYS_PER_YEAR)

    def _distance(self, position: numpy.ndarray, days: float) -> numpy.ndarray:
        return numpy.linalg.norm(position * self.ephemeris.au - self.ephemeris.positions(days), axis=1)
