"""Schedulers, and the routers before them, by name, by `path/to/file.py:Class`, or from entry points.

A scheduler alone is written "dlpm", "dlpm:quantum=2000" or "my.py:Mine:knob=3"; one on each of several
replicas, behind a router, "d2lpm+dlpm" or "d2lpm:quantum=20000+my.py:Mine".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from baselines.router import Router
from baselines.scheduler import Scheduler
from suite import plugins
from suite.errors import BadInput
from suite.plugins import Foreign, Kind, Plugin
from suite.validation import at

STOCK = {
    "vllm": ("fcfs", "priority"),
    "sglang": ("fcfs", "lpm", "dfs-weight", "lof", "hrrn", "random", "shortest-prefill-first"),
}
"""The engines' own policies, as the engines name them. Each is a scheduler "ENGINE:POLICY" of that engine
alone; SGLang has hrrn and shortest-prefill-first in later releases than 0.5.15."""

PEERS = {
    "sglang-router": ("random", "round_robin", "cache_aware", "power_of_two"),
    "vllm-router": (
        "random", "round_robin", "cache_aware", "power_of_two", "consistent_hash", "sticky_least_loaded"
    ),
}  # fmt: skip
"""Other projects' routers and their policies, as they name them. Each is a router "PROGRAM:POLICY"."""

SCHEDULERS = Kind(
    "scheduler",
    Scheduler,
    "suite.schedulers",
    "candidates",
    "yields requests in the order to try them",
    STOCK,
)
ROUTERS = Kind(
    "router", Router, "suite.routers", "route", "returns the worker that serves the request", PEERS
)

_REFERENCE = r"(?:[^:]+\.py(?::\w+)?|[^\W\d][\w.-]*(?::[\w-]+)?)(?::\w+=.*?)?"
_ROUTED = re.compile(rf"(?P<router>{_REFERENCE})\+(?P<scheduler>{_REFERENCE})", re.DOTALL)
_PATH = re.compile(r"[^:]+\.py")


class RouterSpec(Plugin):
    """A router chosen by a user."""

    kind = ROUTERS

    @property
    def place(self) -> str:
        """Where it runs, in words."""
        return "runs before replicas in the simulator, and of vLLM and SGLang in real time"

    def build(self) -> Router:
        """A fresh instance."""
        return ROUTERS.load(self.target)(**self.parameters)


class PeerRouter(Foreign, RouterSpec):
    """A router that is another project's program, with one of its policies (see `PEERS`)."""

    @property
    def program(self) -> str:
        """The program, as the suite names it."""
        return self.target.partition(":")[0]

    @property
    def policy(self) -> str:
        """The policy's name in the program."""
        return self.target.partition(":")[2]

    @property
    def summary(self) -> str:
        """What it is, in words."""
        return f"What {self.program} calls {self.policy}; {self.place}."

    @property
    def place(self) -> str:
        """Where it runs, in words."""
        return "runs before vLLM and SGLang only, in real time"

    def build(self) -> Router:
        """It cannot be built: raises `BadInput`."""
        raise BadInput(f"router {self.name!r}: {self.place}; name one of ours")


@dataclass(frozen=True)
class SchedulerSpec(Plugin):
    """A scheduler chosen by a user, and the router before its replicas, if any."""

    kind = SCHEDULERS

    router: RouterSpec | None = None

    @property
    def label(self) -> str:
        """As shown to people: names, and the parameters that were given."""
        return f"{self.router.label}+{super().label}" if self.router else super().label

    @property
    def reference(self) -> str:
        """As `parse` reads it back."""
        return f"{self.router.reference}+{super().reference}" if self.router else super().reference

    @property
    def policy(self) -> str:
        """The names alone: "dlpm", or "d2lpm+dlpm" behind a router."""
        return f"{self.router.name}+{self.name}" if self.router else self.name

    @property
    def record(self) -> dict[str, Any]:
        """What a manifest keeps of it: under its label, and with its router."""
        return super().record | {"name": self.label, "router": self.router.record if self.router else None}

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the classes, its own first."""
        return (self.file, self.router.file) if self.router else (self.file,)

    @property
    def place(self) -> str:
        """Where it runs, in words."""
        return "runs on every backend but an endpoint, whose own is `stock`"

    @property
    def work_conserving(self) -> bool:
        """True if the class says that it offers some request whenever one waits."""
        return SCHEDULERS.load(self.target).work_conserving

    def build(self) -> Scheduler:
        """A fresh instance."""
        return SCHEDULERS.load(self.target)(**self.parameters)


class Stock(Foreign, SchedulerSpec):
    """A scheduler that is an engine's own: a policy of `STOCK` by name, or "stock", whatever runs there."""

    @property
    def engine(self) -> str:
        """The engine whose policy it is; empty if it is not known."""
        return self.target.partition(":")[0]

    @property
    def engine_policy(self) -> str:
        """The policy's name in the engine; empty if it is not known."""
        return self.target.partition(":")[2]

    @property
    def place(self) -> str:
        """Where it runs, in words."""
        if self.engine:
            return f"runs on backend {self.engine} only, in real time"
        return "is an endpoint's own, while those of engines are named like vllm:fcfs and sglang:lpm"

    def build(self) -> Scheduler:
        """It cannot be built: raises `BadInput`."""
        raise BadInput(f"scheduler {self.name!r}: {self.place}; name one of ours")


def parse(choice: str | Mapping[str, Any]) -> SchedulerSpec:
    """The scheduler named by "dlpm", "dlpm:quantum=2000", "my.py:Mine:knob=3" or {name: dlpm, quantum: 2000}.

    "sglang:lpm" is an engine's own policy, "stock" what an endpoint does by itself. Behind a router it is
    written ROUTER+SCHEDULER, or {name: dlpm, router: ROUTER, quantum: 2000} with ROUTER as `parse_router`
    takes it. A "+" inside the path of a file that is there separates nothing.

    Parameters are converted and checked against the constructor's signature. Raises `BadInput` for an unknown
    name or parameter, a value of the wrong type, or a file or class that cannot be used.
    """
    if isinstance(choice, str):
        router, own = _split(choice)
        if router is None:
            return _scheduler(own)
        with at(choice):
            return _behind(parse_router(router), _scheduler(own))
    spec = _scheduler({key: value for key, value in choice.items() if key != "router"})
    return _behind(parse_router(choice["router"]), spec) if "router" in choice else spec


def parse_router(choice: str | Mapping[str, Any]) -> RouterSpec:
    """The router named by "d2lpm", "d2lpm:quantum=20000", "my.py:Mine" or {name: d2lpm, quantum: 20000}.

    "sglang-router:cache_aware" is another project's. Raises `BadInput` as `parse` does.
    """
    if not isinstance(choice, str | Mapping):
        raise BadInput(f"router: write a name, a path or a mapping, not {choice!r}")
    reference, parameters = plugins.read(ROUTERS, choice)
    if plugins.is_foreign(ROUTERS, reference):
        return PeerRouter(reference, reference).with_parameters(parameters)
    return RouterSpec(*plugins.find(ROUTERS, SCHEDULERS, reference)).with_parameters(parameters)


def available() -> dict[str, str]:
    """Targets of all schedulers that have a name, by name."""
    return SCHEDULERS.available()


def available_routers() -> dict[str, str]:
    """Targets of all routers that have a name, by name."""
    return ROUTERS.available()


def _behind(router: RouterSpec, scheduler: SchedulerSpec) -> SchedulerSpec:
    if router.name == scheduler.name:
        raise BadInput(f"router and scheduler are both called {router.name!r}; rename one")
    return replace(scheduler, router=router)


def _scheduler(choice: str | Mapping[str, Any]) -> SchedulerSpec:
    if isinstance(choice, str) and choice.partition(":")[0] in PEERS:
        raise BadInput(f"{choice!r}: a router, not a scheduler; write {choice}+SCHEDULER")
    reference, parameters = plugins.read(SCHEDULERS, choice)
    if reference == "stock":
        return Stock("stock", "").with_parameters(parameters)
    if plugins.is_foreign(SCHEDULERS, reference):
        return Stock(reference, reference).with_parameters(parameters)
    return SchedulerSpec(*plugins.find(SCHEDULERS, ROUTERS, reference)).with_parameters(parameters)


def _split(choice: str) -> tuple[str | None, str]:
    """What stands before the "+" and behind it; nothing before it if it is part of the path of a file."""
    routed, path = _ROUTED.fullmatch(choice), _PATH.match(choice)
    if routed is None or (path and path.end() > routed.end("router") and Path(path[0]).is_file()):
        return None, choice
    return routed["router"], routed["scheduler"]
