"""Data sets on the hub: local copies of every kind, a stand-in for the hub, and no hub at all."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import subprocess
import sys
import tomllib
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packaging.requirements import Requirement
from pydantic import Field

from suite import hub
from suite.errors import BadInput
from suite.trace import Request, Segment
from workloads.reading.hub import Entry, HubRows


@dataclass(frozen=True)
class Said:
    who: str
    what: str = ""


@dataclass(frozen=True)
class Row:
    name: str
    tokens: Annotated[int, Field(ge=1)]
    talk: list[Annotated[Said, Entry]] | None = None


class Lines(HubRows):
    """A family for the tests: each row a request."""

    REPOSITORY: ClassVar[str] = "maker/things"
    CONFIG: ClassVar[str | None] = "small"
    LICENCE: ClassVar[str] = "MIT"
    COLUMNS: ClassVar[Any] = Row

    def requests(self, seed: int) -> Iterator[Request]:
        """A request of each row."""
        for row in self.rows():
            yield Request(row.name, "a", 0.0, (Segment(row.name, row.tokens),), 1)


class Secret(Lines):
    """The same, but only for those who have accepted a licence."""

    GATED: ClassVar[bool] = True


class Table(Lines):
    """The same, its rows being anything."""

    CONFIG: ClassVar[str | None] = None
    COLUMNS: ClassVar[Any] = dict[str, Any]


ROWS: list[dict[str, Any]] = [{"name": f"row-{i}", "tokens": i + 1, "unused": None} for i in range(5)]


def lines(file: Path | None, **parameters: Any) -> Lines:
    return Lines(name="lines", family="lines", file=file and str(file), **parameters)


def saved(path: Path, rows: Sequence[Any] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


# -- local copies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.csv", "x.parquet", "[x]*?.jsonl"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    rows = lines(saved(tmp_path / name)).rows()
    assert [(row.name, row.tokens) for row in rows] == [(f"row-{i}", i + 1) for i in range(5)]


def test_a_folder_is_its_files_in_order_of_their_names(tmp_path: Path) -> None:
    saved(tmp_path / "set/data/train-1.parquet", ROWS[3:])
    saved(tmp_path / "set/data/train-0.parquet", ROWS[:3])
    (tmp_path / "set/README.md").write_text("what this is")
    (tmp_path / "set/data/.train-2.parquet").write_text("half of a copy")
    assert [row.tokens for row in lines(tmp_path / "set").rows()] == [1, 2, 3, 4, 5]


def test_the_digest_of_a_folder_covers_all_that_is_read(tmp_path: Path) -> None:
    digests = set()
    for rows in (ROWS, ROWS[1:]):
        saved(tmp_path / "set/data/train.parquet", rows)
        digests.add(lines(tmp_path / "set").generate(0).header.choices["file_sha256"])
    assert len(digests) == 2


def test_nothing_is_left_in_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import config

    before = [*Path(config.HF_DATASETS_CACHE).rglob("*")]
    assert lines(saved(tmp_path / "x.jsonl")).rows()
    assert [*tmp_path.iterdir()] == [tmp_path / "x.jsonl"]
    assert [*Path(config.HF_DATASETS_CACHE).rglob("*")] == before


def test_a_limit_keeps_the_first_rows(tmp_path: Path) -> None:
    assert [row.tokens for row in lines(saved(tmp_path / "x.jsonl"), limit=2).rows()] == [1, 2]


def table(file: Path | None, **parameters: Any) -> Table:
    return Table(name="table", family="table", file=file and str(file), **parameters)


def test_parquet_comes_in_batches_with_every_value_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Across row groups too, the last batch being shorter; one row at a time takes seven times as long."""
    rows = [
        {
            "at": None if i % 7 == 0 else datetime(2025, 1, 1, tzinfo=UTC) + timedelta(seconds=i),
            "day": datetime(2025, 1, 1) + timedelta(microseconds=i),
            "share": i / 3,
            "talk": None if i % 5 == 0 else [{"who": "a", "what": None, "more": [[i], []]}] * (i % 3),
        }
        for i in range(2_345)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=700)
    monkeypatch.setattr(datasets.IterableDataset, "__iter__", None)
    assert table(tmp_path / "x.parquet").rows() == rows


def test_a_wrong_row_of_parquet_is_named_beyond_a_batch(tmp_path: Path) -> None:
    rows = [{"name": "x", "tokens": 1}] * 2_100 + [{"name": None, "tokens": 1}]
    with pytest.raises(BadInput, match=r"x\.parquet, row 2101: name: input should be a valid string"):
        lines(saved(tmp_path / "x.parquet", rows)).rows()


def test_parquet_is_read_little_further_than_its_limit(tmp_path: Path) -> None:
    """By a batch, and what pyarrow reads ahead."""
    file = tmp_path / "x.parquet"
    many = pa.Table.from_pylist([{"name": f"row-{i}", "tokens": 1} for i in range(4_000)])
    pq.write_table(many, file, row_group_size=1_000, compression="none", use_dictionary=False)
    whole = file.read_bytes()
    broken = pq.read_metadata(file).row_group(3).column(0).data_page_offset
    file.write_bytes(whole[:broken] + bytes([0xFF] * 64) + whole[broken + 64 :])
    assert len(lines(file, limit=1_000).rows()) == 1_000
    with pytest.raises(BadInput, match=r"x\.parquet: cannot be read: "):
        lines(file, limit=3_001).rows()


def test_csv_on_the_hub_may_change_its_columns_from_file_to_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As numbers and empty columns do; batches of them are refused by `datasets` when it knows the types."""
    card = "---\ndataset_info:\n  features:\n  - name: a\n    dtype: float64\n---\n"
    (tmp_path / "README.md").write_text(card)
    (tmp_path / "train-0.csv").write_text("a\n1\n2\n")
    (tmp_path / "train-1.csv").write_text("a\n1.5\n")
    monkeypatch.setattr(hub, "commit", lambda *_: None)
    monkeypatch.setattr(Table, "REPOSITORY", f"{tmp_path}/")
    monkeypatch.setattr(Path, "exists", lambda _: False)
    assert table(None).rows() == [{"a": 1}, {"a": 2}, {"a": 1.5}]


def test_entries_with_unequal_keys_are_read(tmp_path: Path) -> None:
    talk = [{"who": "a", "what": "hi"}, {"who": "b", "what": "yo", "markdown": {"x": 1}}]
    for name in ("x.json", "x.jsonl"):
        file = saved(tmp_path / name, [ROWS[0] | {"talk": talk}, ROWS[1] | {"talk": talk[:1]}])
        first, second = lines(file).rows()
        assert first.talk == [Said("a", "hi"), Said("b", "yo")]
        assert second.talk == [Said("a", "hi")]


def test_json_lines_need_not_be_alike(tmp_path: Path) -> None:
    """Not even beyond the first 10 MB, from which `datasets` would conclude how all are."""
    rows = [{"name": "2024-01-01T00:00:00", "tokens": 1, "unused": {"long": "x" * 11_000_000}}]
    talk = [{"who": "a", "what": "hi", "markdown": None}]
    rows.append({"name": "later", "tokens": 2, "unused": 3, "new": "key", "talk": talk})
    first, second = lines(saved(tmp_path / "x.jsonl", [rows[0], "\n", rows[1]])).rows()
    assert (first.name, first.talk) == ("2024-01-01T00:00:00", None)
    assert (second.name, second.talk) == ("later", [Said("a", "hi")])


def test_an_array_is_read_no_further_than_its_limit(tmp_path: Path) -> None:
    """In little memory, and up to what is wrong with it."""
    one = json.dumps(ROWS[0] | {"unused": "x" * 5_000})
    (tmp_path / "x.json").write_text(f"[{','.join([one] * 4_000)}, oops]")
    assert lines(tmp_path / "x.json", limit=1).rows()
    tracemalloc.start()
    assert len(lines(tmp_path / "x.json", limit=20).rows()) == 20
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**20
    with pytest.raises(BadInput, match=r"/x\.json: cannot be read: row 4001: invalid char in json text"):
        lines(tmp_path / "x.json").rows()


def test_an_array_gives_what_its_elements_say(tmp_path: Path) -> None:
    """No number, time or null is made into something else."""
    talk = [{"who": "2024-01-01", "what": "null"}]
    odd = {"name": "2024-01-01T00:00:00", "tokens": 2**62, "unused": 1.5, "talk": talk}
    (tmp_path / "x.json").write_text(f" \n{json.dumps([odd, ROWS[0] | {'talk': None}, odd])}\n")
    row = Row("2024-01-01T00:00:00", 2**62, [Said("2024-01-01", "null")])
    assert lines(tmp_path / "x.json").rows() == [row, Row("row-0", 1), row]


@pytest.mark.parametrize("broken", [0, 1])
def test_a_broken_array_of_a_folder_is_named(tmp_path: Path, broken: int) -> None:
    files = [saved(tmp_path / f"set/{name}.json") for name in "ab"]
    files[broken].write_text(json.dumps(ROWS)[:-30])
    with pytest.raises(BadInput) as caught:
        lines(tmp_path / "set").rows()
    mend = "cannot be read: row 5: premature EOF; mend it, or copy it again"
    assert str(caught.value) == f"{files[broken]}: {mend}"


def test_no_depth_of_an_array_takes_all_memory(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(BadInput, match=r"cannot be read: row 1: nests deeper than 200; mend it"):
        lines(tmp_path / "x.json").rows()


def test_json_that_is_no_array_is_read_too(tmp_path: Path) -> None:
    """Objects one per line, one object alone, and arrays, in one folder."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.json").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:2]))
    (tmp_path / "set/b.json").write_text(json.dumps(ROWS[2], indent=1))
    saved(tmp_path / "set/c.json", ROWS[3:])
    assert [row.tokens for row in lines(tmp_path / "set").rows()] == [1, 2, 3, 4, 5]


def test_an_empty_file_of_a_folder_hides_no_other(tmp_path: Path) -> None:
    saved(tmp_path / "set/a.jsonl", [])
    saved(tmp_path / "set/b.jsonl")
    assert len(lines(tmp_path / "set").rows()) == 5


def test_the_header_says_where_the_rows_come_from(tmp_path: Path) -> None:
    choices = lines(saved(tmp_path / "x.jsonl"), limit=3).generate(0).header.choices
    assert choices["provenance"] == "maker/things, small; local copy; licence MIT; the first 3 rows"
    assert (choices["file"], choices["limit"], len(choices["file_sha256"])) == ("x.jsonl", 3, 64)
    assert str(tmp_path) not in json.dumps(choices)
    other = lines(saved(tmp_path / "x.jsonl", ROWS[:3])).generate(0).header.choices
    assert other["file_sha256"] != choices["file_sha256"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"name": "x", "tokens": 0}, "tokens: input should be greater than or equal to 1 (got '0')"),
        ({"name": None, "tokens": 1}, "name: input should be a valid string (got 'None')"),
        (
            {"name": "x", "tokens": 1, "talk": [{"who": "a"}, {"who": 3}]},
            "talk.1.who: input should be a valid",
        ),
        ({"name": "x", "tokens": 1, "talk": "nothing"}, "talk: input should be a valid list"),
        ({"name": "x", "tokens": 1, "talk": [{"what": "hi"}]}, "talk.0.who: "),
        ({"name": 7, "tokens": 1}, "name: input should be a valid string (got '7')"),
        ('"text"\n', "row: input should be a dictionary"),
        ("{\n", "row: no JSON: EOF while parsing an object at line 1 column 1"),
        ('{"name": "\\ud800"}\n', "row: no JSON: "),
    ],
    ids=str,
)
def test_wrong_rows_are_named_by_number_and_column(tmp_path: Path, row: Any, message: str) -> None:
    file = saved(tmp_path / "x.jsonl", [*ROWS[:2], row])
    with pytest.raises(BadInput, match=re.escape(f"{file}, row 3: {message}")) as caught:
        lines(file).rows()
    assert "\n" not in str(caught.value)


def test_a_missing_column_is_met_with_those_there_are(tmp_path: Path) -> None:
    file = saved(tmp_path / "x.parquet", [{"name": "x", "token": 3}])
    with pytest.raises(BadInput, match="row 1: tokens: no such column; did you mean 'token'"):
        lines(file).rows()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"name": "\xff"}\n', "cannot be read: 'utf-8' codec can't decode byte 0xff"),
        ("x.json", b"[{]", "cannot be read: row 1: invalid object key"),
        ("x.json", b"[]", "holds no rows"),
        ("x.parquet", b"no parquet", "cannot be read: "),
        ("x.jsonl", b"", "holds no rows"),
        ("x.csv", b"", "cannot be read: No columns to parse"),
        ("x.txt", b"rows", r"no file to read; files of a data set end in \.json, \.jsonl, "),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=message) as caught:
        lines(tmp_path / name).rows()
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_folder_of_two_kinds_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "set/a.csv")
    saved(tmp_path / "set/b.jsonl")
    with pytest.raises(BadInput, match=r"several kinds, \.csv and \.jsonl; keep one"):
        lines(tmp_path / "set").rows()


def test_a_copy_that_is_nowhere_and_a_revision_of_a_copy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="file: 'nowhere' is neither in"):
        Lines(name="lines", family="lines", file="nowhere")
    with pytest.raises(ValueError, match="revision: it is one of the hub's"):
        lines(saved(tmp_path / "x.jsonl"), revision="main")


def test_reading_is_silent_from_the_first_time_on(tmp_path: Path) -> None:
    """In a new process: `datasets` sets the level of its logger anew when it is imported."""
    (tmp_path / "x.parquet").write_text("no parquet")
    code = (
        "from test_workloads_hub import lines; from suite.errors import BadInput; from pathlib import Path\n"
        "try: lines(Path('x.parquet')).rows()\n"
        "except BadInput as error: print(error)"
    )
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    told = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout.startswith("x.parquet: cannot be read: ")
    assert told.stderr == ""


def test_reading_is_silent_and_leaves_the_loggers_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = logging.getLogger("datasets").level
    assert lines(saved(tmp_path / "x.jsonl")).rows()
    (tmp_path / "x.jsonl").write_text("{")
    with pytest.raises(BadInput):
        lines(tmp_path / "x.jsonl").rows()
    assert logging.getLogger("datasets").level == before
    assert capfd.readouterr() == ("", "")


# -- the hub -----------------------------------------------------------------------------------------------

Serve = Callable[[Any], list[Any]]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Put a stand-in where the hub would be: it answers with rows, or raises; how it was asked is kept."""
    asked: list[Any] = []

    def serve(answer: Any) -> list[Any]:
        def load_dataset(*place: Any, **how: Any) -> Any:
            assert not any(Path(how.pop("cache_dir")).iterdir())
            asked.append((place, how))
            if isinstance(answer, Exception):
                raise answer
            return datasets.IterableDataset.from_generator(lambda: iter(answer))

        monkeypatch.setattr("datasets.load_dataset", load_dataset)
        monkeypatch.setattr(hub, "commit", lambda repository, revision, kind: f"{kind}-{revision}")
        return asked

    return serve


def test_the_hub_is_streamed_at_one_commit(served: Serve) -> None:
    asked = served(ROWS)
    trace = lines(None, revision="v1", limit=2).generate(0)
    assert [request.id for request in trace.requests] == ["row-0", "row-1"]
    assert asked == [
        (
            ("maker/things", "small"),
            {"data_files": None, "split": "train", "revision": "dataset-v1", "streaming": True},
        )
    ]
    assert trace.header.choices["provenance"] == (
        "maker/things, small; hub, commit dataset-v1; licence MIT; train, the first 2 rows"
    )


def test_a_folder_of_the_same_name_is_not_taken_for_the_hub(
    tmp_path: Path, served: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = served(ROWS)
    saved(tmp_path / "maker/things/x.jsonl")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        BadInput, match=r"^maker/things: there is a folder of that name here; give it as `file`, or"
    ):
        lines(None).rows()
    assert asked == []


def test_no_version_of_the_library_runs_code_of_a_data_set() -> None:
    """Version 4 has dropped loading scripts; before it they ran, at best after a question."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    [wanted] = [one for one in map(Requirement, project["dependencies"]) if one.name == "datasets"]
    assert wanted.specifier.contains("4.0.0")
    assert not wanted.specifier.contains("3.6.0")


def test_a_wrong_row_on_the_hub_names_the_data_set(served: Serve) -> None:
    served([*ROWS, {"name": "x", "tokens": "many"}])
    with pytest.raises(BadInput, match=r"^maker/things, row 6: tokens: "):
        lines(None).rows()


def test_what_the_hub_refuses_is_one_line_with_the_mend(served: Serve) -> None:
    served(ConnectionError("Couldn't reach it\non the Hub. Try later"))
    with pytest.raises(BadInput) as caught:
        lines(None).rows()
    reason = "not to be had from the hub: no connection: Couldn't reach it on the Hub"
    assert str(caught.value) == f"maker/things: {reason}; name a local copy with `file`"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "404 Client Error. (Request ID: Root=1-6; a) Repository Not Found for url: u. Check it",
            "Repository Not",
        ),
        (
            "401 Client Error. (Request ID: x) Cannot access gated repo for url u.",
            "Cannot access gated repo for",
        ),
        ("Revision Not Found for url: u.", "Revision Not Found"),
        ("", "ValueError"),
    ],
)
def test_reasons_are_the_first_sentence_that_tells_something(said: str, reason: str) -> None:
    assert hub.reason(ValueError(said)).startswith(reason)


def test_a_gated_data_set_says_how_to_get_in(served: Serve) -> None:
    served(PermissionError("gated"))
    with pytest.raises(BadInput, match=r"accept its licence at .*/maker/things and give a token .*HF_TOKEN"):
        Secret(name="lines", family="lines").rows()


def test_without_a_network_the_answer_is_quick_and_plain(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """For real, but for the address: nobody listens there, and nothing tries again and again."""
    import huggingface_hub.constants

    tries = []
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", tries.append)
    assert huggingface_hub.constants.ENDPOINT == "http://127.0.0.1:9"
    with pytest.raises(
        BadInput, match=r"^maker/things: not to be had from the hub: no connection: .*; name a"
    ):
        lines(None).rows()
    assert tries == []
    assert capfd.readouterr() == ("", "")


def test_an_older_cache_is_not_taken_for_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` takes it, with a warning, if the hub falls silent once it has told the commit."""
    from datasets import load_dataset_builder

    folder = tmp_path / "cache/maker___things/small/0.0.0/abc"
    file = str(saved(tmp_path / "x.jsonl"))
    load_dataset_builder("json", data_files=file, cache_dir=str(tmp_path)).download_and_prepare(folder)
    (folder / "json-train.arrow").rename(folder / "things-train.arrow")
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"config_name": "small"}))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", [].append)
    monkeypatch.setattr(hub, "commit", lambda *_: "0" * 40)
    with pytest.raises(BadInput, match=r"^maker/things: not to be had from the hub: "):
        lines(None).rows()
