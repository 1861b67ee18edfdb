"""The front as a whole: its parts put together, from the first worker to the last line of its log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Any

import aiohttp
import zmq.asyncio
from aiohttp import web

from baselines.router import Router
from suite.backends.front.admin import Admin
from suite.backends.front.cluster import Cluster, Replica
from suite.backends.front.config import Config, WorkerAddress
from suite.backends.front.health import Health
from suite.backends.front.identity import register
from suite.backends.front.journal import Journal
from suite.backends.front.kv_events import Listener
from suite.backends.front.proxy import Proxy
from suite.backends.front.tally import Tallies
from suite.errors import BadInput, did_you_mean
from suite.policies import RouterSpec

BUFFER = 2**18
"""Bytes of a reply that may wait unread before reading from the worker pauses."""
IDLE = 2.0
"""Seconds an idle connection to a worker is kept: uvicorn closes it after 5 s, maybe just as we send."""
FLUSH = 0.5
"""Seconds between two writings of the log."""
SHUTDOWN = 0.5
"""Seconds that requests in flight have when the front ends."""
BACKLOG = 4096
HOST = "127.0.0.1"


class FrontServer:
    """A front as configured. Raises `BadInput` for a router, table of keys or log that cannot be used."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._register = register(config.identity)
        self._journal = Journal(config.log)
        router = RouterSpec("router", config.router.target, config.router.parameters).build()
        self.cluster = Cluster(router, Tallies(self._up), self._journal)
        self._listeners: dict[str, Listener] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, over: asyncio.Event, ready: Callable[[int, int], None]) -> None:
        """Serve until `over`; `ready` is told the port and the admin port when they are open.

        Raises what a part of it raised.
        """
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        async with AsyncExitStack() as stack:
            stack.callback(self._journal.close)
            self._events = stack.enter_context(zmq.asyncio.Context())
            self._session = await stack.enter_async_context(_session(self._config.timeouts.connect_s))
            self._health = Health(self.cluster, self._session, self._config.timeouts)
            stack.push_async_callback(self._end_tasks)
            replicas = [self._known(address) for address in self._config.workers]
            await self._health.greet(replicas)
            for replica in replicas:
                self._start(self._life(replica))
            self._start(self._flush())
            ready(*await self._open_ports(stack))
            await self._until(over)

    async def _until(self, over: asyncio.Event) -> None:
        """Return when it is over; raise as soon as a part of the front has failed."""
        ending = asyncio.ensure_future(over.wait())
        await asyncio.wait((self._failure, ending), return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if self._failure.done():
            self._failure.result()

    def add(self, address: WorkerAddress) -> None:
        """A new worker, that joins when it is found to be up. Raises `BadInput` if its name is taken."""
        known = self.cluster.replicas.get(address.name)
        if known and known.state != "removed":
            raise BadInput(f"name: there is a worker {address.name!r}; choose another")
        self._start(self._life(self._known(address)))

    def remove(self, name: str) -> None:
        """Send the worker no more; it leaves when its last request has ended.

        Raises `BadInput` if there is none of that name.
        """
        if name not in self.cluster.replicas:
            raise BadInput(f"there is no worker {name!r}; {did_you_mean(name, self.cluster.replicas)}")
        self.cluster.drain(self.cluster.replicas[name])

    def word(self) -> dict[str, Any]:
        """What the manifest says of the front."""
        tallies = self.cluster.tallies
        total = tallies.total()
        return {
            "requests": total.stopped + total.aborted + total.in_flight,
            "retries": total.retries,
            "decision_mean_s": tallies.mean_decision(),
            "eviction_reports": self._eviction_reports(),
            "workers": {name: self._word_of(replica) for name, replica in self.cluster.replicas.items()},
        }

    def _word_of(self, replica: Replica) -> dict[str, Any]:
        counts = asdict(self.cluster.tallies.total(replica.name))
        listener = self._listeners.get(replica.name)
        events = {"events": listener.word()} if listener else {}
        return {**counts, "state": replica.state, "losses": replica.losses, **events}

    def _eviction_reports(self) -> str:
        """How the router learns of evictions: "events", or "none" and why."""
        if type(self.cluster.router).evicted is Router.evicted:
            return "none: the router does not listen"
        mute = [name for name in self.cluster.replicas if name not in self._listeners]
        if mute:
            return f"none: no events from {', '.join(mute)}"
        troubles = ((name, listener.problem()) for name, listener in self._listeners.items())
        return next((f"none: {name}: {trouble}" for name, trouble in troubles if trouble), "events")

    def _up(self) -> Iterator[tuple[str, bool]]:
        return ((replica.name, replica.up) for replica in self.cluster.replicas.values())

    # -- workers ---------------------------------------------------------------------------------------------

    def _known(self, address: WorkerAddress) -> Replica:
        replica = self.cluster.replicas[address.name] = Replica(address)
        return replica

    async def _life(self, replica: Replica) -> None:
        """Look after a worker until it is removed."""
        listening = self._listen(replica) if replica.address.events else None
        await self._health.watch(replica)
        if listening:
            listening.cancel()

    def _listen(self, replica: Replica) -> asyncio.Task[None]:
        def evicted(blocks: Sequence[Hashable], kept: int) -> None:
            if replica.up:
                self.cluster.router.evicted(replica.worker, blocks, kept, time.monotonic())

        assert replica.address.events is not None
        listener = Listener(replica.address.events, self._config.block_tokens, evicted)
        self._listeners[replica.name] = listener
        return self._start(listener.listen(self._events))

    # -- tasks and ports -------------------------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """A part of the front, or the router, is broken: all of it ends."""
        if not self._failure.done():
            self._failure.set_exception(error)

    async def _end_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(FLUSH)
            self._journal.flush()

    async def _open_ports(self, stack: AsyncExitStack) -> tuple[int, int]:
        config = self._config
        proxy = Proxy(
            self.cluster, self._session, self._register, config.engine, config.block_tokens, self._fail
        )
        front = web.ServerRunner(proxy.server(), shutdown_timeout=SHUTDOWN)
        admin = web.AppRunner(Admin(self).app(), access_log=None, shutdown_timeout=SHUTDOWN)
        return await _open(stack, front, config.port), await _open(stack, admin, config.admin_port)


async def _open(stack: AsyncExitStack, runner: web.BaseRunner, port: int) -> int:
    """Bind a server to a port of loopback until the stack unwinds; returns which it is."""
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, HOST, port, backlog=BACKLOG).start()
    return int(runner.addresses[0][1])


def _session(connect_s: float) -> aiohttp.ClientSession:
    """Connections to workers: as many as it takes, what passes through them untouched."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_s),
        read_bufsize=BUFFER,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )
