#!/usr/bin/env python3
"""Twenty gravity codes over two resources: the same cluster from twenty random seeds, side by side.

    twenty_codes.py                                                    both pilots on this machine
    twenty_codes.py --location me@workstation --location me@login.cluster --slots 10

AMUSE's own classes. A code goes to whichever pilot of its label has a free slot; with fewer slots than codes the rest wait for theirs.
"""
import argparse
import queue
from concurrent.futures import ThreadPoolExecutor

import numpy
from amuse.community.bhtree.interface import BHTree
from amuse.community.distributed.interface import DistributedAmuse, Pilot, Resource
from amuse.ic.plummer import new_plummer_model
from amuse.units import nbody_system, units
from live_plot import LivePlot


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--location", action="append", default=[], help="user@host of a resource; twice for two; none: this machine")
    parser.add_argument("--amuse-dir", default="", help="where AMUSE is there; none: it is looked for; 'bundle': the codes are sent from here")
    parser.add_argument("--codes", type=int, default=20)
    parser.add_argument("--slots", type=int, default=10, help="of each of the two pilots")
    parser.add_argument("--stars", type=int, default=300)
    parser.add_argument("--time", type=float, default=2, help="in N-body units")
    parser.add_argument("--step", type=float, default=0.25)
    parser.add_argument("--plot", default="codes.png", help="the picture that grows (default: %(default)s)")
    return parser.parse_args()


def deploy(instance, options):
    names = []
    for number, location in enumerate(options.location, 1):
        names.append(f"resource{number}")
        instance.resources.add_resource(Resource(name=names[-1], location=location, amuse_dir=options.amuse_dir, scheduler_type="ssh"))
    while len(names) < 2:
        names.append("local")
    for name in names:
        instance.pilots.add_pilot(
            Pilot(resource_name=name, node_count=1, time=2 | units.hour, slots_per_node=options.slots, label="codes", options=""))
    instance.wait_for_pilots()


def simulate(instance, number, options, told):
    """One code from its start to its end; tells (number, time, kinetic over potential energy) after each step."""
    code = BHTree(channel_type="distributed", distributed_instance=instance, label="codes")
    try:
        code.parameters.epsilon_squared = 0.01 | nbody_system.length**2
        code.particles.add_particles(new_plummer_model(options.stars, random=numpy.random.mtrand.RandomState(number)))
        time = 0.0
        while time < options.time:
            time += options.step
            code.evolve_model(time | nbody_system.time)
            told.put((number, time, -code.kinetic_energy / code.potential_energy))
    finally:
        code.stop()


def main():
    options = arguments()
    instance = DistributedAmuse(redirection="none")
    instance.parameters.worker_queue_timeout = 1 | units.hour  # those that wait for a slot
    instance.commit_parameters()
    print("watch it at", instance.get_webinterface_url())
    try:
        deploy(instance, options)
        plot = LivePlot(options.plot, f"{options.codes} clusters of {options.stars} stars", "time (N-body units)", "kinetic / potential energy")
        told = queue.Queue()
        with ThreadPoolExecutor(options.codes) as threads:
            running = [threads.submit(simulate, instance, number, options, told) for number in range(options.codes)]
            finished = 0
            last = {}
            while finished < options.codes:
                try:
                    number, time, ratio = told.get(timeout=0.5)
                except queue.Empty:
                    failed = [each.exception() for each in running if each.done() and each.exception()]
                    if failed:
                        raise failed[0]
                    continue
                plot.add(f"seed {number}", time, ratio, linewidth=0.8)
                last[number] = ratio
                if time >= options.time:
                    finished += 1
                    print(f"{finished:3} of {options.codes} are done: seed {number} ends at {ratio:.3f}", flush=True)
                if told.empty():
                    plot.show()
        plot.show()
    finally:
        instance.stop()
    ratios = list(last.values())
    print(f"kinetic / potential energy at the end: {numpy.mean(ratios):.3f} +- {numpy.std(ratios):.3f} over {len(ratios)} seeds; the plot is in {options.plot}")


if __name__ == "__main__":
    main()
