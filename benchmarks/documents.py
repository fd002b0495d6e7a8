"""What the pages say of the results, and the charts on them."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.cases import KINDS, Device
from benchmarks.pages import RESULTS, ROOT, has_generated_part, marks, write_generated_part
from benchmarks.plots import charts
from benchmarks.results import Results, load_all
from benchmarks.tables import NOT_MEASURED, floor_table, long_table, place, provenance, summary_table

PAGE = ROOT / "docs" / "benchmarks.md"
README = ROOT / "README.md"
IMAGES = ROOT / "docs" / "images"
SUMMARY = "benchmarks"


def parts(directory: Path = RESULTS) -> dict[str, str]:
    """Write every generated part of the page, by its name."""
    operator = load_all(directory, "operator")
    on_gpu = _of_device(operator, "cuda")
    return {
        "operator cpu": _sections(_of_device(operator, "cpu")),
        "operator cuda": _sections(on_gpu),
        "floors": floor_table(on_gpu[0] if on_gpu else None),
        "model": _sections(load_all(directory, "model")),
        "matcher": _sections(load_all(directory, "matcher")),
        "criterion": _sections(load_all(directory, "criterion")),
    }


def summary(directory: Path = RESULTS) -> str:
    """Write what the README says."""
    everything = [results for kind in KINDS for results in load_all(directory, kind)]
    return (
        f"{summary_table(everything)}\n\nMedians of turns in one process. Commands, versions, spread and all that else "
        "was compared are in `docs/benchmarks.md`, from the files in `benchmarks/results/`."
    )


def write_pages(directory: Path = RESULTS) -> list[str]:
    """Put the parts into the pages, and give the complaints about marks that are missing."""
    complaints = []
    for page, name, text in [
        *((PAGE, name, text) for name, text in parts(directory).items()),
        (README, SUMMARY, summary(directory)),
    ]:
        if has_generated_part(page, name):
            write_generated_part(page, text, name)
        else:
            complaints.append(f"{page} has no place for this part; add the lines {' and '.join(marks(name))}")
    return complaints


def _of_device(all_results: Sequence[Results], device: Device) -> list[Results]:
    return [results for results in all_results if results.environment.device == device]


def _sections(all_results: Sequence[Results]) -> str:
    """Write charts, where the numbers come from, and the numbers."""
    sections = []
    for results in all_results:
        sections += [f"![Times on {place(results)}](images/{name})" for name in charts(results)]
        sections += [provenance(results), long_table(results)]
    return "\n\n".join(sections) or f"{NOT_MEASURED.capitalize()}."
