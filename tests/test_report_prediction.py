"""What the simulator predicted beside what a real engine did."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_runs import experiment, requests, run

from suite.errors import BadInput
from suite.metrics.service import cost
from suite.report import prediction


def served(scheduler: str, seconds: float, cached: int = 0, seed: int = 0):
    """One request of 10 prompt tokens and one output token that takes so long."""
    frame = requests({"client": "a", "arrival": 0, "finish": seconds, "cached_tokens": cached})
    assert cost(frame, "client").sum() == 12
    return run(frame, scheduler=scheduler, seed=seed)


def test_errors_are_relative_to_the_real_run(tmp_path: Path) -> None:
    real = experiment(tmp_path / "real", served("vtc", 4.0), served("dlpm", 2.0, cached=5))
    predicted = experiment(tmp_path / "predicted", served("dlpm", 2.5, cached=4), served("vtc", 4.0))
    found = prediction.errors(real, predicted).set_index("scheduler")
    assert found.loc["vtc", list(prediction.MEASURES)].tolist() == [0, 0, 0, 0]
    assert found.loc["dlpm", "client_service_per_s"] == pytest.approx(2.0 / 2.5 - 1)
    assert found.loc["dlpm", "e2e_mean"] == pytest.approx(0.25)
    assert found.loc["dlpm", "hit_rate"] == pytest.approx(-0.1)


def test_errors_that_cancel_out_show_their_size(tmp_path: Path) -> None:
    real = experiment(tmp_path / "real", served("vtc", 4.0), served("vtc", 4.0, seed=1))
    predicted = experiment(tmp_path / "predicted", served("vtc", 5.0), served("vtc", 3.0, seed=1))
    table = prediction.table(prediction.errors(real, predicted))
    texts = [next(iter(column.cells)) for column in table.columns]
    assert texts[5] == "+0.0 % (25.0 %)"


def test_folders_without_a_common_cell(tmp_path: Path) -> None:
    real = experiment(tmp_path / "real", served("vtc", 4.0))
    other = experiment(tmp_path / "other", served("dlpm", 4.0))
    with pytest.raises(BadInput, match="holds no cell of"):
        prediction.errors(real, other)
