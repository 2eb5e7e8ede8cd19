"""Check a data set for mistakes, and write a fixed copy: `ifkd data check`."""
