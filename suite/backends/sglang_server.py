"""How SGLang servers are started, asked and reset.

The suite's plugin is in every one of them, also where SGLang's own scheduler decides: there it only watches.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from suite.backends.front.config import Engine
from suite.backends.launch import FIRST_ANSWER, LOG_PATIENCE, Launch, Sizes
from suite.backends.servers import Plugin, Replica, ask
from suite.dialect import Target

_PATIENCE = 5.0
"""Seconds the server may take to answer beyond what it is told to wait itself."""


@dataclass(frozen=True)
class SGLangLaunch(Launch):
    """SGLang servers; `flags` are those of `sglang.launch_server`."""

    engine: ClassVar[Engine] = "sglang"
    plugin: ClassVar[Plugin | None] = Plugin(
        "suite_sglang", "sglang.srt.plugins", "suite.backends.sglang_plugin:register"
    )

    def target(self, url: str) -> Target:
        """SGLang's own route: in 0.5.15 the one of the OpenAI API gives no token ids."""
        return Target(url, self.model.name, "sglang", "generate", "tokens", peer=self.peer is not None)

    def sizes(self, replica: Replica) -> Sizes:
        """From the log's first line."""
        facts = self.facts(replica)
        return Sizes(facts["chunked_prefill_size"], facts["max_running_requests"], facts["tokens"])

    def version(self, replica: Replica) -> str:
        """From /server_info."""
        return str(ask(f"{replica.url}/server_info")["version"])

    def serve_one(self, replica: Replica) -> int:
        """A prompt of token ids."""
        request = {
            "input_ids": [self.model.first_token] * (2 * self.block + 1),
            "sampling_params": {"temperature": 0, "max_new_tokens": 2, "ignore_eos": True},
        }
        answer = ask(f"{replica.url}/generate", request, timeout=FIRST_ANSWER)
        return int(answer["meta_info"]["cached_tokens"])

    def reset(self, replica: Replica) -> None:
        """By /flush_cache, which waits for requests that are being withdrawn and fails if others run."""
        url = f"{replica.url}/flush_cache?timeout={LOG_PATIENCE:g}"
        ask(url, post=True, timeout=LOG_PATIENCE + _PATIENCE)

    def _is_cold(self, facts: Mapping[str, Any]) -> bool:
        return facts.get("cached_tokens") == 0

    def _variables(self, folder: Path) -> dict[str, str]:
        return {
            "SUITE_SGLANG": json.dumps(self.configuration(folder)),
            "SGLANG_PLUGINS": "suite",
            "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false",  # else each poll is a request of its own
        }

    def _command(self, port: int, folder: Path, number: int, events: str | None = None) -> list[str]:
        flags = {
            "model-path": self.model.path,
            "served-model-name": self.model.name,
            "host": self.host,
            "port": port,
            "schedule-policy": self.stock.engine_policy if self.stock else "fcfs",
            **self.flags,
        }
        words = (word for flag, value in flags.items() for word in _words(flag, value))
        return [str(self.environment.python), "-m", "sglang.launch_server", *words]


def _words(flag: str, value: Any) -> list[str]:
    """A flag on a command line: True is --flag, False nothing, a list many words, a mapping JSON."""
    if isinstance(value, bool):
        return [f"--{flag}"] if value else []
    if isinstance(value, list):
        return [f"--{flag}", *map(str, value)]
    return [f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value)]
