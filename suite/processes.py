"""Servers that the suite starts, and that end with it: on return, error, Ctrl-C, SIGTERM, even kill -9.

Every server runs below a warden, a process that holds the reading end of a pipe from us; see `suite.warden`.
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from suite import warden
from suite.errors import BadInput
from suite.files import writing

GRACE = 10.0
"""Seconds a server has to end by itself after SIGTERM, before it is killed."""

_PATIENCE = 15.0
"""Seconds beyond that in which the warden must have ended everything."""

_TAIL = 64 * 1024
"""Bytes at the end of a log in which its last words are looked for."""

_PREFIX = re.compile(r"\x1b\[[0-9;]*m|^\(\w+( pid=\d+)?\) |(ERROR|CRITICAL) \d\d-\d\d [\d:]+ \[[^\]]*\] ")
"""What logs put in front of a message."""
_ERROR = re.compile(r"[\w.]*(Error|Exception)(: |$)|(?!DEBUG|INFO|WARNING).*\berror: ")
"""The last line of a traceback, or the word of a program that ends."""
_HOLLOW = re.compile(r"root cause|core initialization failed", re.IGNORECASE)
"""Errors that only say that there was another."""


class Stoppable(ABC):
    """What runs until `stop` is called, at the latest at the end of a `with` block."""

    @abstractmethod
    def stop(self) -> None:
        """End it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Server(Stoppable):
    """A running server.

    `command` is started at once with the environment variables `variables` and nothing else of ours, its
    output goes into the file `log`. Ends everything the command started by `stop`, at the end of a
    `with` block, or with this process. Raises `BadInput` if the log cannot be written.
    """

    def __init__(
        self, command: Sequence[str], variables: Mapping[str, str], log: Path, *, grace: float = GRACE
    ) -> None:
        self.log = log
        self._grace = grace
        with writing(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            output = log.open("wb")
        with output:
            self._warden = subprocess.Popen(
                [sys.executable, "-I", warden.__file__, str(grace), *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(variables),
                start_new_session=True,
            )
        atexit.register(self.stop)

    def alive(self) -> str | None:
        """None while it runs, else how it ended and the most telling line of its log."""
        ended = _exit_code(self._warden)
        if ended is None:
            return None
        telling = last_words(self.log)
        return f"{_ending(ended)}{f': {telling}' if telling else ''} (log: {self.log})"

    def stop(self) -> None:
        """End it and all it has started, and return when nothing of it is left."""
        if self._warden.returncode is not None:
            return
        assert self._warden.stdin is not None
        self._warden.stdin.close()
        until = time.monotonic() + self._grace + _PATIENCE
        while _exit_code(self._warden) is None and time.monotonic() < until:
            time.sleep(0.02)
        self._sweep()
        self._warden.wait()
        atexit.unregister(self.stop)

    def _sweep(self) -> None:
        """Kill what is left in the warden's session: something only if the warden was killed itself.

        It is not reaped yet, so that no other process can have its number.
        """
        until = time.monotonic() + _PATIENCE
        while (left := self._left()) and time.monotonic() < until:
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=1)

    def _left(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if self._is_left(process)]

    def _is_left(self, process: psutil.Process) -> bool:
        try:
            ours = os.getsid(process.pid) == self._warden.pid
            return ours and process.status() != psutil.STATUS_ZOMBIE
        except (ProcessLookupError, psutil.NoSuchProcess):
            return False


def last_words(log: Path) -> str:
    """The most telling line near the end of a log: its last error that has a cause of its own, if any."""
    lines = _tail(log)
    errors = [i for i, line in enumerate(lines) if _ERROR.match(line)]
    causes = [i for i in errors if not _HOLLOW.search(lines[i])]
    if not errors:
        return ""
    at = (causes or errors)[-1]
    more = 2 if "validation error" in lines[at] else 1  # pydantic says what is wrong in the next line
    return " ".join(lines[at : at + more])


def _tail(log: Path) -> list[str]:
    """The lines near the end of a log, without what stands in front of a message."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [_PREFIX.sub("", line).strip() for line in text.splitlines()]


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_port(port: int) -> None:
    """Raise `BadInput` naming the port if somebody listens on it, or it may not be used."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise BadInput(f"port {port}: cannot be used: {reason}; choose another") from None


def _exit_code(process: subprocess.Popen[bytes]) -> int | None:
    """The exit code of a process that is over, which is not reaped by this; negative for a signal."""
    if process.returncode is not None:
        return process.returncode
    found = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def _ending(code: int) -> str:
    """Exit codes above 128 are the warden's for a signal; a negative one is its own death."""
    number = -code if code < 0 else code - 128
    if number in list(signal.Signals):
        return f"was killed by {signal.Signals(number).name}"
    return f"exited with code {code}"
