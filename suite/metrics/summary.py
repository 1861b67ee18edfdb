"""One flat row per run, and one row per client. `suite.metrics.glossary` says what every column means."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import TypeAlias

import pandas as pd

from suite.metrics import audit, balance, fairness, goodput, latency, throughput, vtc
from suite.metrics.fates import FATES, finished
from suite.metrics.goodput import Slo
from suite.metrics.latency import Samples
from suite.metrics.service import DEFAULT_WEIGHTS, KINDS, Curves, Weights, cost, curves, received
from suite.metrics.windows import Window, windows
from suite.results import Run

Value: TypeAlias = float | int | str | None
Pairs: TypeAlias = Iterator[tuple[str, Value]]
GROUP_PREFIX = {"all": "", "well": "well_", "misbehaving": "misbehaving_"}
AVERAGED = tuple(f"{measure}_{q}" for measure in ("ttft", "e2e", "program") for q in ("p50", "p99"))
"""Percentiles of each client that are averaged over the well-behaved ones, as in the DLPM paper."""
WORST = tuple(f"{measure}_{q}" for measure in ("ttft", "e2e") for q in ("p50", "p99"))
"""Percentiles of each client of which the largest is reported."""


def summarise(run: Run, slo: Slo | None = None, weights: Weights = DEFAULT_WEIGHTS) -> dict[str, Value]:
    """All numbers of a run by column name. None where a number does not exist, never a stand-in.

    Service is counted with `weights`, VTC's service difference too; the fairness bound is on the weights that
    the policy charges. Goodput is that under `slo`. The labels of the run are not in it.
    """
    requests = run.requests
    row: dict[str, Value] = {
        "clients": int(requests["client"].nunique()),
        **throughput.counts(requests),
        "makespan_s": throughput.makespan(requests),
        **throughput.rates(requests, weights),
        "rates_none": throughput.no_rates(requests),
        **throughput.hit_rates(requests, run.sharing),
    }
    row.update(_goodput(requests, slo))
    row.update(_fairness(run, weights))
    row.update(audit.audit(run))
    row["imbalance"] = balance.imbalance(run, weights)
    row.update(_service_difference(requests, weights))
    row.update(_latency(latency.samples(requests, run.streams), misbehaving(run)))
    return row


def clients(run: Run, weights: Weights = DEFAULT_WEIGHTS) -> pd.DataFrame:
    """One row per client of the trace, by name: its requests, tokens, service and latency.

    `client_service` and `actual_service` are of the finished requests of the whole run,
    `client_service_all_active` is over the window in which all clients are active (NaN if there is none).
    `paid_for_others` are tokens that others found in the cache and this client had computed last,
    `taken_from_others` those that it found and others had (NaN where it was not worked out). Latencies are
    infinite where so many requests were not served, NaN where there is none to speak of.
    """
    requests = run.requests.assign(**{status: run.requests["status"] == status for status in FATES})
    counted = {fate: (fate, "sum") for fate in (*FATES, "preemptions")}
    table = requests.groupby("client").agg(weight=("weight", "first"), requests=("id", "size"), **counted)
    table.insert(1, "misbehaving", table.index.isin(list(misbehaving(run))))
    return (
        table.join(_tokens(requests))
        .join(_shared(run, table.index))
        .join(_services(run, weights))
        .join(latency.by_client(latency.samples(requests, run.streams)))
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
    shares = client_weights(run.requests)
    for kind in KINDS:
        log = curves(run.service, list(shares.index), kind, weights)
        yield f"accumulated_gap_{kind}", fairness.accumulated_gap(log, shares)
        for name, window in found.items():
            empty = window.reason is not None
            wanted = None if empty else fairness.demand(run.requests, log, window, kind, weights)
            for measure, value in _measures(log, window, wanted, shares).items():
                if (measure, name) != ("jain_entitled", "whole"):  # 1 by definition: all is served in the end
                    yield f"{measure}_{kind}_{name}", value


def _measures(
    log: Curves, window: Window, wanted: pd.Series[float] | None, shares: pd.Series[float]
) -> dict[str, float | None]:
    """Fairness in a window, given each client's demand in it; without one, as the window is empty, none."""
    if wanted is None:
        return dict.fromkeys(("jain", "jain_entitled", "gap"))
    got = fairness.normalised(log, window, shares)
    return {
        "jain": fairness.jain(got),
        "jain_entitled": fairness.jain_entitled(log, window, wanted, shares),
        "gap": fairness.gap(got),
    }


def _goodput(requests: pd.DataFrame, slo: Slo | None) -> Pairs:
    reason = "no SLO is set" if slo is None else throughput.no_rates(requests)
    seconds = throughput.makespan(requests)
    yield "goodput_per_s", goodput.goodput(requests, slo, seconds) if slo and reason is None else None
    yield "goodput_none", reason
    yield "slo_attainment", goodput.attainment(requests, slo) if slo else None


def _latency(samples: Samples, misbehaving: Collection[str]) -> Pairs:
    for group, found in latency.by_group(samples, misbehaving).items():
        for column, value in found.items():
            yield GROUP_PREFIX[group] + column, value
    table = latency.by_client(samples)
    well = table[~table.index.isin(list(misbehaving))]
    for column in AVERAGED:
        yield f"well_avg_{column}", _number(well[column].mean())
    for column in WORST:
        yield f"worst_{column}", _number(table[column].max())


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


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


def _shared(run: Run, clients: pd.Index[str]) -> pd.DataFrame:
    """What each client paid for others, and what others paid for it, in tokens."""
    if run.sharing is None:
        return pd.DataFrame(math.nan, index=clients, columns=["paid_for_others", "taken_from_others"])
    between = run.sharing[run.sharing["payer"] != run.sharing["client"]]
    return pd.DataFrame(
        {
            "paid_for_others": between.groupby("payer")["tokens"].sum().reindex(clients, fill_value=0),
            "taken_from_others": between.groupby("client")["tokens"].sum().reindex(clients, fill_value=0),
        }
    )


def _services(run: Run, weights: Weights) -> pd.DataFrame:
    served = finished(run.requests)
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
