"""The real scheduler with a real model: what it generates must not depend on the policy."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from harness import POLICIES, Engine, arriving, entries, request, scenario
from scheduling import decided, fair

CLIENTS = ("hog", "hog", "hog", "mouse")
OUTPUT = 24
seen: dict[str, Counter[str]] = {}


def requests() -> list[Any]:
    """Requests of two clients over a few shared prefixes."""
    rng = random.Random(0)
    documents = [[rng.randrange(3, 500) for _ in range(60)] for _ in range(4)]
    made = []
    for i in range(28):
        tokens = rng.choice(documents) + [rng.randrange(3, 500) for _ in range(rng.choice((8, 40)))]
        made.append(request(f"r{i}", tokens, OUTPUT, CLIENTS[i % len(CLIENTS)]))
    return made


def served(policy: dict[str, Any], way: str, tokens: int) -> tuple[dict[str, list[int]], Counter[str]]:
    """Serve all requests; what was generated for each, and how often things happened."""
    with fair(policy, way, tokens=tokens) as (engine, folder):
        engine = Engine(engine.core, computing=True)
        engine.serve(arriving(requests(), each=28))
        engine.core.host.close()
        log = entries(folder / "service-0.jsonl")
        decided(folder, policy)
        return dict(engine.core.outbox.texts), happened(log)


def happened(log: list[list[Any]]) -> Counter[str]:
    """Of a log that must hold what was sent, by client: how often things happened."""
    sent: Counter[str] = Counter()
    charged: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for each in requests():
        sent[f"{each.routing_key} input"] += len(each.input_ids)
        sent[f"{each.routing_key} output"] += OUTPUT
    for kind, _, *facts in log:
        found[kind] += 1
        if kind == "admitted":
            charged[f"{facts[1]} input"] += facts[2] + facts[3]
            found["cached tokens"] += facts[3]
        elif kind == "generated":
            charged.update({f"{client} output": tokens for client, tokens in facts[0].items()})
    assert charged == sent
    return found


def check(results: dict[str, str]) -> None:
    """Note of every policy whether the text is that of SGLang on its own."""
    expected, _ = served({"stock": "fcfs"}, "sync", tokens=8000)
    with scenario(results, "texts differ by request"):
        assert {len(text) for text in expected.values()} == {OUTPUT}
        assert len({tuple(text) for text in expected.values()}) == len(expected) == 28
    for name, policy in {**POLICIES, "stock lpm": {"stock": "lpm"}}.items():
        for way in ("sync", "mixed overlap"):
            with scenario(results, f"text, {name}, {way}"):
                texts, seen[f"{name}, {way}"] = served(policy, way, tokens=400)
                assert texts == expected, "the text depends on the policy"
    with scenario(results, "nothing of serving was left out"):
        assert all(found["resumed"] for name, found in seen.items() if name.endswith(", sync")), seen
        assert seen["lpm, sync"]["cached tokens"] > seen["fcfs, sync"]["cached tokens"] > 0, seen
