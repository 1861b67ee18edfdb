"""Files on the hub: found at once or refused at once, quietly.

The hub's own client tries again for half a minute where there is no network; here one question with a time
limit goes first, and if nobody answers it, only what is in the hub's cache is taken.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

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


def fetched(repository: str, *needed: str, also: Sequence[str] = ()) -> Path:
    """The folder in the hub's cache with these files of a model, fetched if need be.

    Any of them may be missing on the hub. Without a network the cache will do if it has all that are needed.
    Raises what the client raises.
    """
    import huggingface_hub

    fetch = partial(huggingface_hub.snapshot_download, repository, allow_patterns=[*needed, *also])
    with quiet(huggingface_hub):
        try:
            commit(repository)
        except Exception as unreachable:  # its errors have no common base
            with suppress(Exception):
                folder = Path(fetch(local_files_only=True))
                if all((folder / name).is_file() for name in needed):
                    return folder
            raise unreachable from None
        return Path(fetch())


def reason(error: Exception) -> str:
    """Why something was not to be had, in a few words: the first sentence of what the client says."""
    told = _HTTP.sub("", " ".join(str(error).split())).partition(". ")[0] or type(error).__name__
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return f"no connection: {told}" if kinds & _UNREACHABLE else told


@contextmanager
def quiet(client: Any) -> Iterator[None]:
    """Keep a client of the hub (`datasets`, `huggingface_hub`) silent inside: what goes wrong is raised.

    It takes the module, as that sets the level of its logger when it is imported.
    """
    utils = client.utils
    level, bare = utils.logging.get_verbosity(), utils.are_progress_bars_disabled()
    utils.logging.set_verbosity(logging.CRITICAL)
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.logging.set_verbosity(level)
        if not bare:
            utils.enable_progress_bars()
