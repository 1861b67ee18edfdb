"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from suite import environments
from suite.environments import Environment
from suite.errors import BadInput

REPOSITORY = Path(__file__).resolve().parents[1]

settings.register_profile("suite", deadline=None)  # no test depends on how fast the machine is
settings.load_profile("suite")


@pytest.fixture(scope="session")
def traces() -> Path:
    """The folder of public traces: $SUITE_TRACES, or shared/traces beside the repository."""
    folder = Path(os.environ.get("SUITE_TRACES", REPOSITORY / "../shared/traces")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no traces at {folder}: set SUITE_TRACES to the folder that holds them")
    return folder


@pytest.fixture(scope="session")
def vllm() -> Environment:
    """The environment of vLLM on the CPU, where it is installed."""
    return _installed("vllm")


@pytest.fixture(scope="session")
def sglang() -> Environment:
    """The environment of SGLang on the CPU, where it is installed."""
    return _installed("sglang")


def _installed(engine: str) -> Environment:
    try:
        return environments.find(engine, "cpu")
    except BadInput as error:
        pytest.skip(str(error))
