"""The same bytes everywhere: token ids and ready workloads against digests that are kept, in other processes
and under the other Pythons of this machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import golden_workloads
import numpy as np
import pytest

from suite.content import Content
from workloads.family import Synthetic
from workloads.parts.lengths import Empirical
from workloads.parts.streams import stream
from workloads.spec import load

HERE = Path(__file__).parent
GOLDEN: dict[str, str] = json.loads((HERE / "golden_workloads.json").read_text())
"""Digests by name of a ready workload; `golden_workloads.py` says how to make them anew."""

SEGMENTS = {
    (0, "system", 1000, 32_000, 3): "bb2296bc5f1564c450028ab4d6ee1ffe7edbc5d242bba17c1ac3654fad5d1116",
    (7, "document:Ω/1", 1000, 2048, 3): "5b8ef9b4ab419d06e74d5129ae7469ffde772aa99df4956cf42343369ae05a0f",
    (
        2**40,
        "user:client-0/12/3",
        17,
        128_256,
        0,
    ): "5cce47f423d1dc74a9a8ab649628126ce151d4e798ab2c3fb479c1eb08e9dd0a",
    (1, "head:0\0\n", 4097, 11, 10): "3fa971ed1df853ab3571ec75f98b16da8a1a5a83997f1275cd4ed26e31aa6e4a",
}
"""SHA-256 of the ids as little-endian 32-bit numbers, by seed, id, tokens, vocabulary, first."""


def run(python: str, *arguments: str, said: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """What a Python makes of its arguments, with the sources in reach and these variables set."""
    places = {"PYTHONPATH": os.pathsep.join(map(str, (HERE.parent, HERE))), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [python, *arguments],
        input=said, capture_output=True, text=True, env={**os.environ, **places, **variables}, check=False,
    )  # fmt: skip


@cache
def others() -> list[str]:
    """The other Pythons 3 in sight, one of each prefix: on the path, and beside the one that runs this."""
    folders = [*map(Path, os.get_exec_path()), *Path(sys.base_prefix).parent.glob("*/bin")]
    named = (path for folder in folders for path in sorted(folder.glob("python3.*")))
    found = {sys.prefix: sys.executable}
    for path in named:
        if re.fullmatch(r"python3\.\d+", path.name):
            told = run(str(path), "-c", "import sys; print(sys.prefix)")
            if told.returncode == 0:
                found.setdefault(told.stdout.strip(), str(path))
    return list(found.values())[1:] or pytest.skip("no other Python 3 on this machine")


# -- token ids ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("segment", SEGMENTS)
def test_token_ids_are_those_of_two_years_ago(segment: tuple[int, str, int, int, int]):
    seed, id, tokens, vocabulary, first = segment
    ids = Content(seed, vocabulary, first).segment(id, tokens)
    assert hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest() == SEGMENTS[segment]


def test_every_python_makes_the_same_token_ids_by_its_standard_library_alone():
    for python in (sys.executable, *others()):
        told = run(python, str(HERE / "token_ids.py"), said=json.dumps(list(SEGMENTS)), PYTHONPATH="")
        assert told.returncode == 0, f"{python}: {told.stderr}"
        assert json.loads(told.stdout) == list(SEGMENTS.values()), python


# -- draws -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, (1.0, 0.0, 2.5, 0.1)])
def test_values_are_drawn_as_numpy_chooses(weights: tuple[float, ...] | None):
    values = (5, 7, 11, 13)
    chances = None if weights is None else np.asarray(weights) / sum(weights)
    ours, numpys = stream(0, "draws"), stream(0, "draws")
    drawn = Empirical(values=values, weights=weights)
    assert [drawn.draw(ours) for _ in range(500)] == [
        int(numpys.choice(values, p=chances)) for _ in range(500)
    ]


def test_rates_do_not_hang_on_how_a_python_adds():
    """From 3.12 on `sum` makes up for rounding: there ten times 0.1 is 1, before it is a little less."""
    clients = [{"name": f"{i}", "share": 0.1} for i in range(10)]
    workload = load("mixed", {"clients": clients, "rate": 7.0, "misbehaviour": None})
    assert isinstance(workload, Synthetic)
    assert {client.rate for client in workload.resolved} == {7.0 * 0.1}


# -- ready workloads ---------------------------------------------------------------------------------------


def test_every_workload_that_needs_no_file_has_a_digest():
    assert golden_workloads.synthetic() == sorted(GOLDEN)


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_a_ready_workload_is_the_one_it_was(name: str):
    assert golden_workloads.digest(name) == GOLDEN[name]


def made_by(python: str, **variables: str) -> dict[str, str]:
    told = run(python, golden_workloads.__file__, *GOLDEN, **variables)
    assert told.returncode == 0, f"{python}: {told.stderr}"
    digests: dict[str, str] = json.loads(told.stdout)
    return digests


def test_another_process_with_other_hashes_makes_the_same_workloads():
    assert made_by(sys.executable, PYTHONHASHSEED="12345") == GOLDEN


def test_another_python_makes_the_same_workloads():
    one = "import golden_workloads as workloads; workloads.digest('blend')"
    able = [python for python in others() if run(python, "-c", one).returncode == 0]
    if not able:
        pytest.skip(f"none of {', '.join(others())} has the packages that workloads need")
    for python in able:
        assert made_by(python) == GOLDEN, python
