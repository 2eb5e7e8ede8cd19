"""The verbs of this package, one module each: `configure(parser)` and `run(arguments)`."""
