"""Data sets on the hub, through `datasets`: streamed from there, or read from a local copy.

Each family says which data set it reads and what a row of it is; a row that is not so is refused by its
number and column. Nothing is taken on trust, and nothing but rows is taken: no code of a data set runs.
"""

from __future__ import annotations

import json
from abc import ABC
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from glob import escape
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, TypeAdapter, ValidationError, model_validator
from pydantic_core import from_json

from suite import hub
from suite.errors import BadInput, did_you_mean
from suite.validation import first_problem, spot
from workloads.family import Family
from workloads.parts.part import Count, Name
from workloads.reading.json_array import elements, holds_array
from workloads.reading.recorded import digest, files_in, located
from workloads.reading.text import Tokenizer

_BUILDERS = {".json": "json", ".jsonl": "text", ".csv": "csv", ".parquet": "parquet"}
"""What of `datasets` reads a file of which ending. JSON lines and arrays are parsed here: `json` wants
all lines to have the same columns, and an array to fit into memory."""

_BATCH = 100
"""Rows of parquet that are read at once."""


class HubRows(Family, ABC):
    """A workload made of the rows of a data set on the hub.

    `file` is a local copy in its place: a file (.json, .jsonl, .csv, .parquet) or a folder of such files of
    one kind, with the same columns, looked up as `recorded.located` does. `revision` is a branch,
    tag or commit of the data set; `limit` keeps the first so many rows.
    """

    REPOSITORY: ClassVar[str]
    """ORGANISATION/NAME of the data set."""
    CONFIG: ClassVar[str | None] = None
    FILES: ClassVar[str | None] = None
    """The file of the repository that counts, where not all of them do."""
    SPLIT: ClassVar[str] = "train"
    LICENCE: ClassVar[str]
    GATED: ClassVar[bool] = False
    """Whether the hub gives it only to those who have accepted its licence."""
    COLUMNS: ClassVar[Any]
    """What a row is: a type that pydantic can check. Columns that it does not name are ignored."""

    file: Name | None = None
    revision: Name | None = None
    limit: Count | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.file is not None:
            located(self.file)
            if self.revision is not None:
                raise ValueError("revision: it is one of the hub's data set; drop it, or drop `file`")
        return self

    def repository(self) -> str:
        """The data set that is read."""
        return self.REPOSITORY

    def config(self) -> str | None:
        """The configuration of the data set that is read."""
        return self.CONFIG

    def terms(self) -> str:
        """The licence of the data set that is read."""
        return self.LICENCE

    def choices(self) -> dict[str, Any]:
        """The parameters, and where the rows come from in one line."""
        found = super().choices() | {"provenance": self._provenance()}
        if self.file is None:
            return found
        path = located(self.file)
        return found | {"file": path.name, "file_sha256": digest(path)}

    def rows(self) -> list[Any]:
        """The rows, each checked. Raises `BadInput` naming the source, the row from 1 on and the column."""
        return list(self.streamed())

    def streamed(self) -> Iterator[Any]:
        """The same rows one by one, none of them kept."""
        import datasets
        import huggingface_hub

        columns: Any = Annotated[self.COLUMNS, BeforeValidator(_parsed)]
        adapter = TypeAdapter(columns)
        number = 0
        with hub.quiet(datasets), hub.quiet(huggingface_hub):
            for number, row in enumerate(islice(self._raw(), self.limit), start=1):
                try:
                    yield adapter.validate_python(row)
                except ValidationError as error:
                    raise BadInput(f"{self.place()}, row {number}: {_problem(error)}") from None
        if not number:
            raise BadInput(f"{self.place()}: holds no rows")

    def place(self) -> str:
        """How messages name the source of the rows."""
        return self.repository() if self.file is None else str(located(self.file))

    @cached_property
    def commit(self) -> str:
        """The commit on the hub that is read. Raises `BadInput` if the hub does not say."""
        try:
            return hub.commit(self.repository(), self.revision, "dataset")
        except Exception as error:  # the hub's errors have no common base
            raise self._refusal(error) from None

    def _provenance(self) -> str:
        source = ", ".join(filter(None, (self.repository(), self.config())))
        rows = "all rows" if self.limit is None else f"the first {self.limit} rows"
        if self.file is not None:
            return f"{source}; local copy; licence {self.terms()}; {rows}"
        return f"{source}; hub, commit {self.commit}; licence {self.terms()}; {self.SPLIT}, {rows}"

    def _raw(self) -> Iterator[Mapping[str, Any] | str]:
        return self._from_hub() if self.file is None else _from_files(located(self.file))

    def _from_hub(self) -> Iterator[Mapping[str, Any]]:
        name = self.repository()
        if Path(name).exists():  # `datasets` would take it in place of the hub
            raise BadInput(f"{name}: there is a folder of that name here; give it as `file`, or go elsewhere")
        commit = self.commit
        try:
            yield from self._at(commit)
        except Exception as error:
            raise self._refusal(error) from None

    def _at(self, commit: str) -> Iterator[Mapping[str, Any]]:
        from huggingface_hub import HfFileSystem

        if self.FILES is not None and self.FILES.endswith(".json"):
            path = f"datasets/{self.repository()}@{commit}/{self.FILES}"
            with HfFileSystem().open(path) as opened:
                if holds_array(opened):
                    yield from elements(opened)
                    return
        yield from _streamed(self.repository(), self.config(), self.FILES, self.SPLIT, commit)

    def _refusal(self, error: Exception) -> BadInput:
        licence = (
            f"it is gated: accept its licence at huggingface.co/datasets/{self.repository()} and give a "
            f"token (`hf auth login`, or HF_TOKEN); or "
        )
        return BadInput(
            f"{self.repository()}: not to be had from the hub: {hub.reason(error)}; "
            f"{licence if self.GATED else ''}name a local copy with `file`"
        )


class Hub(HubRows, ABC):
    """Rows of text; `tokenizer` is the served model's, as `text.Tokenizer.load` takes it."""

    tokenizer: Name

    @cached_property
    def served_tokenizer(self) -> Tokenizer:
        """`tokenizer`, loaded. Raises `BadInput` if it, or the data set, is not to be had."""
        if self.file is None:
            _ = self.commit
        return Tokenizer.load(self.tokenizer)

    def choices(self) -> dict[str, Any]:
        """What every data set says, the tokenizer by name and digest, and how it makes prompts, in words."""
        return super().choices() | {
            "tokenizer": self.served_tokenizer.name,
            "tokenizer_sha256": self.served_tokenizer.digest,
            "prompt_rule": self.served_tokenizer.rule,
        }


def _streamed(
    source: str, config: str | None, files: str | None, split: str, revision: str | None = None
) -> Iterable[Mapping[str, Any]]:
    """The rows of a data set, none of which is put into a cache or taken from one."""
    from datasets import load_dataset

    with TemporaryDirectory() as empty, suppress(StopIteration):  # how it says that a file is empty
        rows: Any = load_dataset(
            source, config, data_files=files, split=split, revision=revision, cache_dir=empty, streaming=True
        )
        return _in_batches(rows) if rows.info.builder_name == "parquet" else rows
    return ()


def _in_batches(rows: Any) -> Iterator[Mapping[str, Any]]:
    """The same rows, at a fraction of the time; other kinds may change their columns within a batch."""
    for batch in rows.iter(_BATCH):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


# -- local copies ------------------------------------------------------------------------------------------


def _from_files(path: Path) -> Iterator[Mapping[str, Any] | str]:
    """The rows of local files, or the lines of JSON lines."""
    for file in _files(path):
        try:
            yield from _from_file(file)
        except Exception as error:  # those of `datasets` and of pyarrow have no common base
            problem = f"cannot be read: {hub.reason(error)}; mend it, or copy it again"
            raise BadInput(f"{file}: {problem}") from None


def _from_file(file: Path) -> Iterator[Mapping[str, Any] | str]:
    if file.suffix == ".json":
        with file.open("rb") as opened:
            if holds_array(opened):
                yield from elements(opened)
                return
    builder = _BUILDERS[file.suffix]
    rows = _streamed(builder, None, escape(str(file.absolute())), "train")
    yield from (row["text"] for row in rows if row["text"].strip()) if builder == "text" else rows


def _files(path: Path) -> list[Path]:
    """The file, or the files of a folder, in the order of their names."""
    there = files_in(path) if path.is_dir() else [path]
    files = [file for file in there if file.suffix in _BUILDERS]
    kinds = sorted({file.suffix for file in files})
    if not files:
        raise BadInput(f"{path}: no file to read; files of a data set end in {', '.join(_BUILDERS)}")
    if len(kinds) > 1:
        raise BadInput(f"{path}: holds files of several kinds, {' and '.join(kinds)}; keep one")
    return files


# -- rows --------------------------------------------------------------------------------------------------


def _parsed(row: Any) -> Any:
    """A row, which is a line of JSON if it is text."""
    if not isinstance(row, str):
        return row
    try:
        return from_json(row)
    except ValueError as error:
        raise ValueError(f"no JSON: {error}") from None


def _from_json(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("{"):
        with suppress(ValueError):
            return json.loads(value)
    return value


Entry = BeforeValidator(_from_json)
"""Annotation of an object in a list: where not all have equal keys, `datasets` gives them as JSON."""


def _problem(error: ValidationError) -> str:
    """The first problem: the column as the data set spells it, and what is wrong."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "missing" and len(first["loc"]) == 1:
        return f"{spot(first)}: no such column; {did_you_mean(spot(first), first['input'])}"
    return first_problem(error)
