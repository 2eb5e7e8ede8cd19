"""The paper's figures from a study's runs, as PNG, SVG and PDF, each with a CSV file of its data."""
