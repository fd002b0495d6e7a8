"""Generated parts of pages: text between two marks, written from the files in `benchmarks/results/`."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.environment import ROOT
from deformdetr._files import write_text

RESULTS = Path(__file__).parent / "results"
README = ROOT / "README.md"
DOCS = ROOT / "docs"

Parts: TypeAlias = Mapping[tuple[Path, str], str]
"""The generated parts of pages, by page and name; the name of a page's only part is empty."""


def read(name: str) -> Any:
    """Return stored results."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def store(name: str, results: Any) -> None:
    """Write results that `read` returns."""
    write_text(RESULTS / name, json.dumps(results, indent=1) + "\n")


def source(name: str, entry: str = "") -> str:
    """Return a sentence on where stored results, or an entry of them, come from, by what `describe_source` returns."""
    results = read(name)[entry] if entry else read(name)
    commands = " and ".join(f"`{command}`" for command in results["commands"])
    versions = ", ".join(f"{package} {number.split('+')[0]}" for package, number in results["versions"].items())
    # The oldest files have none.
    commit = f"; commit {results['commit']}" if "commit" in results else ""
    return f"By {commands}; {versions}{commit}; stored in `benchmarks/results/{name}`."


def write(parts: Parts) -> None:
    """Write generated parts into their pages."""
    for (page, name), text in parts.items():
        start, _, end = _split(page, name)
        page.write_text(f"{start}\n\n{text}\n\n{end}", encoding="utf-8")


def outdated(parts: Parts) -> list[str]:
    """Return the names of the parts that differ from what their pages have."""
    return [f"{page.name} {name}" for (page, name), text in parts.items() if _split(page, name)[1].strip() != text]


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """Return a table whose first `left` columns are aligned to the left and the others, numbers, to the right."""
    rule = ["---" if index < left else "---:" for index in range(len(heads))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, rule, *rows])


def digits(number: float) -> str:
    """Return a positive number with three significant digits, or rounded to an integer above 100."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _split(page: Path, name: str) -> tuple[str, str, str]:
    """Return the page up to the first mark, the part, and the page from the second mark on."""
    start, end = (f"<!-- generated{f' {name}' if name else ''}: {edge} -->" for edge in ("start", "end"))
    before, found_start, rest = page.read_text(encoding="utf-8").partition(start)
    part, found_end, after = rest.partition(end)
    if not (found_start and found_end):
        raise ValueError(f"{page} lacks the marks {start} and {end}")
    return before + start, part, end + after
