"""The replay client against a scripted server: what it sends, when, and what it makes of every answer."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from suite import replay as replaying
from suite.content import Content
from suite.dialect import CLIENT, Replies, body, never_fits
from suite.replay import Replayed, Target, replay
from suite.results import STREAM_COLUMNS
from suite.trace import Header, Request, Segment, Trace, checked
from tests.mock_server import MockServer, Reply

CONTENT = Content(3, 1000)
TOO_LONG = "This model's maximum context length is 64 tokens. However, you requested 99 tokens."


def request(id: str, arrival: float = 0.0, *, after: tuple[str, ...] = (), **more: Any) -> Request:
    """A request of six own tokens and the replies of those it comes after; it asks for three."""
    prompt = (Segment(f"own:{id}", 6), *(Segment(f"reply:{parent}", 3) for parent in after))
    return Request(id, more.pop("client", "alice"), arrival, prompt, 3, after=after, **more)


def trace_of(*requests: Request) -> Trace:
    return checked(Trace(Header("test", 3, "test"), requests))


def replayed(trace: Trace, server: MockServer, **options: Any) -> Replayed:
    """The trace replayed in vLLM's dialect, unless `target` changes that."""
    changes: Mapping[str, Any] = options.pop("target", {})
    target = replace(Target(server.url, "mock", "vllm", "completions", "tokens"), **changes)
    quiet = {"progress": lambda share, note="": None, "timeout_s": 20.0}
    return replay(trace, CONTENT, target, **(quiet | options))


def rows(result: Replayed) -> dict[str, Any]:
    """The requests' rows by id."""
    return {row.id: row for row in result.requests.itertuples()}


def clients_left() -> list[int]:
    """Client processes that are still running on this machine and belong to this test process."""
    return [pid for pid in _running() if _parent(pid) == os.getpid()]


def _running() -> Iterator[int]:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if b"suite.client_process" in (entry / "cmdline").read_bytes():
                yield int(entry.name)
        except OSError:
            continue


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


@pytest.fixture(autouse=True)
def _no_client_is_left() -> Iterator[None]:
    yield
    assert clients_left() == []


# -- what is sent, and when --------------------------------------------------------------------------------


def test_every_request_goes_out_when_it_is_due_with_the_traces_content():
    requests = [
        request(f"r{i}", 0.05 * i, client=f"client {i % 2}", weight=2.0, priority=i) for i in range(5)
    ]
    with MockServer() as server:
        result = replayed(trace_of(*requests), server)
    asked = server.by_id()
    for sent in requests:
        at, body = asked[sent.id].time - result.start, asked[sent.id].body
        assert at >= sent.arrival
        assert body["prompt"] == CONTENT.prompt(sent, {})
        assert body["max_tokens"] == body["min_tokens"] == 3
        assert body["ignore_eos"] is body["stream"] is True
        assert body["vllm_xargs"] == {
            "client_id": sent.client, "request_id": sent.id, "weight": 2.0, "priority": sent.priority,
        }  # fmt: skip
        assert "return_token_ids" not in body
        row = rows(result)[sent.id]
        assert sent.arrival <= row.arrival <= at
        assert row.send_lag == pytest.approx(row.arrival - sent.arrival)
    assert len(server.asked) == 5


def test_the_frames_hold_what_came_back():
    requests = [request("a"), request("b", session="s", client="[bold]bob")]
    with MockServer({"b": Reply(cached=4, together=3)}) as server:
        result = replayed(trace_of(*requests), server)
    assert list(result.requests.columns) == list(replaying.REQUEST_COLUMNS)
    assert list(result.requests["id"]) == ["a", "b"]
    a, b = rows(result)["a"], rows(result)["b"]
    assert (a.status, a.prompt_tokens, a.output_tokens, a.cached_tokens, a.error) == (
        "finished",
        6,
        3,
        0,
        None,
    )
    assert (b.client, b.session, b.cached_tokens, b.weight) == ("[bold]bob", "s", 4, 1.0)
    assert a.arrival < a.first_token <= a.finish
    assert list(result.streams.columns) == list(STREAM_COLUMNS)
    assert result.streams["time"].is_monotonic_increasing
    assert result.streams.groupby("id")["tokens"].sum().to_dict() == {"a": 3, "b": 3}
    last = result.streams.groupby("id")["time"].max()
    assert last.to_dict() == {"a": a.finish, "b": b.finish}
    one = result.streams[result.streams["id"] == "b"]
    assert list(one["tokens"]) == [3], "three tokens came in one event"


def test_a_chat_is_closed_loop_with_the_engines_own_replies():
    first, second = request("t0"), request("t1", after=("t0",), think=0.2)
    third = request("t2", after=("t1",))
    with MockServer({"t0": Reply(pause=0.01)}) as server:
        result = replayed(trace_of(first, second, third), server)
    asked, found = server.by_id(), rows(result)
    assert [one.id for one in server.asked] == ["t0", "t1", "t2"]
    for id, parent in (("t1", "t0"), ("t2", "t1")):
        reply = server.reply_ids(parent, 3)
        assert asked[id].body["prompt"] == [*CONTENT.segment(f"own:{id}", 6), *reply]
        assert asked[parent].body["return_token_ids"] is True
        assert found[id].prompt_tokens == 9
    assert "return_token_ids" not in asked["t2"].body
    assert found["t1"].arrival >= found["t0"].finish + 0.2
    assert found["t1"].send_lag == pytest.approx(found["t1"].arrival - found["t0"].finish - 0.2)


def test_a_request_waits_for_the_last_of_its_parents_and_for_its_arrival():
    requests = [request("fast"), request("slow"), request("late", 0.5, after=("fast",))]
    requests.append(request("join", after=("fast", "slow"), think=0.05))
    with MockServer({"slow": Reply(pause=0.1)}) as server:
        result = replayed(trace_of(*requests), server)
    found, asked = rows(result), server.by_id()
    assert found["late"].arrival >= 0.5
    assert found["join"].arrival >= max(found["fast"].finish, found["slow"].finish) + 0.05
    replies = [*server.reply_ids("fast", 3), *server.reply_ids("slow", 3)]
    assert asked["join"].body["prompt"][6:] == replies


def test_groups_are_dealt_over_processes_and_the_outcome_is_the_same():
    requests = [request(f"{group}/{turn}", after=(f"{group}/{turn - 1}",) if turn else ())
                for turn in range(3) for group in "abcd"]  # fmt: skip
    outcomes = []
    for processes in (1, 3):
        with MockServer() as server:
            result = replayed(trace_of(*requests), server, processes=processes)
        assert len(server.asked) == 12
        assert result.health["processes"] == len(result.health["cpu_shares"]) == processes
        columns = ["id", "client", "status", "prompt_tokens", "output_tokens", "cached_tokens", "error"]
        outcomes.append(result.requests[columns])
        assert set(result.requests["status"]) == {"finished"}
    pd.testing.assert_frame_equal(*outcomes)


@pytest.mark.parametrize(
    ("client", "header"), [("alice", "alice"), ("Zoë", "Zoë"), ("two\nlines", None), (" padded", None)]
)
def test_a_header_names_the_client_where_it_can(client: str, header: str | None):
    with MockServer() as server:
        result = replayed(trace_of(request("a", client=client)), server)
    (asked,) = server.asked
    assert asked.headers.get(CLIENT) == header
    assert asked.body["vllm_xargs"]["client_id"] == client
    assert list(result.requests["status"]) == ["finished"]


def test_there_are_no_more_processes_than_groups():
    with MockServer() as server:
        result = replayed(trace_of(request("a"), request("b", after=("a",))), server, processes=4)
    assert result.health["processes"] == 1


def test_prompts_of_words_have_the_traces_tokens_replies_included():
    """Ids 0 to 2 are special tokens, which stand in replies only."""
    trace = trace_of(request("a"), request("b", after=("a",)))
    with MockServer() as server:
        server.reply_ids = lambda id, tokens: [0, 2, 9][:tokens]  # type: ignore[method-assign]
        result = replayed(trace, server, target={"prompts": "words"})
    first, second = (server.by_id()[id].body for id in "ab")
    assert first["prompt"] == " ".join(f"w{id}" for id in CONTENT.segment("own:a", 6))
    assert first["return_token_ids"] is True
    assert second["prompt"].split(" ")[6:] == ["<unk>", "</s>", "w9"]
    assert list(result.requests["prompt_tokens"]) == [6, 9]


def test_sglang_behind_anothers_router_is_told_by_its_own_id():
    sent = request("a", client="alice", weight=2.0)
    direct, behind = (
        Target("http://x", "mock", "sglang", "generate", "tokens", peer=peer) for peer in (False, True)
    )
    bodies = [json.loads(body(sent, one, CONTENT, Replies(), wanted=False)) for one in (direct, behind)]
    said = {"client_id": "alice", "request_id": "a", "weight": 2.0, "priority": 0}
    assert bodies[0]["routing_key"] == "alice"
    assert bodies[0]["sampling_params"].pop("custom_params") == said
    assert json.loads(bodies[1]["rid"]) == said
    assert not {"routing_key", "custom_params"} & {*bodies[1], *bodies[1]["sampling_params"]}
    assert bodies[0]["sampling_params"] == bodies[1]["sampling_params"]


# -- other dialects ----------------------------------------------------------------------------------------


def test_the_openai_dialect_keeps_to_standard_fields_and_takes_any_length():
    trace = trace_of(request("a", client="alice"), request("b", client="bob", after=("a",)))
    target = {"dialect": "openai", "prompts": "text"}
    script = {"alice": Reply(tokens=2, cached=None), "bob": Reply(cached=None)}
    with MockServer(script) as server:
        result = replayed(trace, server, target=target)
    body = server.by_id()["alice"].body
    standard = {"model", "prompt", "max_tokens", "temperature", "stream", "stream_options", "user"}
    assert set(body) == standard
    assert body["prompt"] == CONTENT.prompt_text(trace.requests[0], {})
    reply = "".join(f" t{id}" for id in server.reply_ids("alice", 2))
    assert server.by_id()["bob"].body["prompt"] == CONTENT.prompt_text(trace.requests[1], {"a": reply})
    a = rows(result)["a"]
    assert (a.status, a.output_tokens, a.cached_tokens) == ("finished", 2, 0)
    assert result.health["cached_tokens_reported"] is False


def test_a_chat_goes_out_as_messages_and_its_role_is_no_token():
    trace = trace_of(request("a"), request("b", after=("a",)))
    trace = trace_of(trace.requests[0], replace(trace.requests[1], prompt=(
        Segment("own:a", 6), Segment("reply:a", 3), Segment("more", 2))))  # fmt: skip
    with MockServer({"a": Reply(pause=0.02)}) as server:
        result = replayed(trace, server, target={"route": "chat", "prompts": "text"})
    assert {asked.path for asked in server.asked} == {"/v1/chat/completions"}
    messages = server.by_id()["b"].body["messages"]
    reply = "".join(f" t{id}" for id in server.reply_ids("a", 3))
    assert messages[1] == {"role": "assistant", "content": reply}
    a = result.streams[result.streams["id"] == "a"]
    assert a["tokens"].sum() == 3
    assert rows(result)["a"].first_token - rows(result)["a"].arrival >= 0.02, "the role came 20 ms before"


def test_a_server_that_counts_nothing_is_taken_at_one_token_an_event():
    with MockServer({"alice": Reply(tokens=2, end="uncounted")}) as server:
        result = replayed(trace_of(request("a")), server, target={"dialect": "openai", "prompts": "text"})
    assert (rows(result)["a"].status, rows(result)["a"].output_tokens) == ("finished", 2)
    assert result.health["output_tokens_counted"] is False


def test_a_reply_without_a_token_begins_and_ends_with_its_end():
    with MockServer({"alice": Reply(tokens=0)}) as server:
        result = replayed(trace_of(request("a")), server, target={"dialect": "openai", "prompts": "text"})
    a = rows(result)["a"]
    assert (a.status, a.output_tokens) == ("finished", 0)
    assert a.arrival < a.first_token == a.finish
    assert result.streams.empty


# -- what goes wrong ---------------------------------------------------------------------------------------


def test_every_bad_end_is_told_and_what_comes_after_it_is_cancelled():
    script = {
        "never fits": Reply(400, TOO_LONG),
        "bad": Reply(400, "unknown field"),
        "overloaded": Reply(503, "try later"),
        "cut": Reply(end="nothing"),
        "reset": Reply(end="reset", pause=0.01),
        "short": Reply(tokens=2),
        "engine": Reply(end="error"),
    }
    bad = [request(id) for id in script]
    children = [request(f"after {id}", after=(id,)) for id in script]
    grandchild = request("after after cut", after=("after cut",))
    with MockServer(script) as server:
        result = replayed(trace_of(*bad, *children, grandchild, request("good")), server)
    found = rows(result)
    assert {id: (found[id].status, found[id].error) for id in script} == {
        "never fits": ("rejected", f"HTTP 400: {TOO_LONG}"),
        "bad": ("failed", "HTTP 400: unknown field"),
        "overloaded": ("failed", "HTTP 503: try later"),
        "cut": ("failed", "the reply was cut: its stream ended without [DONE]"),
        "reset": ("failed", "the reply was cut: the connection broke"),
        "short": ("failed", "2 tokens came of the 3 asked for"),
        "engine": ("failed", "engine dead"),
    }
    assert {found[child.id].status for child in (*children, grandchild)} == {"cancelled"}
    assert found["after cut"].error == "'cut', which it comes after, was failed"
    assert math.isnan(found["after cut"].arrival)
    assert (found["good"].status, len(server.asked)) == ("finished", 8)
    assert (found["reset"].output_tokens, math.isnan(found["reset"].finish)) == (3, True)
    assert found["reset"].first_token > found["reset"].arrival


@pytest.mark.parametrize(
    ("status", "said", "is_length"),
    [
        (400, "The decoder prompt (length 99) is longer than the maximum model length of 64.", True),
        (400, "min_tokens must be less than or equal to max_tokens=4, got 50.", True),
        (400, "Requested token count exceeds the model's maximum context length of 64 tokens.", True),
        (413, "Request Entity Too Large", True),
        (400, "temperature must be non-negative", False),
        (500, "the context length is unknown", False),
    ],
)
def test_a_refusal_for_length_is_told_from_others(status: int, said: str, is_length: bool):
    assert never_fits(status, said) is is_length


def test_a_server_that_leaves_out_a_count_of_zero_cached_tokens_has_reported():
    with MockServer({"a": Reply(cached=None), "b": Reply(cached=4)}) as server:
        result = replayed(trace_of(request("a"), request("b")), server)
    assert list(result.requests["cached_tokens"]) == [0, 4]
    assert result.health["cached_tokens_reported"] is True


def test_more_cached_tokens_than_the_prompt_has_are_not_believed():
    with MockServer({"a": Reply(cached=7)}) as server:
        result = replayed(trace_of(request("a")), server)
    told = (rows(result)["a"].status, rows(result)["a"].error)
    assert told == ("failed", "the server counts 7 cached tokens in a prompt of 6")


def test_a_reply_without_end_does_not_fill_the_memory():
    trace = trace_of(request("a"), request("b", after=("a",)))
    with MockServer({"a": Reply(end="endless")}) as server:
        result = replayed(trace, server)
    assert rows(result)["a"].error == "the reply is longer than 64 MiB"
    assert list(result.requests["status"]) == ["failed", "cancelled"]


def test_a_server_that_returns_no_token_ids_cannot_be_fed_back():
    trace = trace_of(request("a"), request("b", after=("a",)))
    with MockServer() as server:
        server.reply_ids = lambda id, tokens: []  # type: ignore[method-assign]
        result = replayed(trace, server)
    assert "return_token_ids" in rows(result)["a"].error
    assert list(result.requests["status"]) == ["failed", "cancelled"]


def test_nobody_listening_is_told_with_the_address():
    with MockServer() as server:
        pass
    result = replayed(trace_of(request("a")), server)
    assert rows(result)["a"].status == "failed"
    assert rows(result)["a"].error == f"{server.url}/v1: cannot connect: Connection refused"


def test_a_reply_that_does_not_end_in_time_fails():
    with MockServer({"a": Reply(end="hang")}) as server:
        result = replayed(trace_of(request("a")), server, timeout_s=0.4)
    a = rows(result)["a"]
    assert (a.status, a.error, a.output_tokens) == ("failed", "no end of the reply after 0.4 s", 3)


def dead_after_answering(server: MockServer) -> str | None:
    """Dead two seconds after the second request has come in: the client has long read what it was sent."""
    dead = len(server.asked) == 2 and time.monotonic() > server.asked[1].time + 2
    return "exit code 9; see server.log" if dead else None


def test_when_the_server_is_dead_the_rest_fails_for_that_reason_and_what_was_measured_is_kept():
    requests = [request("a"), request("hangs"), request("later", 3600.0), request("b", after=("hangs",))]
    with MockServer({"hangs": Reply(end="hang")}) as server:
        result = replayed(trace_of(*requests), server, alive=lambda: dead_after_answering(server))
    found = rows(result)
    assert (found["a"].status, found["a"].output_tokens) == ("finished", 3)
    assert [found[id].status for id in ("hangs", "later", "b")] == ["failed"] * 3
    assert {found[id].error for id in ("hangs", "later", "b")} == {"exit code 9; see server.log"}
    assert found["hangs"].output_tokens == 3
    assert math.isnan(found["later"].arrival)


def test_an_interrupt_ends_every_process():
    def interrupted(share: float, note: str = "") -> None:
        assert len(clients_left()) == 2
        raise KeyboardInterrupt

    with MockServer({"a": Reply(end="hang")}) as server, pytest.raises(KeyboardInterrupt):
        replayed(trace_of(request("a"), request("b")), server, processes=2, progress=interrupted)


def test_a_client_process_that_dies_makes_the_run_invalid():
    def kill(share: float, note: str = "") -> None:
        for pid in clients_left():
            os.kill(pid, signal.SIGKILL)

    with MockServer({"a": Reply(end="hang")}) as server:
        result = replayed(trace_of(request("a")), server, progress=kill)
    assert rows(result)["a"].error == "its client process ended before it"
    assert any("1 of 1 processes ended early" in reason for reason in result.invalid)


def test_killing_the_suite_takes_its_clients_along_and_leaves_the_journal(tmp_path: Path):
    journal = tmp_path / "client.jsonl"
    with MockServer({"hangs": Reply(end="hang")}) as server:
        code = (
            "import sys; from pathlib import Path; from tests.test_replay import *\n"
            f"target = Target({server.url!r}, 'mock', 'vllm', 'completions', 'tokens')\n"
            "replay(trace_of(request('a'), request('hangs')), CONTENT, target, timeout_s=60,\n"
            f"       progress=lambda share, note='': None, journal=Path({str(journal)!r}))\n"
        )
        root = Path(__file__).parents[1]
        suite = subprocess.Popen([sys.executable, "-c", code], cwd=root)
        try:
            _until(lambda: journal.exists() and b"\n" in journal.read_bytes())
            (client,) = (pid for pid in _running() if _parent(pid) == suite.pid)
        finally:
            suite.kill()
            suite.wait()
        _until(lambda: client not in set(_running()))
    (line,) = journal.read_text().splitlines()
    assert json.loads(line)["id"] == "a"


def _until(true: Any) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# -- what is kept and said ---------------------------------------------------------------------------------


def test_the_journal_has_a_line_for_each_request_that_ended(tmp_path: Path):
    requests = [request("a"), request("b", 0.1), request("bad"), request("c", after=("bad",))]
    journal = tmp_path / "logs" / "client.jsonl"
    with MockServer({"bad": Reply(500, "no")}) as server:
        result = replayed(trace_of(*requests), server, journal=journal)
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [line["id"] for line in lines if line["status"] == "finished"] == ["a", "b"]
    for line in lines:
        row = rows(result)[line["id"]]
        for column, value in line.items():
            known = getattr(row, column)
            assert value == (None if isinstance(known, float) and math.isnan(known) else known)
    assert len(lines) == 4


def test_a_full_disk_costs_the_journal_and_not_the_run():
    with MockServer() as server:
        result = replayed(trace_of(request("a"), request("b")), server, journal=Path("/dev/full"))
    assert set(result.requests["status"]) == {"finished"}
    assert "/dev/full: journal incomplete: No space left on device" in result.invalid


def test_the_key_goes_to_the_server_and_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SUITE_API_KEY", "sk-secret")
    journal = tmp_path / "client.jsonl"
    with MockServer({"bad": Reply(401, "key sk-secret is wrong")}) as server:
        result = replayed(trace_of(request("a"), request("bad")), server, journal=journal)
    assert {asked.headers["Authorization"] for asked in server.asked} == {"Bearer sk-secret"}
    assert rows(result)["bad"].error == "HTTP 401: key *** is wrong"
    kept = journal.read_text() + result.requests.to_csv() + result.streams.to_csv() + str(result)
    assert "sk-secret" not in kept


def test_progress_says_how_far_it_is():
    said: list[tuple[float, str]] = []
    with MockServer({"bad": Reply(500, "no")}) as server:
        replayed(trace_of(request("a"), request("bad")), server, progress=lambda *word: said.append(word))
    share, note = said[-1]
    assert share == 1.0
    assert note.startswith("2 of 2 done, 1 failed, lag ")
    assert [share for share, _ in said] == sorted(share for share, _ in said)


def test_a_late_client_makes_the_run_invalid(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(replaying, "LATE", -1.0)
    with MockServer() as server:
        result = replayed(trace_of(request("a")), server)
    assert any(reason.startswith("client late: send lag P99") for reason in result.invalid)
    assert set(result.requests["status"]) == {"finished"}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, None),
        ({"send_lag_p99_s": 0.051}, "client late: send lag P99 51 ms, more than 50 ms"),
        ({"loop_lag_p99_s": 0.2}, "client late: loop lag P99 200 ms, more than 50 ms"),
        ({"cpu_shares": [0.2, 0.95]}, "client saturated: 95% of a core, more than 90%"),
    ],
)
def test_lateness_and_saturation_are_judged_by_number(changed: dict[str, Any], told: str | None):
    sound = {"send_lag_p99_s": 0.05, "loop_lag_p99_s": 0.05, "cpu_shares": [0.9, 0.1]}
    reasons = list(replaying.judged(sound | changed))
    assert [reason.partition(";")[0] for reason in reasons] == ([told] if told else [])
