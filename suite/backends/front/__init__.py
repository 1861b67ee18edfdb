"""The HTTP front before several replicas of an engine: a process that hosts any router of the suite."""
