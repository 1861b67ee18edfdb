"""Every number the suite reports: formula, window, unit, source, and what it hides.

`GLOSSARY` names exactly the columns of `suite.metrics.summary.summarise`. The report prints it as it stands.
"""

from __future__ import annotations

from typing import NamedTuple

from suite.metrics.latency import COLUMNS as LATENCIES
from suite.metrics.service import KINDS

WINDOWS = ("whole", "all_active", "backlogged", "trimmed")
GROUPS = ("", "well_", "misbehaving_")
_SERVED = "whole run, served requests only"
_DLPM = "DLPM, arXiv 2501.14312, section 6.1"
_VTC = "VTC, OSDI '24, arXiv 2401.00588"
_FIELD = "usual in the field"


class Metric(NamedTuple):
    """One reported quantity, under one or several column names."""

    columns: tuple[str, ...]
    formula: str
    window: str
    unit: str
    source: str
    hides: str


GLOSSARY = (
    Metric(
        ("clients", "requests", "finished", "rejected", "failed", "cancelled"),
        "clients of the trace; requests by what became of them",
        "whole run",
        "count",
        "requests.parquet",
        "rejected requests never fit the KV pool, failed ones met an error or were cut short, cancelled ones "
        "came after one that was not served; none of them counts in any rate or latency below",
    ),
    Metric(
        ("preemptions", "recomputed_tokens"),
        "times a running request lost its place; tokens computed again because of it",
        "whole run",
        "count, tokens",
        "requests.parquet",
        "who was preempted; recomputed tokens are work, but nobody's service",
    ),
    Metric(
        ("makespan_s",),
        "last finish - first arrival",
        _SERVED,
        "s",
        _FIELD,
        "idle time: under light load it is the length of an open-loop trace, whatever the scheduler",
    ),
    Metric(
        ("tokens_per_s", "output_tokens_per_s", "requests_per_s"),
        "(prompt + output tokens), output tokens, requests, each / makespan",
        _SERVED,
        "1/s",
        f"{_VTC}, Table 2 (tokens)",
        "cached prompt tokens count as if they had been computed; the drain at the end is in the makespan",
    ),
    Metric(
        ("client_service_per_s", "actual_service_per_s"),
        "(input + 2 output tokens) / makespan; client: all input tokens, actual: extend tokens only",
        _SERVED,
        "service units / s",
        f"{_DLPM}: its throughput is client service",
        "client service rises with every cache hit though no more was computed; actual service falls with it",
    ),
    Metric(
        ("hit_rate",),
        "cached prompt tokens at first admission / prompt tokens",
        _SERVED,
        "share",
        _FIELD,
        "hits of a resumed request after preemption; whose prefix was hit",
    ),
    Metric(
        tuple(f"{window}_s" for window in WINDOWS),
        "length of the window",
        "see suite.metrics.windows",
        "s",
        "whole run; all clients active (DLPM); all backlogged (VTC's theorems); trimmed of warm-up and drain",
        "how many pieces it is in; a short window makes every number in it fragile",
    ),
    Metric(
        (*(f"{window}_none" for window in WINDOWS), "vtc_difference_none"),
        "why the window is empty and its numbers do not exist; nothing where they do",
        "as named",
        "text",
        "this suite",
        "nothing",
    ),
    Metric(
        tuple(f"jain_{kind}_{window}" for kind in KINDS for window in WINDOWS),
        "(sum x)^2 / (n sum x^2), x = service / client weight of every client of the trace, zeros included",
        "as named",
        "1/n to 1",
        f"Jain et al. 1984; {_DLPM} publishes jain_client_all_active",
        "demand: clients that ask for unequal amounts score below 1 under any scheduler, most of all over "
        "the whole run; and all-active begins only when the last client has come",
    ),
    Metric(
        tuple(f"jain_entitled_{kind}_{window}" for kind in KINDS for window in WINDOWS[1:]),
        "Jain's index of received / entitled; entitled = delivered service split max-min by demand, weight",
        "as named, clients without demand in it left out; not the whole run, where all is served in the end",
        "1/n to 1",
        "max-min fairness: Bertsekas and Gallager, section 6.5.2",
        "when in the window a client was served; what a cache-blind scheduler failed to deliver to all alike",
    ),
    Metric(
        tuple(f"gap_{kind}_{window}" for kind in KINDS for window in WINDOWS),
        "max_ij |x_i - x_j|, x = service / client weight",
        "as named",
        "service units",
        "the quantity bounded by DLPM Theorem 4.1 and VTC Theorem 4.4 (there over one backlogged interval)",
        "it grows with the window; compare only runs of one trace",
    ),
    Metric(
        ("vtc_difference_max", "vtc_difference_mean", "vtc_difference_variance"),
        "sum_j min(s_max - s_j, |r_j - s_j|); s_j = rate of client service received, r_j = requested, each "
        "request's spread evenly from first token to finish; max, mean, variance over the windows",
        "60 s windows from k (T - 30 s) / 20, k = 1 .. 19, T = last arrival",
        "service units / s (variance: squared)",
        f"{_VTC}, section 5.1 and artifact",
        "prompt work is dated after the first token; aborted requests vanish; windows are closed and overlap",
    ),
    Metric(
        tuple(group + column for group in GROUPS for column in LATENCIES),
        "ttft = first token - arrival; tpot = (finish - first token) / (output tokens - 1); "
        "e2e = finish - arrival; mean and linear percentiles",
        _SERVED + "; pooled over all, the well-behaved or the misbehaving clients",
        "s",
        f"{_FIELD}; the DLPM paper averages per-client percentiles instead of pooling",
        "requests never served; pooling lets the client with most requests dominate",
    ),
)
