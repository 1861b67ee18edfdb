"""What `describe` says of a trace, against traces counted by hand and a recount token by token."""

from __future__ import annotations

import io
import math
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from suite.capacity import capacity
from suite.commands.workload import app
from suite.errors import BadInput
from suite.trace import REPLY, Header, Request, Segment, write
from workloads.describing.describe import Description, Engine, describe
from workloads.describing.picture import page, picture
from workloads.describing.summaries import Spread
from workloads.describing.tables import load_line, printable, tables
from workloads.spec import load


def of(*requests: Request, misbehaving: tuple[str, ...] = ()) -> Description:
    return describe(Header("t", 0, "hand", misbehaving=misbehaving), requests)


def of_spec(name: str, **settings: Any) -> Description:
    trace = load(name, settings).generate(0)
    return describe(trace.header, trace.requests)


def ask(
    id: str, client: str, arrival: float, *prompt: tuple[str, int], output: int = 1, **more: Any
) -> Request:
    return Request(id, client, arrival, tuple(Segment(*segment) for segment in prompt), output, **more)


def sharing(description: Description) -> dict[tuple[str, str], int]:
    """The tokens that hit, by (client that sent them, client that computed them first)."""
    rows = description.sharing.itertuples(index=False)
    return {(str(sender), str(owner)): int(tokens) for sender, owner, tokens in rows}


# -- the ideal cache ---------------------------------------------------------------------------------------


def test_streams_of_one_name_share_as_far_as_both_reach() -> None:
    described = of(
        ask("0", "a", 0, ("sys", 100), ("x", 10)),
        ask("1", "b", 1, ("sys", 150), ("y", 10)),
        ask("2", "c", 2, ("sys", 180), ("y", 10)),
        ask("3", "c", 3, ("sys", 150), ("y", 25)),
    )
    assert described.requests["hit_tokens"].to_list() == [0, 100, 150, 160]
    assert sharing(described) == {("b", "a"): 100, ("c", "a"): 200, ("c", "b"): 110}
    assert described.total.hit_ratio == 410 / 635


def test_what_follows_a_different_prefix_is_not_shared() -> None:
    described = of(ask("0", "a", 0, ("x", 5), ("y", 5)), ask("1", "a", 1, ("x", 4), ("y", 5)))
    assert described.requests["hit_tokens"].to_list() == [0, 4]


def test_replies_are_cached_too() -> None:
    first = ask("0", "a", 0, ("x", 5), output=7)
    described = of(first, ask("1", "a", 1, ("x", 5), ("reply:0", 7), ("y", 3), after=("0",)))
    assert described.requests["hit_tokens"].to_list() == [0, 12]


def test_a_request_does_not_hit_itself() -> None:
    assert of(ask("0", "a", 0, ("x", 5), ("x", 5))).total.hit_ratio == 0


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


@settings(max_examples=80)
@given(sent=st.lists(st.tuples(st.sampled_from("ab"), prompts, st.booleans()), min_size=1, max_size=8))
def test_hits_equal_a_recount_token_by_token(sent: list[tuple[str, list[tuple[str, int]], bool]]) -> None:
    requests: list[Request] = []
    for number, (client, prompt, follows) in enumerate(sent):
        history: tuple[Segment, ...] = ()
        if follows and requests:
            history = (*requests[-1].prompt, Segment(f"{REPLY}{requests[-1].id}", 2))
        requests.append(ask(str(number), client, float(number), *history, *prompt, output=2))
    described = of(*requests)
    frame = described.requests
    assert list(zip(frame["hit_tokens"], frame["others_tokens"], strict=True)) == recount(requests)
    assert sum(sharing(described).values()) == frame["hit_tokens"].sum()
    assert described.curve.limit == pytest.approx(described.total.hit_ratio)


# -- traffic -----------------------------------------------------------------------------------------------


def test_clients_are_counted_one_by_one_and_together() -> None:
    regular = [ask(f"a{i}", "a", 2.0 * i, ("x", 10 * (i + 1)), output=i + 1) for i in range(5)]
    described = of(ask("b", "b", 10, ("z", 7)), *regular, misbehaving=("b",))
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
        described = of_spec("document", arrivals={"kind": "gamma", "cv": cv}, duration=3000)
        assert [client.cv for client in described.clients] == pytest.approx([cv] * 4, rel=0.1)


def test_dispersion_is_the_variance_of_counts_in_windows_over_their_mean() -> None:
    """Ten windows of 10 s with 4 and 0 beginnings in turn; the window that is cut is left out."""
    bursts = [10.0 * window + i for window in range(0, 10, 2) for i in range(4)]
    described = of(*(ask(str(at), "a", at, ("x", 1)) for at in (*bursts, 105.0)))
    assert described.total.dispersion == 4 / 2
    assert math.isnan(of(*(ask(str(i), "a", float(i), ("x", 1)) for i in range(99))).total.dispersion)


def test_dispersion_of_a_poisson_process_is_one_and_counts_sessions_not_turns() -> None:
    poisson = of_spec("document", arrivals={"kind": "poisson"}, duration=8_000, rate=2)
    assert [client.dispersion for client in poisson.clients] == pytest.approx([1] * 4, abs=0.15)
    chat = of_spec("chat", arrivals={"kind": "poisson"}, duration=8_000, rate=4, misbehaviour=None)
    assert [client.dispersion for client in chat.clients] == pytest.approx([1] * 4, abs=0.15)


def test_a_session_is_measured_by_its_size_its_longest_chain_and_its_widest_level() -> None:
    """A root, three that wait for it, one that waits for two of these; then a chain of two."""
    program = {"r": (), "x": ("r",), "y": ("r",), "z": ("r",), "end": ("x", "z")}
    tree = [ask(id, "a", 0, ("p", 1), session="tree", after=after) for id, after in program.items()]
    chain = [
        ask("c0", "a", 5, ("p", 1), session="chain", after=("end",), think=4.0),
        ask("c1", "a", 5, ("p", 1), session="chain", after=("c0",), think=2.0),
    ]
    described = of(*tree, *chain, ask("alone", "b", 0, ("p", 1)))
    rows = sorted(described.sessions.itertuples(index=False, name=None))
    assert rows == [(2, 2, 1), (5, 3, 3)]
    a, b = described.clients
    assert (a.sessions, a.session_requests.mean, a.depth.mean, a.width.mean) == (2, 3.5, 2.5, 2)
    assert a.think == Spread(1.0, 0.0, pytest.approx(3.9))
    assert (b.sessions, described.total.sessions) == (0, 2)
    assert all(math.isnan(spread.mean) for spread in (b.depth, b.width, b.session_requests, b.think))


def test_sessions_and_weights_are_counted() -> None:
    trace = load("chat", {"clients": [{"name": "x", "weight": 3}, {"name": "y"}]}).generate(0)
    described = describe(trace.header, trace.requests)
    expected = {name: {r.session for r in trace.requests if r.client == name} for name in "xy"}
    assert {c.name: c.sessions for c in described.clients} == {n: len(s) for n, s in expected.items()}
    assert {c.name: c.weight for c in described.clients} == {"x": 3.0, "y": 1.0}


def test_a_session_of_two_clients_counts_for_each() -> None:
    described = of(*(ask(name, name, 0, ("p", 1), session="s") for name in "ab"))
    assert [client.sessions for client in described.clients] == [1, 1]
    assert [client.session_requests.mean for client in described.clients] == [1, 1]


def test_a_single_request_has_no_rate() -> None:
    described = of(ask("0", "a", 0, ("x", 5)))
    assert math.isnan(described.total.rate)
    assert "nan" not in shown(described)


def test_clients_that_share_nothing_hit_only_their_own() -> None:
    described = of_spec("document")
    assert described.total.from_others == 0
    assert described.total.hit_ratio > 0.9
    assert of_spec("document", common_documents=8).total.from_others > 0.5


# -- shown -------------------------------------------------------------------------------------------------


def shown(description: Description, engine: Engine | None = None) -> str:
    console = Console(file=io.StringIO(), width=100)
    for table in tables(description, engine):
        console.print(table)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


HOSTILE = ["[red]x[/red]", "esc\x1b[31m\nline", "_hidden", "$\\frac{$", "长" * 60, "<b>"]
ENGINE = Engine("llama-3.1-8b on a10g", 30_822, 2.0)


def hostile() -> Description:
    requests = [ask(str(i), name, float(i), ("x", 5)) for i, name in enumerate(HOSTILE)]
    return of(*requests, misbehaving=("<b>",))


def test_tables_show_names_as_data() -> None:
    text = shown(hostile())
    assert "[red]x[/red]" in text
    assert "\x1b" not in text
    assert "<b> (misbehaving)" in text
    assert "all clients" in text


def test_tables_fit_a_terminal_and_cut_no_word() -> None:
    described = of_spec("chat")
    for text in (shown(described, ENGINE), shown(hostile(), ENGINE)):
        assert "\N{HORIZONTAL ELLIPSIS}" not in text.replace("长\N{HORIZONTAL ELLIPSIS}", "")
    assert "30,822" in shown(described, ENGINE)


def test_many_clients_are_cut_to_the_largest() -> None:
    many = [ask(f"{i}-{j}", f"c{i}", float(j), ("x", 5)) for i in range(40) for j in range(40 - i)]
    text = shown(of(*many))
    assert "c15 " in text
    assert "c16 " not in text
    assert "and 24 more clients" in text


def test_cache_sizes_end_with_the_first_that_is_enough() -> None:
    text = shown(of(ask("0", "a", 0, ("x", 250)), ask("1", "a", 1, ("x", 250))))
    sizes = next(line.split() for line in text.splitlines() if "infinite" in line)
    assert [size for size in sizes if size != "\N{BOX DRAWINGS HEAVY VERTICAL}"] == [
        *("1", "3", "10", "30", "100", "300"),
        "infinite",
    ]
    assert "20.0%" in text, "the first 100 of 500 prompt tokens"


def test_the_load_is_what_is_offered_over_what_is_served() -> None:
    described = of(*(ask(str(i), "a", i / 3, ("x", 5)) for i in range(31)))
    assert load_line(described, ENGINE) == (
        "load 1.55: 3.10 requests/s offered, 2.00 requests/s served by the simulator when all wait "
        "(llama-3.1-8b on a10g)"
    )


def test_printable_names_are_short_and_plain() -> None:
    assert printable("a\tb\x07") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"
    assert printable("é长") == "é长"
    assert len(printable("x" * 100, 10)) == 10


@pytest.mark.parametrize("ending", ["png", "pdf"])
def test_a_picture_is_drawn_the_same_twice(tmp_path: Path, ending: str) -> None:
    described = of_spec("mixed")
    for name in ("a", "b"):
        picture(described, tmp_path / f"{name}.{ending}", ENGINE)
    first, second = ((tmp_path / f"{name}.{ending}").read_bytes() for name in ("a", "b"))
    assert first == second
    assert first.startswith(b"%PDF" if ending == "pdf" else b"\x89PNG")


def test_a_picture_survives_hostile_names_many_clients_and_one_request(tmp_path: Path) -> None:
    many = [ask(str(i), f"c{i}", float(i), ("x", 5)) for i in range(12)]
    for number, described in enumerate((hostile(), of(*many), of(many[0]))):
        picture(described, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 10_000


def test_a_picture_of_one_request_shows_nothing_that_is_not(tmp_path: Path) -> None:
    """Neither a rate, as there is no time in which it came, nor a part of a request in a session."""
    one = Request("0", "a", 0.0, (Segment("x", 1),), 1, "s")
    rates, lengths, sessions = page(of(one)).axes
    assert [text.get_text() for text in rates.texts] == ["all requests come at once"]
    assert not rates.patches
    assert lengths.get_xlim()[0] >= 0.5
    assert sessions.get_xlim()[0] >= 0.5


def test_a_picture_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"x\.gif: a picture ends in \.png or \.pdf"):
        picture(hostile(), tmp_path / "x.gif")


# -- on the command line -----------------------------------------------------------------------------------


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["describe", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_says_the_load_on_a_model_and_gpu() -> None:
    trace = load("document").generate(0)
    served = capacity(trace, {"model": "llama-3.2-3b", "gpu": "h100"}).rate
    offered = len(trace.requests) / trace.requests[-1].arrival
    text = run("document", "--model", "llama-3.2-3b", "--gpu", "h100")
    assert f"load {offered / served:.2f}: {offered:.2f} requests/s offered" in text
    assert "(llama-3.2-3b on h100)" in text


def test_the_command_names_what_it_does_not_know() -> None:
    with pytest.raises(BadInput, match="a10x"):
        run("document", "--gpu", "a10x")


def test_a_finished_trace_is_described_as_its_spec_is(tmp_path: Path) -> None:
    trace = load("document").generate(0)
    write(trace, tmp_path / "document.parquet")
    assert run(str(tmp_path / "document.parquet")) == run("document")
    assert run(str(tmp_path / "document.parquet"), "--set", "shape.stretch=2") != run("document")


def test_a_description_needs_no_list_of_requests() -> None:
    """It reads them once, and keeps none: so a long trace is described from its file in little memory."""
    alive: set[int] = set()
    most = 0

    class Watched(Request):
        __slots__ = ()

        def __del__(self) -> None:
            alive.discard(id(self))

    def requests() -> Iterator[Request]:
        nonlocal most
        for i in range(1000):
            request = Watched(f"{i}", "a", float(i), (Segment("x", 5), Segment(f"q{i}", 3)), 2)
            alive.add(id(request))
            most = max(most, len(alive))
            yield request

    assert describe(Header("t", 0, "hand"), requests()).total.requests == 1000
    assert most <= 2


def test_a_million_requests_fit_into_two_gibibytes() -> None:
    """What it takes is in proportion to the requests; so much a request leaves half for reading the trace."""

    def turns(sessions: int) -> Iterator[Request]:
        for session in range(sessions):
            history: tuple[Segment, ...] = (Segment("system", 500),)
            for turn in range(5):
                id = f"{session}-{turn}"
                history = (*history, Segment(f"question:{id}", 100))
                after = (f"{session}-{turn - 1}",) if turn else ()
                yield Request(id, f"c{session % 9}", 1.0 * session, history, 50, f"s{session}", after)
                history = (*history, Segment(f"{REPLY}{id}", 50))

    tracemalloc.start()
    try:
        described = describe(Header("t", 0, "hand"), turns(4000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert described.total.requests == 20_000
    assert peak / 20_000 < 1000


def test_the_conversation_trace_needs_ten_million_tokens_of_cache(traces: Path) -> None:
    path = traces / "mooncake/conversation_trace.jsonl"
    if not path.is_file():
        pytest.skip(f"no Mooncake trace at {path}: set SUITE_TRACES to the folder that holds it")
    trace = load("mooncake_hour").generate(0)
    curve = describe(trace.header, trace.requests).curve
    assert curve.limit == pytest.approx(0.374, abs=0.0005), "of tokens; of blocks it is 0.366"
    assert curve.enough > 10_000_000
    ratios = curve.ratio([10**5, 10**6, 10**7, 10**8])
    assert np.all(np.diff(ratios) > 0)
