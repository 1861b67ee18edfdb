"""The engines that the suite knows, and other projects' routers, and what each needs on which device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Engine:
    """What the suite knows of an engine, or of a router that stands before engines. Mappings are by device.

    A router computes nothing: its one device is the CPU, wherever its engines run.
    """

    packages: Mapping[str, str]
    core: str
    """The module that the suite builds on: an environment that cannot import it is of no use."""
    runs: str
    """What it can run, in words."""
    variables: Mapping[str, Mapping[str, str]]
    """Environment variables its processes need."""
    besides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Packages it imports that only packages left out ask for."""

    @property
    def module(self) -> str:
        """The package it is imported as."""
        return self.core.partition(".")[0]


_PRIVATE = {"DO_NOT_TRACK": "1"}
_ON_FEW_CORES = {"OMP_NUM_THREADS": "1"}
_VLLM = _PRIVATE | {"VLLM_NO_USAGE_STATS": "1"}
_VLLM_CPU = {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # allows an executor that does not spin on a core of its own
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
_SGLANG_CPU = {"SGLANG_USE_CPU_ENGINE": "1"}

ENGINES = {
    "vllm": Engine(
        packages={"cpu": "vllm-cpu", "cuda": "vllm"},
        core="vllm.v1.core.sched.scheduler",
        runs="vLLM's models under every scheduler",
        variables={"cpu": _VLLM | _VLLM_CPU | _ON_FEW_CORES, "cuda": _VLLM},
    ),
    "sglang": Engine(
        packages={"cpu": "sglang", "cuda": "sglang"},
        core="sglang.srt.managers.scheduler",
        runs="SGLang's models under every scheduler; on the CPU dense ones, in plain torch",
        variables={"cpu": _PRIVATE | _SGLANG_CPU | _ON_FEW_CORES, "cuda": _PRIVATE},
        besides={"cpu": ("dill", "jsonschema")},
    ),
    "vllm-router": Engine(
        packages={"cpu": "vllm-router"},
        core="vllm_router.router",
        runs="schedulers like vllm-router:cache_aware+lpm, before vLLM's replicas",
        variables={"cpu": _PRIVATE},
    ),
    "sglang-router": Engine(
        packages={"cpu": "sglang-router"},
        core="sglang_router.router",
        runs="schedulers like sglang-router:cache_aware+lpm, before any replicas",
        variables={"cpu": _PRIVATE},
    ),
}
TORCH = {"cpu": "cpu", "cuda": "auto"}
"""Devices, and the build of torch for each as uv names it: `auto` is what the GPU's driver can run."""
