"""The versions that files of the repository state."""

from pathlib import Path

import yaml

import deformdetr

ROOT = Path(__file__).parents[1]


def test_the_citation_and_the_changelog_name_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == deformdetr.__version__
    assert f"\n## [{deformdetr.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
