"""The declared releases, the table of the tested ones, and the command that tests them."""

import itertools
import subprocess
import sys
import tomllib

import pytest
from benchmarks import pages
from benchmarks.environment import ROOT
from tools import compat

OUTPUT = """
============================= test session starts ==============================
FAILED tests/test_a.py::test_one[x-1] - assert 1 == 2
ERROR tests/test_b.py - ValueError: no
=========================== short test summary info ============================
======= 1 failed, 20 passed, 3 skipped, 400 deselected, 1 error in 61.02s (0:01:01) =======
make: [Makefile:35: test] Error 1 (ignored)
============================= test session starts ==============================
====================== 5 passed, 9 deselected in 0.52s ======================
"""


@pytest.fixture(scope="module")
def rows():
    rows = compat.load()
    assert rows
    return rows


@pytest.fixture
def make_row():
    def make(python="3.11.7", releases="oldest", **changes):
        versions = dict.fromkeys(compat.COLUMNS, "1.0") | {"python": python}
        counts = {"passed": 5, "failed": 0, "skipped": 2, "failures": [], "excluded": {}}
        source = {"commit": "abc1234", "dirty": False, "date": "2026-01-02", "seconds": 9}
        return {"releases": releases, "versions": versions} | counts | source | changes

    return make


def test_the_oldest_tested_releases_are_the_declared_ones(rows):
    for versions in (row["versions"] for row in rows if row["releases"] == "oldest"):
        for package in ("torch", "torchvision"):
            assert versions[package].startswith(f"{compat.floors()[package]}."), versions
        # The oldest NumPy has no wheels for newer Pythons.
        if versions["python"].startswith(f"{compat.pythons()[0]}."):
            for package in ("numpy", "numba"):
                assert versions[package].startswith(f"{compat.floors()[package]}."), versions


def test_the_page_is_that_of_the_stored_results():
    assert pages.outdated(compat.parts()) == []


def test_no_test_failed(rows):
    assert [failure for row in rows for failure in row["failures"]] == []
    assert all(row["passed"] > 1000 for row in rows)


def test_the_first_declared_python_is_the_required_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["requires-python"] == f">={compat.pythons()[0]}"
    assert project["tool"]["mypy"]["python_version"] == compat.pythons()[0]


@pytest.mark.parametrize("page", ["README.md", "docs/installation.md"])
def test_pages_name_the_declared_floors(page):
    text = (ROOT / page).read_text()
    assert f"Python {compat.pythons()[0]} or newer" in text
    assert f"PyTorch {compat.floors()['torch']} or newer" in text


def test_excluded_tests_exist():
    for test in itertools.chain(*compat.EXCLUDED.values()):
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text()


def test_counts_of_all_sessions_are_added_up():
    failures = ["tests/test_a.py::test_one[x-1]", "tests/test_b.py"]
    expected = {"passed": 25, "failed": 2, "skipped": 3, "failures": failures}
    assert compat.read_outcome(OUTPUT.splitlines()) == expected


@pytest.mark.parametrize(("kept", "message"), [(-1, "2 sessions of pytest started, and 1 came"), (1, "0 sessions")])
def test_sessions_that_do_not_finish_are_errors(kept, message):
    with pytest.raises(RuntimeError, match=message):
        compat.read_outcome(OUTPUT.splitlines()[:kept])


def test_a_row_replaces_that_of_the_same_python_and_releases(make_row):
    before = [make_row("3.11.7"), make_row("3.13.0"), make_row("3.11.7", "newest")]
    after = compat.merge(before, make_row("3.11.9", passed=6))
    assert [(row["versions"]["python"], row["releases"], row["passed"]) for row in after] == [
        ("3.11.9", "oldest", 6),
        ("3.13.0", "oldest", 5),
        ("3.11.7", "newest", 5),
    ]
    assert compat.merge(after, make_row("3.12.1"))[1]["versions"]["python"] == "3.12.1"


def test_the_table_has_versions_counts_failures_and_source(make_row):
    excluded = {"too old": ["tests/test_c.py::test_new"]}
    text = compat.table(
        [make_row(dirty=True, excluded=excluded), make_row("3.13.0", failed=1, failures=["tests/test_a.py::test_one"])]
    )
    assert f"| oldest | 3.11.7 | {' | '.join(['1.0'] * len(compat.COLUMNS))} | 5 | 0 | 2 |" in text
    assert "Failed with Python 3.13.0 and the oldest releases: `tests/test_a.py::test_one`." in text
    assert "Left out with the oldest releases (too old): `tests/test_c.py::test_new`." in text
    assert "2026-01-02, commit abc1234, abc1234 with uncommitted changes." in text


def test_an_environment_is_made_tested_and_removed(tmp_path, monkeypatch):
    def install(venv, python, releases):
        assert (python, releases) == ("3.12", "newest")
        executable = venv / "bin" / "python"
        executable.parent.mkdir(parents=True)
        executable.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        executable.chmod(0o755)

    monkeypatch.setattr(compat, "_install", install)
    monkeypatch.setattr(compat, "_test", lambda venv, excluded: OUTPUT.splitlines())
    row = compat.measure("3.12", "newest", tmp_path)
    assert (row["releases"], row["passed"], row["failed"], row["skipped"]) == ("newest", 25, 2, 3)
    assert set(row["versions"]) == {"python", *compat.COLUMNS}
    assert list(tmp_path.iterdir()) == []


def test_make_uses_a_ready_environment_as_it_is(tmp_path):
    (tmp_path / ".ready").touch()
    command = ["make", "--dry-run", "test", f"VENV={tmp_path}"]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert printed.count(f"{tmp_path}/bin/python -m pytest") == 4
    assert "pip install" not in printed


def test_rows_are_stored_and_written_to_the_page(make_row, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pages, "RESULTS", tmp_path)
    monkeypatch.setattr(compat, "DOCS", tmp_path)
    monkeypatch.setattr(compat, "measure", lambda python, releases, directory: make_row(f"{python}.0", releases))
    (tmp_path / "installation.md").write_text("<!-- generated compat: start --><!-- generated compat: end -->")
    assert compat.main(["--python", "3.12", "--directory", str(tmp_path)]) == 0
    assert "== Python 3.12 with the newest releases" in capsys.readouterr().out
    assert [row["releases"] for row in pages.read("compat.json")["rows"]] == ["oldest", "newest"]
    assert compat.table(compat.load()) in (tmp_path / "installation.md").read_text()
    monkeypatch.setattr(compat, "measure", lambda python, releases, directory: make_row(failed=1))
    assert compat.main(["--python", "3.11", "--releases", "oldest"]) == 1
