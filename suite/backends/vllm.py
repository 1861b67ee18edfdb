"""Real vLLM under any scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from suite.backends.engine import EngineBackend
from suite.backends.launch import Launch
from suite.backends.vllm_server import VLLMLaunch
from suite.models import Model

CPU_BLOCK = 32
"""Tokens of a block on the CPU are a multiple of it, the attention kernels' own block."""
CUDA_BLOCK = 16

_OURS = (
    "additional-config", "data-parallel-size", "dtype", "enable-prompt-tokens-details",
    "gpu-memory-utilization", "host", "kv-events-config", "model", "port", "scheduler-cls",
    "scheduling-policy", "served-model-name", "uds",
)  # fmt: skip
_SMALLEST = 3
"""Blocks without which a server cannot show that its cache is cold; see `Launch.renew`."""


class VLLM(EngineBackend):
    """Settings of vLLM, and the `Backend` that serves a trace with it in real time.

    A block has 32 tokens on the CPU and 16 on CUDA, unless `block_tokens` says otherwise.
    """

    program: ClassVar[str] = "vllm serve"
    named: ClassVar[Mapping[str, str]] = {
        "max-num-seqs": "max_running",
        "max-num-batched-tokens": "token_budget",
        "num-gpu-blocks-override": "kv_tokens",
        "kv-cache-memory-bytes": "kv_tokens",
        "block-size": "block_tokens",
        "max-model-len": "max_length",
        "tensor-parallel-size": "tensor_parallel",
    }
    ours: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "cpu": (*_OURS, "enforce-eager", "distributed-executor-backend"),
        "cuda": _OURS,
    }
    launcher: ClassVar[type[Launch]] = VLLMLaunch

    kind: Literal["vllm"] = "vllm"

    @property
    def block(self) -> int:
        """32 on the CPU, 16 on CUDA."""
        return self.block_tokens or (CUDA_BLOCK if self.device == "cuda" else CPU_BLOCK)

    @property
    def least(self) -> int:
        """Three blocks."""
        return _SMALLEST * self.block

    def _flags(self, model: Model, pool: int | None, length: int) -> dict[str, Any]:
        flags: dict[str, Any] = {
            "dtype": model.dtype,
            "block-size": self.block,
            "max-num-seqs": self.max_running,
            "max-num-batched-tokens": self.token_budget,
            "max-model-len": length,
            "tensor-parallel-size": self.tensor_parallel,
            "enable-prompt-tokens-details": True,
            "disable-uvicorn-access-log": True,
        }
        if model.dummy:
            flags["load-format"] = "dummy"
        if pool is not None:
            blocks = pool // self.block + 1  # vLLM keeps one, the null block, to itself
            flags["num-gpu-blocks-override"] = blocks
            flags["kv-cache-memory-bytes"] = blocks * self.block * model.kv_bytes // self.tensor_parallel
        if self.device == "cpu":
            flags |= {"enforce-eager": True, "distributed-executor-backend": "uni"}
        return flags

    def _wrong_budget(self) -> str | None:
        if self.token_budget < self.max_running:
            return (
                f"token_budget ({self.token_budget}) must be at least max_running ({self.max_running}), so "
                f"that every running request can decode in each step"
            )
        if self.device == "cpu" and self.block % CPU_BLOCK:
            return f"block_tokens ({self.block}) must be a multiple of {CPU_BLOCK} on the CPU"
        return None
