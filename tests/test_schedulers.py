"""The policies alone, driven by a host that admits what it is told to."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baselines.dlpm import DLPM
from baselines.fcfs import FCFS
from baselines.lpm import LPM, LPMWithFallback
from baselines.preble_groups import PrebleGroups
from baselines.scheduler import Request, Scheduler
from baselines.vtc import VTC
from baselines.waiting import WaitingQueue


class Host:
    """Waiting requests with scripted matches, and a policy that is told everything."""

    def __init__(self, policy: Scheduler) -> None:
        self.policy = policy
        self.matches: dict[Request, int] = {}
        self.waiting = WaitingQueue(self)
        self.sequence = 0

    def follow(self, request: Request) -> int:
        return self.matches.get(request, 0)

    def unfollow(self, request: Request) -> None:
        pass

    def arrive(self, client: str, prompt: int = 100, matched: int = 0, weight: float = 1.0) -> Request:
        request = Request(f"{client}{self.sequence}", client, self.sequence, 0.0, prompt, weight)
        self.sequence += 1
        self.matches[request] = matched
        self.waiting.add(request)
        self.policy.arrived(request, 0.0)
        return request

    def step(self, slots: int = 1, refuse: Iterable[Request] = ()) -> list[Request]:
        """One step with `slots` free slots; returns who was admitted."""
        admitted: list[Request] = []
        offers = self.policy.candidates(self.waiting, 0.0)
        request = next(offers, None)
        while request is not None and request not in refuse:
            self.waiting.remove(request)
            self.policy.admitted(request, self.matches[request], 0.0)
            admitted.append(request)
            if len(admitted) == slots:
                break
            try:
                request = offers.send(True)
            except StopIteration:
                break
        else:
            if request is not None:
                with pytest.raises(StopIteration):
                    offers.send(False)
        offers.close()
        return admitted

    def preempt(self, request: Request) -> None:
        self.waiting.add(request)
        self.policy.preempted(request, 0.0)


def test_fcfs_serves_in_order_of_arrival() -> None:
    host = Host(FCFS())
    a, b, c = host.arrive("x", matched=0), host.arrive("y", matched=90), host.arrive("x")
    assert host.step(2) == [a, b]
    assert host.step(5) == [c]


def test_a_preempted_request_keeps_its_place() -> None:
    host = Host(FCFS())
    a, b = host.arrive("x"), host.arrive("x")
    assert host.step(1) == [a]
    host.preempt(a)
    assert host.step(2) == [a, b]


@pytest.mark.parametrize("policy", [FCFS(), LPM(), LPMWithFallback(), VTC(), DLPM(), PrebleGroups()])
def test_a_refusal_ends_the_step_and_nobody_is_skipped(policy: Scheduler) -> None:
    host = Host(policy)
    first, second = host.arrive("x", matched=50), host.arrive("y", matched=10)
    assert host.step(2, refuse=[first]) == []
    assert host.step(2) == [first, second]


def test_lpm_serves_the_longest_match_first_and_ties_by_arrival() -> None:
    host = Host(LPM())
    a, b, c, d = (host.arrive("x", matched=matched) for matched in (10, 40, 10, 99))
    assert host.step(4) == [d, b, a, c]


def test_lpm_with_fallback_is_fcfs_above_its_threshold() -> None:
    host = Host(LPMWithFallback(threshold=2))
    a, b, c = (host.arrive("x", matched=matched) for matched in (0, 10, 20))
    assert host.step(1) == [a]
    assert host.step(2) == [c, b]


def test_lpm_fallback_threshold_is_sglangs() -> None:
    assert LPMWithFallback().threshold == 128


# -- VTC ---------------------------------------------------------------------------------------------------


def test_vtc_alternates_by_service_received() -> None:
    host = Host(VTC())
    x = [host.arrive("x", prompt=100) for _ in range(3)]
    y = [host.arrive("y", prompt=40) for _ in range(3)]
    assert host.step(6) == [x[0], y[0], y[1], y[2], x[1], x[2]]
    assert host.policy.counters == {"x": 300, "y": 120}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("charge", "expected"), [("full", 100.0), ("extend", 30.0)])
def test_vtc_charges_the_prompt_in_full_or_only_its_extend_tokens(charge: str, expected: float) -> None:
    policy = VTC(charge=charge)  # type: ignore[arg-type]
    host = Host(policy)
    request = host.arrive("x", prompt=100, matched=70)
    host.step()
    assert policy.counters == {"x": expected}
    policy.generated({request: 3}, 1.0)
    assert policy.counters == {"x": expected + 6}


def test_plain_vtc_charges_full_input() -> None:
    assert VTC().charge == "full"


def test_vtc_lifts_a_newcomer_to_the_least_counter_among_the_waiting() -> None:
    policy = VTC()
    host = Host(policy)
    for client, prompt in (("x", 500), ("y", 300)):
        host.arrive(client, prompt=prompt)
        host.arrive(client, prompt=prompt)
    host.step(2)
    host.arrive("new")
    assert policy.counters["new"] == 300


def test_vtc_lifts_to_the_last_client_that_left_when_nobody_waits() -> None:
    policy = VTC()
    host = Host(policy)
    host.arrive("x", prompt=500)
    host.step()
    host.arrive("y", prompt=10)
    assert policy.counters["y"] == 500


def test_vtc_does_not_lower_and_does_not_lift_a_client_that_already_waits() -> None:
    policy = VTC()
    host = Host(policy)
    host.arrive("x", prompt=500)
    host.step()
    host.arrive("y", prompt=10)
    host.arrive("x")
    assert policy.counters == {"x": 500, "y": 500}
    policy.counters["y"] = 0.0
    host.arrive("y")
    assert policy.counters["y"] == 0


def test_vtc_divides_service_by_weight() -> None:
    policy = VTC()
    host = Host(policy)
    heavy = [host.arrive("heavy", weight=3.0) for _ in range(6)]
    light = [host.arrive("light") for _ in range(2)]
    order = host.step(8)
    assert order[:4] == [heavy[0], light[0], heavy[1], heavy[2]]
    policy.generated({heavy[0]: 3, light[0]: 3}, 0.0)
    assert policy.counters["heavy"] == pytest.approx(200 + 2)
    assert policy.counters["light"] == 206


def test_vtc_neither_lifts_nor_charges_after_preemption() -> None:
    policy = VTC()
    host = Host(policy)
    x = host.arrive("x", prompt=10)
    host.step()
    host.arrive("y", prompt=900)
    host.step()
    host.preempt(x)
    assert policy.counters == {"x": 10, "y": 910}
    host.waiting.remove(x)
    policy.resumed(x, 0, 0.0)
    assert policy.counters == {"x": 10, "y": 910}


def test_a_preempted_request_that_waits_keeps_no_later_one_from_its_lift() -> None:
    policy = VTC()
    host = Host(policy)
    long = host.arrive("a", prompt=10)
    host.step()
    b = [host.arrive("b", prompt=1000) for _ in range(6)]
    assert host.step(4) == b[:4]
    host.preempt(long)
    host.arrive("a", prompt=1000)
    assert policy.counters == {"a": 4010, "b": 4010}


def test_the_last_client_that_left_is_the_last_whose_request_was_admitted_not_resumed() -> None:
    policy = VTC()
    host = Host(policy)
    a = host.arrive("a", prompt=10)
    host.step()
    host.arrive("b", prompt=1000)
    host.step()
    host.preempt(a)
    host.waiting.remove(a)
    policy.resumed(a, 0, 0.0)
    host.arrive("new")
    assert policy.counters["new"] == 1010


@pytest.mark.parametrize("policy", [VTC(), VTC(charge="extend"), DLPM()])
def test_an_abort_gives_back_what_was_never_computed(policy: VTC | DLPM) -> None:
    host = Host(policy)
    first, second = host.arrive("x", prompt=100), host.arrive("x", prompt=100)
    host.step(1)
    charged = dict(vars(policy)["counters" if isinstance(policy, VTC) else "deficits"])
    policy.finished(first, "abort", 0, 60, 1.0)
    host.waiting.remove(second)
    policy.finished(second, "abort", 0, 0, 1.0)
    after = vars(policy)["counters" if isinstance(policy, VTC) else "deficits"]
    assert abs(after["x"] - charged["x"]) == 60
    late = host.arrive("y")
    assert host.step() == [late]


# -- DLPM --------------------------------------------------------------------------------------------------


def test_dlpm_serves_by_longest_prefix_among_clients_with_credit() -> None:
    policy = DLPM(quantum=100)
    host = Host(policy)
    x = [host.arrive("x", prompt=200, matched=120) for _ in range(3)]
    y = [host.arrive("y", prompt=200, matched=0) for _ in range(3)]
    # x pays 80 extend tokens a request, y 200: after two of x and one of y all are spent. The next refill
    # gives x one quantum and y, deeper in the red, one too, which is not enough for it.
    assert host.step(4) == [x[0], x[1], y[0], x[2]]
    assert policy.deficits == {"x": 100 - 160 + 100 - 80, "y": 100 - 200 + 100}


def test_dlpm_scans_from_the_top_again_after_a_refill() -> None:
    policy = DLPM(quantum=50)
    host = Host(policy)
    long_first = host.arrive("x", prompt=100, matched=40)
    long_again = host.arrive("x", prompt=100, matched=30)
    other = host.arrive("y", prompt=100, matched=10)
    # x is spent after its first request, so y's shorter match goes next; both are spent then, and the refill
    # makes x's request, skipped a moment ago, the first again.
    assert host.step(3) == [long_first, other, long_again]


def test_dlpm_refills_only_when_no_waiting_client_has_credit() -> None:
    policy = DLPM(quantum=100)
    host = Host(policy)
    host.arrive("x", prompt=300)
    host.arrive("y", prompt=10)
    host.step(2)
    assert policy.deficits == {"x": -200, "y": 90}
    host.arrive("x", prompt=5)
    host.arrive("y", prompt=5)
    host.step(1)
    assert policy.deficits == {"x": -200, "y": 85}


def test_dlpm_gives_a_client_in_deep_debt_as_many_quanta_as_it_takes() -> None:
    policy = DLPM(quantum=100)
    host = Host(policy)
    host.arrive("x", prompt=1050)
    host.step()
    assert policy.deficits == {"x": -950}
    host.arrive("x", prompt=10)
    host.step()
    assert policy.deficits == {"x": 50 - 10}


def test_dlpm_idle_clients_are_refilled_but_bank_at_most_one_quantum() -> None:
    policy = DLPM(quantum=100)
    host = Host(policy)
    host.arrive("idle", prompt=150)
    host.step()
    host.arrive("x", prompt=1000)
    host.step()
    host.arrive("x", prompt=1)
    host.step()
    # idle stood at -50 and took part in the first refill (one quantum: 50); with credit it got no more
    assert policy.deficits["idle"] == 50
    assert policy.deficits["x"] == -900 + 1000 - 1


debts = st.floats(-5000, 5000) | st.integers(-50, 50).map(lambda quanta: 100.0 * quanta)


@given(st.lists(st.tuples(debts, st.sampled_from([0.5, 1.0, 3.0]), st.booleans()), min_size=1, max_size=6))
def test_dlpm_refill_equals_the_papers_loop(clients: list[tuple[float, float, bool]]) -> None:
    """Lines 3-8, one quantum a call for everyone without credit, called until a waiting client has credit."""
    policy = DLPM(quantum=100)
    policy.deficits = {str(i): deficit for i, (deficit, _, _) in enumerate(clients)}
    policy._weights = {str(i): weight for i, (_, weight, _) in enumerate(clients)}
    waiting = [str(i) for i, (deficit, _, waits) in enumerate(clients) if waits and deficit <= 0]
    if not waiting:
        return
    expected = dict(policy.deficits)
    while all(expected[client] <= 0 for client in waiting):
        for client, deficit in expected.items():
            if deficit <= 0:
                expected[client] = deficit + 100 * policy._weights[client]
    policy._refill(waiting)
    assert policy.deficits == pytest.approx(expected, abs=1e-6)


def test_dlpm_does_not_refill_when_the_only_client_with_credit_does_not_fit() -> None:
    policy = DLPM(quantum=100)
    host = Host(policy)
    host.arrive("small", prompt=300)
    host.arrive("big", prompt=10)
    host.step(2)
    big, small = host.arrive("big", prompt=5000), host.arrive("small", prompt=1)
    assert host.step(2, refuse=[big]) == []
    assert policy.deficits == {"small": -200, "big": 90}
    assert host.step(2) == [big, small]


def test_dlpm_charges_extend_and_output_tokens() -> None:
    policy = DLPM(quantum=1000, input_weight=3, output_weight=5)
    host = Host(policy)
    request = host.arrive("x", prompt=100, matched=60)
    host.step()
    policy.generated({request: 7}, 0.0)
    assert policy.deficits == {"x": 1000 - 3 * 40 - 5 * 7}


def test_dlpm_quantum_scales_with_weight() -> None:
    policy = DLPM(quantum=100)
    host = Host(policy)
    host.arrive("x", prompt=10, weight=4.0)
    host.arrive("y", prompt=10)
    host.step(2)
    assert policy.deficits == {"x": 390, "y": 90}


# -- Preble's groups ---------------------------------------------------------------------------------------


def test_preble_groups_picks_each_group_in_proportion_and_by_arrival() -> None:
    """Groups 10, 7 (the paper's 63 %) and 1: ten, seven and one in a round, though the queues never end."""
    host = Host(PrebleGroups())
    full, most, none = ([host.arrive("x", matched=matched) for _ in range(40)] for matched in (100, 63, 0))
    rounds = [host.step(18), host.step(18)]
    assert rounds[0] == full[:10] + most[:7] + none[:1]
    assert rounds[1] == full[10:20] + most[7:14] + none[1:2]


@pytest.mark.parametrize(
    ("matched", "picks"), [(0, 1), (1, 1), (10, 1), (11, 2), (81, 9), (90, 9), (91, 10), (150, 10)]
)
def test_preble_groups_are_tenths_of_the_prompt(matched: int, picks: int) -> None:
    """Of a round beside a queue of another group, so many go to the group."""
    host = Host(PrebleGroups())
    mine = [host.arrive("x", matched=matched) for _ in range(30)]
    other = 10 if picks < 10 else 9
    for _ in range(30):
        host.arrive("y", matched=10 * other)
    assert sum(request in mine for request in host.step(other + picks)) == picks


def test_preble_groups_goes_on_with_its_round_in_the_next_step() -> None:
    host = Host(PrebleGroups())
    full = [host.arrive("x", matched=100) for _ in range(20)]
    cold = host.arrive("x")
    assert [host.step(1) for _ in range(11)] == [[request] for request in full[:10]] + [[cold]]
    assert host.step(1) == [full[10]]


def test_preble_groups_leaves_no_slot_empty_for_a_group_that_is_not_there() -> None:
    host = Host(PrebleGroups())
    cold = [host.arrive("x") for _ in range(30)]
    assert host.step(30) == cold


def test_preble_groups_sees_matches_as_they_are_at_the_start_of_a_step() -> None:
    host = Host(PrebleGroups())
    a, b, c = (host.arrive("x", matched=matched) for matched in (0, 50, 0))
    assert host.step(1) == [b]
    host.matches[c] = 100
    host.waiting.rematched(c, 100)
    assert host.step(2) == [c, a]


def test_preble_groups_tries_who_did_not_fit_first_unless_it_was_withdrawn() -> None:
    policy = PrebleGroups()
    host = Host(policy)
    a, b, c = (host.arrive("x", matched=matched) for matched in (50, 0, 0))
    assert host.step(1, refuse=[a]) == []
    better = host.arrive("x", matched=100)
    assert host.step(1) == [a]
    assert host.step(1, refuse=[better]) == []
    host.waiting.remove(better)
    policy.finished(better, "abort", 0, 0, 0.0)
    assert host.step(2) == [b, c]


def test_preble_groups_looks_at_the_queue_only_to_admit() -> None:
    """A refused request is offered again without a look at those who wait."""
    host = Host(PrebleGroups())
    first = host.arrive("x", matched=100)
    host.arrive("x")
    host.step(1, refuse=[first])
    host.waiting.by_arrival = None  # type: ignore[assignment, method-assign]
    assert host.step(1, refuse=[first]) == []


def test_preble_groups_looks_anew_at_a_long_queue_when_a_hundredth_was_admitted() -> None:
    """Of 1,000, ten are admitted between two looks; who arrives is seen, who leaves is not tried."""
    policy = PrebleGroups()
    host = Host(policy)
    cold = [host.arrive("x") for _ in range(1000)]
    assert host.step(1) == [cold[0]]
    looked: list[Request] = []
    matched = host.waiting.matched
    host.waiting.matched = lambda request: (looked.append(request), matched(request))[1]  # type: ignore[method-assign]
    assert [host.step(1) for _ in range(9)] == [[request] for request in cold[1:10]]
    assert looked == []
    warm = host.arrive("x", matched=100)
    host.waiting.remove(cold[10])
    policy.finished(cold[10], "abort", 0, 0, 0.0)
    assert host.step(2) == [warm, cold[11]]
    assert len(looked) == 990
    host.matches[cold[500]] = 100
    host.waiting.rematched(cold[500], 100)
    assert [host.step(1)[0] for _ in range(9)] == [*cold[12:20], cold[500]]


@pytest.mark.parametrize(
    "make",
    [
        lambda: DLPM(quantum=0),
        lambda: DLPM(quantum=float("nan")),
        lambda: DLPM(quantum=float("inf")),
        lambda: DLPM(output_weight=-1),
        lambda: VTC(input_weight=0),
        lambda: VTC(charge="half"),  # type: ignore[arg-type]
        lambda: LPMWithFallback(threshold=-1),
    ],
)
def test_impossible_parameters_are_refused(make: type[Scheduler]) -> None:
    with pytest.raises(ValueError, match="must"):
        make()
