"""The suite's schedulers inside real vLLM. The scenarios, in `tests/in_vllm`, run in vLLM's environment."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from suite import models

SCRIPTS = Path(__file__).with_name("in_vllm")


def scenarios(vllm: Any, *command: str | Path) -> dict[str, str]:
    """Run scripts with the environment's Python; what each scenario came to."""
    paths = os.pathsep.join([str(SCRIPTS.parents[1]), str(SCRIPTS)])
    done = subprocess.run(
        [vllm.python, *command],
        env={**os.environ, **vllm.variables, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    results: dict[str, str] = json.loads(done.stdout.splitlines()[-1])["results"]
    return results


def broken(results: dict[str, str]) -> str:
    return "\n".join(f"--- {name}\n{error}" for name, error in results.items() if error)


def test_policies_in_the_real_scheduler_without_a_model(vllm: Any) -> None:
    results = scenarios(vllm, SCRIPTS)
    assert not broken(results), broken(results)
    assert {"dlpm, sync", "dlpm, async", "incremental", "nothing of caching was left out"} <= set(results)


def test_the_text_of_every_request_is_the_same_under_every_policy(vllm: Any, tmp_path: Path) -> None:
    results = scenarios(vllm, SCRIPTS / "serving.py", models.model("tiny", tmp_path).path)
    assert not broken(results), broken(results)
    assert set(results) >= {"fcfs", "lpm", "lpm-fallback", "vtc", "dlpm"}
