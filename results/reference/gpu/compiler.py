"""Print the shell variables that kernels need which an engine compiles when they are first run.

    python compiler.py FOLDER

Gathers what may lie apart: the CUDA compiler, which may be on the PATH as a link or a script; headers that
only the packages of torch have; and the driver's library, which the linker wants under a name without a
number: a link in FOLDER. Ends with 1 and says what is missing. Needs the standard library only.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path


def main(folder: Path) -> int:
    """Print a line for each variable."""
    try:
        found = {"CUDA_HOME": home(), "CPATH": headers(), "LIBRARY_PATH": linked(folder)}
    except OSError as problem:
        print(problem, file=sys.stderr)
        return 1
    for name, place in found.items():
        print(f"export {name}={shlex.quote(str(place))}")
    return 0


def home() -> Path:
    """The folder of the CUDA toolkit, by the word of its compiler."""
    if given := os.environ.get("CUDA_HOME"):
        return Path(given)
    said = subprocess.run(["nvcc", "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    if top := re.search(r"^#\$ TOP=(.*)$", said, re.MULTILINE):
        return Path(top[1]).resolve()
    raise OSError(f"nvcc does not say where its toolkit is: {said[:200]}")


def headers() -> Path:
    """The headers among the packages of torch, such as those of cuBLAS."""
    packages = importlib.util.find_spec("nvidia")
    for place in (packages.submodule_search_locations if packages else None) or ():
        if (found := Path(place, "cu13", "include")).is_dir():
            return found
    raise OSError("no headers of CUDA 13 among the packages of torch (nvidia/cu13/include)")


def linked(folder: Path) -> Path:
    """The folder, in which the driver's library is now called libcuda.so."""
    ctypes.CDLL("libcuda.so.1")
    mapped = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    library = next(line.split(maxsplit=5)[5] for line in mapped if "/libcuda.so" in line)
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "libcuda.so"
    link.unlink(missing_ok=True)
    link.symlink_to(library)
    return folder


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
