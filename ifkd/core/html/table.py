"""A table as text cells: the same on a page, in Markdown and on a terminal."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    """Cells of text under headings; the first column names the rows."""

    caption: str
    headings: tuple[str, ...]
    numeric: tuple[bool, ...]
    """Columns that hold figures and are set to the right."""
    rows: tuple[tuple[str, ...], ...]

    def plain(self) -> str:
        """Return the table as aligned lines for a terminal."""
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
        """Return the table in GitHub's Markdown."""
        rule = [("---:" if right else "---") for right in self.numeric]
        lines = [self.headings, tuple(rule), *self.rows]
        return "\n".join(f"| {' | '.join(markdown_cell(cell) for cell in line)} |" for line in lines)


def markdown_cell(text: str) -> str:
    """Return text that stays one cell of a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
