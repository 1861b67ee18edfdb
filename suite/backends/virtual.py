"""vLLM and SGLang on a virtual clock: their real schedulers and caches, no model, the suite's cost model.

The judges of the simulator: what it and they do with one trace is compared by `suite.verify`.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, ClassVar, Literal

import pandas as pd

from suite import environments
from suite.backends import engine_log
from suite.backends.base import KEPT, Outcome, Progress
from suite.backends.servers import packages, variables, wanted
from suite.backends.simulator import Simulator
from suite.content import Content
from suite.environments import Environment
from suite.errors import BadInput
from suite.policies import SchedulerSpec
from suite.processes import last_words
from suite.results import REQUEST_COLUMNS, STREAM_COLUMNS
from suite.trace import REPLY, Trace

VOCABULARY = 2**31 - 1
"""No model reads the tokens, so two different ones never need to look alike."""


SERVICE_LOG = "service-0.jsonl"

LAST_WORDS = 10.0
"""Seconds that a driver which answers no more has for ending."""


class Virtual(Simulator):
    """Settings as the simulator's, with an engine's own scheduler in place of a simulated one."""

    exclusive: ClassVar[bool] = False

    clock: Literal["virtual"] = "virtual"
    version: str | None = None
    """Of the engine; by default the newest that is installed."""
    noise: None = None
    """A judge has none, and no replicas."""
    replicas: Literal[1] = 1
    dispatch_delay: Literal[0] = 0
    report_delay: Literal[0] = 0
    losses: tuple[()] = ()

    def run(self, trace: Trace, scheduler: SchedulerSpec, logs: Path, progress: Progress) -> Outcome:
        """Serve the trace. Raises `BadInput` if the engine is not installed, or stops."""
        served = self.serve(trace, scheduler, logs)
        log = engine_log.read(logs / SERVICE_LOG, 0.0)
        requests, word = _requests(trace, served, log.requests), self._word(served, log.policy)
        return Outcome(requests, log.service, word, _streams(served))

    def serve(self, trace: Trace, scheduler: SchedulerSpec, logs: Path) -> dict[str, Any]:
        """What the driver answers, see `suite.backends.virtual_driver`; its logs go into the folder."""
        scheduler.build()  # refused here if it is the engine's own
        if scheduler.router:
            raise BadInput(f"{scheduler.label}: no router runs with `clock: virtual`; name a scheduler alone")
        logs.mkdir(parents=True, exist_ok=True)
        (logs / SERVICE_LOG).unlink(missing_ok=True)  # of a run that broke off
        job = {
            "requests": _told(trace),
            "scheduler": wanted(scheduler),
            "logs": str(logs.resolve()),
            "lines": self.cost_model().lines,
            "max_running": self.max_running,
            "token_budget": self.token_budget,
            "blocks": self.pool_tokens() // self.block_tokens,
            "block_tokens": self.block_tokens,
            "clip": self.clip_tokens,
        }
        try:
            return _driver(self.engine, self.version).ask(job, logs)
        except BaseException:
            _close(self.engine, self.version)
            raise

    def _word(self, served: dict[str, Any], policy: dict[str, Any]) -> dict[str, Any]:
        return {
            "kv_tokens": self.pool_tokens() // self.block_tokens * self.block_tokens,
            "block_tokens": self.block_tokens,
            "steps": served["steps"],
            "virtual_seconds": served["seconds"],
            "seen": served["seen"],
            "starved": sum(fact["status"] == "starved" for fact in served["requests"].values()),
            "policy": policy,
        }


class VirtualVLLM(Virtual):
    """vLLM's scheduler and KV cache manager."""

    kind: Literal["vllm"] = "vllm"  # type: ignore[assignment]
    engine: Literal["vllm"] = "vllm"


class VirtualSGLang(Virtual):
    """SGLang's scheduler and prefix cache, without overlap."""

    kind: Literal["sglang"] = "sglang"  # type: ignore[assignment]
    engine: Literal["sglang"] = "sglang"
    block_tokens: Literal[1] = 1


def _told(trace: Trace) -> list[dict[str, Any]]:
    """The requests as the driver wants them, with their token ids."""
    content = Content.of(trace, VOCABULARY)
    replies = {
        request.id: content.segment(REPLY + request.id, request.output_tokens).tolist()
        for request in trace.requests
    }
    return [
        {
            "id": request.id, "client": request.client, "weight": request.weight,
            "priority": request.priority, "arrival": request.arrival, "think": request.think,
            "after": request.after, "prompt": list(content.prompt(request, replies)),
            "output": replies[request.id],
        }
        for request in trace.requests
    ]  # fmt: skip


def _requests(trace: Trace, served: dict[str, Any], log: pd.DataFrame) -> pd.DataFrame:
    nan = float("nan")
    known = {str(id): dict(row) for id, row in log.to_dict("index").items()}
    rows = []
    for request in trace.requests:
        fact, seen = served["requests"][request.id], known.get(request.id, {})
        spoken = fact.get("tokens", [])
        rows.append(
            {
                "id": request.id, "client": request.client, "worker": seen.get("worker"),
                "session": request.session,
                "arrival": fact.get("arrival", nan), "first_token": spoken[0] if spoken else nan,
                "finish": spoken[-1] if fact["status"] == "finished" else nan,
                "admitted": seen.get("admitted", nan), "prompt_tokens": request.prompt_tokens,
                "output_tokens": len(spoken), "cached_tokens": seen.get("cached", 0),
                "recomputed_tokens": seen.get("recomputed", 0), "preemptions": seen.get("preemptions", 0),
                "weight": request.weight, "status": fact["status"], "send_lag": 0.0, "error": None,
            }
        )  # fmt: skip
    return pd.DataFrame(rows, columns=list(REQUEST_COLUMNS))


def _streams(served: dict[str, Any]) -> pd.DataFrame:
    """Token by token, request by request."""
    rows = [(id, time, 1) for id, fact in served["requests"].items() for time in fact.get("tokens", ())]
    return pd.DataFrame(rows, columns=list(STREAM_COLUMNS))


# -- the process in the engine's environment -------------------------------------------------------------


class Driver:
    """A `program` that works off jobs, kept for the next one: importing an engine takes seconds.

    It ends when its input does, in the middle of a job too, and so with this process, however that ends.
    """

    def __init__(self, environment: Environment, program: Sequence[str]) -> None:
        self._engine = environment.engine
        self._open = ExitStack()
        self._errors = self._open.enter_context(TemporaryFile())  # noqa: SIM115  closed by the stack
        places = {
            "PYTHONPATH": str(self._open.enter_context(packages())),
            "TMPDIR": self._open.enter_context(TemporaryDirectory(prefix="suite-")),
        }
        reading, writing = os.pipe()
        self._answers = self._open.enter_context(os.fdopen(reading, "rb"))
        with os.fdopen(writing, "wb"):  # theirs alone once they run
            self._process = subprocess.Popen(
                [str(environment.python), *program, str(writing)],
                env=variables({**environment.variables, **places}),
                stdin=subprocess.PIPE,
                stdout=self._errors,
                stderr=subprocess.STDOUT,
                pass_fds=[writing],
                start_new_session=True,
            )

    def ask(self, job: dict[str, Any], logs: Path) -> dict[str, Any]:
        """The result of one job. Raises `BadInput` with the reason if the driver died of it."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
        if (answer := self._answers.readline()).endswith(b"\n"):
            return dict(json.loads(answer))
        with suppress(subprocess.TimeoutExpired):  # it may be about to say why
            self._process.wait(LAST_WORDS)
        raise BadInput(f"{self._engine} stopped: {self._reason(logs)}")

    def _reason(self, logs: Path) -> str:
        """What the policy raised, or the last words of the process, which go into a log."""
        self._errors.seek(0)
        log, service = logs / "engine.log", logs / SERVICE_LOG
        log.write_bytes(self._errors.read())
        failed = engine_log.read(service, 0.0).failed if service.exists() else None
        return f"{failed or last_words(log)} (log: {log})"

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        with suppress(BrokenPipeError), self._process:
            pass
        self._open.close()


_drivers: dict[tuple[str, str | None], Driver] = {}


def _driver(engine: str, version: str | None) -> Driver:
    """The driver of a release of an engine, started when first asked for."""
    if (engine, version) not in _drivers:
        program = ["-m", f"suite.backends.{engine}_virtual"]
        _drivers[engine, version] = Driver(environments.find(engine, "cpu", version), program)
        KEPT.callback(_close, engine, version)
    return _drivers[engine, version]


def _close(engine: str, version: str | None) -> None:
    """End a driver, if there is one."""
    if driver := _drivers.pop((engine, version), None):
        driver.close()
