"""Export of checkpoints to bundles, engines and Triton model repositories."""
