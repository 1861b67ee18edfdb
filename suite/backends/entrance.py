"""Where the requests of a run go in: the one server itself, or the router before several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from suite.backends.launch import Launch
from suite.backends.peers import Peer
from suite.backends.router import Front
from suite.backends.servers import Replicas
from suite.policies import PeerRouter


class Entrance(Protocol):
    """A place to send requests to."""

    @property
    def url(self) -> str:
        """Its root."""
        ...

    @property
    def admin_url(self) -> str | None:
        """Where workers are added and removed and its state and metrics are, if it has such a place."""
        ...

    def alive(self) -> str | None:
        """None while requests can be served, else why not."""
        ...

    def word(self) -> dict[str, Any]:
        """What the manifest says of it."""
        ...


@dataclass(frozen=True)
class _Alone:
    """A server without a router."""

    replicas: Replicas

    @property
    def url(self) -> str:
        return self.replicas.all[0].url

    @property
    def admin_url(self) -> None:
        return None

    def alive(self) -> str | None:
        return self.replicas.alive()

    def word(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class _Routed:
    """A router before replicas: as long as one of them lives, requests can be served."""

    router: Front | Peer
    replicas: Replicas

    @property
    def url(self) -> str:
        return self.router.url

    @property
    def admin_url(self) -> str | None:
        return self.router.admin_url if isinstance(self.router, Front) else None

    def alive(self) -> str | None:
        ended = [one.server.alive() for one in self.replicas.all]
        return self.router.alive() or (ended[0] if all(ended) else None)

    def word(self) -> dict[str, Any]:
        return self.router.word()


@contextmanager
def entrance(
    launch: Launch, replicas: Replicas, logs: Path, timeout_s: float, port: int | None = None
) -> Iterator[Entrance]:
    """The way in as long as the context lasts: a router is started for it, with its logs in `logs`.

    It listens on `port`, if given. Raises `BadInput` if the router does not start.
    """
    router = launch.scheduler.router
    if router is None:
        yield _Alone(replicas)
        return
    workers = launch.workers(replicas)
    started: Front | Peer
    if isinstance(router, PeerRouter):
        started = Peer.start(router, workers, logs=logs, port=port, timeout_s=timeout_s)
    else:
        started = Front.start(
            router,
            workers,
            engine=launch.engine,
            block_tokens=launch.routed_block,
            logs=logs,
            port=port,
        )
    with started:
        yield _Routed(started, replicas)
