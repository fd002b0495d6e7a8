from pathlib import Path

import pytest

from deformdetr.data import DatasetError, expand_path


def test_home_and_variables_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.setenv("SPLIT_1", "val")
    assert expand_path(Path("~/x")) == Path("/home/someone/x")
    assert expand_path(Path("$DATA/${SPLIT_1}2/$SPLIT_1.json")) == Path("/data/val2/val.json")
    assert expand_path(Path("plain/x.json")) == Path("plain/x.json")


@pytest.mark.parametrize("written", ["$MISSING/x", "y/${MISSING}/x"])
def test_a_variable_without_value_is_named(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    monkeypatch.delenv("MISSING", raising=False)
    with pytest.raises(DatasetError, match="'MISSING' is not set") as caught:
        expand_path(Path(written))
    assert written in str(caught.value)
    monkeypatch.setenv("MISSING", "")
    with pytest.raises(DatasetError, match="MISSING"):
        expand_path(Path(written))


def test_an_unknown_user_is_named() -> None:
    with pytest.raises(DatasetError, match="~nobody-of-this-name/x"):
        expand_path(Path("~nobody-of-this-name/x"))
