"""The real SGLang scheduler and prefix cache without a model's forward pass, on a virtual clock.

Runs in SGLang's environment: standard library, sglang, torch, baselines and the files beside it that say the
same of themselves. What it reads and answers: `suite.backends.virtual_driver`.

Everything but two ends is SGLang's: its constructor with the pools and the cache that a server would have,
its loop without overlap. Requests come from the job instead of a socket, and instead of the model's forward
pass the time of the cost model passes.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import tempfile
from array import array
from collections import Counter
from pathlib import Path
from typing import Any, TypeVar

import torch
from sglang.srt import runtime_context
from sglang.srt.managers import schedule_policy
from sglang.srt.managers import scheduler as sglang_scheduler
from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
from sglang.srt.managers.scheduler_components.ipc_channels import SchedulerIpcChannels
from sglang.srt.managers.scheduler_components.output_sender import SenderWrapper
from sglang.srt.managers.tp_worker import TpModelWorker
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.plugins.hook_registry import HookRegistry
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import PortArgs, ServerArgs, set_global_server_args_for_scheduler

from suite.backends import sglang_plugin
from suite.backends.sglang_matches import Incremental
from suite.backends.virtual_driver import MODEL, Job, work_off
from suite.backends.virtual_driver import Run as VirtualRun

Built = TypeVar("Built", bound="Alone")

SPARE = 8
"""Tokens of context that SGLang keeps back from a request."""


def main() -> None:
    """Work off the jobs."""
    logging.disable(logging.WARNING)  # a retraction is worth one
    sglang_plugin.register()
    HookRegistry.apply_hooks()
    with tempfile.TemporaryDirectory() as model:
        (Path(model) / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
        work_off(lambda job: Run(job, model).result())


class Alone(sglang_scheduler.Scheduler):  # type: ignore[misc]  # sglang is not in the suite's environment
    """SGLang's scheduler with nobody to talk to."""

    tp_worker: TpModelWorker
    worker: TpModelWorker | None = None
    """Kept for the next scheduler: a process has one model, and one set of process groups."""

    def init_ipc_channels(self, port_args: PortArgs) -> None:
        """Open no sockets."""
        nobody = SenderWrapper(None)
        self.ipc_channels = SchedulerIpcChannels(
            recv_from_tokenizer=None,
            recv_from_rpc=None,
            send_to_tokenizer=nobody,
            send_to_detokenizer=nobody,
            send_metrics_from_scheduler=None,
        )
        self.recv_from_tokenizer = self.load_snapshot_writer = None

    def init_tp_model_worker(self) -> None:
        """Take the model that is there, with the memory it has."""
        if Alone.worker is None:
            super().init_tp_model_worker()
            Alone.worker = self.tp_worker
            gc.freeze()  # SGLang collects garbage when it allocates memory: it is to look at a job's alone
        self.tp_worker = Alone.worker


class Modelless(Alone):
    """One whose model is never asked, and which has KV memory of its own."""

    def init_model_config(self) -> None:
        """Any token is a word."""
        super().init_model_config()
        self.model_config.vocab_size = 2**31

    def init_tp_model_worker(self) -> None:
        """Take the model that is there, without the memory it had."""
        super().init_tp_model_worker()
        self.tp_worker.model_config.context_len = self.model_config.context_len
        runner = self.tp_worker.model_runner
        runner.server_args = self.server_args
        runner.memory_pool_config = runner.req_to_token_pool = runner.token_to_kv_pool_allocator = None


class VirtualScheduler(Modelless, sglang_plugin.FairScheduler):
    """The plugin at the time that whoever drives it sets."""

    now = 0.0

    def clock(self) -> float:
        """The time of the logs, in seconds."""
        return self.now


def scheduler(job: Job, model: str) -> VirtualScheduler:
    """A scheduler as a server would build it, with the job's limits."""
    os.environ[sglang_plugin.VARIABLE] = json.dumps({"scheduler": job["scheduler"], "logs": job["logs"]})
    schedule_policy.CLIP_MAX_NEW_TOKENS = job["clip"]
    longest = max(len(request["prompt"]) + len(request["output"]) for request in job["requests"])
    return built(
        VirtualScheduler,
        model_path=model,
        load_format="dummy",
        dtype="float32",
        context_length=longest + SPARE,
        max_total_tokens=job["blocks"],
        max_running_requests=job["max_running"],
        chunked_prefill_size=job["token_budget"],
        max_prefill_tokens=job["token_budget"],
        mem_fraction_static=0.99,
    )


def built(kind: type[Built], **options: Any) -> Built:
    """A scheduler as a server would build it on the CPU, with these options of the server."""
    arguments = ServerArgs(
        device="cpu",
        attention_backend="torch_native",
        sampling_backend="pytorch",
        skip_tokenizer_init=True,
        disable_overlap_schedule=True,
        **options,
    )
    sglang_scheduler.create_scheduler_watchdog = _nothing  # it never lets go of its scheduler
    made = kind(arguments, PortArgs.init_new(arguments), **_alone(arguments))
    sys.excepthook = sys.__excepthook__  # torch's puts the rank in front of every line
    return made


def _alone(arguments: ServerArgs) -> dict[str, int | None]:
    """Tell that there is no other process. Returns what the constructor of SGLang 0.5.15 wants for it."""
    if not hasattr(sglang_scheduler, "bootstrap"):
        runtime_context.reset_context()  # of the scheduler before
        set_global_server_args_for_scheduler(arguments)
        ranks = ("gpu_id", "tp_rank", "moe_ep_rank", "pp_rank", "attn_cp_rank", "moe_dp_rank")
        return {**dict.fromkeys(ranks, 0), "dp_rank": None}
    alone = runtime_context.SpawnRanks(world_rank=0, dp_rank=None, gpu_id=0)
    runtime_context.publish(arguments, role="scheduler", ranks=alone)
    if Alone.worker:
        sglang_scheduler.bootstrap.init_parallel_runtime = _nothing  # a process makes its process groups once
    return {}


def _nothing(*_: Any, **__: Any) -> None:
    """In place of what SGLang does on starting that is not to be done here."""


class Run(VirtualRun):
    """One trace under one policy. It takes the place of SGLang's receiver of requests, and of its model."""

    scheduler: VirtualScheduler

    def __init__(self, job: Job, model: str) -> None:
        super().__init__(job)
        self.scheduler = scheduler(job, model)
        self.scheduler.request_receiver = self
        self.scheduler.model_worker.forward_batch_generation = self.forward
        self._computed = True
        """Whether the last pass of SGLang's loop has computed anything."""
        self._full = False
        """Whether the batch was closed to newcomers at the beginning of this pass."""
        self._matches: dict[str, int] = {}
        """Tokens of each waiting request that the cache held at the beginning of this pass."""
        self._retractions: dict[str, int] = {}
        """Of each request that has run."""

    def serve(self) -> None:
        """Leave it to SGLang's loop."""
        self.scheduler.event_loop_normal()
        self.scheduler.host.close()
        self.seen["preempted"] = sum(self._retractions.values())

    def fits(self, request: dict[str, Any]) -> bool:
        """Whether SGLang accepts it, and as long as it is."""
        prompt, output = len(request["prompt"]), len(request["output"])
        accepted = prompt < self.scheduler.max_req_input_len
        return bool(accepted and prompt + output < self.scheduler.max_req_len)

    # -- what SGLang's loop calls ----------------------------------------------------------------------------

    def recv_requests(self, **_: Any) -> list[TokenizedGenerateReqInput]:
        """The requests that are due, waiting for the next if nothing is to do. Ends the loop at last."""
        received = self._received()
        was_full, self._full = self._full, self.scheduler.running_batch.batch_is_full
        reopened = was_full and not self._full  # 0.5.15 then admits whoever waits in the next pass
        while not (received or self._computed or (reopened and self.scheduler.waiting_queue)):
            if not self.skip():
                self._end()
                break
            received = self._received()
        self._computed = False
        self._matches = self._matched()
        return received

    def forward(self, batch: Any, **_: Any) -> GenerationBatchResult:
        """One step: its time, and the next token of each request whose known tokens are all computed."""
        self._computed = True
        work = list(zip(batch.reqs, *_work(batch), strict=True))
        self._look(work)
        self.step((new, end) for _, new, end in work)
        tokens = [
            self.speak(request.rid, len(request.output_ids)) if end == len(_known(request)) else 0
            for request, _, end in work
        ]
        return GenerationBatchResult(next_token_ids=torch.tensor(tokens))

    # -- within ----------------------------------------------------------------------------------------------

    def _received(self) -> list[TokenizedGenerateReqInput]:
        return [sent(request) for request, _ in self.sent()]

    def _end(self) -> None:
        """Nothing else will ever happen: those that still wait are never served."""
        for request in self.scheduler.waiting_queue:
            self.lose(request.rid, "starved")
        self.scheduler.gracefully_exit = True

    def _matched(self) -> dict[str, int]:
        """Tokens of each waiting request that the prefix cache holds."""
        matches = self.scheduler.matches
        assert isinstance(matches, Incremental)  # no job turns the cache off
        matched = {}
        for request in self.scheduler.waiting_queue:
            tokens = _known(request)
            matched[request.rid] = matches.find(RadixKey(tokens, limit=len(tokens) - 1))[0]
        return matched

    def _look(self, work: list[tuple[Any, int, int]]) -> None:
        """Count what makes a case worth comparing."""
        self.seen["evicted match"] += sum(n < self._matches.get(id, 0) for id, n in self._matched().items())
        self._retractions.update((request.rid, request.retraction_count) for request, *_ in work)
        self.seen["chunked"] += sum(end < len(_known(request)) for request, _, end in work)
        firsts = Counter(tuple(_known(request)[: end - new + 1]) for request, new, end in work)
        self.seen["shared in step"] += sum(n - 1 for n in firsts.values())


def sent(request: dict[str, Any]) -> TokenizedGenerateReqInput:
    """A request of a job as SGLang's tokenizer process sends it."""
    facts = {"request_id": request["id"], "weight": request["weight"], "priority": request["priority"]}
    sampling = SamplingParams(
        max_new_tokens=len(request["output"]), ignore_eos=True, temperature=0, custom_params=facts
    )
    sampling.normalize(None)
    return TokenizedGenerateReqInput(
        rid=request["id"],
        routing_key=request["client"],
        input_text=None,
        input_ids=array("q", request["prompt"]),
        sampling_params=sampling,
        input_embeds=None,
        mm_inputs=None,
        token_type_ids=None,
        return_logprob=False,
        logprob_start_len=-1,
        top_logprobs_num=0,
        token_ids_logprob=None,
        stream=False,
    )


def _known(request: Any) -> array[int]:
    """The prompt and what was generated."""
    known: array[int] = request.origin_input_ids + request.output_ids
    return known


def _work(batch: Any) -> tuple[list[int], list[int]]:
    """Of a batch, for each request: tokens computed in it, tokens at the end of it."""
    if not batch.forward_mode.is_extend():
        return [1] * len(batch.reqs), [len(_known(request)) for request in batch.reqs]
    ends = [cached + new for cached, new in zip(batch.prefix_lens, batch.extend_lens, strict=True)]
    return batch.extend_lens, ends


if __name__ == "__main__":
    main()
