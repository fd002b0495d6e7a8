"""The description of the package on a package index, and the address of the repository."""

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from deformdetr import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HOOK = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]


def described(substitutions: list[dict[str, Any]]) -> str:
    """Return the README after the substitutions, which hatch-fancy-pypi-readme applies by the same function."""
    text = "".join((ROOT / fragment["path"]).read_text() for fragment in HOOK["fragments"])
    for each in substitutions:
        assert each.keys() == {"pattern", "replacement"}
        text = re.sub(each["pattern"], each["replacement"].replace("$HFPR_VERSION", __version__), text)
    return text


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", text)


def test_the_description_has_no_relative_links():
    text = described(HOOK["substitutions"])
    assert [link for link in links(text) if "://" not in link] == []
    paths = re.findall(r" \(`([\w/.]+)(?:#[\w-]+)?`\)", text)
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert "[`" not in text
    assert "CHANGELOG.md (`" not in text


def test_links_lead_to_the_tag_of_the_version_once_an_address_is_set():
    (block,) = re.findall(
        r"^```toml\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE | re.DOTALL
    )
    example = tomllib.loads(block)
    address = example["project"]["urls"]["Repository"]
    assert all(url.startswith(address) for url in example["project"]["urls"].values())
    found = links(described(example["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]))
    relative = [link for link in links((ROOT / "README.md").read_text()) if "://" not in link]
    assert len(relative) > 10
    assert [link for link in found if link.startswith(address)] == [
        f"{address}/blob/v{__version__}/{path}" for path in relative
    ]
    assert [link for link in found if "://" not in link] == []


def test_every_file_has_the_same_address_or_none():
    address = PROJECT["project"].get("urls", {}).get("Repository")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    pages = re.search(r"^repo_url: (\S+)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    assert citation.get("repository-code") == address
    assert (pages[1] if pages else None) == address
    of_links = [each["replacement"] for each in HOOK["substitutions"] if "://" in each["replacement"]]
    assert len(of_links) == (address is not None)
    assert all(f"]({address}/blob/" in each for each in of_links)


def test_documents_install_from_a_checkout_because_no_index_has_the_name():
    for document in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        assert re.findall(r"pip install[^\n`]*\bdeformdetr\b", document.read_text()) == [], document
