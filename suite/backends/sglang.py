"""Real SGLang under any scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from suite.backends.engine import EngineBackend
from suite.backends.launch import WHOLE, Launch
from suite.backends.sglang_server import SGLangLaunch
from suite.models import Model

_OURS = (
    "admin-api-key", "api-key", "config", "data-parallel-size", "device", "dist-init-addr", "dp-size",
    "dtype", "enable-cache-report", "enable-priority-scheduling", "host", "incremental-streaming-output",
    "model-path", "nnodes", "node-rank", "pipeline-parallel-size", "port", "pp-size", "schedule-policy",
    "served-model-name", "sleep-on-idle", "stream-output",
)  # fmt: skip
_SMALLEST = 64
"""Tokens that SGLang's own warm-up needs."""


class SGLang(EngineBackend):
    """Settings of SGLang, and the `Backend` that serves a trace with it in real time.

    `token_budget` is the size of a chunk of prefill and bounds a prefill batch. A block, SGLang's page, has
    one token unless `block_tokens` says otherwise. Of `max_length` SGLang keeps two tokens to itself: a
    request that would use them gets fewer than it asks for, and has failed.
    """

    program: ClassVar[str] = "sglang.launch_server"
    named: ClassVar[Mapping[str, str]] = {
        "max-running-requests": "max_running",
        "chunked-prefill-size": "token_budget",
        "max-prefill-tokens": "token_budget",
        "max-total-tokens": "kv_tokens",
        "page-size": "block_tokens",
        "context-length": "max_length",
        "tp-size": "tensor_parallel",
        "tensor-parallel-size": "tensor_parallel",
    }
    ours: ClassVar[Mapping[str, tuple[str, ...]]] = {"cpu": _OURS, "cuda": _OURS}
    launcher: ClassVar[type[Launch]] = SGLangLaunch

    kind: Literal["sglang"] = "sglang"

    @property
    def block(self) -> int:
        """One token."""
        return self.block_tokens or 1

    @property
    def least(self) -> int:
        """What its own warm-up needs, in whole blocks."""
        return -(-_SMALLEST // self.block) * self.block

    def _flags(self, model: Model, pool: int | None, length: int) -> dict[str, Any]:
        flags: dict[str, Any] = {
            "device": self.device,
            "dtype": model.dtype,
            "page-size": self.block,
            "max-running-requests": self.max_running,
            "chunked-prefill-size": self.token_budget,
            "max-prefill-tokens": self.token_budget,
            "context-length": length,
            "tp-size": self.tensor_parallel,
            "random-seed": 0,
            "enable-cache-report": True,
            "incremental-streaming-output": True,
            "log-level-http": "warning",
            "sleep-on-idle": True,  # else a server that waits for its next run keeps a core busy
        }
        if model.dummy:
            flags["load-format"] = "dummy"
        if pool is not None:
            flags["max-total-tokens"] = pool
        if self.device == "cpu":
            return flags | {"attention-backend": "torch_native", "sampling-backend": "pytorch"}
        return flags | {"mem-fraction-static": WHOLE}

    def _wrong_budget(self) -> str | None:
        if self.token_budget % self.block:
            return f"token_budget ({self.token_budget}) must be a multiple of block_tokens ({self.block})"
        return None
