"""ServeGen's clients: by folders in the published schema with known laws, and by the published excerpt."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from suite.errors import BadInput
from suite.trace import Trace
from workloads.parts.streams import stream
from workloads.reading.servegen_files import Rate
from workloads.servegen import ServeGen
from workloads.spec import load

LENGTHS = {"0": {"input_tokens": "{10: 0.75, 30: 0.25}", "output_tokens": "{0: 0.5, 7: 0.5}"}}
STEADY = "1.0,1.0,Gamma,1.0,1.0"
SILENT = "0,0,,0,0"


def chunk(folder: Path, number: int, rows: list[str], lengths: dict[str, Any] | None = LENGTHS) -> Path:
    """One client: a row for each 600 s, and its lengths."""
    lines = (f"{600 * place},{row}\n" for place, row in enumerate(rows))
    (folder / f"chunk-{number}-trace.csv").write_text("".join(lines))
    if lengths is not None:
        (folder / f"chunk-{number}-dataset.json").write_text(json.dumps(lengths))
    return folder


def generated(folder: Path, seed: int = 0, **parameters: Any) -> Trace:
    spec = {"family": "servegen", "file": str(folder), "seconds": 1200.0, **parameters}
    return load(spec).generate(seed)


def arrivals(trace: Trace, client: str) -> np.ndarray:
    return np.array([request.arrival for request in trace.requests if request.client == client])


def weibull_cv(shape: float) -> float:
    return math.sqrt(math.gamma(1 + 2 / shape) / math.gamma(1 + 1 / shape) ** 2 - 1)


@pytest.mark.parametrize(
    ("law", "shape", "cv"),
    [
        ("Gamma", 4.0, 0.5),
        ("Gamma", 0.25, 2.0),
        ("Weibull", 2.0, weibull_cv(2)),
        ("Weibull", 0.5, weibull_cv(0.5)),
    ],
)
def test_rates_and_burstiness_are_those_of_the_rows(
    tmp_path: Path, law: str, shape: float, cv: float
) -> None:
    folder = chunk(tmp_path, 3, [f"2.0,{cv},{law},{shape},9.9"] * 20)
    times = arrivals(generated(folder, seconds=12_000.0), "client-3")
    assert len(times) == pytest.approx(24_000, abs=4 * cv * math.sqrt(24_000))
    gaps = np.diff(times)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.06)


def test_rates_below_one_request_a_row_are_kept_on_average(tmp_path: Path) -> None:
    """A process begun with a whole gap in each row would hardly ever get to its first arrival."""
    folder = chunk(tmp_path, 0, ["0.0005,2,Gamma,0.25,8000"] * 4000)
    times = arrivals(generated(folder, seconds=2_400_000.0), "client-0")
    assert len(times) == pytest.approx(1200, abs=4 * 2 * math.sqrt(1200))


def test_a_clients_course_and_share_stay_when_the_rate_is_set(tmp_path: Path) -> None:
    chunk(tmp_path, 0, ["30,1,Gamma,1,0.1", "90,1,Gamma,1,0.1"])
    folder = chunk(tmp_path, 1, ["40,1,Weibull,1,0.1", SILENT])
    trace = generated(folder, rate=8.0)
    assert trace.header.choices["client_rates"] == {"client-0": 6, "client-1": 2}
    first, second = arrivals(trace, "client-0"), arrivals(trace, "client-1")
    assert sum(first < 600) == pytest.approx(1800, abs=4 * math.sqrt(1800))
    assert sum(first >= 600) == pytest.approx(5400, abs=4 * math.sqrt(5400))
    assert len(second) == pytest.approx(2400, abs=4 * math.sqrt(2400))
    assert second.max() < 600


def test_a_window_is_cut_out_of_the_rows(tmp_path: Path) -> None:
    folder = chunk(tmp_path, 0, [SILENT, STEADY, SILENT, STEADY])
    times = arrivals(generated(folder, start=900.0, seconds=1100.0), "client-0")
    assert times.min() >= 0
    assert len(times[times < 300]) == pytest.approx(300, abs=4 * math.sqrt(300))
    assert not any((times >= 300) & (times < 900))
    assert len(times[times >= 900]) == pytest.approx(200, abs=4 * math.sqrt(200))
    assert times.max() < 1100


def test_lengths_have_their_chances_and_are_independent(tmp_path: Path) -> None:
    folder = chunk(tmp_path, 0, ["5.0,1.0,Gamma,1.0,0.2"] * 2)
    requests = generated(folder).requests
    seen = Counter((request.prompt_tokens, request.output_tokens) for request in requests)
    shares = {lengths: count / len(requests) for lengths, count in seen.items()}
    assert shares == pytest.approx({(10, 1): 0.375, (10, 7): 0.375, (30, 1): 0.125, (30, 7): 0.125}, abs=0.03)
    assert len({request.prompt[0].id for request in requests}) == len(requests)


def test_lengths_are_the_last_ones_of_the_client(tmp_path: Path) -> None:
    def of(tokens: int) -> dict[str, str]:
        return {"input_tokens": f"{{{tokens}: 1.0}}", "output_tokens": "{1: 1.0}"}

    nothing = {"input_tokens": "{}", "output_tokens": "{}"}
    lengths = {"1800": of(4), "600": of(3), "1200": nothing}
    folder = chunk(tmp_path, 0, [STEADY] * 5, lengths)
    trace = generated(folder, seconds=3000.0)
    for request in trace.requests:
        assert request.prompt_tokens == (3 if request.arrival < 1800 else 4)


def test_a_client_without_lengths_takes_those_of_others_by_rate(tmp_path: Path) -> None:
    chunk(tmp_path, 0, ["3,1,Gamma,1,1"] * 2, {"0": {"input_tokens": "{5: 1}", "output_tokens": "{1: 1}"}})
    chunk(tmp_path, 1, ["1,1,Gamma,1,1"] * 2, {"0": {"input_tokens": "{6: 1}", "output_tokens": "{2: 1}"}})
    trace = generated(chunk(tmp_path, 2, ["4,1,Gamma,1,1"] * 2, None))
    drawn = Counter((r.prompt_tokens, r.output_tokens) for r in trace.requests if r.client == "client-2")
    assert set(drawn) == {(5, 1), (6, 2)}
    assert drawn[5, 1] / drawn.total() == pytest.approx(0.75, abs=0.04)
    assert trace.header.choices["clients_with_lengths_of_others"] == ["client-2"]


def test_equal_seeds_equal_bytes_and_clients_draw_apart(tmp_path: Path) -> None:
    alone = generated(chunk(tmp_path, 0, [STEADY] * 2))
    both = generated(chunk(tmp_path, 1, [STEADY] * 2))
    assert [r for r in both.requests if r.client == "client-0"] == list(alone.requests)
    assert generated(tmp_path).digest == both.digest
    assert generated(tmp_path, seed=1).digest != both.digest


def test_the_flattest_law_can_be_drawn_from() -> None:
    """Its gaps spread over more than 300 powers of ten, so hardly any comes to its end in a window."""
    law = Rate(0.0, 1.0, "Weibull", 0.006)
    for seed in range(50):
        assert not list(law.times(1.0, 600.0, stream(seed, "test")))


def test_numbers_of_clients_may_have_leading_zeros(tmp_path: Path) -> None:
    folder = chunk(tmp_path, 0, [STEADY] * 2)
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.replace("chunk-0", "chunk-007"))
    assert generated(folder).clients == ("client-007",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("600,x,1,Gamma,1,1", r"rate: .*number.*'x'"),
        ("600,1,1,Pareto,1,1", r"pattern: .*'Gamma', 'Weibull' or ''"),
        ("600,1,1,Weibull,0.001,1", r"shape: .*at least 0\.006"),
        ("600,1,1,Gamma,1", "5 values for 6 columns"),
    ],
)
def test_wrong_rows(tmp_path: Path, row: str, message: str) -> None:
    chunk(tmp_path, 0, [STEADY])
    with (tmp_path / "chunk-0-trace.csv").open("a") as file:
        file.write(row + "\n")
    with pytest.raises(BadInput, match=r"chunk-0-trace\.csv:2: " + message):
        generated(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('__import__("os").system("true")', 'must be a text "{tokens: probability, ...}"'),
        ("{10: 0.5, f(): 0.5}", r"'f\(\): 0.5' must be `tokens: probability`"),
        ("{10: 0.5, 20: 0.6}", "the probabilities add up to 1.1"),
        ("{10: 1.5}", "less than or equal to 1"),
        ("{10: 1-1}", "number"),
        ("{999999999: 1.0}", "less than or equal to 10000000"),
        (7, 'must be a text "{tokens'),
    ],
)
def test_wrong_lengths(tmp_path: Path, text: Any, message: str) -> None:
    folder = chunk(tmp_path, 0, [STEADY] * 2, {"0": {"input_tokens": text, "output_tokens": "{1: 1.0}"}})
    with pytest.raises(BadInput, match=rf"chunk-0-dataset\.json: 0\.input_tokens.*{message}") as caught:
        generated(folder)
    assert "\n" not in str(caught.value)


def test_folders_with_nothing_to_draw_from(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no client of .* sends anything in 1200 s from 0 s on"):
        generated(tmp_path)
    with pytest.raises(BadInput, match=r"no client of .* that sends has any distributions of lengths"):
        generated(chunk(tmp_path, 0, [STEADY] * 2, None))
    chunk(tmp_path, 0, [STEADY] * 2)
    with pytest.raises(BadInput, match=r"start: no client .* 1200 s from 5000 s on"):
        generated(tmp_path, start=5000.0)
    with pytest.raises(BadInput, match=r"rate: it would make about 1\.2e\+09"):
        generated(tmp_path, rate=1e6)
    with pytest.raises(BadInput, match="is a file; this family reads a folder"):
        generated(tmp_path / "chunk-0-trace.csv")


# -- the published excerpt ---------------------------------------------------------------------------------

FORTNIGHT = 14 * 86_400.0


@pytest.fixture(scope="module")
def m_small(traces: Path) -> Path:
    folder = traces / "servegen/m-small"
    if not folder.is_dir():
        pytest.skip(f"no ServeGen clients in {folder}: set SUITE_TRACES to the folder that holds them")
    return folder


def skew(of: dict[str, float]) -> tuple[float, float]:
    """The shares of the first and of the first five."""
    shares = sorted(of.values(), reverse=True)
    return shares[0] / sum(shares), sum(shares[:5]) / sum(shares)


def test_the_published_clients_are_skewed(m_small: Path) -> None:
    """Top client 30 %, top five 77 % of all requests of the fortnight; five clients have no lengths."""
    workload = load({"family": "servegen", "file": str(m_small), "seconds": FORTNIGHT, "rate": 0.02})
    assert isinstance(workload, ServeGen)
    choices = workload.choices()
    assert len(choices["client_rates"]) == 43
    assert skew(choices["client_rates"]) == pytest.approx((0.30, 0.77), abs=0.005)
    requests = workload.generate(0).requests
    assert skew(Counter(request.client for request in requests)) == pytest.approx((0.30, 0.77), abs=0.02)
    without = {path.name for path in m_small.glob("*-trace.csv")} - {
        path.name.replace("dataset.json", "trace.csv") for path in m_small.glob("*-dataset.json")
    }
    named = {f"client-{name.split('-')[1]}" for name in without}
    assert len(named) == 5
    assert named <= set(choices["clients_with_lengths_of_others"])


def test_the_lengths_of_the_first_published_client_with_any(m_small: Path) -> None:
    """The mean of what is drawn at noon of day 3 is that of its published distribution."""
    text = json.loads((m_small / "chunk-17-dataset.json").read_text())["216000"]["input_tokens"]
    pairs = [pair.split(": ") for pair in text.strip("{}").split(", ")]
    mean = sum(int(tokens) * float(chance) for tokens, chance in pairs)
    spread = math.sqrt(sum((int(tokens) - mean) ** 2 * float(chance) for tokens, chance in pairs))
    requests = generated(m_small, start=216_000.0, seconds=1200.0, rate=50.0).requests
    drawn = [request.prompt_tokens for request in requests if request.client == "client-17"]
    assert np.mean(drawn) == pytest.approx(mean, abs=4 * spread / math.sqrt(len(drawn)))
