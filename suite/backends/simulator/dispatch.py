"""The router of a simulated cluster, and what it is told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from baselines.router import End, Request, Router, Worker
from suite.backends.simulator.block_keys import block_keys
from suite.backends.simulator.engine import PolicyError
from suite.backends.simulator.live import Live
from suite.backends.simulator.tree import Content


class Dispatch:
    """Keeps a router's promises: what it knows of the workers by name, and of the requests at each.

    `listens` says whether it wants to hear of evictions. Prompts are shown to it in blocks of `block` tokens.
    """

    def __init__(self, router: Router, names: Sequence[str], kv_tokens: int, block: int) -> None:
        self.router = router
        self.listens = type(router).evicted is not Router.evicted
        self._block = block
        self._workers = {name: Worker(name, kv_tokens) for name in names}
        self._up: list[Worker] = []
        self._routed: dict[Live, tuple[Request, Worker]] = {}

    @property
    def hears(self) -> str:
        """How the router learns of evictions, in words."""
        return "exact" if self.listens else "none: the router does not listen"

    def joined(self, name: str, now: float) -> None:
        """The worker has come up."""
        worker = self._workers[name]
        self._up.append(worker)
        self.router.joined(worker, now)

    def lost(self, name: str, now: float) -> None:
        """The worker is gone; no request is there any more."""
        worker = self._workers[name]
        self._up.remove(worker)
        self.router.lost(worker, now)

    def route(self, live: Live, now: float) -> str:
        """The name of the worker for a request. Raises `PolicyError` if the router names none that is up."""
        request = Request(
            live.id, live.client, live.sent, live.prompt_tokens,
            block_keys(live.prompt, self._block), self._block, live.weight,
        )  # fmt: skip
        worker = self.router.route(request, tuple(self._up), now)
        if worker not in self._up:
            raise PolicyError(
                f"router {type(self.router).__name__} routes {request!r} to {worker!r}, "
                f"which is none of its workers"
            )
        self._routed[live] = request, worker
        return worker.name

    def started(self, live: Live, now: float) -> None:
        """The first token of the request has come."""
        self.router.started(*self._routed[live], now)

    def finished(self, live: Live, end: End, now: float) -> None:
        """The request has left its worker."""
        request, worker = self._routed.pop(live)
        self.router.finished(request, worker, end, live.generated, now)

    def evicted(self, name: str, reports: Iterable[tuple[Content, int]], now: float) -> None:
        """Of each content the worker's cache holds only so many tokens any more."""
        for content, kept in reports:
            blocks = block_keys(content, self._block)
            if kept // self._block < len(blocks):
                self.router.evicted(self._workers[name], blocks, kept // self._block, now)
