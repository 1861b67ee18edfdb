"""Scheduling policies, one file each. Standard library only: engines load them in their own environments."""
