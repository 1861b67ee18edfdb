"""VTC's service difference: the published rows of its Table 2, and a case counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_runs import requests

from suite.metrics import throughput, vtc
from suite.reproduce import artifact


@pytest.mark.parametrize(
    ("scheduler", "largest", "mean", "variance", "tokens"),
    [("FCFS", "759.97", "433.53", "32112.00", "777"), ("VTC", "368.40", "251.66", "6549.16", "779")],
)
def test_table_2_of_the_vtc_paper(traces, scheduler, largest, mean, variance, tokens):
    path = traces / "vtc" / "results" / f"{scheduler}_real.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    frame, duration = artifact.requests(path)
    found = vtc.service_difference(frame, vtc.starts(duration))
    assert f"{found.max:.2f}" == largest
    assert f"{found.mean:.2f}" == mean
    assert f"{found.variance:.2f}" == variance
    assert f"{throughput.rates(frame)['tokens_per_s']:.0f}" == tokens


def test_windows_of_the_paper_start_28_5_seconds_apart():
    assert np.allclose(vtc.starts(600), 28.5 * np.arange(1, 20))


def test_service_is_spread_between_first_token_and_finish():
    frame = requests(
        {
            "client": "a",
            "arrival": 0,
            "first_token": 5,
            "finish": 15,
            "prompt_tokens": 20,
            "output_tokens": 10,
        },
        {
            "client": "b",
            "arrival": 1,
            "first_token": 10,
            "finish": 10,
            "prompt_tokens": 8,
            "output_tokens": 1,
        },
        {"client": "b", "arrival": 2, "finish": float("nan"), "status": "cancelled"},
    )
    # [0, 10]: a asked 40 and got half of it, b asked 10 and got all; difference min(20 - 10, 0) + 0 = 0.
    # [12, 22]: a got 12 without asking, b nothing: min(0, 12) + min(12, 0) = 0.
    assert vtc.service_difference(frame, np.array([0.0, 12.0]), window=10) == (0, 0, 0)
    # [4, 9]: a got 16 of nothing asked in it, b neither asked nor got.
    # [0, 6]: a got 4 of 40, b asked 10 and got nothing: b's min(4, 10), per second of window.
    found = vtc.service_difference(frame, np.array([0.0]), window=6)
    assert found.max == pytest.approx(4 / 6)
    two = vtc.service_difference(frame, np.array([0.0, 20.0]), window=6)
    assert two.mean == pytest.approx(2 / 6)
    assert two.variance == pytest.approx((2 / 6) ** 2)
