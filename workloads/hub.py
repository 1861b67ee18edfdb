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
from typing import Any, ClassVar, Self

from pydantic import BeforeValidator, TypeAdapter, ValidationError, model_validator

from suite import hub
from suite.errors import BadInput, did_you_mean
from suite.validation import first_problem, spot
from workloads.family import Family
from workloads.part import Count, Name
from workloads.recorded import digest, located
from workloads.text import Tokenizer

_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
"""What reads a file of which ending."""


class HubRows(Family, ABC):
    """A workload made of the rows of a data set on the hub.

    `file` is a local copy in its place: a file (.json, .jsonl, .csv, .parquet) or a folder of such files of
    one kind, with the same columns, looked up as `workloads.recorded.located` does. `revision` is a branch,
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
        found = list(self.streamed())
        if not found:
            raise BadInput(f"{self.place()}: holds no rows")
        return found

    def streamed(self) -> Iterator[Any]:
        """The same rows one by one; there may be none."""
        adapter = TypeAdapter(self.COLUMNS)
        with hub.quiet():
            for number, row in enumerate(islice(self._raw(), self.limit), start=1):
                try:
                    yield adapter.validate_python(row)
                except ValidationError as error:
                    raise BadInput(f"{self.place()}, row {number}: {_problem(error, row)}") from None

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
        where = f"hub, commit {self.commit}" if self.file is None else "local copy"
        rows = "all rows" if self.limit is None else f"the first {self.limit} rows"
        return f"{source}; {where}; licence {self.terms()}; {self.SPLIT}, {rows}"

    def _raw(self) -> Iterator[Mapping[str, Any]]:
        return self._from_hub() if self.file is None else _from_files(located(self.file))

    def _from_hub(self) -> Iterator[Mapping[str, Any]]:
        commit = self.commit
        try:
            yield from _streamed(self.repository(), self.config(), self.FILES, self.SPLIT, commit)
        except Exception as error:
            raise self._refusal(error) from None

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
    """Rows of text; `tokenizer` is the served model's, as `workloads.text.Tokenizer.load` takes it."""

    tokenizer: Name

    def text(self) -> Tokenizer:
        """The tokenizer. Raises `BadInput` if it is not to be had, or the hub does not know the data set."""
        if self.file is None:
            _ = self.commit
        return self._tokenizer

    def choices(self) -> dict[str, Any]:
        """What every data set says, the tokenizer by name and digest, and how it makes prompts, in words."""
        served = self.text()
        return super().choices() | {
            "tokenizer": served.name,
            "tokenizer_sha256": served.digest,
            "prompt_rule": served.rule,
        }

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.tokenizer)


def _streamed(
    source: str, config: str | None, files: str | list[str] | None, split: str, revision: str | None = None
) -> Iterable[Mapping[str, Any]]:
    """The rows of a data set, none of which is kept in a cache."""
    from datasets import load_dataset

    rows: Iterable[Mapping[str, Any]] = load_dataset(
        source, config, data_files=files, split=split, revision=revision, streaming=True
    )
    return rows


# -- local copies ------------------------------------------------------------------------------------------


def _from_files(path: Path) -> Iterator[Mapping[str, Any]]:
    files = _files(path)
    try:
        yield from _streamed(
            _BUILDERS[files[0].suffix], None, [escape(str(file.absolute())) for file in files], "train"
        )
    except StopIteration:  # how `datasets` says that a file is empty
        return
    except Exception as error:  # its errors, and pyarrow's, have no common base
        raise BadInput(f"{path}: cannot be read: {hub.reason(error)}; mend it, or copy it again") from None


def _files(path: Path) -> list[Path]:
    """The file, or the files of a folder, in the order of their names."""
    there = sorted(path.rglob("*")) if path.is_dir() else [path]
    files = [file for file in there if file.suffix in _BUILDERS and file.is_file()]
    kinds = sorted({file.suffix for file in files})
    if not files:
        raise BadInput(f"{path}: no file to read; files of a data set end in {', '.join(_BUILDERS)}")
    if len(kinds) > 1:
        raise BadInput(f"{path}: holds files of several kinds, {' and '.join(kinds)}; keep one")
    return files


# -- rows --------------------------------------------------------------------------------------------------


def _from_json(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("{"):
        with suppress(ValueError):
            return json.loads(value)
    return value


Entry = BeforeValidator(_from_json)
"""Annotation of an object in a list: where not all have equal keys, `datasets` gives them as JSON."""


def _problem(error: ValidationError, row: Mapping[str, Any]) -> str:
    """The first problem: the column as the data set spells it, and what is wrong."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "missing" and len(first["loc"]) == 1:
        return f"{spot(first)}: no such column; {did_you_mean(spot(first), row)}"
    return first_problem(error)
