"""AMUSE's distributed code, repaired: the classes of ``amuse.community.distributed.interface`` under the same names.

    from flotilla.amuse import DistributedAmuse, Resource, Pilot

They want what `flotilla amuse install` puts into AMUSE. What is better than with AMUSE's own classes:

- errors carry the text of what went wrong, not only "errorcode is -10";
- ``redirection="none"`` shows what codes print;
- strings of any language in calls, and their units, pass (AMUSE's channel counts characters where the format wants bytes, and drops units);
- ``python_interpreter`` of Python codes is used;
- a context manager: ``with DistributedAmuse() as instance: ...`` stops it.
"""

from amuse.community.distributed import interface as _upstream

from flotilla.amuse import _functions
from flotilla.amuse._channel import DistributedChannel, repair

Resource = _upstream.Resource
Resources = _upstream.Resources
Pilot = _upstream.Pilot
Pilots = _upstream.Pilots
DistributedAmuseInterface = _upstream.DistributedAmuseInterface

__all__ = ["DistributedAmuse", "DistributedAmuseInterface", "DistributedChannel", "Pilot", "Pilots", "Resource", "Resources", "repair"]

_FAILED = -10  # of every function that fails


class DistributedAmuse(_upstream.DistributedAmuse):
    """As AMUSE's class of this name. Makes all codes that are started over the distributed channel use the repaired one."""

    def __init__(self, **options):
        repair()
        super().__init__(**options)

    def define_errorcodes(self, handler):
        super().define_errorcodes(handler)
        handler.add_errorcode(_FAILED, _CurrentError(self))

    def submit_function_job(self, label, stdout_file, stderr_file, function, *args, **kwargs):
        return self.overridden().submit_function_job(
            function=_functions.dumps(function, args, kwargs), arguments="", kwarguments="", stdout_file=stdout_file, stderr_file=stderr_file,
            label=label)

    def get_function_job_result(self, job_id):
        return _functions.loads(self.overridden().get_function_job_result(job_id))

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.stop()


class _CurrentError:
    """An error's text, asked for when it is written."""

    def __init__(self, instance):
        self._instance = instance

    def __str__(self):
        return self._instance.legacy_interface.get_current_error()["string"]

    __repr__ = __str__
