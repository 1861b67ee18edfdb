"""SGLang's scheduling, token by token. Written from SGLang 0.5.23, whose names stand in the docstrings.

`managers/scheduler.py` (`get_next_batch_to_run`), `managers/schedule_policy.py` (`PrefillAdder`),
`managers/schedule_batch.py` (`retract_decode`), `mem_cache/radix_cache.py`. Page size 1, no overlap, no mixed
chunks; all requests ignore the end-of-sequence token, so the estimate of their output is never scaled.
"""

from __future__ import annotations

from collections import Counter

from naive import Job, NaiveEngine, Token

from baselines.scheduler import Scheduler
from suite.backends.cost import Cost
from suite.trace import Trace

RETRACT_DECODE_STEPS = 20
"""Decode steps of the remaining requests for which a retraction evicts (the default)."""


class Node:
    """A node of the radix tree: the tokens on the edge to it, who locks it, when it was last used."""

    def __init__(self, key: tuple[Token, ...], parent: Node | None) -> None:
        self.key, self.parent = key, parent
        self.children: list[Node] = []
        self.locks = 0
        self.used = 0

    def end(self) -> int:
        """Tokens from the root to here."""
        return len(self.key) + (self.parent.end() if self.parent else 0)


class RadixTree:
    """`RadixCache` with page size 1 and LRU eviction; the time is a count of looks at the clock."""

    def __init__(self) -> None:
        self.root = Node((), None)
        self.clock = 0

    def nodes(self) -> list[Node]:
        """All but the root."""
        found = list(self.root.children)
        for node in found:
            found += node.children
        return found

    def tokens(self, *, unlocked: bool = False) -> int:
        """Tokens in the tree, or only those that could be evicted in time."""
        return sum(len(node.key) for node in self.nodes() if not (unlocked and node.locks))

    def length(self, tokens: list[Token]) -> int:
        """Longest cached prefix; a look that leaves no trace."""
        node, length = self.root, 0
        while child := self._child(node, tokens[length:]):
            same = _common(child.key, tokens[length:])
            length += same
            if same < len(child.key):
                break
            node = child
        return length

    def walk(self, tokens: list[Token]) -> tuple[Node, int]:
        """The node where the longest cached prefix ends, splitting for it, and that prefix's length.

        All nodes on the way are used now, also the part that is split off below.
        """
        now = self._tick()
        node, length = self.root, 0
        while child := self._child(node, tokens[length:]):
            child.used = now
            same = _common(child.key, tokens[length:])
            length += same
            node = child if same == len(child.key) else self._split(child, same)
            if node is not child:
                break
        return node, length

    def insert(self, tokens: list[Token]) -> int:
        """Add the tokens; how many were there."""
        node, length = self.walk(tokens)
        if length < len(tokens):
            self._attach(Node(tuple(tokens[length:]), node))
        return length

    def lock(self, node: Node | None, change: int) -> None:
        """Lock (+1) or unlock (-1) the node and all above it."""
        while node is not None:
            node.locks += change
            node = node.parent

    def evict(self, tokens: int) -> None:
        """Drop unlocked leaves, least recently used first, until at least `tokens` tokens are gone."""
        while tokens > 0:
            leaves = [node for node in self.nodes() if not node.children and not node.locks]
            if not leaves:
                break
            victim = min(leaves, key=lambda node: node.used)
            assert victim.parent is not None
            victim.parent.children.remove(victim)
            tokens -= len(victim.key)

    def _tick(self) -> int:
        self.clock += 1
        return self.clock

    @staticmethod
    def _child(node: Node, tokens: list[Token]) -> Node | None:
        return next((child for child in node.children if child.key[:1] == tuple(tokens[:1])), None)

    def _attach(self, node: Node) -> None:
        assert node.parent is not None
        node.used = self._tick()
        node.parent.children.append(node)

    def _split(self, node: Node, at: int) -> Node:
        """Put a new node for the first `at` tokens of the key above the node."""
        upper = Node(node.key[:at], node.parent)
        assert node.parent is not None
        node.parent.children.remove(node)
        self._attach(upper)
        upper.locks, upper.children = node.locks, [node]
        node.key, node.parent = node.key[at:], upper
        return upper


def _common(a: tuple[Token, ...], b: list[Token]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class NaiveSGLang(NaiveEngine):
    """`Scheduler.get_next_batch_to_run` with `PrefillAdder` and `retract_decode`.

    `clip` is `CLIP_MAX_NEW_TOKENS`. `full` is `batch_is_full`, `chunked` the request in the middle of its
    prompt, `last` the prefill batch that just ran, which joins the running ones at the next step.
    """

    def __init__(
        self,
        trace: Trace,
        policy: Scheduler,
        cost: Cost,
        max_running: int,
        token_budget: int,
        kv_tokens: int,
        clip: int,
    ) -> None:
        super().__init__(trace, policy, cost, max_running, token_budget, kv_tokens)
        self.clip = clip
        self.tree = RadixTree()
        self.held: dict[Job, Node] = {}
        self.private: Counter[Job] = Counter()
        self.full = False
        self.chunked: Job | None = None
        self.last: list[Job] = []
        self.batch: dict[Job, int] = {}
        self.reserved = self.chunk_left = 0

    def matched(self, job: Job) -> int:
        return self.tree.length(job.known[:-1])

    def _can_ever_fit(self, job: Job) -> bool:
        prompt, output = len(job.prompt), len(job.output)
        longest = self.kv_tokens - 1  # `max_req_len`
        return prompt < longest - 5 and output <= longest - prompt - 1

    def schedule(self) -> dict[Job, int]:
        self._merge_last()
        plan = self._prefill_batch()
        self.last = list(plan)
        return plan or self._decode_batch()

    def _merge_last(self) -> None:
        """Prefilled requests start to decode, finished ones leave; whoever goes reopens admission.

        Where nothing was decoding, the prefill batch becomes the running batch and brings its own flag.
        """
        staying = [job for job in self.last if job.status == "running" and job is not self.chunked]
        self.full &= len(staying) == len(self.last) and bool(self.running or not staying)
        unfinished = [job for job in self.running if job.status == "running"]
        self.full &= len(unfinished) == len(self.running)
        self.running = unfinished + staying

    # -- memory ------------------------------------------------------------------------------------------

    def _free(self) -> int:
        return self.kv_tokens - self.tree.tokens() - self.private.total()

    def _make_free(self, tokens: int) -> bool:
        """Evict until so many tokens are free; whether they are."""
        if tokens > self._free():
            with self._evicting():
                self.tree.evict(tokens - self._free())
        return tokens <= self._free()

    def _room(self) -> int:
        """`rem_total_tokens`: free or evictable, and not spoken for."""
        return self._free() + self.tree.tokens(unlocked=True) - self.reserved

    def _no_token(self) -> bool:
        return self._room() <= 0

    # -- prefill -----------------------------------------------------------------------------------------

    def _prefill_batch(self) -> dict[Job, int]:
        """`get_new_batch_prefill`: the chunk under way, then what the policy offers."""
        self.batch = {}
        self.full &= bool(self.running)
        if self.chunked is None and len(self.running) >= self.max_running:
            self.full |= bool(self.waiting)
        if (self.full or not self.waiting) and self.chunked is None:
            return {}
        self.chunk_left = self.token_budget
        self.reserved = sum(min(len(job.output) - job.generated, self.clip) for job in self.running)
        if self.chunked is not None:
            self._continue_chunk(self.chunked)
        self._admit_waiting()
        assert self._make_free(sum(self.batch.values()))
        for job, extend in self.batch.items():
            self.private[job] += extend
        return self.batch

    def _continue_chunk(self, job: Job) -> None:
        """`add_chunked_req`."""
        self.chunked = None
        left = len(job.known) - job.computed
        room = min(self.chunk_left, self._room())
        self._add(job, left, room if room > 0 else self.chunk_left)

    def _add(self, job: Job, left: int, most: int) -> None:
        """Give the request its `left` tokens, or a chunk of `most`; its output counts with the last chunk."""
        extend = min(left, most)
        self.batch[job] = extend
        self.chunk_left -= extend
        self.reserved += extend + 1
        if extend < left:
            self.chunked = job
        else:
            self.reserved += min(len(job.output), self.clip)

    def _may_try(self) -> bool:
        if self.chunk_left <= 0 and not self._no_token():
            return False
        self.full |= len(self.running) + len(self.batch) >= self.max_running
        return not self.full

    def _try(self, job: Job) -> bool:
        """`add_one_req`: the extend tokens and the output to come must fit beside what is spoken for."""
        node, cached = self.tree.walk(job.known[:-1])
        left = len(job.known) - cached
        self.tree.lock(node, +1)
        if left + min(len(job.output) - job.generated, self.clip) + 1 >= self._room():
            self.tree.lock(node, -1)
            self.full = bool(self.batch or self.running)
            return False
        self.held[job] = node
        self._add(job, left, self.chunk_left)
        self._start(job, cached)
        self.full = self._no_token()
        return True

    # -- decode ------------------------------------------------------------------------------------------

    def _decode_batch(self) -> dict[Job, int]:
        """`update_running_batch`: one token for each, after retractions if they do not fit."""
        if not self._make_free(len(self.running)):
            self._retract()
            self.full = False
        for job in self.running:
            self.private[job] += 1
        return dict.fromkeys(self.running, 1)

    def _retract(self) -> None:
        """`retract_decode`: at least one goes, by least output, longest prompt, latest in the batch."""
        keep = sorted(self.running, key=lambda job: (job.generated, -len(job.prompt)), reverse=True)
        retracted: list[Job] = []
        while len(keep) > 1 and (not retracted or not self._make_free(len(keep))):
            job = keep.pop()
            self._release(job)
            self._make_free(len(keep) * RETRACT_DECODE_STEPS)
            retracted.append(job)
        self.running = keep
        assert self._make_free(len(self.running))
        for job in retracted:
            self.seen["preempted"] += 1
            self._preempt(job)

    # -- after the step ----------------------------------------------------------------------------------

    def _after_step(self, job: Job) -> None:
        """Prefilled tokens enter the tree after every chunk, decoded ones when the request finishes."""
        if job in self.batch or job.status == "finished":
            self._checkpoint(job)
        if job.status == "finished":
            self._release(job)

    def _checkpoint(self, job: Job) -> None:
        """`RadixCache.checkpoint`: insert, split at the end of the prompt, free duplicates, move the lock."""
        tokens = job.known[: job.computed]
        there = self.tree.insert(tokens)
        self.seen["duplicate"] += there > self.held[job].end()
        if len(job.prompt) < len(tokens):
            self.tree.insert(job.prompt)
        node, _ = self.tree.walk(tokens)
        self._release(job)
        self.tree.lock(node, +1)
        self.held[job] = node

    def _release(self, job: Job) -> None:
        """What is private to the request is free, what it locked can be evicted."""
        self.tree.lock(self.held.pop(job), -1)
        del self.private[job]
