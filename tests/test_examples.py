"""Run the files of `examples/` unchanged."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
# The first needs an exported file, and runs where a test makes one. The second trains for minutes, and here for less.
TESTED_ELSEWHERE = {"onnx_detector", "panoptic_shapes"}
EXPECTED_OUTPUT = {
    "deformable_detr_in_sixty_lines": "the loss falls: True",
    "detr_in_forty_lines": "the loss falls: True",
    "mmcv_function": "both functions return the same: True",
    "transformers_model": "4 accelerated:\n  model.encoder.layers.0.self_attn.attn\n",
    "vendored_extension": "output (2, 100, 256) and gradients (2, 1920, 8, 32) (2, 100, 8, 2, 4, 2) (2, 100, 8, 2, 4)",
}


@pytest.mark.parametrize(
    "example", [path for path in EXAMPLES if path.stem not in TESTED_ELSEWHERE], ids=lambda path: path.stem
)
def test_example_runs_and_prints_the_expected_output(example: Path, capsys):
    runpy.run_path(str(example), run_name="__main__")
    assert EXPECTED_OUTPUT[example.stem] in capsys.readouterr().out
    assert "MultiScaleDeformableAttention" not in sys.modules


@pytest.mark.slow
def test_panoptic_shapes_are_trained_evaluated_and_drawn(tmp_path):
    (path,) = (path for path in EXAMPLES if path.stem == "panoptic_shapes")
    # After one step, nothing is certain yet.
    assert runpy.run_path(str(path))["main"](tmp_path / "run", num_train=8, num_val=2, epochs=1) == [0]
    with Image.open(tmp_path / "run" / "panoptic.jpg") as picture:
        assert picture.height > 2 * 192


@pytest.mark.slow
def test_the_notebook_runs_and_finds_shapes(capsys):
    notebook = json.loads((EXAMPLES[0].parent / "first_hour.ipynb").read_text())
    threads = torch.get_num_threads()
    names: dict[str, object] = {}
    try:
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), names)
    finally:
        torch.set_num_threads(threads)
    assert names["evaluation"].metrics["AP50"] > 0.4
    assert "the threshold with the highest F1 in the evaluation: 0." in capsys.readouterr().out
