"""Tables for HTML, Markdown and the terminal."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text cells; the first column has the names of the rows."""

    caption: str
    headings: tuple[str, ...]
    numeric: tuple[bool, ...]
    """Columns of numbers, which are aligned right."""
    rows: tuple[tuple[str, ...], ...]

    def plain(self) -> str:
        """Return the table as aligned lines of text."""
        lines = [self.headings, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.headings))]
        shown = [
            "  ".join(
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(line, widths, self.numeric, strict=True)
            ).rstrip()
            for line in lines
        ]
        return "\n".join([shown[0], "  ".join("-" * width for width in widths), *shown[1:]])

    def markdown(self) -> str:
        """Return the table as GitHub Markdown."""
        rule = [("---:" if right else "---") for right in self.numeric]
        lines = [self.headings, tuple(rule), *self.rows]
        return "\n".join(f"| {' | '.join(markdown_cell(cell) for cell in line)} |" for line in lines)


def markdown_cell(text: str) -> str:
    """Return text escaped for a cell of a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
