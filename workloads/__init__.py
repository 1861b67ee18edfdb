"""Every workload family of the suite, one file each, and the parts they share.

A family is a module with one concrete subclass of `workloads.family.Family`; a file added here is found by
its name. `workloads.spec.load` is the one door to all of them.
"""
