"""Make a reproduction: run what it needs, compare, and write its folder.

OUT/NAME/README.md     the paper's values beside ours, what agrees and what does not, what was assumed
OUT/NAME/table.csv     every value: table, case, quantity, ours, spread, paper, deviation
OUT/NAME/figure.png    the paper's points beside ours
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from suite import experiment, runner
from suite.errors import BadInput
from suite.files import write_atomically
from suite.report import experiment as finished
from suite.report import style
from suite.reproduce.reproduction import Comparison, Reproduction
from suite.reproduce.values import frame
from suite.runner import Outcome
from workloads.reading.recorded import located

REFERENCE = Path("results/reference")
"""Where the folders go unless told otherwise, below the working directory."""


def check(reproduction: Reproduction) -> None:
    """Raise `BadInput` if a public file that it needs is not there."""
    for file in reproduction.files:
        try:
            located(file)
        except ValueError as error:
            raise BadInput(f"{reproduction.name}: {error}") from None


def run(reproduction: Reproduction, processes: int, command: str, console: Console) -> list[Outcome]:
    """Run its experiments, each in its folder of `runner.RUNS`; finished cells are kept."""
    outcomes = []
    for name in reproduction.experiments:
        wanted, out = experiment.load(name), runner.RUNS / name
        jobs = list(runner.plan(wanted, out, command))
        outcome = runner.run(wanted, jobs, out, processes=processes, report=False, console=console)
        outcomes.append(outcome)
        if outcome.interrupted:
            break
    return outcomes


def write(reproduction: Reproduction, out: Path) -> Path:
    """Compare its finished experiments with the paper, and write its folder below `out`. Returns that."""
    runs = {name: finished.load(runner.RUNS / name) for name in reproduction.experiments}
    folder = out / reproduction.name
    with style.styled():
        found = reproduction.compare(runs)
        text, table = page(reproduction, found), frame(found.tables)
        write_atomically(folder / "README.md", lambda file: file.write_text(text, encoding="utf-8"))
        write_atomically(
            folder / "table.csv", lambda file: table.to_csv(file, index=False, float_format="%.6g")
        )
        write_atomically(
            folder / "figure.png",
            lambda file: found.figure.savefig(file, dpi=130, metadata={"Software": None}),
        )
    return folder


def page(reproduction: Reproduction, found: Comparison) -> str:
    """The README of the folder, in Markdown."""
    tables = [f"## {table.title}\n\n{table.markdown()}" for table in found.tables]
    notes = [reproduction.notes.strip()] if reproduction.notes else []
    findings = "\n".join(f"- {finding}" for finding in found.findings)
    parts = [
        f"# {reproduction.title}",
        f"    suite reproduce {reproduction.name}",
        reproduction.shows.strip(),
        *tables,
        f"![{reproduction.title}](figure.png)",
        found.reading,
        f"## What agrees, and what does not\n\n{findings}",
        f"## What was assumed\n\n{reproduction.assumptions.strip()}",
        *notes,
    ]
    return "\n\n".join(parts) + "\n"
