"""One self-contained page: the answer first, then table, figures, clients, audit, facts and definitions."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup

from suite.files import write_atomically
from suite.metrics.glossary import GLOSSARY
from suite.metrics.goodput import Slo
from suite.report import headline, listings, parallel, tables
from suite.report.effects import Effect
from suite.report.experiment import Cell, Experiment, load
from suite.report.figures import DPI, MOST_DETAILED, Drawing, write_figures
from suite.report.verdicts import verdicts


@dataclass(frozen=True)
class Report:
    """A report on disk: its page, and the row per cell that it was made from (`tables.collect`)."""

    page: Path
    frame: pd.DataFrame


def write_report(folder: Path, slo: Slo | None = None, with_invalid: bool = False) -> Report:
    """Write summary.csv, figures/ and report.html into an experiment folder.

    `slo` stands in for the experiment's own; `with_invalid` draws also what is no result. Equal results give
    equal bytes: nothing in them depends on when or where the report was written. Raises `BadInput` if the
    folder is not an experiment's.
    """
    experiment = load(folder)
    experiment = experiment if slo is None else replace(experiment, slo=slo)
    with parallel.processes(len(experiment.cells)):
        frame = tables.collected(experiment)
        tables.write_summary(frame, folder)
        found = headline.comparisons(experiment, frame, headline.headlines(frame))
        drawings = write_figures(experiment, frame.assign(invalid=None) if with_invalid else frame, found)
        page = render(experiment, frame, drawings, found)
    path = folder / "report.html"
    write_atomically(path, lambda file: file.write_text(page, encoding="utf-8"))
    return Report(path, frame)


def render(
    experiment: Experiment, frame: pd.DataFrame, drawings: Sequence[Drawing], found: Sequence[Effect]
) -> str:
    """The page as text. Every name in it is escaped; it asks the network for nothing."""
    styles, script = (_asset(name) for name in ("report.css", "report.js"))
    heads = headline.headlines(frame)
    return _environment().get_template("report.html").render(
        experiment=experiment,
        styles=styles,
        script=script,
        policy=_policy(styles, script),
        answer=headline.answer(heads),
        validity=headline.validity(frame),
        headlines=[(head, headline.against(found, head.setting)) for head in heads],
        near_fairest=headline.NEAR_FAIREST,
        columns=tables.shown_columns(frame),
        caption=tables.caption(tables.shown_columns(frame)),
        rows=tables.rows(frame),
        excluded=tables.excluded(frame),
        warnings=[*_failed(experiment), *tables.warnings(frame)],
        reasons=tables.reasons(frame),
        verdicts=verdicts(found),
        main=[_figure(drawing) for drawing in drawings if drawing.setting is None],
        details=_by_setting(drawings),
        most_detailed=MOST_DETAILED,
        clients=listings.clients(experiment),
        audit=listings.audit(frame),
        checks=listings.checks(experiment),
        facts={cell.folder.name: _facts(cell) for cell in experiment.cells},
        glossary=GLOSSARY,
    )  # fmt: skip


def _failed(experiment: Experiment) -> list[str]:
    """A sentence per cell that failed, of which there is no run to show."""
    return [f"failed: {one.cell}: {one.reason}" for one in experiment.failed]


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("suite", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _asset(name: str) -> Markup:
    """A file of the page that is no foreign data: it goes into the page as it is."""
    return Markup(files("suite.report").joinpath(name).read_text(encoding="utf-8"))


def _policy(styles: str, script: str) -> str:
    """The page's content security policy: its own style and script, embedded pictures, nothing else."""
    hashes = (base64.b64encode(sha256(text.encode()).digest()).decode() for text in (styles, script))
    style, code = (f"'sha256-{value}'" for value in hashes)
    return f"default-src 'none'; img-src data:; style-src {style}; script-src {code}"


@dataclass(frozen=True)
class _Figure:
    """A figure as the page holds it: `source` is a data URI, width and height are in CSS pixels."""

    title: str
    reading: str
    source: str
    width: int
    height: int


def _figure(drawing: Drawing) -> _Figure:
    """The drawing at 100 CSS pixels an inch, so that its finer ones show on fine screens and in print."""
    png = drawing.png.read_bytes()
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    width, height = (int.from_bytes(png[at : at + 4], "big") * 100 // DPI for at in (16, 20))
    return _Figure(drawing.title, drawing.reading, source, width, height)


def _by_setting(drawings: Sequence[Drawing]) -> dict[str, list[_Figure]]:
    found: dict[str, list[_Figure]] = {}
    for drawing in drawings:
        if drawing.setting is not None:
            found.setdefault(drawing.setting, []).append(_figure(drawing))
    return found


def _facts(cell: Cell) -> str:
    """The manifest but for its wall-clock times and its command, which the page names once."""
    facts = {key: value for key, value in asdict(cell.manifest).items() if key not in ("times", "command")}
    return json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False)
