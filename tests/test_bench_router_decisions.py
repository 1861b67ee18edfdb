"""`suite bench decisions`: every router is timed over workers whose pools are full."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from baselines.prefix_index import PrefixIndex
from baselines.router import Request, Worker
from suite import bench_router_decisions as bench
from suite.errors import BadInput
from suite.policies import available_routers


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"TOKENS": 9_600, "WORKERS": (2, 3), "PROMPTS": (160, 320), "DECISIONS": 20, "WARM_UP": 5}
    for name, value in small.items():
        monkeypatch.setattr(bench, name, value)


def test_every_router_is_timed_in_every_set_up() -> None:
    said: list[str] = []
    table = bench.routers((), said.append)
    columns = [list(column.cells) for column in table.columns]
    assert columns[0] == sorted(available_routers())
    assert len(columns) == 5
    for cell in (cell for column in columns[1:] for cell in column):
        median, late = map(float, re.fullmatch(r"([\d.]+) / ([\d.,]+)", cell).groups())  # type: ignore[union-attr]
        assert 0 < late >= median
    assert len(said) == 4 * len(columns[0])


def test_the_pools_are_full_when_the_decisions_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[list[int]] = []
    insert = PrefixIndex.insert

    def watched(index: PrefixIndex, request: Request, worker: Worker) -> object:
        end = insert(index, request, worker)
        held.append([index.held(worker) for worker in index._shelves])
        return end

    monkeypatch.setattr(PrefixIndex, "insert", watched)
    timed = bench._decisions(bench.parse_router("d2lpm").build(), 3, 160)
    assert len(timed) == 20
    assert held[-25:] == [[200, 200, 200]] * 25


def test_the_prompts_share_documents_and_nothing_else() -> None:
    make = bench._Prompts(160)
    prompts: Sequence[Request] = [make.request() for _ in range(300)]
    shared = {request.blocks[:8] for request in prompts}
    assert 80 < len(shared) <= bench.DOCUMENTS
    own = [block for request in prompts for block in request.blocks[8:]]
    assert len(own) == len(set(own)) == 600


def test_an_unknown_router_is_named() -> None:
    with pytest.raises(BadInput, match=r"d2lmp.*did you mean 'd2lpm'"):
        bench.routers(["d2lmp"], lambda text: None)
