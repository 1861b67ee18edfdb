"""Which requests of a trace belong together, and when the earliest possible time of each is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from suite.trace import Request


def earliest(requests: Sequence[Request]) -> list[float]:
    """The earliest time at which each can be sent, in seconds: when every reply takes no time."""
    times: dict[str, float] = {}
    for request in requests:
        waits = (times[parent] + request.think for parent in request.after)
        times[request.id] = max(request.arrival, *waits) if request.after else request.arrival
    return list(times.values())


def programs(requests: Sequence[Request]) -> NDArray[np.int64]:
    """The program of each request, numbered from 0 in order of their first requests.

    Requests are of one program if they are of one session, or if one comes after the other.
    """
    places = {request.id: place for place, request in enumerate(requests)}
    firsts: dict[str, int] = {}
    links = [(place, places[parent]) for place, one in enumerate(requests) for parent in one.after]
    links += [
        (place, firsts.setdefault(one.session, place))
        for place, one in enumerate(requests)
        if one.session is not None
    ]
    ends = np.array(links, dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(len(requests), len(requests)))
    _, found = connected_components(graph, directed=False)
    _, firsts_of, numbers = np.unique(found, return_index=True, return_inverse=True)
    ranks: NDArray[np.int64] = np.argsort(np.argsort(firsts_of))[numbers]
    return ranks
