"""What recorded workloads are read with: files, data sets on the hub, text and its tokens."""
