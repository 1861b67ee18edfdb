"""D2LPM, distributed deficit longest prefix match (Cao et al., arXiv 2501.14312, Algorithm 2): the
dispatcher."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from math import floor

from baselines.least_outstanding import LeastOutstanding
from baselines.prefix_index import PrefixIndex
from baselines.router import End, Request, Worker
from baselines.scheduler import must_be_positive


class Account:
    """What one client may still have at one worker, in service units, and what it was charged so far."""

    __slots__ = ("charged", "deficit")

    def __init__(self) -> None:
        self.deficit = 0.0
        """Credit left; overdrawn if below 0."""
        self.charged = 0.0

    @property
    def credited(self) -> float:
        """What it was given in refills."""
        return self.deficit + self.charged

    def credit(self, service: float) -> None:
        """Give it this much more."""
        self.deficit += service

    def charge(self, service: float) -> None:
        """Take this much; if below 0, give back what was taken for nothing."""
        self.deficit -= service
        self.charged += service


class D2LPM(LeastOutstanding):
    """Send a request where its prefix is, as long as its client has credit left there.

    A client has a deficit counter for each worker. Its whole prompt is charged when a request is sent there,
    the output when it has left. Among the workers at which the client has credit, those that hold the longest
    match are taken, and of them the one with the fewest requests outstanding; if none of them holds it, the
    one with the fewest of all that have credit. When the client has credit nowhere, it gets a quantum
    everywhere. So a large quantum favours the cache, and a small one an even load; however large, it must be
    finite, as stickiness without limit is unfair (Theorem A.5). With DLPM or another fair scheduler at each
    of D workers two backlogged clients stay within D times that scheduler's bound (Theorem 5.1).

    The paper does not publish the Q_w of its main runs; 20,000 is ours, from the middle of its Fig. 10. What
    else Algorithm 2 leaves open, decided:

    - *Longest match.* The longest that an offered worker holds, to the block: who holds one block less is no
      candidate. A match of nothing is no match, so a new prompt goes by load alone.
    - *Refill.* As many quanta as it takes until the client has credit at one of the offered workers, counted
      and not looped, and the same number for each of these; workers that are not offered (only while the host
      takes one for ill) get none. So -U < deficit <= Q_w at all times, where U = input_weight * its longest
      prompt + output_weight * the output of its requests that were outstanding there at once; what is given
      back for requests that come back may lift it above Q_w.
    - *Ties* go to the worker that joined first.
    - *Workers* that join start with a deficit of zero for every client, as all do in the paper: an old client
      comes to them with its next refill. When one is lost, its accounts go with it.
    - *Weights* scale a client's quantum, as in our DLPM; the paper has none.
    - *Ends.* A request that is withdrawn or cut short pays for the output it had; one that comes back before
      it was started pays nothing, and is charged where it goes next.
    - *Clients* stay known for ever, and keep credit and debt while they are idle.
    """

    name = "d2lpm"

    def __init__(
        self, *, quantum: float = 20_000.0, input_weight: float = 1.0, output_weight: float = 2.0
    ) -> None:
        super().__init__()
        self.quantum = must_be_positive("quantum", quantum)
        self.input_weight = must_be_positive("input_weight", input_weight)
        self.output_weight = must_be_positive("output_weight", output_weight)
        self.accounts: dict[Worker, dict[str, Account]] = {}
        self.index = PrefixIndex()

    def joined(self, worker: Worker, now: float) -> None:
        """No client has an account there yet."""
        super().joined(worker, now)
        self.accounts[worker] = {}

    def lost(self, worker: Worker, now: float) -> None:
        """Its accounts are closed."""
        super().lost(worker, now)
        del self.accounts[worker]
        self.index.drop(worker)

    def route(self, request: Request, workers: Sequence[Worker], now: float) -> Worker:
        """Locality among the workers where the client has credit, then load; charge the prompt."""
        solvent = self._solvent(request, workers)
        _, holders = self.index.match(request).longest(workers)
        local = set(solvent).intersection(holders)
        candidates = [worker for worker in solvent if worker in local] or solvent
        chosen = super().route(request, candidates, now)
        self._account(request.client, chosen).charge(self.input_weight * request.prompt_tokens)
        self.index.insert(request, chosen)
        return chosen

    def finished(self, request: Request, worker: Worker, end: End, output_tokens: int, now: float) -> None:
        """Charge the output, or undo the charge of what was never started."""
        super().finished(request, worker, end, output_tokens, now)
        account = self._account(request.client, worker)
        if end == "returned":
            account.charge(-self.input_weight * request.prompt_tokens)
        else:
            account.charge(self.output_weight * output_tokens)

    def evicted(self, worker: Worker, blocks: Sequence[Hashable], kept: int, now: float) -> None:
        """Forget what the worker's cache has lost."""
        self.index.evict(worker, blocks, kept)

    def _solvent(self, request: Request, workers: Sequence[Worker]) -> Sequence[Worker]:
        """The workers at which the client has credit, refilled first if it has none."""
        accounts = {worker: self._account(request.client, worker) for worker in workers}
        while not (solvent := [worker for worker in workers if accounts[worker].deficit > 0]):
            _refill(accounts.values(), self.quantum * request.weight)
        return solvent

    def _account(self, client: str, worker: Worker) -> Account:
        accounts = self.accounts[worker]
        account = accounts.get(client)
        if account is None:
            account = accounts[client] = Account()
        return account


def _refill(accounts: Collection[Account], quantum: float) -> None:
    """Give all the same number of quanta, the least that leaves one of them with credit."""
    rounds = min(floor(-account.deficit / quantum) + 1 for account in accounts)
    for account in accounts:
        account.credit(rounds * quantum)
