"""The prefix index against sets of prefixes, under any order of dispatches, eviction reports and losses."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.prefix_index import Node, PrefixIndex
from baselines.router import Request, Worker

POOL = 12
"""Blocks of the one worker whose KV pool is known; of the others nothing is known, and they get `UNKNOWN`."""
UNKNOWN = 7


def _request(blocks: tuple[int, ...]) -> Request:
    return Request("r", "a", 0.0, 16 * len(blocks) + 5, blocks)


class Naive:
    """For each worker the prefixes that it holds, with the time of their last use."""

    def __init__(self) -> None:
        self.used: dict[Worker, dict[tuple[int, ...], int]] = {}
        self._clock = count()

    def matches(self, blocks: tuple[int, ...]) -> dict[Worker, int]:
        depths = {
            worker: max((n for n in range(1, len(blocks) + 1) if blocks[:n] in used), default=0)
            for worker, used in self.used.items()
        }
        return {worker: depth for worker, depth in depths.items() if depth}

    def insert(self, blocks: tuple[int, ...], worker: Worker) -> None:
        used, now = self.used.setdefault(worker, {}), next(self._clock)
        used.update({blocks[:n]: now for n in range(1, len(blocks) + 1)})
        capacity = UNKNOWN if worker.kv_tokens is None else POOL
        while len(used) > capacity:
            del used[min(used, key=lambda prefix: (used[prefix], -len(prefix)))]

    def evict(self, worker: Worker, blocks: tuple[int, ...], kept: int) -> None:
        used, gone = self.used.get(worker, {}), blocks[: kept + 1]
        if kept < len(blocks):
            for prefix in [prefix for prefix in used if prefix[: kept + 1] == gone]:
                del used[prefix]

    def drop(self, worker: Worker) -> None:
        self.used.pop(worker, None)


heads = st.sampled_from([(), (0,), (0, 1), (0, 1, 2, 3), (0, 1, 4)])
tails = st.sampled_from([(), (5,), (6, 7), (5, 8, 8), tuple(range(9, 19))])
prompts = st.tuples(heads, tails).map(lambda parts: parts[0] + parts[1])
places = st.integers(0, 2)
events = st.one_of(
    st.tuples(st.just("insert"), places, prompts),
    st.tuples(st.just("insert"), places, prompts),
    st.tuples(st.just("evict"), places, prompts, st.integers(0, 8)),
    st.tuples(st.just("drop"), places),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(events, max_size=40), st.lists(prompts, min_size=1, max_size=4))
def test_it_is_a_set_of_prefixes_for_each_worker(happened: list[tuple], asked: list[tuple[int, ...]]) -> None:
    workers = [Worker("pool", POOL * 16 + 3), Worker("one"), Worker("other")]
    index, naive = PrefixIndex(UNKNOWN), Naive()
    for kind, place, *rest in happened:
        worker = workers[place]
        if kind == "insert":
            index.insert(_request(rest[0]), worker)
            naive.insert(rest[0], worker)
            asked.append(rest[0])
        elif kind == "evict":
            index.evict(worker, *rest)
            naive.evict(worker, *rest)
        else:
            index.drop(worker)
            naive.drop(worker)
        for blocks in asked:
            assert index.match(_request(blocks)).held == naive.matches(blocks)
        for worker in workers:
            assert index.held(worker) == len(naive.used.get(worker, {}))
        _assert_sound(index)


def _assert_sound(index: PrefixIndex) -> None:
    """Every node has blocks and holders, who hold its parent too; counts and tips are those of the tree."""
    held: dict[Worker, int] = {}
    for node in _nodes(index._root):
        assert node.run
        assert node.holders
        assert node.parent is index._root or node.holders.keys() <= node.parent.holders.keys()
        assert node.parent.children[node.run[0]] is node
        for worker in node.holders:
            held[worker] = held.get(worker, 0) + len(node.run)
    assert all(index.held(worker) == blocks for worker, blocks in held.items())
    for worker, shelf in index._shelves.items():
        used = {node.holders[worker] for node in _nodes(index._root) if worker in node.holders}
        assert list(shelf.tips) == sorted(used)
        for time, tip in shelf.tips.items():
            assert tip.holders[worker] == time
            assert all(child.holders.get(worker) != time for child in tip.children.values())


def _nodes(node: Node) -> Iterator[Node]:
    for child in node.children.values():
        yield child
        yield from _nodes(child)


def test_memory_is_bounded_however_many_prompts_are_sent() -> None:
    """A thousand prompts of 20 blocks of their own: 50 blocks at each worker are kept, the last ones sent."""
    workers = [Worker("0", 800), Worker("1", 800)]
    index = PrefixIndex()
    for i in range(1000):
        index.insert(_request(tuple(range(20 * i, 20 * i + 20))), workers[i % 2])
    nodes = list(_nodes(index._root))
    assert sum(len(node.run) for node in nodes) == 100
    assert len(nodes) == 6
    last = _request(tuple(range(20 * 999, 20 * 1000)))
    assert index.match(last).held == {workers[1]: 20}


def test_what_is_used_again_stays_and_ends_go_before_beginnings() -> None:
    worker = Worker("0", 6 * 16)
    index = PrefixIndex()
    for blocks in ((1, 2, 3), (4, 5, 6), (1, 2), (7,)):
        index.insert(_request(blocks), worker)
    assert index.match(_request((1, 2, 3))).held == {worker: 2}
    assert index.match(_request((4, 5, 6))).held == {worker: 3}


def test_a_prompt_beyond_the_pool_is_held_from_its_beginning() -> None:
    worker = Worker("0", 64)
    index = PrefixIndex()
    index.insert(_request((1, 2, 3, 4, 5, 6)), worker)
    assert index.match(_request((1, 2, 3, 4, 5, 6))).held == {worker: 4}


def test_a_report_on_the_middle_takes_what_follows_and_nobody_elses() -> None:
    one, other = Worker("0"), Worker("1")
    index = PrefixIndex()
    for worker in (one, other):
        index.insert(_request((1, 2, 3, 4)), worker)
        index.insert(_request((1, 2, 3, 5)), worker)
    index.evict(one, (1, 2, 9), 2)
    assert index.match(_request((1, 2, 3, 5))).held == {one: 4, other: 4}
    index.evict(one, (1, 2, 3, 4), 1)
    assert index.match(_request((1, 2, 3, 5))).held == {one: 1, other: 4}


def test_a_conversation_of_many_turns_can_be_forgotten_at_once() -> None:
    worker = Worker("0")
    index = PrefixIndex()
    for turn in range(1, 1500):
        index.insert(_request(tuple(range(turn))), worker)
    index.evict(worker, (0, 1), 0)
    assert (index.held(worker), index.match(_request((0, 1))).held) == (0, {})
