"""The real vLLM scheduler and KV cache manager without a model, on a virtual clock.

Runs in vLLM's environment: standard library, vllm, baselines and the files beside it that say the same of
themselves. What it reads and answers: `suite.backends.virtual_driver`.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
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

from suite.backends.virtual_driver import LONGEST, MODEL, Job, work_off
from suite.backends.virtual_driver import Run as VirtualRun
from suite.backends.vllm_plugin import FairScheduler


def main() -> None:
    """Work off the jobs."""
    init_none_hash(sha256)
    with tempfile.TemporaryDirectory() as model:
        (Path(model) / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
        work_off(lambda job: Run(job, model).result())


class VirtualScheduler(FairScheduler):
    """The plugin at the time that whoever drives it sets."""

    now = 0.0

    def clock(self) -> float:
        """The time of the logs, in seconds."""
        return self.now


def scheduler(job: Job, model: str) -> VirtualScheduler:
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


class Run(VirtualRun):
    """One trace under one policy."""

    scheduler: VirtualScheduler

    def __init__(self, job: Job, model: str) -> None:
        super().__init__(job)
        self.scheduler = scheduler(job, model)
        self.hasher = get_request_block_hasher(job["block_tokens"], sha256)

    def serve(self) -> None:
        """Step after step until nothing is left to do, or nobody is offered any more."""
        while self._arrivals():
            if not self._step() and not self.skip():
                for request in self.scheduler.waiting:
                    self.lose(request.request_id, "starved")
                break
        self.scheduler.shutdown()

    def fits(self, request: dict[str, Any]) -> bool:
        """Whether the KV pool can hold it."""
        tokens = len(request["prompt"]) + len(request["output"]) - 1
        return bool(ceil(tokens / self.job["block_tokens"]) <= self.job["blocks"])

    def _arrivals(self) -> bool:
        """Send what is due, waiting for the next if nothing is left to do. False when all is done."""
        while True:
            for request, time in self.sent():
                self._send(request, time)
            if self.scheduler.has_unfinished_requests():
                return True
            if not self.skip():
                return False

    def _send(self, request: dict[str, Any], time: float) -> None:
        facts = {"client_id": request["client"], "request_id": request["id"]}
        facts |= {"weight": request["weight"], "priority": request["priority"]}
        length = len(request["output"])
        sampling = SamplingParams(max_tokens=length, min_tokens=length, ignore_eos=True, extra_args=facts)
        self.scheduler.add_request(
            Request(
                request["id"],
                request["prompt"],
                sampling,
                None,
                block_hasher=self.hasher,
                arrival_time=time,
            )
        )

    def _step(self) -> bool:
        """One engine step: its schedule at the beginning, its tokens and what they finish at the end.

        False if nothing has come of it.
        """
        matched = self._matched()
        output = self.scheduler.schedule()
        work: dict[str, int] = dict(output.num_scheduled_tokens)
        self._look(output, matched)
        if work:
            self.step((new, self.scheduler.requests[id].num_computed_tokens) for id, new in work.items())
        self.scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=list(work),
                req_id_to_index={id: i for i, id in enumerate(work)},
                sampled_token_ids=[self._sampled(id) for id in work],
            ),
        )
        return bool(work or output.preempted_req_ids)

    def _sampled(self, id: str) -> list[int]:
        """The next token of a request whose known tokens have all been computed."""
        request = self.scheduler.requests[id]
        if request.num_computed_tokens < request.num_tokens:
            return []
        return [self.speak(id, request.num_output_tokens)]

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


if __name__ == "__main__":
    main()
