"""Run the Python examples of README and `docs/`, and check their links and lists."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def _blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "document", [document for document in DOCUMENTS if _blocks(document, "python")], ids=lambda path: path.stem
)
def test_python_examples_run_in_reading_order_and_print_the_text_below_them(document, capsys):
    names = {}
    for code, text in re.findall(
        r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```$)?", document.read_text(), flags=re.MULTILINE | re.DOTALL
    ):
        exec(compile(code, str(document), "exec"), names)
        printed = capsys.readouterr().out
        assert not text or printed == text


def test_configs_in_the_training_guide_are_valid():
    from deformdetr.engine import Experiment

    whole, *parts = (yaml.safe_load(block) for block in _blocks(ROOT / "docs" / "training.md", "yaml"))
    assert Experiment.model_validate(whole).model.num_queries == 100
    assert len(parts) >= 3
    for part in parts:
        # Another kind of dataset has other settings.
        sections = {
            name: part.get(name, {}) if "kind" in part.get(name, {}) else whole.get(name, {}) | part.get(name, {})
            for name in ("data", "train")
        }
        Experiment.model_validate({"model": part.get("model", whole["model"]), **sections})


def test_installation_lists_every_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    listed = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "installation.md").read_text(), flags=re.MULTILINE)
    assert sorted(listed) == sorted(extras)


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if path.parent == ROOT], ids=lambda path: path.stem)
def test_links_to_files_of_the_repository_exist(document):
    links = re.findall(r"\]\(([^)#\s]+)", document.read_text())
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_documents_name_no_private_module(document):
    assert re.findall(r"\bdeformdetr(?:[./]\w+)*[./]_\w+", document.read_text()) == []


def test_settings_named_for_newcomers_exist():
    from pydantic import BaseModel

    from deformdetr.engine import Experiment

    block, *_ = _blocks(ROOT / "docs" / "training.md", "yaml")
    experiment = Experiment.model_validate(yaml.safe_load(block))
    rows = re.findall(r"^\| .+ \| (.+) \|$", (ROOT / "docs" / "coming_from.md").read_text(), flags=re.MULTILINE)
    settings = [name for row in rows for name in re.findall(r"`((?:model|data|train)\.[\w.]+)`", row)]
    assert len(settings) > 50
    for name in settings:
        value: object = experiment
        for part in name.split("."):
            assert isinstance(value, BaseModel), name
            assert part in type(value).model_fields, name
            value = getattr(value, part)
