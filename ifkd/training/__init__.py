"""Training of detectors, alone or with a distillation method: data, optimization, validation, checkpoints, resuming."""
