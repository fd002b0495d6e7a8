"""Compare the promises of `docs/stability.md` with the code."""

import contextlib
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import deformdetr
from deformdetr.losses import SetCriterion
from deformdetr.nn import MSDeformAttn
from deformdetr.structures import Detections, Predictions, Target

DOCS = Path(__file__).parents[1] / "docs"


def _row(first: str) -> list[str]:
    """Return the code spans in the second column of the row that starts with `first`."""
    (line,) = [line for line in (DOCS / "stability.md").read_text().splitlines() if line.startswith(f"| {first} |")]
    return re.findall(r"`([^`]+)`", line.split("|")[2])


def _keys(dictionary: type) -> set[str]:
    return dictionary.__required_keys__ | dictionary.__optional_keys__


def test_page_lists_every_public_module():
    public = {module.name for module in pkgutil.walk_packages(deformdetr.__path__, "deformdetr.")}
    public = {"deformdetr", *(name for name in public if "._" not in name)}
    listed = {name if "deformdetr" in name else f"deformdetr.integrations.{name}" for name in _row("modules")}
    assert listed == public


@pytest.mark.parametrize(
    ("row", "dictionary"),
    [("keys of predictions", Predictions), ("keys of targets", Target), ("keys of detections", Detections)],
)
def test_page_lists_every_key(row, dictionary):
    assert set(_row(row)) == _keys(dictionary)


def test_page_lists_every_loss():
    weights = inspect.signature(SetCriterion).parameters["weights"].default
    assert set(_row("losses")) == set(weights)


def test_page_lists_the_parameters_of_the_attention_layer():
    names = {name.rpartition(".")[0] for name, _ in MSDeformAttn(8, 1, 2, 1).named_parameters()}
    assert set(_row("parameters of `MSDeformAttn`")) == names


def test_page_lists_every_command(capsys):
    with contextlib.suppress(SystemExit):
        deformdetr.cli.main(["--help"])
    (commands,) = set(re.findall(r"\{([a-z,]+)\}", capsys.readouterr().out))
    assert set(_row("commands")) == set(commands.split(","))


def test_reference_lists_the_names_of_the_package_by_their_modules():
    page = (DOCS / "api" / "index.md").read_text().partition("## In `deformdetr` itself")[2]
    rows = re.findall(r"^\| \[`(deformdetr\.\w+)`\]\(\w+\.md\) \| (.*) \|$", page, flags=re.MULTILINE)
    listed = {name: module for module, names in rows for name in re.findall(r"`(\w+)`", names)}
    assert set(listed) == set(deformdetr.__all__)
    for name, module in listed.items():
        assert name in importlib.import_module(module).__all__
