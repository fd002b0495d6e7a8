"""Tables, and text that terminals can show."""

from deformdetr._text import printable, table


def test_cells_cannot_move_the_cursor_or_break_lines():
    text = table(["name", "AP"], [["\x1b[31mred", "0.5"], ["a\nb", "0.25"]])
    assert text.splitlines() == ["name           AP", "\\x1b[31mred   0.5", "a\\nb         0.25"]


def test_the_middle_of_long_lines_is_left_out():
    first, second = printable("a" * 60 + "b" * 60 + "\n" + "c" * 100, 100).split("\n")
    assert first == "a" * 47 + " ... " + "b" * 47
    assert second == "c" * 100
