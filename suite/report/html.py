"""One self-contained page: the answer first, then table, figures, clients, facts and definitions."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from suite.files import write_atomically
from suite.metrics import latency
from suite.metrics.glossary import GLOSSARY
from suite.metrics.summary import clients
from suite.report import headline, tables
from suite.report.experiment import Cell, Experiment, load
from suite.report.figures import Drawing, write_figures

_CLIENT_COLUMNS = {
    "client": "client",
    "requests": "requests",
    "finished": "finished",
    "client_service": "client service",
    "actual_service": "actual service",
    "client_service_all_active": "client service, all active",
    "hit_rate": "hit rate",
    "preemptions": "preempted",
    **{
        name: f"{name.replace('_', ' ').upper()} (s)" for name in latency.COLUMNS if not name.endswith("mean")
    },
}


@dataclass(frozen=True)
class _Figure:
    """A figure as the page holds it: `source` is a data URI, `width` in CSS pixels."""

    title: str
    reading: str
    source: str
    width: int


@dataclass(frozen=True)
class _Clients:
    """The per-client table of one cell, as text."""

    title: str
    rows: list[list[str]]


def write_report(folder: Path) -> Path:
    """Write summary.csv, figures/ and report.html into an experiment folder; return the page's path.

    Equal results give equal bytes: nothing in them depends on when or where the report was written. Raises
    `BadInput` if the folder is not an experiment's.
    """
    experiment = load(folder)
    frame = tables.collected(experiment)
    tables.write_summary(frame, folder)
    page = render(experiment, frame, write_figures(experiment, frame))
    path = folder / "report.html"
    write_atomically(path, lambda file: file.write_text(page, encoding="utf-8"))
    return path


def render(experiment: Experiment, frame: pd.DataFrame, drawings: list[Drawing]) -> str:
    """The page as text. Every name in it is escaped; it asks the network for nothing."""
    firsts = [cell for setting in experiment.settings for cell in experiment.first_seed(setting)]
    return _environment().get_template("report.html").render(
        experiment=experiment,
        headlines=headline.headlines(frame),
        near_fairest=headline.NEAR_FAIREST,
        columns=tables.COLUMNS,
        caption=tables.CAPTION,
        rows=tables.rows(frame),
        warnings=tables.warnings(frame),
        reasons=tables.reasons(frame),
        figures=[_figure(drawing) for drawing in drawings],
        client_columns=list(_CLIENT_COLUMNS.values()),
        clients=[_clients(cell) for cell in firsts],
        facts={cell.folder.name: _facts(cell) for cell in experiment.cells},
        glossary=GLOSSARY,
    )  # fmt: skip


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("suite", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _figure(drawing: Drawing) -> _Figure:
    """The drawing at half its pixels' size, sharp on fine screens and in print."""
    png = drawing.png.read_bytes()
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return _Figure(drawing.title, drawing.reading, source, int.from_bytes(png[16:20], "big") // 2)


def _clients(cell: Cell) -> _Clients:
    table = clients(cell.run())
    names = table["client"] + table["misbehaving"].map({True: " (misbehaving)", False: ""})
    shown = table.assign(client=names)[list(_CLIENT_COLUMNS)]
    rows = [[_text(value) for value in row] for row in shown.itertuples(index=False)]
    return _Clients(f"{cell.setting}: {cell.scheduler}", rows)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return "none"
    return f"{value:,.0f}" if float(value).is_integer() or value >= 1000 else f"{value:.3g}"


def _facts(cell: Cell) -> str:
    """The manifest but for its wall-clock times and its command, which the page names once."""
    facts = {key: value for key, value in asdict(cell.manifest).items() if key not in ("times", "command")}
    return json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False)
