"""What the suite's scheduler costs inside vLLM: the measurements of `suite bench engine`.

Runs in vLLM's environment: standard library, vllm and the files beside it that say the same of themselves.
The argument is a folder with a job.json, see `suite.bench_engine.Job`. What is measured goes into its
measured.jsonl, one JSON list a line:

    ["run", {"arm", "seconds", "cpu_ns", "output_tokens", "schedule": [{id: tokens}, ...]}]
                one run of the engine; `arm` is "stock" or "plugin", `schedule` has an entry for each step
    ["queue", {"waiting", "scheduler", "scheduling": [[cpu_ns, ns], ...], "deciding": [[ns, offers], ...]}]
                steps of a scheduler with this many waiting; `deciding` is empty for the scheduler "stock"

Scheduling is the time of the engine's thread in `add_request`, `schedule` and `update_from_output`. Deciding
is the part of it in the policy and its view.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams, TokensPrompt
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from suite.backends.vllm_plugin import FairScheduler
from suite.backends.vllm_virtual import MODEL, scheduler

STOCK, PLUGIN = "stock", "plugin"
FCFS = {"target": "baselines.fcfs:FCFS", "parameters": {}}

DOCUMENT, QUESTION, OUTPUT = 256, 44, 24
"""Tokens of a request in the real engine; the documents are shared."""
CLIENTS, DOCUMENTS = 6, 12

LONG_DOCUMENT, LONG_QUESTION, SHORT_OUTPUT = 1536, 464, 16
"""Tokens of a request in a long queue. Each step some finish, some start, and cached blocks are evicted."""
QUEUE = {"max_running": 64, "token_budget": 8192, "blocks": 8192, "block_tokens": 16}
MANY_CLIENTS, DOCUMENTS_OF_ONE = 30, 8
WARM_UP = 20
"""Steps that are not measured: in the first, policies that look at matches look them all up."""
MODEL_PAUSE = 0.002
"""Seconds between two steps, in which the logs are written as they are while a model computes."""


def main() -> None:
    """Measure what the job asks for."""
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    with (folder / "measured.jsonl").open("w", encoding="utf-8") as file:
        for line in measured(job, folder):
            print(json.dumps(line), file=file, flush=True)


def measured(job: dict[str, Any], folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """All lines of the results."""
    if job["blocks"]:
        arms = Arms(job, folder / "logs")
        for arm in (STOCK, PLUGIN, *(STOCK, PLUGIN, PLUGIN, STOCK) * job["blocks"]):
            yield "run", arms.run(arm)
    init_none_hash(sha256)
    (folder / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
    hasher = Hasher()
    for waiting in job["waiting"]:
        for name in (STOCK, *job["schedulers"]):
            yield "queue", queue(job, name, waiting, folder, hasher)


class Meter:
    """Takes the place of the scheduler's methods that an engine calls, and adds up their time."""

    def __init__(self, scheduler: Any) -> None:
        self._requests = scheduler.requests
        self.begin()
        for name in ("add_request", "schedule", "update_from_output"):
            setattr(scheduler, name, partial(self._timed, getattr(scheduler, name)))
        scheduler.schedule = partial(self._noted, scheduler.schedule)

    def begin(self) -> None:
        """Forget what was measured."""
        self.cpu = self.wall = 0
        self.schedule: list[dict[str, int]] = []

    def _timed(self, method: Callable[..., Any], *args: Any) -> Any:
        wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
        result = method(*args)
        self.cpu += time.thread_time_ns() - cpu
        self.wall += time.perf_counter_ns() - wall
        return result

    def _noted(self, schedule: Callable[..., Any], *args: Any) -> Any:
        output = schedule(*args)
        scheduled = output.num_scheduled_tokens.items()
        self.schedule.append({_name(self._requests[id]): tokens for id, tokens in scheduled})
        return output


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


class Arms:
    """One engine whose scheduler is changed from run to run; everything else stays as it is."""

    def __init__(self, job: dict[str, Any], logs: Path) -> None:
        self._engine = _engine(job, logs)
        self._core = self._engine.engine_core.engine_core
        plugin = self._core.scheduler
        self._schedulers = {PLUGIN: plugin, STOCK: _stock(plugin)}
        self._meters = {arm: Meter(scheduler) for arm, scheduler in self._schedulers.items()}
        self._requests = list(_requests(job["requests"], job["vocabulary"]))

    def run(self, arm: str) -> dict[str, Any]:
        """Serve all requests, sent at once to an engine with an empty prefix cache."""
        self._core.scheduler = self._schedulers[arm]
        assert self._engine.reset_prefix_cache()
        gc.collect()
        meter = self._meters[arm]
        meter.begin()
        begin = time.perf_counter()
        self._serve()
        found = {
            "arm": arm,
            "seconds": time.perf_counter() - begin,
            "cpu_ns": meter.cpu,
            "output_tokens": len(self._requests) * OUTPUT,
            "schedule": meter.schedule,
        }
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


def _engine(job: dict[str, Any], logs: Path) -> Any:
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


def _requests(number: int, vocabulary: int) -> Iterator[tuple[str, str, list[int]]]:
    """Id, client and prompt of each."""
    rng = random.Random(0)
    draw = partial(rng.choices, range(3, vocabulary))
    documents = [draw(k=DOCUMENT) for _ in range(DOCUMENTS)]
    for i in range(number):
        yield f"r{i}", f"client {i % CLIENTS}", rng.choice(documents) + draw(k=QUESTION)


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


def queue(job: dict[str, Any], name: str, waiting: int, folder: Path, hasher: Hasher) -> dict[str, Any]:
    """Steps of a scheduler with `waiting` requests in its queue."""
    with tempfile.TemporaryDirectory() as logs:
        policy = job["schedulers"].get(name, FCFS)
        plugin = scheduler({**QUEUE, "scheduler": policy, "logs": logs}, str(folder))
        gc.collect()
        gc.freeze()  # as the engine does when it has started
        try:
            kept = _Queue(_stock(plugin) if name == STOCK else plugin, waiting, hasher)
            scheduling = kept.measured(job["steps"])
        finally:
            plugin.shutdown()
        deciding = _deciding(Path(logs) / "service-0.jsonl")
    return {"waiting": waiting, "scheduler": name, "scheduling": scheduling, "deciding": deciding}


def _deciding(service_log: Path) -> list[tuple[int, int]]:
    """What the plugin's own stopwatch has written for each step."""
    with service_log.open(encoding="utf-8") as file:
        entries = [json.loads(line) for line in file]
    return [(facts["deciding_ns"], facts["offers"]) for kind, _, facts, *_ in entries if kind == "timing"]


class _Queue:
    """A scheduler whose queue is kept at one length. The model answers every request with the same token."""

    def __init__(self, scheduler: Any, waiting: int, hasher: Hasher) -> None:
        self._scheduler = scheduler
        self._waiting = waiting
        self._sent = 0
        self._rng = random.Random(0)
        self._hasher = hasher

    def measured(self, steps: int) -> list[tuple[int, int]]:
        """CPU time and time of the scheduler in each of these steps, in nanoseconds."""
        for _ in range(WARM_UP):
            self._step()
        watch = self._scheduler._watched() if isinstance(self._scheduler, FairScheduler) else None
        meter, times = Meter(self._scheduler), []
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
        """The next: one of its client's documents and a question of its own."""
        number, self._sent = self._sent, self._sent + 1
        client = number % MANY_CLIENTS
        document = client * DOCUMENTS_OF_ONE + self._rng.randrange(DOCUMENTS_OF_ONE)
        prompt = [document] * LONG_DOCUMENT + [MANY_CLIENTS * DOCUMENTS_OF_ONE + number] * LONG_QUESTION
        id = f"r{number}"
        sampling = _sampling(id, f"client {client}", SHORT_OUTPUT)
        return Request(id, prompt, sampling, None, block_hasher=self._hasher)


if __name__ == "__main__":
    main()
