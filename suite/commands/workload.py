"""`suite workload ...`: generate, describe, import, export, fetch and list workloads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from suite.commands.console import INTERRUPTED, complain, plain, progress, say, show

if TYPE_CHECKING:
    from rich.table import Table

    from suite.fetch import File, PublicTrace
    from suite.trace import Trace
    from workloads.listing import Entry

Settings: TypeAlias = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace one parameter; repeatable.")
]
Seed: TypeAlias = Annotated[int, typer.Option(min=0, help="Seed of all random draws.")]
Output: TypeAlias = Annotated[
    Path, typer.Option("--out", "-o", help="File to write: .jsonl, .jsonl.gz or .parquet.")
]

app = typer.Typer(no_args_is_help=True, help="Generate, describe, import, export and fetch workloads.")


@app.command()
def generate(
    spec: Annotated[str, typer.Argument(help="Name of a ready spec, or path of a YAML spec.")],
    out: Output,
    seed: Seed = 0,
    settings: Settings = None,
) -> None:
    """Write the trace of a workload. The same spec and seed give the same bytes everywhere.

    Example: suite workload generate chat -o chat.jsonl --seed 1 --set load=2
    """
    from suite.validation import assignments
    from workloads.spec import load

    _write(load(spec, assignments(settings or ())).generate(seed), out)


@app.command()
def describe(
    source: Annotated[str, typer.Argument(help="Spec name, YAML spec, or trace file.")],
    seed: Seed = 0,
    settings: Settings = None,
    picture: Annotated[Path | None, typer.Option(help="Also draw it: a .png or .pdf file.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Also say its load on this model, as simulated (on an a10g).")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Also say its load on this GPU, as simulated (of llama-3.1-8b).")
    ] = None,
) -> None:
    """Show clients, rates, lengths, sessions, the prefix hit ratio by cache size and who shares with whom.

    Example: suite workload describe document --picture document.png --model llama-3.1-8b --gpu a10g
    """
    from suite.describing import described
    from suite.validation import assignments
    from workloads.describing.picture import picture as draw
    from workloads.describing.tables import load_line, tables

    backend = {name: value for name, value in (("model", model), ("gpu", gpu)) if value is not None}
    description, engine = described(source, seed, assignments(settings or ()), backend)
    show(*tables(description, engine))
    if engine is not None:
        say(load_line(description, engine))
    if picture is not None:
        draw(description, picture, engine)
        say(f"picture: {picture}")


@app.command("import")
def import_(
    family: Annotated[str, typer.Argument(help="Whose format it is, such as mooncake.")],
    file: Annotated[Path, typer.Argument(help="The public trace.")],
    out: Output,
    seed: Seed = 0,
    settings: Settings = None,
) -> None:
    """Turn a public trace into one of this suite. What the trace does not say is drawn by stated rules.

    Example: suite workload import mooncake conversation_trace.jsonl -o x.parquet --set shape.stretch=8
    """
    from suite.validation import assignments
    from workloads.spec import load

    _write(load({"family": family, "file": str(file)}, assignments(settings or ())).generate(seed), out)


def _write(made: Trace, out: Path) -> None:
    """Write a trace, and say what is in it and what became of its source's rows."""
    from suite import trace

    trace.write(made, out)
    say(f"{out}: {len(made.requests)} requests of {len(made.clients)} clients, digest {made.digest[:12]}")
    counts = made.header.choices.get("counts")
    if isinstance(counts, dict) and counts:
        say("counts: " + ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in counts.items()))


@app.command()
def export(
    format: Annotated[str, typer.Argument(help="mooncake (AIPerf reads it too) or timed-trace (vLLM's).")],
    source: Annotated[str, typer.Argument(help="Spec name, YAML spec, or trace file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File of JSON lines to write.")],
    seed: Seed = 0,
    settings: Settings = None,
    block: Annotated[
        int | None, typer.Option(min=1, help="Tokens a hash id stands for; by default the format's own.")
    ] = None,
) -> None:
    """Write a workload as rows of lengths and hash ids, for the load generators of others.

    Example: suite workload export timed-trace chat -o chat.jsonl
    """
    from suite.validation import assignments
    from workloads import export as exporting
    from workloads.spec import load

    wanted = exporting.named(format)
    made = load(source, assignments(settings or ())).generate(seed)
    size = block or wanted.block
    ids = exporting.write(made, out, wanted, size)
    say(f"{out}: {len(made.requests)} requests, {ids} hash ids of {size} tokens each")
    for what in exporting.lost(made):
        say(f"not in the file: {what}")


@app.command()
def fetch(
    name: Annotated[str | None, typer.Argument(help="The trace; without one, all are listed.")] = None,
    registry: Annotated[
        Path | None,
        typer.Option(help="Another list of traces, a YAML file like workloads/public.yaml of this package."),
    ] = None,
) -> None:
    """Download a public trace into the folder of traces (SUITE_TRACES), checked by size and SHA-256.

    What an interrupt leaves is kept, and the same command goes on from there.

    Example: suite workload fetch mooncake-conversation
    """
    from suite import fetch as fetching
    from workloads.reading.recorded import traces_folder

    known = fetching.registry(registry or fetching.PUBLIC)
    if name is None:
        show(_public(known, traces_folder()))
        return
    trace = fetching.named(name, known)
    for file in trace.files:
        _fetch(file, traces_folder())
    say(f"licence: {trace.licence}; cite: {trace.cite}")


def _fetch(file: File, folder: Path) -> None:
    """Fetch one file, showing how far it is."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    from suite.fetch import fetch

    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = progress()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=file.bytes)
        try:
            path, downloaded = fetch(file, folder, lambda done: bar.update(task, completed=done))
        except KeyboardInterrupt:
            complain(f"interrupted: what came of {file.path} is kept; the same command goes on from there")
            raise typer.Exit(INTERRUPTED) from None
    say(f"{path}: {'downloaded' if downloaded else 'there already'}, as published")


def _public(known: Mapping[str, PublicTrace], folder: Path) -> Table:
    from rich.table import Table
    from rich.text import Text

    title = Text(plain(f"Public traces, for {folder}"))
    table = Table("name", "what", "size", "licence", "source", "here", title=title, title_justify="left")
    for name, trace in known.items():
        cells = (name, trace.what, f"{trace.bytes / 1e6:,.1f} MB", trace.licence, trace.source)
        table.add_row(*(Text(plain(cell)) for cell in (*cells, trace.here(folder))))
    return table


@app.command("list")
def list_() -> None:
    """List the ready workloads and the families a spec can name: made up, recorded, and of the hub.

    Example: suite workload list
    """
    from workloads.listing import family_entries, ready_entries

    show(_listed("Ready workloads", ready_entries()), _listed("Families", family_entries()))


def _listed(title: str, entries: Sequence[Entry]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(
        "", "name", "what", "licence of the data", title=Text(title), title_justify="left",
        caption="recorded: needs its file, see `suite workload fetch`; hub: needs the network, or `file`",
    )  # fmt: skip
    kind = ""
    for entry in entries:
        if entry.kind != kind:
            table.add_section()
        shown = "" if entry.kind == kind else entry.kind
        table.add_row(*map(Text, (shown, entry.name, entry.what, entry.licence)))
        kind = entry.kind
    return table
