"""What the drivers of real schedulers on a virtual clock share.

Runs in the engines' environments: imports the standard library and `suite.backends.cost` only. A driver reads
one job a line from standard input and writes one result a line to the file descriptor that its last argument
names, both JSON; it ends when its input does, whatever it is doing. A job:

    {"requests": [{"id", "client", "weight", "priority", "arrival", "think", "after": [ids],
                   "prompt": [token ids], "output": [token ids]}, ...],      in the order of the trace
     "scheduler": {"target", "parameters"}, "logs": folder,
     "lines": [[five coefficients], ...],                                    see `suite.backends.cost`
     "max_running", "token_budget", "blocks", "block_tokens",
     "clip"}                                                                 SGLang alone

The engine "generates" the tokens of `output`. Its result:

    {"requests": {id: {"status", "arrival", "tokens": [times]}},       in seconds; absent if never sent
     "steps", "seconds",
     "seen": {"chunked", "evicted match", "shared in step", "preempted"}}    how often it happened
"""

from __future__ import annotations

import heapq
import json
import os
import queue
import sys
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from suite.backends.cost import Cost

Job = dict[str, Any]
Result = dict[str, Any]

LONGEST = 2**20
"""Tokens a request may have; the KV pool is the real limit."""

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "vocab_size": 512,
    "max_position_embeddings": LONGEST,
}
"""A model that both engines accept; nothing of it is ever computed."""


def work_off(serve: Callable[[Job], Result]) -> None:
    """Answer every job with what `serve` makes of it."""
    with os.fdopen(int(sys.argv[-1]), "w", encoding="utf-8") as results:
        for line in _lines():
            print(json.dumps(serve(json.loads(line))), file=results, flush=True)


def _lines() -> Iterator[str]:
    """The lines of standard input. When that ends, so does this process, in the middle of a job too."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    while True:
        yield lines.get()


def _listen(lines: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


class Timed(Protocol):
    """A scheduler at the time that whoever drives it sets, in seconds."""

    now: float


class Run(ABC):
    """One trace under one policy."""

    scheduler: Timed

    def __init__(self, job: Job) -> None:
        self.job = job
        self.steps = 0
        self.seen: Counter[str] = Counter()
        self.requests: dict[str, dict[str, Any]] = {request["id"]: request for request in job["requests"]}
        self._cost = Cost(tuple(tuple(line) for line in job["lines"]))
        self._facts: dict[str, dict[str, Any]] = {id: {"status": "waiting"} for id in self.requests}
        self._due = Due(job["requests"])

    @abstractmethod
    def serve(self) -> None:
        """Let the engine serve every request."""

    @abstractmethod
    def fits(self, request: dict[str, Any]) -> bool:
        """Whether it can ever be served."""

    def result(self) -> Result:
        """Serve everything and say what became of it."""
        self.serve()
        seconds = self.scheduler.now
        return {"requests": self._facts, "steps": self.steps, "seconds": seconds, "seen": dict(self.seen)}

    def sent(self) -> Iterator[tuple[dict[str, Any], float]]:
        """The requests that are sent by now and not before, with when; what can never be served is not."""
        for id in self._due.until(self.scheduler.now):
            self._facts[id]["arrival"] = self._due.time[id]
            if self.fits(self.requests[id]):
                yield self.requests[id], self._due.time[id]
            else:
                self.lose(id, "rejected")

    def skip(self) -> bool:
        """Let time pass until the next request is sent. False if none is."""
        if self._due.heap:
            self.scheduler.now = max(self.scheduler.now, self._due.heap[0][0])
        return bool(self._due.heap)

    def step(self, work: Iterable[tuple[int, int]]) -> None:
        """Let the time of a step pass: for each request, its new tokens and its tokens at the end of it."""
        total = attended = read = sequences = 0
        for new, end in work:
            total += new
            attended += new * (end - new) + new * (new + 1) // 2
            read += end
            sequences += 1
        self.steps += 1
        self.scheduler.now += self._cost.step(total, attended, read, sequences)

    def speak(self, id: str, generated: int) -> int:
        """The token that follows on those `generated` already. With its last one a request has finished."""
        output: list[int] = self.requests[id]["output"]
        now = self.scheduler.now
        self._facts[id].setdefault("tokens", []).append(now)
        if generated + 1 == len(output):
            self._facts[id]["status"] = "finished"
            self._due.served(id, now)
        return output[generated]

    def lose(self, id: str, status: str) -> None:
        """It is never served, nor is what comes after it."""
        self._facts[id]["status"] = status
        for lost in self._due.lost(id):
            self._facts[lost]["status"] = "cancelled"


class Due:
    """When each request is sent: at its arrival or, if later, `think` after the last one it comes after."""

    def __init__(self, requests: list[dict[str, Any]]) -> None:
        self.order = {request["id"]: i for i, request in enumerate(requests)}
        self.time = {request["id"]: request["arrival"] for request in requests}
        self.think = {request["id"]: request["think"] for request in requests}
        self.missing = {request["id"]: len(request["after"]) for request in requests}
        self.followers: dict[str, list[str]] = {request["id"]: [] for request in requests}
        self.cancelled: set[str] = set()
        for request in requests:
            for parent in request["after"]:
                self.followers[parent].append(request["id"])
        self.heap = [(self.time[id], i, id) for id, i in self.order.items() if not self.missing[id]]
        heapq.heapify(self.heap)

    def until(self, now: float) -> Iterator[str]:
        """Take out what is sent by now; ties in the order of the trace."""
        while self.heap and self.heap[0][0] <= now:
            yield heapq.heappop(self.heap)[2]

    def served(self, id: str, now: float) -> None:
        """It has finished: those that come after it draw nearer."""
        for follower in self.followers[id]:
            self.missing[follower] -= 1
            self.time[follower] = max(self.time[follower], now + self.think[follower])
            if not self.missing[follower] and follower not in self.cancelled:
                heapq.heappush(self.heap, (self.time[follower], self.order[follower], follower))

    def lost(self, id: str) -> Iterator[str]:
        """It will never be served: everything that comes after it is cancelled."""
        for follower in self.followers[id]:
            if follower not in self.cancelled:
                self.cancelled.add(follower)
                yield follower
                yield from self.lost(follower)
