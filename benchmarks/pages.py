"""The generated parts of pages: what stands between two marks is written from stored results, by a command."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
START, END = "<!-- generated: start -->", "<!-- generated: end -->"


def generated_part(page: Path) -> str:
    """Give what stands between the marks of a page."""
    _, start, rest = page.read_text(encoding="utf-8").partition(START)
    part, end, _ = rest.partition(END)
    if not (start and end):
        raise ValueError(f"{page} lacks the marks {START} and {END}")
    return part.strip()


def write_generated_part(page: Path, text: str) -> None:
    """Put text between the marks of a page."""
    generated_part(page)
    before, _, rest = page.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{START}\n\n{text}\n\n{END}{after}", encoding="utf-8")
