"""The backends by kind, and which schedulers run on them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from suite.errors import BadInput, did_you_mean
from suite.policies import PeerRouter, SchedulerSpec, Stock
from suite.validation import validated

BACKENDS = {
    "simulator": "suite.backends.simulator:Simulator",
    "vllm": "suite.backends.vllm:VLLM",
    "sglang": "suite.backends.sglang:SGLang",
    "endpoint": "suite.backends.endpoint:Endpoint",
}
"""The pydantic model of each kind of backend, as module:Class; imported when an experiment asks for it."""

VIRTUAL = {
    "vllm": "suite.backends.virtual:VirtualVLLM",
    "sglang": "suite.backends.virtual:VirtualSGLang",
}
"""The same for engines whose scheduler runs without a model, on a virtual clock: `clock: virtual`."""


def backend_of(settings: Mapping[str, Any]) -> BaseModel:
    """The backend of the settings' `kind`, which is its model. Raises `BadInput` for what it cannot be."""
    kind = str(settings.get("kind", "missing"))
    known = VIRTUAL if settings.get("clock") == "virtual" and kind in BACKENDS else BACKENDS
    if kind not in known:
        raise BadInput(f"kind: no backend {kind!r}; {did_you_mean(kind, known)}")
    module, _, name = known[kind].partition(":")
    model: type[BaseModel] = getattr(importlib.import_module(module), name)
    return validated(model, settings)


def runs_on(scheduler: SchedulerSpec, backend: Mapping[str, Any]) -> bool:
    """Whether a scheduler can run on a backend of these settings.

    Raises `BadInput` for one that could, but for want of a router before the replicas there.
    """
    fits = _routed(scheduler, backend) if scheduler.router else _served(scheduler, backend)
    replicas = backend.get("replicas", 1)
    if fits and replicas > 1 and not scheduler.router:
        raise BadInput(
            f"{scheduler.label}: {replicas} replicas need a router; write round-robin+{scheduler.reference}"
        )
    return fits


def _served(scheduler: SchedulerSpec, backend: Mapping[str, Any]) -> bool:
    """An engine's own scheduler runs where that engine does, in real time."""
    kind = str(backend["kind"])
    if not isinstance(scheduler, Stock):
        return kind != "endpoint"
    return kind == (scheduler.engine or "endpoint") and backend.get("clock") != "virtual"


def _routed(scheduler: SchedulerSpec, backend: Mapping[str, Any]) -> bool:
    """Another project's router has real servers behind it."""
    kind = str(backend["kind"])
    routable = kind != "endpoint" and backend.get("clock") != "virtual"
    peer = isinstance(scheduler.router, PeerRouter)
    return routable and _served(scheduler, backend) and not (peer and kind == "simulator")
