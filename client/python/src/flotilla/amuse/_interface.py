"""The distributed code: what `flotilla amuse serve` can be called for, and the class that scripts use."""

import os
import shutil
from importlib import util
from pathlib import Path

from amuse.community.interface.common import CommonCode, CommonCodeInterface
from amuse.rfi import channel as upstream
from amuse.rfi.core import CodeInterface, LegacyFunctionSpecification, legacy_function
from amuse.support.exceptions import AmuseException, CodeException
from amuse.support.options import GlobalOptions
from amuse.units import units

from flotilla.amuse import _functions, _sets
from flotilla.amuse._channel import ControlChannel, repair

FAILED = -10  # of every function that fails; get_current_error has the text

_RESOURCE = "name:s location:s amuse_dir:s tmp_dir:s= gateway:s= scheduler_type:s=ssh hub_queue_name:s= hub_time_minutes:i=1(minute)"
_PILOT = "resource_name:s queue_name:s= node_count:i=1 time:i=60(minute) slots_per_node:i=1 label:s=default options:s="
_SCRIPT = "script_dir:s script_name:s arguments:s= input_dir:s= output_dir:s= stdout_file:s= stderr_file:s= label:s="
_FUNCTION = "function:s arguments:s kwarguments:s stdout_file:s stderr_file:s label:s=default"

# Name, what goes in, what comes out; `NAME:i` is a number, `NAME:s` a string, `=` goes before a default and `(...)` has the unit.
_ONCE = [
    ("get_worker_port", "", "worker_port:i"),
    ("get_debug", "", "debug:i"),
    ("set_debug", "debug:i", ""),
    ("get_start_hubs", "", "start_hubs:i"),
    ("set_start_hubs", "start_hubs:i", ""),
    ("get_webinterface_port", "", "webinterface_port:i"),
    ("set_webinterface_port", "webinterface_port:i", ""),
    ("get_worker_startup_timeout", "", "worker_startup_timeout:i(s)"),
    ("set_worker_startup_timeout", "worker_startup_timeout:i(s)", ""),
    ("get_worker_queue_timeout", "", "worker_queue_timeout:i(s)"),
    ("set_worker_queue_timeout", "worker_queue_timeout:i(s)", ""),
    ("wait_for_pilots", "", ""),
    ("wait_for_script_jobs", "", ""),
    ("get_number_of_workers", "", "number_of_workers:i"),
    ("get_current_error", "", "string:s"),
    ("end_all", "", ""),
    ("startup_viz", "", ""),
    # Not in AMUSE's own interface:
    ("attach", "where:s", ""),
    ("get_webinterface_link", "", "link:s"),
]
_FOR_EACH = [  # of arrays
    ("new_resource", _RESOURCE, "resource_id:i"),
    (
        "get_resource_state",
        "resource_id:i",
        "name:s location:s gateway:s amuse_dir:s tmp_dir:s scheduler_type:s hub_queue_name:s hub_time_minutes:i",
    ),
    ("delete_resource", "resource_id:i", ""),
    ("new_pilot", _PILOT, "pilot_id:i"),
    (
        "get_pilot_state",
        "pilot_id:i",
        "resource_name:s queue_name:s node_count:i time:i(minute) slots_per_node:i label:s status:s options:s",
    ),
    ("get_pilot_status", "pilot_id:i", "status:s"),
    ("delete_pilot", "pilot_id:i", ""),
    ("submit_script_job", _SCRIPT, "job_id:i"),
    (
        "get_script_job_state",
        "job_id:i",
        "script_dir:s script_name:s arguments:s input_dir:s output_dir:s stdout_file:s stderr_file:s label:s status:s",
    ),
    ("get_script_job_status", "job_id:i", "status:s"),
    ("delete_script_job", "job_id:i", ""),
    ("submit_function_job", _FUNCTION, "job_id:i"),
    ("get_function_job_state", "job_id:i", "stdout_file:s stderr_file:s label:s status:s"),
    ("get_function_job_status", "job_id:i", "status:s"),
    ("get_function_job_result", "job_id:i", "result:s"),
    ("delete_function_job", "job_id:i", ""),
    ("get_worker_state", "worker_id:i", "executable:s label:s worker_count:i thread_count:i status:s"),
    ("get_worker_status", "worker_id:i", "status:s"),
    ("get_worker_ids", "index:i", "id_of_the_worker:i"),
]
_KINDS = {"i": "int32", "s": "string"}


def _specification(name, takes, gives, for_each):
    made = LegacyFunctionSpecification()
    made.name = name
    made.must_handle_array = for_each
    for words, direction in ((gives, made.OUT), (takes, made.IN)):
        for word in words.split():
            parameter, _, rest = word.partition(":")
            rest, _, unit = rest.rstrip(")").partition("(")
            kind, has_default, default = rest[0], rest[1:2] == "=", rest[2:]
            made.addParameter(
                parameter,
                dtype=_KINDS[kind],
                direction=direction,
                default=(int(default) if kind == "i" else default) if has_default else None,
                unit=getattr(units, unit) if unit else None,
            )
    if for_each:
        made.addParameter("count", dtype="int32", direction=made.LENGTH)
    made.result_type = "int32"
    return made


def _declared(made):
    for functions, for_each in ((_ONCE, False), (_FOR_EACH, True)):
        for name, takes, gives in functions:
            setattr(made, name, legacy_function(lambda row=(name, takes, gives, for_each): _specification(*row)))
    return made


def worker_program():
    """What is started: the one that `flotilla amuse install` made for this AMUSE, else the flotilla of the path."""
    own = Path(__file__).with_name("distributed_worker")
    if os.environ.get("FLOTILLA_PROGRAM"):
        return str(own)
    package = Path(util.find_spec("amuse").origin).parent
    for folder in (package / "community/distributed/_workers", package / "_workers", package / "community/distributed"):
        made = folder / own.name
        if made.is_file() and b"flotilla amuse install" in made.read_bytes():
            return str(made)
    if shutil.which("flotilla") is None:
        raise CodeException("the program flotilla is not found: run 'flotilla amuse install' once, or put it into PATH or its path into FLOTILLA_PROGRAM")
    return str(own)


@_declared
class DistributedAmuseInterface(CodeInterface, CommonCodeInterface):
    """The calls as they are, without units and sets."""

    channel_type = "sockets"
    channel_factory = ControlChannel

    def __init__(self, **options):
        if options.get("channel_type", "sockets") != "sockets":
            raise CodeException(f"the distributed code is started over the channel 'sockets', not '{options['channel_type']}'")
        super().__init__(name_of_the_worker=worker_program(), **options)

    def _check_if_worker_is_up_to_date(self):
        pass  # it is not built with AMUSE

    def cleanup_code(self):
        self.end_all()
        return 0

    def new_worker(self):
        raise AmuseException("a worker is made by making an instance of its code, not by adding to 'workers'")

    def new_function_job(self):
        raise AmuseException("a function job is made with submit_function_job(label, stdout_file, stderr_file, function, ...)")

    def delete_worker(self):
        raise AmuseException("a worker is ended by stopping the instance of its code, not by removing it from 'workers'")


class DistributedAmuse(CommonCode):
    """Resources, pilots and workers of one script. Makes all codes over the distributed channel use the repaired one.

    :argument attach: True for the daemon of this user that runs already, or its state directory: its resources and pilots can be
        used by their names and labels, and stop() ends only what came from here. Otherwise there is a daemon of this script's own.
    """

    def __init__(self, attach=False, **options):
        repair()
        super().__init__(DistributedAmuseInterface(**options), **options)
        if attach:
            self.legacy_interface.attach("" if attach is True else os.path.abspath(attach))

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.stop()

    # ---- the parts of an AMUSE code

    def define_errorcodes(self, handler):
        super().define_errorcodes(handler)
        handler.add_errorcode(FAILED, _CurrentError(self))

    def define_state(self, handler):
        super().define_state(handler)
        handler.add_transition("INITIALIZED", "RUN", "commit_parameters")
        for name in ("before_get_parameter", "before_set_parameter"):
            handler.add_method("RUN", name)
        for name, _, _ in _FOR_EACH:
            handler.add_method("RUN", name)
        for name in (
            "wait_for_pilots",
            "wait_for_script_jobs",
            "get_number_of_workers",
            "startup_viz",
            "get_webinterface_link",
            "use_for_all_workers",
            "use_for_distributed_workers",
        ):
            handler.add_method("RUN", name)

    def define_parameters(self, handler):
        handler.add_boolean_parameter("get_debug", "set_debug", "debug", "say more, and keep logs on each machine", default_value=False)
        handler.add_boolean_parameter("get_start_hubs", "set_start_hubs", "start_hubs", "no effect: a hub is where one is needed", default_value=True)
        handler.add_method_parameter("get_worker_port", None, "worker_port", "where the distributed channel asks for workers", default_value=0)
        handler.add_method_parameter(
            "get_webinterface_port", "set_webinterface_port", "webinterface_port", "port of the web page; 0 is any that is free", default_value=0
        )
        for name, what in (("worker_startup_timeout", "for a worker to start in its slots"), ("worker_queue_timeout", "for a worker to get slots")):
            handler.add_method_parameter("get_" + name, "set_" + name, name, "time " + what, default_value=60 | units.s)
        handler.add_interface_parameter("startup_viz", "no effect: see the web page", False)

    def define_particle_sets(self, handler):
        def define(name, key, new, delete, getters, kind=None):
            handler.define_set(name, key)
            handler.set_new(name, new)
            handler.set_delete(name, delete)
            for getter, names in getters:
                handler.add_getter(name, getter, names=names)
            if kind:
                handler.mapping_from_name_to_set_definition[name].particles_factory = kind

        status = ("status",)
        define("resources", "resource_id", "new_resource", "delete_resource", [("get_resource_state", None)], _sets.Resources)
        define("pilots", "pilot_id", "new_pilot", "delete_pilot", [("get_pilot_state", None), ("get_pilot_status", status)], _sets.Pilots)
        jobs = [("get_script_job_state", None), ("get_script_job_status", status)]
        define("script_jobs", "job_id", "submit_script_job", "delete_script_job", jobs, _sets.ScriptJobs)
        jobs = [("get_function_job_state", None), ("get_function_job_status", status)]
        define("function_jobs", "job_id", "new_function_job", "delete_function_job", jobs, _sets.FunctionJobs)
        define("_workers", "worker_id", "new_worker", "delete_worker", [("get_worker_state", None), ("get_worker_status", status)])

    # ---- what scripts call

    def commit_parameters(self):
        self.parameters.send_not_set_parameters_to_code()
        self.parameters.send_cached_parameters_to_code()
        self.overridden().commit_parameters()
        self.port = self.get_worker_port()
        here = _sets.Resource(name="local", location="", scheduler_type="local", amuse_dir=GlobalOptions.instance().amuse_rootdirectory)
        self.resources.add_resource(here)

    def cleanup_code(self):
        if upstream.DistributedChannel.default_distributed_instance is self:
            self.use_for_all_workers(False)
        self.overridden().cleanup_code()

    def use_for_distributed_workers(self, enable=True):
        """Codes with ``channel_type="distributed"`` run here."""
        if enable:
            upstream.DistributedChannel.default_distributed_instance = self
        elif upstream.DistributedChannel.default_distributed_instance is self:
            upstream.DistributedChannel.default_distributed_instance = None

    use_for_all_distributed_workers = use_for_distributed_workers  # as AMUSE's documentation calls it

    def use_for_all_workers(self, enable=True):
        """All codes run here."""
        overridden = GlobalOptions.instance().overriden_options
        if enable:
            GlobalOptions.instance().override_value_for_option("channel_type", "distributed")
        elif upstream.DistributedChannel.default_distributed_instance is self:
            overridden.pop("channel_type", None)
        self.use_for_distributed_workers(enable)

    def get_webinterface_url(self):
        """A link that opens the page as it is."""
        return self.get_webinterface_link()

    def submit_function_job(self, label, stdout_file, stderr_file, function, *args, **kwargs):
        """Runs ``function(*args, **kwargs)`` on a pilot with that label, "" for any; returns the job's id, of which there is one in function_jobs."""
        call = {"function": _functions.dumps(function, args, kwargs), "arguments": "", "kwarguments": ""}
        made = self.overridden().submit_function_job(label=label, stdout_file=stdout_file, stderr_file=stderr_file, **call)
        self.function_jobs._add_indices_in_attribute_storage([made])
        return made

    def get_function_job_result(self, job_id):
        """Waits for what the function returns; what it raises is raised here."""
        return _functions.loads(self.overridden().get_function_job_result(job_id))

    @property
    def workers(self):
        """The codes that run now."""
        while True:
            count = self.get_number_of_workers()
            try:
                ids = set(self.get_worker_ids(list(range(count)))) if count else set()
                break
            except AmuseException:
                if self.get_number_of_workers() == count:
                    raise
        known = set(self._workers.get_all_indices_in_store())
        if known - ids:
            self._workers._remove_indices_in_attribute_storage(list(known - ids))
        if ids - known:
            self._workers._add_indices_in_attribute_storage(list(ids - known))
        return self._workers


class _CurrentError:
    """An error's text, asked for when it is written."""

    def __init__(self, instance):
        self._instance = instance

    def __str__(self):
        return self._instance.legacy_interface.get_current_error()["string"]

    __repr__ = __str__
