"""`suite engines ...`: the environments of real engines and routers: list, install, adopt, remove."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from suite.commands.console import progress, say, show

if TYPE_CHECKING:
    from rich.table import Table

Device: TypeAlias = Annotated[str, typer.Option(help="What it runs on: cpu or cuda.")]

app = typer.Typer(invoke_without_command=True)


@app.callback()
def engines(context: typer.Context) -> None:
    """List the engines that are installed, what is wrong with them, and what could be installed."""
    if context.invoked_subcommand is None:
        with progress().status("asking each environment to import its engine"):
            tables = _installed(), _offered()
        show(*tables)


@app.command()
def install(
    engine: Annotated[str, typer.Argument(help="Name of the engine, such as vllm.")],
    device: Annotated[
        str | None, typer.Option(help="What it runs on: cpu or cuda.", show_default="the only one there is")
    ] = None,
    version: Annotated[str | None, typer.Option(help="Release; by default the newest offered.")] = None,
) -> None:
    """Install an engine, or another project's router, into an environment of its own.

    Its packages are exactly pinned.

    Examples: suite engines install vllm --device cpu, suite engines install sglang-router
    """
    from suite import environments

    with progress().status("this takes from seconds to minutes, and up to 10 GB"):
        where = environments.device_for(engine, device)
        environment = environments.install(engine, where, version, say)
    say(f"ready: {environment.engine} {environment.version} on {environment.device}")


@app.command()
def adopt(
    folder: Annotated[
        Path, typer.Argument(help="A virtual environment in which the engine can be imported.")
    ],
    engine: Annotated[str, typer.Option(help="Name of the engine, such as vllm.")],
    device: Device,
) -> None:
    """Use an environment that was made by hand. It stays where it is.

    Example: suite engines adopt ~/vllm-env --engine vllm --device cuda
    """
    from suite import environments

    environment = environments.adopt(folder, engine, device)
    say(f"adopted: {environment.name}, {environment.engine} {environment.version} on {environment.device}")


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="Name of the environment, as `suite engines` shows it.")],
) -> None:
    """Remove an environment; of an adopted one only the entry in the list.

    Example: suite engines remove vllm-0.32.0-cpu
    """
    from suite import environments

    say(f"removed: {environments.remove(name)}")


def _installed() -> Table:
    from rich.table import Table
    from rich.text import Text

    from suite import environments
    from suite.catalogue import ENGINES

    table = Table(
        "environment", "engine", "device", "python", "torch", "runs", "what is wrong",
        title=f"installed in {environments.root()}", title_justify="left", show_lines=True,
    )  # fmt: skip
    for found in environments.installed():
        engine = f"{found.engine} {found.version}"
        wrong = "\n".join(environments.problems(found)) or "nothing"
        runs = ENGINES[found.engine].runs
        name = f"{found.name} -> {found.folder.resolve()}" if found.folder.is_symlink() else found.name
        row = (name, engine, found.device, found.python_version, found.torch, runs, wrong)
        table.add_row(*map(Text, row))
    for folder in environments.unfinished():
        table.add_row(Text(folder.name), *[""] * 5, "not finished; install it again, or remove it")
    return table


def _offered() -> Table:
    from rich.table import Table

    from suite import environments
    from suite.catalogue import ENGINES

    table = Table("engine", "device", "releases", "command", title="can be installed", title_justify="left")
    for name, engine in ENGINES.items():
        for device in engine.packages:
            releases = ", ".join(environments.releases(name, device))
            table.add_row(name, device, releases, environments.install_command(name, device))
    return table
