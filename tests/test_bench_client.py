"""What the client benchmark reads and reckons; its figures are of the machine and not tested."""

from __future__ import annotations

import subprocess
import sys

import pandas as pd
import pytest

from suite import bench_client
from suite.backends.servers import ask
from suite.bench_client import _against_mock, _cells, _measured, _ours, _rows, _run
from suite.errors import BadInput


def test_the_mock_server_serves_what_is_asked_for_and_says_how_it_fared(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench_client, "TOKENS", 10)
    seen = []

    def client(url: str, streams: int) -> pd.DataFrame:
        seen.append(_ours(1)(url, streams))
        return seen[-1]

    found = _against_mock(client, 8)
    (frame,) = seen
    assert list(frame["tokens"]) == [10] * 8
    assert found.mock["tokens"] == 80
    assert 0 < found.mock["late_p99_s"] <= found.mock["late_max_s"]
    assert 0 < found.mock["cpu_share"] <= 1.5
    paced = frame["finish"] - frame["first_token"]
    assert paced.min() >= 8 * 0.02, "nine pauses of 20 ms, less what the first token was late"


def test_the_mock_server_answers_what_it_does_not_know_and_ends_with_its_input():
    command = [sys.executable, "-m", "suite.mock_server"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        with pytest.raises(OSError, match="404"):
            ask(f"http://127.0.0.1:{port}/metrics")
        assert ask(f"http://127.0.0.1:{port}/health") == {}
        report = ask(f"http://127.0.0.1:{port}/report")
        server.communicate(timeout=20)
    assert report["tokens"] == 0
    assert server.returncode == 0


def test_delivery_tpot_and_lag_are_reckoned_alike_for_every_client():
    frame = _rows(
        {
            "start_times": [100.0, 100.5],
            "ttfts": [0.5, 0.5],
            "latencies": [2.5, 4.5],
            "output_lens": [101, 101],
        }
    )
    assert list(frame["lag"]) == [0.0, 0.5]
    assert list(frame["finish"]) == [102.5, 105.0]
    found = _measured(frame, {"late_p99_s": 0.001, "late_max_s": 0.002, "cpu_share": 0.25})
    assert found.delivered == pytest.approx(202 / 5.0)
    assert found.tpot == pytest.approx((2.0 / 100 + 4.0 / 100) / 2)
    assert list(_cells(2, found)) == ["40", "40.4%", "30.00", "+50.0%", "500", "495", "1.0 / 2.0", "25%"]


def test_a_program_that_fails_is_told_with_its_last_line_and_gets_no_key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SUITE_API_KEY", "sk-secret")
    code = "import os, sys; print('!', file=sys.stderr); sys.exit(os.environ.get('SUITE_API_KEY', 'the end'))"
    with pytest.raises(BadInput, match="bench serve failed: the end; see what `suite engines` says"):
        _run([sys.executable, "-c", code], {})
