"""The bench of large workloads: every stage sees every request, in a process of its own."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from suite import bench_workloads as bench
from suite.errors import BadInput


def test_every_stage_sees_the_same_requests(tmp_path: Path):
    seen = {name: job() for name, job in bench._jobs("mixed", 0.5, tmp_path)}
    assert list(seen) == [
        "generate",
        "generate, write .jsonl",
        "generate, write .parquet",
        "stream .jsonl",
        "stream .parquet",
        "describe .parquet",
    ]
    assert len(set(seen.values())) == 1


def test_the_load_makes_about_as_many_requests_as_are_asked_for():
    made = bench._generate("mixed", bench._load("mixed", 5000))
    assert 4800 < made < 5500


def test_a_stage_runs_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch):
    job = partial(bench._generate, "mixed", 0.2)
    monkeypatch.setattr(bench, "_jobs", lambda *_: iter([("who", os.getpid), ("make", job)]))
    said: list[str] = []
    who, make = bench.stages("mixed", 10, said.append)
    assert said == ["who", "make"]
    assert who.requests != os.getpid()
    assert make.requests == job()
    assert make.seconds > 0
    assert 2**24 < make.peak < 2**33, "bytes"


def test_a_workload_that_no_load_makes_larger_is_refused():
    with pytest.raises(BadInput, match=r"blend: only a synthetic workload can be made larger by its load"):
        list(bench.stages("blend", 10, lambda _: None))
