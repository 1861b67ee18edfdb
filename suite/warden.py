"""A process between the suite and a server it has started: the server ends with the suite, however that ends.

    python warden.py GRACE COMMAND...

runs the command with this process's output. When the command is over, or its standard input ends (the suite
is gone), or it gets SIGTERM, it ends the command (SIGTERM, after GRACE seconds SIGKILL) and everything that
came of it, then exits as the command did: its code, or 128 + the signal that killed it.

It is the subreaper of all its descendants: those whose parent dies become its own children, so none escapes
by outliving its parent or by leaving the session. If the warden itself is killed, the kernel kills the
command; what that leaves is in the warden's session, where the suite finds it.

Linux only; imports the standard library only, so that it starts in a moment.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36
"""Of prctl(2)."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
_NOT_STARTED = 127
_PATIENCE = 10.0
"""Seconds that killed processes may take to be gone; one that hangs in a driver may take for ever."""


def main() -> int:
    """Watch over the command of the arguments and return its exit code."""
    grace, command = float(sys.argv[1]), sys.argv[2:]
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    _prctl(_SET_CHILD_SUBREAPER, 1)
    server = _start(command)
    threading.Thread(target=_end_with_input, daemon=True).start()
    code = _wait(server)
    if code is None:
        os.kill(server, signal.SIGTERM)
        code = _wait(server, time.monotonic() + grace, _SIGNALS[2:])
    remains = _end_all(server)
    return remains if code is None else code


def _start(command: list[str]) -> int:
    """Start the command and return its process id."""
    child = os.fork()
    if child:
        return child
    try:
        _prctl(_SET_PDEATHSIG, signal.SIGKILL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.execvp(command[0], command)
    except OSError as error:
        print(f"error: {command[0]}: cannot be started: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(_NOT_STARTED)


def _end_with_input() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _wait(
    server: int, until: float = float("inf"), signals: tuple[signal.Signals, ...] = _SIGNALS
) -> int | None:
    """The server's exit code; None if a signal to end, or the time `until`, came first."""
    while (left := min(until - time.monotonic(), 3600.0)) > 0:
        came = signal.sigtimedwait(signals, left)
        if came is not None and came.si_signo != signal.SIGCHLD:
            return None
        code = _reap(server)
        if code is not None:
            return code
    return None


def _reap(server: int) -> int | None:
    """Reap all children that are dead. The server's exit code, if it was among them."""
    code = None
    while True:
        try:
            child, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if not child:
            return code
        if child == server:
            code = _exit_code(status)


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _end_all(server: int) -> int:
    """Kill whatever is left, generation by generation. The server's exit code, if it was left."""
    code = 128 + signal.SIGKILL
    until = time.monotonic() + _PATIENCE
    while (children := _children()) and time.monotonic() < until:
        for child in children:
            os.kill(child, signal.SIGKILL)
        signal.sigtimedwait(_SIGNALS[2:], 0.1)
        ended = _reap(server)
        code = code if ended is None else ended
    return code


def _children() -> list[int]:
    """This process's children, dead ones that are not reaped included."""
    own = os.getpid()
    return [int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat") if _parent(stat) == own]


def _parent(stat: Path) -> int | None:
    """The parent of a process; None if it is gone meanwhile."""
    try:
        return int(stat.read_bytes().rpartition(b") ")[2].split()[1])
    except (OSError, IndexError):
        return None


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    sys.exit(main())
