"""Stand-ins for engines, installed where the suite looks for engines, and what tests ask of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from suite import environments
from suite.backends.base import KEPT
from suite.trace import Header, Request, Segment, Trace, checked

SUITE = Path(sys.executable).with_name("suite")


def environment(engine: str, version: str, root: Path) -> Path:
    """Make the environment of a stand-in for an engine below `root`, and return `root`."""
    python = root / f"{engine}-{version}-cpu" / "bin" / "python"
    python.parent.mkdir(parents=True)
    script = Path(__file__).with_name(f"fake_{engine}.py")
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    python.chmod(0o755)
    marker = {"engine": engine, "version": version, "device": "cpu", "torch": "none"}
    (python.parents[1] / environments.MARKER).write_text(json.dumps(marker))
    return root


@contextmanager
def installed(engines: Path, folder: Path) -> Iterator[None]:
    (folder / "tmp").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUITE_ENGINES", str(engines))
        patch.setenv("TMPDIR", str(folder / "tmp"))
        patch.setattr(tempfile, "tempdir", None)
        for limit in ("LATE", "SLUGGISH"):  # others may be at work on this machine
            patch.setattr(f"suite.replay.{limit}", 60.0)
        yield
        KEPT.close()
        assert running() == []


def running() -> list[int]:
    """The stand-ins that run, and their wardens: processes that were given something of the environment."""
    root = os.environ["SUITE_ENGINES"]
    return [
        process.pid
        for process in psutil.process_iter(["cmdline", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE
        and any(word.startswith(root) for word in process.info["cmdline"] or ())
    ]


def fake_pids() -> list[int]:
    """The stand-ins themselves."""
    return [pid for pid in running() if any("/fake_" in word for word in psutil.Process(pid).cmdline())]


def a_trace(requests: int = 8, output_tokens: int = 5, too_long: bool = False) -> Trace:
    """Two clients that share a document; the last request follows up on the first, if it is not too long."""
    document = Segment("document", 100)
    made = [
        Request(f"r{i}", "ab"[i % 2], 0.02 * i, (document, Segment(f"question-{i}", 10)), output_tokens)
        for i in range(requests)
    ]
    if too_long:
        made.append(Request("long", "b", 0.1, (Segment("book", 2000),), 5))
    else:
        reply = Segment("reply:r0", output_tokens)
        made.append(Request("next", "a", 0.0, (document, Segment("question-0", 10), reply), 3, after=("r0",)))
    return checked(Trace(Header("test", 7, "by hand"), tuple(made)))


def quiet(share: float, note: str = "") -> None:
    pass


def told(logs: Path) -> dict[str, Any]:
    """What the stand-in was started with."""
    found: dict[str, Any] = json.loads((logs / "server.log").read_text().splitlines()[0])
    return found


def flags(logs: Path) -> dict[str, str]:
    """The flags among them, each with its value, empty if it has none."""
    words = [*told(logs)["arguments"][1:], "--"]
    pairs = [(flag, value) for flag, value in pairwise(words) if flag.startswith("--")]
    return {flag: "" if value.startswith("--") else value for flag, value in pairs}


def session_of(session: int) -> list[int]:
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getsid(process.pid) == session and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except ProcessLookupError:
            pass
    return found


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


def serving(*words: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [SUITE, "serve", "--model", "tiny", "--set", "kv_tokens=1024", "--logs", folder, *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def url_of(process: subprocess.Popen[str]) -> str:
    """The root of the server's API, once it is up."""
    assert process.stdout is not None
    lines = {}
    for line in process.stdout:
        key, _, value = line.partition(" ")
        lines[key] = value.strip()
        if "Ctrl-C ends it" in line:
            return lines["url:"].removesuffix("/v1")
    raise AssertionError(process.communicate())


def served(
    *words: str, folder: Path, use: Callable[[str], object], ending: signal.Signals = signal.SIGINT
) -> tuple[int, str, str]:
    """Serve, let `use` do what it likes with the URL, then send the signal: exit code and both outputs."""
    process = serving(*words, folder=folder)
    try:
        use(url_of(process))
        process.send_signal(ending)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    return process.returncode, out, err


def rows_of(out: str) -> list[list[str]]:
    """The rows of the table that `suite serve` ends with, below its head."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
