#!/usr/bin/env python3
"""A star cluster: gravity on a node of a cluster behind its firewall, stellar evolution on this machine, one script.

    stars_that_lose_mass.py                                                 all on this machine
    stars_that_lose_mass.py --location me@login.cluster --hosts node7       gravity on node7, which only the front end reaches
    stars_that_lose_mass.py --location me@inner --gateway me@door ...       the front end itself behind another machine

AMUSE's own classes, as its documentation uses them. Stars lose mass as they age; the cluster, less bound with each year, grows.
"""
import argparse

from amuse.community.distributed.interface import DistributedAmuse, Pilot, Resource
from amuse.community.ph4.interface import ph4
from amuse.community.sse.interface import SSE
from amuse.ic.plummer import new_plummer_model
from amuse.ic.salpeter import new_salpeter_mass_distribution
from amuse.units import nbody_system, units
from live_plot import LivePlot


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--location", default="", help="user@host of the front end; none: this machine")
    parser.add_argument("--gateway", default="", help="user@host that the connection to it goes through")
    parser.add_argument("--hosts", default="", help="the node behind it that computes; none: the front end itself")
    parser.add_argument("--amuse-dir", default="", help="where AMUSE is there; none: it is looked for; 'bundle': the codes are sent from here")
    parser.add_argument("--stars", type=int, default=200)
    parser.add_argument("--time", type=float, default=20, help="Myr")
    parser.add_argument("--step", type=float, default=1, help="Myr")
    parser.add_argument("--plot", default="cluster.png", help="the picture that grows (default: %(default)s)")
    return parser.parse_args()


def deploy(instance, options):
    """One pilot for gravity where the options say, one here for the stars."""
    where = "local"
    if options.location:
        if options.gateway:
            instance.resources.add_resource(Resource(name="door", location=options.gateway, amuse_dir="", scheduler_type="ssh"))
        where = "cluster"
        instance.resources.add_resource(
            Resource(name=where, location=options.location, gateway="door" if options.gateway else "", amuse_dir=options.amuse_dir,
                     scheduler_type="ssh"))
    for resource, label, more in ((where, "gravity", f"hosts={options.hosts}" if options.hosts else ""), ("local", "stars", "")):
        pilot = Pilot(resource_name=resource, node_count=1, time=2 | units.hour, slots_per_node=1, label=label, options=more)
        instance.pilots.add_pilot(pilot)
    instance.wait_for_pilots()
    instance.use_for_all_workers()


def main():
    options = arguments()
    masses = new_salpeter_mass_distribution(options.stars, mass_min=0.5 | units.MSun, mass_max=60 | units.MSun)
    converter = nbody_system.nbody_to_si(masses.sum(), 1 | units.parsec)
    stars = new_plummer_model(options.stars, convert_nbody=converter)
    stars.mass = masses
    stars.radius = 0 | units.RSun
    stars.move_to_center()

    instance = DistributedAmuse(redirection="none")
    instance.parameters.worker_queue_timeout = 5 | units.minute
    instance.commit_parameters()
    print("watch it at", instance.get_webinterface_url())
    try:
        deploy(instance, options)
        gravity = ph4(converter, label="gravity")
        evolution = SSE(label="stars")
        gravity.parameters.epsilon_squared = (0.01 | units.parsec) ** 2
        gravity.particles.add_particles(stars)
        evolution.particles.add_particles(stars)
        masses_there = evolution.particles.new_channel_to(gravity.particles, attributes=["mass"])
        back = gravity.particles.new_channel_to(stars)

        plot = LivePlot(options.plot, f"{options.stars} stars", "time (Myr)", "relative to the start")
        first = None
        time = 0 | units.Myr
        while time.value_in(units.Myr) < options.time:
            time += options.step | units.Myr
            gravity_done = gravity.evolve_model.asynchronous(time)
            evolution.evolve_model(time)  # meanwhile
            gravity_done.wait()
            masses_there.copy()
            back.copy()
            now = gravity.particles.mass.sum(), stars.LagrangianRadii(cm=stars.center_of_mass(), mf=[0.5])[0][0]
            first = first or now
            plot.add("mass", time.value_in(units.Myr), now[0] / first[0])
            plot.add("half-mass radius", time.value_in(units.Myr), now[1] / first[1])
            plot.show()
            print(f"{time.value_in(units.Myr):5.1f} Myr  {now[0].value_in(units.MSun):8.1f} MSun  {now[1].value_in(units.parsec):6.3f} pc", flush=True)
        gravity.stop()
        evolution.stop()
    finally:
        instance.stop()
    print(f"the plot is in {options.plot}")


if __name__ == "__main__":
    main()
