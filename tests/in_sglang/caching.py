"""Prefix matches kept over SGLang's real radix trees."""

from __future__ import annotations

import os
import random
import tempfile
from array import array
from collections import Counter
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from harness import POLICIES, scenario, scheduler
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey
from sglang.srt.sampling.sampling_params import SamplingParams

from suite.backends.host import Served
from suite.backends.sglang_matches import Incremental, NoMatches, matches_in

EVENTS = 150
TREES = {"rust": "RustUnifiedTreeCore", "python": "UnifiedTreeCore", "0.5.15": "RadixCache"}
"""The trees of servers: that of 0.5.23, the one it falls back to, and the class that 0.5.15 uses."""
seen: Counter[str] = Counter()


def made(tree: str, page: int) -> Any:
    """An empty tree cache with room for 640 tokens."""
    if tree == "0.5.15":
        pool = SimpleNamespace(device="cpu", free_segment=lambda indices, **_: None)
        return RadixCache.create_simulated(mock_allocator=pool, page_size=page)
    with patch.dict(os.environ, SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND=tree):
        return watching(tokens=640, page_size=page).tree_cache


def watching(policy: dict[str, Any] | None = None, **options: Any) -> Any:
    """A scheduler that is only looked at."""
    with tempfile.TemporaryDirectory() as logs:
        core = scheduler({"scheduler": policy or {"stock": "fcfs"}, "logs": logs}, **options)
        core.host.close()
    return core


class Walk:
    """Random happenings around a tree, after each of which every match must be what SGLang would find."""

    def __init__(self, tree: str, seed: int) -> None:
        self.rng = random.Random(seed)
        self.page = (1, 1, 4)[seed % 3]
        self.cache = made(tree, self.page)
        core = getattr(self.cache, "tree_core", self.cache)
        assert type(core).__name__ == TREES[tree]
        self.matches = matches_in(self.cache)
        self.waiting: dict[Served, int] = {}
        self.locks: list[Any] = []
        self.size = 0
        self.documents = [self.tokens(90) for _ in range(3)]

    def tokens(self, count: int) -> array[int]:
        return array("q", [self.rng.randrange(3, 8) for _ in range(count)])

    def text(self) -> array[int]:
        """What shares its beginning with others."""
        shared = self.rng.choice(self.documents)[: self.rng.randrange(90)]
        return shared + self.tokens(self.rng.choice((1, 2, 9)))

    def run(self) -> None:
        """Let things happen; raises when a match is wrong."""
        happenings = (self.arrive, self.arrive, self.leave, self.insert, self.insert, self.insert,
                      self.evict, self.split, self.hold, self.release, self.reset)  # fmt: skip
        for _ in range(EVENTS):
            happening = self.rng.choice(happenings)
            self.happening = happening.__name__
            happening()
            if self.rng.random() < 0.7:
                self.matches.refresh(self.changed)
                self.compare()
        for served in list(self.waiting):
            self.unfollow(served)
        assert isinstance(self.matches, Incremental)
        assert not any(
            (self.matches._places, self.matches._missing, self.matches._ending, self.matches._moved)
        )

    def changed(self, served: Any, tokens: int) -> None:
        assert self.waiting[served] != tokens, "told of a change that is none"
        seen["extended" if tokens > self.waiting[served] else f"cut after {self.happening}"] += 1
        self.waiting[served] = tokens

    def compare(self) -> None:
        """SGLang's own lookup splits nodes, so it looks at some only, and last."""
        for served in self.rng.sample(list(self.waiting), len(self.waiting) // 3):
            expected = self.found(served.engine)
            tokens = self.waiting[served]
            assert tokens == expected, f"after {self.happening}: {served.id} matches {tokens}, not {expected}"
            seen["matched"] += expected > 0

    def found(self, request: Req) -> int:
        request.init_next_round_input(self.cache)
        return int(request.prefix_len)

    # -- what happens ------------------------------------------------------------------------------------

    def arrive(self) -> None:
        if len(self.waiting) > 40:
            return
        sampling = SamplingParams(max_new_tokens=3)
        salt, namespace = self.rng.choice([(None, None)] * 6 + [("s", None), (None, "x")])
        request = Req(f"r{self.size}", "", self.text(), sampling, extra_key=namespace, cache_salt=salt)
        self.size += 1
        if self.rng.random() < 0.2:
            request.output_ids = self.tokens(5)  # as after a retraction
        if self.rng.random() < 0.1:
            request.return_logprob, request.logprob_start_len = True, 20
        if self.rng.random() < 0.05:
            request.positional_embed_overrides = object()
        served = Served(request, request.rid, "a", self.size, 0.0, len(request.origin_input_ids))
        self.waiting[served] = self.matches.follow(served)

    def unfollow(self, served: Served) -> None:
        self.matches.unfollow(served)
        del self.waiting[served]

    def leave(self) -> None:
        if self.waiting:
            self.unfollow(self.rng.choice(list(self.waiting)))

    def insert(self) -> None:
        """What a request has computed: often that of one who waits, in part or with output."""
        text, salt, namespace = self.text(), None, None
        if self.waiting and self.rng.random() < 0.6:
            request = self.rng.choice(list(self.waiting)).engine
            known = request.origin_input_ids + request.output_ids + self.tokens(4)
            text = known[: self.rng.randrange(1, len(known))]
            salt, namespace = request.cache_salt, request.extra_key
        key = RadixKey(text, namespace, cache_salt=salt).page_aligned(self.page)
        if len(key) and (indices := self.take(len(key))) is not None:
            result = self.cache.insert(InsertParams(key=key, value=indices))
            seen["entered in part"] += 0 < result.prefix_len < len(key)

    def take(self, count: int) -> Any:
        """Memory for so many tokens, made free if it must be; None if it cannot be."""
        pool = self.cache.token_to_kv_pool_allocator
        if not hasattr(pool, "alloc"):
            if self.cache.evictable_size() + self.cache.protected_size() + count > 640:
                self.cache.evict(EvictParams(num_tokens=count))
            return torch.arange(count)
        if pool.available_size() < count:
            self.cache.evict(EvictParams(num_tokens=count))
        return pool.alloc(count)

    def evict(self) -> None:
        if self.rng.random() < 0.4:
            self.cache.evict(EvictParams(num_tokens=self.rng.choice((1, 20, 60, 300))))

    def split(self) -> None:
        """A lookup of SGLang's ends within a node."""
        self.cache.match_prefix(MatchPrefixParams(key=RadixKey(self.text())))

    def hold(self) -> None:
        """A running request keeps its prefix from being evicted."""
        node = self.cache.match_prefix(MatchPrefixParams(key=RadixKey(self.text()))).last_device_node
        if hasattr(self.cache, "tree_core"):
            lock = self.cache.lock(node)
            self.locks.append(lambda: self.cache.unlock(lock))
        else:
            self.cache.inc_lock_ref(node)
            self.locks.append(lambda: self.cache.dec_lock_ref(node))

    def release(self) -> None:
        if self.locks:
            self.locks.pop(self.rng.randrange(len(self.locks)))()

    def reset(self) -> None:
        if self.rng.random() < 0.1:
            while self.locks:
                self.release()
            self.cache.reset()
            if hasattr(self.cache.token_to_kv_pool_allocator, "clear"):
                self.cache.token_to_kv_pool_allocator.clear()


def incremental(tree: str) -> None:
    for seed in range(12):
        Walk(tree, seed).run()


def mistakes_are_found() -> None:
    """The walk fails when the matches do not hear of something."""
    for deaf in ("inserted", "removed", "emptied"):
        caught = False
        for seed in range(12):
            walk = Walk("rust", seed)
            setattr(walk.matches, deaf, lambda *_: None)
            try:
                walk.run()
            except AssertionError:
                caught = True
                break
        assert caught, f"nothing noticed that {deaf} was ignored"


def other_caches() -> None:
    """Without a cache nothing is matched; one that cannot be read without side effects is refused."""
    assert isinstance(watching(POLICIES["lpm"], disable_radix_cache=True).matches, NoMatches)
    cache = made("rust", 1)
    cache.tree_components = (*cache.tree_components, "swa")
    for unfit in (cache, SimpleNamespace(disable=False)):
        raised = ""
        try:
            matches_in(unfit)
        except ValueError as error:
            raised = str(error)
        assert "cannot look into the prefix cache" in raised


def check(results: dict[str, str]) -> None:
    """Note of every scenario whether it held."""
    for tree in TREES:
        with scenario(results, f"incremental, {tree}"):
            incremental(tree)
    for each in (mistakes_are_found, other_caches):
        with scenario(results, each.__name__):
            each()
    with scenario(results, "nothing of caching was left out"):
        kinds = (
            "extended",
            "matched",
            "entered in part",
            "cut after evict",
            "cut after insert",
            "cut after reset",
        )
        assert all(seen[what] for what in kinds), seen
