"""The decision log: what a policy was told, what it saw of the cache, and what it chose.

A log is a sequence of entries, lists of JSON values, without step numbers or times. Requests appear by their
`sequence`:

    ["arrived", sequence, id, client, prompt_tokens, weight, priority]
    ["admitted", sequence, cached_tokens]            ["resumed", sequence, cached_tokens]
    ["generated", {sequence: tokens}]                keys as text; no mapping: the same as the last time
    ["preempted", sequence]
    ["finished", sequence, reason, output_tokens, uncomputed_tokens]
    ["aside", sequence]    ["back", sequence]        the host hides a waiting request for a while
    ["decide"]                                       `candidates` is asked for a decision
    ["matched", sequence, tokens]                    the policy asked for a match
    ["longest", sequence]                            the next of a longest-prefix order; null where it ends
    ["offer", sequence]                              the policy yielded it
    ["refused"]                                      it was not admitted
    ["enough"]                                       the host closed the generator
    ["pass"]                                         the policy had nothing more to offer

The log holds everything a policy can react to but the time, so `replayed` gives it back from a fresh instance
of any policy that does not look at the clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

from baselines.scheduler import Candidates, Request, Scheduler, Waiting
from baselines.waiting import WaitingQueue

Entry: TypeAlias = list[Any]


class Diverged(Exception):
    """A replayed policy asked for something else than the log holds."""


class Recorder(Scheduler):
    """A policy that behaves as the one inside it and writes the decision log with `write`."""

    def __init__(self, policy: Scheduler, write: Callable[[Entry], object]) -> None:
        self._policy = policy
        self._write = write
        self._generated: dict[str, int] = {}

    def arrived(self, request: Request, now: float) -> None:
        """Write and pass on."""
        facts = (request.id, request.client, request.prompt_tokens, request.weight, request.priority)
        self._write(["arrived", request.sequence, *facts])
        self._policy.arrived(request, now)

    def admitted(self, request: Request, cached_tokens: int, now: float) -> None:
        """Write and pass on."""
        self._write(["admitted", request.sequence, cached_tokens])
        self._policy.admitted(request, cached_tokens, now)

    def resumed(self, request: Request, cached_tokens: int, now: float) -> None:
        """Write and pass on."""
        self._write(["resumed", request.sequence, cached_tokens])
        self._policy.resumed(request, cached_tokens, now)

    def generated(self, tokens: Mapping[Request, int], now: float) -> None:
        """Write and pass on."""
        by_sequence = {str(request.sequence): amount for request, amount in tokens.items()}
        same = by_sequence == self._generated
        self._generated = by_sequence
        self._write(["generated"] if same else ["generated", by_sequence])
        self._policy.generated(tokens, now)

    def preempted(self, request: Request, now: float) -> None:
        """Write and pass on."""
        self._write(["preempted", request.sequence])
        self._policy.preempted(request, now)

    def finished(
        self, request: Request, reason: str, output_tokens: int, uncomputed_tokens: int, now: float
    ) -> None:
        """Write and pass on."""
        self._write(["finished", request.sequence, reason, output_tokens, uncomputed_tokens])
        self._policy.finished(request, reason, output_tokens, uncomputed_tokens, now)

    def set_aside(self, request: Request) -> None:
        """Write that the host hides a waiting request: it lacks something that the policy has no say in."""
        self._write(["aside", request.sequence])

    def put_back(self, request: Request) -> None:
        """Write that it shows it again."""
        self._write(["back", request.sequence])

    def candidates(self, waiting: Waiting, now: float) -> Candidates:
        """What the policy offers, each offer written with what led to it."""
        self._write(["decide"])
        offers = self._policy.candidates(_Watched(waiting, self._write), now)
        admitted = True
        try:
            request = next(offers)
            while True:
                self._write(["offer", request.sequence])
                admitted = yield request
                if not admitted:
                    self._write(["refused"])
                request = offers.send(admitted)
        except StopIteration:
            if admitted:
                self._write(["pass"])
        except GeneratorExit:
            self._write(["enough"])
            offers.close()
            raise


class _Watched:
    """The waiting requests, each answer of the cache written down as the policy takes it."""

    def __init__(self, waiting: Waiting, write: Callable[[Entry], object]) -> None:
        self._waiting = waiting
        self._write = write

    def __len__(self) -> int:
        return len(self._waiting)

    def clients(self) -> Collection[str]:
        return self._waiting.clients()

    def by_arrival(self) -> Iterable[Request]:
        return self._waiting.by_arrival()

    def of(self, client: str) -> Iterable[Request]:
        return self._waiting.of(client)

    def matched(self, request: Request) -> int:
        tokens = self._waiting.matched(request)
        self._write(["matched", request.sequence, tokens])
        return tokens

    def by_longest_prefix(self, clients: Collection[str] | None = None) -> Iterator[Request]:
        return self._written(self._waiting.by_longest_prefix(clients))

    def _written(self, order: Iterable[Request]) -> Iterator[Request]:
        for request in order:
            self._write(["longest", request.sequence])
            yield request
        self._write(["longest", None])


# -- replaying ---------------------------------------------------------------------------------------------


def replayed(log: Iterable[Entry], policy: Scheduler) -> list[Entry]:
    """The log that a fresh policy gives when it is told, and sees, what this log holds. Time stands at 0.

    Raises `Diverged` where the policy asks or offers something else.
    """
    replay = _Replay(log, policy)
    while replay.log:
        replay.event()
    return replay.written


class _Replay:
    """A host without an engine: the log says what happens."""

    def __init__(self, log: Iterable[Entry], policy: Scheduler) -> None:
        self.log = deque(log)
        self.written: list[Entry] = []
        self._recorder = Recorder(policy, self.written.append)
        self._waiting = WaitingQueue(_NoMatches())
        self._requests: dict[int, Request] = {}
        self._generated: Mapping[str, int] = {}

    def event(self) -> None:
        """Take the next entry and tell the policy, or let it decide."""
        kind, *facts = self.log.popleft()
        if kind == "arrived":
            sequence, id, client, prompt_tokens, weight, priority = facts
            request = Request(id, client, sequence, 0.0, prompt_tokens, weight, priority)
            self._requests[sequence] = request
            self._waiting.add(request)
            self._recorder.arrived(request, 0.0)
        elif kind == "generated":
            self._generated = facts[0] if facts else self._generated
            tokens = {self._requests[int(key)]: amount for key, amount in self._generated.items()}
            self._recorder.generated(tokens, 0.0)
        elif kind == "preempted":
            request = self._requests[facts[0]]
            self._waiting.add(request)
            self._recorder.preempted(request, 0.0)
        elif kind == "finished":
            self._finished(*facts)
        elif kind in ("admitted", "resumed"):
            getattr(self._recorder, kind)(self._requests[facts[0]], facts[1], 0.0)
        elif kind == "aside":
            self._waiting.remove(self._requests[facts[0]])
            self._recorder.set_aside(self._requests[facts[0]])
        elif kind == "back":
            self._waiting.add(self._requests[facts[0]])
            self._recorder.put_back(self._requests[facts[0]])
        elif kind == "decide":
            self._decide()
        else:
            raise Diverged(f"the policy did not ask for {[kind, *facts]}")

    def _finished(self, sequence: int, reason: str, output_tokens: int, uncomputed_tokens: int) -> None:
        request = self._requests.pop(sequence)
        if any(waiting is request for waiting in self._waiting.of(request.client)):
            self._waiting.remove(request)
        self._recorder.finished(request, reason, output_tokens, uncomputed_tokens, 0.0)

    def _decide(self) -> None:
        offers = self._recorder.candidates(_Scripted(self._waiting, self.log, self._requests), 0.0)
        with suppress(StopIteration):
            request = next(offers)
            while True:
                self._expect("offer", request.sequence)
                admitted = self._settle(request)
                if admitted is None or self._comes("enough"):
                    break
                request = offers.send(admitted)
        offers.close()
        if self._comes("enough") or self._comes("pass"):
            self.log.popleft()

    def _settle(self, request: Request) -> bool | None:
        """What became of an offer: admitted, refused, or left open as the host had enough."""
        if self._comes("refused"):
            self.log.popleft()
            return False
        if not (self._comes("admitted") or self._comes("resumed")):
            return None
        kind, _, cached_tokens = self.log.popleft()
        self._waiting.remove(request)
        getattr(self._recorder, kind)(request, cached_tokens, 0.0)
        return True

    def _comes(self, kind: str) -> bool:
        return bool(self.log) and self.log[0][0] == kind

    def _expect(self, *entry: Any) -> None:
        found = self.log.popleft() if self.log else None
        if found != list(entry):
            raise Diverged(f"the policy gave {list(entry)}, the log has {found}")


class _Scripted(_Watched):
    """The waiting requests with the answers of the cache taken from the log."""

    def __init__(self, waiting: Waiting, log: deque[Entry], requests: Mapping[int, Request]) -> None:
        super().__init__(waiting, lambda entry: None)
        self._log = log
        self._requests = requests

    def matched(self, request: Request) -> int:
        return int(self._next("matched", request.sequence))

    def by_longest_prefix(self, clients: Collection[str] | None = None) -> Iterator[Request]:
        while (sequence := self._next("longest")) is not None:
            yield self._requests[sequence]

    def _next(self, *begin: Any) -> Any:
        found = self._log.popleft() if self._log else []
        if found[: len(begin)] != list(begin):
            raise Diverged(f"the policy asked for {list(begin)}, the log has {found}")
        return found[-1]


class _NoMatches:
    """For a `WaitingQueue` that is never asked for a match."""

    def follow(self, request: Request) -> int:
        raise AssertionError("the log answers for the cache")

    def unfollow(self, request: Request) -> None:
        raise AssertionError("the log answers for the cache")
