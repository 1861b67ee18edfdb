"""Every number the suite reports: formula, window, unit, source, and what it hides.

`GLOSSARY` names exactly the columns of `suite.metrics.summary.summarise`. The report and `suite metrics`
print it as it stands.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from suite.errors import BadInput, did_you_mean
from suite.metrics.fates import FATES
from suite.metrics.latency import STATISTICS
from suite.metrics.service import KINDS
from suite.metrics.summary import AVERAGED, GROUP_PREFIX, WORST


class Metric(NamedTuple):
    """One reported quantity, under one or several column names."""

    names: str
    """The columns, short: `gap_{a,b}` stands for `gap_a` and `gap_b`."""
    formula: str
    window: str
    unit: str
    source: str
    hides: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns, each by its name."""
        return tuple(column for name in self.names.split() for column in _expanded(name))


def _expanded(name: str) -> Iterator[str]:
    """All names that a name with choices in braces stands for, as a shell expands them."""
    parts = [part.split(",") for part in re.split(r"[{}]", name)]
    return map("".join, itertools.product(*parts))


def _any(names: Iterable[str]) -> str:
    return "{" + ",".join(names) + "}"


WINDOWS = ("whole", "all_active", "backlogged", "trimmed")
_KIND, _WINDOW, _STATISTIC = _any(KINDS), _any(WINDOWS), _any(STATISTICS)
_GROUP = _any(GROUP_PREFIX.values())
_WHOLE = "whole run"
_SERVED = "whole run, finished requests"
_COUNTED = (
    "whole run, all but rejected requests and those cancelled after one; pooled over all, the well-behaved "
    "or the misbehaving clients; starved and failed requests count as infinitely late"
)
_POOLED = "who waits: pooling lets the client with most requests dominate"
_DLPM = "DLPM, arXiv 2501.14312, section 6.1"
_VTC = "VTC, OSDI '24, arXiv 2401.00588"
_FIELD = "usual in the field"


GLOSSARY = (
    Metric(
        "clients requests " + " ".join(FATES),
        "clients of the trace; requests, and what became of them",
        _WHOLE,
        "count",
        "requests.parquet",
        "whose they were (clients.csv has that). Rejected: never fits the KV pool; failed: met an error or "
        "was cut short; starved: never admitted although nothing else was left to run; cancelled: came "
        "after one that was not served",
    ),
    Metric(
        "preemptions recomputed_tokens",
        "times a running request lost its place; tokens computed again because of it",
        _WHOLE,
        "count, tokens",
        "requests.parquet",
        "who was preempted; recomputed tokens are work, but nobody's service",
    ),
    Metric(
        "makespan_s",
        "last finish - first arrival",
        _SERVED,
        "s",
        _FIELD,
        "idle time: under light load it is the length of an open-loop trace, whatever the scheduler; and a "
        "scheduler that starves requests ends sooner",
    ),
    Metric(
        "{tokens,output_tokens,requests}_per_s",
        "(prompt + output tokens), output tokens, requests, each / makespan; none where a request starved",
        _SERVED,
        "1/s",
        f"{_VTC}, Table 2 (tokens)",
        "cached prompt tokens count as if they had been computed; the drain at the end is in the makespan",
    ),
    Metric(
        "{client,actual}_service_per_s",
        "(input + 2 output tokens) / makespan; client: all input tokens, actual: extend tokens only; none "
        "where a request starved",
        _SERVED,
        "service units / s",
        f"{_DLPM}: its throughput is client service",
        "client service rises with every cache hit though no more was computed; actual service falls with it",
    ),
    Metric(
        "rates_none",
        "why there are no rates and no hit rate: runs that served other requests cannot be compared by them",
        _WHOLE,
        "text",
        "this suite",
        "nothing",
    ),
    Metric(
        "hit_rate",
        "cached prompt tokens at first admission / prompt tokens; none where a request starved",
        _SERVED,
        "share",
        _FIELD,
        "hits of a resumed request after preemption; and that a cache can be hit often by serving few "
        "clients",
    ),
    Metric(
        "hit_rate_{own,shared}",
        "cached prompt tokens that the request's own client, or another, had computed last / prompt "
        "tokens; they add up to hit_rate (per client, in tokens: paid_for_others, taken_from_others of "
        "clients.csv)",
        _SERVED,
        "share",
        "this suite: suite.metrics.sharing",
        "who came first: what was evicted and computed again is paid for by the last to compute it; whole "
        "blocks only are cached, so their rounding counts; computing again after a preemption changes no "
        "payer; on a bare endpoint the order of admission is that of arrival, and a hit that nobody is "
        "seen to have paid for counts as own",
    ),
    Metric(
        "goodput_per_s slo_attainment",
        "requests that meet every bound of the SLO / makespan, and / all requests that could be served; "
        "starved and failed ones miss it. Goodput is none where a request starved",
        _WHOLE,
        "1/s, share",
        "DistServe, OSDI '24, arXiv 2401.09670, section 2",
        "by how much a bound was missed; whose requests missed it; TPOT is a mean over the reply and hides "
        "stalls",
    ),
    Metric(
        "goodput_none",
        "why there is no goodput",
        _WHOLE,
        "text",
        "this suite",
        "nothing",
    ),
    Metric(
        f"{_WINDOW}_s",
        "length of the window. whole: first arrival to last finish; all_active: every client has a request "
        "waiting or running; backlogged: every client has one waiting for its first admission; trimmed: from "
        "one tenth of the sending span to the last arrival. A starved request waits to the end of the run",
        "itself",
        "s",
        f"all_active: {_DLPM}; backlogged: {_VTC}, its theorems; the others: this suite",
        "how many pieces it is in; a short window makes every number in it fragile",
    ),
    Metric(
        f"{_WINDOW}_none vtc_difference_none",
        "why the window is empty and its numbers do not exist; nothing where they do",
        "as named",
        "text",
        "this suite",
        "nothing",
    ),
    Metric(
        f"jain_{_KIND}_{_WINDOW}",
        "(sum x)^2 / (n sum x^2), x = service / client weight of every client of the trace, zeros included; "
        "none where all are zero",
        "as named",
        "1/n to 1",
        f"Jain, Chiu, Hawe, DEC-TR-301 (1984); {_DLPM} publishes jain_client_all_active",
        "demand: clients that ask for unequal amounts score below 1 under any scheduler, most of all over "
        "the whole run; and all_active begins only when the last client has come",
    ),
    Metric(
        f"jain_entitled_{_KIND}_{_any(WINDOWS[1:])}",
        "Jain's index of received / entitled; entitled = delivered service split max-min by demand and "
        "weight",
        "as named, clients without demand in it left out; not the whole run, where all is served in the end",
        "1/n to 1",
        "max-min fairness: Bertsekas and Gallager, Data Networks, section 6.5.2",
        "when in the window a client was served; what a cache-blind scheduler failed to deliver to all "
        "alike; a starved request's output is unknown and taken for its client's average, or that of all",
    ),
    Metric(
        f"gap_{_KIND}_{_WINDOW}",
        "max_ij |x_i - x_j|, x = service / client weight; none where all are zero",
        "as named",
        "service units",
        "the quantity bounded by DLPM Theorem 4.1 and VTC Theorem 4.4 (there over one backlogged interval)",
        "it grows with the window, and which clients are active or backlogged when depends on the "
        "scheduler: a small gap in a short window says little",
    ),
    Metric(
        f"accumulated_gap_{_KIND}",
        "max_t max_ij |W_i(0, t) - W_j(0, t)|, W = service / client weight from the start of the run to t",
        _WHOLE,
        "service units",
        f"{_VTC}, section 5.1 (there as a curve over t)",
        "demand: it grows without a fault of the scheduler where one client asks for less",
    ),
    Metric(
        f"backlogged_gap_{_KIND}",
        "max over pairs of clients and intervals of |x_i - x_j|, x = service / client weight in the "
        "interval; none where a request starved",
        "every interval in which both have a request waiting for its first admission",
        "service units",
        f"DLPM, Theorem 4.1; {_VTC}, Theorem 4.4",
        "clients that are never backlogged: whom a scheduler serves at once has no gap to those who wait "
        "(Jain's index and the latencies show it); how often it comes near",
    ),
    Metric(
        "bound_service bound bound_gap",
        "what the policy's theorem allows as backlogged gap, and the gap found, of the pair of clients f, "
        "g that comes nearest to its bound. VTC: U/w_f + U/w_g; DLPM: 2 Q_u + U/w_f + U/w_g; behind D2LPM, "
        "and of VTC behind client-round-robin, that times the replicas; U = w_e L + w_q M, L = longest "
        "prompt, M = most output tokens that running requests had yet to generate; in service "
        "(bound_service) and weights as the policy charges",
        "as backlogged_gap",
        "text; service units",
        f"{_VTC}, Theorem 4.4; DLPM, arXiv 2501.14312, Theorems 4.1 and 5.1; suite.metrics.bounds",
        "how loose the bound is: it holds for the worst case, so a gap well below it may still be unfair",
    ),
    Metric(
        "bound_held bound_window bound_none bound_pairs",
        "whether bound_gap <= bound; who broke it, from when to when; why there is no bound to check; how "
        "many pairs of clients were looked at, if not all",
        "as backlogged_gap",
        "yes or no; text",
        "this suite: suite.metrics.audit",
        "on a real engine a request waits from when the client sent it, a little before the engine saw it",
    ),
    Metric(
        "worker_bound worker_gap worker_held worker_window",
        "the same of one replica among several, that which comes nearest to its bound: what its scheduler "
        "allows as gap in the service that it gave, U being of its own requests; the gap found; whether it "
        "is within the bound; who broke it when. Whatever the router; none with one replica",
        "every interval in which both have a request waiting for its first admission at that replica",
        "service units; yes or no; text",
        "DLPM, arXiv 2501.14312, Theorem 4.1, which the proof of Theorem 5.1 adds up over the replicas; "
        "suite.metrics.audit",
        "clients that wait at different replicas: nothing bounds how far these drift apart, so bound_gap may "
        "pass its bound while every replica holds its own",
    ),
    Metric(
        "imbalance",
        "largest / mean of the replicas' actual service: 1 if all gave alike, D if one of D gave all; none "
        "with one replica",
        _WHOLE,
        "1 to D",
        "usual in the field; suite.metrics.balance",
        "when: a replica may be overloaded early and idle later; and a replica with more cache hits computes "
        "less for as many requests",
    ),
    Metric(
        "vtc_difference_{max,mean,variance}",
        "sum_j min(s_max - s_j, |r_j - s_j|); s_j = rate of client service received, r_j = requested, each "
        "request's spread evenly from first token to finish; max, mean, variance over the windows",
        "60 s windows from k (T - 30 s) / 20, k = 1 .. 19, T = last arrival",
        "service units / s (variance: squared)",
        f"{_VTC}, section 5.1 and artifact",
        "prompt work is dated after the first token; aborted requests vanish; windows are closed and "
        "overlap; a starved request's output is taken for its client's average, or that of all",
    ),
    Metric(
        f"{_GROUP}ttft_{_STATISTIC}",
        "first token - arrival; mean and linear percentiles over requests",
        _COUNTED,
        "s",
        _FIELD,
        _POOLED,
    ),
    Metric(
        f"{_GROUP}tpot_{_STATISTIC}",
        "(finish - first token) / (output tokens - 1); mean and linear percentiles over requests, those of "
        "one token left out",
        _COUNTED,
        "s",
        _FIELD,
        f"stalls: it is a mean over the reply; {_POOLED}",
    ),
    Metric(
        f"{_GROUP}itl_{_STATISTIC}",
        "time between a token and the one before it; mean and linear percentiles over all gaps of all "
        "replies; a chunk of k tokens is k equal gaps, the first chunk has none",
        f"{_COUNTED}, each with as many gaps as a finished one has on average; none without streams.parquet",
        "s",
        _FIELD,
        "stalls within a chunk: an engine that sends rarely looks smooth; replies with many tokens weigh "
        "more",
    ),
    Metric(
        f"{_GROUP}e2e_{_STATISTIC}",
        "finish - arrival; mean and linear percentiles over requests",
        _COUNTED,
        "s",
        _FIELD,
        f"how long the reply was: asking for more tokens takes longer; {_POOLED}",
    ),
    Metric(
        f"{_GROUP}program_{_STATISTIC}",
        "last finish - first arrival of a session of two or more requests, think times included; mean and "
        "linear percentiles over sessions",
        _COUNTED,
        "s",
        f"{_DLPM}: its latency for tree of thoughts and judge",
        f"think time, which no scheduler can shorten; {_POOLED}",
    ),
    Metric(
        f"well_avg_{_any(AVERAGED)}",
        "mean over the well-behaved clients of each one's own percentile",
        "as the percentile's; infinite as soon as one client's is",
        "s",
        _DLPM,
        "which client: one that is served badly is averaged with the others",
    ),
    Metric(
        f"worst_{_any(WORST)}",
        "largest over all clients, the misbehaving too, of each one's own percentile",
        "as the percentile's",
        "s",
        "this suite",
        "a client of few requests: its P99 is its maximum; under a fair scheduler the worst is who floods",
    ),
)


def search(word: str) -> list[Metric]:
    """The metrics with this word, in upper or lower case, in a name or the formula.

    Raises `BadInput` if there are none.
    """
    sought = word.casefold()
    found = [m for m in GLOSSARY if sought in " ".join((m.names, *m.columns, m.formula)).casefold()]
    if not found:
        words = {part for metric in GLOSSARY for column in metric.columns for part in column.split("_")}
        raise BadInput(f"{word!r}: no metric has this word; {did_you_mean(word, words)}")
    return found
