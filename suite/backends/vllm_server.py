"""How vLLM servers are started with a policy inside, and made as new for the next run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from packaging.version import Version

from suite.backends import engine_log
from suite.backends.base import Progress
from suite.backends.servers import (
    Replica,
    Replicas,
    ask,
    cpu_shortage,
    first_line,
    gpu_memory,
    gpu_shortage,
    variables,
    wait_for,
    wait_until_up,
    wanted,
)
from suite.environments import Environment
from suite.errors import BadInput
from suite.models import Model
from suite.policies import SchedulerSpec, Stock
from suite.processes import check_port, free_port

LOG_PATIENCE = 10.0
"""Seconds an engine may take to begin the log of a run."""

WHOLE = 0.9
"""Share of a GPU's memory that vLLM takes where it is to find out how large a KV pool fits."""

_PLUGIN = "suite.backends.vllm_plugin"
_FIRST_ANSWER = 120.0
"""Seconds the first request may take; an engine makes much ready only when it is asked."""


@dataclass(frozen=True)
class Launch:
    """All that decides what a set of vLLM servers is.

    `flags` are those of `vllm serve`, without address and policy; `gpus` the GPUs of each replica by index or
    UUID, nothing on the CPU; `needed` the bytes of memory of a replica, on each of its GPUs.
    """

    environment: Environment
    model: Model
    scheduler: SchedulerSpec
    flags: Mapping[str, Any]
    asynchronous: bool
    replicas: int
    gpus: tuple[tuple[str, ...], ...]
    needed: int
    start_timeout_s: float
    details: tuple[str, ...] = ()
    """What the service log is to hold besides: "steps", "timing"; see `suite.backends.host`."""

    @property
    def stock(self) -> bool:
        """True if vLLM's own scheduler is left alone."""
        return isinstance(self.scheduler, Stock)

    @property
    def name(self) -> str:
        """As shown to people."""
        return f"vllm under {self.scheduler.label}"

    @property
    def key(self) -> str:
        """Equal for launches that give the same servers."""
        return json.dumps(
            [str(self.environment.folder), self.model.path, self.flags, self.policy, self.replicas, self.gpus]
        )

    @cached_property
    def policy(self) -> dict[str, Any]:
        """What must be in force: target, parameters, and the digest of the source; nothing for stock.

        Raises `BadInput` if a parameter cannot be written as JSON.
        """
        if self.stock:
            return {}
        return {**wanted(self.scheduler), "source": self.scheduler.source_digest}

    # -- starting -------------------------------------------------------------------------------------------

    def start(self, logs: Path, progress: Progress, port: int | None = None) -> Replicas:
        """Start the servers, their logs in `logs`, and return when they are ready for a run.

        A given `port` is that of the first replica. Raises `BadInput` that names the cause and the log.
        """
        if port is not None:
            check_port(port)
        replicas = Replicas()
        try:
            packages = replicas.stage()
            for number in range(self.replicas):
                self._add(replicas, home(logs, number, self.replicas), packages, None if number else port)
            wait_until_up(replicas, self.name, self.start_timeout_s, lambda note: progress(0.0, note))
            self._make_ready(replicas)
        except BaseException:
            replicas.stop()
            raise
        return replicas

    def shortage(self) -> str | None:
        """What memory is lacking to start the servers, if any."""
        if not self.gpus:
            return cpu_shortage(self.replicas * self.needed, self.name)
        shares = Counter(gpu for gpus in self.gpus for gpu in gpus)
        return gpu_shortage({gpu: count * self._needed(gpu) for gpu, count in shares.items()}, self.name)

    def _needed(self, gpu: str) -> int:
        """Bytes that a replica takes on a GPU."""
        if "kv-cache-memory-bytes" in self.flags:
            return self.needed
        return max(self.needed, int(WHOLE * gpu_memory(gpu)[1]))

    def _add(self, replicas: Replicas, folder: Path, packages: Path, port: int | None) -> None:
        for old in (*folder.glob("service-*.jsonl"), *folder.glob("decisions-*.jsonl")):
            old.unlink()  # of a run that broke off; it must not be taken for this one's
        port = port or free_port()
        command = self._command(port, folder, len(replicas.all))
        own = self._variables(packages, len(replicas.all))
        replicas.add(command, variables(own), folder, f"http://127.0.0.1:{port}")

    def _command(self, port: int, folder: Path, number: int) -> list[str]:
        serve = [str(self.environment.python), "-m", "vllm.entrypoints.cli.main", "serve", self.model.path]
        address = {"host": "127.0.0.1", "port": port, "served-model-name": self.model.name}
        flags = {**self.flags, **self._share(number), **self._plugin(folder), **address}
        return [*serve, *(word for flag, value in flags.items() for word in _words(flag, value))]

    def _plugin(self, folder: Path) -> dict[str, Any]:
        if self.stock:
            return {}
        return {
            "scheduler-cls": f"{_PLUGIN}.{'FairAsyncScheduler' if self.asynchronous else 'FairScheduler'}",
            "additional-config": {
                "suite": {
                    "scheduler": wanted(self.scheduler),
                    "logs": str(folder.absolute()),
                    **dict.fromkeys(self.details, True),
                }
            },
        }

    def _share(self, number: int) -> dict[str, Any]:
        """The share of each GPU that vLLM checks to be free."""
        if not self.gpus:
            return {}
        gpu = self.gpus[number][0]
        _, total = gpu_memory(gpu)
        return {"gpu-memory-utilization": round(min(self._needed(gpu) / total, 1.0), 4)}

    def _variables(self, packages: Path, number: int) -> dict[str, str]:
        own = {**self.environment.variables, "PYTHONPATH": str(packages), "VLLM_SERVER_DEV_MODE": "1"}
        if self.model.is_local:
            own |= {"HF_HUB_OFFLINE": "1"}
        if self.gpus:
            own |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(self.gpus[number])}
        return own

    # -- before each run ------------------------------------------------------------------------------------

    def renew(self, replicas: Replicas) -> bool:
        """Begin a run with a cold cache and a fresh policy; False if that cannot be proved.

        Raises `BadInput` if another policy is in force than was asked for.
        """
        try:
            return all(self._renew(replica) for replica in replicas.all)
        except OSError:
            return False

    def facts(self, replica: Replica) -> dict[str, Any]:
        """The engine's word about itself and the policy, from the log of the run in force; none for stock."""
        if self.stock:
            return {}
        line = first_line(replica.service_log)
        return dict(line[2]) if line else {}

    def _make_ready(self, replicas: Replicas) -> None:
        """Serve a first request everywhere, so that no run pays for it, and begin the first run."""
        try:
            for replica in replicas.all:
                self._check_version(replica)
                self._served(replica)
        except OSError as error:
            raise BadInput(f"{self.name} does not serve: {cause(replicas) or error}") from None
        if not self.renew(replicas):
            log = replicas.all[0].server.log
            raise BadInput(f"{self.name}: its cache cannot be reset: {cause(replicas) or f'see {log}'}")
        for replica in replicas.all:
            for kind in ("decisions", "service"):
                (replica.folder / f"{kind}-0.jsonl").unlink(missing_ok=True)

    def _check_version(self, replica: Replica) -> None:
        found = str(ask(f"{replica.url}/version")["version"])
        if Version(found).public != self.environment.version:
            raise BadInput(
                f"{self.environment.folder}: holds vllm {found}, not {self.environment.version}; "
                f"install the environment again"
            )

    def _served(self, replica: Replica) -> int:
        """Serve a request that fills two blocks, and return how many of its tokens were in the cache."""
        prompt = [self.model.first_token] * (2 * self.flags["block-size"] + 1)
        request = {"model": self.model.name, "prompt": prompt, "max_tokens": 2, "ignore_eos": True}
        answer = ask(f"{replica.url}/v1/completions", request, timeout=_FIRST_ANSWER)
        return int((answer["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0)

    def _renew(self, replica: Replica) -> bool:
        if self.stock:
            return self._is_cold_after_reset(replica)
        _reset(replica)
        replica.begin_run()
        if not wait_for(lambda: first_line(replica.service_log) is not None, LOG_PATIENCE):
            return False
        facts = self.facts(replica)
        self._check(facts)
        return facts.get("cached_blocks") == 0

    def _is_cold_after_reset(self, replica: Replica) -> bool:
        """Whether a reset makes a prompt that was in the cache miss it. Leaves the cache empty."""
        self._served(replica)
        known = self._served(replica)
        _reset(replica)
        after = self._served(replica)
        _reset(replica)
        return known > 0 and after == 0

    def _check(self, facts: Mapping[str, Any]) -> None:
        for key, value in self.policy.items():
            if facts.get(key) != value:
                raise BadInput(
                    f"{self.name}: another policy is in force: {key} is {facts.get(key)!r}, not {value!r}"
                )


def home(logs: Path, number: int, replicas: int) -> Path:
    """Where the logs of replica `number` go."""
    return logs / f"replica-{number}" if replicas > 1 else logs


def cause(replicas: Replicas) -> str | None:
    """Why servers have ended, if they have: what the policy raised, or how the process ended."""
    reason = replicas.alive()
    for replica in replicas.all:
        if replica.service_log.exists() and (raised := engine_log.read(replica.service_log, 0.0).failed):
            return f"the scheduler failed: {raised} (log: {replica.server.log})"
    return reason


def _reset(replica: Replica) -> None:
    ask(f"{replica.url}/reset_prefix_cache", post=True, timeout=LOG_PATIENCE)


def _words(flag: str, value: Any) -> list[str]:
    """A flag as it stands on a command line: True is --flag, False --no-flag, a mapping or list JSON."""
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", json.dumps(value) if isinstance(value, dict | list) else str(value)]
