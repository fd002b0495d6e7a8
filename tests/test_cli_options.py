"""Options that commands share."""

from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from deformdetr.cli import main
from deformdetr.cli._commands import Commands
from deformdetr.engine import models_in

PATHS = [
    pytest.param(field.rebuild_annotation(), id=f"{name} {option}")
    for name, command in Commands.model_fields.items()
    for model in models_in(command.annotation)
    for option, field in model.model_fields.items()
    if "Path" in str(field.annotation) and not models_in(field.annotation)
]


@pytest.mark.parametrize("annotation", PATHS)
def test_paths_may_begin_with_the_home_folder(annotation, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for given, expected in {"~/a b": tmp_path / "a b", "~": tmp_path, "~nobody.jpg": Path("~nobody.jpg")}.items():
        is_list = "list" in str(annotation)
        found = TypeAdapter(annotation).validate_python([given] if is_list else given)
        assert found == ([expected] if is_list else expected)


@pytest.mark.parametrize("annotation", PATHS)
def test_empty_paths_are_refused(annotation):
    with pytest.raises(ValidationError, match="the path is empty"):
        TypeAdapter(annotation).validate_python([""] if "list" in str(annotation) else "")


@pytest.mark.parametrize(
    "arguments", ["eval,", "predict,,a.png,--output,found", "export,,--onnx,a.onnx", "convert,,a.pth,--to,original"]
)
def test_empty_names_of_runs_and_checkpoints_are_refused(arguments, capsys):
    assert main(arguments.split(",")) == 2
    assert "the path is empty; is a variable not set?" in capsys.readouterr().err
