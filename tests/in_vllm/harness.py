"""The real vLLM scheduler and KV cache manager without a model, for tests that run in vLLM's environment."""

from __future__ import annotations

import json
import os
import random
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, SlidingWindowSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from suite.backends.vllm_virtual import MODEL

BLOCK = 16
POLICIES = {
    "fcfs": {"target": "baselines.fcfs:FCFS", "parameters": {}},
    "lpm": {"target": "baselines.lpm:LPM", "parameters": {}},
    "lpm-fallback": {"target": "baselines.lpm:LPMWithFallback", "parameters": {"threshold": 3}},
    "vtc": {"target": "baselines.vtc:VTC", "parameters": {}},
    "dlpm": {"target": "baselines.dlpm:DLPM", "parameters": {"quantum": 60}},
}

init_none_hash(sha256)
HASHER = get_request_block_hasher(BLOCK, sha256)


def scheduler(
    cls: type, model: Path, suite: dict[str, Any] | None, blocks: int = 26, window: int | None = None
) -> Any:
    """A scheduler of 6 slots and 64 tokens a step over a small KV pool; attention is full or in a window."""
    (model / "config.json").write_text(json.dumps(MODEL))
    cache = CacheConfig(block_size=BLOCK, enable_prefix_caching=True)
    config = VllmConfig(
        model_config=ModelConfig(
            model=str(model), dtype="float32", max_model_len=4096, skip_tokenizer_init=True
        ),
        cache_config=cache,
        scheduler_config=SchedulerConfig(
            max_num_seqs=6,
            max_num_batched_tokens=64,
            max_model_len=4096,
            is_encoder_decoder=False,
            enable_chunked_prefill=True,
        ),
        device_config=DeviceConfig("cpu"),
        additional_config={"suite": suite} if suite else {},
    )
    cache.block_size, cache.num_gpu_blocks = BLOCK, blocks
    sizes: dict[str, Any] = {"block_size": BLOCK, "num_kv_heads": 1, "head_size": 1, "dtype": torch.float32}
    spec = SlidingWindowSpec(**sizes, sliding_window=window) if window else FullAttentionSpec(**sizes)
    kv = KVCacheConfig(
        num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
    )
    return cls(
        config, kv, StructuredOutputManager(config), block_size=BLOCK, hash_block_size=BLOCK, log_stats=True
    )


def request(id: str, prompt: list[int], output: int, **said: Any) -> Any:
    """A request for exactly `output` tokens."""
    sampling = SamplingParams(max_tokens=output, min_tokens=output, ignore_eos=True, extra_args=said)
    return Request(id, prompt, sampling, None, block_hasher=HASHER)


class Engine:
    """Drives a scheduler with made-up tokens, `depth` - 1 steps ahead of their outputs."""

    def __init__(self, scheduler: Any, depth: int = 1) -> None:
        self.scheduler = scheduler
        self.depth = depth
        self.steps = 0
        self.delivered: Counter[str] = Counter()
        """Output tokens by request, as the engine hands them to its front end."""
        self.scheduled: Counter[str] = Counter()
        self.preempted = 0
        self.work: list[int] = []
        """Tokens computed in each step."""
        self.reached: Counter[str] = Counter()
        """The most tokens that were ever in KV memory, by request."""
        self.prefilling: set[str] = set()
        """Requests whose prompt has been computed in part."""
        self._pipeline: deque[tuple[Any, list[list[int]]]] = deque()

    def step(self) -> None:
        """Schedule a step; take in the outputs of the oldest one when there are enough on their way."""
        output = self.scheduler.schedule()
        self.scheduled.update(output.num_scheduled_tokens)
        self.preempted += len(output.preempted_req_ids or ())
        requests = {id: self.scheduler.requests[id] for id in output.num_scheduled_tokens}
        self.prefilling = {
            id for id, each in requests.items() if each.num_computed_tokens < each.num_prompt_tokens
        }
        for id, each in requests.items():
            self.reached[id] = max(self.reached[id], each.num_computed_tokens)
        sampled = [[] if each.is_prefill_chunk else [7] for each in requests.values()]
        self._pipeline.append((output, sampled))
        if requests:
            self.steps += 1
            self.work.append(output.total_num_scheduled_tokens)
        if len(self._pipeline) >= self.depth or not requests:
            self._deliver()

    def drain(self) -> None:
        """Take in all outputs on their way."""
        while self._pipeline:
            self._deliver()

    def _deliver(self) -> None:
        output, sampled = self._pipeline.popleft()
        ids = list(output.num_scheduled_tokens)
        result = ModelRunnerOutput(
            req_ids=ids, req_id_to_index={id: i for i, id in enumerate(ids)}, sampled_token_ids=sampled
        )
        for batch in self.scheduler.update_from_output(output, result).values():
            for each in batch.outputs:
                self.delivered[each.request_id] += len(each.new_token_ids)


def workload(seed: int, count: int = 60) -> list[Any]:
    """Requests of three clients over shared prefixes, from one token to several steps' worth."""
    rng = random.Random(seed)
    documents = [[rng.randrange(3, 500) for _ in range(rng.choice((16, 40, 96, 160)))] for _ in range(5)]
    made = []
    for i in range(count):
        prompt = rng.choice(documents)[: rng.choice((16, 48, 160))] + [
            rng.randrange(3, 500) for _ in range(rng.choice((1, 7, 33)))
        ]
        client = rng.choice("aab") if i % 7 else "c"
        made.append(request(f"r{i}", prompt, rng.choice((1, 3, 20, 60)), client_id=client))
    return made


def entries(path: Path) -> list[list[Any]]:
    """The lines of a log."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@contextmanager
def scenario(results: dict[str, str], name: str) -> Iterator[None]:
    """Note in `results` whether a scenario held, and go on with the next."""
    import traceback

    try:
        yield
        results[name] = ""
    except Exception:
        results[name] = traceback.format_exc()
