"""A workload that is served in a moment."""

from __future__ import annotations

from typing import Any

TINY: dict[str, Any] = {
    "family": "shared_document",
    "name": "tiny",
    "duration": 20,
    "rate": 2,
    "documents": 2,
    "document_tokens": 500,
    "question_tokens": 20,
    "output_tokens": 10,
}
