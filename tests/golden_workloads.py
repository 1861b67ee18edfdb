"""The digests of the ready workloads that are named, under seed 0, as JSON.

By default those of all that are made up from parameters alone:

python tests/golden_workloads.py > tests/golden_workloads.json
"""

from __future__ import annotations

import json
import sys

from suite.validation import read_yaml
from workloads.spec import SPECS, families, load, ready


def synthetic() -> list[str]:
    """The names of the ready specs that need no file."""
    known = families()
    return [name for name in ready() if "file" not in known[_family(name)].model_fields]


def digest(name: str) -> str:
    """Of the trace of a ready spec."""
    return load(name).generate(0).digest


def _family(name: str) -> str:
    family: str = read_yaml(SPECS / f"{name}.yaml")["family"]
    return family


if __name__ == "__main__":
    json.dump({name: digest(name) for name in sys.argv[1:] or synthetic()}, sys.stdout, indent=1)
    print()
