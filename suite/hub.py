"""Files on the hub: found at once or refused at once, quietly.

The hub's own client tries again for half a minute where there is no network; here one question with a time
limit goes first, and if nobody answers it, only what is in the hub's cache is taken.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

PATIENCE = 10.0
"""Seconds that the hub has to answer."""
_HTTP = re.compile(r"^\d{3} \w+ Error\. (\(Request ID: [^)]*\) ?)?")
_UNREACHABLE = {"NetworkError", "TimeoutException", "ConnectionError"}
"""What errors of the network descend from, in whichever HTTP library the client uses."""


def commit(repository: str, revision: str | None = None, kind: Literal["model", "dataset"] = "model") -> str:
    """The commit that a revision of a repository is, by default the newest. Raises what the client raises."""
    from huggingface_hub import HfApi

    api = HfApi()
    ask = api.model_info if kind == "model" else api.dataset_info
    return str(ask(repository, revision=revision, timeout=PATIENCE).sha)


def fetched(repository: str, *files: str) -> Path:
    """The folder in the hub's cache with those of a model's files that there are, fetched if need be.

    Raises what the client raises.
    """
    from huggingface_hub import snapshot_download

    with quiet():
        try:
            commit(repository)
        except Exception as unreachable:  # its errors have no common base
            try:
                return Path(snapshot_download(repository, allow_patterns=[*files], local_files_only=True))
            except Exception:
                raise unreachable from None
        return Path(snapshot_download(repository, allow_patterns=[*files]))


def reason(error: Exception) -> str:
    """Why something was not to be had, in a few words: the first sentence of what the client says."""
    told = _HTTP.sub("", " ".join(str(error).split())).partition(". ")[0] or type(error).__name__
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return f"no connection: {told}" if kinds & _UNREACHABLE else told


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the clients' loggers silent inside: what goes wrong is raised, and told once."""
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
