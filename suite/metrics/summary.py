"""One flat row per run, and one row per client. `suite.metrics.glossary` says what every column means."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TypeAlias

import pandas as pd

from suite.metrics import fairness, latency, throughput, vtc
from suite.metrics.service import DEFAULT_WEIGHTS, KINDS, Curves, Kind, Weights, cost, curves, received
from suite.metrics.windows import Window, windows
from suite.results import Run

Value: TypeAlias = float | int | str | None
Pairs: TypeAlias = Iterator[tuple[str, Value]]
GROUP_PREFIX = {"all": "", "well": "well_", "misbehaving": "misbehaving_"}


def summarise(run: Run, weights: Weights = DEFAULT_WEIGHTS) -> dict[str, Value]:
    """All numbers of a run by column name. None where a number does not exist, never a stand-in.

    Service is counted with `weights`, VTC's service difference too. The labels of the run are not in it.
    """
    requests = run.requests
    row: dict[str, Value] = {
        "clients": int(requests["client"].nunique()),
        **throughput.counts(requests),
        "makespan_s": throughput.makespan(requests),
        **throughput.rates(requests, weights),
        "hit_rate": throughput.hit_rate(requests),
    }
    row.update(_fairness(run, weights))
    row.update(_service_difference(requests, weights))
    for group, found in latency.by_group(requests, misbehaving(run)).items():
        row.update({GROUP_PREFIX[group] + column: value for column, value in found.items()})
    return row


def clients(run: Run, weights: Weights = DEFAULT_WEIGHTS) -> pd.DataFrame:
    """One row per client of the trace, by name: its requests, tokens, service and latency.

    `client_service` and `actual_service` are over the whole run, `client_service_all_active` over the window
    in which all clients are active (NaN if there is none); latencies are NaN for a client never served.
    """
    requests = run.requests.assign(
        **{status: run.requests["status"] == status for status in throughput.FATES}
    )
    table = requests.groupby("client").agg(
        weight=("weight", "first"),
        requests=("id", "size"),
        finished=("finished", "sum"),
        rejected=("rejected", "sum"),
        failed=("failed", "sum"),
        cancelled=("cancelled", "sum"),
        preemptions=("preemptions", "sum"),
    )
    table.insert(1, "misbehaving", table.index.isin(list(misbehaving(run))))
    return (
        table.join(_tokens(requests))
        .join(_services(run, weights))
        .join(latency.by_client(requests))
        .reset_index()
    )


def misbehaving(run: Run) -> Collection[str]:
    """Names of the clients that the trace's header calls misbehaving."""
    return tuple(run.manifest.trace.get("header", {}).get("misbehaving", ()))


def client_weights(requests: pd.DataFrame) -> pd.Series[float]:
    """Weight of each client of the trace, sorted by name."""
    return requests.groupby("client")["weight"].first().astype(float)


def _fairness(run: Run, weights: Weights) -> Pairs:
    found = windows(run.requests)
    for name, window in found.items():
        yield f"{name}_s", window.seconds
        yield f"{name}_none", window.reason
    for kind in KINDS:
        log = curves(run.service, list(client_weights(run.requests).index), kind, weights)
        for name, window in found.items():
            for measure, value in _measures(run.requests, log, window, kind, weights).items():
                if (measure, name) != ("jain_entitled", "whole"):  # 1 by definition: all is served in the end
                    yield f"{measure}_{kind}_{name}", value


def _measures(
    requests: pd.DataFrame, log: Curves, window: Window, kind: Kind, weights: Weights
) -> dict[str, float | None]:
    if window.reason is not None:
        return dict.fromkeys(("jain", "jain_entitled", "gap"))
    shares = client_weights(requests)
    got = fairness.normalised(log, window, shares)
    wanted = fairness.demand(requests, log, window, kind, weights)
    return {
        "jain": fairness.jain(got),
        "jain_entitled": fairness.jain_entitled(log, window, wanted, shares),
        "gap": fairness.gap(got),
    }


def _service_difference(requests: pd.DataFrame, weights: Weights) -> Pairs:
    span = float(requests["arrival"].max())
    needed = vtc.WARM_UP + vtc.WINDOW
    reason = None
    if not span >= needed:
        reason = f"arrivals end at {span:g} s; VTC's windows need {needed:g} s"
    elif requests["first_token"].isna().all():
        reason = "no request was served"
    found = None if reason else vtc.service_difference(requests, vtc.starts(span), weights=weights)
    for statistic in vtc.ServiceDifference._fields:
        yield f"vtc_difference_{statistic}", getattr(found, statistic, None)
    yield "vtc_difference_none", reason


def _tokens(requests: pd.DataFrame) -> pd.DataFrame:
    served = requests[requests["finished"]]
    tokens = served.groupby("client")[
        ["prompt_tokens", "output_tokens", "cached_tokens", "recomputed_tokens"]
    ].sum()
    all_clients = tokens.reindex(sorted(requests["client"].unique()), fill_value=0)
    hits = (all_clients["cached_tokens"] / all_clients["prompt_tokens"]).where(
        all_clients["prompt_tokens"] > 0
    )
    return all_clients.assign(hit_rate=hits)


def _services(run: Run, weights: Weights) -> pd.DataFrame:
    served = run.requests[run.requests["status"] == "finished"]
    names = sorted(run.requests["client"].unique())
    window = windows(run.requests)["all_active"]
    log = curves(run.service, names, "client", weights)
    columns = {
        f"{kind}_service": cost(served, kind, weights)
        .groupby(served["client"])
        .sum()
        .reindex(names, fill_value=0.0)
        for kind in KINDS
    }
    shared = received(log, window.intervals) if window.reason is None else float("nan")
    return pd.DataFrame(columns).assign(client_service_all_active=shared)
