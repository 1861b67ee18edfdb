"""Servers end with the suite, however either of them ends, and say how they ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from suite import processes
from suite.errors import BadInput
from suite.processes import Server

GRACE = 0.5

SERVER = """
    import os, signal, sys, time

    def write_pid(name):
        open(name + ".draft", "w").write(str(os.getpid()))
        os.rename(name + ".draft", name)

    def stubborn(name, leave=False):
        if os.fork():
            return
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if leave:
            os.setsid()
        write_pid(name)
        time.sleep(600)

    os.chdir(sys.argv[1])
    stubborn("child")
    stubborn("stray", leave="stray" in sys.argv)
    if "deaf" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    write_pid("server")
    print("up", flush=True)
    time.sleep(600)
"""

SUITE = """
    import os, signal, sys, time
    from pathlib import Path
    from suite.processes import Server

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder = Path(sys.argv[1])
    command = [sys.executable, str(folder / "server.py"), str(folder)]
    server = Server(command, os.environ, folder / "log", grace=0.5)
    if sys.argv[2] == "raise":
        while not (folder / "server").exists():
            time.sleep(0.01)
        raise RuntimeError("boom")
    time.sleep(600)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts the stubborn server; afterwards nothing of it may be left."""
    started: list[Server] = []

    def start(*words: str) -> Server:
        script = write(tmp_path / "server.py", SERVER)
        started.append(
            Server(
                [sys.executable, str(script), str(tmp_path), *words],
                os.environ,
                tmp_path / "log",
                grace=GRACE,
            )
        )
        until(lambda: all((tmp_path / name).exists() for name in ("server", "child", "stray")))
        return started[-1]

    yield start
    for one in started:
        one.stop()
    assert pids(tmp_path) == set()


def write(path: Path, code: str) -> Path:
    path.write_text(textwrap.dedent(code))
    return path


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


def pids(folder: Path) -> set[int]:
    """Processes whose command line names the folder."""
    return {
        process.pid
        for process in psutil.process_iter(["cmdline", "status"])
        if str(folder) in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE
    }


def pid(folder: Path, name: str) -> int:
    return int((folder / name).read_text())


def warden_of(folder: Path) -> int:
    return psutil.Process(pid(folder, "server")).ppid()


def test_stop_ends_the_server_and_what_it_started(server: Callable[..., Server], tmp_path: Path):
    running = server()
    assert running.alive() is None
    assert len(pids(tmp_path)) == 4, "warden, server, child, stray"
    running.stop()
    assert pids(tmp_path) == set()
    running.stop()


def test_stop_ends_a_server_that_ignores_the_request_to_end(server: Callable[..., Server], tmp_path: Path):
    server("deaf").stop()
    assert pids(tmp_path) == set()


def test_a_process_that_left_the_session_is_ended_too(server: Callable[..., Server], tmp_path: Path):
    running = server("stray")
    stray = pid(tmp_path, "stray")
    assert os.getsid(stray) == stray
    running.stop()
    assert pids(tmp_path) == set()


def test_what_a_dead_server_leaves_is_ended_at_once(server: Callable[..., Server], tmp_path: Path):
    running = server()
    os.kill(pid(tmp_path, "server"), signal.SIGKILL)
    until(lambda: pids(tmp_path) == set())
    assert running.alive() == f"was killed by SIGKILL (log: {tmp_path / 'log'})"


def test_a_killed_warden_takes_the_server_with_it_and_stop_the_rest(
    server: Callable[..., Server], tmp_path: Path
):
    running = server()
    os.kill(warden_of(tmp_path), signal.SIGKILL)
    until(lambda: running.alive() is not None)
    until(lambda: pid(tmp_path, "server") not in pids(tmp_path))
    assert pid(tmp_path, "child") in pids(tmp_path), "else there is nothing to sweep"
    running.stop()
    assert pids(tmp_path) == set()


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None], ids=str)
def test_the_server_ends_with_the_suite(ending: signal.Signals | None, tmp_path: Path):
    write(tmp_path / "server.py", SERVER)
    script = write(tmp_path / "main.py", SUITE)
    how = "sleep" if ending else "raise"
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), how], stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        if ending:
            until(lambda: (tmp_path / "server").exists())
            os.killpg(process.pid, ending)
        assert process.wait(20) != 0
        until(lambda: pids(tmp_path) == set())
        assert "up" in (tmp_path / "log").read_text()
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise SystemExit(3)", "exited with code 3"),
        ("import os; os.abort()", "was killed by SIGABRT"),
        ("{}['key']", "exited with code 1: KeyError: 'key'"),
    ],
)
def test_a_server_that_is_over_says_how_it_ended(code: str, told: str, tmp_path: Path):
    log = tmp_path / "logs" / "log"
    with Server([sys.executable, "-c", code], os.environ, log) as server:
        until(lambda: server.alive() is not None)
        assert server.alive() == f"{told} (log: {log})"


def test_a_command_that_cannot_be_started_is_told(tmp_path: Path):
    with Server([str(tmp_path / "none")], os.environ, tmp_path / "log") as server:
        until(lambda: server.alive() is not None)
        assert "none: cannot be started: No such file or directory" in str(server.alive())


def test_the_server_sees_the_given_variables_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SUITE_SECRET", "x")
    code = "import os; print({key for key in os.environ if key.startswith('SUITE_')})"
    with Server([sys.executable, "-c", code], {"SUITE_GIVEN": "1"}, tmp_path / "log") as server:
        until(lambda: server.alive() is not None)
    assert (tmp_path / "log").read_text() == "{'SUITE_GIVEN'}\n"


def test_a_log_that_cannot_be_written_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="file/log: cannot be written: "):
        Server(["true"], {}, tmp_path / "file" / "log")


def test_the_last_words_are_those_of_the_cause(tmp_path: Path):
    log = tmp_path / "log"
    log.write_text(
        "INFO 11-21 05:00:00 [api.py:1] all is well\n"
        "(EngineCore pid=7) ERROR 11-21 05:00:01 [core.py:2] ValueError: No room for \x1b[31mthe cache\n"
        "(EngineCore pid=7) Process EngineCore:\n"
        "(APIServer pid=6) RuntimeError: Engine core initialization failed. See root cause above.\n"
        "bye\n"
    )
    assert processes.last_words(log) == "ValueError: No room for the cache"
    log.write_text("fine\nRuntimeError: Engine core initialization failed. See root cause above.\n")
    assert processes.last_words(log).startswith("RuntimeError: Engine core")
    log.write_text("pydantic.ValidationError: 1 validation error for C\n  Value error, no such model\n\n")
    assert processes.last_words(log).endswith("1 validation error for C Value error, no such model")
    log.write_text("WARNING 11-21 05:00:00 [a.py:1] This can cause `OSError: too many files`, error: none\n")
    assert processes.last_words(log) == ""
    assert processes.last_words(tmp_path / "none") == ""


def test_a_free_port_can_be_used_and_a_taken_one_is_refused():
    port = processes.free_port()
    processes.check_port(port)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(BadInput, match=f"port {port}: cannot be used: Address already in use; choose"):
            processes.check_port(port)
    with pytest.raises(BadInput, match="port 70000: cannot be used"):
        processes.check_port(70000)
