"""All that needs vLLM and no model, in one process. Prints {scenario: error, or nothing if it held}."""

from __future__ import annotations

import json

import caching
import scheduling

results: dict[str, str] = {}
scheduling.check(results)
caching.check(results)
print(json.dumps({"results": results, "seen": {**scheduling.seen, **caching.seen}}))
