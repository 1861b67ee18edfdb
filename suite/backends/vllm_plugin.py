"""The suite's schedulers inside vLLM: `--scheduler-cls suite.backends.vllm_plugin.FairScheduler`.

Runs in vLLM's environment, unmodified on 0.25 and 0.32: standard library, vllm, `baselines` and the files
beside it that say the same of themselves. With it goes

    --additional-config '{"suite": {"scheduler": {"target": "baselines.dlpm:DLPM", "parameters": {}},
                                    "logs": "folder", "steps": false, "timing": false}}'

the last two optional; see `suite.backends.host` for both and for the logs, `suite.backends.vllm_queue` for
what a request says of itself. The engine's word in the first line of the service log: engine, version,
scheduler_class, async, blocks (usable ones), block_size, max_num_seqs, max_num_batched_tokens, cached_blocks
(in the prefix cache at the start: 0), matches (how they are kept).

A streaming-input session counts as one request: prompt chunks after the first are not charged.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import vllm
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import FinishReason

from suite.backends.host import Host, Served, Stopwatch
from suite.backends.vllm_matches import matches_in
from suite.backends.vllm_queue import HoldingQueue, PolicyQueue


class FairScheduler(Scheduler):  # type: ignore[misc]  # vllm is not in the suite's environment
    """vLLM's scheduler with a policy of the suite."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        configuration = _configuration(self.vllm_config)
        self.matches = matches_in(self.kv_cache_manager)
        self.host = Host(configuration, self.matches, self.clock)
        self.waiting = PolicyQueue(self.host, self._room)
        if hasattr(self, "skipped_waiting"):
            self.skipped_waiting = HoldingQueue(self.waiting)
        self._slots = getattr(self, "max_num_active_reqs", self.max_num_running_reqs)
        self._spent = 0
        self._allocate = self.kv_cache_manager.allocate_slots
        self.kv_cache_manager.allocate_slots = self._allocate_slots
        self._steps: deque[tuple[int, int, int, int]] | None = deque() if configuration.get("steps") else None
        self._stopwatch = self._watched() if configuration.get("timing") else None
        self.host.begin(self._word())

    def clock(self) -> float:
        """The time of the logs, in seconds."""
        return time.monotonic()

    # -- what vLLM's engine calls ----------------------------------------------------------------------------

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Schedule a step, in which the policy is asked whom to start."""
        self._spent = 0
        self.waiting.begin_step()
        output = super().schedule(*args, **kwargs)
        self.waiting.end_step(output.num_scheduled_tokens)
        if self._steps is not None:
            self._steps.append(self._work(output.num_scheduled_tokens))
        return output

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        """Take in what a step has computed, and count what has been delivered and who has left."""
        outputs = super().update_from_output(*args, **kwargs)
        delivered = [output for batch in outputs.values() for output in batch.outputs]
        self._generated(delivered)
        for output in delivered:
            if output.finish_reason is not None:
                withdrawn = output.finish_reason in (FinishReason.ABORT, FinishReason.ERROR)
                self._left(output.request_id, "abort" if withdrawn else "stop")
        if self._steps and any(work := self._steps.popleft()):
            self.host.stepped(*work)
        return outputs

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: Any) -> Any:
        """Withdraw requests (all, if None), in whatever state they are."""
        if isinstance(request_ids, str):
            request_ids = [request_ids]
        ids = list(self.requests if request_ids is None else request_ids)
        finished = super().finish_requests(ids, finished_status)
        for id in ids:
            self._left(id, "abort")
        return finished

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> bool:
        """Empty the prefix cache. If it is done and no request is left, a run of the suite begins."""
        done: bool = super().reset_prefix_cache(*args, **kwargs)
        self.matches.reset()
        if done and not self.waiting.served:
            self._write_timing()
            self.host.begin(self._word())
        return done

    def shutdown(self) -> None:
        """Write out and close the logs before the engine goes down."""
        self._write_timing()
        self.host.close()
        super().shutdown()

    # -- within vLLM's scheduler -----------------------------------------------------------------------------

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> None:
        computed = request.num_computed_tokens
        super()._preempt_request(request, *args, **kwargs)
        self.host.preempted(self.waiting.served[request.request_id], computed)

    def _allocate_slots(self, request: Any, num_new_tokens: int, *args: Any, **kwargs: Any) -> Any:
        blocks = self._allocate(request, num_new_tokens, *args, **kwargs)
        if blocks is not None:
            self._spent += num_new_tokens
        return blocks

    # -- within ----------------------------------------------------------------------------------------------

    def _room(self) -> bool:
        """Whether this step has a slot and token budget for one more request."""
        running = len(self.running) + self.num_waiting_for_streaming_input
        return bool(running < self._slots and self._spent < self.max_num_scheduled_tokens)

    def _generated(self, delivered: list[Any]) -> None:
        """Count the output tokens that have really been delivered."""
        tokens: dict[Served, int] = {}
        for output in delivered:
            if output.new_token_ids and (served := self.waiting.served.get(output.request_id)):
                tokens[served] = tokens.get(served, 0) + len(output.new_token_ids)
        if tokens:
            self.host.generated(tokens)
        for served in tokens:
            if served.waits:
                self.matches.grown(served)

    def _left(self, id: str, reason: str) -> None:
        """A request has left, unless it had before or its streaming session goes on."""
        served = self.waiting.served.get(id)
        if served and served.engine.is_finished():
            del self.waiting.served[id]
            self.host.finished(served, reason, served.engine.num_computed_tokens)

    def _work(self, scheduled: Mapping[str, int]) -> tuple[int, int, int, int]:
        """Of the step just scheduled: new tokens, attended pairs, KV tokens read, sequences."""
        attended = read = 0
        for id, new in scheduled.items():
            end = self.requests[id].num_computed_tokens
            attended += new * (end - new) + new * (new + 1) // 2
            read += end
        return sum(scheduled.values()), attended, read, len(scheduled)

    def _word(self) -> dict[str, Any]:
        """The engine about itself."""
        pool = self.kv_cache_manager.block_pool
        return {
            "engine": "vllm",
            "version": vllm.__version__,
            "scheduler_class": type(self).__name__,
            "async": bool(self.scheduler_config.async_scheduling),
            "blocks": pool.num_gpu_blocks - 1,
            "block_size": self.block_size,
            "max_num_seqs": self.max_num_running_reqs,
            "max_num_batched_tokens": self.max_num_scheduled_tokens,
            "cached_blocks": len(pool.cached_block_hash_to_block),
            "matches": self.matches.kind,
        }

    def _watched(self) -> Stopwatch:
        """A stopwatch on the policy with its view, and on all of the scheduler."""
        watch = Stopwatch(self.host)
        events = ("arrived", "set_aside", "put_back", "started", "generated", "preempted", "finished")
        watch.decisions(self.host, *events)
        watch.decisions(self.waiting, "_ask", "_close")
        watch.decisions(self.matches, *self.matches.listens)
        watch.step(self, "schedule", "update_from_output")
        return watch

    def _write_timing(self) -> None:
        if self._stopwatch:
            self._stopwatch.write()


class FairAsyncScheduler(FairScheduler, AsyncScheduler):  # type: ignore[misc]
    """vLLM's asynchronous scheduler, which runs ahead of the model, with a policy of the suite."""


def _configuration(config: Any) -> Mapping[str, Any]:
    given = config.additional_config
    if not (isinstance(given, dict) and isinstance(given.get("suite"), dict)):
        raise ValueError(
            f'{__name__} needs --additional-config \'{{"suite": {{"scheduler": ..., "logs": ...}}}}\''
        )
    found: Mapping[str, Any] = given["suite"]
    return found
