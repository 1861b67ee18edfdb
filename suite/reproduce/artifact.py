"""The raw results of VTC's authors (Ying1123/VTC-artifact) as the frames that the metrics read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from suite.results import REQUEST_COLUMNS
from workloads.reading.recorded import located
from workloads.vtc_trace import Response, published


def results(name: str) -> tuple[pd.DataFrame, float]:
    """`requests` of the result file of that name, where the public traces are."""
    return requests(located(file(name)))


def file(name: str) -> str:
    """Where a result file lies in the folder of public traces."""
    return f"vtc/results/{name}.jsonl"


def requests(path: Path) -> tuple[pd.DataFrame, float]:
    """The requests of a published run, as in `suite.results`, and for how many seconds they arrived.

    Aborted requests are "rejected" and have no times. When a request was admitted is not published; its first
    token stands for that.
    """
    run = published(path)
    rows = [_row(i, one) for i, one in enumerate(run.responses)]
    return pd.DataFrame(rows, columns=list(REQUEST_COLUMNS)), run.duration


def _row(number: int, one: Response) -> dict[str, Any]:
    never = float("nan")
    first_token = one.req_time + one.first_token_latency if one.served else never
    return {
        "id": f"row-{number:06}",
        "client": one.client,
        "worker": None,
        "session": None,
        "arrival": one.req_time,
        "admitted": first_token,
        "first_token": first_token,
        "finish": one.req_time + one.request_latency if one.served else never,
        "prompt_tokens": one.prompt_len,
        "output_tokens": one.output_len if one.served else 0,
        "cached_tokens": 0,
        "recomputed_tokens": 0,
        "preemptions": 0,
        "weight": 1.0,
        "status": "finished" if one.served else "rejected",
        "send_lag": 0.0,
        "error": None,
    }
