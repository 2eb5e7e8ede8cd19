"""Self-contained HTML pages: templates, style sheet, tables and SVG charts."""
