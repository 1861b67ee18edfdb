"""Preble's local scheduler: groups by the share of the prompt that is cached, served in proportion."""

from __future__ import annotations

from collections import deque
from math import ceil

from baselines.scheduler import Candidates, Request, Scheduler, Waiting

GROUPS = 10
_QUOTAS = range(GROUPS + 1)
"""How often each group is picked in a round of 55; there is no group 0."""
_DOWN = range(GROUPS, 0, -1)
_STALE = 100
"""Who waits is put into groups anew when one in so many was admitted."""


class PrebleGroups(Scheduler):
    """Serve ten groups of requests, the more of the prompt is cached the oftener, the oldest of a group
    first.

    Preble's rule against starvation of new prompts (Srivatsa et al., arXiv 2407.00023, section 3.3 and
    Algorithm 3): group 10 is picked ten times in a round, group 9 nine times, down to group 1 once. It knows
    no clients, so it isolates none from another. What paper and code leave open or differ in, decided:

    - *Groups.* Group g has the requests with more than (g - 1) tenths of the prompt cached and at most g, as
      in the code; group 1 also those with nothing. The paper's example (63 % is group 6) counts from 0, like
      the code, so there are ten and not eleven. A request changes its group as the cache does; in the code it
      keeps the one it had when it came.
    - *Proportions* are the paper's. The code takes the groups in turn from the highest down, one a step, and
      of each up to ten times its number; where a step has room for few requests, as under load, that gives
      all groups equal turns.
    - *Order.* The highest group that has a request waiting and picks left. A round ends when no group that
      has one has picks left, so no slot is kept for who is not there; what a group did not use is not kept
      either.
    - *Freshness.* A step goes by the groups at its start; with more than 100 waiting, by those since when at
      most one in 100 of them was admitted, as looking at all who wait takes its time. A request that did not
      fit is tried first in the next step, whatever its group is then: it was picked. So a step that admits
      nobody looks at no one else.
    """

    name = "preble-groups"

    def __init__(self) -> None:
        self._left = list(_QUOTAS)
        self._offered: tuple[int, Request] | None = None
        self._groups: _Groups | None = None
        self._admitted = 0
        """Requests, since those who wait were put into groups."""

    def arrived(self, request: Request, now: float) -> None:
        """The last one who waits is the last of its group."""
        if self._groups:
            self._groups.add(request)

    def preempted(self, request: Request, now: float) -> None:
        """It has an old place in its group."""
        self._groups = None

    def admitted(self, request: Request, cached_tokens: int, now: float) -> None:
        """A pick of its group is used up."""
        self._settle(request, 1)

    def resumed(self, request: Request, cached_tokens: int, now: float) -> None:
        """The same: it was picked again."""
        self._settle(request, 1)

    def finished(
        self, request: Request, reason: str, output_tokens: int, uncomputed_tokens: int, now: float
    ) -> None:
        """Who was withdrawn while it waited is not tried again."""
        if reason == "abort":
            self._groups = None
            self._settle(request, 0)

    def candidates(self, waiting: Waiting, now: float) -> Candidates:
        """Offer who was refused, then the oldest of the group whose turn it is, until one is refused."""
        if self._offered and not (yield self._offered[1]):
            return
        groups = self._grouped(waiting)
        while group := self._turn(groups):
            self._offered = group, groups.pop(group)
            if not (yield self._offered[1]):
                return

    def _grouped(self, waiting: Waiting) -> _Groups:
        if self._groups is None or self._admitted * _STALE >= len(waiting):
            self._groups, self._admitted = _Groups(waiting), 0
        self._groups.matched = waiting.matched
        return self._groups

    def _turn(self, groups: _Groups) -> int:
        """The highest group with picks left and a request waiting, in a new round if need be; 0 if none
        waits."""
        group = next((group for group in _DOWN if self._left[group] and groups.waits(group)), 0)
        if not group and (group := next(filter(groups.waits, _DOWN), 0)):
            self._left = list(_QUOTAS)
        return group

    def _settle(self, request: Request, picks: int) -> None:
        if self._offered and self._offered[1] is request:
            self._left[self._offered[0]] -= picks
            self._admitted += picks
            self._offered = None


class _Groups:
    """Those who wait, by group and arrival, put into their groups only as far as anyone asks."""

    def __init__(self, waiting: Waiting) -> None:
        self.matched = waiting.matched
        self._unsorted = deque(waiting.by_arrival())
        self._sorted: list[deque[Request]] = [deque() for _ in _QUOTAS]

    def add(self, request: Request) -> None:
        """One who arrived after all others."""
        self._unsorted.append(request)

    def waits(self, group: int) -> bool:
        """Whether a request of the group is left."""
        found = self._sorted[group]
        while self._unsorted and not found:
            request = self._unsorted.popleft()
            self._sorted[self._group(request)].append(request)
        return bool(found)

    def pop(self, group: int) -> Request:
        """The oldest request of a group that has one."""
        return self._sorted[group].popleft()

    def _group(self, request: Request) -> int:
        return min(GROUPS, max(1, ceil(GROUPS * self.matched(request) / request.prompt_tokens)))
