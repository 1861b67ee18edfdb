"""Runs written by hand, with known answers, and experiments made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from suite import results
from suite.results import REQUEST_COLUMNS, SERVICE_COLUMNS, Manifest, Run

NAN = float("nan")


def requests(*rows: dict[str, Any]) -> pd.DataFrame:
    """A requests frame; each row needs `client` and `arrival`, the rest has plain defaults."""
    full = [_request(i, **row) for i, row in enumerate(rows)]
    return pd.DataFrame(full, columns=list(REQUEST_COLUMNS))


def _request(i: int, client: str, arrival: float, **given: Any) -> dict[str, Any]:
    row = {
        "id": f"r{i}", "client": client, "worker": "replica-0", "session": None, "arrival": arrival,
        "admitted": arrival, "first_token": NAN, "finish": NAN, "prompt_tokens": 10, "output_tokens": 1,
        "cached_tokens": 0, "recomputed_tokens": 0, "preemptions": 0, "weight": 1.0, "status": "finished",
        "send_lag": 0.0, "error": None, **given,
    }  # fmt: skip
    if pd.isna(row["first_token"]):
        row["first_token"] = row["finish"]
    return row


def rejected(client: str, arrival: float) -> dict[str, Any]:
    """A request that never fits."""
    return {"client": client, "arrival": arrival, "admitted": NAN, "output_tokens": 0, "status": "rejected"}


def starved(client: str, arrival: float, **given: Any) -> dict[str, Any]:
    """A request that the scheduler never admits."""
    return {**rejected(client, arrival), "status": "starved", **given}


def cancelled(client: str, session: str) -> dict[str, Any]:
    """A request that is never sent, as one before it in its session was not served."""
    return {**rejected(client, NAN), "session": session, "status": "cancelled"}


def service(frame: pd.DataFrame) -> pd.DataFrame:
    """The log such requests leave: the prompt at admission, the output in one row at the finish."""
    rows = []
    for r in frame[frame["status"] == "finished"].itertuples():
        extend = r.prompt_tokens - r.cached_tokens
        rows.append((r.admitted, r.client, r.worker, extend, r.cached_tokens, 0, 0))
        rows.append((r.finish, r.client, r.worker, 0, 0, r.recomputed_tokens, r.output_tokens))
    return pd.DataFrame(rows, columns=list(SERVICE_COLUMNS)).sort_values(
        "time", kind="stable", ignore_index=True
    )


def run(
    frame: pd.DataFrame,
    misbehaving: tuple[str, ...] = (),
    streams: pd.DataFrame | None = None,
    sharing: pd.DataFrame | None = None,
    **labels: Any,
) -> Run:
    """A run of these requests."""
    names = {"workload": "chat", "scheduler": "fcfs", "seed": 0, **labels}
    names = {"policy": names["scheduler"].split(":")[0], **names}
    manifest = Manifest(
        cell="0" * 64,
        labels=names,
        trace={"digest": "1" * 64, "header": {"name": "hand-made", "misbehaving": list(misbehaving)}},
        scheduler={
            "name": names["scheduler"],
            "target": "baselines.x:X",
            "parameters": {},
            "source": "2" * 64,
            "router": None,
        },
        backend={"kind": "simulator"},
        engine={"kv_tokens": 1000},
        versions={"suite": "0"},
        command="suite run",
        times={"seconds": 1.5},
    )
    return Run(manifest, frame, service(frame), streams, sharing)


def experiment(folder: Path, *runs: Run, name: str = "hand-made") -> Path:
    """An experiment folder of these runs."""
    cells = []
    for one in runs:
        labels = one.manifest.labels
        cells.append(f"{len(cells):02d}-{labels['policy']}")
        results.write(one, folder / "cells" / cells[-1])
    record = {"name": name, "command": "suite run hand-made.yaml", "cells": cells}
    (folder / "experiment.json").write_text(json.dumps(record))
    return folder
