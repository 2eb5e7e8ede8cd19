"""report.json, and the pages rendered from it alone."""
