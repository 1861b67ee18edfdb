"""Who is up: each worker is asked for its health all the time, and lost when it gives no sign of life."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal, TypeAlias

import aiohttp

from suite.backends.front.cluster import Cluster, Replica
from suite.backends.front.config import Timeouts

Sign: TypeAlias = Literal["well", "ill", "silent", "refused"]
"""What came of asking: success, another answer or none that is whole, nothing in time, nobody there."""


class Health:
    """Looks after the replicas of a cluster, each by `watch`."""

    def __init__(self, cluster: Cluster, session: aiohttp.ClientSession, timeouts: Timeouts) -> None:
        self._cluster = cluster
        self._session = session
        self._timeouts = timeouts
        self._timeout = aiohttp.ClientTimeout(total=timeouts.answer_s)

    async def greet(self, replicas: Sequence[Replica]) -> None:
        """Have all that are up join, in their order."""
        signs = await asyncio.gather(*map(self._ask, replicas))
        for replica, sign in zip(replicas, signs, strict=True):
            if sign == "well":
                self._cluster.join(replica)

    async def watch(self, replica: Replica) -> None:
        """Ask a replica again and again, and have it join and leave the cluster, until it is removed."""
        failures = 0
        while replica.state != "removed":
            replica.doubt.clear()
            sign = await self._ask(replica)
            failures = failures + 1 if sign == "ill" else 0
            if sign == "well":
                self._well(replica)
            elif sign == "refused" or failures >= self._timeouts.failures or self._stalled(replica):
                self._cluster.lose(replica)
            with suppress(TimeoutError):
                await asyncio.wait_for(replica.doubt.wait(), self._timeouts.health_s)

    def _well(self, replica: Replica) -> None:
        replica.heard = time.monotonic()
        if not (replica.up or replica.draining):
            self._cluster.join(replica)

    def _stalled(self, replica: Replica) -> bool:
        return time.monotonic() - replica.heard > self._timeouts.stall_s

    async def _ask(self, replica: Replica) -> Sign:
        try:
            url = f"{replica.address.url}/health"
            async with self._session.get(url, timeout=self._timeout, allow_redirects=False) as answer:
                return "well" if answer.status == 200 else "ill"
        except TimeoutError:
            return "silent"
        except aiohttp.ClientConnectorError as error:
            return "refused" if isinstance(error.os_error, ConnectionRefusedError) else "ill"
        except (aiohttp.ClientError, OSError):
            return "ill"
