"""How a worker's end is learned from the connection that brought its channel; the giver is played here."""

from __future__ import annotations

import asyncio
import mmap
import socket
import threading
import time

import pytest

import flotilla
import flotilla.aio
from flotilla import _channel
from flotilla._client import WorkerChannel

END = b'END {"kind": "EXITED", "code": 3}\n'


class Given:
    """A channel, and the ends that its giver holds."""

    def __init__(self):
        self.stream, self.worker = socket.socketpair()
        self.control, self.giver = socket.socketpair()
        self.counters = mmap.mmap(-1, 24)


@pytest.fixture
def given():
    given = Given()
    yield given
    for end in (given.worker, given.giver):
        end.close()


@pytest.fixture
def waits(monkeypatch):
    """Says that somebody waits without a limit."""
    waits = threading.Event()
    plain = _channel._wait_readable

    def told(sock, deadline):
        if deadline is None:
            waits.set()
        return plain(sock, deadline)

    monkeypatch.setattr(_channel, "_wait_readable", told)
    return waits


def in_thread(what):
    said = []
    thread = threading.Thread(target=lambda: said.append(what()), daemon=True)
    thread.start()

    def result():
        thread.join(20)
        assert said, "still waiting"
        return said[0]

    return result


def test_a_wait_with_a_limit_stands_beside_one_without(given, waits):
    end = _channel.ChannelEnd(given.control)
    for_ever = in_thread(lambda: end.read(None))
    assert waits.wait(20)
    assert in_thread(lambda: end.read(time.monotonic()))() is None
    assert in_thread(lambda: end.read(time.monotonic() + 0.02))() is None
    given.giver.sendall(END[:9])
    assert in_thread(lambda: end.read(time.monotonic() + 0.02))() is None
    given.giver.sendall(END[9:])
    assert for_ever().code == 3
    assert end.read(time.monotonic()).code == 3
    end.close()


def test_closing_wakes_all_who_wait(given, waits):
    end = _channel.ChannelEnd(given.control)
    both = [in_thread(lambda: end.read(None)), in_thread(lambda: end.read(time.monotonic() + 60))]
    assert waits.wait(20)
    end.close()
    assert [each() for each in both] == [None, None]
    assert end.fileno() < 0  # the last who waited has closed it
    assert end.read(None) is None


def test_a_giver_that_goes_away_is_told_to_all_who_wait(given, waits):
    end = _channel.ChannelEnd(given.control)

    def read():
        with pytest.raises(flotilla.UnavailableError):
            end.read(None)
        return "told"

    both = [in_thread(read), in_thread(read)]
    assert waits.wait(20)
    given.giver.close()
    assert [each() for each in both] == ["told", "told"]
    end.close()


def test_tasks_that_wait_for_the_end_do_not_disturb_one_another(given):
    async def main():
        worker = flotilla.aio.Worker(None, 1, (given.stream, given.counters, given.control))
        for_ever = [asyncio.ensure_future(worker.exit(None)) for _ in range(2)]
        await asyncio.sleep(0)
        assert await worker.exit(0.01) is None and await worker.exit() is None
        await worker.check()
        given.giver.sendall(END[:9])
        assert await worker.exit(0.01) is None  # half a line is no end
        canceled = asyncio.ensure_future(worker.exit(None))
        await asyncio.sleep(0)
        canceled.cancel()
        given.giver.sendall(END[9:])
        assert [(await each).code for each in for_ever] == [3, 3]
        with pytest.raises(flotilla.WorkerFailedError):
            await worker.check()
        worker.close()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_closing_wakes_tasks_that_wait_for_the_end(given):
    async def main():
        worker = flotilla.aio.Worker(None, 1, (given.stream, given.counters, given.control))
        waiting = [asyncio.ensure_future(worker.exit(limit)) for limit in (None, 60)]
        await asyncio.sleep(0)
        worker.close()
        assert [await each for each in waiting] == [None, None]
        assert await worker.exit(None) is None

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_worker_that_is_forgotten_is_closed(given):
    WorkerChannel(1, given.stream, given.counters, _channel.ChannelEnd(given.control))
    assert given.giver.recv(1) == b"" and given.worker.recv(1) == b""
