"""Evaluate fair, prefix-locality-aware schedulers for LLM serving."""

__version__ = "0.1.0"
