"""The real SGLang scheduler in its own event loop, for tests that run in SGLang's environment.

The first argument of the process is the folder of a model.
"""

from __future__ import annotations

import json
import logging
import os
import random
import sys
import traceback
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from sglang.srt.managers import scheduler as sglang_scheduler
from sglang.srt.managers.io_struct import AbortReq, TokenizedGenerateReqInput
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.plugins.hook_registry import HookRegistry
from sglang.srt.runtime_context import SpawnRanks, publish
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import PortArgs, ServerArgs

from suite.backends import sglang_plugin
from suite.backends.sglang_virtual import VirtualScheduler

SLOTS, BUDGET = 6, 64
POLICIES = {
    "fcfs": {"target": "baselines.fcfs:FCFS", "parameters": {}},
    "lpm": {"target": "baselines.lpm:LPM", "parameters": {}},
    "lpm-fallback": {"target": "baselines.lpm:LPMWithFallback", "parameters": {"threshold": 3}},
    "vtc": {"target": "baselines.vtc:VTC", "parameters": {}},
    "dlpm": {"target": "baselines.dlpm:DLPM", "parameters": {"quantum": 60}},
}

logging.disable(logging.WARNING)
sglang_plugin.register()
HookRegistry.apply_hooks()
sglang_scheduler.create_scheduler_watchdog = lambda *_, **__: None  # it would keep every scheduler alive


class Outbox:
    """Where the scheduler sends what its front end is to hear."""

    def __init__(self) -> None:
        self.delivered: Counter[str] = Counter()
        """Output tokens by request."""
        self.texts: dict[str, list[int]] = {}
        """Those tokens."""
        self.ended: dict[str, str] = {}
        """How each request ended: "length", "abort", ..."""

    def send_output(self, output: Any, request: Any = None) -> None:
        """Take in one message."""
        if isinstance(output, AbortReq):
            self.ended[output.rid] = "abort"
        for i, rid in enumerate(getattr(output, "rids", None) or ()):
            self.delivered[rid] = output.completion_tokens[i]
            self.texts.setdefault(rid, []).extend(output.output_ids[i] if output.output_ids else ())
            if reason := output.finished_reasons[i]:
                self.ended[rid] = reason["type"]


class Core(VirtualScheduler):
    """The plugin, with a front end that takes notes."""

    def init_ipc_channels(self, port_args: PortArgs) -> None:
        super().init_ipc_channels(port_args)
        self.outbox = Outbox()
        self.ipc_channels = replace(
            self.ipc_channels, send_to_tokenizer=self.outbox, send_to_detokenizer=self.outbox
        )


def scheduler(suite: dict[str, Any], tokens: int = 300, **options: Any) -> Core:
    """A scheduler of 6 slots and 64 tokens a step over a small KV pool."""
    os.environ[sglang_plugin.VARIABLE] = json.dumps(suite)
    arguments = ServerArgs(
        **{
            "model_path": sys.argv[1],
            "dtype": "float32",
            "device": "cpu",
            "attention_backend": "torch_native",
            "sampling_backend": "pytorch",
            "skip_tokenizer_init": True,
            "context_length": 2048,
            "max_total_tokens": tokens,
            "max_running_requests": SLOTS,
            "chunked_prefill_size": BUDGET,
            "max_prefill_tokens": BUDGET,
            "schedule_policy": "fcfs",
            "disable_overlap_schedule": True,
            **options,
        }
    )
    ports = PortArgs.init_new(arguments)
    publish(arguments, role="scheduler", ranks=SpawnRanks(world_rank=0, dp_rank=None, gpu_id=0))
    try:
        return Core(arguments, ports)
    finally:
        sglang_scheduler.bootstrap.init_parallel_runtime = _nothing  # a process makes its process groups once


def _nothing(*_: Any, **__: Any) -> None: ...


def request(id: str, prompt: list[int], output: int, client: str | None = None, **said: Any) -> Any:
    """A request for exactly `output` tokens, as the tokenizer process sends it."""
    sampling = SamplingParams(
        max_new_tokens=output, ignore_eos=True, temperature=0, custom_params={"request_id": id, **said}
    )
    sampling.normalize(None)
    return TokenizedGenerateReqInput(
        rid=f"rid-{id}",
        routing_key=client,
        input_text=None,
        input_ids=array("q", prompt),
        sampling_params=sampling,
        input_embeds=None,
        mm_inputs=None,
        token_type_ids=None,
        return_logprob=False,
        logprob_start_len=-1,
        top_logprobs_num=0,
        token_ids_logprob=None,
        stream=True,
    )


Act = Callable[["Engine"], Iterable[Any]]
"""What is sent to the scheduler in a pass of its loop; the last pass is the first idle one without any."""


class Engine:
    """Lets a scheduler's own event loop run, in the place of its receiver of requests and, unless it is
    `computing`, of its model.
    """

    def __init__(self, core: Core, computing: bool = False) -> None:
        self.core = core
        self.passes = 0
        self.work: list[int] = []
        """Tokens computed in each step."""
        self.computed: Counter[str] = Counter()
        """Tokens computed by request."""
        self.reached: Counter[str] = Counter()
        """The most tokens that were ever in KV memory, by request."""
        core.request_receiver = self
        worker = core.model_worker
        worker.forward_batch_generation = (
            type(worker).forward_batch_generation.__get__(worker) if computing else self.forward
        )

    def serve(self, act: Act) -> None:
        """Run the loop until there is nothing more to do."""
        self._act = act
        self.core.gracefully_exit = False
        self.core.run_event_loop()

    def recv_requests(self, **_: Any) -> list[Any]:
        """What the loop is to hear in this pass."""
        self.passes += 1
        assert self.passes < 20000, "it does not end"
        sent = list(self._act(self))
        self.core.gracefully_exit = not sent and self.core.is_fully_idle()
        return sent

    def forward(self, batch: Any, **_: Any) -> GenerationBatchResult:
        """One step: what follows on a request's tokens depends on who it is and where it stands."""
        news = batch.extend_lens if batch.forward_mode.is_extend() else [1] * len(batch.reqs)
        ends = [each.kv.kv_committed_len for each in batch.reqs]
        for each, new, end in zip(batch.reqs, news, ends, strict=True):
            self.computed[each.rid] += new
            self.reached[each.rid] = max(self.reached[each.rid], end)
        self.work.append(sum(news))
        tokens = [token(each.rid, end) for each, end in zip(batch.reqs, ends, strict=True)]
        return GenerationBatchResult(next_token_ids=torch.tensor(tokens))


def token(rid: str, end: int) -> int:
    """What the engine makes up after `end` tokens of a request."""
    return crc32(f"{rid} {end}".encode()) % 2**30


def arriving(requests: list[Any], each: int = 2) -> Act:
    """Send so many requests a pass."""
    queue = list(reversed(requests))
    return lambda engine: [queue.pop() for _ in range(min(each, len(queue)))]


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
        made.append(request(f"r{i}", prompt, rng.choice((1, 3, 20, 60)), client))
        made[-1].sampling_params.ignore_eos = rng.random() < 0.5  # SGLang counts on less output if it is not
    return made


def entries(path: Path) -> list[list[Any]]:
    """The lines of a log."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@contextmanager
def scenario(results: dict[str, str], name: str) -> Iterator[None]:
    """Note in `results` whether a scenario held, and go on with the next."""
    try:
        yield
        results[name] = ""
    except Exception:
        results[name] = traceback.format_exc()
