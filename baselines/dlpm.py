"""DLPM, deficit longest prefix match (Cao et al., arXiv 2501.14312, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import floor

from baselines.scheduler import Candidates, Request, Scheduler, Waiting, must_be_positive


class DLPM(Scheduler):
    """Serve by longest prefix among the clients whose deficit counter is positive.

    A client pays for the prompt tokens that had to be computed (extend tokens) at admission and for output
    tokens as they are generated. When no waiting client has credit left, every known client without credit
    gets one quantum. A large quantum favours the cache, a small one fairness; the difference in service of
    two backlogged clients stays within 2 (input_weight * longest input + output_weight * tokens of a full
    batch + quantum) (Theorem 4.1).

    The paper does not publish its quantum; 2,000 is ours. What else Algorithm 1 leaves open, decided:

    - *Refill and rescan.* After a refill the scan begins again at the top of the longest-prefix order, taken
      afresh, as the paper's outer loop does, so a request skipped a moment ago is not passed over. A client
      deep in debt gets as many quanta at once as it takes until one waiting client has credit.
    - *Batch full.* The first refusal ends the step. So when the only client with credit has a request that
      does not fit, nobody is refilled and no smaller request of another client takes its place: the batch
      drains until the request fits.
    - *Idle clients* stay known for ever, as printed: they keep debt and credit and take part in refills, by
      which they bank at most one quantum.
    - *Debt.* Credit may be overdrawn by the prompt of one request and the outputs of what is running; debt
      is not forgiven when a client falls idle.
    - *Weights* scale a client's quantum, as in deficit round robin; the paper has none.
    - *Preemption.* What a resumed request computes again is not charged, but its client needs credit for it
      to resume. An abort gives back what was charged and never computed.
    """

    name = "dlpm"

    def __init__(
        self, *, quantum: float = 2000.0, input_weight: float = 1.0, output_weight: float = 2.0
    ) -> None:
        self.quantum = must_be_positive("quantum", quantum)
        self.input_weight = must_be_positive("input_weight", input_weight)
        self.output_weight = must_be_positive("output_weight", output_weight)
        self.deficits: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def arrived(self, request: Request, now: float) -> None:
        """A new client starts with a deficit of zero (lines 11-13)."""
        self.deficits.setdefault(request.client, 0.0)
        self._weights[request.client] = request.weight

    def admitted(self, request: Request, cached_tokens: int, now: float) -> None:
        """Charge the extend tokens (line 23)."""
        self.deficits[request.client] -= self.input_weight * (request.prompt_tokens - cached_tokens)

    def generated(self, tokens: Mapping[Request, int], now: float) -> None:
        """Charge output tokens (line 26)."""
        deficits, weight = self.deficits, self.output_weight
        for request, count in tokens.items():
            deficits[request.client] -= weight * count

    def finished(
        self, request: Request, reason: str, output_tokens: int, uncomputed_tokens: int, now: float
    ) -> None:
        """Give back the charge for what was never computed."""
        self.deficits[request.client] += self.input_weight * uncomputed_tokens

    def candidates(self, waiting: Waiting, now: float) -> Candidates:
        """Offer by longest prefix among clients with credit, refilling when there are none (lines 15-25)."""
        deficits = self.deficits
        while clients := waiting.clients():
            if all(deficits[client] <= 0 for client in clients):
                self._refill(clients)
            solvent = [client for client in clients if deficits[client] > 0]
            for request in waiting.by_longest_prefix(solvent):
                if deficits[request.client] > 0 and not (yield request):
                    return

    def _refill(self, waiting: Collection[str]) -> None:
        """Lines 3-8, repeated until a waiting client has credit: the rounds, counted, not looped."""
        rounds = min(self._rounds_to_credit(client) for client in waiting)
        for client, deficit in self.deficits.items():
            if deficit <= 0:
                granted = min(rounds, self._rounds_to_credit(client))
                self.deficits[client] = deficit + granted * self._quantum(client)

    def _rounds_to_credit(self, client: str) -> int:
        return floor(-self.deficits[client] / self._quantum(client)) + 1

    def _quantum(self, client: str) -> float:
        return self.quantum * self._weights[client]
