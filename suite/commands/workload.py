"""`suite workload ...`: generate, describe, import and list workloads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from suite.commands.console import say, show

Settings: TypeAlias = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace one parameter; repeatable.")
]
Seed: TypeAlias = Annotated[int, typer.Option(min=0, help="Seed of all random draws.")]
Output: TypeAlias = Annotated[
    Path, typer.Option("--out", "-o", help="File to write: .jsonl, .jsonl.gz or .parquet.")
]

app = typer.Typer(no_args_is_help=True, help="Generate, describe and import workloads.")


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
    from suite import trace
    from suite.validation import assignments
    from workloads.spec import load

    made = load(spec, assignments(settings or ())).generate(seed)
    trace.write(made, out)
    say(f"{out}: {len(made.requests)} requests of {len(made.clients)} clients, digest {made.digest[:12]}")


@app.command()
def describe(
    source: Annotated[str, typer.Argument(help="Spec name, YAML spec, or trace file.")],
    seed: Seed = 0,
    settings: Settings = None,
    picture: Annotated[Path | None, typer.Option(help="Also draw it: a .png or .pdf file.")] = None,
) -> None:
    """Show clients, rates, lengths, the ideal prefix-hit ratio and who shares prefixes with whom.

    Example: suite workload describe document --picture document.png
    """
    from suite.validation import assignments
    from workloads import describe as describing
    from workloads import picture as drawing
    from workloads.spec import load

    description = describing.describe(load(source, assignments(settings or ())).generate(seed))
    show(*describing.tables(description))
    if picture is not None:
        drawing.picture(description, picture)
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

    Example: suite workload import mooncake conversation_trace.jsonl -o conversation.parquet --set stretch=8
    """
    from suite import trace
    from suite.validation import assignments
    from workloads.spec import load

    made = load({"family": family, "file": str(file)}, assignments(settings or ())).generate(seed)
    trace.write(made, out)
    say(f"{out}: {len(made.requests)} requests of {len(made.clients)} clients, digest {made.digest[:12]}")


@app.command("list")
def list_() -> None:
    """List the ready workloads and the families a spec can name.

    Example: suite workload list
    """
    from workloads.spec import families, ready

    say(f"ready workloads: {', '.join(ready())}")
    say(f"families: {', '.join(families())}")
