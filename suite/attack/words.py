"""An attack told to people."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from rich.table import Table
from rich.text import Text

from suite.attack.course import Attack
from suite.attack.objective import METRICS, Contest
from suite.attack.space import Parameters
from suite.trace import Trace


def comparison(contest: Contest, values: tuple[float, float]) -> str:
    """The metric under both schedulers."""
    ours, theirs = values
    title = METRICS[contest.metric].title
    return (
        f"{title}: {_number(ours)} under {contest.scheduler.label}, "
        f"{_number(theirs)} under {contest.rival.label}"
    )


def table(attack: Attack) -> Table:
    """What was found, line by line."""
    contest = attack.contest
    title = f"{contest.scheduler.label} against {contest.rival.label}: {METRICS[contest.metric].title}"
    shown = Table(title=Text(title), title_justify="left", show_header=False)
    for name, text in _lines(attack):
        shown.add_row(name, Text(text))
    return shown


def _lines(attack: Attack) -> Iterator[tuple[str, str]]:
    metric = METRICS[attack.contest.metric]
    for course in attack.courses:
        yield (
            f"best of {course.strategy} search",
            f"{metric.told(course.score)}, in {course.evaluations} evaluations",
        )
    finding = attack.finding
    if finding is None:
        yield "found", f"no workload on which {attack.contest.scheduler.label} does worse"
        return
    yield "the workload", looks(finding.parameters)
    yield "on fresh seeds", "; ".join(map(metric.told, finding.fresh))
    yield "its trace", f"{metric.told(finding.whole_effect)}, {_size(finding.whole)}"
    yield "made small", f"{metric.told(finding.effect)}, {_size(finding.trace)}"
    yield "there", comparison(attack.contest, finding.values)


def looks(found: Parameters) -> str:
    """The workload in a sentence for each of: what is asked, how much and by whom, what is wrong with it."""
    return f"{_FAMILIES[found['family']](found)}. {_traffic(found)}. {_wrong(found)}."


def _chat(found: Parameters) -> str:
    whose = "one for all" if found["common"] > 0.5 else "one for each client"
    return (
        f"Chats of {_count(found['prefixes'], 'turn')} after a system prompt of {found['prefix_tokens']} "
        f"tokens ({whose}), messages of about {found['own_tokens']}, replies of {found['output_tokens']}"
    )


def _document(found: Parameters) -> str:
    documents = _count(found["prefixes"], "document")
    common = round(found["common"] * found["prefixes"])
    return (
        f"Questions of about {found['own_tokens']} tokens on {documents} of about {found['prefix_tokens']} "
        f"for each client, {common} of them common, their popularity Zipf {2 * found['unevenness']:.2g}, "
        f"replies of {found['output_tokens']}"
    )


def _mixed(found: Parameters) -> str:
    heads = _count(found["prefixes"], "head")
    return (
        f"{heads} of about {found['prefix_tokens']} tokens for each client, {found['common']:.0%} of them "
        f"behind a common system prompt as long, {found['unevenness'] / 2:.0%} of all requests without any "
        f"prefix, tails of about {found['own_tokens']}, replies of {found['output_tokens']}"
    )


_FAMILIES = {"multi_turn_chat": _chat, "shared_document": _document, "mixed_prefix": _mixed}


def _traffic(found: Parameters) -> str:
    return (
        f"About {found['requests']} requests of {found['clients']} clients (shares Zipf "
        f"{found['skew']:.2g}), {found['pressure']:.2g} times as fast as the engine serves them in order of "
        f"arrival, their gaps with a coefficient of variation of {found['burstiness']:.2g}"
    )


def _wrong(found: Parameters) -> str:
    return {
        "none": "Nobody misbehaves",
        "more_requests": f"client-0 sends {found['factor']:.2g} times its requests",
        "longer_prefix": f"The prefixes of client-0 are {found['factor']:.2g} times as long",
    }[found["misbehaviour"]]


def _size(trace: Trace) -> str:
    return f"{_count(len(trace.requests), 'request')} of {_count(len(trace.clients), 'client')}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= value < inf else f"{value:.3g}"
