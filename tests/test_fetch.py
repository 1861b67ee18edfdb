"""Public traces are downloaded whole and right, or not at all: against a server of the test's own."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from fcntl import LOCK_EX, flock
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from suite import fetch as fetching
from suite.errors import BadInput
from suite.fetch import File, PublicTrace, fetch, named, registry

SUITE = Path(sys.executable).with_name("suite")
CONTENT = random.Random(0).randbytes(300_000)
NO_PAUSES = (0.0, 0.0)


@dataclass
class Published:
    """A server that has one file, and how it behaves."""

    url: str = ""
    content: bytes = CONTENT
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    """After so many bytes it hangs up, once for each entry."""
    errors: list[int] = field(default_factory=list)
    """What it says instead, once for each entry."""
    slow: float = 0.0
    """Seconds between pieces of 1,000 bytes."""
    asked: list[str | None] = field(default_factory=list)
    """The ranges it was asked for."""


class _Handler(BaseHTTPRequestHandler):
    published: Published

    def do_GET(self) -> None:
        told = self.published
        told.asked.append(self.headers["Range"])
        if told.errors:
            self.send_error(told.errors.pop(0))
            return
        begin = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "bytes=0-")[1])  # type: ignore[index]
        begin = begin if told.ranges else 0
        if begin >= len(told.content):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(told.content) - begin))
        self.end_headers()
        end = begin + told.cuts.pop(0) if told.cuts else len(told.content)
        for at in range(begin, end, 1000) if told.slow else [begin]:
            self.wfile.write(told.content[at : min(at + 1000, end) if told.slow else end])
            time.sleep(told.slow)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Published]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    published = Published()
    handler = type("Handler", (_Handler,), {"published": published})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        published.url = f"http://127.0.0.1:{listening.server_port}/trace.csv"
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield published
        listening.shutdown()
        thread.join()


def file(server: Published) -> File:
    digest = sha256(CONTENT).hexdigest()
    return File(path="maker/trace.csv", url=server.url, sha256=digest, bytes=len(CONTENT))


def fetched(server: Published, folder: Path) -> tuple[Path, bool]:
    return fetch(file(server), folder, lambda done: None, NO_PAUSES)


def refused(server: Published, folder: Path) -> str:
    with pytest.raises(BadInput) as caught:
        fetched(server, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def left(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}


# -- transfers ---------------------------------------------------------------------------------------------


def test_a_file_comes_whole_and_says_how_far_it_is(server: Published, tmp_path: Path) -> None:
    heard: list[int] = []
    path, downloaded = fetch(file(server), tmp_path, heard.append)
    assert (path, downloaded) == (tmp_path / "maker/trace.csv", True)
    assert path.read_bytes() == CONTENT
    assert heard == sorted(heard)
    assert heard[-1] == len(CONTENT)
    assert left(tmp_path) == {"trace.csv": len(CONTENT)}
    assert server.asked == [None]


def test_what_is_there_and_right_is_left_alone(server: Published, tmp_path: Path) -> None:
    fetched(server, tmp_path)
    assert fetched(server, tmp_path) == (tmp_path / "maker/trace.csv", False)
    assert len(server.asked) == 1


@pytest.mark.parametrize("other", [b"mine", CONTENT[:-1] + b"x"])
def test_what_is_there_and_wrong_is_left_alone_too(server: Published, tmp_path: Path, other: bytes) -> None:
    path = tmp_path / "maker/trace.csv"
    path.parent.mkdir()
    path.write_bytes(other)
    assert refused(server, tmp_path).startswith(f"{path}: there, but not as published; move it away")
    assert path.read_bytes() == other
    assert server.asked == []


def test_a_transfer_that_breaks_off_goes_on_where_it_was(server: Published, tmp_path: Path) -> None:
    server.cuts = [100_000, 50_000]
    path, _ = fetched(server, tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_a_server_without_ranges_is_asked_from_the_start(server: Published, tmp_path: Path) -> None:
    server.cuts, server.ranges = [100_000], False
    assert fetched(server, tmp_path)[0].read_bytes() == CONTENT


def test_what_came_before_it_gave_up_is_kept_for_the_next_time(server: Published, tmp_path: Path) -> None:
    server.cuts = [100_000, 10_000, 10_000]
    message = refused(server, tmp_path)
    assert message.startswith(f"{server.url}: broke off after 120,000 of 300,000 bytes: ")
    assert left(tmp_path) == {"trace.csv.part": 120_000}
    assert fetched(server, tmp_path)[0].read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=120000-"
    assert left(tmp_path) == {"trace.csv": len(CONTENT)}


def test_a_part_that_is_whole_needs_no_server(server: Published, tmp_path: Path) -> None:
    (tmp_path / "maker").mkdir()
    (tmp_path / "maker/trace.csv.part").write_bytes(CONTENT)
    assert fetched(server, tmp_path)[0].read_bytes() == CONTENT
    assert server.asked == []


def test_a_part_that_is_too_long_is_thrown_away(server: Published, tmp_path: Path) -> None:
    (tmp_path / "maker").mkdir()
    (tmp_path / "maker/trace.csv.part").write_bytes(CONTENT + b"x")
    assert fetched(server, tmp_path)[0].read_bytes() == CONTENT


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"x", CONTENT + b"x" * 3_000_000])
def test_what_is_not_the_published_file_is_thrown_away(
    server: Published, tmp_path: Path, content: bytes
) -> None:
    server.content = content
    assert refused(server, tmp_path).startswith(f"{server.url}: what came is not the published file")
    assert left(tmp_path) == {}


def test_a_shorter_file_is_not_the_published_one(server: Published, tmp_path: Path) -> None:
    """Such as the pointer that a forge gives out in the place of a large file."""
    server.content = CONTENT[:130]
    message = f"{server.url}: what came is not the published file (it has 130 bytes, not 300,000)"
    assert refused(server, tmp_path).startswith(message)
    assert left(tmp_path) == {}
    assert server.asked == [None]


def test_a_part_that_the_server_cannot_go_on_from_is_begun_anew(server: Published, tmp_path: Path) -> None:
    (tmp_path / "maker").mkdir()
    (tmp_path / "maker/trace.csv.part").write_bytes(CONTENT[:200])
    server.content = CONTENT[:130]
    assert "it has 130 bytes" in refused(server, tmp_path)
    assert server.asked == ["bytes=200-", None]
    assert left(tmp_path) == {}


def test_two_at_once_do_not_write_into_one_another(server: Published, tmp_path: Path) -> None:
    part = tmp_path / "maker/trace.csv.part"
    part.parent.mkdir()
    with part.open("wb") as other:
        flock(other, LOCK_EX)
        other.write(CONTENT[:1000])
        other.flush()
        assert refused(server, tmp_path) == f"{part}: another download writes to it; wait for its end"
    assert left(tmp_path) == {"trace.csv.part": 1000}
    assert fetched(server, tmp_path)[0].read_bytes() == CONTENT


@pytest.mark.parametrize("host", ["a..b", "[::1", "127.0.0.1:port"])
def test_a_url_of_no_host_is_refused(server: Published, tmp_path: Path, host: str) -> None:
    nowhere = file(server).model_copy(update={"url": f"http://{host}/trace.csv"})
    with pytest.raises(BadInput, match=r"no such server: .*; download it by hand"):
        fetch(nowhere, tmp_path, lambda done: None)


def test_errors_of_the_moment_are_tried_again(server: Published, tmp_path: Path) -> None:
    server.errors = [503, 429]
    assert fetched(server, tmp_path)[0].read_bytes() == CONTENT
    server.errors = [500, 500, 500]
    assert refused(server, tmp_path / "other").startswith(
        f"{server.url}: broke off after 0 of 300,000 bytes: the server says 500"
    )


def test_a_file_that_is_gone_is_not_asked_for_twice(server: Published, tmp_path: Path) -> None:
    server.errors = [404]
    assert refused(server, tmp_path) == (
        f"{server.url}: the server says 404 Not Found; download it by hand to {tmp_path}/maker/trace.csv"
    )
    assert len(server.asked) == 1


def test_no_network_is_said_plainly(server: Published, tmp_path: Path) -> None:
    nowhere = file(server).model_copy(update={"url": "http://127.0.0.1:9/trace.csv"})
    with pytest.raises(BadInput) as caught:
        fetch(nowhere, tmp_path, lambda done: None)
    assert re.fullmatch(
        r"http://127\.0\.0\.1:9/trace\.csv: no network, or no such server: .*refused; "
        rf"download it by hand to {tmp_path}/maker/trace\.csv",
        str(caught.value),
    )
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_falls_silent_is_left(
    server: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "PATIENCE", 0.1)
    server.slow = 1.0
    assert "broke off after" in refused(server, tmp_path)
    assert left(tmp_path)["trace.csv.part"] >= 1000


# -- the registry ------------------------------------------------------------------------------------------


def written(server: Published, folder: Path) -> Path:
    about = {"what": "a trace", "source": "[red]maker\x1b[2J", "licence": "MIT", "cite": "nobody"}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"traces": {"mine": {**about, "files": [file(server).model_dump()]}}}))
    return path


PINNED = (
    r"https://(raw\.githubusercontent\.com|media\.githubusercontent\.com/media)/[\w-]+/[\w-]+/[0-9a-f]{40}/"
    r"|https://github\.com/[\w-]+/[\w-]+/releases/download/[\w.-]+/"
)


def test_public_traces_are_pinned() -> None:
    known = registry()
    assert {"mooncake-conversation", "azure-2023-conversation", "burstgpt-2", "qwen-bailian-coder"} <= set(
        known
    )
    paths = [one.path for trace in known.values() for one in trace.files]
    assert len(paths) == len(set(paths))
    for one in (one for trace in known.values() for one in trace.files):
        assert re.match(PINNED, one.url)


def test_checksums_are_those_of_the_files_at_hand(traces: Path) -> None:
    files = [one for trace in registry().values() for one in trace.files]
    here = [one for one in files if one.in_folder(traces).is_file()]
    if not here:
        pytest.skip(f"no public trace in {traces}: set SUITE_TRACES to the folder that holds them")
    for one in here:
        assert sha256(one.in_folder(traces).read_bytes()).hexdigest() == one.sha256
        assert one.in_folder(traces).stat().st_size == one.bytes


def test_how_much_of_a_trace_is_here(server: Published, tmp_path: Path) -> None:
    trace: PublicTrace = registry(written(server, tmp_path))["mine"]
    path = tmp_path / "maker/trace.csv"
    assert trace.here(tmp_path) == "no"
    path.parent.mkdir()
    path.with_name("trace.csv.part").write_bytes(CONTENT[:75_000])
    assert trace.here(tmp_path) == "25%"
    path.write_bytes(CONTENT)
    assert trace.here(tmp_path) == "yes"
    path.write_bytes(b"other")
    assert trace.here(tmp_path) == "not as published"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "abc"}, "traces.mine.files.0.sha256: "),
        ({"url": "http://host/träce"}, "traces.mine.files.0.url: "),
        ({"path": "a\0b"}, "traces.mine.files.0.path: a path below the folder of traces"),
        ({"url": "file:///etc/passwd"}, "traces.mine.files.0.url: "),
        ({"path": "../outside"}, "traces.mine.files.0.path: a path below the folder of traces"),
        ({"path": "/outside"}, "traces.mine.files.0.path: a path below the folder of traces"),
        ({"bytes": 0}, "traces.mine.files.0.bytes: "),
        ({"size": 3}, "traces.mine.files.0.size: unknown key; "),
    ],
)
def test_a_wrong_registry_is_refused_by_field(
    server: Published, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = written(server, tmp_path)
    content = yaml.safe_load(path.read_text())
    content["traces"]["mine"]["files"][0] |= change
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(BadInput) as caught:
        registry(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_unknown_names_are_answered_with_the_nearest(server: Published, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no public trace 'mien'; did you mean 'mine'"):
        named("mien", registry(written(server, tmp_path)))


# -- the command -------------------------------------------------------------------------------------------


def command(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "SUITE_TRACES": str(folder / "traces"), "no_proxy": "127.0.0.1"}
    return subprocess.Popen(
        [SUITE, "workload", "fetch", *arguments, "--registry", folder / "mine.yaml"],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_the_command_lists_and_fetches(server: Published, tmp_path: Path) -> None:
    written(server, tmp_path)
    _, listed, _ = ended(command(tmp_path))
    assert re.search(r"mine +│ a trace +│ 0\.3 MB +│ MIT +│ \[red\]maker.* +│ no ", listed)
    assert "\x1b" not in listed
    path = tmp_path / "traces/maker/trace.csv"
    assert ended(command(tmp_path, "mine"))[:2] == (
        0, f"{path}: downloaded, as published\nlicence: MIT; cite: nobody\n"
    )  # fmt: skip
    assert ended(command(tmp_path, "mine"))[1].startswith(f"{path}: there already, as published\n")
    path.write_bytes(b"other")
    assert ended(command(tmp_path, "mine")) == (
        2, "", f"error: {path}: there, but not as published; move it away to download it anew\n"
    )  # fmt: skip


def test_an_interrupt_leaves_a_part_that_is_gone_on_from(server: Published, tmp_path: Path) -> None:
    written(server, tmp_path)
    server.slow = 0.02
    process = command(tmp_path, "mine")
    part = tmp_path / "traces/maker/trace.csv.part"
    while not (part.is_file() and part.stat().st_size):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    code, _, err = ended(process)
    assert code == 130
    assert "interrupted: what came of maker/trace.csv is kept; the same command goes on from there\n" in err
    kept = part.stat().st_size
    assert 0 < kept < len(CONTENT)
    server.slow = 0.0
    assert ended(command(tmp_path, "mine"))[0] == 0
    assert server.asked == [None, f"bytes={kept}-"]
    assert left(tmp_path / "traces") == {"trace.csv": len(CONTENT)}
