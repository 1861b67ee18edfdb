"""Pure functions of a run folder: service, fairness and its audit, latency, goodput, throughput, sharing.

`glossary` states every reported number: formula, window, unit, source and what it hides.
"""
