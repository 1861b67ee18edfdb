"""The groups of commands of the command line, one file each."""
