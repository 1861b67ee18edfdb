"""vLLM's queue of waiting requests, with a policy at its head. Runs in vLLM's environment.

A request says who sends it in `vllm_xargs`: client_id, request_id, weight, priority, all optional. What they
hold is foreign data: nonsense in it falls back to the default.

What vLLM sets aside when it is offered (a grammar that is not compiled, too many LoRA adapters, KV memory
that is being fetched) is hidden from the policy for the rest of the step, and the policy asked anew. A
request that holds KV memory while it waits does not wait under the policy: vLLM starts it first, as it must.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from vllm.v1.core.sched.request_queue import FCFSRequestQueue, RequestQueue
from vllm.v1.request import RequestStatus

from suite.backends import said
from suite.backends.host import Host, Served


class PolicyQueue(RequestQueue):  # type: ignore[misc]  # vllm is not in the suite's environment
    """The waiting requests; within a step the head is what the policy offers.

    vLLM asks whether there is a head, peeks at it, tries it, and pops it if it starts, or to set it aside;
    what became of it shows the next time vLLM asks. `room` tells whether there is a free slot and token
    budget: only then is the policy's generator resumed.
    """

    def __init__(self, host: Host, room: Callable[[], bool]) -> None:
        self.served: dict[str, Served] = {}
        """Every request that is waiting, set aside or running, by vLLM's id."""
        self._host = host
        self._room = room
        self._members: dict[str, Any] = {}
        self._returning: list[Served] = []
        self._deciding = False
        self._offers: Generator[Served, bool, None] | None = None
        self._offer: Served | None = None
        self._popped: Served | None = None
        self._tried = False
        """Whether vLLM has tried the offer."""
        self._over = False
        """Whether the policy has nothing more to offer in this step."""

    # -- a step --------------------------------------------------------------------------------------------

    def begin_step(self) -> None:
        """From now on the policy is asked."""
        self._deciding = True

    def end_step(self, scheduled: Mapping[str, int]) -> None:
        """No more; each request has been `scheduled` for so many tokens, which count as computed already."""
        self._settle(scheduled)
        if self._offers and self._tried:
            with suppress(StopIteration):
                self._offers.send(False)
        self._close()
        self._deciding = False
        for served in self._returning:
            self._host.put_back(served)
        self._returning.clear()
        self._catch_up(scheduled)

    def __bool__(self) -> bool:
        if self._deciding and self._room():
            return self._head() is not None
        return bool(self._members)

    def peek_request(self) -> Any:
        """The request that the policy offers."""
        head = self._head()
        if head is None:
            raise IndexError("the policy offers no request")
        self._tried = True
        return head.engine

    def pop_request(self) -> Any:
        """Take out the request that was peeked at."""
        request = self.peek_request()
        self._popped, self._offer, self._tried = self._offer, None, False
        del self._members[request.request_id]
        return request

    def _head(self) -> Served | None:
        """What the policy offers, resuming it if its last offer has been taken."""
        self._settle({})
        if self._offer is None and not self._over:
            self._ask()
        return self._offer

    def _ask(self) -> None:
        try:
            if self._offers:
                self._offer = self._offers.send(True)
            elif len(self._host.waiting):
                self._catch_up({})
                self._offers = self._host.candidates()
                self._offer = next(self._offers)
        except StopIteration:
            self._over = True

    def _settle(self, scheduled: Mapping[str, int]) -> None:
        """Find out what became of the request that was popped, and tell the host."""
        served, self._popped = self._popped, None
        if served is None:
            return
        if _runs(served):
            self._start(served, scheduled)
        else:
            self._close()
            self._host.set_aside(served)

    def _catch_up(self, scheduled: Mapping[str, int]) -> None:
        """Tell the host what vLLM has started on its own."""
        for served in [served for served in self._host.aside if _runs(served)]:
            self._start(served, scheduled)

    def _start(self, served: Served, scheduled: Mapping[str, int]) -> None:
        request = served.engine
        cached = request.num_computed_tokens - scheduled.get(request.request_id, 0)
        self._host.started(served, cached)

    def _close(self) -> None:
        """The policy is done for this step, or is to begin anew."""
        if self._offers:
            self._offers.close()
        self._offers = self._offer = self._popped = None
        self._tried = self._over = False

    # -- who waits -----------------------------------------------------------------------------------------

    def add_request(self, request: Any) -> None:
        """A request has come in, or a streaming session goes on."""
        self._members[request.request_id] = request
        if served := self.served.get(request.request_id):
            self._host.put_back(served)
        else:
            self.served[request.request_id] = self._host.arrived(request, *_facts(request))

    def prepend_request(self, request: Any) -> None:
        """A request was preempted; the scheduler tells the host."""
        self._members[request.request_id] = request

    def prepend_requests(self, requests: Iterable[Any]) -> None:
        """What was set aside in a step comes back; the policy hears of it when the step has ended."""
        for request in requests:
            self._members[request.request_id] = request
            self._returning.append(self.served[request.request_id])

    def remove_request(self, request: Any) -> None:
        """It waits no longer; the scheduler tells the host why."""
        self._members.pop(request.request_id, None)

    def remove_requests(self, requests: Iterable[Any]) -> None:
        """They wait no longer."""
        for request in requests:
            self.remove_request(request)

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._members.values())


class HoldingQueue(FCFSRequestQueue):  # type: ignore[misc]
    """The second queue of vLLM 0.25, which it drains first, for all that was set aside.

    Keeps, as later releases do, only requests that hold KV memory; the others wait under the policy.
    """

    def __init__(self, waiting: PolicyQueue) -> None:
        super().__init__()
        self._waiting = waiting

    def add_request(self, request: Any) -> None:
        """Blocked from the beginning, or a streaming session that goes on."""
        if _holds_memory(request):
            super().add_request(request)
        else:
            self._waiting.add_request(request)

    def prepend_requests(self, requests: Iterable[Any]) -> None:
        """What was set aside in a step."""
        for request in requests:
            if _holds_memory(request):
                self.appendleft(request)
            else:
                self._waiting.prepend_requests([request])


def _runs(served: Served) -> bool:
    return bool(served.engine.status == RequestStatus.RUNNING)


def _holds_memory(request: Any) -> bool:
    return bool(request.num_computed_tokens) or request.status == RequestStatus.WAITING_FOR_REMOTE_KVS


# -- what a request says of itself ---------------------------------------------------------------------------


def _facts(request: Any) -> tuple[str, str, int, float, int]:
    """Id, client, prompt tokens, weight, priority."""
    sampling = request.sampling_params
    says = (sampling.extra_args if sampling else None) or {}
    return (
        said.name(says.get("request_id"), request.request_id),
        said.name(says.get("client_id"), said.ANONYMOUS),
        request.num_prompt_tokens,
        said.weight(says.get("weight")),
        said.priority(says.get("priority"), request.priority),
    )
