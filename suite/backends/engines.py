"""The backends that start a real engine themselves."""

from __future__ import annotations

from suite.backends.engine import EngineBackend
from suite.backends.sglang import SGLang
from suite.backends.vllm import VLLM
from suite.errors import BadInput, did_you_mean

ENGINES: dict[str, type[EngineBackend]] = {"vllm": VLLM, "sglang": SGLang}


def named(kind: str) -> type[EngineBackend]:
    """The backend of an engine. Raises `BadInput` for an unknown one."""
    if kind not in ENGINES:
        raise BadInput(f"{kind!r} is no engine that the suite starts; {did_you_mean(kind, ENGINES)}")
    return ENGINES[kind]
