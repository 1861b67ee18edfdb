"""What `describe` says of a trace, against traces counted by hand and a recount token by token."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from suite.errors import BadInput
from suite.trace import REPLY, Header, Request, Segment, Trace
from workloads.describe import Description, Spread, describe, printable, tables
from workloads.picture import picture
from workloads.spec import load


def trace_of(*requests: Request, misbehaving: tuple[str, ...] = ()) -> Trace:
    return Trace(Header("t", 0, "hand", misbehaving=misbehaving), requests)


def ask(id: str, client: str, arrival: float, *prompt: tuple[str, int], output: int = 1) -> Request:
    return Request(id, client, arrival, tuple(Segment(*segment) for segment in prompt), output)


def sharing(description: Description) -> dict[tuple[str, str], int]:
    """The tokens that hit, by (client that sent them, client that computed them first)."""
    columns = description.sharing.to_dict()
    return {
        (str(sender), str(owner)): tokens
        for owner, column in columns.items()
        for sender, tokens in column.items()
        if tokens
    }


# -- the ideal cache ---------------------------------------------------------------------------------------


def test_streams_of_one_name_share_as_far_as_both_reach() -> None:
    described = describe(
        trace_of(
            ask("0", "a", 0, ("sys", 100), ("x", 10)),
            ask("1", "b", 1, ("sys", 150), ("y", 10)),
            ask("2", "c", 2, ("sys", 180), ("y", 10)),
            ask("3", "c", 3, ("sys", 150), ("y", 25)),
        )
    )
    assert described.requests["hit_tokens"].to_list() == [0, 100, 150, 160]
    assert sharing(described) == {("b", "a"): 100, ("c", "a"): 200, ("c", "b"): 110}
    assert described.total.hit_ratio == 410 / 635


def test_what_follows_a_different_prefix_is_not_shared() -> None:
    described = describe(trace_of(ask("0", "a", 0, ("x", 5), ("y", 5)), ask("1", "a", 1, ("x", 4), ("y", 5))))
    assert described.requests["hit_tokens"].to_list() == [0, 4]


def test_replies_are_cached_too() -> None:
    first = ask("0", "a", 0, ("x", 5), output=7)
    prompt = (*first.prompt, Segment("reply:0", 7), Segment("y", 3))
    described = describe(trace_of(first, Request("1", "a", 1.0, prompt, 1, after=("0",))))
    assert described.requests["hit_tokens"].to_list() == [0, 12]


def test_a_request_does_not_hit_itself() -> None:
    assert describe(trace_of(ask("0", "a", 0, ("x", 5), ("x", 5)))).total.hit_ratio == 0


def recount(requests: Sequence[Request]) -> list[tuple[int, int]]:
    """(hit tokens, of those first computed by another client) of each request, token by token."""
    owners: dict[tuple[tuple[str, int], ...], str] = {}
    counted = []
    for request in requests:
        prompt = [(id, i) for id, tokens in request.prompt for i in range(tokens)]
        reply = [(f"{REPLY}{request.id}", i) for i in range(request.output_tokens)]
        prefixes = [tuple(prompt[: i + 1]) for i in range(len(prompt))]
        hits = [owners[prefix] for prefix in prefixes if prefix in owners]
        counted.append((len(hits), sum(owner != request.client for owner in hits)))
        whole = prompt + reply
        for i in range(len(whole)):
            owners.setdefault(tuple(whole[: i + 1]), request.client)
    return counted


prompts = st.lists(st.tuples(st.sampled_from("xyz"), st.integers(1, 4)), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(sent=st.lists(st.tuples(st.sampled_from("ab"), prompts, st.booleans()), min_size=1, max_size=8))
def test_hits_equal_a_recount_token_by_token(sent: list[tuple[str, list[tuple[str, int]], bool]]) -> None:
    requests: list[Request] = []
    for number, (client, prompt, follows) in enumerate(sent):
        history: tuple[Segment, ...] = ()
        if follows and requests:
            history = (*requests[-1].prompt, Segment(f"{REPLY}{requests[-1].id}", 2))
        segments = (*history, *(Segment(*segment) for segment in prompt))
        requests.append(Request(str(number), client, float(number), segments, 2))
    described = describe(trace_of(*requests))
    frame = described.requests
    assert list(zip(frame["hit_tokens"], frame["others_tokens"], strict=True)) == recount(requests)
    assert described.sharing.to_numpy().sum() == frame["hit_tokens"].sum()


# -- traffic -----------------------------------------------------------------------------------------------


def test_clients_are_counted_one_by_one_and_together() -> None:
    regular = [ask(f"a{i}", "a", 2.0 * i, ("x", 10 * (i + 1)), output=i + 1) for i in range(5)]
    described = describe(trace_of(*regular, ask("b", "b", 10, ("z", 7)), misbehaving=("b",)))
    a, b = described.clients
    assert (a.name, a.requests, a.share, a.rate, a.cv, a.misbehaving) == ("a", 5, 5 / 6, 0.5, 0, False)
    assert (b.name, b.requests, b.share, b.rate, b.misbehaving) == ("b", 1, 1 / 6, 0.1, True)
    assert math.isnan(b.cv)
    assert a.input_tokens == Spread(30, 30, pytest.approx(49.6))
    assert a.output_tokens == Spread(3, 3, pytest.approx(4.96))
    assert (described.span, described.total.requests, described.total.rate) == (10, 6, 0.6)
    assert described.total.input_tokens.mean == 157 / 6


def test_variation_of_gaps_matches_the_process() -> None:
    for cv in (0.5, 2.0):
        made = load("document", {"arrivals": {"kind": "gamma", "cv": cv}, "duration": 3000}).generate(0)
        assert [client.cv for client in describe(made).clients] == pytest.approx([cv] * 4, rel=0.1)


def test_sessions_and_weights_are_counted() -> None:
    made = load("chat", {"clients": [{"name": "x", "weight": 3}, {"name": "y"}]}).generate(0)
    described = describe(made)
    expected = {name: {r.session for r in made.requests if r.client == name} for name in "xy"}
    assert {c.name: c.sessions for c in described.clients} == {n: len(s) for n, s in expected.items()}
    assert {c.name: c.weight for c in described.clients} == {"x": 3.0, "y": 1.0}


def test_a_single_request_has_no_rate() -> None:
    described = describe(trace_of(ask("0", "a", 0, ("x", 5))))
    assert math.isnan(described.total.rate)
    assert "nan" not in shown(described)


def test_clients_that_share_nothing_hit_only_their_own() -> None:
    described = describe(load("document").generate(0))
    assert described.total.from_others == 0
    assert described.total.hit_ratio > 0.9
    common = describe(load("document", {"common_documents": 8}).generate(0))
    assert common.total.from_others > 0.5


# -- shown -------------------------------------------------------------------------------------------------


def shown(description: Description) -> str:
    console = Console(file=io.StringIO(), width=100)
    for table in tables(description):
        console.print(table)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


HOSTILE = ["[red]x[/red]", "esc\x1b[31m\nline", "_hidden", "$\\frac{$", "长" * 60, "<b>"]


def hostile() -> Description:
    requests = [ask(str(i), name, float(i), ("x", 5)) for i, name in enumerate(HOSTILE)]
    return describe(trace_of(*requests, misbehaving=("<b>",)))


def test_tables_show_names_as_data() -> None:
    text = shown(hostile())
    assert "[red]x[/red]" in text
    assert "\x1b" not in text
    assert "<b> (misbehaving)" in text
    assert "all clients" in text


def test_printable_names_are_short_and_plain() -> None:
    assert printable("a\tb\x07") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"
    assert printable("é长") == "é长"
    assert len(printable("x" * 100, 10)) == 10


@pytest.mark.parametrize("ending", ["png", "pdf"])
def test_a_picture_is_drawn_the_same_twice(tmp_path: Path, ending: str) -> None:
    described = describe(load("mixed").generate(0))
    for name in ("a", "b"):
        picture(described, tmp_path / f"{name}.{ending}")
    first, second = ((tmp_path / f"{name}.{ending}").read_bytes() for name in ("a", "b"))
    assert first == second
    assert first.startswith(b"%PDF" if ending == "pdf" else b"\x89PNG")


def test_a_picture_survives_hostile_names_many_clients_and_one_request(tmp_path: Path) -> None:
    many = [ask(str(i), f"c{i}", float(i), ("x", 5)) for i in range(12)]
    for number, described in enumerate((hostile(), describe(trace_of(*many)), describe(trace_of(many[0])))):
        picture(described, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 10_000


def test_a_picture_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"x\.gif: a picture ends in \.png or \.pdf"):
        picture(hostile(), tmp_path / "x.gif")
