"""What can serve a trace: one file or folder per backend."""
