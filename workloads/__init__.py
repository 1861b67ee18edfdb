"""Every workload family of the suite, one file each."""
