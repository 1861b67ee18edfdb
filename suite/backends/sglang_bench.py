"""What the suite's scheduler costs inside SGLang: see `suite.backends.bench_driver`.

Runs in SGLang's environment: standard library, sglang and the files beside it that say the same of
themselves.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
from sglang.srt.managers.schedule_policy import PrefillAdder
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.plugins.hook_registry import HookRegistry

from suite.backends import sglang_plugin
from suite.backends.bench_driver import (
    LONG_DOCUMENT,
    LONG_QUESTION,
    MODEL_PAUSE,
    OUTPUT,
    PLUGIN,
    SHORT_OUTPUT,
    STOCK,
    WARM_UP,
    Found,
    Job,
    Meter,
    Sent,
    deciding,
    documents,
    long_questions,
    questions,
    report,
)
from suite.backends.host import Host, Stopwatch
from suite.backends.sglang_matches import NoMatches
from suite.backends.sglang_virtual import SPARE, Alone, Modelless, VirtualScheduler, built, sent
from suite.backends.virtual_driver import MODEL

LPM = {"target": "baselines.lpm:LPM", "parameters": {}}
DOCUMENTS = range(64, 256, 16)
"""Tokens of each document in the real engine: LPM has something to put in order."""
POOL = 5120
"""Tokens of KV memory there, room for everything: the two evict in another order."""
QUEUE = {
    "load_format": "dummy",
    "dtype": "float32",
    "context_length": LONG_DOCUMENT + LONG_QUESTION + SHORT_OUTPUT + SPARE,
    "max_total_tokens": 131072,
    "max_running_requests": 64,
    "chunked_prefill_size": 8192,
    "max_prefill_tokens": 8192,
}
"""Of a scheduler with a long queue."""


def main() -> None:
    """Measure what the job asks for."""
    logging.disable(logging.WARNING)
    sglang_plugin.register()
    HookRegistry.apply_hooks()
    report(RealEngine, LongQueue)


def _meter(scheduler: Alone) -> Meter:
    methods = "process_input_requests", "get_next_batch_to_run", "process_batch_result"
    return Meter(scheduler, *methods, _tokens)


def _tokens(plan: Any) -> dict[str, int]:
    """How many tokens of which request a pass of SGLang's loop computes."""
    batch = plan.batch_to_run
    if batch is None:
        return {}
    extends = batch.extend_lens if batch.forward_mode.is_extend() else [1] * len(batch.reqs)
    return {request.rid: new for request, new in zip(batch.reqs, extends, strict=True)}


class Stock(Alone):
    """SGLang's own scheduler."""

    adder: type[PrefillAdder] = PrefillAdder
    """Its own; loading the plugin replaces the name in every module."""

    def get_prefill_adder_class(self) -> type[PrefillAdder]:
        """Of the record of an admission pass."""
        return self.adder


class Plugin(Alone, sglang_plugin.FairScheduler):
    """The plugin in the place of SGLang's own scheduler."""


# -- the plugin beside SGLang's own LPM, with a model --------------------------------------------------------


class RealEngine:
    """One model and its KV memory under two schedulers in turn, each with a prefix cache of its own.

    All documents are in the cache when a run begins and stay there, because SGLang's LPM else puts off all
    but one of the requests that share one.
    """

    def __init__(self, job: Job, folder: Path) -> None:
        os.environ[sglang_plugin.VARIABLE] = json.dumps({"scheduler": LPM, "logs": str(folder / "logs")})
        self._schedulers: dict[str, Alone] = {}
        self._frees: dict[str, Any] = {}
        """The method by which a request gives its memory back; the plugin, made last, has replaced it."""
        for arm, kind, policy in (STOCK, Stock, "lpm"), (PLUGIN, Plugin, "fcfs"):
            scheduler = built(kind, schedule_policy=policy, **_options(job))
            self._schedulers[arm], self._frees[arm] = scheduler, scheduler.req_to_token_pool.free
        self._meters = {arm: _meter(scheduler) for arm, scheduler in self._schedulers.items()}
        texts = documents(DOCUMENTS, job["vocabulary"])
        self._texts = [(f"d{i}", "nobody", text) for i, text in enumerate(texts)]
        self._requests = list(questions(job["requests"], texts, job["vocabulary"]))

    def run(self, arm: str) -> Found:
        """Serve all requests, sent at once."""
        scheduler, meter = self._schedulers[arm], self._meters[arm]
        scheduler.req_to_token_pool.free = self._frees[arm]
        assert scheduler.flush_cache()
        self._serve(scheduler, self._texts, 1)
        gc.collect()
        return meter.run(arm, len(self._requests), lambda: self._serve(scheduler, self._requests, OUTPUT))

    def _serve(self, scheduler: Alone, requests: list[Sent], tokens: int) -> None:
        """Let SGLang's own loop serve them."""
        scheduler.request_receiver = _AtOnce(scheduler, [_request(*request, tokens) for request in requests])
        scheduler.gracefully_exit = False
        scheduler.event_loop_normal()


class _AtOnce:
    """Takes the place of SGLang's receiver of requests. Ends the loop when nothing is left to do."""

    def __init__(self, scheduler: Alone, requests: list[TokenizedGenerateReqInput]) -> None:
        self._scheduler = scheduler
        self._requests = requests

    def recv_requests(self, **_: Any) -> list[TokenizedGenerateReqInput]:
        """All of them, then none."""
        requests, self._requests = self._requests, []
        self._scheduler.gracefully_exit = not requests and self._scheduler.is_fully_idle()
        return requests


def _options(job: Job) -> dict[str, Any]:
    return {
        "model_path": job["model"],
        "dtype": job["dtype"],
        "context_length": 512,
        "max_total_tokens": POOL,
        "max_running_requests": 12,
        "chunked_prefill_size": 512,
        "max_prefill_tokens": 512,
        "random_seed": 0,
    }


def _request(id: str, client: str, prompt: list[int], tokens: int) -> TokenizedGenerateReqInput:
    output = [0] * tokens
    return sent(
        {"id": id, "client": client, "weight": 1.0, "priority": 0, "prompt": prompt, "output": output}
    )


# -- decisions over a long queue, without a model ------------------------------------------------------------


class LongQueue:
    """Schedulers of one kind after the other, all given the same requests."""

    def __init__(self, job: Job, folder: Path) -> None:
        self._job = job
        self._model = str(folder)
        (folder / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
        Alone.worker = None  # this is another model

    def __call__(self, name: str, waiting: int) -> Found:
        """Steps of a scheduler with `waiting` requests in its queue."""
        with tempfile.TemporaryDirectory() as logs:
            policy = self._job["schedulers"].get(name, {"stock": "lpm"})
            os.environ[sglang_plugin.VARIABLE] = json.dumps({"scheduler": policy, "logs": logs})
            kind, own = (WatchedStock, "lpm") if name == STOCK else (VirtualScheduler, "fcfs")
            scheduler = built(kind, model_path=self._model, schedule_policy=own, **QUEUE)
            gc.collect()
            gc.freeze()  # what is there already is not to be searched for garbage while it decides
            scheduling = _Kept(scheduler, waiting).measured(self._job["steps"])
            scheduler.host.close()
            decided = deciding(Path(logs) / "service-0.jsonl")
        return {"waiting": waiting, "scheduler": name, "scheduling": scheduling, "deciding": decided}


class Counted(PrefillAdder):  # type: ignore[misc]  # sglang is not in the suite's environment
    """SGLang's own record of an admission pass, counting the requests tried."""

    host: ClassVar[Host]

    def add_one_req(self, *args: Any, **kwargs: Any) -> Any:
        """Try one."""
        self.host.offers += 1
        return super().add_one_req(*args, **kwargs)


class WatchedStock(Modelless, Stock):
    """SGLang's own scheduler. It decides by putting all that wait in order, and what it then tries counts as
    offered.
    """

    adder = Counted

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.host = Counted.host = Host(
            json.loads(os.environ[sglang_plugin.VARIABLE]), NoMatches(), time.time
        )
        self.host.begin({"engine": "sglang"})

    def _watched(self) -> Stopwatch:
        watch = Stopwatch(self.host)
        watch.decisions(self.policy, "calc_priority")
        watch.step(self, "get_next_batch_to_run", "process_batch_result")
        return watch


class _Kept:
    """Takes the place of SGLang's receiver of requests, and keeps the queue at one length; and that of its
    model, which answers every request with the same token.
    """

    def __init__(self, scheduler: Any, waiting: int) -> None:
        self._scheduler = scheduler
        self._waiting = waiting
        self._requests = long_questions()
        self._times: list[tuple[int, int]] = []
        scheduler.request_receiver = self
        scheduler.model_worker.forward_batch_generation = self.forward

    def measured(self, steps: int) -> list[tuple[int, int]]:
        """CPU time and time of the scheduler in each of these steps, in nanoseconds."""
        self._passes = self._measuring(steps)
        self._scheduler.event_loop_normal()
        return self._times

    def recv_requests(self, **_: Any) -> list[TokenizedGenerateReqInput]:
        """As many as have left the queue."""
        next(self._passes)
        missing = max(0, self._waiting - len(self._scheduler.waiting_queue))
        return [_request(*request, SHORT_OUTPUT) for request in islice(self._requests, missing)]

    def forward(self, batch: Any, **_: Any) -> GenerationBatchResult:
        """A step of the model."""
        time.sleep(MODEL_PAUSE)
        return GenerationBatchResult(next_token_ids=torch.zeros(len(batch.reqs), dtype=torch.int64))

    def _measuring(self, steps: int) -> Iterator[None]:
        """Is resumed between two passes of SGLang's loop."""
        for _ in range(WARM_UP):
            yield
        watch, meter = self._scheduler._watched(), _meter(self._scheduler)
        for _ in range(steps):
            meter.begin()
            yield
            self._times.append((meter.cpu, meter.wall))
            watch.write()
        self._scheduler.gracefully_exit = True
        yield


if __name__ == "__main__":
    main()
