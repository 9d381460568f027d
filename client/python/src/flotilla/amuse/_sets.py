"""What a distributed instance holds: sets of resources, pilots and jobs, in the way of AMUSE's sets of particles."""

import warnings

from amuse.datamodel import Particle, Particles


class _Set(Particles):
    one = Particle  # the class of its members
    takes = ()  # the attributes that count when one is added
    other_names = {}  # what AMUSE's documentation calls some of them
    read_here = ()  # what the set itself makes something of

    def __getitem__(self, index):
        found = super().__getitem__(index)
        return self.one(found.key, self, found._set_index, found._set_version) if isinstance(found, Particle) else found

    def __iter__(self):
        return (self[index] for index in range(len(self)))

    def add_particle(self, particle):
        self.add_particles(particle.as_set())
        return self[len(self) - 1]

    def add_particles(self, particles):
        names = particles.get_attribute_names_defined_in_store()
        for other, name in self.other_names.items():
            if other in names and name not in names:
                particles = particles.copy()
                setattr(particles, name, getattr(particles, other))
        for name in sorted(set(names) - set(self.takes) - set(self.other_names) - set(self.read_here)):
            if self.takes:
                warnings.warn(f"a {self.one.__name__} has no '{name}', it is ignored; there are: {', '.join(self.takes)}", stacklevel=3)
        return super().add_particles(particles)


class _One(Particle):
    many = _Set

    def __init__(self, key=None, particles_set=None, set_index=None, set_version=-1, **attributes):
        if particles_set is None:
            particles_set = self.many(1, keys=None if key is None else [key])
            key = particles_set.get_all_keys_in_store()[0]
        super().__init__(key, particles_set, set_index, set_version, **attributes)


class Resources(_Set):
    """Machines that pilots can run on."""

    takes = ("name", "location", "amuse_dir", "tmp_dir", "gateway", "scheduler_type", "hub_queue_name", "hub_time_minutes")
    other_names = {"scheduler": "scheduler_type"}
    read_here = ("amuse_bundle",)  # true: the codes are sent there from here, with all that they need

    def add_particles(self, particles):
        names = particles.get_attribute_names_defined_in_store()
        if "amuse_bundle" in names:
            particles = particles.copy()
            own = [each.amuse_dir if "amuse_dir" in names else "" for each in particles]
            particles.amuse_dir = ["bundle" if bundle else folder for bundle, folder in zip(particles.amuse_bundle, own)]
        return super().add_particles(particles)

    def add_resource(self, resource):
        return self.add_particle(resource)

    def add_resources(self, resources):
        return self.add_particles(resources)

    def remove_resource(self, resource):
        self.remove_particle(resource)

    def remove_resources(self, resources):
        self.remove_particles(resources)


class Resource(_One):
    many = Resources


class Pilots(_Set):
    """Slots on a resource, for some time."""

    takes = ("resource_name", "queue_name", "node_count", "time", "slots_per_node", "label", "options")

    def add_pilot(self, pilot):
        return self.add_particle(pilot)

    def add_pilots(self, pilots):
        return self.add_particles(pilots)

    def remove_pilot(self, pilot):
        self.remove_particle(pilot)

    def remove_pilots(self, pilots):
        self.remove_particles(pilots)


class Pilot(_One):
    many = Pilots


class ScriptJobs(_Set):
    """Scripts that run on a pilot."""

    takes = ("script_dir", "script_name", "arguments", "input_dir", "output_dir", "stdout_file", "stderr_file", "label")

    def submit_script_job(self, job):
        return self.add_particle(job)

    def submit_script_jobs(self, jobs):
        return self.add_particles(jobs)

    def cancel_script_job(self, job):
        self.remove_particle(job)

    def cancel_script_jobs(self, jobs):
        self.remove_particles(jobs)

    remove_script_job, remove_script_jobs = cancel_script_job, cancel_script_jobs


class ScriptJob(_One):
    many = ScriptJobs


class FunctionJobs(_Set):
    """Functions that run on a pilot; DistributedAmuse.submit_function_job makes one."""

    def cancel_function_job(self, job):
        self.remove_particle(job)

    def cancel_function_jobs(self, jobs):
        self.remove_particles(jobs)

    remove_function_job, remove_function_jobs = cancel_function_job, cancel_function_jobs


class FunctionJob(_One):
    many = FunctionJobs


Resources.one, Pilots.one, ScriptJobs.one, FunctionJobs.one = Resource, Pilot, ScriptJob, FunctionJob
