"""Scheduling policies, one file each. Standard library only: engines load them in environments of their own."""
