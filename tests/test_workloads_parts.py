"""Arrival processes, length distributions and clients: their statistics against the known truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from suite.trace import Segment
from workloads.parts.arrivals import (
    Arrivals,
    ClosedLoop,
    Constant,
    Gamma,
    OnOff,
    Phase,
    Phases,
    Poisson,
    Ramp,
    Steps,
    Think,
)
from workloads.parts.clients import Client, Clients, Counted, Named, resolve, zipf
from workloads.parts.lengths import Lengths
from workloads.parts.misbehaviour import AddedPrefix, Excess, RecoveringFlood, Wrong, misbehaving
from workloads.parts.streams import stream

arrivals = TypeAdapter[Any](Arrivals)
lengths = TypeAdapter[Any](Lengths)
clients = TypeAdapter[Any](Clients)

# -- streams -----------------------------------------------------------------------------------------------


def test_a_stream_is_fixed_for_ever_and_by_its_whole_name() -> None:
    assert stream(1, "a", "b").integers(1000, size=3).tolist() == [289, 511, 934]
    first = stream(1, "a", "b").random()
    others = [stream(2, "a", "b"), stream(1, "ab"), stream(1, "b", "a"), stream(1, "a", "b", "")]
    assert all(other.random() != first for other in others)


# -- arrivals ----------------------------------------------------------------------------------------------

OPEN = [
    Constant(),
    Poisson(),
    Gamma(cv=0.5),
    Gamma(cv=3),
    OnOff(busy=2, silent=3),
    OnOff(busy=2, silent=3, cv=0),
    Ramp(start=0, end=1),
    Ramp(start=5, end=1, cv=2),
    Ramp(start=2, end=2),
    Steps(rates=(5, 1)),
    Steps(rates=(0, 1, 0, 3), cv=2),
    Phases(
        phases=(Phase(seconds=70, rate=2, arrivals=Gamma(cv=0.5)), Phase(seconds=130, arrivals=Constant()))
    ),
    Phases(phases=(Phase(seconds=3000, rate=0), Phase(seconds=9000, arrivals=OnOff(busy=3, silent=7)))),
]


@pytest.mark.parametrize("process", OPEN, ids=str)
def test_arrivals_ascend_within_the_duration_at_the_mean_rate(process: Any) -> None:
    times = list(process.times(2.0, 5000.0, stream(0, "x")))
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] < 5000
    cv = getattr(process, "cv", 1.0)
    assert len(times) == pytest.approx(10_000, abs=4 * cv * math.sqrt(10_000) + 1)


@pytest.mark.parametrize("cv", [0, 0.5, 1, 3])
def test_even_the_shortest_window_sees_the_mean_rate(cv: float) -> None:
    """A process that began with a whole gap at time 0 would be far off here, for every cv but 1."""
    process = Constant() if cv == 0 else Gamma(cv=cv)
    rng = stream(0, "x")
    counts = [len(list(process.times(1.0, 1.0, rng))) for _ in range(4000)]
    assert np.mean(counts) == pytest.approx(1.0, abs=4 * np.std(counts) / math.sqrt(len(counts)) + 1e-9)


@pytest.mark.parametrize(("process", "cv"), [(Constant(), 0), (Poisson(), 1), (Gamma(cv=0.4), 0.4)])
def test_gaps_have_the_stated_variation(process: Any, cv: float) -> None:
    gaps = np.diff(list(process.times(5.0, 4000.0, stream(0, "x"))))
    assert gaps.mean() == pytest.approx(0.2, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, abs=0.03)


def test_a_bursty_process_has_bursty_gaps() -> None:
    gaps = np.diff(list(Gamma(cv=4).times(10.0, 20_000.0, stream(0, "x"))))
    assert gaps.std() / gaps.mean() == pytest.approx(4, rel=0.05)


spans = st.floats(0.5, 50)


@settings(max_examples=50)
@given(busy=spans, silent=spans, duration=st.floats(10, 300))
def test_on_off_is_silent_when_off_and_even_when_on(busy: float, silent: float, duration: float) -> None:
    times = np.array(list(OnOff(busy=busy, silent=silent, cv=0).times(4.0, duration, stream(0, "x"))))
    within = times % (busy + silent)
    assert np.all((within <= busy + 1e-6) | (within >= busy + silent - 1e-6))
    periods, rest = divmod(duration, busy + silent)
    rate = 4.0 * duration / (periods * busy + min(rest, busy))
    assert len(times) == pytest.approx(4.0 * duration, abs=1.001)
    first = np.count_nonzero(times < busy)
    assert first == pytest.approx(rate * min(busy, duration), abs=1.001)


@settings(max_examples=50)
@given(start=st.floats(0, 10), end=st.floats(0.1, 10), part=st.floats(0, 1), backwards=st.booleans())
def test_a_ramp_follows_its_line(start: float, end: float, part: float, backwards: bool) -> None:
    if backwards:
        start, end = end, start
    times = np.array(list(Ramp(start=start, end=end, cv=0).times(3.0, 100.0, stream(0, "x"))))
    area = (start * part + (end - start) * part**2 / 2) / ((start + end) / 2)
    assert np.count_nonzero(times < part * 100) == pytest.approx(300 * area, abs=1.001)


@pytest.mark.parametrize("tiny", [1e-300, 5e-324])
def test_only_the_ratio_of_a_ramps_ends_matters(tiny: float) -> None:
    for start, end in ((1, 1), (0, 1), (1, 0)):
        times, same = (
            list(Ramp(start=start * unit, end=end * unit).times(3.0, 100.0, stream(0, "x")))
            for unit in (1, tiny)
        )
        assert times == pytest.approx(same)


@settings(max_examples=50)
@given(rates=st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any), part=st.floats(0, 1))
def test_steps_keep_each_rate_for_an_equal_part(rates: list[int], part: float) -> None:
    times = np.array(list(Steps(rates=tuple(rates), cv=0).times(3.0, 100.0, stream(0, "x"))))
    edges = np.linspace(0, 100, len(rates) + 1)
    shares = np.array(rates) / sum(rates)
    within = np.clip((part * 100 - edges[:-1]) / np.diff(edges), 0, 1)
    assert np.count_nonzero(times < part * 100) == pytest.approx(300 * (shares @ within), abs=1.001)


@settings(max_examples=50)
@given(
    phases=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 5)), min_size=1, max_size=4),
    duration=st.integers(40, 150),
    part=st.floats(0, 1),
)
def test_phases_follow_one_another_and_begin_again(
    phases: list[tuple[int, int]], duration: int, part: float
) -> None:
    course = [rate for seconds, rate in phases for _ in range(seconds)]
    assume(any(course[:duration]))
    rates = np.resize(course, duration)
    process = Phases(phases=tuple(Phase(seconds=s, rate=r, arrivals=Constant()) for s, r in phases))
    times = np.array(list(process.times(3.0, float(duration), stream(0, "x"))))
    done = np.interp(part * duration, np.arange(duration + 1), [0, *np.cumsum(rates)]) / rates.sum()
    begun = 1 + sum(len(phases) for _ in range(0, duration, len(course)))  # each is off by less than one
    assert np.count_nonzero(times < part * duration) == pytest.approx(3 * duration * done, abs=begun)


def test_a_phase_has_its_own_process_from_its_own_beginning() -> None:
    bursts = OnOff(busy=5, silent=5, cv=0)
    process = Phases(phases=(Phase(seconds=13, rate=2), Phase(seconds=27, arrivals=bursts)))
    times = np.array(list(process.times(50.0, 80.0, stream(0, "x"))))
    within = times % 40
    silent = (within >= 18) & (within < 23) | (within >= 28) & (within < 33) | (within >= 38)
    assert not silent.any()
    assert np.count_nonzero(within < 13) == pytest.approx(4000 * 26 / 53, abs=4 * math.sqrt(4000 * 26 / 53))


def test_a_time_without_any_rate_is_without_arrivals() -> None:
    process = Phases(phases=(Phase(seconds=10, rate=0), Phase(seconds=10)))
    assert list(process.times(1.0, 10.0, stream(0, "x"))) == []


def test_a_closed_loop_chains_each_users_units() -> None:
    loop = ClosedLoop(concurrency=6, think=Think(mean=2.0))
    starts = loop.starts(rate=0.5, share=0.5, duration=20.0, rng=stream(0, "x"))
    assert [start.after for start in starts] == [None] * 3 + list(range(7))
    assert [start.think for start in starts] == [0.0] * 3 + [2.0] * 7
    assert {start.time for start in starts} == {0.0}


def test_a_closed_loop_gives_every_client_a_user_with_something_to_do() -> None:
    starts = ClosedLoop(concurrency=2).starts(rate=0.01, share=0.1, duration=1.0, rng=stream(0, "x"))
    assert starts == [(0.0, None, 0.0)]


def test_think_times_have_mean_and_cv() -> None:
    rng = stream(0, "x")
    drawn = np.array([Think(mean=8, cv=0.5).draw(rng) for _ in range(20_000)])
    assert drawn.mean() == pytest.approx(8, rel=0.02)
    assert drawn.std() / drawn.mean() == pytest.approx(0.5, rel=0.03)
    assert {Think(mean=3).draw(rng), Think(mean=0, cv=2).draw(rng)} == {3.0, 0.0}


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "gamma", "cv": 0},
        {"kind": "gamma"},
        {"kind": "on_off", "busy": 0, "silent": 1},
        {"kind": "ramp", "start": 0, "end": 0},
        {"kind": "ramp", "start": -1, "end": 2},
        {"kind": "steps", "rates": []},
        {"kind": "steps", "rates": [0, 0]},
        {"kind": "steps", "rates": [1, -1]},
        {"kind": "phases", "phases": []},
        {"kind": "phases", "phases": [{"seconds": 5, "rate": 0}]},
        {"kind": "phases", "phases": [{"seconds": 0}]},
        {"kind": "phases", "phases": [{"rate": 1}]},
        {"kind": "phases", "phases": [{"seconds": 5, "arrivals": {"kind": "closed_loop", "concurrency": 1}}]},
        {"kind": "closed_loop", "concurrency": 0},
        {"kind": "poisson", "cv": 2},
        {"kind": "uniform"},
        {"cv": 2},
    ],
)
def test_processes_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        arrivals.validate_python(wrong)


# -- lengths -----------------------------------------------------------------------------------------------


def draws(spec: Any, count: int = 20_000) -> np.ndarray:
    distribution, rng = lengths.validate_python(spec), stream(0, "x")
    return np.array([distribution.draw(rng) for _ in range(count)])


def test_a_bare_number_is_a_constant() -> None:
    assert set(draws(7, 10)) == {7}


def test_uniform_lengths_include_both_ends() -> None:
    values, counts = np.unique(draws({"kind": "uniform", "low": 3, "high": 6}), return_counts=True)
    assert values.tolist() == [3, 4, 5, 6]
    assert counts == pytest.approx([5000] * 4, rel=0.06)


def test_lognormal_lengths_have_the_mean_and_cv_of_tokens() -> None:
    drawn = draws({"kind": "lognormal", "mean": 400, "cv": 0.8})
    assert drawn.mean() == pytest.approx(400, rel=0.02)
    assert drawn.std() / drawn.mean() == pytest.approx(0.8, rel=0.05)
    assert np.median(drawn) == pytest.approx(400 / math.sqrt(1 + 0.8**2), rel=0.02)


def test_lengths_are_never_below_one() -> None:
    assert draws({"kind": "lognormal", "mean": 1, "cv": 5}, 1000).min() == 1


def test_lengths_are_never_above_what_a_trace_takes() -> None:
    drawn = draws({"kind": "lognormal", "mean": 1e7, "cv": 100}, 1000)
    assert drawn.max() == 10_000_000


@pytest.mark.parametrize(("weights", "shares"), [(None, [1 / 3] * 3), ([1, 0, 3], [0.25, 0, 0.75])])
def test_empirical_lengths_come_in_their_proportions(weights: list[int] | None, shares: list[float]) -> None:
    drawn = draws({"kind": "empirical", "values": [10, 20, 40], "weights": weights}, 5000)
    assert [np.mean(drawn == value) for value in (10, 20, 40)] == pytest.approx(shares, abs=0.02)


@pytest.mark.parametrize(
    "spec",
    [
        9,
        {"kind": "uniform", "low": 3, "high": 6},
        {"kind": "lognormal", "mean": 250, "cv": 0.3},
        {"kind": "empirical", "values": [1, 5], "weights": [3, 1]},
    ],
)
def test_the_expected_length_is_the_mean_of_the_draws(spec: Any) -> None:
    drawn = draws(spec)
    error = 4 * drawn.std() / math.sqrt(len(drawn))
    assert lengths.validate_python(spec).expected() == pytest.approx(drawn.mean(), abs=error)


@pytest.mark.parametrize(
    "wrong",
    [
        0,
        2.5,
        True,
        "9",
        {"kind": "uniform", "low": 5, "high": 4},
        {"kind": "lognormal", "mean": 0, "cv": 1},
        {"kind": "lognormal", "mean": 1.1e7, "cv": 1},
        {"kind": "lognormal", "mean": 10, "cv": 1e200},
        {"kind": "uniform", "low": 5, "high": 10_000_001},
        1_000_000_000_000,
        {"kind": "empirical", "values": []},
        {"kind": "empirical", "values": [3, 0]},
        {"kind": "empirical", "values": [3], "weights": [1, 2]},
        {"kind": "empirical", "values": [3], "weights": [0]},
        {"mean": 3},
    ],
)
def test_lengths_that_make_no_sense_are_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        lengths.validate_python(wrong)


# -- clients -----------------------------------------------------------------------------------------------


def rates(spec: Any, rate: float | None) -> dict[str, float]:
    resolved = resolve(clients.validate_python(spec), rate, Poisson())
    return {client.name: client.rate for client in resolved}


def worse(*does: Wrong) -> tuple[Client, ...]:
    """Three clients of one request/s each, some of them misbehaving for 100 s."""
    return misbehaving(resolve(Counted(count=3), 3.0, Poisson()), does, 100.0)


def test_a_skew_divides_the_rate() -> None:
    assert rates(2, 6.0) == {"client-0": 3.0, "client-1": 3.0}
    assert list(rates({"count": 3, "skew": 1}, 11.0).values()) == pytest.approx([6, 3, 2])
    assert list(rates({"count": 2, "skew": [3, 1]}, 8.0).values()) == [6.0, 2.0]


def test_named_clients_have_rates_of_their_own_or_shares_of_the_rest() -> None:
    spec = [{"name": "a", "rate": 5.0}, {"name": "b", "share": 3}, {"name": "c"}]
    assert rates(spec, 8.0) == {"a": 5.0, "b": 6.0, "c": 2.0}


def test_zipf_chances() -> None:
    assert zipf(4, 0).tolist() == [0.25] * 4
    assert (zipf(3, 2) / zipf(3, 2)[0]).tolist() == pytest.approx([1, 1 / 4, 1 / 9])


def test_misbehaviour_is_one_clients() -> None:
    more = worse(Excess(client=1, kind="more_requests", factor=4))
    assert [client.rate for client in more] == [1.0, 4.0, 1.0]
    longer = worse(Excess(client="client-2", kind="longer_prefix", factor=2.5))
    assert [client.prefix(100) for client in longer] == [100, 100, 250]
    assert longer[2].prefix(9_000_000) == 10_000_000
    assert [client.misbehaves for client in longer] == [False, False, True]
    assert {client.rate for client in longer} == {1.0}
    added = worse(AddedPrefix(client=1, tokens=600))
    assert [client.added for client in added] == [(), (Segment("added:client-1", 600),), ()]
    assert [client.misbehaves for client in added] == [False, True, False]
    bigger = worse(Excess(client=0, kind="bigger_program", factor=2.5))
    assert [client.program(3) for client in bigger] == [8, 3, 3]
    assert [(client.rate, client.misbehaves) for client in bigger] == [
        (1.0, True), (1.0, False), (1.0, False)
    ]  # fmt: skip


def test_a_recovering_flood_has_the_mean_rate_of_its_course() -> None:
    flood = worse(RecoveringFlood(client=2, factor=7, until=25))
    assert [client.rate for client in flood] == [1.0, 1.0, (7 * 25 + 75) / 100]
    calm = Phase(seconds=75, rate=1, arrivals=Poisson())
    assert flood[2].arrivals == Phases(phases=(Phase(seconds=25, rate=7, arrivals=Poisson()), calm))


def test_several_may_misbehave_each_once() -> None:
    both = worse(AddedPrefix(client=1, tokens=600), Excess(client=0, kind="more_requests", factor=4))
    assert [(client.rate, client.misbehaves) for client in both] == [(4.0, True), (1.0, True), (1.0, False)]
    with pytest.raises(ValueError, match="'client-1' stands twice"):
        worse(AddedPrefix(client=1, tokens=6), Excess(client="client-1", kind="more_requests", factor=4))


@pytest.mark.parametrize("process", [Phases(phases=(Phase(seconds=5),)), ClosedLoop(concurrency=3)])
def test_a_flood_goes_with_open_processes_of_one_phase(process: Any) -> None:
    resolved = resolve(Counted(count=3), 3.0, process)
    with pytest.raises(
        ValueError, match=f"does not go with arrivals of kind {process.kind}; write the flood"
    ):
        misbehaving(resolved, [RecoveringFlood(client=2, factor=7, until=25)], 100.0)


def test_a_flood_recovers_before_the_end() -> None:
    with pytest.raises(ValueError, match="until: 100 s is not before the end at 100 s"):
        worse(RecoveringFlood(client=2, factor=7, until=100))


def test_a_named_clients_process_replaces_the_common_one() -> None:
    named = [Named(name="a", arrivals=Constant()), Named(name="b")]
    assert [type(client.arrivals) for client in resolve(named, 1.0, Poisson())] == [Constant, Poisson]


@pytest.mark.parametrize(
    ("spec", "rate", "message"),
    [
        ([{"name": "a"}, {"name": "a"}], 1.0, "the name 'a' stands twice"),
        (3, None, "rate: missing"),
        ([{"name": "a", "rate": 1.0}], 1.0, "every client has a rate of its own"),
    ],
)
def test_contradictory_clients_are_refused(spec: Any, rate: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rates(spec, rate)


@pytest.mark.parametrize(
    ("client", "message"), [("client-9", "did you mean 'client-"), (3, "3 is not below")]
)
def test_a_misbehaving_client_must_exist(client: int | str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        worse(Excess(client=client, kind="more_requests", factor=2))
