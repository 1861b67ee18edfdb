"""The stress search: what it chooses from, what it maximises, how it makes a trace small, what it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from suite import trace
from suite.attack import course, found, objective, space
from suite.attack.minimise import minimised, without
from suite.attack.objective import Contest
from suite.attack.search import BATCH, CMAES, Random
from suite.backends.base import KEPT
from suite.environments import Environment
from suite.errors import BadInput
from suite.experiment import load as load_experiment
from suite.trace import REPLY, Header, Request, Segment, Trace, checked
from workloads.spec import load

REFERENCE = Path(__file__).resolve().parents[1] / "results/reference/attack"

STARVING = """
from baselines.scheduler import Scheduler

class Starving(Scheduler):
    name = "starving"
    def candidates(self, waiting, now):
        while mine := list(waiting.of("client-0")):
            if not (yield mine[0]):
                return
"""


def point(**places: float) -> list[float]:
    """The middle of the cube, but for some parameters."""
    return [places.get(axis.name, 0.5) for axis in space.AXES]


def quiet(share: float, note: str = "") -> None:
    """Progress that nobody watches."""


# -- the space -------------------------------------------------------------------------------------------


def test_the_corners_of_the_cube_are_the_bounds():
    low, high = (space.parameters([place] * len(space.AXES)) for place in (0.0, 1.0))
    assert (low["family"], high["family"]) == ("multi_turn_chat", "mixed_prefix")
    for axis in space.AXES:
        if isinstance(axis, space.Axis):
            assert (low[axis.name], high[axis.name]) == pytest.approx((axis.low, axis.high))


@given(st.lists(st.floats(0, 1), min_size=len(space.AXES), max_size=len(space.AXES)))
def test_every_point_is_a_workload_within_the_bounds(places: list[float]):
    found = space.parameters(places)
    for axis in space.AXES:
        if isinstance(axis, space.Axis):
            assert axis.low <= found[axis.name] <= axis.high
            assert not axis.whole or isinstance(found[axis.name], int)
        else:
            assert found[axis.name] in axis.options
    load(space.spec(found, 30.0))


@pytest.mark.parametrize("family", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("misbehaviour", [0.0, 0.5])
def test_misbehaviour_makes_no_more_requests_in_all(family: float, misbehaviour: float):
    chosen = space.parameters(
        point(family=family, misbehaviour=misbehaviour, requests=1, factor=1, burstiness=0, prefixes=0.1)
    )
    sizes = [len(load(space.spec(chosen, 60.0)).generate(seed).requests) for seed in range(5)]
    assert np.mean(sizes) == pytest.approx(chosen["requests"], rel=0.1)


def test_pressure_is_relative_to_what_the_engine_serves():
    calm, hard = (
        objective.workload(space.parameters(point(pressure=pressure, output_tokens=0.9)))
        for pressure in (0.0, 1.0)
    )
    assert calm["duration"] / hard["duration"] == pytest.approx(3 / 0.5, rel=1e-3)
    trace = load(calm).generate(0)
    served = objective.served(trace, objective.parse("fcfs"))
    assert served.requests["finish"].max() < 1.5 * calm["duration"]


# -- the effect ------------------------------------------------------------------------------------------


def queue(*requests: tuple[str, float, int], output: int = 20) -> Trace:
    """Requests (client, arrival, prompt tokens) that share nothing."""
    made = tuple(
        Request(f"r{i}", client, arrival, (Segment(f"p{i}", tokens),), output)
        for i, (client, arrival, tokens) in enumerate(requests)
    )
    return checked(Trace(Header("queue", 0, "test"), made))


def test_what_no_wait_of_a_second_shows_is_no_effect():
    contest = objective.contest("lpm", "p99", "vtc")
    idle = queue(*(("a", 5.0 * i, 100) for i in range(12)), *(("b", 5.0 * i + 2, 100) for i in range(12)))
    assert contest.effect(idle) == 0.0


def test_a_client_counts_with_ten_requests_and_only_if_it_behaves():
    contest = objective.contest("fcfs", "p99", "vtc")
    flood = [("a", 0.01 * i, 2000) for i in range(60)]
    few = queue(*flood, *(("b", 0.5 + 0.01 * i, 100) for i in range(9)))
    enough = queue(*flood, *(("b", 0.5 + 0.01 * i, 100) for i in range(10)))

    def bad(trace: Trace) -> Trace:
        return replace(trace, header=replace(trace.header, misbehaving=("a",)))

    assert contest.effect(bad(few)) is None
    assert contest.effect(bad(enough)) > 3
    assert abs(contest.effect(enough)) < 0.5, "the flood itself waits as long under both"


def test_what_does_not_fit_the_engine_has_no_effect():
    contest = objective.contest("lpm", "throughput", "fcfs")
    small = [("a", 0.0, 100)] * 3
    assert contest.effect(queue(*small)) == pytest.approx(0)
    assert contest.effect(queue(*small, ("a", 0.0, 40_000))) is None


def test_short_backlogs_have_no_jain():
    contest = objective.contest("lpm", "jain")
    assert contest.effect(queue(("a", 0.0, 100), ("b", 0.0, 100))) is None


@pytest.mark.parametrize("metric", ["p99", "throughput", "jain"])
def test_starving_is_the_worst_there_is(tmp_path: Path, metric: str):
    file = tmp_path / "starving.py"
    file.write_text(STARVING)
    contest = objective.contest(f"{file}:Starving", metric)
    heavy = [(f"client-{i % 2}", 0.0, 3000) for i in range(80)]
    effect = contest.effect(queue(*heavy))
    assert effect is not None
    assert effect > 0.4 if metric == "jain" else effect == inf


def test_the_score_is_the_least_effect_of_two_seeds():
    contest = objective.contest("dlpm", "p99")
    chosen = space.parameters(point(requests=0.2, pressure=0.9))
    spec = objective.workload(chosen)
    effects = [contest.effect(load(spec).generate(seed)) for seed in objective.SEEDS]
    assert len(set(effects)) == 2
    assert contest.score(chosen) == min(effects)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dlpm", "p98"), "--metric: no metric 'p98'; did you mean 'p99'"),
        (("dlpm", "p99", "dlpm"), "--against: dlpm is the scheduler itself"),
        (("dlmp", "p99"), "unknown scheduler 'dlmp'; did you mean 'dlpm'"),
        (("sglang:lpm", "p99"), "name one of ours"),
        (
            ("d2lpm+dlpm", "p99"),
            r"d2lpm\+dlpm: one replica is attacked, and no router matters there; .* dlpm",
        ),
        (
            ("dlpm", "p99", "vllm-router:random+vtc"),
            r"one replica is attacked.*; name the scheduler alone: vtc",
        ),
    ],
)
def test_what_cannot_be_attacked_is_refused(arguments: tuple[str, ...], message: str):
    with pytest.raises(BadInput, match=message):
        objective.contest(*arguments)


# -- the search ------------------------------------------------------------------------------------------


def bowl(points: Sequence[Sequence[float]]) -> list[float]:
    """A function with its top, 0, at 0.8 in each of the first three dimensions."""
    return [-sum((place - 0.8) ** 2 for place in one[:3]) for one in points]


def test_cma_climbs_where_random_search_does_not():
    cma, random = (course.searched(name, 1, 400, bowl, quiet) for name in ("cma", "random"))
    assert cma.score > -1e-3 > random.score
    assert all(a[1] < b[1] for a, b in zip(cma.improvements, cma.improvements[1:], strict=False))


@pytest.mark.parametrize("strategy", [CMAES, Random])
def test_points_depend_on_the_seed_alone_and_stay_in_the_cube(strategy: Callable[[int], CMAES | Random]):
    asked = []
    for seed in (3, 3, 4):
        search = strategy(seed)
        first = search.ask()
        search.tell(first, bowl(first))
        asked.append(search.ask())
    assert asked[0] == asked[1] != asked[2]
    assert np.shape(asked[0]) == (BATCH, len(space.AXES))
    assert np.min(asked[0]) >= 0
    assert np.max(asked[0]) <= 1


def test_a_budget_is_kept_and_what_has_no_effect_is_counted():
    made = course.searched("random", 0, BATCH + 3, lambda points: [-inf] * len(points), quiet)
    assert (made.evaluations, made.none, made.best, made.score) == (BATCH + 3, BATCH + 3, None, -inf)


# -- minimising ------------------------------------------------------------------------------------------


def chats(sessions: int, turns: int) -> Trace:
    """Clients a and b alternate; each turn comes after, and quotes, the one before."""
    made: list[Request] = []
    for s in range(sessions):
        history: tuple[Segment, ...] = (Segment("system", 64),)
        for t in range(turns):
            id = f"{s}/{t}"
            after = (f"{s}/{t - 1}",) if t else ()
            history = (*history, Segment(f"user:{id}", 40))
            made.append(Request(id, "ab"[s % 2], 1.0 + s, history, 16, f"s{s}", after))
            history = (*history, Segment(REPLY + id, 16))
    return checked(Trace(Header("chats", 0, "test", misbehaving=("b",)), tuple(made)))


def test_what_comes_after_goes_too():
    left = without(chats(2, 3), ["0/1"])
    assert left is not None
    assert [request.id for request in left.requests] == ["0/0", "1/0", "1/1", "1/2"]
    assert without(left, ["0/0", "1/0"]) is None


@given(st.sets(st.sampled_from([f"{s}/{t}" for s in range(6) for t in range(3)]), min_size=1))
def test_only_what_is_needed_is_left(needed: set[str]):
    def holds(trace: Trace) -> bool:
        return needed <= {request.id for request in checked(trace).requests}

    small = minimised(chats(6, 3), holds)
    last = {s: max(int(id[2:]) for id in needed if id.startswith(s)) for s in {id[0] for id in needed}}
    expected = {f"{s}/{t}" for s, end in last.items() for t in range(end + 1)}
    assert {request.id for request in small.requests} == expected
    assert all(request.output_tokens == 1 for request in small.requests)
    assert all(segment.tokens == 1 for request in small.requests for segment in request.prompt)
    assert min(request.arrival for request in small.requests) == 0
    assert set(small.header.misbehaving) <= {request.client for request in small.requests}


def test_lengths_are_halved_only_while_it_holds():
    small = minimised(chats(4, 2), lambda trace: max(r.output_tokens for r in trace.requests) > 4)
    assert [request.output_tokens for request in small.requests] == [8]


# -- the whole -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made() -> course.Attack:
    """A short attack on LPM that finds something."""
    return course.attack(objective.contest("lpm", "p99"), "cma", 0, BATCH, 2, quiet)


def test_the_number_of_processes_changes_nothing(made: course.Attack):
    with course.scoring(made.contest, 1) as scores:
        assert course.searched("cma", 0, BATCH, scores, quiet) == made.courses[0]


def test_the_small_trace_keeps_nine_tenths_of_the_effect(made: course.Attack):
    finding = made.finding
    assert finding is not None
    assert len(finding.trace.requests) < len(finding.whole.requests)
    assert made.contest.effect(finding.trace) == finding.effect >= course.KEPT * finding.whole_effect
    assert finding.whole_effect >= made.courses[0].score > 0


def test_what_is_left_replays(made: course.Attack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("out")
    found.write(made, folder, "suite attack lpm")
    kept = trace.read(folder / "found.jsonl")
    assert made.finding is not None
    assert kept.requests == made.finding.trace.requests
    assert kept.header.choices["parameters"] == made.finding.parameters
    cells = load_experiment(str(folder / "found.yaml")).cells
    assert [cell.labels["scheduler"] for cell in cells] == ["lpm", "vtc"]
    course_of = json.loads((folder / "attack.json").read_text())
    assert [search["search"] for search in course_of["searches"]] == ["cma", "random"]
    assert course_of["finding"]["small"]["effect"] == made.finding.effect


def test_a_scheduler_of_the_user_s_is_named_by_its_file(tmp_path: Path, made: course.Attack):
    file = tmp_path / "starving.py"
    file.write_text(STARVING)
    contest = objective.contest(f"{file}:Starving", "p99")
    found.write(replace(made, contest=contest), tmp_path, "suite attack")
    experiment = yaml.safe_load((tmp_path / "found.yaml").read_text())
    assert experiment["schedulers"] == [f"{file}:Starving", "vtc"]
    assert experiment["name"] == "attack-starving-p99"


def test_a_scheduler_that_raises_ends_it_with_its_line(tmp_path: Path):
    file = tmp_path / "broken.py"
    file.write_text(STARVING.replace("waiting.of", "waiting.nowhere"))
    contest = objective.contest(f"{file}:Starving", "p99")
    with pytest.raises(BadInput, match=r"broken\.py:7: AttributeError"):
        course.attack(contest, "random", 0, 1, 1, quiet)


def test_nothing_found_is_said_and_leaves_no_trace(made: course.Attack, tmp_path: Path):
    found.write(replace(made, finding=None), tmp_path, "suite attack")
    assert [path.name for path in tmp_path.iterdir()] == ["attack.json"]
    assert json.loads((tmp_path / "attack.json").read_text())["finding"] is None


# -- the committed finding -------------------------------------------------------------------------------


def committed() -> tuple[Contest, Trace]:
    kept = trace.read(REFERENCE / "found.jsonl")
    choices = kept.header.choices
    return objective.contest(choices["scheduler"], choices["metric"], choices["rival"]), kept


def test_the_committed_finding_holds_in_the_simulator():
    contest, kept = committed()
    recorded = json.loads((REFERENCE / "attack.json").read_text())["finding"]["small"]
    assert (contest.scheduler.name, contest.rival.name) == ("dlpm", "vtc")
    assert contest.effect(kept) == pytest.approx(recorded["effect"])
    assert recorded["effect"] > 1


def test_the_committed_finding_holds_in_vllm_s_own_scheduler(
    vllm: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from suite.backends.virtual import VirtualVLLM

    contest, kept = committed()
    with KEPT:
        runs = {
            spec.name: VirtualVLLM().run(kept, spec, tmp_path / spec.name, quiet)
            for spec in (contest.scheduler, contest.rival)
        }
    waits = {
        name: (run.requests["first_token"] - run.requests["arrival"])[
            ~run.requests["client"].isin(kept.header.misbehaving)
        ].max()
        for name, run in runs.items()
    }
    assert waits["dlpm"] > 2 * waits["vtc"]
