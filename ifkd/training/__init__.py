"""Training: a run's folder, its loop, its arithmetic and what it tells; nothing of any one method."""
