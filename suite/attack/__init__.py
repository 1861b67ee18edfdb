"""The stress search: which workload hurts a scheduler most, and a small trace that shows it."""
