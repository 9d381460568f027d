"""What wants AMUSE itself: run with AMUSE's Python.

amuse_session.py serve              an instance with a pilot on this machine; prints its worker port, and stays until its stdin ends
amuse_session.py calls SECONDS ROUNDS   a trivial call by each channel in turn, each for so long; a line for each round of each
amuse_session.py twenty ROUNDS      20 codes from 20 threads, by each channel in turn
"""
import json
import sys
import threading
import time

import numpy
from amuse.community.bhtree.interface import BHTreeInterface
from amuse.community.distributed import interface as upstream
from amuse.units import units

SLOTS = 24
SLICES = 20


def say(**values):
    print(json.dumps(values), flush=True)


def instance_of(kind):
    instance = kind(redirection="null")
    instance.commit_parameters()
    instance.pilots.add_pilot(upstream.Pilot(resource_name="local", node_count=1, time=2 | units.hour, slots_per_node=SLOTS, label="here"))
    instance.wait_for_pilots()
    return instance


def plain():
    return BHTreeInterface(channel_type="sockets", redirection="null")


def distributed(instance):
    return lambda: BHTreeInterface(channel_type="distributed", distributed_instance=instance, label="here", redirection="null")


def serve():
    instance = instance_of(upstream.DistributedAmuse)
    say(port=int(instance.port))
    sys.stdin.read()
    instance.stop()


def calls(seconds, rounds):
    first = instance_of(upstream.DistributedAmuse)
    codes = {"sockets": plain(), "distributed": distributed(first)()}
    # From here on the distributed channel is that of flotilla.amuse.
    from flotilla import amuse as ours

    second = instance_of(ours.DistributedAmuse)
    codes["flotilla.amuse"] = distributed(second)()
    for code in codes.values():
        code.initialize_code()
    for turn in range(int(rounds) + 1):  # the first warms up
        times = {name: [] for name in codes}
        for _ in range(SLICES):  # short ones in turn: what comes and goes within a round meets all of them as well
            for name, code in codes.items():
                end = time.perf_counter() + float(seconds) / SLICES
                while (begin := time.perf_counter()) < end:
                    code.get_number_of_particles()
                    times[name].append(time.perf_counter() - begin)
        for name in codes if turn else ():
            p50, p99 = numpy.percentile(times[name], (50, 99)) * 1e6
            say(way=name, round=turn, p50=p50, p99=p99)
    for stopped in (*codes.values(), first, second):
        stopped.stop()


def twenty(rounds):
    instance = instance_of(upstream.DistributedAmuse)
    ways = {"sockets": plain, "distributed": distributed(instance)}
    for turn in range(int(rounds) + 1):
        for name, start in ways.items():
            codes = []
            threads = [threading.Thread(target=lambda start=start, codes=codes: codes.append(start())) for _ in range(20)]
            begin = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            took = time.perf_counter() - begin
            if len(codes) < 20:
                raise SystemExit(f"{name}: {len(codes)} of 20 codes have started")
            for code in codes:
                code.get_number_of_particles()
                code.stop()
            if turn:
                say(way=name, round=turn, p50=took)
    instance.stop()


{"serve": serve, "calls": calls, "twenty": twenty}[sys.argv[1]](*sys.argv[2:])
