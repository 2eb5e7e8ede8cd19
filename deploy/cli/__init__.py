"""The `ifkd` command, one module per subcommand."""
