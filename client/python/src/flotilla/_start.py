"""Where the daemon listens, and starting it when it does not run. The places are those of proto/base/paths.hpp."""

from __future__ import annotations

import errno
import hashlib
import os
import pwd
import socket
import struct
import subprocess
from pathlib import Path
from typing import Optional, Union

from ._errors import InvalidArgumentError, PermissionDeniedError, UnavailableError

_PATH_LIMIT = 107  # sun_path


def _home() -> Path:
    home = os.environ.get("HOME", "")
    return Path(home) if home.startswith("/") else Path(pwd.getpwuid(os.getuid()).pw_dir)


def _plain(path: Union[str, Path]) -> Path:
    """One spelling for each place, as proto/base/paths.cpp has it: the runtime directory's name is made of the state directory's."""
    path = os.fspath(path)
    absolute = path if path.startswith("/") else os.path.join(os.getcwd(), path)
    return Path(os.path.normpath("/" + absolute.lstrip("/")))  # two slashes in front would stay


def host_name() -> str:
    return socket.gethostname().split(".")[0]


def state_dir() -> Path:
    given = os.environ.get("FLOTILLA_STATE_DIR")
    if given:
        return _plain(given)
    xdg = os.environ.get("XDG_STATE_HOME", "")
    base = Path(xdg) if xdg.startswith("/") else _home() / ".local" / "state"
    return _plain(base / "flotilla" / host_name())


def runtime_dir() -> Path:
    given = os.environ.get("FLOTILLA_RUNTIME_DIR")
    if given:
        return _plain(given)
    key = os.fsencode(f"{state_dir()}\n{host_name()}")
    return Path(f"/tmp/fl-{os.getuid()}-{hashlib.sha256(key).hexdigest()[:8]}")


def daemon_socket() -> Path:
    return runtime_dir() / "daemon.sock"


def connect_unix(path: str) -> socket.socket:
    """Connected, and the process at the other end is this user's."""
    if len(os.fsencode(path)) > _PATH_LIMIT:
        raise InvalidArgumentError(f"the socket's path {path} is longer than the {_PATH_LIMIT} bytes that Linux takes", "set FLOTILLA_RUNTIME_DIR to a shorter one")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(path)
        uid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII")))[1]
        if uid != os.geteuid():
            raise PermissionDeniedError(f"the socket {path} belongs to a process of user {uid}")
    except BaseException:
        sock.close()
        raise
    return sock


def reach_daemon(given: Optional[str], start: bool, program: Optional[str]) -> str:
    """The path of a socket at which a daemon answers; a socket that was named is another's daemon: it is not started."""
    path = given or str(daemon_socket())
    try:
        connect_unix(path).close()
        return path
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ECONNREFUSED):
            raise UnavailableError(f"cannot connect to the daemon at {path}: {error.strerror}") from None
    if not start or given:
        raise UnavailableError(f"no daemon runs (nobody listens at {path})", "run 'flotilla daemon start'", retry=True)
    program = program or os.environ.get("FLOTILLA_PROGRAM") or "flotilla"
    try:
        done = subprocess.run(
            [program, "daemon", "start"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise UnavailableError(
            f"no daemon runs, and it cannot be started: cannot run '{program}': {error.strerror}",
            "put the program flotilla into PATH, or its path into FLOTILLA_PROGRAM",
        ) from None
    if done.returncode != 0:
        raise UnavailableError(f"the daemon cannot be started: {done.stdout.strip() or 'no reason was given'}", f"run '{program} daemon start' to see why")
    try:
        connect_unix(path).close()
    except OSError as error:
        raise UnavailableError(f"the daemon was started, but does not answer at {path}: {error.strerror}", "see 'flotilla logs daemon'") from None
    return path
