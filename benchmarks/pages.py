"""Generated parts of pages: text between two marks, written by a command from stored results."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"


Parts: TypeAlias = Mapping[Path, Mapping[str, str]]
"""The generated parts of pages, by page and name; the name of a page's only part is empty."""


@dataclass(frozen=True)
class Report:
    """Stored results, and the parts of pages that are written from them.

    Attributes:
        stored: JSON file with the results.
        parts: Returns the generated parts for the results.
    """

    stored: Path
    parts: Callable[[Any], Parts]

    def load(self) -> Any:
        """Read the stored results."""
        return json.loads(self.stored.read_text(encoding="utf-8"))

    def update(self, results: Mapping[str, Any] | None = None, *, indent: int = 2) -> None:
        """Store results, if they are given, and write all parts from the stored results."""
        if results is not None:
            self.stored.write_text(json.dumps(results, indent=indent) + "\n", encoding="utf-8")
        write_parts(self.parts(self.load()))


def write_parts(parts: Parts) -> None:
    """Write generated parts into their pages."""
    for page, texts in parts.items():
        for name, text in texts.items():
            write_generated_part(page, text, name)


def outdated(parts: Parts) -> list[str]:
    """Return the names of the parts that differ from what their pages have."""
    return [
        f"{page.name} {name}"
        for page, texts in parts.items()
        for name, text in texts.items()
        if generated_part(page, name) != text
    ]


def marks(name: str = "") -> tuple[str, str]:
    """Return the marks around a part; a page with several parts names each."""
    label = f"generated {name}" if name else "generated"
    return f"<!-- {label}: start -->", f"<!-- {label}: end -->"


def generated_part(page: Path, name: str = "") -> str:
    """Return the text between the marks of a page."""
    return _split(page, name)[1].strip()


def write_generated_part(page: Path, text: str, name: str = "") -> None:
    """Replace the text between the marks of a page."""
    before, _, after = _split(page, name)
    start, end = marks(name)
    page.write_text(f"{before}{start}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """Return a table whose first `left` columns are aligned to the left and the others, numbers, to the right."""
    rule = ["---" if index < left else "---:" for index in range(len(heads))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, rule, *rows])


def digits(number: float) -> str:
    """Return a positive number with three significant digits, or rounded to an integer above 100."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _split(page: Path, name: str) -> tuple[str, str, str]:
    start, end = marks(name)
    before, found_start, rest = page.read_text(encoding="utf-8").partition(start)
    part, found_end, after = rest.partition(end)
    if not (found_start and found_end):
        raise ValueError(f"{page} lacks the marks {start} and {end}")
    return before, part, after
