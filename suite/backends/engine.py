"""What the backends of real engines share: settings, servers, a run, both sides' logs merged."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from suite import environments, models
from suite.backends import account
from suite.backends.base import Incomplete, Outcome, Progress
from suite.backends.engine_log import raised
from suite.backends.entrance import Entrance, entrance
from suite.backends.launch import Launch
from suite.backends.servers import ENGINE_BYTES, POOL, Replicas, wait_for
from suite.content import Content
from suite.dialect import fits_header
from suite.errors import BadInput
from suite.models import Model
from suite.policies import SchedulerSpec
from suite.replay import Replayed, replay
from suite.trace import Trace

CPU_POOL = 256 * 2**20
"""Bytes of KV pool on the CPU unless told otherwise. An engine's own choice, most of the memory, would leave
none for a second server."""
DEATH = 5.0
"""Seconds a server whose engine is dead may take to end; until then it answers with errors."""

_FLAG = re.compile(r"[a-z][a-z0-9.-]*")


class EngineBackend(BaseModel, ABC):
    """Settings of a real engine, and the `Backend` that serves a trace with it in real time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    exclusive: ClassVar[bool] = True

    program: ClassVar[str]
    """The engine's command line, as people know it."""
    named: ClassVar[Mapping[str, str]]
    """Its flags that are settings here, with the settings' names."""
    ours: ClassVar[Mapping[str, tuple[str, ...]]]
    """Its flags that are the suite's to set, by device."""
    launcher: ClassVar[type[Launch]]

    kind: str
    clock: Literal["real"] = "real"
    model: str = "mid"
    """A name of `suite.models`, a folder, or a name on the hub."""
    device: Literal["cpu", "cuda"] = "cpu"
    version: str | None = None
    """Of the engine; by default the newest that is installed."""
    max_running: int = Field(default=64, ge=1)
    """Requests running at once."""
    token_budget: int = Field(default=2048, ge=1)
    """Tokens computed in one step."""
    kv_tokens: int | None = Field(default=None, ge=1)
    """Size of each replica's KV pool in tokens; by default 256 MiB on the CPU, on CUDA what the engine
    finds."""
    block_tokens: int | None = Field(default=None, ge=1)
    """Tokens of a block of the prefix cache; the default is the engine's own."""
    max_length: int | None = Field(default=None, ge=2)
    """Tokens of prompt and output together above which a request is rejected; by default what fits model and
    KV pool."""
    replicas: int = Field(default=1, ge=1)
    """Servers; several stand behind the scheduler's router."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs of a replica."""
    gpus: list[int] | None = None
    """The GPUs of the first replica, then those of the second, ..., and from the front again when they run
    out; one GPU may stand more than once."""
    client_processes: int = Field(default=1, ge=1)
    timeout_s: float = Field(default=3600.0, gt=0, allow_inf_nan=False)
    """A request without an end after so many seconds has failed."""
    start_timeout_s: float = Field(default=300.0, gt=0, allow_inf_nan=False)
    engine_args: dict[str, JsonValue] = Field(default_factory=dict)
    """More flags of the engine's command line: {"some-flag": true} is --some-flag."""

    @model_validator(mode="after")
    def _can_work(self) -> Self:
        for problem in (self._wrong_sizes(), self._wrong_gpus(), self._wrong_arguments()):
            if problem:
                raise ValueError(problem)
        return self

    # -- what an engine is -----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def block(self) -> int:
        """Tokens of a block, the default filled in."""

    @property
    @abstractmethod
    def least(self) -> int:
        """Tokens that KV pool and longest request have at least."""

    @abstractmethod
    def _flags(self, model: Model, pool: int | None, length: int) -> dict[str, Any]:
        """The settings as flags; `pool` and `length` are `kv_tokens` and `max_length` filled in."""

    @abstractmethod
    def _wrong_budget(self) -> str | None:
        """Why the token budget cannot work, if it cannot."""

    # -- serving ---------------------------------------------------------------------------------------------

    def run(self, trace: Trace, scheduler: SchedulerSpec, logs: Path, progress: Progress) -> Outcome:
        """Serve the trace in real time.

        In `logs`: server.log of the engine, service.jsonl and decisions.jsonl of the policy, client.jsonl of
        the client; with several replicas those of the engine in replica-0, replica-1, ...; besides those of
        the router. The servers stay up for the next run with the same settings and scheduler, their
        server.log where they were started; a router is started for each run.
        """
        launch = self.launch(scheduler)
        _check_names(trace, launch)
        start = partial(launch.start, logs, progress)
        with POOL.lease(launch.key, start, launch.renew, launch.shortage) as replicas:
            word = self._word(launch, replicas, logs)
            with entrance(launch, replicas, logs, self.timeout_s) as way:
                replayed = self._replayed(trace, launch, way, logs, progress)
                dead = _dead(way, replicas, replayed)
                word |= way.word() if way.alive() is None else {}
            disturbed = None if dead else launch.disturbed(replicas)
            log = account.kept(replicas, logs, replayed) if launch.logged else None
            outcome = account.outcome(trace, launch, replayed, log, word)
            outcome = replace(outcome, invalid=(*outcome.invalid, *filter(None, [disturbed])))
            if broken := raised(replicas) or dead:
                raise Incomplete(f"{launch.name} broke off: {broken}", outcome)
        return outcome

    @contextmanager
    def serving(
        self,
        scheduler: SchedulerSpec,
        logs: Path,
        progress: Progress,
        port: int | None = None,
        details: tuple[str, ...] = (),
    ) -> Iterator[tuple[Launch, Replicas]]:
        """Servers that are up as long as the context lasts; the first listens on `port` if it is given.

        A router before them is the caller's to start: `suite.backends.entrance`. For `details` see `Launch`.
        """
        launch = replace(self.launch(scheduler), details=details)
        if lacking := launch.shortage():
            raise BadInput(lacking)
        replicas = launch.start(logs, progress, port)
        try:
            yield launch, replicas
        finally:
            replicas.stop()

    def launch(self, scheduler: SchedulerSpec) -> Launch:
        """How its servers are started under a scheduler. Raises `BadInput` for what cannot work."""
        model = models.model(self.model)
        pool = self._pool_tokens(model)
        flags = self._flags(model, pool, self.length(model, pool))
        return self.launcher(
            environment=environments.find(self.kind, self.device, self.version),
            model=model,
            scheduler=scheduler,
            flags={**flags, **_normal(self.engine_args)},
            block=self.block,
            pool=pool,
            replicas=self.replicas,
            gpus=self._gpus(),
            needed=(model.weight_bytes + (pool or 0) * model.kv_bytes) // self.tensor_parallel + ENGINE_BYTES,
            start_timeout_s=self.start_timeout_s,
        )

    def length(self, model: Model, pool: int | None) -> int:
        """`max_length` with its default filled in. Raises `BadInput` if it does not fit."""
        fits = min(model.max_length, pool or model.max_length)
        if self.max_length is not None and self.max_length > fits:
            what = "the model's" if fits == model.max_length else "the KV pool's"
            raise BadInput(
                f"max_length: {self.max_length} tokens are more than {what} {fits}; make it smaller"
            )
        return self.max_length or fits

    def _replayed(
        self, trace: Trace, launch: Launch, way: Entrance, logs: Path, progress: Progress
    ) -> Replayed:
        model = launch.model
        return replay(
            trace,
            Content.of(trace, model.vocabulary, model.first_token),
            launch.target(way.url),
            processes=self.client_processes,
            journal=logs / "client.jsonl",
            progress=progress,
            timeout_s=self.timeout_s,
            alive=way.alive,
        )

    def _word(self, launch: Launch, replicas: Replicas, logs: Path) -> dict[str, Any]:
        """What the manifest says of the engine. Logs are named from the folder of the experiment."""
        first = replicas.all[0]
        return {
            "engine": self.kind,
            "version": launch.environment.version,
            "torch": launch.environment.torch,
            "replicas": self.replicas,
            "kv_tokens": launch.sizes(first).pool if launch.logged else launch.pool,
            "block_tokens": self.block,
            "policy": launch.facts(first),
            "logs": [os.path.relpath(one.server.log, logs.parent.parent) for one in replicas.all],
        }

    # -- settings filled in ----------------------------------------------------------------------------------

    def _pool_tokens(self, model: Model) -> int | None:
        """Tokens of a replica's KV pool; None where the engine is to find out what fits."""
        if self.kv_tokens is not None or self.device == "cuda":
            return self.kv_tokens
        return CPU_POOL // (self.block * model.kv_bytes) * self.block

    def _gpus(self) -> tuple[tuple[str, ...], ...]:
        """The GPUs of each replica; by default the first visible ones."""
        if self.device == "cpu":
            return ()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(self.tensor_parallel)))
        chosen = [str(gpu) for gpu in self.gpus] if self.gpus is not None else visible.split(",")
        size = self.tensor_parallel
        chosen *= -(-self.replicas * size // len(chosen)) if self.gpus else 1
        return tuple(tuple(chosen[i * size : (i + 1) * size]) for i in range(self.replicas))

    # -- settings that cannot work ---------------------------------------------------------------------------

    def _wrong_sizes(self) -> str | None:
        if problem := self._wrong_budget():
            return problem
        if self.kv_tokens is not None and self.kv_tokens % self.block:
            return f"kv_tokens ({self.kv_tokens}) must be a multiple of block_tokens ({self.block})"
        for name, given in (("kv_tokens", self.kv_tokens), ("max_length", self.max_length)):
            if given is not None and given < self.least:
                return f"{name} ({given}) must be at least {self.least}"
        return None

    def _wrong_gpus(self) -> str | None:
        wanted = self.replicas * self.tensor_parallel
        if self.device == "cpu":
            return (
                "gpus and tensor_parallel are for device: cuda"
                if self.gpus or wanted > self.replicas
                else None
            )
        if self.gpus is None and self.replicas > 1:
            return "gpus: name those of the replicas, such as [0, 1]; [0] if all share the first"
        if self.gpus is not None and not self._go_round(self.gpus):
            return f"gpus: {wanted} wanted ({self.tensor_parallel} for each replica), not {self.gpus}"
        if self.kv_tokens is None and self.gpus is not None and len(set(self.gpus)) < wanted:
            return "kv_tokens: missing; say how large the KV pools of replicas that share a GPU are"
        return None

    def _go_round(self, gpus: list[int]) -> bool:
        """Whether every replica gets its GPUs, and as many as the others that share them."""
        some = len(gpus)
        whole = (
            some > 0 and some % self.tensor_parallel == 0 and self.replicas * self.tensor_parallel % some == 0
        )
        return whole and min(gpus) >= 0

    def _wrong_arguments(self) -> str | None:
        for given, value in self.engine_args.items():
            flag = _flag(given)
            if value is None or not _FLAG.fullmatch(flag):
                return (
                    f"engine_args.{given}: write a flag of `{self.program}` and its value, such as "
                    f"load-format: dummy"
                )
            bare = flag.removeprefix("no-").partition(".")[0]  # engines understand abbreviations
            if name := next((self.named[known] for known in self.named if known.startswith(bare)), None):
                return f"engine_args.{given}: is {name} here; set that"
            if any(known.startswith(bare) for known in self.ours[self.device]):
                return f"engine_args.{given}: is the suite's to set; drop it"
        return None


def _flag(key: str) -> str:
    """A flag's name as it is written: max_num_seqs and --max-num-seqs are max-num-seqs."""
    return key.removeprefix("--").replace("_", "-")


def _normal(arguments: dict[str, Any]) -> dict[str, Any]:
    return {_flag(key): value for key, value in arguments.items()}


# -- before and after a run ----------------------------------------------------------------------------------


def _check_names(trace: Trace, launch: Launch) -> None:
    """Raise `BadInput` if the front cannot be told who sends a request."""
    if launch.scheduler.router is None or launch.peer:
        return
    for name in trace.clients:
        if not fits_header(name):
            raise BadInput(f"client {name!r}: no header can hold this name; give it another behind a router")


def _dead(way: Entrance, replicas: Replicas, replayed: Replayed) -> str | None:
    """How a server, or the router before them, has ended in the middle of the run, if one has."""

    def ended() -> str | None:
        return way.alive() or replicas.alive()

    if (replayed.requests["status"] == "failed").any():
        wait_for(lambda: ended() is not None, DEATH)
    return ended()
