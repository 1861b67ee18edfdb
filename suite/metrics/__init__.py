"""Pure functions of a run folder: service, windows, fairness, latency, throughput.

`glossary` states every reported number: formula, window, unit, source and what it hides.
"""
