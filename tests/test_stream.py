"""Reading a streamed reply: what is counted does not hang on how the network cut it."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suite.stream import Stream, complaint

DONE = "[DONE]"


def event(data: Any) -> bytes:
    return f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()


def token(text: str = " x", **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, **more}]}


def usage(tokens: int, prompt: int = 5, cached: int | None = 2) -> dict[str, Any]:
    told: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": tokens}
    return {"choices": [], "usage": told | {"prompt_tokens_details": {"cached_tokens": cached}}}


def generated(*ids: int, total: int, **more: Any) -> dict[str, Any]:
    """An event of SGLang's own: new token ids, and the counts so far."""
    counts = {"prompt_tokens": 5, "completion_tokens": total, "cached_tokens": 2}
    return {"text": " x", "output_ids": list(ids), "meta_info": counts | {"finish_reason": None} | more}


def delta(**content: str) -> dict[str, Any]:
    return {"choices": [{"delta": content}]}


def fed(*chunks: bytes, chat: bool = False, keep: bool = False) -> Stream:
    """A stream whose chunks came one second apart, from 0 on."""
    stream = Stream(chat=chat, keep=keep)
    for time, chunk in enumerate(chunks):
        stream.feed(chunk, float(time))
    return stream


def rows(stream: Stream) -> list[tuple[float, int]]:
    times, tokens = stream.rows(stream.ending())
    return list(zip(times.tolist(), tokens.tolist(), strict=True))


def test_each_event_is_a_token_and_the_last_two_are_none():
    stream = fed(event(token()), event(token()), event(token()) + event(usage(3)), event(DONE))
    assert rows(stream) == [(0.0, 1), (1.0, 1), (2.0, 1)]
    ending = stream.ending()
    assert (ending.done, ending.error) == (True, None)
    assert (ending.prompt_tokens, ending.output_tokens, ending.cached_tokens) == (5, 3, 2)


def test_several_tokens_in_one_event_are_told_by_the_servers_count():
    stream = fed(event(token("one two")), event(token("three four")), event(usage(4)) + event(DONE))
    assert rows(stream) == [(0.0, 2), (1.0, 2)]


def test_several_events_in_one_chunk_are_one_row():
    stream = fed(event(token()) * 3, event(token()) + event(usage(4)) + event(DONE))
    assert rows(stream) == [(0.0, 3), (1.0, 1)]


def test_the_role_that_opens_a_chat_and_the_reason_that_closes_it_are_no_tokens():
    opening, closing = event(delta(role="assistant", content="")), event(delta())
    chunks = (opening, event(delta(content="a")), event(delta(content="b")), closing, event(usage(2)))
    assert rows(fed(*chunks, event(DONE), chat=True)) == [(1.0, 1), (2.0, 1)]


def test_a_first_chat_event_with_text_is_a_token():
    chunks = (event(delta(role="assistant", content="a")), event(delta(content="b")), event(DONE))
    assert rows(fed(*chunks, chat=True)) == [(0.0, 1), (1.0, 1)]


def test_comments_and_text_that_looks_like_an_event_do_not_count():
    ping, trick = b": ping data: x\n\n", token("\ndata: [DONE]\n\n data: {}")
    stream = fed(ping, event(trick), ping, event(token()), event(usage(2)), event(DONE))
    assert rows(stream) == [(1.0, 1), (3.0, 1)]


def test_without_a_count_each_event_is_a_token():
    stream = fed(event(token()), event(token()), event(DONE))
    assert rows(stream) == [(0.0, 1), (1.0, 1)]
    assert stream.ending().output_tokens is None


def test_a_count_may_come_with_the_last_token():
    stream = fed(event(token()), event(token() | {"usage": {"completion_tokens": 2}}), event(DONE))
    assert rows(stream) == [(0.0, 1), (1.0, 1)]
    assert (stream.ending().output_tokens, stream.ending().cached_tokens) == (2, None)


def test_a_cut_reply_has_no_end_and_its_half_event_no_token():
    stream = fed(event(token()), event(token())[:-9])
    assert rows(stream) == [(0.0, 1)]
    assert not stream.ending().done


def test_an_error_in_the_stream_is_read():
    stream = fed(event(token()), event({"error": {"message": "engine\ndead", "code": 500}}) + event(DONE))
    assert rows(stream) == [(0.0, 1)]
    assert stream.ending().error == "engine dead"


def test_no_error_is_no_error():
    assert fed(event(token()), event(usage(1) | {"error": None}), event(DONE)).ending().error is None


@pytest.mark.parametrize(
    "odd",
    [
        {"usage": [1]},
        {"usage": {"completion_tokens": "7", "prompt_tokens": -1, "prompt_tokens_details": [3]}},
        {"usage": {"completion_tokens": 2**64, "prompt_tokens": 1.5}},
        {"usage": {"prompt_tokens_details": {"cached_tokens": True}}},
        {"choices": 5},
        {"choices": [None]},
        {"choices": {"a": 1}},
        {"choices": [{"delta": "x"}]},
        {"choices": [{"token_ids": 5, "text": 5}]},
        {"choices": [{"token_ids": [2**31, "x"], "delta": {"content": 5}}]},
        {"output_ids": 5, "meta_info": {"cached_tokens": "x", "finish_reason": 5}},
        {"output_ids": ["x"], "meta_info": 5},
        5,
    ],
)  # fmt: skip
@pytest.mark.parametrize("chat", [True, False])
def test_what_no_server_should_send_counts_as_not_sent(odd: Any, chat: bool):
    stream = fed(event(odd), event(DONE), chat=chat, keep=True)
    ending = stream.ending()
    assert (ending.prompt_tokens, ending.output_tokens, ending.cached_tokens) == (None, None, None)
    assert (stream.ids(), stream.text()) == ([], "")
    assert sum(tokens for _, tokens in rows(stream)) <= 1


def test_sglangs_own_events_are_read():
    length = {"type": "length", "length": 4}
    events = (generated(7, total=1), generated(8, 9, total=3), generated(7, total=4, finish_reason=length))
    stream = fed(*map(event, events), event(DONE), keep=True)
    assert stream.ids() == [7, 8, 9, 7]
    ending = stream.ending()
    assert (ending.done, ending.error, ending.status) == (True, None, 0)
    assert (ending.prompt_tokens, ending.output_tokens, ending.cached_tokens) == (5, 4, 2)
    assert sum(tokens for _, tokens in rows(stream)) == 4
    assert [time for time, _ in rows(stream)] == [0.0, 1.0, 2.0]


def test_a_request_that_sglang_gave_up_has_failed():
    reason = {"type": "abort", "message": "Input length (9) exceeds the maximum", "status_code": 400}
    stream = fed(event(generated(7, total=1)), event(generated(total=1, finish_reason=reason)), event(DONE))
    ending = stream.ending()
    assert (ending.error, ending.status) == ("Input length (9) exceeds the maximum", 400)
    assert rows(stream) == [(0.0, 1)]


def test_an_error_may_come_with_a_status():
    ending = fed(event({"error": {"message": "too long", "code": 400}}), event(DONE)).ending()
    assert (ending.error, ending.status, ending.output_tokens) == ("too long", 400, None)


def test_an_empty_stream_is_an_empty_reply():
    assert rows(fed()) == []
    assert rows(fed(event(usage(0)), event(DONE))) == []


def test_a_kept_reply_is_read_as_ids_and_as_text():
    chunks = (event(token(" a", token_ids=[4, 5])), event(token("b", token_ids=[6])), event(usage(3)))
    kept = fed(*chunks, event(DONE), keep=True)
    assert (kept.ids(), kept.text()) == ([4, 5, 6], " ab")
    chat = fed(event(delta(role="assistant")), event(delta(content="Ω")), event(DONE), chat=True, keep=True)
    assert chat.text() == "Ω"


def test_a_long_reply_is_not_kept():
    stream = fed(*[event(token())] * 10_000, event(usage(10_000)) + event(DONE))
    assert len(stream._tail) + sum(map(len, stream._head)) < 10_000
    assert sum(tokens for _, tokens in rows(stream)) == 10_000


@given(
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=20),
    cuts=st.lists(st.integers(0, 3000), max_size=30),
    line_end=st.sampled_from(["\n", "\r\n"]),
    chat=st.booleans(),
)
def test_the_cuts_of_the_network_change_nothing_but_times(
    counts: list[int], cuts: list[int], line_end: str, chat: bool
):
    ids = iter(range(100))
    events = [token("x" * n, token_ids=[next(ids) for _ in range(n)]) for n in counts]
    opening = [delta(role="assistant", content="")] if chat else []
    whole = b"".join(map(event, [*opening, *events, usage(sum(counts)), DONE]))
    whole = whole.replace(b"\n", line_end.encode())
    places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    chunks = [whole[a:b] for a, b in pairwise(places)]
    stream = fed(*chunks, chat=chat, keep=True)
    times, tokens = stream.rows(stream.ending())
    assert tokens.sum() == sum(counts)
    assert (tokens > 0).all()
    assert (np.diff(times) > 0).all()
    assert stream.ids() == list(range(sum(counts)))
    assert stream.ending() == fed(whole).ending()


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "no\n good"}},
        {"message": "no good"},
        {"error": "no good"},
        {"detail": "no good"},
    ],
)
def test_a_complaint_is_found_in_every_shape(body: Any):
    assert complaint(body) == "no good"
