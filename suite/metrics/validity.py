"""Is a run a result? What was measured of how it was made, beside what it may be.

The limits on the client are those that the run was judged by when it was made, and stored with it. What only
an engine or the client can judge while it runs (a policy that is not the one asked for, two accounts that
disagree) is in the manifest's `invalid`; here it stands beside the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd

from suite.errors import BadInput
from suite.metrics.fates import FATES, finished
from suite.metrics.throughput import makespan
from suite.metrics.windows import windows
from suite.results import Manifest, Run

SHORT = 0.05
"""A window below this share of the makespan is too short to rank by."""

FALLEN_BACK = 0.01
"""Share of admission passes that an engine's own scheduler may order by another policy without mention."""

LOST = " was lost"
"""How the error of a request ends that was lost with its replica."""

_VIRTUAL = "virtual clock"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, as people read it. `limit` says what it may be, or "note": not judged."""

    name: str
    measured: str
    limit: str
    ok: bool = True


def checks(run: Run) -> list[Check]:
    """Every check of a run; the names are the same for every run.

    Raises `BadInput` if the run was made by a suite that did not store the client's limits.
    """
    return [
        *_client(run.manifest),
        _cache(run.manifest),
        _policy(run.manifest),
        _replicas(run.manifest),
        _lengths(run),
        _failures(run),
        _starved(run),
        _window(run),
        _judged(run.manifest),
    ]


def reasons(run: Run) -> list[str]:
    """Why the run is no result; empty if it is one."""
    if run.manifest.invalid:
        return list(run.manifest.invalid)
    return [f"{check.name}: {check.measured} ({check.limit})" for check in checks(run) if not check.ok]


# -- how it was sent -----------------------------------------------------------------------------------------


def _client(manifest: Manifest) -> Iterator[Check]:
    """Send lag, lag of the event loop (both P99), the busiest client process's share of a core."""
    health = manifest.engine.get("client")
    if health is None:
        yield from (Check(name, _VIRTUAL, "") for name in _CLIENT)
        return
    if "limits" not in health:
        cell = ", ".join(map(str, manifest.labels.values()))
        raise BadInput(f"{cell}: made by an older version of the suite; run it again")
    measured = {**health, "cpu_share": max(health["cpu_shares"], default=0.0)}
    for name, (key, shown) in _CLIENT.items():
        limit = health["limits"][key]
        yield Check(name, shown(measured[key]), f"at most {shown(limit)}", measured[key] <= limit)


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _core(share: float) -> str:
    return f"{share:.0%} of a core"


_CLIENT: dict[str, tuple[str, Callable[[float], str]]] = {
    "send lag, P99": ("send_lag_p99_s", _milliseconds),
    "client's loop lag, P99": ("loop_lag_p99_s", _milliseconds),
    "client's busiest process": ("cpu_share", _core),
}
"""Checks of the client, with the keys of the manifest's limits and how values are shown."""


# -- what served it ------------------------------------------------------------------------------------------


def _cache(manifest: Manifest) -> Check:
    """Whether nothing was in the prefix cache when the run began.

    A server whose cache is not proven to be empty serves no run: the engine counts what is in it after the
    reset or, where it is not asked, a reset has made a cached prompt miss.
    """
    name, limit = "cache at the start", "empty"
    if manifest.engine.get("client") is None:
        return Check(name, "made new", limit)
    if "policy" not in manifest.engine:
        return Check(name, "not known: the server is not the suite's", "note")
    facts = manifest.engine["policy"]
    counted = [
        f"{facts[key]} {key.replace('_', ' ')}" for key in ("cached_blocks", "cached_tokens") if key in facts
    ]
    cold = all(not facts.get(key) for key in ("cached_blocks", "cached_tokens"))
    return Check(name, ", ".join(counted) or "a reset made a cached prompt miss", limit, cold)


def _policy(manifest: Manifest) -> Check:
    """Which policy ordered each pass; of an engine's own it is counted, as it may go by another one."""
    name, asked = "policy at work", str(manifest.scheduler["target"])
    passes = Counter(manifest.engine.get("active", {}))
    if total := passes.total():
        counts = [
            f"{policy} in {count / total:.1%} of {total:,} passes" for policy, count in passes.most_common()
        ]
        return Check(name, ", ".join(counts), f"note: {asked.partition(':')[2]} in {1 - FALLEN_BACK:.0%}")
    facts = manifest.engine.get("policy")
    if facts is None:
        simulated = manifest.engine.get("client") is None
        return Check(name, "in every step" if simulated else "the server's own, not seen", "note")
    same = facts.get("source") == manifest.scheduler["source"]
    digest = str(facts.get("source", ""))[:8]
    measured = f"{facts.get('target')}, source {digest}" if digest else str(facts.get("target"))
    return Check(name, measured, "the one asked for", same)


def _replicas(manifest: Manifest) -> Check:
    """How many replicas served it, and whether all were there throughout unless losing one was asked for."""
    workers: dict[str, dict[str, int]] = manifest.engine.get("workers", {})
    retries, losses = manifest.engine.get("retries", 0), sum(one.get("losses", 0) for one in workers.values())
    asked = _losses_asked(manifest)
    notes = [f"{losses} lost{', as asked' * asked}"] * bool(losses) + [f"{retries} retries"] * bool(retries)
    measured = ", ".join([str(manifest.engine.get("replicas", 1)), *notes])
    return Check("replicas", measured, "none lost unasked", not retries and (asked or not losses))


def _losses_asked(manifest: Manifest) -> bool:
    """True if the settings say that replicas are to be lost in the run."""
    return bool(manifest.backend.get("losses"))


# -- what became of it ---------------------------------------------------------------------------------------


def _lengths(run: Run) -> Check:
    """Replies that finished with another length than asked for; where the engine obeys, such a one fails."""
    other = run.manifest.engine.get("replies_of_other_length", 0)
    return Check("replies of another length", _of(other, len(finished(run.requests))), "note")


def _failures(run: Run) -> Check:
    """Requests that ended in an error, but for a loss that was asked for; and what else was not served."""
    counts = {fate: int((run.requests["status"] == fate).sum()) for fate in FATES}
    others = [f"{counts[fate]:,} {fate}" for fate in ("rejected", "cancelled") if counts[fate]]
    measured = ", ".join([_of(counts["failed"], len(run.requests)), *others])
    errors = run.requests.loc[run.requests["status"] == "failed", "error"].astype(str)
    excused = errors.str.endswith(LOST) if _losses_asked(run.manifest) else pd.Series(False, errors.index)
    return Check("failed requests", measured, "none", bool(excused.all()))


def _starved(run: Run) -> Check:
    """Requests that the scheduler never admitted: its doing, so the run is a result, though no good one."""
    starved = int((run.requests["status"] == "starved").sum())
    return Check("starved requests", _of(starved, len(run.requests)), "note: infinite latency")


def _window(run: Run) -> Check:
    """How long all clients were active, in which Jain's index is taken; a short one is not ranked by."""
    name, limit = "all clients active", f"note: {SHORT:.0%} to rank Jain by"
    window, whole = windows(run.requests)["all_active"], makespan(run.requests)
    if window.reason is not None:
        return Check(name, f"never: {window.reason}", limit)
    share = f"{window.seconds / whole:.0%} of the makespan" if whole else "and no request was served"
    return Check(name, f"{window.seconds:.3g} s, {share}", limit)


def _judged(manifest: Manifest) -> Check:
    """What was held against the run when it was made."""
    return Check("judged when made", "; ".join(manifest.invalid) or "valid", "valid", not manifest.invalid)


def _of(some: int, all_of_them: int) -> str:
    return f"{some:,} of {all_of_them:,}"
