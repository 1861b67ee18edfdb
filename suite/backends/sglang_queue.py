"""SGLang's queue of waiting requests, with a policy deciding in which order it is tried. Runs in SGLang's
environment: standard library, sglang, and files of the suite that say the same of themselves.

A request says who sends it in `routing_key` (or the header X-SMG-Routing-Key), and in the `custom_params` of
its sampling parameters: client_id, request_id, weight, priority, all optional. SGLang drops the routing key
of a request with several prompts or replies, so there client_id says it. Other projects' routers drop both;
behind them its id says all that as a JSON object. What they hold is foreign data: nonsense in it falls back
to the default.

What SGLang passes over when it is offered (too many LoRA adapters, a batch of another kind) is hidden from
the policy for the rest of the pass, and the policy asked anew. SGLang's health checks never reach the policy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from typing import Any

from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX

from suite.backends import said
from suite.backends.host import Host, Served


class PolicyQueue(list[Any]):
    """The waiting requests, in the order in which they came. Within an admission pass one walk over them, the
    engine's own, gives what the policy offers; everything else sees the plain list.

    `room` tells whether there is a free slot and token budget: only then is the policy's generator resumed.
    """

    def __init__(self, host: Host, room: Callable[[], bool]) -> None:
        super().__init__()
        self.served: dict[Any, Served] = {}
        """Every request that is waiting, set aside or running, by the engine's object."""
        self.released: dict[Any, int] = {}
        """Of those that have just given their KV memory back: how many tokens it held."""
        self._host = host
        self._room = room
        self._armed = False
        self._offers: Generator[Served, bool, None] | None = None
        self._tried = False
        """Whether the engine has tried the last offer."""
        self._aside: list[Served] = []
        self._checks: list[Any] = []
        """SGLang's health checks that wait."""

    # -- an admission pass ---------------------------------------------------------------------------------

    def begin_pass(self) -> None:
        """The next walk over the queue is the engine's, who tries them in that order."""
        self._armed = True

    def end_pass(self) -> None:
        """It will try no more."""
        self._armed = False
        self._close()
        for served in self._aside:
            self._host.put_back(served)
        self._aside.clear()

    def tried(self, request: Any, admitted: bool, cached: int) -> None:
        """The engine has tried a request, which starts with so many cached tokens, or was refused."""
        served = self.served.get(request)
        if served is None:
            return
        self._tried = True
        if admitted:
            self._host.started(served, cached)
        elif self._offers:
            with suppress(StopIteration):
                self._offers.send(False)
            self._close()

    def __iter__(self) -> Iterator[Any]:
        if not self._armed:
            return super().__iter__()
        self._armed = False
        return self._offered()

    def _offered(self) -> Iterator[Any]:
        """Health checks, then whom the policy offers while there is room for one more."""
        yield from list(self._checks)
        while self._room() and (served := self._ask()):
            self._tried = False
            yield served.engine
            if not self._tried:
                self._close()
                self._host.set_aside(served)
                self._aside.append(served)

    def _ask(self) -> Served | None:
        try:
            if self._offers:
                return self._offers.send(True)
            if len(self._host.waiting):
                self._offers = self._host.candidates()
                return next(self._offers)
        except StopIteration:
            pass
        return None

    def _close(self) -> None:
        """The policy is done for this pass, or is to begin anew."""
        if self._offers:
            self._offers.close()
        self._offers = None

    # -- who waits -----------------------------------------------------------------------------------------

    def append(self, request: Any) -> None:
        """A request has come in, or has lost its place."""
        super().append(request)
        if request.rid.startswith(HEALTH_CHECK_RID_PREFIX):
            self._checks.append(request)
        elif served := self.served.get(request):
            self._host.preempted(served, self.released.pop(request, 0))
        else:
            self.served[request] = self._host.arrived(request, *_facts(request))

    def pop(self, index: Any = -1) -> Any:
        """A request has been withdrawn."""
        request = super().pop(index)
        self._checks = [check for check in self._checks if check is not request]
        self._withdrawn(request)
        return request

    def keep(self, requests: Iterable[Any]) -> None:
        """The engine's new list: who is not in it has started or, if it still waits, is withdrawn."""
        kept = set(requests)
        gone = [request for request in self if request not in kept]
        self[:] = [request for request in self if request in kept]
        self._checks = [check for check in self._checks if check in kept]
        for request in gone:
            self._withdrawn(request)

    def _withdrawn(self, request: Any) -> None:
        served = self.served.get(request)
        if served and served.waits:
            del self.served[request]
            self._host.finished(served, "abort", 0)


def _facts(request: Any) -> tuple[str, str, int, float, int]:
    """Id, client, prompt tokens, weight, priority."""
    given = request.sampling_params.custom_params
    says = given if isinstance(given, dict) else _said_by_id(request.rid)
    return (
        said.name(says.get("request_id"), said.name(request.rid, "")),
        said.name(request.routing_key, said.name(says.get("client_id"), said.ANONYMOUS)),
        len(request.origin_input_ids),
        said.weight(says.get("weight")),
        said.priority(says.get("priority", request.priority), 0),
    )


def _said_by_id(rid: str) -> dict[str, Any]:
    """What an id says that is a JSON object."""
    with suppress(ValueError, RecursionError):
        says = json.loads(rid) if rid.startswith("{") else {}
        return says if isinstance(says, dict) else {}
    return {}
