"""VTC, the virtual token counter (Sheng et al., OSDI '24, Algorithm 2), weighted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from operator import attrgetter
from typing import Literal

from baselines.scheduler import Candidates, Request, Scheduler, Waiting, must_be_positive


class VTC(Scheduler):
    """Serve the client that has received the least service; its oldest request first.

    Each client has a counter of the service it received, divided by its weight. Whole prompts are charged
    when a request is admitted, output tokens as they are generated.

    What the paper leaves open or has two readings of, decided:

    - *Charge.* `charge="full"` counts the whole prompt, cached or not, as the paper does (it predates prefix
      caching); `charge="extend"` counts only the tokens that had to be computed, as DLPM's authors evidently
      do.
    - *Counter lift.* A client that begins to wait is lifted to the least counter among waiting clients or,
      if nobody waits, to the counter of the last client that left the queue: both branches of the paper,
      although its artifact leaves out the second.
    - *Batch full.* When the chosen request does not fit, admission stops: nobody is skipped.
    - *Preemption.* A preempted request waits for its own sake only: it is not charged again when it resumes,
      gives its client no lift, and keeps no later request of its client from one. An abort gives back what
      was charged and never computed.
    - *Ties* go to the client whose oldest waiting request arrived first.
    """

    name = "vtc"

    def __init__(
        self,
        *,
        charge: Literal["full", "extend"] = "full",
        input_weight: float = 1.0,
        output_weight: float = 2.0,
    ) -> None:
        if charge not in ("full", "extend"):
            raise ValueError(f'charge must be "full" or "extend", got {charge!r}')
        self.charge = charge
        self.input_weight = must_be_positive("input_weight", input_weight)
        self.output_weight = must_be_positive("output_weight", output_weight)
        self.counters: dict[str, float] = {}
        self._waiting: defaultdict[str, set[Request]] = defaultdict(set)
        """Requests that were never admitted, by client."""
        self._last_left: str | None = None

    def arrived(self, request: Request, now: float) -> None:
        """Lift the counter of a client that had nothing waiting (Algorithm 2, lines 5-13)."""
        client = request.client
        counter = self.counters.setdefault(client, 0.0)
        if client not in self._waiting:
            self.counters[client] = max(counter, self._lift())
        self._waiting[client].add(request)

    def admitted(self, request: Request, cached_tokens: int, now: float) -> None:
        """Charge the prompt (line 23)."""
        self._forget(request)
        self._last_left = request.client
        tokens = request.prompt_tokens - (cached_tokens if self.charge == "extend" else 0)
        self._charge(request, self.input_weight * tokens)

    def generated(self, tokens: Mapping[Request, int], now: float) -> None:
        """Charge output tokens (line 30)."""
        counters, weight = self.counters, self.output_weight
        for request, count in tokens.items():
            counters[request.client] += weight * count / request.weight

    def finished(
        self, request: Request, reason: str, output_tokens: int, uncomputed_tokens: int, now: float
    ) -> None:
        """Give back the charge for what was never computed."""
        if request in self._waiting.get(request.client, ()):
            self._forget(request)
        self._charge(request, -self.input_weight * uncomputed_tokens)

    def candidates(self, waiting: Waiting, now: float) -> Candidates:
        """Offer the oldest request of the client with the least counter until one is refused (17-25)."""
        while clients := waiting.clients():
            least = min(map(self.counters.__getitem__, clients))
            oldest = (next(iter(waiting.of(client))) for client in clients if self.counters[client] == least)
            if not (yield min(oldest, key=attrgetter("sequence"))):
                return

    def _lift(self) -> float:
        if self._waiting:
            return min(self.counters[client] for client in self._waiting)
        return self.counters[self._last_left] if self._last_left is not None else 0.0

    def _charge(self, request: Request, service: float) -> None:
        self.counters[request.client] += service / request.weight

    def _forget(self, request: Request) -> None:
        queue = self._waiting[request.client]
        queue.discard(request)
        if not queue:
            del self._waiting[request.client]
