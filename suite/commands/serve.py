"""`suite serve`: an engine under a scheduler, or several behind a router, left up for clients of any kind."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from suite.commands.console import complain, plain, progress, say, show

if TYPE_CHECKING:
    from suite.backends.entrance import Entrance
    from suite.backends.launch import Launch
    from suite.backends.servers import Replicas

_LOOK = 0.5
"""Seconds between two looks at whether the server lives."""


_CLIENT = {
    "vllm": 'put "vllm_xargs": {"client_id": "NAME"} into the body of each request',
    "sglang": 'send the header "X-SMG-Routing-Key: NAME" with each request',
}
"""How a client says who it is, by engine, ..."""
_ROUTED = 'send the header "X-Client-Id: NAME" with each request'
"""... to the front, ..."""
_BY_ID = """put the text {"client_id": "NAME", "request_id": "ID"} as "rid" into the body of each request"""
"""... and to SGLang behind another project's router, which passes nothing else on."""


def serve(
    scheduler: Annotated[
        str, typer.Option("--scheduler", "-s", help="Scheduler to serve under, or ROUTER+SCHEDULER.")
    ],
    engine: Annotated[str, typer.Option("--engine", "-e", help="vllm or sglang.")] = "vllm",
    model: Annotated[
        str | None, typer.Option(help="tiny, mid, a folder or a name on the hub.", show_default="mid")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port on loopback.", show_default="a free one")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Setting of the backend; repeatable."),
    ] = None,
    logs: Annotated[
        Path | None, typer.Option(help="Folder for logs.", show_default="results/runs/serve-TIME")
    ] = None,
) -> None:
    """Start an engine under a scheduler and leave it up until Ctrl-C; then tell what each client got.

    It speaks the OpenAI API. A client says who it is with each request: to vLLM in the body, beside `model`
    and `prompt`, as "vllm_xargs": {"client_id": "NAME"}; to SGLang in the header X-SMG-Routing-Key; to a
    router of ours, before either, in the header X-Client-Id.

    [bold]Examples[/bold]

    suite serve --scheduler dlpm --model tiny

    suite serve -s d2lpm+dlpm --set replicas=2 --model tiny

    suite serve -e sglang -s my_idea.py:MyIdea --port 8100 --set max_running=8 --set kv_tokens=8192
    """
    from suite import policies
    from suite.backends.engines import named
    from suite.backends.entrance import entrance
    from suite.runner import RUNS
    from suite.validation import assignments, validated

    backend = validated(named(engine), {**({"model": model} if model else {}), **assignments(settings or ())})
    folder = logs or RUNS / f"serve-{datetime.now():%Y%m%d-%H%M%S}"
    spec = policies.parse(scheduler)
    with ExitStack() as stack:
        with progress().status("starting") as status:
            note = lambda _, note="": status.update(Text(note))  # noqa: E731
            own = None if spec.router else port
            launch, replicas = stack.enter_context(backend.serving(spec, folder, note, own))
            way = stack.enter_context(entrance(launch, replicas, folder, backend.timeout_s, port))
        _tell(launch, way, folder)
        died = _until_interrupted(way)
    if launch.logged:
        show(_table(replicas))
    if died:
        complain(f"failed: {launch.name} {died}")
        raise typer.Exit(1)


def _tell(launch: Launch, way: Entrance, folder: Path) -> None:
    say(f"url:     {way.url}/v1")
    if way.admin_url:
        say(f"state:   {way.admin_url}/state, and /metrics there")
    say(f"model:   {launch.model.name}")
    if launch.logged or way.admin_url:
        say(f"client:  {naming(launch)}")
    say(f"logs:    {folder}")
    say(f"{launch.name} is up; Ctrl-C ends it")
    sys.stdout.flush()


def naming(launch: Launch) -> str:
    """How a client says who it is so that the scheduler hears of it."""
    if launch.peer:
        return _BY_ID if launch.engine == "sglang" else _CLIENT[launch.engine]
    return _ROUTED if launch.scheduler.router else _CLIENT[launch.engine]


def _until_interrupted(way: Entrance) -> str | None:
    """Why nothing can be served any more; None after Ctrl-C or SIGTERM."""
    try:
        while (reason := way.alive()) is None:
            time.sleep(_LOOK)
    except KeyboardInterrupt:
        return None
    return reason


def _table(replicas: Replicas) -> Table:
    """What each client got, by the service log."""
    from suite.backends import engine_log

    log = engine_log.together([engine_log.read(one.service_log, worker=one.name) for one in replicas.all])
    table = Table("client", title="served", title_justify="left")
    for heading in ("requests", "prompt tokens", "of them cached", "output tokens"):
        table.add_column(heading, justify="right")
    for client, row in engine_log.by_client(log).iterrows():
        table.add_row(Text(plain(str(client))), *(f"{count:,}" for count in row))
    return table
