"""The suite's schedulers inside SGLang: `register` is an entry point of the group `sglang.srt.plugins`.

Runs in SGLang's environment: standard library, torch, sglang, `baselines` and the files beside it that say
the same of themselves. It is tested on 0.5.23 and was tried on 0.5.15; what lies between has all that it
touches, but for 0.5.19. The environment variable SUITE_SGLANG holds

    {"scheduler": {"target": "baselines.dlpm:DLPM", "parameters": {}},
     "logs": "folder", "steps": false, "timing": false}

the last two optional; see `suite.backends.host` for both and for the logs, `suite.backends.sglang_queue` for
what a request says of itself. With {"stock": "lpm"} for the scheduler SGLang's own policy, which its command
line names, decides and the plugin only watches. The engine's word in the first line of the service log:
engine, version, scheduler_class, overlap, tokens (of the KV pool), page_size, max_running_requests,
chunked_prefill_size, mixed_chunk, cached_tokens (in the tree at the start: 0), cache, matches (how they are
kept).

SGLang goes on without a plugin that fails, so two things are for others to check: that the server has
written a service log, and, here, that the other half of the plugin is in force.

With tensor parallelism every rank runs a scheduler, and all must decide alike. They are given the same
requests in the same order and their trees are alike, so this holds for every policy that does not look at the
clock. Rank 0 writes the logs; rank n writes its own into rank-<n> beside them.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import deque
from contextlib import suppress
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

import sglang
import torch
from sglang.srt.managers import schedule_batch
from sglang.srt.managers import scheduler as engine
from sglang.srt.managers.schedule_policy import AddReqResult, PrefillAdder
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from suite.backends.host import Host, Stopwatch
from suite.backends.sglang_matches import Incremental, NoMatches, matches_in
from suite.backends.sglang_queue import PolicyQueue

VARIABLE = "SUITE_SGLANG"
"""The environment variable of the configuration."""


OFF = {
    "disaggregation_mode": "null",
    "dllm_algorithm": None,
    "dp_size": 1,
    "enable_flexkv": False,
    "enable_hierarchical_cache": False,
    "enable_hisparse": False,
    "enable_lmcache": False,
    "enable_pdmux": False,
    "enable_session_radix_cache": False,
    "enable_streaming_session": False,
    "enable_unified_cache_external_linker": False,
    "lora_drain_wait_threshold": 0.0,
    "pp_size": 1,
    "speculative_algorithm": None,
}
"""Options of SGLang with which it schedules, caches or counts in other ways than here, each as it must be."""

COUNTED = set(signature(engine.Scheduler.get_num_allocatable_reqs).parameters)
"""What this release takes into account when it counts how many requests a batch can have."""


def register() -> None:
    """Put the suite's classes in the place of SGLang's."""
    for original, ours in ("Scheduler", FairScheduler), ("PrefillAdder", FairAdder):
        HookRegistry.register(f"sglang.srt.managers.scheduler.{original}", ours, HookType.REPLACE)
    HookRegistry.register("sglang.srt.managers.load_snapshot.shm_path_for", load_file, HookType.REPLACE)


def load_file(instance: str) -> str:
    """Where a server's processes tell each other its load. SGLang's own place is /dev/shm, and it never
    removes the file; what is in the folder for temporary files goes when the server does.
    """
    return str(Path(tempfile.gettempdir()) / f"sglang_loads_{instance}")


class FairScheduler(engine.Scheduler):  # type: ignore[misc]  # sglang is not in the suite's environment
    """SGLang's scheduler with a policy of the suite."""

    _queue: PolicyQueue
    _adder: FairAdder

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if engine.PrefillAdder is not FairAdder:
            raise RuntimeError("the suite's plugin is not in force as a whole: is there another plugin?")
        configuration = _configuration()
        self._stock = configuration["scheduler"].get("stock")
        _refuse(self.server_args, self._stock)
        if not self._stock:
            self.policy.calc_priority = _leave_as_it_is
        self.matches: Incremental | NoMatches = NoMatches() if self._stock else matches_in(self.tree_cache)
        self.host = Host(configuration, self.matches, self.clock)
        self._queue = PolicyQueue(self.host, self._room)
        self._free = self.req_to_token_pool.free
        self.req_to_token_pool.free = self._releasing
        self._steps: deque[tuple[int, int, int, int]] | None = deque() if configuration.get("steps") else None
        self._stopwatch = self._watched() if configuration.get("timing") else None
        self.host.begin(self._word())

    def clock(self) -> float:
        """The time of the logs, in seconds."""
        return time.monotonic()

    @property
    def waiting_queue(self) -> PolicyQueue:
        """The waiting requests."""
        return self._queue

    @waiting_queue.setter
    def waiting_queue(self, requests: list[Any]) -> None:
        """SGLang assigns a plain list of those that go on waiting."""
        if hasattr(self, "_queue"):  # not yet while SGLang's constructor runs
            self._queue.keep(requests)

    # -- what SGLang's event loop calls ----------------------------------------------------------------------

    def get_next_batch_to_run(self, *args: Any, **kwargs: Any) -> Any:
        """Form the next batch, for which the policy is asked whom to start."""
        batch = super().get_next_batch_to_run(*args, **kwargs)
        self._settle()
        return batch

    def run_batch(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a batch, and note its work."""
        if self._steps is not None:
            self._steps.append(self._work(batch))
        return super().run_batch(batch, *args, **kwargs)

    def process_batch_result(self, batch: Any, *args: Any, **kwargs: Any) -> None:
        """Take in what a batch has computed, and count what has been delivered and who has left."""
        served = self._queue.served
        before = [(request, _generated(request)) for request in batch.reqs if request in served]
        super().process_batch_result(batch, *args, **kwargs)
        tokens = {served[request]: new for request, old in before if (new := _generated(request) - old)}
        if tokens:
            self.host.generated(tokens)
        self._settle()
        if self._steps and any(work := self._steps.popleft()):
            self.host.stepped(*work)

    def flush_cache(self, *args: Any, **kwargs: Any) -> bool:
        """Empty the cache. If it is done and no request is left, a run of the suite begins."""
        done: bool = super().flush_cache(*args, **kwargs)
        if done and not self._queue.served:
            self._write_timing()
            self.host.begin(self._word())
        return done

    # -- within SGLang's scheduler ---------------------------------------------------------------------------

    def get_new_batch_prefill(self, *args: Any, **kwargs: Any) -> Any:
        """An admission pass: SGLang makes an adder, walks the queue and tries one after the other."""
        self._settle()  # a request aborted between two chunks has just left
        FairAdder.scheduler = self
        try:
            return super().get_new_batch_prefill(*args, **kwargs)
        finally:
            self._queue.end_pass()

    def begin_pass(self, adder: FairAdder) -> None:
        """The adder is made that the pass will use."""
        self._adder = adder
        if self._stock:
            active = self.policy._determine_active_policy(self._queue)
            self.host.passed(active.value, len(self._queue))
        else:
            self._queue.begin_pass()

    def _add_request_to_queue(self, request: Any, *args: Any, **kwargs: Any) -> None:
        super()._add_request_to_queue(request, *args, **kwargs)
        if request in self._queue.released:
            self._left(request)  # it lost its place, and the queue has no room for it

    def _releasing(self, request: Any) -> None:
        """A request gives its KV memory back."""
        if request in self._queue.served:
            self._queue.released[request] = _held(request)
        self._free(request)

    # -- within ----------------------------------------------------------------------------------------------

    def _room(self) -> bool:
        """Whether the batch that is being formed takes one more. If not, it is marked as full where SGLang
        would do so on trying the next that waits.
        """
        adder = self._adder
        running, admitted, budget = adder.running_batch, len(adder.can_run_list), adder.budget_state()
        if budget == AddReqResult.OTHER or admitted == adder.prefill_max_requests:
            return False
        full = admitted >= self._slots(adder) or (admitted and budget == AddReqResult.NO_TOKEN)
        if full and len(self.host.waiting):
            running.batch_is_full = True
        return not (full or running.batch_is_full)

    def _slots(self, adder: FairAdder) -> int:
        """How many requests this batch can have, as SGLang counts."""
        running = adder.running_batch
        known = {"running_bs": len(running.reqs), "running_batch": running}
        if "num_held_rows" in COUNTED:
            known["num_held_rows"] = sum(request.kv.holds_kv for request in adder.can_run_list)
        return int(self.get_num_allocatable_reqs(**{name: known[name] for name in COUNTED & known.keys()}))

    def _settle(self) -> None:
        """Whoever has given its memory back and does not wait again has left."""
        for request in list(self._queue.released):
            self._left(request)

    def _left(self, request: Any) -> None:
        served, computed = self._queue.served.pop(request), self._queue.released.pop(request)
        self.host.finished(served, _reason(request), computed)

    def _work(self, batch: Any) -> tuple[int, int, int, int]:
        """Of a batch that is about to run: new tokens, attended pairs, KV tokens read, sequences."""
        extends = batch.extend_lens if batch.forward_mode.is_extend() else [1] * len(batch.reqs)
        total = attended = read = sequences = 0
        for request, new in zip(batch.reqs, extends, strict=True):
            if request in self._queue.served:
                end = _held(request)
                total += new
                attended += new * (end - new) + new * (new + 1) // 2
                read += end
                sequences += 1
        return total, attended, read, sequences

    def _word(self) -> dict[str, Any]:
        """The engine about itself."""
        return {
            "engine": "sglang",
            "version": sglang.__version__,
            "scheduler_class": type(self).__name__,
            "overlap": bool(self.enable_overlap),
            "tokens": self.max_total_num_tokens,
            "page_size": self.page_size,
            "max_running_requests": self.max_running_requests,
            "chunked_prefill_size": self.chunked_prefill_size,
            "mixed_chunk": bool(self.is_mixed_chunk),
            "cached_tokens": self.tree_cache.evictable_size() + self.tree_cache.protected_size(),
            "cache": type(self.tree_cache).__name__,
            "matches": self.matches.kind,
        }

    def _watched(self) -> Stopwatch:
        """A stopwatch on the policy with its view, and on all of the scheduler."""
        watch = Stopwatch(self.host)
        events = ("arrived", "set_aside", "put_back", "started", "generated", "preempted", "finished")
        watch.decisions(self.host, *events)
        watch.decisions(self._queue, "_ask", "_close")
        watch.decisions(self.matches, *self.matches.listens)
        watch.step(self, "get_next_batch_to_run", "process_batch_result")
        return watch

    def _write_timing(self) -> None:
        if self._stopwatch:
            self._stopwatch.write()


class FairAdder(PrefillAdder):  # type: ignore[misc]
    """SGLang's record of an admission pass, reporting to the scheduler who has been admitted."""

    scheduler: ClassVar[FairScheduler]
    """Whose admission pass is going on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scheduler.begin_pass(self)

    def add_one_req(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Try a request, and tell at once what came of it."""
        result = super().add_one_req(request, *args, **kwargs)
        admitted = bool(self.can_run_list) and self.can_run_list[-1] is request
        self.scheduler.waiting_queue.tried(request, admitted, _prefix(request))
        return result


# -- small things --------------------------------------------------------------------------------------------


def _prefix(request: Any) -> int:
    """Tokens at the beginning of a request that are not computed."""
    return int(request.prefix_len) if hasattr(request, "prefix_len") else len(request.prefix_indices)


def _held(request: Any) -> int:
    """Tokens of a request in KV memory."""
    holder = request if hasattr(request, "kv_committed_len") else request.kv
    return int(holder.kv_committed_len)


def _generated(request: Any) -> int:
    """Output tokens, without what follows the end in the same step."""
    length: int | None = request.finished_len
    return len(request.output_ids) if length is None else length


def _reason(request: Any) -> str:
    """How a request has left. What is withdrawn before its next step has no reason yet."""
    ended = request.finished_reason
    return "abort" if ended is None or isinstance(ended, schedule_batch.FINISH_ABORT) else "stop"


def _configuration() -> dict[str, Any]:
    """What SUITE_SGLANG says, with the folder of this rank's logs."""
    given = None
    with suppress(KeyError, ValueError):
        given = json.loads(os.environ[VARIABLE])
    if not isinstance(given, dict):
        raise ValueError(f'{__name__} needs {VARIABLE}=\'{{"scheduler": ..., "logs": ...}}\'')
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    return {**given, "logs": str(Path(given["logs"]) / f"rank-{rank}")} if rank else given


def _refuse(options: Any, stock: str | None) -> None:
    """Raise `ValueError` if the server has an option that the plugin does not serve, or that belies `stock`,
    the name of the policy of SGLang's that is to decide.
    """
    ours = {"schedule_policy": stock or "fcfs"} | ({} if stock else {"enable_priority_scheduling": False})
    for name, off in {**OFF, **ours}.items():
        if (value := getattr(options, name, off)) not in (off, None):
            raise ValueError(f"the suite's plugin needs SGLang with {name}={off}, not {value}")


def _leave_as_it_is(*args: Any, **kwargs: Any) -> None:
    """SGLang would put the waiting requests in order here; the policy does as they are tried."""
