"""Why what one waits for does not begin: told by the logger ``flotilla``, once for each reason.

A script that asks for a label which no pilot has would hang without a word. So a wait that lasts asks the daemon for the reason. Asking
is left to a thread (a task, with asyncio) that sleeps as long as no wait is old enough; a short wait costs an entry in a list. The thread
ends when nothing waits, so that it keeps no session alive that was forgotten."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Callable, Dict, List, Optional, Tuple, Type

from .v1 import client_pb2, types_pb2

log = logging.getLogger("flotilla")

FIRST_LOOK = 2.0  # seconds; what begins sooner is not worth a line
LAST_PAUSE = 60.0  # seconds; pauses between two looks double up to this
PATIENCE = 8.0  # seconds; what passes by itself (a pilot that starts, slots that others hold) is told later still
WHY_LIMIT = 5.0  # seconds for the daemon's answer

_WAITING = (types_pb2.JOB_SUBMITTED, types_pb2.JOB_QUEUED)

Ask = Callable[[], Optional[client_pb2.WhyJobRequest]]  # None: it is not known yet which job it is


def of_job(id: int) -> Ask:
    return lambda: client_pb2.WhyJobRequest(id=id)


def of_followed(open: client_pb2.AttachOpen) -> Ask:
    """Its job is known when it was submitted."""
    return lambda: client_pb2.WhyJobRequest(id=open.job) if open.job else None


def of_start(request: client_pb2.StartWorkerRequest) -> Ask:
    return lambda: client_pb2.WhyJobRequest(start_key=request.start_key)


def new_start_key() -> bytes:
    return os.urandom(16)


class Wait:
    def __init__(self, ask: Ask, worker: bool) -> None:
        self.ask = ask
        self._worker = worker
        self._began = time.monotonic()
        self._pause = FIRST_LOOK
        self.next_look = self._began + FIRST_LOOK
        self.told: Optional[Tuple[int, str]] = None  # level and reason that were told last

    def look_later(self, now: float) -> None:
        self._pause = min(2 * self._pause, LAST_PAUSE)
        self.next_look = now + self._pause

    def level(self, reply: client_pb2.WhyJobReply, now: float) -> Optional[int]:
        """How loudly to tell; None: nothing to tell, or not yet."""
        if reply.state not in _WAITING:
            return None
        if not reply.transient:
            return logging.WARNING
        if now - self._began < PATIENCE:
            return None
        # Commands queue up by the thousand, that is no news. Who waits for a worker may hold the slots itself that it waits for.
        return logging.WARNING if self._worker else logging.INFO


class Reasons:
    """What was told, so that a thousand jobs that wait for the same tell it once."""

    def __init__(self) -> None:
        self._told: Counter[Tuple[int, str]] = Counter()

    def tell(self, wait: Wait, reply: client_pb2.WhyJobReply, now: float) -> None:
        level = wait.level(reply, now)
        if level is None or wait.told == (level, reply.sentence):
            return
        self.forget(wait)
        wait.told = (level, reply.sentence)
        self._told[wait.told] += 1
        if self._told[wait.told] == 1:
            log.log(level, "job %d waits: %s", reply.job, reply.sentence)

    def forget(self, wait: Wait) -> None:
        if wait.told is not None:
            self._told[wait.told] -= 1
            if not self._told[wait.told]:
                del self._told[wait.told]
        wait.told = None


Why = Callable[[client_pb2.WhyJobRequest], Optional[client_pb2.WhyJobReply]]


class Watched:
    """While inside, the wait is watched."""

    def __init__(self, watch: Watch, wait: Wait) -> None:
        self._watch = watch
        self._wait = wait

    def __enter__(self) -> None:
        self._watch.add(self._wait)

    def __exit__(self, kind: Optional[Type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        self._watch.remove(self._wait)


class Watch:
    """The waits of one session of the blocking form. ``why`` asks the daemon; None: it does not say."""

    def __init__(self, why: Why) -> None:
        self._why = why
        self._changed = threading.Condition()
        self._waits: Dict[int, Wait] = {}  # by their address
        self._reasons = Reasons()
        self._thread: Optional[threading.Thread] = None
        self._wakes_at = 0.0  # at the latest; it is not told of waits that end
        self._closed = False

    def add(self, wait: Wait) -> None:
        with self._changed:
            self._waits[id(wait)] = wait
            if self._closed:
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="flotilla waits", daemon=True)
                self._thread.start()
            elif wait.next_look < self._wakes_at:
                self._changed.notify()

    def __call__(self, ask: Ask, worker: bool = False) -> Watched:
        return Watched(self, Wait(ask, worker))

    def remove(self, wait: Wait) -> None:
        with self._changed:
            self._waits.pop(id(wait), None)
            self._reasons.forget(wait)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closed or not self._waits:
                    self._thread = None
                    return
                due = self._due()
                if not due:
                    self._wakes_at = min(wait.next_look for wait in self._waits.values())
                    self._changed.wait(max(0.0, self._wakes_at - time.monotonic()))
                    continue
            for wait in due:
                request = wait.ask()
                reply = self._why(request) if request is not None else None
                with self._changed:
                    now = time.monotonic()
                    wait.look_later(now)
                    if reply is not None and id(wait) in self._waits:
                        self._reasons.tell(wait, reply, now)

    def _due(self) -> List[Wait]:
        now = time.monotonic()
        return [wait for wait in self._waits.values() if wait.next_look <= now]
