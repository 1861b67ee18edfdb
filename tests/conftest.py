"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def traces() -> Path:
    """The folder of public traces: $SUITE_TRACES, or shared/traces beside the repository."""
    folder = Path(os.environ.get("SUITE_TRACES", REPOSITORY / "../shared/traces")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no traces at {folder}: set SUITE_TRACES to the folder that holds them")
    return folder
