"""All scenarios, in one process; the argument is a model's folder.

Prints {"results": {scenario: error, or nothing if it held}, "seen": how often things happened}.
"""

from __future__ import annotations

import json

import caching
import events
import scheduling
import serving

results: dict[str, str] = {}
for each in (scheduling, events, caching, serving):
    each.check(results)
print(json.dumps({"results": results, "seen": {**scheduling.seen, **caching.seen, **serving.seen}}))
