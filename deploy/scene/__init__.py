"""Detection in scenes: read, run, merge and write."""
