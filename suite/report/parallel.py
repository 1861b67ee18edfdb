"""One function over many items, on all cores where that is quicker than starting processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

WORTHWHILE = 24
"""Cells from which on processes are started: each needs one or two seconds to come up."""

_pool: ContextVar[ProcessPoolExecutor | None] = ContextVar("pool", default=None)


@contextmanager
def processes(cells: int) -> Iterator[None]:
    """Inside, `each` shares its work out to a process per core, if so many cells are worth it."""
    cores = os.cpu_count() or 1
    if cells < WORTHWHILE or cores < 2 or _pool.get() is not None:
        yield
        return
    with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn")) as pool:
        token = _pool.set(pool)
        try:
            yield
        finally:
            _pool.reset(token)


def each(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`function` of every item, in their order; it must be a module's own. The first error is raised."""
    pool = _pool.get()
    return [function(item) for item in items] if pool is None else list(pool.map(function, items))
