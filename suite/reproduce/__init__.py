"""Published figures and tables made again: the paper's values beside ours, one file each."""
