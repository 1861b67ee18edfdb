"""How the servers of an engine are started with a policy inside, and made as new for the next run."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from packaging.version import Version

from baselines.router import Router
from suite.backends.base import Progress
from suite.backends.engine_log import cause
from suite.backends.front.config import Engine, WorkerAddress
from suite.backends.servers import (
    Plugin,
    Replica,
    Replicas,
    cpu_shortage,
    first_line,
    gpu_memory,
    gpu_shortage,
    replica_name,
    variables,
    wait_for,
    wait_until_up,
    wanted,
)
from suite.dialect import Target
from suite.environments import Environment
from suite.errors import BadInput
from suite.models import Model
from suite.policies import STOCK, PeerRouter, SchedulerSpec, Stock
from suite.processes import check_port, free_port

LOG_PATIENCE = 10.0
"""Seconds an engine may take to begin the log of a run."""
FIRST_ANSWER = 120.0
"""Seconds the first request may take; an engine makes much ready only when it is asked."""
WHOLE = 0.9
"""Share of a GPU's memory that an engine takes where it is to find out how large a KV pool fits."""
ROUTED_BLOCK = 16
"""Tokens of the smallest block that a router looks at."""

ELSEWHERE: ContextVar[Callable[[int, Path], Replica] | None] = ContextVar("ELSEWHERE", default=None)
"""Starts replica number n on a machine of its own, its logs in the folder; see `suite.backends.ray`."""


class Sizes(NamedTuple):
    """What an engine says of its sizes: tokens in a step, requests at once, tokens in the KV pool."""

    budget: int
    running: int
    pool: int


@dataclass(frozen=True)
class Launch(ABC):
    """All that decides what a set of servers is.

    `flags` are those of the engine's command line, without address and policy; `block` the tokens of a block
    of the prefix cache; `pool` those of a replica's KV pool, None where the engine is to find out what fits;
    `gpus` the GPUs of each replica by index or UUID, nothing on the CPU; `needed` the bytes of memory of a
    replica, on each of its GPUs.
    """

    engine: ClassVar[Engine]
    plugin: ClassVar[Plugin | None] = None
    """By which it finds the suite's plugin, unless the command line names it."""
    publishes: ClassVar[bool] = False
    """True if it can tell a router what leaves its prefix cache."""

    environment: Environment
    model: Model
    scheduler: SchedulerSpec
    flags: Mapping[str, Any]
    block: int
    pool: int | None
    replicas: int
    gpus: tuple[tuple[str, ...], ...]
    needed: int
    start_timeout_s: float
    details: tuple[str, ...] = ()
    """What the service log is to hold besides: "steps", "timing"; see `suite.backends.host`."""
    host: str = "127.0.0.1"
    """The address at which the servers listen."""

    def __post_init__(self) -> None:
        spec = self.scheduler
        if isinstance(spec, Stock) and spec.engine != self.engine:
            known = ", ".join(f"{self.engine}:{policy}" for policy in STOCK[self.engine])
            raise BadInput(f"scheduler {spec.name!r}: {spec.place}; {self.engine} has {known}")
        if spec.router is None and self.replicas > 1:
            raise BadInput(f"{self.replicas} replicas need a router; write round-robin+{spec.reference}")
        _ = self.policy

    # -- what an engine is --------------------------------------------------------------------------------

    @abstractmethod
    def target(self, url: str) -> Target:
        """How the replay client puts requests to a server, or to the router before it, at this address."""

    @abstractmethod
    def sizes(self, replica: Replica) -> Sizes:
        """What the server says of its sizes, in the log of the run in force."""

    @abstractmethod
    def version(self, replica: Replica) -> str:
        """The engine's release, as the server says. Raises `OSError` if it does not."""

    @abstractmethod
    def serve_one(self, replica: Replica) -> int:
        """Serve a request that fills two blocks, and return how many of its tokens were in the cache."""

    @abstractmethod
    def reset(self, replica: Replica) -> None:
        """Empty the server's prefix cache. Raises `OSError` if that cannot be done."""

    @abstractmethod
    def _command(self, port: int, folder: Path, number: int, events: str | None = None) -> list[str]:
        """The command line of replica `number`, which writes its logs into the folder.

        With `events` it tells there what enters and leaves its prefix cache.
        """

    @abstractmethod
    def _variables(self, folder: Path) -> dict[str, str]:
        """Environment variables of a server that writes its logs into the folder."""

    @abstractmethod
    def _is_cold(self, facts: Mapping[str, Any]) -> bool:
        """Whether the first line of a log says that the prefix cache is empty."""

    @property
    def logged(self) -> bool:
        """True if the engine writes a service log: the suite's plugin is in it."""
        return True

    # -- what is asked for --------------------------------------------------------------------------------

    @property
    def stock(self) -> Stock | None:
        """The engine's own scheduler, if that is what is to decide."""
        return self.scheduler if isinstance(self.scheduler, Stock) else None

    @property
    def name(self) -> str:
        """As shown to people."""
        return f"{self.engine} under {self.scheduler.label}"

    @property
    def key(self) -> str:
        """Equal for launches that give the same servers, whatever router stands before them."""
        servers = (
            self.environment.folder,
            self.model.path,
            self.flags,
            self.policy,
            self.replicas,
            self.gpus,
        )
        return json.dumps([*servers, self.watched], default=str)

    @property
    def peer(self) -> PeerRouter | None:
        """Another project's router, if one stands before the servers."""
        router = self.scheduler.router
        return router if isinstance(router, PeerRouter) else None

    @property
    def watched(self) -> bool:
        """Whether the router wants to be told what leaves the prefix caches, and the engine can tell."""
        router = self.scheduler.router
        if router is None or self.peer or not self.publishes:
            return False
        return type(router.build()).evicted is not Router.evicted

    @property
    def routed_block(self) -> int:
        """Tokens of the blocks that a router looks at: the engine's own, unless they are smaller than 16."""
        return self.block if self.block >= ROUTED_BLOCK else ROUTED_BLOCK

    @cached_property
    def policy(self) -> dict[str, Any]:
        """What must be in force: target, parameters, and the digest of the source.

        Raises `BadInput` if a parameter cannot be written as JSON.
        """
        if self.stock:
            return {"target": self.stock.target, "parameters": {}, "source": ""}
        return {**wanted(self.scheduler), "source": self.scheduler.source_digest}

    def configuration(self, folder: Path) -> dict[str, Any]:
        """What the plugin is told; see `suite.backends.host`."""
        scheduler = {"stock": self.stock.engine_policy} if self.stock else wanted(self.scheduler)
        return {
            "scheduler": scheduler,
            "logs": str(folder.absolute()),
            **dict.fromkeys(self.details, True),
        }

    # -- starting -------------------------------------------------------------------------------------------

    def start(self, logs: Path, progress: Progress, port: int | None = None) -> Replicas:
        """Start the servers, their logs in `logs`, and return when they are ready for a run.

        A given `port` is that of the first replica. Raises `BadInput` that names the cause and the log.
        """
        if port is not None:
            check_port(port)
        replicas = Replicas()
        try:
            self._start_all(replicas, logs, port)
            wait_until_up(replicas, self.name, self.start_timeout_s, lambda note: progress(0.0, note))
            self._make_ready(replicas)
        except BaseException:
            replicas.stop()
            raise
        return replicas

    def _start_all(self, replicas: Replicas, logs: Path, port: int | None) -> None:
        elsewhere = ELSEWHERE.get()
        packages = replicas.stage(self.plugin)
        for number in range(self.replicas):
            folder = home(logs, number, self.replicas)
            if elsewhere:
                replicas.take(elsewhere(number, folder))
            else:
                self.add(replicas, folder, packages, None if number else port)

    def workers(self, replicas: Replicas) -> list[WorkerAddress]:
        """The servers as a router is told of them."""
        return [
            WorkerAddress(
                name=one.name,
                url=one.url,
                kv_tokens=self.sizes(one).pool if self.logged else self.pool,
                events=one.events,
            )
            for one in replicas.all
        ]

    def shortage(self) -> str | None:
        """What memory is lacking to start the servers here, if any."""
        if ELSEWHERE.get():
            return None
        if not self.gpus:
            return cpu_shortage(self.replicas * self.needed, self.name)
        shares = Counter(gpu for gpus in self.gpus for gpu in gpus)
        return gpu_shortage({gpu: count * self._needed(gpu) for gpu, count in shares.items()}, self.name)

    def _needed(self, gpu: str) -> int:
        """Bytes that a replica takes on a GPU."""
        return self.needed if self.pool is not None else max(self.needed, int(WHOLE * gpu_memory(gpu)[1]))

    def add(self, replicas: Replicas, folder: Path, packages: Path, port: int | None = None) -> None:
        """Start one more server, its logs in the folder; `packages` is what `Replicas.stage` gave."""
        for old in (*folder.glob("service-*.jsonl"), *folder.glob("decisions-*.jsonl")):
            old.unlink()  # of a run that broke off; it must not be taken for this one's
        port = port or free_port()
        number, scratch = len(replicas.all), replicas.scratch()
        events = f"ipc://{scratch}/events" if self.watched else None
        own = {
            **self.environment.variables,
            "PYTHONPATH": str(packages),
            "TMPDIR": str(scratch),
            **self._places(number),
            **self._variables(folder),
        }
        command = [*self._modestly, *self._command(port, folder, number, events)]
        replicas.add(command, variables(own), folder, f"http://{self.host}:{port}", events)

    @property
    def _modestly(self) -> tuple[str, ...]:
        """On the CPU engines yield to client and router, which share it and must not be late."""
        return () if self.gpus else ("nice", "-n", "10")

    def _places(self, number: int) -> dict[str, str]:
        """Where replica `number` finds its model and its GPUs."""
        own = {"HF_HUB_OFFLINE": "1"} if self.model.is_local else {}
        if self.gpus:
            own |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(self.gpus[number])}
        return own

    def _make_ready(self, replicas: Replicas) -> None:
        """Serve a first request everywhere, so that no run pays for it, and begin the first run."""
        try:
            for replica in replicas.all:
                self._check_server(replica)
                self.serve_one(replica)
        except OSError as error:
            raise BadInput(f"{self.name} does not serve: {cause(replicas) or error}") from None
        if not self.renew(replicas):
            log = replicas.all[0].server.log
            raise BadInput(f"{self.name}: its cache cannot be reset: {cause(replicas) or f'see {log}'}")
        for replica in replicas.all:
            for kind in ("decisions", "service"):
                (replica.folder / f"{kind}-0.jsonl").unlink(missing_ok=True)

    def _check_server(self, replica: Replica) -> None:
        """Raise `BadInput` if the server is of another release, or the suite's plugin is not in it."""
        found, folder = self.version(replica), self.environment.folder
        if Version(found).public != self.environment.version:
            raise BadInput(
                f"{folder}: holds {self.engine} {found}, not {self.environment.version}; "
                f"install the environment again"
            )
        if self.logged and not self._has_begun(replica):
            raise BadInput(
                f"{self.name}: the suite's plugin is not in it: no service log was begun "
                f"(log: {replica.server.log})"
            )

    # -- before and after each run --------------------------------------------------------------------------

    def renew(self, replicas: Replicas) -> bool:
        """Begin a run with a cold cache and a fresh policy; False if that cannot be proved.

        Raises `BadInput` if another policy is in force than was asked for.
        """
        try:
            return all(self._renew(replica) for replica in replicas.all)
        except OSError:
            return False

    def facts(self, replica: Replica) -> dict[str, Any]:
        """The engine's word about itself and the policy, in the log of the run in force.

        Raises `OSError` if it does not answer.
        """
        replica.refresh()
        line = first_line(replica.service_log)
        return dict(line[2]) if line else {}

    def disturbed(self, replicas: Replicas) -> str | None:
        """Why the run just served was not wholly under the policy asked for, if it was not."""
        for replica in replicas.all:
            try:
                self._check(self.facts(replica))
            except (BadInput, OSError) as error:
                return f"after the run: {error}"
            if replica.began_another():
                return (
                    f"{replica.url}: its cache was reset in the middle of the run, and the policy begun anew"
                )
        return None

    def _renew(self, replica: Replica) -> bool:
        if not self.logged:
            self._check(self.facts(replica))
            return self._is_cold_after_reset(replica)
        self.reset(replica)
        replica.begin_run()
        if not self._has_begun(replica):
            return False
        facts = self.facts(replica)
        self._check(facts)
        return self._is_cold(facts)

    def _has_begun(self, replica: Replica) -> bool:
        """Whether the log of the run in force has begun, if need be after a while."""

        def begun() -> bool:
            replica.refresh()
            return first_line(replica.service_log) is not None

        return wait_for(begun, LOG_PATIENCE)

    def _is_cold_after_reset(self, replica: Replica) -> bool:
        """Whether a reset makes a prompt that was in the cache miss it. Leaves the cache empty."""
        self.serve_one(replica)
        known = self.serve_one(replica)
        self.reset(replica)
        after = self.serve_one(replica)
        self.reset(replica)
        return known > 0 and after == 0

    def _check(self, facts: Mapping[str, Any]) -> None:
        for key, value in self.policy.items():
            if facts.get(key) != value:
                raise BadInput(
                    f"{self.name}: another policy is in force: {key} is {facts.get(key)!r}, not {value!r}"
                )


def home(logs: Path, number: int, replicas: int) -> Path:
    """Where the logs of replica `number` go."""
    return logs / replica_name(number) if replicas > 1 else logs
