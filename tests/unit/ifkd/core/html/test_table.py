"""Tables as text and Markdown."""

from ifkd.core.html.table import Table


def test_columns_are_aligned_as_text() -> None:
    table = Table("C", ("Name", "Value"), (False, True), (("a", "1.0"), ("longer", "123.45")))
    assert table.plain().splitlines() == ["Name     Value", "------  ------", "a          1.0", "longer  123.45"]


def test_special_characters_are_escaped_in_markdown() -> None:
    table = Table("C", ("A", "B"), (False, False), (("x|y", "1\n2"),))
    assert table.markdown().splitlines()[-1] == "| x\\|y | 1 2 |"
