"""The real vLLM scheduler and KV cache manager without a model, on a virtual clock.

Runs in vLLM's environment: standard library, vllm, baselines and the files beside it that say the same of
themselves. Reads one job a line from standard input and writes one result a line to the file descriptor that
its argument names, both JSON; it ends when its input does, whatever it is doing. A job:

    {"requests": [{"id", "client", "weight", "priority", "arrival", "think", "after": [ids],
                   "prompt": [token ids], "output": [token ids]}, ...],      in the order of the trace
     "scheduler": {"target", "parameters"}, "logs": folder,
     "lines": [[five coefficients], ...],                                    see `suite.backends.cost`
     "max_running", "token_budget", "blocks", "block_tokens"}

The engine "generates" the tokens of `output`. Its result:

    {"requests": {id: {"status", "arrival", "first_token", "finish"}},       times in seconds, absent if never
     "steps", "seconds", "engine": {...},
     "seen": {"chunked", "evicted match", "shared in step", "preempted"}}    how often it happened
"""

from __future__ import annotations

import heapq
import json
import os
import queue
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any

import torch
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from suite.backends.cost import Cost
from suite.backends.vllm_plugin import FairScheduler

LONGEST = 2**20
"""Tokens a request may have; the KV pool is the real limit."""

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "vocab_size": 512,
    "max_position_embeddings": LONGEST,
}
"""A model that vLLM accepts; nothing of it is ever computed."""


def main() -> None:
    """Work off the jobs."""
    init_none_hash(sha256)
    with (
        os.fdopen(int(sys.argv[1]), "w", encoding="utf-8") as results,
        tempfile.TemporaryDirectory() as model,
    ):
        (Path(model) / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
        for line in _jobs():
            result = Run(json.loads(line), model).result()
            print(json.dumps(result), file=results, flush=True)


def _jobs() -> Iterator[str]:
    """The lines of standard input. When that ends, so does this process, in the middle of a job too."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    while True:
        yield lines.get()


def _listen(lines: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


class VirtualScheduler(FairScheduler):
    """The plugin at the time that whoever drives it sets."""

    now = 0.0

    def clock(self) -> float:
        """The time of the logs, in seconds."""
        return self.now


def scheduler(job: dict[str, Any], model: str) -> VirtualScheduler:
    """A scheduler as `vllm serve` would build it, with the job's limits."""
    block, blocks = job["block_tokens"], job["blocks"] + 1  # vLLM keeps one block for itself
    cache = CacheConfig(block_size=block, enable_prefix_caching=True)
    config = VllmConfig(
        model_config=ModelConfig(
            model=model, dtype="float32", max_model_len=LONGEST, skip_tokenizer_init=True
        ),
        cache_config=cache,
        scheduler_config=SchedulerConfig(
            max_num_seqs=job["max_running"],
            max_num_batched_tokens=job["token_budget"],
            max_model_len=LONGEST,
            is_encoder_decoder=False,
            enable_chunked_prefill=True,
        ),
        device_config=DeviceConfig("cpu"),
        additional_config={"suite": {"scheduler": job["scheduler"], "logs": job["logs"]}},
    )
    cache.block_size, cache.num_gpu_blocks = block, blocks
    attention = FullAttentionSpec(block_size=block, num_kv_heads=1, head_size=1, dtype=torch.float32)
    kv = KVCacheConfig(
        num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], attention)]
    )
    return VirtualScheduler(
        config, kv, StructuredOutputManager(config), block_size=block, hash_block_size=block, log_stats=True
    )


class Run:
    """One trace under one policy."""

    def __init__(self, job: dict[str, Any], model: str) -> None:
        self.job = job
        self.steps = 0
        self.seen: Counter[str] = Counter()
        self.cost = Cost(tuple(tuple(line) for line in job["lines"]))
        self.scheduler = scheduler(job, model)
        self.hasher = get_request_block_hasher(job["block_tokens"], sha256)
        self.requests = {request["id"]: request for request in job["requests"]}
        self.facts: dict[str, dict[str, Any]] = {id: {"status": "waiting"} for id in self.requests}
        self.due = Due(job["requests"])

    def result(self) -> dict[str, Any]:
        """Serve everything and say what became of it."""
        while self._arrivals():
            self._step()
        self.scheduler.shutdown()
        return {
            "requests": self.facts,
            "steps": self.steps,
            "seconds": self.scheduler.now,
            "seen": dict(self.seen),
        }

    def _arrivals(self) -> bool:
        """Send what is due, waiting for the next if nothing is left to do. False when all is done."""
        while True:
            for id in self.due.until(self.scheduler.now):
                self._send(id)
            if self.scheduler.has_unfinished_requests():
                return True
            if not self.due.heap:
                return False
            self.scheduler.now = max(self.scheduler.now, self.due.heap[0][0])

    def _send(self, id: str) -> None:
        request = self.requests[id]
        self.facts[id]["arrival"] = self.due.time[id]
        tokens = len(request["prompt"]) + len(request["output"]) - 1
        if ceil(tokens / self.job["block_tokens"]) > self.job["blocks"]:
            self.facts[id]["status"] = "rejected"
            for lost in self.due.lost(id):
                self.facts[lost]["status"] = "cancelled"
            return
        facts = {"client_id": request["client"], "request_id": id}
        facts |= {"weight": request["weight"], "priority": request["priority"]}
        length = len(request["output"])
        sampling = SamplingParams(max_tokens=length, min_tokens=length, ignore_eos=True, extra_args=facts)
        self.scheduler.add_request(
            Request(
                id,
                request["prompt"],
                sampling,
                None,
                block_hasher=self.hasher,
                arrival_time=self.due.time[id],
            )
        )

    def _step(self) -> None:
        """One engine step: its schedule at the beginning, its tokens and what they finish at the end."""
        matched = self._matched()
        output = self.scheduler.schedule()
        work: dict[str, int] = dict(output.num_scheduled_tokens)
        self._look(output, matched)
        if work:
            self.steps += 1
            self.scheduler.now += self._seconds(work)
        sampled = [self._sampled(id) for id in work]
        ended = [id for id, tokens in zip(work, sampled, strict=True) if tokens and self._ends(id)]
        self.scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=list(work),
                req_id_to_index={id: i for i, id in enumerate(work)},
                sampled_token_ids=sampled,
            ),
        )
        for id, tokens in zip(work, sampled, strict=True):
            if tokens:
                self.facts[id].setdefault("first_token", self.scheduler.now)
        for id in ended:
            self.facts[id].update(status="finished", finish=self.scheduler.now)
            self.due.served(id, self.scheduler.now)

    def _sampled(self, id: str) -> list[int]:
        """The next token of a request whose known tokens have all been computed."""
        request = self.scheduler.requests[id]
        if request.num_computed_tokens < request.num_tokens:
            return []
        return [self.requests[id]["output"][request.num_output_tokens]]

    def _ends(self, id: str) -> bool:
        generated: int = self.scheduler.requests[id].num_output_tokens
        return generated + 1 == len(self.requests[id]["output"])

    def _seconds(self, work: dict[str, int]) -> float:
        attended = read = 0
        for id, new in work.items():
            end = self.scheduler.requests[id].num_computed_tokens
            attended += new * (end - new) + new * (new + 1) // 2
            read += end
        return self.cost.step(sum(work.values()), attended, read, len(work))

    def _matched(self) -> dict[str, int]:
        """Tokens of each waiting request that the prefix cache holds."""
        longest = self.scheduler.kv_cache_manager.coordinator.find_longest_cache_hit
        return {
            request.request_id: longest(request.block_hashes, request.num_tokens - 1)[1]
            for request in self.scheduler.waiting
        }

    def _look(self, output: Any, before: dict[str, int]) -> None:
        """Count what makes a case worth comparing; `before` are the matches before the step."""
        self.seen["evicted match"] += sum(n < before.get(id, 0) for id, n in self._matched().items())
        self.seen["preempted"] += len(output.preempted_req_ids or ())
        for id in output.num_scheduled_tokens:
            request = self.scheduler.requests[id]
            self.seen["chunked"] += request.num_computed_tokens < request.num_prompt_tokens
        started = [data.req_id for data in output.scheduled_new_reqs]
        firsts = Counter(tuple(self.scheduler.requests[id].block_hashes[:1]) for id in started)
        self.seen["shared in step"] += sum(n - 1 for first, n in firsts.items() if first)


class Due:
    """When each request is sent: at its arrival or, if later, `think` after the last one it comes after."""

    def __init__(self, requests: list[dict[str, Any]]) -> None:
        self.order = {request["id"]: i for i, request in enumerate(requests)}
        self.time = {request["id"]: request["arrival"] for request in requests}
        self.think = {request["id"]: request["think"] for request in requests}
        self.missing = {request["id"]: len(request["after"]) for request in requests}
        self.followers: dict[str, list[str]] = {request["id"]: [] for request in requests}
        self.cancelled: set[str] = set()
        for request in requests:
            for parent in request["after"]:
                self.followers[parent].append(request["id"])
        self.heap = [(self.time[id], i, id) for id, i in self.order.items() if not self.missing[id]]
        heapq.heapify(self.heap)

    def until(self, now: float) -> Iterator[str]:
        """Take out what is sent by now; ties in the order of the trace."""
        while self.heap and self.heap[0][0] <= now:
            yield heapq.heappop(self.heap)[2]

    def served(self, id: str, now: float) -> None:
        """It has finished: those that come after it draw nearer."""
        for follower in self.followers[id]:
            self.missing[follower] -= 1
            self.time[follower] = max(self.time[follower], now + self.think[follower])
            if not self.missing[follower] and follower not in self.cancelled:
                heapq.heappush(self.heap, (self.time[follower], self.order[follower], follower))

    def lost(self, id: str) -> Iterator[str]:
        """It will never be served: everything that comes after it is cancelled."""
        for follower in self.followers[id]:
            if follower not in self.cancelled:
                self.cancelled.add(follower)
                yield follower
                yield from self.lost(follower)


if __name__ == "__main__":
    main()
