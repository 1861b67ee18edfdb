"""`suite route`: a router before servers that are already up, for clients of any kind."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from suite.commands.console import complain, plain, progress, say, show

if TYPE_CHECKING:
    from suite.backends.front.config import WorkerAddress
    from suite.backends.router import Front

_LOOK = 0.5
"""Seconds between two looks at whether the front lives."""

_COLUMNS = {
    "requests": "requests",
    "stopped": "served",
    "aborted": "cut short",
    "returned": "given back",
    "prompt_tokens": "prompt tokens",
    "output_tokens": "output tokens",
}
"""What is told of a client: the front's counts, and how they are called."""


def route(
    workers: Annotated[
        list[str],
        typer.Option(
            "--worker", "-w", metavar="URL[,KEY=VALUE]", help="A server; repeatable. Keys: events, kv_tokens."
        ),
    ],
    router: Annotated[str, typer.Option("--router", "-r", help="Router; see `suite routers`.")] = "d2lpm",
    engine: Annotated[
        Literal["vllm", "sglang", "openai"], typer.Option("--engine", "-e", help="What the servers are.")
    ] = "vllm",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port on loopback.", show_default="a free one")
    ] = None,
    admin_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the admin side.", show_default="a free one")
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(help="YAML table of API keys, KEY: CLIENT or KEY: {client: .., weight: ..}."),
    ] = None,
    block_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of a block of the servers' prefix caches.")
    ] = 16,
    logs: Annotated[
        Path | None, typer.Option(help="Folder for logs.", show_default="results/runs/route-TIME")
    ] = None,
) -> None:
    """Put a router before servers that are up, until Ctrl-C; then tell what each client got.

    It passes on POST /v1/completions, /v1/chat/completions and SGLang's /generate. A client is whom the
    header X-Client-Id names, which is believed: let nobody reach the port but your gateway. With a table of
    keys it is whose key the request bears, and nothing else counts. vLLM and SGLang are told who it is.

    Where servers publish KV events, say where, and the router learns what they evict. Workers are added by
    POST to /workers of the admin side, and removed by DELETE of /workers/NAME.

    [bold]Examples[/bold]

    suite route -w http://127.0.0.1:8101 -w http://127.0.0.1:8102

    suite route -r my_router.py:Mine -w http://127.0.0.1:8101,events=tcp://127.0.0.1:5561 --keys keys.yaml
    """
    from suite.backends.front.config import Identity
    from suite.backends.router import Front
    from suite.policies import parse_router
    from suite.runner import RUNS

    folder = logs or RUNS / f"route-{datetime.now():%Y%m%d-%H%M%S}"
    with progress().status("starting"):
        front = Front.start(
            parse_router(router),
            [_address(number, said) for number, said in enumerate(workers)],
            engine=engine,
            block_tokens=block_tokens,
            logs=folder,
            port=port,
            admin_port=admin_port,
            identity=Identity(keys=keys and keys.absolute()),
        )
    with front:
        _tell(front, folder)
        died = _until_interrupted(front)
        if not died:
            show(_table(front.state()["clients"]))
    if died:
        complain(f"failed: {died}")
        raise typer.Exit(1)


def _address(number: int, said: str) -> WorkerAddress:
    """The worker that "URL,KEY=VALUE,..." names."""
    from suite.backends.front.config import WorkerAddress
    from suite.backends.servers import replica_name
    from suite.validation import assignments, at, validated

    url, *more = said.split(",")
    with at(f"--worker {said!r}"):
        return validated(WorkerAddress, {"name": replica_name(number), "url": url, **assignments(more)})


def _tell(front: Front, folder: Path) -> None:
    for name, worker in front.word()["workers"].items():
        say(f"{name}: {worker['state']}")
    say(f"url:     {front.url}/v1")
    say(f"admin:   {front.admin_url} (/workers, /state, /metrics)")
    say(f"logs:    {folder}")
    say("the front is up; Ctrl-C ends it")
    sys.stdout.flush()


def _until_interrupted(front: Front) -> str | None:
    """How the front has ended before; None after Ctrl-C or SIGTERM."""
    try:
        while (reason := front.alive()) is None:
            time.sleep(_LOOK)
    except KeyboardInterrupt:
        return None
    return reason


def _table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """What each client got at each worker."""
    table = Table("client", "worker", title="routed", title_justify="left")
    for heading in _COLUMNS.values():
        table.add_column(heading, justify="right")
    for row in sorted(rows, key=lambda row: (row["client"], row["worker"])):
        names = (Text(plain(row["client"])), Text(plain(row["worker"])))
        table.add_row(*names, *(f"{row[column]:,}" for column in _COLUMNS))
    return table
