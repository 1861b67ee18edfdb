"""Run by an environment's own Python: what is installed there, and does the engine import?

    python probe.py PACKAGE MODULE DEVICE

The last line of the output is JSON. It imports the standard library only, and the engine.
"""

import importlib
import json
import platform
import sys
from importlib import metadata


def main(package: str, module: str, device: str) -> None:
    """Print the versions found, the packages, and what is wrong with the engine: an empty text if nothing."""
    packages: dict[str, str] = {}
    for found in metadata.distributions():  # of two with one name, the first is the one that is imported
        if found.metadata and found.metadata["Name"]:
            packages.setdefault(found.metadata["Name"], found.version)
    version, error = "", ""
    try:
        importlib.import_module(module)
        version = importlib.import_module(package).__version__
        if device == "cuda" and not importlib.import_module("torch").cuda.is_available():
            error = "torch sees no GPU"
    except BaseException as problem:
        error = f"{module} cannot be imported: {type(problem).__name__}: {problem}".partition("\n")[0]
    answer = {"python": platform.python_version(), "version": version, "packages": packages, "error": error}
    print(f"\n{json.dumps(answer)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
