"""How vLLM servers are started, asked and reset."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from suite.backends.front.config import Engine
from suite.backends.launch import FIRST_ANSWER, LOG_PATIENCE, Launch, Sizes
from suite.backends.servers import Replica, ask, gpu_memory
from suite.dialect import Prompts, Target

_PLUGIN = "suite.backends.vllm_plugin"


@dataclass(frozen=True)
class VLLMLaunch(Launch):
    """vLLM servers; `flags` are those of `vllm serve`. Its own schedulers run without the plugin."""

    engine: ClassVar[Engine] = "vllm"
    publishes: ClassVar[bool] = True

    @property
    def logged(self) -> bool:
        """False for vLLM's own schedulers, which are left alone."""
        return self.stock is None

    def target(self, url: str) -> Target:
        """Requests say their priority where vLLM is to go by it. sglang-router takes no token ids here."""
        by_priority = self.stock is not None and self.stock.engine_policy == "priority"
        prompts: Prompts = "tokens"
        if self.peer and self.peer.program == "sglang-router":
            prompts = "words" if self.model.is_made else "text"
        return Target(
            url, self.model.name, "vllm", "completions", prompts, by_priority, self.peer is not None
        )

    def sizes(self, replica: Replica) -> Sizes:
        """From the log's first line."""
        facts = self.facts(replica)
        pool = facts["blocks"] * facts["block_size"]
        return Sizes(facts["max_num_batched_tokens"], facts["max_num_seqs"], pool)

    def facts(self, replica: Replica) -> dict[str, Any]:
        """For vLLM's own scheduler what the server has written at its start."""
        if self.logged:
            return super().facts(replica)
        replica.refresh()
        name = _policy_told(replica.server.log)
        return {"target": f"vllm:{name}", "name": name, "parameters": {}, "source": ""}

    def version(self, replica: Replica) -> str:
        """From /version."""
        return str(ask(f"{replica.url}/version")["version"])

    def serve_one(self, replica: Replica) -> int:
        """A completion."""
        prompt = [self.model.first_token] * (2 * self.block + 1)
        request = {"model": self.model.name, "prompt": prompt, "max_tokens": 2, "ignore_eos": True}
        answer = ask(f"{replica.url}/v1/completions", request, timeout=FIRST_ANSWER)
        return int((answer["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0)

    def reset(self, replica: Replica) -> None:
        """By /reset_prefix_cache, which is there in development mode."""
        ask(f"{replica.url}/reset_prefix_cache", post=True, timeout=LOG_PATIENCE)

    def _is_cold(self, facts: Mapping[str, Any]) -> bool:
        return facts.get("cached_blocks") == 0

    def _variables(self, folder: Path) -> dict[str, str]:
        return {"VLLM_SERVER_DEV_MODE": "1"}

    def _command(self, port: int, folder: Path, number: int, events: str | None = None) -> list[str]:
        serve = [str(self.environment.python), "-m", "vllm.entrypoints.cli.main", "serve", self.model.path]
        address = {"host": self.host, "port": port, "served-model-name": self.model.name}
        flags = {
            **self.flags, **self._share(number), **self._scheduling(folder), **_publishing(events), **address
        }  # fmt: skip
        return [*serve, *(word for flag, value in flags.items() for word in _words(flag, value))]

    def _scheduling(self, folder: Path) -> dict[str, Any]:
        if self.stock:
            return {"scheduling-policy": self.stock.engine_policy}
        return {
            "scheduler-cls": f"{_PLUGIN}.{'FairAsyncScheduler' if self._asynchronous else 'FairScheduler'}",
            "additional-config": {"suite": self.configuration(folder)},
        }

    @property
    def _asynchronous(self) -> bool:
        """Whether vLLM schedules ahead of the model: on CUDA, unless told not to; never on the CPU."""
        off = self.flags.get("async-scheduling") is False or self.flags.get("no-async-scheduling") is True
        return self.environment.device == "cuda" and not off

    def _share(self, number: int) -> dict[str, Any]:
        """The share of each GPU that vLLM checks to be free."""
        if not self.gpus:
            return {}
        gpu = self.gpus[number][0]
        _, total = gpu_memory(gpu)
        return {"gpu-memory-utilization": round(min(self._needed(gpu) / total, 1.0), 4)}


def _publishing(events: str | None) -> dict[str, Any]:
    """It listens at ipc addresses alone; to others it connects, or it takes all the machine's."""
    if events is None:
        return {}
    return {
        "kv-events-config": {
            "enable_kv_cache_events": True, "publisher": "zmq", "endpoint": events, "topic": "kv-events"
        }
    }  # fmt: skip


def _policy_told(log: Path) -> str:
    """The policy in vLLM's account of the arguments that differ from its defaults.

    Its /server_info would tell more, and fails where neither pip nor uv is at hand. Raises `OSError` if there
    is no account.
    """
    account = re.search(r"non-default args: (.*)", log.read_text(errors="replace"))
    if account is None:
        raise OSError(f"{log}: does not tell the arguments")
    told = re.search(r"'scheduling_policy': '([\w-]+)'", account[1])
    return told[1] if told else "fcfs"


def _words(flag: str, value: Any) -> list[str]:
    """A flag as it stands on a command line: True is --flag, False --no-flag, a mapping or list JSON."""
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", json.dumps(value) if isinstance(value, dict | list) else str(value)]
