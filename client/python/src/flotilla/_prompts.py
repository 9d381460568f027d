"""Questions of the daemon (passwords, second factors, host keys) on the user's terminal."""

from __future__ import annotations

import getpass
import os
import sys
from typing import Callable, Optional

from ._types import Prompt

PromptHandler = Callable[[Prompt], Optional[str]]
"""Returns the answer (host keys: "yes" or "no"); None refuses. Called on a thread of the library, one at a time."""


def _printable(text: str) -> str:
    """Text of a server may hold escape sequences; they do not reach the terminal."""
    return "".join(each for each in text if each in "\n\t" or each.isprintable())


def ask_on_terminal(prompt: Prompt) -> Optional[str]:
    """What is used when no handler is given and there is a terminal. Secrets are not echoed."""
    text = _printable(prompt.text)
    if prompt.resource:
        text = f"{_printable(prompt.resource)}: {text}"
    text = f"{text}\nAccept this host key (yes/no)? " if prompt.kind == "host_key" else f"{text.rstrip()} "
    try:
        if prompt.kind == "secret":
            return getpass.getpass(text)  # on /dev/tty
        with open("/dev/tty", "w", encoding="utf-8", errors="replace") as out, open("/dev/tty", encoding="utf-8", errors="replace") as back:
            out.write(text)
            out.flush()
            answer = back.readline()
            return answer.rstrip("\n") if answer else None
    except (OSError, EOFError):
        return None


def choose(handler: Optional[PromptHandler]) -> Optional[PromptHandler]:
    """None: there is nobody to ask."""
    if handler is not None:
        return handler
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY))
    except OSError:
        return None
    return ask_on_terminal if sys.stderr is not None and sys.stderr.isatty() else None
