"""For pytest -p: AMUSE's own tests, every code of theirs started over the distributed channel, whatever channel they ask for.

What upstream's files need for that, and is done here:
- `test_c_distributed_implementation` and the distributed part of `test_async` end their distributed instance in `tearDown`, after their first
  test; what comes later falls back to MPI. Here one instance lives for all tests.
- AMUSE's distributed channel drops the units of calls and the interpreter of Python codes; that of flotilla.amuse does not.
- Tests of the sockets channel name it in each call; the channel is chosen here for all.
$FLOTILLA_TEST_WAY: "relayed" over the worker port, "handed over" with the worker's own socket.
How many workers which channel has started is printed at the end: a test that uses another one tests nothing of ours.
"""
import collections
import os

import pytest

started = collections.Counter()


def _count(channel):
    start = channel.start

    def counted(self):
        start(self)
        started[channel.__name__] += 1

    channel.start = counted


@pytest.fixture(scope="session", autouse=True)
def distributed():
    from amuse.rfi import channel, core
    from amuse.units import units
    from flotilla.amuse import DistributedAmuse, DistributedAmuseInterface, DistributedChannel, Pilot

    instance = DistributedAmuse(redirection="none")
    pilot = Pilot(resource_name="local", node_count=1, time=2 | units.hour, slots_per_node=40, label="local")
    instance.pilots.add_pilot(pilot)
    instance.wait_for_pilots()
    instance.use_for_distributed_workers()
    if os.environ["FLOTILLA_TEST_WAY"] == "relayed":
        instance.worker_socket = ""  # as with AMUSE's own classes: over the worker port
    for each in (DistributedChannel, channel.SocketChannel, channel.MpiChannel):
        _count(each)
    core.CodeInterface.channel_factory = property(
        lambda self: channel.SocketChannel if isinstance(self, DistributedAmuseInterface) else DistributedChannel)
    yield
    instance.stop()


def _mend(made):
    parent = made.__mro__[1]
    made.setup_class = classmethod(lambda cls: parent.setup_class.__func__(cls))
    del made.tearDown


def pytest_configure():
    from amuse.test.suite.compile_tests import test_async, test_c_distributed_implementation

    _mend(test_async.TestASyncDistributed)
    _mend(test_c_distributed_implementation.TestCDistributedImplementationInterface)


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line("started: " + ", ".join(f"{name} {count}" for name, count in sorted(started.items())))
