"""The replay client beside `vllm bench serve`, one after the other against the same paced mock server.

Every stream is due at once and gets a token each 20 ms, so what should come out is known; the mock server
says how late it was itself. Numbers hold for the machine and for what else it did.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from rich.table import Column, Table

from suite import dialect, environments, models
from suite.backends.servers import ask
from suite.content import Content
from suite.environments import Environment
from suite.errors import BadInput
from suite.mock_server import INTERVAL
from suite.replay import Target, replay
from suite.trace import Header, Request, Segment, Trace

STREAMS = (256, 512, 1024)
TOKENS = 500
"""Output tokens of a stream: ten seconds."""
PROMPT = 16
PROCESSES = (1, 2)
"""Client processes of ours; two leave the mock server none of two cores to itself."""
PATIENCE = 600.0
"""Seconds that a client may take."""

Client: TypeAlias = Callable[[str, int], pd.DataFrame]
"""Runs so many streams against a URL. One row per stream: sent, lag, first_token, finish (s), tokens."""


@dataclass(frozen=True)
class Measured:
    """What a client made of its streams. The mock server's words are in `mock`."""

    delivered: float
    """Tokens/s from the first request sent to the last token."""
    tpot: float
    """Mean over streams, in seconds."""
    ttft: float
    lag: float
    """P99 of the seconds by which a request was sent late."""
    mock: Mapping[str, float]


def client(streams: Sequence[int], say: Callable[[str], None]) -> Table:
    """Measure every client at each number of streams; `say` is told what is being done.

    Raises `BadInput` if no vLLM is installed, or its client fails.
    """
    vllm = environments.find("vllm", "cpu")
    clients: dict[str, Client] = {f"suite, {n} process{'es' if n > 1 else ''}": _ours(n) for n in PROCESSES}
    clients[f"vllm bench serve {vllm.version}"] = _vllm_bench(vllm, models.model("tiny").path)
    table = _table()
    for number in streams or STREAMS:
        for name, run in clients.items():
            say(f"{number} streams, {name}")
            table.add_row(f"{number:,}", name, *_cells(number, _against_mock(run, number)))
    return table


def _table() -> Table:
    columns = (
        "delivered tokens/s", "of offered", "TPOT ms", "TPOT error", "TTFT ms", "send lag P99 ms",
        "mock late P99 / max ms", "mock CPU",
    )  # fmt: skip
    return Table(
        Column("streams", justify="right"), "client", *(Column(name, justify="right") for name in columns),
        title=f"Clients on a paced mock server, {1e3 * INTERVAL:g} ms a token, {TOKENS} tokens a stream",
        caption="All streams are due at once. Offered is the rate of all streams together; delivered counts "
        "from the first request sent to the last token. Where the mock server itself was late, a row says "
        "little of its client.",
    )  # fmt: skip


def _cells(streams: int, found: Measured) -> Iterable[str]:
    offered = streams / INTERVAL
    yield f"{found.delivered:,.0f}"
    yield f"{found.delivered / offered:.1%}"
    yield f"{1e3 * found.tpot:.2f}"
    yield f"{found.tpot / INTERVAL - 1:+.1%}"
    yield f"{1e3 * found.ttft:.0f}"
    yield f"{1e3 * found.lag:.0f}"
    yield f"{1e3 * found.mock['late_p99_s']:.1f} / {1e3 * found.mock['late_max_s']:.1f}"
    yield f"{found.mock['cpu_share']:.0%}"


def _against_mock(run: Client, streams: int) -> Measured:
    """Run a client against a mock server of its own, in another process."""
    command = [sys.executable, "-m", "suite.mock_server"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0
    ) as server:
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}"
            return _measured(run(url, streams), ask(f"{url}/report"))
        finally:
            server.kill()


def _measured(seen: pd.DataFrame, mock: Mapping[str, float]) -> Measured:
    seconds = seen["finish"].max() - seen["sent"].min()
    tpot = (seen["finish"] - seen["first_token"]) / (seen["tokens"] - 1)
    ttft = (seen["first_token"] - seen["sent"]).mean()
    lag = np.percentile(seen["lag"], 99)
    return Measured(float(seen["tokens"].sum() / seconds), float(tpot.mean()), float(ttft), float(lag), mock)


def _ours(processes: int) -> Client:
    def run(url: str, streams: int) -> pd.DataFrame:
        requests = (Request(str(i), "bench", 0.0, (Segment(str(i), PROMPT),), TOKENS) for i in range(streams))
        seen = replay(
            Trace(Header("bench", 0, "bench"), tuple(requests)),
            Content(0, 2048),
            Target(url, "mock", "vllm", "completions", "tokens"),
            processes=processes, progress=lambda share, note="": None, timeout_s=PATIENCE,
        ).requests  # fmt: skip
        names = {"arrival": "sent", "send_lag": "lag", "output_tokens": "tokens"}
        return seen.rename(columns=names)[["sent", "lag", "first_token", "finish", "tokens"]]

    return run


def _vllm_bench(vllm: Environment, tokenizer: str) -> Client:
    def run(url: str, streams: int) -> pd.DataFrame:
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result.json"
            options: dict[str, Any] = {
                "backend": "vllm", "base-url": url, "endpoint": "/v1/completions", "model": "mock",
                "tokenizer": tokenizer, "dataset-name": "random", "random-input-len": PROMPT,
                "random-output-len": TOKENS, "num-prompts": streams, "request-rate": "inf",
                "ready-check-timeout-sec": 0, "result-dir": folder, "result-filename": result.name,
            }  # fmt: skip
            flags = ["--ignore-eos", "--save-result", "--save-detailed", "--disable-tqdm"]
            pairs = [text for key, value in options.items() for text in (f"--{key}", str(value))]
            command = [str(vllm.python), "-m", "vllm.entrypoints.cli.main", "bench", "serve", *pairs, *flags]
            _run(command, vllm.variables)
            return _rows(json.loads(result.read_text()))

    return run


def _run(command: Sequence[str], variables: Mapping[str, str]) -> None:
    """Run an engine's program to its end, silently. Raises `BadInput` with its last line if it fails."""
    ours = {key: value for key, value in os.environ.items() if key != dialect.API_KEY}
    offline = {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    ended = subprocess.run(
        command, env={**ours, **variables, **offline}, capture_output=True, text=True, timeout=PATIENCE
    )
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["no word"])[-1]
        raise BadInput(f"{command[0]}: bench serve failed: {last}; see what `suite engines` says of it")


def _rows(result: Mapping[str, Any]) -> pd.DataFrame:
    """The streams in a result file of `vllm bench serve`; all were due when the first was sent."""
    sent = pd.Series(result["start_times"], dtype=float)
    return pd.DataFrame(
        {
            "sent": sent,
            "lag": sent - sent.min(),
            "first_token": sent + result["ttfts"],
            "finish": sent + result["latencies"],
            "tokens": result["output_lens"],
        }
    )
