"""Text that terminals can show, and tables of it."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """Return a table with aligned columns, in which control characters are escaped, such as those of a category's name.

    Args:
        header: Names of the columns; blanks before a name make a column wider.
        rows: Texts of each row, one per column.
        texts: Number of left-aligned columns. Those after them are right-aligned.
    """
    lines = [[printable(cell).replace("\n", "\\n") for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index < texts else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def printable(text: str, width: int = 2000) -> str:
    """Return a text that a terminal can show.

    Control characters except line ends are escaped, because terminals would obey them. The middle of lines longer than
    `width` is left out: they repeat an input that is as long.
    """
    escaped = "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text)
    return "\n".join(_without_middle(line, width) for line in escaped.split("\n"))


def _without_middle(line: str, width: int) -> str:
    kept = (width - 5) // 2
    return line if len(line) <= width else f"{line[:kept]} ... {line[-kept:]}"
