"""The routers alone: their choices in situations made by hand, and what holds of every one of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from baselines.cache_aware import CacheAware
from baselines.client_round_robin import ClientRoundRobin
from baselines.d2lpm import D2LPM
from baselines.least_outstanding import LeastOutstanding
from baselines.power_of_two import PowerOfTwo
from baselines.preble import Preble
from baselines.prefix_index import Node
from baselines.round_robin import RoundRobin
from baselines.router import End, Request, Router, Worker

MAKERS: dict[str, Callable[[], Router]] = {
    "round-robin": RoundRobin,
    "least-outstanding": LeastOutstanding,
    "power-of-two": PowerOfTwo,
    "client-round-robin": ClientRoundRobin,
    "cache-aware": lambda: CacheAware(balance_abs_threshold=2),
    "preble": lambda: Preble(window=8.0),
    "d2lpm": lambda: D2LPM(quantum=100),
}
routers = pytest.mark.parametrize("name", MAKERS)


@dataclass
class Host:
    """Workers, and a router that is told everything; time stands still unless it is moved."""

    router: Router
    size: int = 3
    kv_tokens: int | None = None
    now: float = 0.0
    workers: list[Worker] = field(init=False)
    running: dict[Request, Worker] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.workers = [Worker(f"replica-{i}", self.kv_tokens) for i in range(self.size)]
        for worker in self.workers:
            self.router.joined(worker, self.now)

    def send(
        self, client: str = "a", blocks: Sequence[int] = (), tokens: int | None = None, weight: float = 1
    ) -> int:
        """Route a request of these blocks (or so many tokens); returns the place of the worker."""
        request = self.request(client, blocks, tokens, weight)
        return self.workers.index(self.route(request))

    def request(self, client: str, blocks: Sequence[int], tokens: int | None, weight: float = 1) -> Request:
        prompt = 16 * len(blocks) if tokens is None else tokens
        return Request(f"r{len(self.running)}", client, self.now, prompt, tuple(blocks), weight=weight)

    def route(self, request: Request, offered: Sequence[Worker] | None = None) -> Worker:
        worker = self.running[request] = self.router.route(request, offered or self.workers, self.now)
        return worker

    def finish(self, request: Request | None = None, output: int = 0, end: End = "stop") -> None:
        """The request (the oldest, if not given) leaves."""
        request = request or next(iter(self.running))
        self.router.finished(request, self.running.pop(request), end, output, self.now)

    def lose(self, worker: Worker) -> None:
        for request in [request for request, where in self.running.items() if where is worker]:
            self.finish(request, end="returned")
        self.router.lost(worker, self.now)
        self.workers.remove(worker)

    def join(self, worker: Worker) -> None:
        self.router.joined(worker, self.now)
        self.workers.append(worker)


# -- every router ------------------------------------------------------------------------------------------

prompts = st.lists(st.integers(0, 1), max_size=9).map(tuple)
steps = st.one_of(
    st.tuples(st.just("send"), st.sampled_from("abc"), prompts, st.integers(0, 15), st.integers(1, 7)),
    st.tuples(st.just("send"), st.sampled_from("abc"), prompts, st.integers(0, 15), st.integers(1, 7)),
    st.tuples(st.just("start"), st.integers(0, 9)),
    st.tuples(
        st.just("finish"),
        st.integers(0, 9),
        st.sampled_from(["stop", "abort", "returned"]),
        st.integers(0, 40),
    ),
    st.tuples(st.just("evict"), st.integers(0, 2), prompts, st.integers(0, 8)),
    st.tuples(st.just("lose"), st.integers(0, 2)),
    st.tuples(st.just("wait"), st.integers(1, 5)),
)
lives = st.lists(steps, max_size=50)


def _play(router: Router, life: list[tuple], each: Callable[[Host], None] = lambda host: None) -> list[str]:
    """Drive a router through a life and to its end; returns its choices. A mask says who is offered."""
    host, choices = Host(router, kv_tokens=6 * 16), []
    for kind, *rest in life:
        if kind == "send":
            client, blocks, more, mask = rest
            offered = [worker for i, worker in enumerate(host.workers) if mask >> i & 1] or host.workers
            request = host.request(client, blocks, 16 * len(blocks) + more, weight=1 + (client == "c"))
            chosen = host.route(request, offered)
            assert chosen in offered
            choices.append(chosen.name)
        elif kind == "wait":
            host.now += rest[0]
        elif kind == "evict":
            router.evicted(host.workers[rest[0] % len(host.workers)], rest[1], rest[2], host.now)
        elif kind == "lose":
            worker = host.workers[rest[0] % len(host.workers)]
            host.lose(worker)
            host.join(worker)
        elif host.running:
            request = list(host.running)[rest[0] % len(host.running)]
            if kind == "start":
                router.started(request, host.running[request], host.now)
            else:
                host.finish(request, *reversed(rest[1:]))
        each(host)
    while host.running:
        host.finish()
    each(host)
    return choices


@routers
@settings(max_examples=60, deadline=None)
@given(life=lives)
def test_a_router_chooses_among_the_offered_and_the_same_again(name: str, life: list[tuple]) -> None:
    assert _play(MAKERS[name](), life) == _play(MAKERS[name](), life)


@pytest.mark.parametrize("name", ["least-outstanding", "power-of-two", "cache-aware", "d2lpm"])
@settings(max_examples=60, deadline=None)
@given(life=lives)
def test_what_is_outstanding_is_what_runs(name: str, life: list[tuple]) -> None:
    router = MAKERS[name]()
    assert isinstance(router, LeastOutstanding)

    def check(host: Host) -> None:
        running = list(host.running.values())
        assert router.outstanding == {worker: running.count(worker) for worker in host.workers}

    _play(router, life, check)
    assert set(router.outstanding.values()) == {0}


# -- by turns and by load ----------------------------------------------------------------------------------


def test_round_robin_goes_round() -> None:
    host = Host(RoundRobin())
    assert [host.send(client) for client in "aabca"] == [0, 1, 2, 0, 1]


def test_client_round_robin_has_a_turn_for_each_client() -> None:
    host = Host(ClientRoundRobin())
    assert [host.send(client) for client in "aabaab"] == [0, 1, 0, 2, 0, 1]


def test_least_outstanding_takes_the_least_loaded_and_the_first_of_equals() -> None:
    host = Host(LeastOutstanding())
    first = host.request("a", (), 10)
    host.route(first)
    assert [host.send() for _ in range(3)] == [1, 2, 0]
    second = next(request for request, worker in host.running.items() if worker is host.workers[1])
    host.finish(second)
    assert host.send() == 1


def test_power_of_two_leaves_the_most_loaded_alone() -> None:
    """Of three workers any two have one that is not the most loaded; the draws reach both of the others."""
    host = Host(PowerOfTwo())
    for _ in range(40):
        host.router.outstanding[host.workers[1]] = 1000  # type: ignore[attr-defined]
        host.send()
    chosen = list(host.running.values())
    assert host.workers[1] not in chosen
    assert min(chosen.count(host.workers[0]), chosen.count(host.workers[2])) > 5


def test_power_of_two_draws_by_its_seed() -> None:
    drawn = [
        [host.send() for _ in range(30)] for host in (Host(PowerOfTwo(seed=seed), 8) for seed in (1, 1, 2))
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert Host(PowerOfTwo(), 1).send() == 0


# -- cache-aware -------------------------------------------------------------------------------------------

LONG, OTHER = tuple(range(10)), tuple(range(100, 110))


def test_cache_aware_follows_a_prefix_of_more_than_its_threshold() -> None:
    host = Host(CacheAware())
    assert [host.send(blocks=LONG), host.send(blocks=OTHER), host.send(blocks=(200,))] == [0, 1, 2]
    assert host.send(blocks=(*LONG[:4], 50, 51, 52, 53, 54, 55)) == 0
    # three blocks of ten are not more than 0.3 of the prompt: the worker that holds least
    assert host.send(blocks=(*OTHER[:3], 60, 61, 62, 63, 64, 65, 66)) == 2


def test_cache_aware_goes_by_load_when_loads_are_far_apart() -> None:
    """With 65 outstanding against 0, but not yet with 64; and not while the ratio is small."""
    host = Host(CacheAware(), size=2)
    assert [host.send(blocks=LONG) for _ in range(66)] == [0] * 65 + [1]
    even = Host(CacheAware(balance_abs_threshold=2, balance_rel_threshold=2.0), size=2)
    even.router.outstanding.update(dict(zip(even.workers, (6, 3), strict=True)))  # type: ignore[attr-defined]
    even.router.index.insert(even.request("a", LONG, None), even.workers[0])  # type: ignore[attr-defined]
    assert [even.send(blocks=LONG), even.send(blocks=LONG)] == [0, 1]


# -- D2LPM -------------------------------------------------------------------------------------------------


def _deficits(host: Host, client: str) -> list[float]:
    router = host.router
    assert isinstance(router, D2LPM)
    return [router.accounts[worker][client].deficit for worker in host.workers]


def test_d2lpm_is_sticky_until_the_quantum_is_used_up() -> None:
    """160 tokens at a time on 400 of credit: three times at each worker in turn."""
    host = Host(D2LPM(quantum=400))
    assert [host.send(blocks=LONG) for _ in range(10)] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 0]
    # -80 everywhere before the last, which found all without credit
    assert _deficits(host, "a") == [-80 + 400 - 160, 320, 320]


def test_d2lpm_counts_each_client_on_its_own() -> None:
    host = Host(D2LPM(quantum=100))
    assert [host.send("a", LONG), host.send("b", LONG), host.send("a", LONG)] == [0, 0, 1]
    assert _deficits(host, "a") == [-60, -60, 100]
    assert _deficits(host, "b") == [-60, 100, 100]


def test_d2lpm_takes_the_least_loaded_of_those_with_the_longest_match() -> None:
    host = Host(D2LPM(quantum=10_000))
    index = host.router.index  # type: ignore[attr-defined]
    for place, length in enumerate((9, 10, 10)):
        index.insert(host.request("a", LONG[:length], None), host.workers[place])
    host.router.outstanding.update(dict(zip(host.workers, (0, 5, 4), strict=True)))  # type: ignore[attr-defined]
    assert [host.send(blocks=(*LONG, 50)), host.send(blocks=OTHER)] == [2, 0]


def test_d2lpm_refills_as_often_as_it_takes_and_all_workers_alike() -> None:
    host = Host(D2LPM(quantum=100), size=2)
    host.send(tokens=1050)
    host.send(tokens=1550)
    assert _deficits(host, "a") == [-950, -1450]
    assert host.send(tokens=10) == 0
    assert _deficits(host, "a") == [-950 + 1000 - 10, -450]


def test_d2lpm_charges_prompts_when_sent_and_outputs_when_done() -> None:
    host = Host(D2LPM(quantum=1000, input_weight=3, output_weight=5), size=1)
    host.send(tokens=100)
    assert _deficits(host, "a") == [700]
    host.finish(output=7)
    assert _deficits(host, "a") == [665]
    host.send(tokens=100)
    host.finish(output=4, end="abort")
    assert _deficits(host, "a") == [345]


def test_d2lpm_undoes_the_charge_of_what_comes_back() -> None:
    host = Host(D2LPM(quantum=1000), size=2)
    host.send(tokens=0)
    host.send(tokens=400)
    assert _deficits(host, "a") == [1000, 600]
    host.finish(list(host.running)[1], end="returned")
    assert _deficits(host, "a") == [1000, 1000]


def test_d2lpm_weights_scale_the_quantum() -> None:
    host = Host(D2LPM(quantum=100), size=1)
    host.send("heavy", tokens=0, weight=4.0)
    host.send("light", tokens=0)
    assert _deficits(host, "heavy") == [400]
    assert _deficits(host, "light") == [100]


def test_d2lpm_comes_to_a_new_worker_with_the_next_refill() -> None:
    host = Host(D2LPM(quantum=100), size=1)
    host.send(tokens=60)
    host.join(Worker("new"))
    assert [host.send(tokens=60), host.send(tokens=10)] == [0, 1]
    assert _deficits(host, "a") == [-20 + 100, 100 - 10]


def test_d2lpm_forgets_what_a_lost_worker_held_and_charged() -> None:
    host = Host(D2LPM(quantum=1000), size=2)
    lost = host.workers[0]
    assert [host.send(blocks=LONG), host.send(blocks=LONG)] == [0, 0]
    host.lose(lost)
    assert host.send(blocks=LONG) == 0
    host.join(lost)
    assert host.send(blocks=LONG) == 0
    assert _deficits(host, "a") == [680, 0]


def test_d2lpm_with_a_very_large_quantum_is_locality_alone() -> None:
    host = Host(D2LPM(quantum=1e12))
    assert {host.send(blocks=LONG) for _ in range(500)} == {0}


class Books(D2LPM):
    """A D2LPM whose work is written down beside it, by worker and client."""

    def __init__(self) -> None:
        super().__init__(quantum=50)
        self.done: Counter[tuple[Worker, str]] = Counter()
        self.running: Counter[tuple[Worker, str]] = Counter()
        self.most: Counter[tuple[Worker, str]] = Counter()
        self.longest: Counter[tuple[Worker, str]] = Counter()
        self.back: Counter[tuple[Worker, str]] = Counter()

    def lost(self, worker: Worker, now: float) -> None:
        super().lost(worker, now)
        for book in (self.done, self.running, self.most, self.longest, self.back):
            for key in [key for key in book if key[0] is worker]:
                del book[key]

    def route(self, request: Request, workers: Sequence[Worker], now: float) -> Worker:
        key = worker, _ = super().route(request, workers, now), request.client
        self.done[key] += request.prompt_tokens
        self.running[key] += 1
        self.most[key] = max(self.most[key], self.running[key])
        self.longest[key] = max(self.longest[key], request.prompt_tokens)
        return worker

    def finished(self, request: Request, worker: Worker, end: End, output_tokens: int, now: float) -> None:
        super().finished(request, worker, end, output_tokens, now)
        self.done[worker, request.client] += (
            -request.prompt_tokens if end == "returned" else 2 * output_tokens
        )
        self.running[worker, request.client] -= 1
        self.back[worker, request.client] += request.prompt_tokens if end == "returned" else 0


OVERDRAWN_AND_BACK = [("send", "a", (0,) * 9, 1, 0), ("send", "a", (), 1, 0), ("finish", 0, "returned", 0)]


@settings(max_examples=200, deadline=None)
@example(life=OVERDRAWN_AND_BACK)
@given(life=lives)
def test_d2lpm_accounts_settle_and_stay_within_their_bounds(life: list[tuple]) -> None:
    """Charged is what was really done; credited are whole quanta; every deficit is in (-U, Q_w + R].

    U is the longest prompt and the outputs of what was outstanding at once, at most 40 tokens each here; R
    are the prompts that came back.
    """
    router = Books()

    def check(host: Host) -> None:
        for worker, accounts in router.accounts.items():
            for client, account in accounts.items():
                key, quantum = (worker, client), 50 * (1 + (client == "c"))
                assert account.charged == router.done[key]
                assert account.credited % quantum == 0
                assert -router.longest[key] - 2 * 40 * router.most[key] <= account.deficit
                assert account.deficit <= quantum + router.back[key]

    _play(router, life, check)
    assert set(router.outstanding.values()) == {0}


@given(st.floats(-5000, 5000), st.floats(-5000, 0), st.sampled_from([0.1, 1.0, 7.0, 100.0]))
def test_d2lpm_refill_equals_the_papers_loop(one: float, other: float, quantum: float) -> None:
    """One quantum for every worker at a time, until the client has credit at one of them."""
    host = Host(D2LPM(quantum=quantum), size=2)
    host.send(tokens=0)
    _set_deficits(host, expected := [min(one, 0.0), other])
    while all(deficit <= 0 for deficit in expected):
        expected = [deficit + quantum for deficit in expected]
    host.send(tokens=0)
    assert _deficits(host, "a") == pytest.approx(expected, abs=quantum * 1e-3)


def _set_deficits(host: Host, deficits: Sequence[float]) -> None:
    host.send("a", tokens=0)
    for worker, deficit in zip(host.workers, deficits, strict=True):
        host.router.accounts[worker]["a"].deficit = deficit  # type: ignore[attr-defined]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), min_size=30, max_size=120),
    st.sampled_from([50, 400]),
)
def test_d2lpm_bounds_how_long_a_client_sticks(sizes: list[tuple[int, int]], quantum: int) -> None:
    """A flood with one prefix: between any two workers its service differs by at most Q_w + U."""
    host = Host(D2LPM(quantum=quantum), size=3)
    for blocks, output in sizes:
        host.send(blocks=range(blocks))
        host.finish(output=output)
        charged = [account["a"].charged for account in host.router.accounts.values()]  # type: ignore[attr-defined]
        assert max(charged) - min(charged) <= quantum + 16 * 30 + 2 * 30


# -- Preble ------------------------------------------------------------------------------------------------


def _preble(size: int = 3, kv_tokens: int | None = None, **given: float) -> Host:
    """A tenth of a second for a prompt token, and a hundredth for one of output: 4 a request at first."""
    seconds = {"prefill_seconds": 0.1, "decode_seconds": 0.01, "output_guess": 400.0, "imbalance": 1.0}
    return Host(Preble(**{**seconds, **given}), size, kv_tokens)


def test_preble_exploits_when_most_of_the_prompt_is_cached_and_explores_when_half_is_not() -> None:
    host = _preble()
    assert host.send(blocks=LONG) == 0
    assert host.send(blocks=(*LONG[:6], 50, 51, 52, 53)) == 0
    assert host.send(blocks=(*LONG[:5], 60, 61, 62, 63, 64)) == 1


def test_preble_explores_by_what_a_worker_was_sent_and_what_it_has_to_compute() -> None:
    """Worker 0 has 16 + 4 s of work, and 8 s for the missed half; worker 1 has 32 + 4 s of work."""
    host = _preble(size=2)
    assert [host.send(tokens=160), host.send(tokens=320)] == [0, 1]
    host.router.index.insert(host.request("a", LONG[:5], None), host.workers[0])  # type: ignore[attr-defined]
    assert host.send(blocks=LONG) == 0
    # now 16 + 8 + 2 * 4 s against 36 s; of another such prompt 16 s are missing at both
    assert host.send(blocks=OTHER) == 0
    assert host.send(blocks=OTHER[::-1]) == 1


def test_preble_exploits_at_the_cheapest_of_those_with_the_longest_match() -> None:
    host = _preble()
    index = host.router.index  # type: ignore[attr-defined]
    for place in (1, 2):
        index.insert(host.request("a", LONG, None), host.workers[place])
    assert [host.send(blocks=LONG) for _ in range(4)] == [1, 2, 1, 2]


def test_preble_counts_what_would_be_evicted_and_is_hit() -> None:
    """What worker 0 would lose was never hit, what worker 1 would lose two of three times."""
    host = _preble(size=2, kv_tokens=160, window=100.0)
    router = host.router
    assert isinstance(router, Preble)
    one, other = host.workers
    router.index.insert(host.request("a", OTHER, None), one)
    for blocks, worker in ((LONG, other), (LONG, other), ((), one), ((), one), ((), other)):
        request = host.request("a", blocks, 0 if not blocks else None)
        router._send(request, router.index.match(request), worker, 0.0)
    # worker 0: 2 * 4 s; worker 1: 16 + 3 * 4 s, and M = 5 blocks (whole node: 10) of 1.6 s * 2 hits / 3
    assert router._eviction(one, 5, 16) == 0.0
    assert router._eviction(other, 5, 16) == pytest.approx(16 * 2 / 3)
    assert router._load(other) == pytest.approx(16 + 12)


def test_preble_takes_a_decode_heavy_worker_for_new_prompts() -> None:
    """Three of four prompts that worker 0 was sent were cached: more than 0.7, and it has the most work."""
    host = _preble(imbalance=0.7)
    assert [host.send(blocks=LONG) for _ in range(3)] == [0, 0, 0]
    assert host.send(blocks=OTHER) == 1
    host.send(blocks=LONG)
    assert host.send(blocks=(200, 201)) == 0


def test_preble_relieves_the_most_loaded_worker_of_what_is_hot_there() -> None:
    """50 requests per worker before that; then as long as its load is more than 1.5 times the least."""
    host = _preble(size=2)
    assert [host.send(blocks=LONG) for _ in range(101)] == [0] * 100 + [1]


def test_preble_replicates_a_prefix_whose_requests_wait_twice_as_long() -> None:
    host = _preble(size=2, window=20.0)

    def send(wait: float) -> int:
        place = host.send(blocks=LONG)
        request = list(host.running)[-1]
        host.now += wait
        host.router.started(request, host.workers[place], host.now)
        return place

    assert [send(1.0), send(1.0), send(1.0)] == [0, 0, 0]
    host.now += 10
    assert [send(1.5), send(1.9)] == [0, 0]
    assert [send(5.0), send(1.0)] == [0, 1]


def test_preble_counts_the_wait_of_the_request_that_first_shares_a_prefix() -> None:
    """It matches a part of the longer prompt that was sent before, which is cut in two only when it goes."""
    host = _preble(size=2, window=20.0)

    def send(own: int, wait: float) -> int:
        place = host.send(blocks=(*LONG, own))
        request = list(host.running)[-1]
        host.now += wait
        host.router.started(request, host.workers[place], host.now)
        return place

    assert [send(50, 1.0), send(51, 1.0)] == [0, 0]
    host.now += 10
    assert [send(52, 2.0), send(53, 1.0)] == [0, 1]


def test_preble_forgets_what_is_older_than_the_window_and_what_comes_back() -> None:
    host = _preble(size=2, window=10.0)
    router = host.router
    assert isinstance(router, Preble)
    host.send(blocks=LONG)
    host.now = 5.0
    host.send(blocks=OTHER)
    host.finish(list(host.running)[1], end="returned")
    assert [router._load(worker) for worker in host.workers] == pytest.approx([20, 0])
    host.finish(output=100)
    host.now = 10.5
    host.send(blocks=(7,))
    assert [router._load(worker) for worker in host.workers] == pytest.approx([1.6 + 1, 0])
    host.now = 30.0
    host.send(blocks=(7,))
    assert [router._load(worker) for worker in host.workers] == pytest.approx([4, 0])


@settings(max_examples=100, deadline=None)
@given(life=lives)
def test_preble_counts_are_those_of_the_window(life: list[tuple]) -> None:
    """Running sums and hits equal those of a walk over the window, which no decision makes."""
    router = Preble(window=8.0)

    def check(host: Host) -> None:
        for worker, work in router._work.items():
            sent = {request: one for request, one in router._sent.items() if one.worker is worker}
            assert work.requests == len(sent)
            assert work.prompt == sum(request.prompt_tokens for request in sent)
            assert work.uncached == sum(one.uncached for one in sent.values())
        hits: Counter[tuple[Node, Worker]] = Counter()
        for one in router._sent.values():
            hits.update((node, one.worker) for node in one.end.lineage())
        assert all(node.hits[worker] == count for (node, worker), count in hits.items())
        assert router._output_tokens == sum(tokens for _, tokens in router._outputs)

    _play(router, life, check)
    router.route(Request("last", "a", 0.0, 1), list(router._work), 1e9)
    assert len(router._sent) == 1
    assert not router._outputs
    assert not router._waits


# -- parameters --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: D2LPM(quantum=0),
        lambda: D2LPM(quantum=float("inf")),
        lambda: D2LPM(quantum=float("nan")),
        lambda: D2LPM(output_weight=-1),
        lambda: CacheAware(cache_threshold=1.1),
        lambda: CacheAware(balance_abs_threshold=-1),
        lambda: CacheAware(balance_rel_threshold=0.9),
        lambda: Preble(window=0),
        lambda: Preble(imbalance=-0.1),
        lambda: Preble(balance=float("nan")),
    ],
)
def test_impossible_parameters_are_refused(make: Callable[[], Router]) -> None:
    with pytest.raises(ValueError, match="must"):
        make()
