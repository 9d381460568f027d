"""AMUSE's distributed code, repaired: the classes of ``amuse.community.distributed.interface`` under the same names.

    from flotilla.amuse import DistributedAmuse, Resource, Pilot

An AMUSE that has no such code of its own is enough, and nothing has to be installed into it. What is better than with AMUSE's own classes:

- errors carry the text of what went wrong, not only "errorcode is -10";
- ``redirection="none"`` shows what codes print;
- strings of any language in calls, and their units, pass (AMUSE's channel counts characters where the format wants bytes, and drops units);
- ``python_interpreter`` of Python codes is used;
- script and function jobs can be submitted: ``script_jobs``, ``submit_function_job``, ``get_function_job_result``;
- ``resource.scheduler``, as AMUSE's documentation has it, is taken for ``scheduler_type``, and what a resource or pilot does not have is told;
- ``DistributedAmuse(attach=True)`` uses the daemon of this user that runs already, with its resources and pilots;
- ``await finished(code.evolve_model.asynchronous(t))`` in a coroutine;
- a context manager: ``with DistributedAmuse() as instance: ...`` stops it.
"""

from flotilla.amuse._async import finished
from flotilla.amuse._channel import DistributedChannel, repair
from flotilla.amuse._interface import DistributedAmuse, DistributedAmuseInterface
from flotilla.amuse._sets import FunctionJob, FunctionJobs, Pilot, Pilots, Resource, Resources, ScriptJob, ScriptJobs

Distributed = Distributedamuse = DistributedAmuse  # as AMUSE calls it, too

__all__ = [
    "Distributed",
    "DistributedAmuse",
    "DistributedAmuseInterface",
    "DistributedChannel",
    "Distributedamuse",
    "FunctionJob",
    "FunctionJobs",
    "Pilot",
    "Pilots",
    "Resource",
    "Resources",
    "ScriptJob",
    "ScriptJobs",
    "finished",
    "repair",
]
