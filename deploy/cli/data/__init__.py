"""The `ifkd data` subcommands."""
