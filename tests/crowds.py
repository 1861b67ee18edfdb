"""Runs with several clients, drawn and shown by the tests of figures and page."""

from __future__ import annotations

from typing import Any

import pandas as pd
from synthetic_runs import requests, run

from suite.results import Run

HOSTILE = ("<script>alert(1)</script>", "$\\frac{1}$", "_hidden", "{{ 7 * 7 }}", "a\nb" + "x" * 99, "客户")


def crowd(scheduler: str, clients: tuple[str, ...], seed: int = 0, speed: float = 1.0, **labels: Any) -> Run:
    """Each client sends three requests; they are served one after the other. The first client misbehaves.

    Each has 4 output tokens, the first a tenth of a second after it began; half of each prompt was cached,
    computed by the first client.
    """
    rows, now = [], 0.0
    for k in range(3):
        for i, client in enumerate(clients):
            arrival = 2.0 * k + 0.01 * i
            start = max(now, arrival)
            now = start + 0.5 / speed
            times = {"arrival": arrival, "admitted": start, "first_token": start + 0.1, "finish": now}
            rows.append(
                {"client": client, **times, "prompt_tokens": 10 + i, "output_tokens": 4, "cached_tokens": 5}
            )
    frame = requests(*rows)
    return run(
        frame,
        misbehaving=clients[:1],
        streams=_streams(frame),
        sharing=pd.DataFrame({"payer": clients[0], "client": clients, "tokens": 15}),
        scheduler=scheduler,
        seed=seed,
        **labels,
    )


def _streams(frame: pd.DataFrame) -> pd.DataFrame:
    """Two chunks a request: the first token, and the rest at once."""
    first = pd.DataFrame({"id": frame["id"], "time": frame["first_token"], "tokens": 1})
    rest = pd.DataFrame({"id": frame["id"], "time": frame["finish"], "tokens": 3})
    return pd.concat([first, rest]).sort_values(["id", "time"], ignore_index=True)
