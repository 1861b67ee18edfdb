"""The waiting view against a model that recomputes everything."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from baselines.scheduler import Request
from baselines.waiting import WaitingQueue


class Matches:
    """A prefix oracle with settable answers that knows whom it was asked to follow."""

    def __init__(self) -> None:
        self.tokens: dict[Request, int] = {}
        self.followed: set[Request] = set()

    def follow(self, request: Request) -> int:
        assert request not in self.followed
        self.followed.add(request)
        return self.tokens[request]

    def unfollow(self, request: Request) -> None:
        self.followed.remove(request)


actions = st.lists(
    st.tuples(st.sampled_from(["add", "remove", "rematch", "back"]), st.integers(0, 30), st.integers(0, 5)),
    max_size=60,
)


@given(actions, st.booleans())
def test_view_equals_a_full_recompute_after_every_change(
    steps: list[tuple[str, int, int]], follow_from_start: bool
) -> None:
    matches = Matches()
    queue = WaitingQueue(matches)
    model: list[Request] = []
    gone: list[Request] = []
    sequence = 0
    following = False
    for number, (action, pick, tokens) in enumerate(steps):
        if action == "add" or not model:
            request = Request(str(sequence), "abc"[pick % 3], sequence, 0.0, 10)
            sequence += 1
            matches.tokens[request] = tokens
            model.append(request)
            queue.add(request)
        elif action == "remove":
            request = model.pop(pick % len(model))
            gone.append(request)
            queue.remove(request)
        elif action == "back" and gone:
            request = gone.pop()
            model.append(request)
            queue.add(request)
        else:
            request = model[pick % len(model)]
            matches.tokens[request] = tokens
            if following:
                queue.rematched(request, tokens)
        if follow_from_start or number > 20:
            following = True
        _compare(queue, model, matches, following)


def _compare(queue: WaitingQueue, model: list[Request], matches: Matches, following: bool) -> None:
    by_arrival = sorted(model, key=lambda request: request.sequence)
    assert len(queue) == len(model)
    assert list(queue.by_arrival()) == by_arrival
    assert set(queue.clients()) == {request.client for request in model}
    for client in "abc":
        assert list(queue.of(client)) == [request for request in by_arrival if request.client == client]
    if not following:
        assert not matches.followed
        return
    by_prefix = sorted(by_arrival, key=lambda request: -matches.tokens[request])
    assert list(queue.by_longest_prefix()) == by_prefix
    some = [client for client in queue.clients() if client != "b"]
    assert list(queue.by_longest_prefix(some)) == [r for r in by_prefix if r.client != "b"]
    assert all(queue.matched(request) == matches.tokens[request] for request in model)
    assert matches.followed == set(model)


def test_the_longest_prefix_order_can_be_walked_while_requests_leave() -> None:
    matches = Matches()
    queue = WaitingQueue(matches)
    requests = [Request(str(i), "ab"[i % 2], i, 0.0, 10) for i in range(6)]
    for request in requests:
        matches.tokens[request] = request.sequence
        queue.add(request)
    seen = []
    for request in queue.by_longest_prefix():
        seen.append(request)
        queue.remove(request)
    assert seen == requests[::-1]
    assert len(queue) == 0
