"""flotilla.amuse: AMUSE's classes without their faults."""
from test_distributed import lines, script


def repaired(text):
    return script(text).replace("from amuse.community.distributed.interface", "from flotilla.amuse")


def test_an_error_says_what_went_wrong(user):
    out, _ = user.run(repaired("""
pilot = Pilot(resource_name="nowhere", node_count=1, time=1 | units.hour, slots_per_node=1, label="", options="")
print("error", said(lambda: instance.pilots.add_pilot(pilot)))
"""))
    assert "errorcode is -10" in out and "there is no resource 'nowhere'" in out


def test_output_is_shown_on_the_console(user):
    out, _ = user.run(repaired("""
code = Fi(redirection="none")
code.dm_particles.add_particles(new_plummer_model(10))
code.evolve_model(0.01 | nbody_system.time)
code.stop()
print("codes", flush=True)
"""))
    assert "end of run" in out.lower() or len(out.splitlines()) > 20, out


def test_it_is_a_context_manager(user):
    out, _ = user.run("""
from flotilla.amuse import DistributedAmuse, Pilot
from amuse.community.bhtree.interface import BHTree
from amuse.units import units
with DistributedAmuse(redirection="none") as instance:
    instance.pilots.add_pilot(Pilot(resource_name="local", node_count=1, time=1 | units.hour, slots_per_node=1, label=""))
    instance.use_for_distributed_workers()
    print("particles", BHTree(channel_type="distributed").get_number_of_particles())
print("the end")
""")
    assert "the end" in out and lines(out, "particles")
