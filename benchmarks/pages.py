"""The generated parts of pages: what stands between two marks is written from stored results, by a command."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"


def marks(name: str = "") -> tuple[str, str]:
    """Give the marks around a part; a page with several of them names each."""
    label = f"generated {name}" if name else "generated"
    return f"<!-- {label}: start -->", f"<!-- {label}: end -->"


def generated_part(page: Path, name: str = "") -> str:
    """Give what stands between the marks of a page."""
    return _split(page, name)[1].strip()


def write_generated_part(page: Path, text: str, name: str = "") -> None:
    """Put text between the marks of a page."""
    before, _, after = _split(page, name)
    start, end = marks(name)
    page.write_text(f"{before}{start}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def has_generated_part(page: Path, name: str = "") -> bool:
    """Say whether a page has both marks of a part."""
    text = page.read_text(encoding="utf-8")
    return all(mark in text for mark in marks(name))


def _split(page: Path, name: str) -> tuple[str, str, str]:
    start, end = marks(name)
    before, found_start, rest = page.read_text(encoding="utf-8").partition(start)
    part, found_end, after = rest.partition(end)
    if not (found_start and found_end):
        raise ValueError(f"{page} lacks the marks {start} and {end}")
    return before, part, after
