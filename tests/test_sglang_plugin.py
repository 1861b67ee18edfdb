"""The suite's schedulers inside real SGLang. The scenarios, in `tests/in_sglang`, run in its environment."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from suite import models

SCRIPTS = Path(__file__).with_name("in_sglang")


def test_policies_in_the_real_scheduler(sglang: Any, tmp_path: Path) -> None:
    paths = os.pathsep.join([str(SCRIPTS.parents[1]), str(SCRIPTS)])
    done = subprocess.run(
        [sglang.python, SCRIPTS, models.model("tiny", tmp_path).path],
        env={**os.environ, **sglang.variables, "PYTHONPATH": paths, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    results: dict[str, str] = json.loads(done.stdout.splitlines()[-1])["results"]
    broken = "\n".join(f"--- {name}\n{error}" for name, error in results.items() if error)
    assert not broken, broken
    assert {f"nothing of {part} was left out" for part in ("scheduling", "caching", "serving")} <= set(
        results
    )
    assert {"contracts", "dlpm, mixed overlap", "incremental, rust", "text, dlpm, sync"} <= set(results)
