"""Prefix matches kept over vLLM's real block pool."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from harness import BLOCK, request, scenario, scheduler
from vllm.v1.core.sched.scheduler import Scheduler

from suite.backends.host import Served
from suite.backends.vllm_matches import Incremental, Recomputed, matches_in

EVENTS = 250
seen: Counter[str] = Counter()


class Walk:
    """Random happenings around a KV cache, after each of which every match must be what vLLM would find."""

    def __init__(self, seed: int, window: int | None = None) -> None:
        self.rng = random.Random(seed)
        with tempfile.TemporaryDirectory() as folder:
            core = scheduler(
                Scheduler, Path(folder), None, blocks=self.rng.choice((10, 26, 60)), window=window
            )
        self.manager = core.kv_cache_manager
        self.matches = matches_in(self.manager)
        self.waiting: dict[Served, int] = {}
        self.running: list[Any] = []
        self.count = 0
        self.documents = [self.tokens(160) for _ in range(3)]

    def tokens(self, count: int) -> list[int]:
        return [self.rng.randrange(3, 500) for _ in range(count)]

    def run(self) -> None:
        """Let things happen; raises when a match is wrong."""
        happenings = (self.arrive, self.arrive, self.leave, self.compute, self.compute, self.compute,
                      self.finish, self.preempt, self.decode, self.grow, self.evict, self.reset)  # fmt: skip
        for _ in range(EVENTS):
            happening = self.rng.choice(happenings)
            self.happening = happening.__name__
            happening()
            self.matches.refresh(self.changed)
            self.compare()
        for served in list(self.waiting):
            self.unfollow(served)
        if isinstance(self.matches, Incremental):
            left = (self.matches._nodes, self.matches._missing, self.matches._root.places)
            assert not any(left)

    def changed(self, served: Any, tokens: int) -> None:
        assert self.waiting[served] != tokens, "told of a change that is none"
        seen["extended" if tokens > self.waiting[served] else f"cut after {self.happening}"] += 1
        self.waiting[served] = tokens

    def compare(self) -> None:
        for served, tokens in self.waiting.items():
            hit = self.manager.coordinator.find_longest_cache_hit(
                served.engine.block_hashes, served.engine.num_tokens - 1
            )[1]
            expected = 0 if served.engine.skip_reading_prefix_cache else hit
            assert tokens == expected, f"after {self.happening}: {served.id} matches {tokens}, not {expected}"
            seen["matched"] += expected > 0

    # -- what happens ------------------------------------------------------------------------------------

    def follow(self, engine: Any) -> None:
        served = Served(engine, engine.request_id, "a", self.count, 0.0, engine.num_prompt_tokens)
        self.waiting[served] = self.matches.follow(served)

    def unfollow(self, served: Served) -> None:
        self.matches.unfollow(served)
        del self.waiting[served]

    def arrive(self) -> None:
        shared = self.rng.choice(self.documents)[: self.rng.randrange(1, 160)]
        made = request(f"r{self.count}", shared + self.tokens(self.rng.choice((0, 1, 16, 20))), 50)
        made.skip_reading_prefix_cache = self.count % 9 == 8
        self.count += 1
        self.follow(made)

    def leave(self) -> None:
        if self.waiting:
            self.unfollow(self.rng.choice(list(self.waiting)))

    def compute(self) -> None:
        """Start a waiting request, or go on with a running one, for some of its tokens."""
        if self.waiting and self.rng.random() < 0.5:
            served = self.rng.choice(list(self.waiting))
            if self.allocate(served.engine):
                self.unfollow(served)
                self.running.append(served.engine)
        elif self.running:
            self.allocate(self.rng.choice(self.running))

    def allocate(self, engine: Any) -> bool:
        blocks, cached = None, 0
        if not engine.num_computed_tokens:
            blocks, cached = self.manager.get_computed_blocks(engine)[:2]
        left = engine.num_tokens - engine.num_computed_tokens - cached
        if left <= 0:
            return False
        new = min(left, self.rng.choice((5, BLOCK, 48)))
        if self.manager.allocate_slots(engine, new, cached, blocks) is None:
            return False
        engine.num_computed_tokens += cached + new
        duplicates = self.manager.block_pool.cached_block_hash_to_block._cache.values()
        seen["duplicates"] += any(isinstance(copies, dict) for copies in duplicates)
        return True

    def take_out(self) -> Any:
        engine = self.running.pop(self.rng.randrange(len(self.running)))
        self.manager.free(engine)
        engine.num_computed_tokens = 0
        return engine

    def finish(self) -> None:
        if self.running:
            self.take_out()

    def preempt(self) -> None:
        if self.running:
            self.follow(self.take_out())
            seen["preempted"] += 1

    def decode(self) -> None:
        for engine in self.running:
            if engine.num_computed_tokens == engine.num_tokens:
                engine.append_output_token_ids(self.rng.randrange(3, 500))
                self.allocate(engine)

    def grow(self) -> None:
        """A waiting request gets output that was under way when it was preempted."""
        if self.waiting:
            served = self.rng.choice(list(self.waiting))
            known = list(served.engine.all_token_ids)
            length = len(known)
            on = next(
                (text[length : length + BLOCK] for text in self.documents if text[:length] == known), []
            )
            served.engine.append_output_token_ids(on or self.tokens(1))
            self.matches.grown(served)

    def evict(self) -> None:
        """As a connector does that finds blocks invalid: anywhere in a chain, also while they are in use."""
        pool = self.manager.block_pool
        cached = [block.block_id for block in pool.blocks if block.block_hash is not None]
        if cached and self.rng.random() < 0.5:
            pool.evict_blocks(set(self.rng.sample(cached, min(2, len(cached)))))
            seen["evicted"] += 1

    def reset(self) -> None:
        if self.rng.random() < 0.1:
            while self.running:
                self.finish()
            assert self.manager.reset_prefix_cache()
            self.matches.reset()
            seen["reset"] += 1


def incremental() -> None:
    for seed in range(25):
        walk = Walk(seed)
        assert isinstance(walk.matches, Incremental)
        walk.run()


def recomputed() -> None:
    """A sliding window is not followed block by block."""
    for seed in range(4):
        walk = Walk(seed, window=64)
        assert isinstance(walk.matches, Recomputed)
        walk.run()


def mistakes_are_found() -> None:
    """The walk fails when the matches do not hear of something."""
    for deaf in ("inserted", "removed", "grown", "reset"):
        caught = False
        for seed in range(25):
            walk = Walk(seed)
            setattr(walk.matches, deaf, lambda *_: None)
            try:
                walk.run()
            except AssertionError:
                caught = True
                break
        assert caught, f"nothing noticed that {deaf} was ignored"


def check(results: dict[str, str]) -> None:
    """Note of every scenario whether it held."""
    for walks in (incremental, recomputed, mistakes_are_found):
        with scenario(results, walks.__name__):
            walks()
    with scenario(results, "nothing of caching was left out"):
        cuts = ("cut after compute", "cut after evict", "cut after reset")
        kinds = ("extended", "matched", "duplicates", "preempted", "evicted", "reset", *cuts)
        assert all(seen[what] for what in kinds), seen
