"""A JSON file that is one array, read element by element: the whole may be larger than memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO, Any

import ijson

_STEP = {"start_map": 1, "start_array": 1, "end_map": -1, "end_array": -1}
_DEEPEST = 200
"""How deep a value may nest."""
_FAULT = re.compile(r"(?:lexical|parse) error: ([^.\n]+)")
"""What is wrong, in a message of the parser that goes on to draw where."""


def holds_array(file: IO[bytes]) -> bool:
    """Whether the file, which is then at its beginning again, begins as an array does."""
    while (first := file.read(1)).isspace():
        pass
    file.seek(0)
    return first == b"["


def elements(file: IO[bytes]) -> Iterator[Any]:
    """The elements of the array, no more of which is read than is asked for.

    Half a surrogate pair becomes a question mark. Raises `ValueError` naming the row, from 1 on, if the rest
    of the file is not the rest of an array.
    """
    row = 1
    try:
        for element in _built(file):
            yield element
            row += 1
    except ijson.JSONError as error:
        fault = _FAULT.search(str(error))
        raise ValueError(f"row {row}: {fault[1] if fault else error}") from None


def _built(file: IO[bytes]) -> Iterator[Any]:
    """As `ijson.items` does it, whose memory grows with the square of the depth."""
    events = ijson.basic_parse(file, use_float=True)
    next(events)
    depth, builder = 0, ijson.ObjectBuilder()
    for event, value in events:
        depth += _STEP.get(event, 0)
        if depth > _DEEPEST:
            raise ijson.JSONError(f"nests deeper than {_DEEPEST}")
        if depth < 0:  # the end of the array, behind which nothing may stand
            continue
        builder.event(event, value)
        if depth == 0:
            yield builder.value
            builder = ijson.ObjectBuilder()
