"""What a run leaves behind: a folder with manifest, requests, service log and more, written as one piece.

`requests.parquet`, one row per request of the trace, in trace order:
    id, client
    worker (str or null)                        the replica it came to, such as "replica-0"; null where it
                                                came to none, or where that is not known
    session (str or null)
    arrival, admitted, first_token, finish      seconds on the run's clock, NaN where it never happened;
                                                arrival = when it was sent, admitted = first admission
    prompt_tokens, output_tokens                tokens; output_tokens = tokens really generated
    cached_tokens                               prompt tokens found in the prefix cache at first admission
    recomputed_tokens                           tokens computed again after preemptions
    preemptions                                 times it lost its place
    weight                                      its client's weight
    status                                      "finished", "rejected" (never fits), "failed" (an error, or
                                                cut short), "starved" (never admitted although nothing else
                                                was left to run), "cancelled" (came after one that was not
                                                served; never sent)
    send_lag                                    seconds it was sent after it was due; 0 on a virtual clock
    error (str or null)                         what the engine or the connection said

`service.parquet`, the service log, in time order:
    time, client, worker (as above), extend, cached, recomputed, output
Input columns count at admission, output tokens as generated; a row with output may cover a whole stretch of
decode steps that ended at `time`. What an abort leaves uncomputed comes back as a negative `extend`,
and likewise what is not computed again after all as a negative `recomputed`.

`streams.parquet`, one row per chunk of a reply, those of one request in order of time:
    id, time, tokens
A chunk is what the client received at once, or in a simulated run what a request got in one stretch of
decode steps. A chunk of k tokens counts as k equal gaps of 1/k of the time since the chunk before it; the
first one has none (in a simulated run it is one token).

`sharing.parquet`, who found in the cache what whom had computed (see `suite.metrics.sharing`),
    payer, client, tokens
`manifest.json`: what was run, on what, with which versions and digests; see `Manifest`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from suite.errors import BadInput
from suite.files import write_folder

REQUEST_COLUMNS = (
    "id", "client", "worker", "session", "arrival", "admitted", "first_token", "finish",
    "prompt_tokens", "output_tokens", "cached_tokens", "recomputed_tokens", "preemptions", "weight",
    "status", "send_lag", "error",
)  # fmt: skip
SERVICE_COLUMNS = ("time", "client", "worker", "extend", "cached", "recomputed", "output")
STREAM_COLUMNS = ("id", "time", "tokens")
SHARING_COLUMNS = ("payer", "client", "tokens")
FRAMES = {
    "requests": REQUEST_COLUMNS,
    "service": SERVICE_COLUMNS,
    "streams": STREAM_COLUMNS,
    "sharing": SHARING_COLUMNS,
}
"""The tables of a run folder and their columns, named as in `Run`."""
OPTIONAL = ("streams", "sharing")
"""Those that a folder may lack."""
REPEATED = {"streams": ["id"]}
"""Columns that hold each text many times and are read as categories."""


@dataclass(frozen=True)
class Manifest:
    """What a run was. Everything but `times` and `command` is the same when the run is repeated.

    `cell` is the digest of all that decides the outcome; `labels` are the coordinates of the run in its
    experiment (workload, scheduler, swept parameters, seed), for grouping and captions.
    """

    cell: str
    labels: dict[str, Any]
    trace: dict[str, Any]
    """`digest` and `header` of the trace."""
    scheduler: dict[str, Any]
    """`name` as shown, `target` (module:Class or path:Class), `parameters` (defaults filled in), `source`
    (SHA-256 of its file), `router` (the same of it, None without one)."""
    backend: dict[str, Any]
    """The validated backend section of the experiment, defaults filled in."""
    engine: dict[str, Any]
    """What the backend says of itself and of the run: KV pool in tokens, steps, preemptions, ..."""
    versions: dict[str, str]
    command: str = ""
    invalid: list[str] = field(default_factory=list)
    """Why this run must not be shown as a result; empty if nothing is known against it."""
    times: dict[str, Any] = field(default_factory=dict)
    """Wall-clock facts: started, seconds. The only part that differs between identical runs."""


@dataclass(frozen=True)
class Run:
    """One finished run, in memory. Frames have the columns named in this module's docstring.

    `streams` is None where replies were not followed chunk by chunk, `sharing` where it was not worked out.
    """

    manifest: Manifest
    requests: pd.DataFrame
    service: pd.DataFrame
    streams: pd.DataFrame | None = None
    sharing: pd.DataFrame | None = None


def write(run: Run, folder: Path) -> None:
    """Write a run as one piece: the folder is there with everything in it, or as it was before.

    Raises `BadInput` naming the folder if it cannot be written.
    """
    write_folder(folder, partial(_fill, run))


def _fill(run: Run, folder: Path) -> None:
    for name in FRAMES:
        frame: pd.DataFrame | None = getattr(run, name)
        if frame is not None:
            frame.to_parquet(folder / f"{name}.parquet", index=False)
    (folder / "manifest.json").write_text(json.dumps(asdict(run.manifest), indent=2, sort_keys=True) + "\n")


def read(folder: Path) -> Run:
    """Read a run folder. Raises `BadInput` naming the file that is missing or damaged."""
    return Run(
        read_manifest(folder),
        _frame(folder, "requests"),
        _frame(folder, "service"),
        *(_frame(folder, name) if (folder / f"{name}.parquet").exists() else None for name in OPTIONAL),
    )


def read_manifest(folder: Path) -> Manifest:
    """Read only the manifest of a run folder."""
    path = folder / "manifest.json"
    try:
        return Manifest(**json.loads(path.read_text()))
    except FileNotFoundError:
        raise BadInput(f"{folder}: not a run folder: {path.name} is missing") from None
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(f"{path}: not a manifest of this suite: {error}") from None


def _frame(folder: Path, name: str) -> pd.DataFrame:
    path = folder / f"{name}.parquet"
    try:
        frame = pd.read_parquet(path, read_dictionary=REPEATED.get(name))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from None
    missing = [column for column in FRAMES[name] if column not in frame.columns]
    if missing:
        raise BadInput(f"{path}: columns missing: {', '.join(missing)}; run it again")
    return frame
