"""The demonstration, shortened to seconds."""

import pytest
from PIL import Image

from deformdetr.engine import RunError, run_demo
from experiments import tiny_experiment


def test_demonstration_writes_a_run_with_pictures_and_can_be_repeated(tmp_path):
    for _ in range(2):
        result = run_demo(tmp_path / "demo", tiny_experiment(epochs=1))
        assert "Average Precision" in result.evaluation.table
        for picture in (result.detections, result.sampling_points):
            with Image.open(picture) as image:
                assert min(image.size) > 200
        # As a run with trackers leaves it.
        (tmp_path / "demo" / "tracking" / "deep").mkdir(parents=True)
    assert (tmp_path / "demo" / "evaluation.json").exists()


def test_directory_with_other_files_is_not_touched(tmp_path):
    (tmp_path / "last.pt").write_text("")
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(RunError, match=r"holds thesis\.txt, which are not from a demonstration"):
        run_demo(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"last.pt", "thesis.txt"}


# It trains for minutes, to which checks of shapes would add a third. The test above checks them.
@pytest.mark.slow
@pytest.mark.unchecked
def test_demonstration_reaches_its_precision(tmp_path):
    result = run_demo(tmp_path / "demo")
    assert result.evaluation.metrics["AP50"] >= 0.5
