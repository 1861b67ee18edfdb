"""What the suite's scheduler costs inside vLLM: see `suite.backends.bench_driver`.

Runs in vLLM's environment: standard library, vllm and the files beside it that say the same of themselves.
"""

from __future__ import annotations

import gc
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams, TokensPrompt
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from suite.backends.bench_driver import (
    MODEL_PAUSE,
    OUTPUT,
    PLUGIN,
    SHORT_OUTPUT,
    STOCK,
    WARM_UP,
    Found,
    Job,
    Meter,
    deciding,
    documents,
    long_questions,
    questions,
    report,
)
from suite.backends.virtual_driver import MODEL
from suite.backends.vllm_plugin import FairScheduler
from suite.backends.vllm_virtual import scheduler

FCFS = {"target": "baselines.fcfs:FCFS", "parameters": {}}
DOCUMENTS = [256] * 12
"""Tokens of each document in the real engine."""
QUEUE = {"max_running": 64, "token_budget": 8192, "blocks": 8192, "block_tokens": 16}


def main() -> None:
    """Measure what the job asks for."""
    report(RealEngine, LongQueue)


def _meter(scheduler: Any) -> Meter:
    def tokens(output: Any) -> dict[str, int]:
        scheduled = output.num_scheduled_tokens.items()
        return {_name(scheduler.requests[id]): new for id, new in scheduled}

    return Meter(scheduler, "add_request", "schedule", "update_from_output", tokens)


def _name(request: Any) -> str:
    return str(request.sampling_params.extra_args["request_id"])


def _stock(plugin: FairScheduler) -> Scheduler:
    """vLLM's own scheduler, made of the same things."""
    return Scheduler(
        plugin.vllm_config,
        plugin.kv_cache_config,
        plugin.structured_output_manager,
        block_size=plugin.block_size,
        log_stats=plugin.log_stats,
    )


def _sampling(id: str, client: str, tokens: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=tokens,
        min_tokens=tokens,
        ignore_eos=True,
        temperature=0,
        detokenize=False,
        extra_args={"client_id": client, "request_id": id},
    )


# -- the plugin beside vLLM's own scheduler, in the real engine ----------------------------------------------


class RealEngine:
    """One engine whose scheduler is changed from run to run; everything else stays as it is."""

    def __init__(self, job: Job, folder: Path) -> None:
        self._engine = _engine(job, folder / "logs")
        self._core = self._engine.engine_core.engine_core
        plugin = self._core.scheduler
        self._schedulers = {PLUGIN: plugin, STOCK: _stock(plugin)}
        self._meters = {arm: _meter(scheduler) for arm, scheduler in self._schedulers.items()}
        texts = documents(DOCUMENTS, job["vocabulary"])
        self._requests = list(questions(job["requests"], texts, job["vocabulary"]))

    def run(self, arm: str) -> Found:
        """Serve all requests, sent at once to an engine with an empty prefix cache."""
        self._core.scheduler = self._schedulers[arm]
        assert self._engine.reset_prefix_cache()
        gc.collect()
        found = self._meters[arm].run(arm, len(self._requests), self._serve)
        self._drain()
        return found

    def _serve(self) -> None:
        for id, client, prompt in self._requests:
            self._engine.add_request(id, TokensPrompt(prompt_token_ids=prompt), _sampling(id, client, OUTPUT))
        while self._engine.has_unfinished_requests():
            self._engine.step()

    def _drain(self) -> None:
        """Let the model runner forget the last requests, before another scheduler talks to it."""
        while self._core.scheduler.has_requests():
            self._engine.step()


def _engine(job: Job, logs: Path) -> Any:
    """An engine under the plugin, with so small a KV pool that it evicts and preempts."""
    return LLM(
        job["model"],
        dtype=job["dtype"],
        max_model_len=512,
        enforce_eager=True,
        block_size=32,
        num_gpu_blocks_override=97,
        kv_cache_memory_bytes=64 << 20,
        max_num_seqs=12,
        max_num_batched_tokens=512,
        distributed_executor_backend="uni",
        async_scheduling=False,
        seed=0,
        skip_tokenizer_init=True,
        scheduler_cls=FairScheduler,
        additional_config={"suite": {"scheduler": FCFS, "logs": str(logs)}},
    ).llm_engine


# -- decisions over a long queue, without a model ------------------------------------------------------------


class Hasher:
    """Hashes the blocks of a prompt once for all schedulers, which are given the same requests."""

    def __init__(self) -> None:
        self._hash = get_request_block_hasher(QUEUE["block_tokens"], sha256)
        self._prompts: dict[str, list[Any]] = {}

    def __call__(self, request: Request) -> list[Any]:
        """The hashes that a request lacks."""
        if request.block_hashes:
            return list(self._hash(request))
        if request.request_id not in self._prompts:
            self._prompts[request.request_id] = self._hash(request)
        return self._prompts[request.request_id]


class LongQueue:
    """Schedulers of one kind after the other, all given the same requests."""

    def __init__(self, job: Job, folder: Path) -> None:
        init_none_hash(sha256)
        (folder / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
        self._job = job
        self._model = str(folder)
        self._hasher = Hasher()

    def __call__(self, name: str, waiting: int) -> Found:
        """Steps of a scheduler with `waiting` requests in its queue."""
        with tempfile.TemporaryDirectory() as logs:
            policy = self._job["schedulers"].get(name, FCFS)
            plugin = scheduler({**QUEUE, "scheduler": policy, "logs": logs}, self._model)
            gc.collect()
            gc.freeze()  # as the engine does when it has started
            try:
                kept = _Kept(_stock(plugin) if name == STOCK else plugin, waiting, self._hasher)
                scheduling = kept.measured(self._job["steps"])
            finally:
                plugin.shutdown()
            decided = deciding(Path(logs) / "service-0.jsonl")
        return {"waiting": waiting, "scheduler": name, "scheduling": scheduling, "deciding": decided}


class _Kept:
    """A scheduler whose queue is kept at one length. The model answers every request with the same token."""

    def __init__(self, scheduler: Any, waiting: int, hasher: Hasher) -> None:
        self._scheduler = scheduler
        self._waiting = waiting
        self._requests = long_questions()
        self._hasher = hasher

    def measured(self, steps: int) -> list[tuple[int, int]]:
        """CPU time and time of the scheduler in each of these steps, in nanoseconds."""
        for _ in range(WARM_UP):
            self._step()
        watch = self._scheduler._watched() if isinstance(self._scheduler, FairScheduler) else None
        meter, times = _meter(self._scheduler), []
        for _ in range(steps):
            meter.begin()
            self._step()
            times.append((meter.cpu, meter.wall))
            if watch:
                watch.write()
        return times

    def _step(self) -> None:
        while len(self._scheduler.waiting) < self._waiting:
            self._scheduler.add_request(self._request())
        output = self._scheduler.schedule()
        ids = list(output.num_scheduled_tokens)
        sampled = [[0] if self._is_computed(id) else [] for id in ids]
        self._scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=ids, req_id_to_index={id: i for i, id in enumerate(ids)}, sampled_token_ids=sampled
            ),
        )
        time.sleep(MODEL_PAUSE)

    def _is_computed(self, id: str) -> bool:
        request = self._scheduler.requests[id]
        return bool(request.num_computed_tokens >= request.num_tokens)

    def _request(self) -> Request:
        id, client, prompt = next(self._requests)
        return Request(id, prompt, _sampling(id, client, SHORT_OUTPUT), None, block_hasher=self._hasher)


if __name__ == "__main__":
    main()
