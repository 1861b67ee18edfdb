"""The real engine with real weights, in process; the argument is a model's folder.

Prints {scenario: error, or nothing if it held}.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", HF_HUB_OFFLINE="1", VLLM_LOGGING_LEVEL="ERROR")

from harness import POLICIES, entries, scenario
from vllm import LLM, SamplingParams, TokensPrompt

from baselines.decisions import replayed
from suite.backends.host import load

CLIENTS = ("hog", "hog", "hog", "mouse")
OUTPUT = 40


def engine(model: str, suite: dict[str, Any] | None) -> Any:
    """An engine with so small a KV pool that it has to preempt; without the suite it is vLLM's own."""
    return LLM(
        model,
        dtype="float32",
        max_model_len=256,
        enforce_eager=True,
        block_size=32,
        num_gpu_blocks_override=13,
        kv_cache_memory_bytes=32 << 20,
        max_num_seqs=4,
        max_num_batched_tokens=128,
        distributed_executor_backend="uni",
        seed=0,
        skip_tokenizer_init=True,
        scheduler_cls="suite.backends.vllm_plugin.FairScheduler" if suite else None,
        additional_config={"suite": suite} if suite else {},
    ).llm_engine


def prompts() -> list[tuple[str, str, list[int]]]:
    """Requests of two clients over a few shared prefixes: id, client, tokens."""
    rng = random.Random(0)
    documents = [[rng.randrange(3, 500) for _ in range(96)] for _ in range(4)]
    made = []
    for i in range(28):
        tokens = rng.choice(documents) + [rng.randrange(3, 500) for _ in range(rng.choice((8, 40)))]
        made.append((f"r{i}", CLIENTS[i % len(CLIENTS)], tokens))
    return made


def served(core: Any) -> dict[str, list[int]]:
    """Serve all prompts; the tokens generated for each."""
    for id, client, tokens in prompts():
        sampling = SamplingParams(
            max_tokens=OUTPUT,
            min_tokens=OUTPUT,
            ignore_eos=True,
            temperature=0,
            detokenize=False,
            extra_args={"client_id": client, "request_id": id},
        )
        core.add_request(id, TokensPrompt(prompt_token_ids=tokens), sampling)
    texts = {}
    while core.has_unfinished_requests():
        for output in core.step():
            if output.finished:
                texts[output.request_id] = list(output.outputs[0].token_ids)
    return texts


def check_logs(folder: Path, run: int, policy: str) -> Counter[str]:
    """The logs hold what was sent, by client; how often things happened."""
    log = entries(folder / f"service-{run}.jsonl")
    sent, charged, found = Counter(), Counter(), Counter()
    for _, client, tokens in prompts():
        sent[f"{client} input"] += len(tokens)
        sent[f"{client} output"] += OUTPUT
    for kind, _, *facts in log:
        found[kind] += 1
        if kind == "admitted":
            charged[f"{facts[1]} input"] += facts[2] + facts[3]
            found["cached tokens"] += facts[3]
        elif kind == "generated":
            charged.update({f"{client} output": tokens for client, tokens in facts[0].items()})
    assert charged == sent
    facts = log[0][2]
    assert (facts["cached_blocks"], facts["matches"], facts["async"]) == (0, "incremental", False)
    decisions = entries(folder / f"decisions-{run}.jsonl")
    spec = POLICIES[policy]
    assert replayed(decisions, load(spec["target"])(**spec["parameters"])) == decisions
    return found


def main() -> None:
    results: dict[str, str] = {}
    seen: dict[str, Counter[str]] = {}
    expected = served(engine(sys.argv[1], None))
    assert len({tuple(tokens) for tokens in expected.values()}) == len(expected) == 28
    with tempfile.TemporaryDirectory() as logs:
        configuration = {"scheduler": POLICIES["fcfs"], "logs": logs}
        core = engine(sys.argv[1], configuration)
        host = core.engine_core.engine_core.scheduler.host
        for run, policy in enumerate(POLICIES, start=1):
            with scenario(results, policy):
                host._configuration["scheduler"] = POLICIES[policy]
                assert core.reset_prefix_cache()
                assert served(core) == expected, "the text depends on the policy"
                host.close()
                seen[policy] = check_logs(Path(logs), run, policy)
        core.engine_core.shutdown()
    with scenario(results, "nothing was left out"):
        assert all(found["preempted"] and found["resumed"] for found in seen.values()), seen
        assert seen["lpm"]["cached tokens"] > seen["fcfs"]["cached tokens"] > 0, seen
    print(json.dumps({"results": results, "seen": seen}))


if __name__ == "__main__":
    main()
