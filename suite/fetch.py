"""Public traces, downloaded: known by name, checked by size and SHA-256 before they stand in their place.

A download goes to `FILE.part` beside it, which an interrupt leaves there and the next attempt goes on from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fcntl import LOCK_EX, LOCK_NB, flock
from hashlib import file_digest
from http.client import HTTPException, HTTPResponse, InvalidURL
from importlib.resources import files
from pathlib import Path, PurePosixPath
from time import sleep
from typing import IO, Annotated
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from suite.errors import BadInput, did_you_mean
from suite.files import writing
from suite.validation import at, read_yaml, validated

PUBLIC = Path(str(files("workloads"))) / "public.yaml"
"""The traces that the suite knows."""
PAUSES = (1.0, 2.0, 4.0)
"""Seconds before each further attempt, after a transfer that broke off."""
PATIENCE = 30.0
"""Seconds without a word from a server, after which a transfer counts as broken off."""

_CHUNK = 1 << 18


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or not path.isprintable():
        raise ValueError("a path below the folder of traces, without `..`")
    return path


class File(BaseModel):
    """One file: where it goes below the folder of traces, where it comes from, and how it is known."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Annotated[str, AfterValidator(_inside)]
    url: Annotated[str, Field(pattern=r"^https?://[!-.0-~]+/[!-~]+$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(gt=0)]

    def in_folder(self, folder: Path) -> Path:
        """Where it is, or would be."""
        return folder / self.path


class PublicTrace(BaseModel):
    """A public trace, or several that belong together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    what: str
    """In a few words."""
    source: str
    licence: str
    cite: str
    """What its authors ask to be cited."""
    files: Annotated[tuple[File, ...], Field(min_length=1)]

    @property
    def bytes(self) -> int:
        """Of all its files."""
        return sum(file.bytes for file in self.files)

    def here(self, folder: Path) -> str:
        """How much of it is in the folder, by the names and sizes of files: `yes`, `no` or a word on it."""
        sizes = [_size(file.in_folder(folder)) for file in self.files]
        if all(size == file.bytes for size, file in zip(sizes, self.files, strict=True)):
            return "yes"
        if any(size not in (0, file.bytes) for size, file in zip(sizes, self.files, strict=True)):
            return "not as published"
        begun = sum(sizes) + sum(_size(_part(file.in_folder(folder))) for file in self.files)
        return f"{begun / self.bytes:.0%}" if begun else "no"


class _Registry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    traces: dict[str, PublicTrace]


def registry(path: Path = PUBLIC) -> dict[str, PublicTrace]:
    """The public traces by name. Raises `BadInput` naming the file and the field."""
    content = read_yaml(path)
    with at(str(path)):
        return validated(_Registry, content).traces


def named(name: str, known: dict[str, PublicTrace]) -> PublicTrace:
    """The trace of this name. Raises `BadInput`."""
    if name not in known:
        raise BadInput(f"no public trace {name!r}; {did_you_mean(name, known)}")
    return known[name]


def fetch(
    file: File, folder: Path, told: Callable[[int], None], pauses: tuple[float, ...] = PAUSES
) -> tuple[Path, bool]:
    """Bring a file into the folder: its path, and whether it had to be downloaded.

    `told` hears now and then how many bytes there are. Raises `BadInput` if there is another file in its
    place, which is left alone, if the server cannot be reached or says no, and if what came is not the
    published file, which is then thrown away.
    """
    target = file.in_folder(folder)
    if target.exists():
        if not _is(file, target):
            raise BadInput(f"{target}: there, but not as published; move it away to download it anew")
        return target, False
    part = _part(target)
    _complete(file, part, told, pauses)
    if not _is(file, part):
        raise _unpublished(file, part, f"its SHA-256 is not {file.sha256}")
    with writing(target):
        part.replace(target)
    return target, True


# -- the transfer ------------------------------------------------------------------------------------------


class _BrokenOffError(Exception):
    """The connection was lost."""


def _complete(file: File, part: Path, told: Callable[[int], None], pauses: tuple[float, ...]) -> None:
    """Download until the part has all bytes, beginning again after each pause where it broke off."""
    for pause in (*pauses, None):
        try:
            _go_on(file, part, told)
            return
        except _BrokenOffError as error:
            if pause is None:
                raise BadInput(
                    f"{file.url}: broke off after {_size(part):,} of {file.bytes:,} bytes: {error}; they are "
                    f"kept, and the same command goes on from there"
                ) from None
            sleep(pause)


def _go_on(file: File, part: Path, told: Callable[[int], None]) -> None:
    """Download what the part lacks."""
    if _size(part) > file.bytes:
        part.unlink()
    if (have := _size(part)) == file.bytes:
        return
    with _opened(file, part, have) as response:
        before = have if response.status == 206 else 0
        whole = file.bytes if response.length is None else before + response.length
        if whole != file.bytes:
            raise _unpublished(file, part, f"it has {whole:,} bytes, not {file.bytes:,}")
        with writing(part):
            part.parent.mkdir(parents=True, exist_ok=True)
        with writing(part), part.open("ab") as sink:
            _claim(sink, part, have)
            sink.truncate(before)
            for chunk in _chunks(response):
                sink.write(chunk)
                told(sink.tell())
                if sink.tell() > file.bytes:
                    break
    if _size(part) < file.bytes:
        raise _BrokenOffError("the connection was closed")


def _opened(file: File, part: Path, have: int) -> HTTPResponse:
    """The answer to a request for all bytes but the first `have`."""
    headers = {"User-Agent": "fair-prefix-suite", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    by_hand = f"download it by hand to {part.with_suffix('')}"
    try:
        response: HTTPResponse = urlopen(Request(file.url, headers=headers), timeout=PATIENCE)
    except HTTPError as error:
        error.close()
        if error.code == 416:  # what we have is no beginning of what the server has
            part.unlink(missing_ok=True)
            raise _BrokenOffError(f"the server cannot go on from {have:,} bytes") from None
        if error.code >= 500 or error.code == 429:
            raise _BrokenOffError(f"the server says {error.code} {error.reason}") from None
        raise BadInput(f"{file.url}: the server says {error.code} {error.reason}; {by_hand}") from None
    except (URLError, ValueError, InvalidURL) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise BadInput(f"{file.url}: no network, or no such server: {reason}; {by_hand}") from None
    except (OSError, HTTPException) as error:
        raise _BrokenOffError(str(error) or type(error).__name__) from None
    return response


def _claim(sink: IO[bytes], part: Path, have: int) -> None:
    """Let nobody else write to the part until it is closed. Raises `BadInput` if somebody does."""
    try:
        flock(sink, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        raise BadInput(f"{part}: another download writes to it; wait for its end") from None
    if sink.tell() != have:
        raise _BrokenOffError("another download wrote to it")


def _unpublished(file: File, part: Path, why: str) -> BadInput:
    """The refusal of what came, which is thrown away."""
    part.unlink(missing_ok=True)
    return BadInput(f"{file.url}: what came is not the published file ({why}); nothing is kept")


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := response.read1(_CHUNK):
            yield chunk
    except (OSError, HTTPException) as error:
        raise _BrokenOffError(str(error) or type(error).__name__) from None


# -- files -------------------------------------------------------------------------------------------------


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _size(path: Path) -> int:
    """Bytes of a file; 0 if it is not there."""
    return path.stat().st_size if path.is_file() else 0


def _is(file: File, path: Path) -> bool:
    """Whether a path holds the published file."""
    if _size(path) != file.bytes:
        return False
    with path.open("rb") as content:
        return file_digest(content, "sha256").hexdigest() == file.sha256
