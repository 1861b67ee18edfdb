"""What every real engine's adapter shares: a policy driven inside an engine, charged exactly, and logged.

Runs in the engine's own environment: imports the standard library and `baselines` only. An adapter translates
its engine's happenings into the calls below and asks `candidates` whom to try; everything that decides or
counts is here, so it is the same on every engine.

The logs go to the folder of the configuration, one pair of files a run. A run begins with the engine and
again with each `reset`; number n writes

    decisions-<n>.jsonl   the decision log, see `baselines.decisions`
    service-<n>.jsonl     what was served when, one JSON list a line, times in seconds of the host's clock:
        ["policy", time, {"target", "name", "parameters", "source", ...}]    the policy in force, and the
                          engine's word about itself; always the first line
        ["admitted", time, id, client, extend, cached]    extend = prompt tokens to compute, charged once
        ["resumed", time, id, client, recomputed, cached]    after a preemption; recomputed = tokens that had
                          been in KV memory and are to be computed again, which is nobody's service
        ["spared", time, id, client, tokens]    of those, never computed as it lost its place again, or left
        ["generated", time, {client: tokens}]
        ["preempted", time, id]
        ["finished", time, id, client, reason, output_tokens, uncomputed]    uncomputed comes off `extend`
        ["failed", time, message]    the policy raised; the engine is going down
        ["active", time, policy, waiting]    of an engine's own policy: what really ordered an admission pass
    and, where the configuration asks for them with "steps": true or "timing": true,
        ["step", time, new, attended, read, sequences]    a step has ended; see `suite.backends.cost`
        ["timing", time, {"steps", "scheduling_ns", "offers", "deciding_ns"}]    every 100 steps and at the
                          end, since the last such line: CPU time of the engine's scheduler with all that
                          hangs on it, requests offered, wall-clock time in the policy and its view
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, Any, Protocol

from baselines.decisions import Recorder
from baselines.scheduler import Candidates, Request, Scheduler
from baselines.waiting import PrefixMatches, WaitingQueue

TIMING_STEPS = 100
"""Engine steps that one "timing" line covers."""


class Served(Request):
    """A request inside an engine: what the policy sees of it, and what has been counted for it.

    `engine` is the engine's own object; `computed` the most tokens that were ever in KV memory for it;
    `recomputes` up to how many it is computed again, 0 once it has got beyond; `waits` whether the policy may
    offer it.
    """

    __slots__ = ("computed", "engine", "output_tokens", "recomputes", "started", "waits")

    def __init__(self, engine: Any, *facts: Any) -> None:
        super().__init__(*facts)
        self.engine = engine
        self.started = self.waits = False
        self.computed = self.output_tokens = self.recomputes = 0


class FreshMatches(PrefixMatches, Protocol):
    """Prefix matches that tell of changes when they are asked to, which is before the policy looks."""

    def refresh(self, changed: Callable[[Request, int], object]) -> None:
        """Call `changed(request, tokens)` for each followed request whose match was last told otherwise."""


class Host:
    """A policy inside an engine.

    `configuration`: {"scheduler": {"target", "parameters"}, "logs": folder}. With {"stock": name} for the
    scheduler, one of the engine's own decides, `candidates` is not asked, and the logs are the same. `clock`
    gives the time in seconds. Every method names a thing that happened; `candidates` is the one decision.
    Raises what the policy raises, after writing it down.
    """

    def __init__(
        self, configuration: Mapping[str, Any], matches: FreshMatches, clock: Callable[[], float]
    ) -> None:
        self.aside: set[Served] = set()
        """Requests that the engine has set aside and not put back."""
        self.offers = 0
        """How many requests the policy has offered."""
        self._configuration = configuration
        self._matches = matches
        self._clock = clock
        self._run = 0
        self._sequence = 0
        self._logs: tuple[LogFile, LogFile] | None = None

    def begin(self, engine: Mapping[str, Any]) -> None:
        """Begin a run: a fresh policy, empty logs, the engine's word about itself in the first line.

        Nothing may be waiting or running.
        """
        self.close()
        folder = Path(self._configuration["logs"])
        folder.mkdir(parents=True, exist_ok=True)
        decisions, service = (
            LogFile(folder / f"{kind}-{self._run}.jsonl") for kind in ("decisions", "service")
        )
        self._logs = decisions, service
        self._write = service.write
        self._run += 1
        self._sequence = 0
        policy, facts = _in_force(self._configuration["scheduler"], engine)
        self._policy = Recorder(policy, decisions.write)
        self.waiting = WaitingQueue(self._matches)
        self._write(["policy", self._clock(), {**facts, **engine}])

    def close(self) -> None:
        """Write out what is still to be written and close the logs."""
        for log in self._logs or ():
            log.close()
        self._logs = None

    # -- what happens to a request --------------------------------------------------------------------------

    def arrived(
        self, engine: Any, id: str, client: str, prompt_tokens: int, weight: float, priority: int
    ) -> Served:
        """A request has come in, which is numbered in order of arrival, and waits."""
        sequence, self._sequence = self._sequence, self._sequence + 1
        now = self._clock()
        request = Served(engine, id, client, sequence, now, prompt_tokens, weight, priority)
        self._wait(request)
        self._tell("arrived", request, now)
        return request

    def set_aside(self, request: Served) -> None:
        """The engine will not try a waiting request for now: it lacks something else than a slot."""
        self._wait_no_more(request)
        self.aside.add(request)
        self._policy.set_aside(request)

    def put_back(self, request: Served) -> None:
        """It waits again, after the engine had set it aside."""
        self.aside.discard(request)
        self._wait(request)
        self._policy.put_back(request)

    def started(self, request: Served, cached: int) -> None:
        """It has a slot, and `cached` of its tokens need no computing."""
        now = self._clock()
        self._wait_no_more(request)
        self._computed(request, cached)
        again, request.started = request.started, True
        kind, tokens = ("resumed", request.computed) if again else ("admitted", request.prompt_tokens)
        request.recomputes = max(tokens, cached) if again else 0
        self._write([kind, now, request.id, request.client, tokens - cached, cached])
        self._tell(kind, request, cached, now)

    def generated(self, tokens: Mapping[Served, int]) -> None:
        """A step has ended in which these requests got output tokens. Not called for none."""
        now = self._clock()
        by_client: dict[str, int] = {}
        for request, amount in tokens.items():
            request.output_tokens += amount
            request.computed = max(request.computed, request.prompt_tokens)
            request.recomputes = 0
            by_client[request.client] = by_client.get(request.client, 0) + amount
        self._write(["generated", now, by_client])
        self._tell("generated", tokens, now)

    def preempted(self, request: Served, computed: int) -> None:
        """It has lost its place with `computed` tokens in KV memory, and waits again."""
        now = self._clock()
        self._computed(request, computed)
        self._spare(request, computed, now)
        self._wait(request)
        self._write(["preempted", now, request.id])
        self._tell("preempted", request, now)

    def finished(self, request: Served, reason: str, computed: int) -> None:
        """It has left, from wherever it was, with `computed` tokens in KV memory."""
        now = self._clock()
        self._wait_no_more(request)
        self._computed(request, computed)
        self._spare(request, computed, now)
        uncomputed = max(0, request.prompt_tokens - request.computed) if request.started else 0
        facts = (reason, request.output_tokens, uncomputed)
        self._write(["finished", now, request.id, request.client, *facts])
        self._tell("finished", request, *facts, now)

    # -- what the engine has done ---------------------------------------------------------------------------

    def passed(self, policy: str, waiting: int) -> None:
        """The engine has put so many waiting requests in order by this policy of its own."""
        self._write(["active", self._clock(), policy, waiting])

    def stepped(self, new: int, attended: int, read: int, sequences: int) -> None:
        """A step with this work has ended."""
        self._write(["step", self._clock(), new, attended, read, sequences])

    def timed(self, facts: Mapping[str, int]) -> None:
        """What scheduling has cost lately."""
        self._write(["timing", self._clock(), dict(facts)])

    # -- the decision ---------------------------------------------------------------------------------------

    def candidates(self) -> Generator[Served, bool, None]:
        """Whom the policy tries next; to be driven as `baselines.scheduler.Scheduler` promises."""
        try:
            yield from self._checked(self._policy.candidates(self.waiting, self._clock()))
        except Exception as error:
            self._failed(error)
            raise

    def _checked(self, offers: Candidates) -> Generator[Served, bool, None]:
        """The offers, each made on fresh matches and found to be a waiting request."""
        answer: bool | None = None
        with closing(offers), suppress(StopIteration):
            while True:
                self._matches.refresh(self.waiting.rematched)
                offer = offers.send(answer)  # type: ignore[arg-type]  # None starts it
                if not (isinstance(offer, Served) and offer.waits):
                    raise ValueError(f"the policy offers {offer!r}, which is not a waiting request")
                self.offers += 1
                answer = yield offer

    # -- within ---------------------------------------------------------------------------------------------

    def _wait(self, request: Served) -> None:
        request.waits = True
        self.waiting.add(request)

    def _wait_no_more(self, request: Served) -> None:
        if request.waits:
            request.waits = False
            self.waiting.remove(request)
        self.aside.discard(request)

    def _computed(self, request: Served, tokens: int) -> None:
        request.computed = max(request.computed, tokens)

    def _spare(self, request: Served, computed: int, now: float) -> None:
        """Take back what was counted as recomputed and was not."""
        if request.recomputes > computed:
            self._write(["spared", now, request.id, request.client, request.recomputes - computed])
        request.recomputes = 0

    def _tell(self, event: str, *facts: Any) -> None:
        try:
            getattr(self._policy, event)(*facts)
        except Exception as error:
            self._failed(error)
            raise

    def _failed(self, error: Exception) -> None:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        self._write(
            ["failed", self._clock(), f"{frame.filename}:{frame.lineno}: {type(error).__name__}: {error}"]
        )
        self.close()


class Stopwatch:
    """Measures what scheduling costs, by taking the place of the methods that it is told to watch.

    Built only where the configuration asks for it, so it costs nothing elsewhere.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._deciding = False
        self._begin()

    def decisions(self, owner: object, *methods: str) -> None:
        """Count the time spent in these methods as spent on deciding; one within another counts once."""
        for name in methods:
            setattr(owner, name, self._while_deciding(getattr(owner, name)))

    def step(self, owner: object, schedule: str, update: str) -> None:
        """Count the CPU time of these methods; the second ends a step."""
        for name in (schedule, update):
            setattr(owner, name, self._on_cpu(getattr(owner, name), int(name == update)))

    def write(self) -> None:
        """Write down what was measured since the last time."""
        if self._steps:
            facts = {"steps": self._steps, "scheduling_ns": self._scheduling}
            offers = self._host.offers - self._offers
            self._host.timed({**facts, "offers": offers, "deciding_ns": self._decided})
        self._begin()

    def _begin(self) -> None:
        self._steps = self._scheduling = self._decided = 0
        self._offers = self._host.offers

    def _while_deciding(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._deciding:
                return method(*args, **kwargs)
            self._deciding = True
            begin = time.perf_counter_ns()
            try:
                return method(*args, **kwargs)
            finally:
                self._decided += time.perf_counter_ns() - begin
                self._deciding = False

        return timed

    def _on_cpu(self, method: Callable[..., Any], steps: int) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.thread_time_ns()
            try:
                return method(*args, **kwargs)
            finally:
                self._scheduling += time.thread_time_ns() - begin
                self._steps += steps
                if self._steps >= TIMING_STEPS:
                    self.write()

        return timed


class LogFile:
    """JSON lines written by a thread of their own, so that a step never waits for the disk.

    If the disk fails, the file ends where it failed: what was served goes on being served, and the suite
    finds the log short of what it should hold.
    """

    def __init__(self, path: Path) -> None:
        self._lines: queue.SimpleQueue[list[Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._drain, args=(path.open("w", encoding="utf-8"),), name=path.name, daemon=True
        )
        self._thread.start()
        self.write = self._lines.put

    def close(self) -> None:
        """Return when everything is on disk."""
        self._lines.put(None)
        self._thread.join()

    def _drain(self, file: IO[str]) -> None:
        try:
            with file:
                while (line := self._lines.get()) is not None:
                    file.write(json.dumps(line, separators=(",", ":")) + "\n")
                    if self._lines.empty():
                        file.flush()
        except OSError as error:
            print(f"suite: {file.name}: cannot be written: {error}", file=sys.stderr, flush=True)
            while self._lines.get() is not None:
                pass


def _in_force(scheduler: Mapping[str, Any], engine: Mapping[str, Any]) -> tuple[Scheduler, Mapping[str, Any]]:
    """The policy of a configuration, and its place in the first line of the service log."""
    if stock := scheduler.get("stock"):
        named = {"target": f"{engine['engine']}:{stock}", "name": stock, "parameters": {}, "source": ""}
        return Scheduler(), named
    policy = load(scheduler["target"])(**scheduler["parameters"])
    return policy, {"name": policy.name, "source": source_digest(type(policy)), **scheduler}


def load(target: str) -> type[Scheduler]:
    """The class of a policy: "module:Class" or "path/to/file.py:Class"."""
    place, _, name = target.rpartition(":")
    if not place.endswith(".py"):
        return getattr(importlib.import_module(place), name)  # type: ignore[no-any-return]
    spec = importlib.util.spec_from_file_location("_scheduler", place)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["_scheduler"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)  # type: ignore[no-any-return]


def source_digest(policy: type[Scheduler]) -> str:
    """SHA-256 of the file that holds the class."""
    return hashlib.sha256(Path(sys.modules[policy.__module__].__file__ or "").read_bytes()).hexdigest()
