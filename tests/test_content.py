"""Prompt content: the same tokens everywhere and always, prefixes kept, replies in their places."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suite import content as contents
from suite.content import WORDS, Content, replied
from suite.errors import BadInput
from suite.trace import Header, Request, Segment, Trace

GOLDEN = "5b8ef9b4ab41"
"""First digits of the SHA-256 of 1,000 tokens: prompts of old traces must never change."""


def digest(content: Content) -> str:
    return hashlib.sha256(content.segment("document:Ω/1", 1000).astype("<i4").tobytes()).hexdigest()


def request(*prompt: tuple[str, int]) -> Request:
    return Request("r", "client", 0.0, tuple(Segment(*segment) for segment in prompt), 1)


def test_tokens_are_those_of_two_years_ago():
    assert digest(Content(7, 2048)).startswith(GOLDEN)


def test_another_process_gives_the_same_tokens():
    code = "from suite.content import Content; print(Content(7, 2048).segment('a', 40).tolist())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == str(Content(7, 2048).segment("a", 40).tolist())


@given(st.text(min_size=1), st.integers(1, 300), st.integers(1, 300), st.integers(0, 5))
def test_a_shorter_segment_is_a_prefix_of_a_longer_one(id: str, short: int, more: int, seed: int):
    longer_first, shorter_first = Content(seed, 100), Content(seed, 100)
    long = longer_first.segment(id, short + more)
    assert len(long) == short + more
    np.testing.assert_array_equal(long[:short], longer_first.segment(id, short))
    np.testing.assert_array_equal(long[:short], shorter_first.segment(id, short))
    np.testing.assert_array_equal(long, shorter_first.segment(id, short + more))


def test_segments_differ_by_id_and_by_seed_and_stay_in_range():
    one = Content(1, 50, first=10)
    tokens = one.segment("a", 5000)
    assert set(tokens.tolist()) == set(range(10, 50))
    assert not np.array_equal(tokens, one.segment("b", 5000))
    assert not np.array_equal(tokens, Content(2, 50, first=10).segment("a", 5000))
    assert not np.array_equal(Content(1, 50).segment("2\0a", 99), Content(12, 50).segment("\0a", 99))


def test_what_leaves_the_cache_comes_back_the_same(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(contents, "CACHED_TOKENS", 100)
    small = Content(0, 1000)
    before = [small.segment(str(i), 60).tolist() for i in range(5)]
    small.segment("larger than the cache", 500)
    assert [small.segment(str(i), 60).tolist() for i in range(5)] == before
    assert small._cached == sum(len(tokens) for tokens in small._cache.values()) <= 100


def test_a_segment_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        Content(0, 100).segment("a", 3)[0] = 1


def test_replies_stand_in_the_prompt_where_the_trace_puts_them():
    content = Content(0, 1000)
    prompt = content.prompt(request(("a", 3), ("reply:x", 4), ("b", 2)), {"x": [7, 8, 9, 10]})
    assert prompt == [*content.segment("a", 3), 7, 8, 9, 10, *content.segment("b", 2)]
    assert all(type(id) is int for id in prompt)


def test_texts_share_a_prefix_as_far_as_their_tokens():
    content = Content(0, 32_000)
    long, short = content.text(content.segment("a", 50)), content.text(content.segment("a", 20))
    assert long.startswith(short)
    assert (len(long.split()), len(short.split())) == (50, 20)
    assert set(long.split()) <= set(WORDS)
    assert len(set(WORDS)) == len(WORDS)


def test_a_text_prompt_carries_replies_as_they_were_written():
    content = Content(0, 1000)
    text = content.prompt_text(request(("a", 2), ("reply:x", 9), ("b", 1)), {"x": " Hello, Ω!"})
    a, b = content.text(content.segment("a", 2)), content.text(content.segment("b", 1))
    assert text == f"{a} Hello, Ω!{b}"


def test_in_a_chat_replies_are_the_assistants():
    content = Content(0, 1000)
    chat = content.messages(request(("system", 2), ("a", 2), ("reply:x", 4), ("b", 1)), {"x": "Hello"})
    assert [message["role"] for message in chat] == ["user", "assistant", "user"]
    assert chat[1]["content"] == "Hello"
    assert chat[0]["content"] == "".join(content.text(content.segment(id, 2)) for id in ("system", "a"))
    judge = content.messages(request(("task", 1), ("reply:x", 4), ("reply:y", 4)), {"x": "A", "y": "B"})
    assert judge == [{"role": "user", "content": content.text(content.segment("task", 1)) + "AB"}]


def test_replied_names_the_requests_whose_reply_is_needed():
    assert replied([request(("a", 2)), request(("reply:x/1", 4), ("b", 1), ("reply:y", 2))]) == {"x/1", "y"}


def test_a_vocabulary_needs_room():
    with pytest.raises(BadInput, match="vocabulary: 3 tokens leave none from 3 on"):
        Content(0, 3)


# -- real token ids ----------------------------------------------------------------------------------------


def told(**tokens: list[int]) -> Trace:
    """A trace with these token ids for segments that its two requests share."""
    prompt = (("a", 2), ("made", 3), ("b", 1))
    requests = (request(*prompt), request(("b", 2)))
    ids = {id: np.array(listed, np.int32) for id, listed in tokens.items()}
    return Trace(Header("t", 5, "hand"), requests, ids)


def test_real_token_ids_stand_where_there_are_some_and_made_up_ones_elsewhere():
    content = Content.of(told(a=[901, 2, 0], b=[7, 8]), 1000)
    made = Content(5, 1000).segment("made", 3)
    assert content.prompt(request(("a", 2), ("made", 3), ("b", 1)), {}) == [901, 2, *made, 7]
    assert content.text(content.segment("a", 1)) == f" {WORDS[901 % len(WORDS)]}"
    with pytest.raises(ValueError, match="read-only"):
        content.segment("a", 3)[0] = 1


def test_a_real_token_id_beyond_the_vocabulary_is_refused_with_both_numbers():
    assert Content.of(told(a=[999], b=[0]), 1000).segment("a", 1).tolist() == [999]
    with pytest.raises(
        BadInput,
        match=r"segment 'b': token id 1000 lies beyond .* vocabulary of 1000 tokens; .* `vocabulary`",
    ):
        Content.of(told(a=[999], b=[0, 1000]), 1000)


def test_content_for_some_requests_holds_their_real_token_ids_alone():
    trace = told(a=[1, 2], b=[3, 4])
    whole = Content.of(trace, 1000, first=10)
    part = whole.needed_by(trace.requests[1:])
    assert list(part.real) == ["b"]
    assert part.prompt(trace.requests[1], {}) == whole.prompt(trace.requests[1], {}) == [3, 4]
    assert part.segment("made", 9).tolist() == whole.segment("made", 9).tolist()
