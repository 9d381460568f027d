"""Questions of the daemon (passwords, second factors, host keys) on the user's terminal."""

from __future__ import annotations

import atexit
import os
import select
import sys
import termios
import threading
from collections import deque
from contextlib import contextmanager
from typing import Any, Callable, Deque, Dict, Iterator, List, Optional, Tuple

from ._types import Prompt

PromptHandler = Callable[[Prompt], Optional[str]]
"""Returns the answer (host keys: "yes" or "no"); None refuses. Called on a thread of the library, one at a time."""

_CLOSE_LIMIT = 2.0  # seconds for a question to leave the terminal
_here = threading.local()  # .asker: whose thread this is
_quiet: Dict[int, List[Any]] = {}  # terminals without echo, by descriptor: their settings before


def _printable(text: str) -> str:
    """Text of a server may hold escape sequences; they do not reach the terminal."""
    return "".join(each for each in text if each in "\n\t" or each.isprintable())


def _restore(terminal: int) -> None:
    before = _quiet.pop(terminal, None)
    if before is not None:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)


@atexit.register
def _restore_all() -> None:
    """A program may end while a question stands: its thread does not come to that any more."""
    for terminal in list(_quiet):
        try:
            _restore(terminal)
        except termios.error:
            pass


@contextmanager
def _without_echo(terminal: int) -> Iterator[None]:
    before = termios.tcgetattr(terminal)
    quiet = list(before)
    quiet[3] &= ~termios.ECHO
    _quiet[terminal] = before
    try:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, quiet)
        yield
    finally:
        _restore(terminal)


def _read_line(terminal: int, withdrawn: Optional[int]) -> Optional[str]:
    poll = select.poll()
    poll.register(terminal, select.POLLIN)
    if withdrawn is not None:
        poll.register(withdrawn, select.POLLIN)
    line = b""
    while not line.endswith(b"\n"):
        ready = {fd for fd, _ in poll.poll()}
        if withdrawn in ready:
            return None
        data = os.read(terminal, 4096)
        if not data:
            return None
        line += data
    return line[:-1].decode(errors="replace")


def _write(terminal: int, text: str) -> None:
    data = text.encode(errors="replace")
    while data:
        data = data[os.write(terminal, data) :]


def ask_on_terminal(prompt: Prompt) -> Optional[str]:
    """What is used when no handler is given and there is a terminal. Secrets are not echoed."""
    text = _printable(prompt.text)
    if prompt.resource:
        text = f"{_printable(prompt.resource)}: {text}"
    text = f"{text}\nAccept this host key (yes/no)? " if prompt.kind == "host_key" else f"{text.rstrip()} "
    asker: Optional[Asker] = getattr(_here, "asker", None)
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return None
    try:
        with asker.standing() if asker is not None else _alone() as withdrawn:
            if prompt.kind != "secret":
                _write(terminal, text)
                answer = _read_line(terminal, withdrawn)
            else:
                try:
                    with _without_echo(terminal):  # before the question stands there
                        _write(terminal, text)
                        answer = _read_line(terminal, withdrawn)
                finally:
                    _write(terminal, "\n")
                return answer
            if answer is None:
                _write(terminal, "\n")
            return answer
    except (OSError, termios.error):
        return None
    finally:
        os.close(terminal)


@contextmanager
def _alone() -> Iterator[None]:
    yield None


class Asker:
    """Puts questions to a handler, one at a time, on a thread of its own. One on the terminal ends when it is withdrawn; the answer
    of another handler to a question that was withdrawn meanwhile is dropped."""

    def __init__(self, handler: Optional[PromptHandler], answer: Callable[[int, Optional[str]], None]) -> None:
        """``answer`` is called with the question's id on the asker's thread."""
        self._handler = handler
        self._answer = answer
        self._changed = threading.Condition()
        self._waiting: Deque[Tuple[int, Prompt]] = deque()
        self._asked: Optional[int] = None
        self._stands = False  # on the terminal
        self._closed = False
        self._thread: Optional[threading.Thread] = None
        self._bell = (-1, -1)  # a pipe: rung for the question that stands on the terminal

    def ask(self, id: int, prompt: Prompt) -> None:
        with self._changed:
            if self._closed:
                return
            self._waiting.append((id, prompt))
            if self._thread is None:
                self._bell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
                self._thread = threading.Thread(target=self._run, name="flotilla questions", daemon=True)
                self._thread.start()
            self._changed.notify()

    def withdraw(self, id: int) -> None:
        with self._changed:
            self._waiting = deque(each for each in self._waiting if each[0] != id)
            if self._asked == id:
                self._withdraw_asked()

    def close(self) -> None:
        """Nothing is asked any more; a question has left the terminal when this returns."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._withdraw_asked()
            self._changed.notify_all()
            thread = self._thread if self._stands else None
        if thread is not None and thread is not threading.current_thread():
            thread.join(_CLOSE_LIMIT)

    def _withdraw_asked(self) -> None:
        if self._asked is not None:
            self._asked = None
            os.write(self._bell[1], b"\0")

    @contextmanager
    def standing(self) -> Iterator[int]:
        """While a question is on the terminal; what becomes readable when it is withdrawn."""
        with self._changed:
            if self._asked is None:
                raise OSError("withdrawn before it was asked")
            self._stands = True
        try:
            yield self._bell[0]
        finally:
            with self._changed:
                self._stands = False

    def _run(self) -> None:
        _here.asker = self
        try:
            while True:
                with self._changed:
                    while not self._waiting and not self._closed:
                        self._changed.wait()
                    if self._closed:
                        return
                    self._asked, prompt = self._waiting.popleft()
                    id = self._asked
                said: Optional[str] = None
                try:
                    said = self._handler(prompt) if self._handler is not None else None
                except Exception:
                    said = None  # a handler that fails refuses; there is nobody here who could take its exception
                with self._changed:
                    withdrawn = self._asked != id
                    self._asked = None
                    if withdrawn:
                        os.read(self._bell[0], 1)
                if not withdrawn:
                    self._answer(id, said)
        finally:
            with self._changed:
                self._closed = True
                for fd in self._bell:
                    os.close(fd)


def choose(handler: Optional[PromptHandler]) -> Optional[PromptHandler]:
    """None: there is nobody to ask."""
    if handler is not None:
        return handler
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY))
    except OSError:
        return None
    return ask_on_terminal if sys.stderr is not None and sys.stderr.isatty() else None
