"""What is in a trace: read once as arrays, summed up, as tables and as a page of pictures."""
