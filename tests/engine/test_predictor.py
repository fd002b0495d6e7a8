"""Detection in images of any kind by a loaded model."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import deformdetr
from deformdetr.data import DatasetError, DecodeConfig, LabelMap
from deformdetr.engine import DetectionResult, Predictor, RunError, load_run
from deformdetr.integrations.hub import InferenceSettings, save_pretrained
from deformdetr.models import prepare_image
from local_server import point_hub_to, serving


@pytest.fixture(scope="module")
def detector(finished_run: Path) -> Predictor:
    return deformdetr.load(str(finished_run))


def noise(width: int, height: int) -> Image.Image:
    return Image.effect_noise((width, height), 90).convert("RGB")


def equal(one: DetectionResult, other: DetectionResult) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("image", "boxes", "scores", "labels"))


def test_every_kind_of_image_gives_the_same_detections(detector: Predictor, tmp_path: Path) -> None:
    picture = noise(90, 60)
    picture.save(tmp_path / "a.png")
    pixels = np.asarray(picture)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    expected = detector(tmp_path / "a.png", threshold=0.0)
    assert expected.source == tmp_path / "a.png"
    assert len(expected) == 20
    for image in (str(tmp_path / "a.png"), picture, pixels, tensor, tensor / 255, (tensor / 255).requires_grad_()):
        assert equal(detector(image, threshold=0.0), expected)
    gray = picture.convert("L")
    assert equal(detector(np.asarray(gray), threshold=0.0), detector(gray, threshold=0.0))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-5), (torch.bfloat16, 0.1)])
def test_images_get_the_dtype_of_the_model(dtype: torch.dtype, error: float, finished_run: Path) -> None:
    detector, image = deformdetr.load(finished_run), noise(64, 64)
    expected = detector(image, threshold=0.0).best_score
    detector.model.to(dtype)
    assert detector(image, threshold=0.0).best_score == pytest.approx(expected, abs=error)


def test_a_list_gives_a_list_that_does_not_depend_on_its_batches(detector: Predictor) -> None:
    images = [noise(90, 60), noise(40, 80), noise(90, 60), noise(90, 60), noise(64, 64)]
    alone = [detector(image, threshold=0.0) for image in images]
    for batch_size in (1, 2, 5, 99):
        together = detector(images, threshold=0.0, batch_size=batch_size)
        for one, other in zip(alone, together, strict=True):
            assert torch.equal(one.image, other.image)
            torch.testing.assert_close(one.scores, other.scores)
            torch.testing.assert_close(one.boxes, other.boxes, atol=1e-3, rtol=1e-4)
    assert detector([]) == []


def test_images_of_equal_size_share_a_forward_pass(detector: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    handle = detector.model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    detector([noise(90, 60), noise(40, 80), noise(90, 60), noise(90, 60)], batch_size=3)
    handle.remove()
    assert sizes == [2, 1, 1]


def test_a_stream_reads_one_batch_ahead_and_no_more(detector: Predictor) -> None:
    read: list[int] = []

    def images() -> Any:
        for number in range(6):
            read.append(number)
            yield noise(40, 40)

    results = detector.stream(images(), batch_size=2)
    next(results)
    assert read == [0, 1]


def test_the_threshold_leaves_out_detections_and_keeps_the_best_score(detector: Predictor) -> None:
    everything = detector(noise(64, 64), threshold=0.0)
    scores = everything.scores
    assert torch.equal(scores, scores.sort(descending=True).values)
    middle = float(scores[5])
    some = everything.above(middle)
    assert len(some) == int((scores >= middle).sum()) == len(some.names) == len(some.boxes)
    nothing = detector(noise(64, 64), threshold=1.0)
    assert len(nothing) == 0
    assert 0 < nothing.best_score < 1
    assert f"no detection, best score {nothing.best_score:.3f}" in repr(nothing)


def test_boxes_are_clipped_to_the_image(detector: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    def beyond(outputs: Any, sizes: Any) -> list[Any]:
        boxes = torch.tensor([[-20.0, 10, 30, 900], [5, 5, 10, 10]])
        return [{"boxes": boxes, "scores": torch.tensor([0.6, 0.9]), "labels": torch.tensor([0, 1])} for _ in sizes]

    monkeypatch.setattr(detector, "postprocess", beyond)
    result = detector(noise(50, 40))
    assert result.boxes.tolist() == [[5, 5, 10, 10], [0, 10, 30, 40]]
    assert result.names == ["rectangle", "circle"]


def test_a_result_is_drawn(detector: Predictor) -> None:
    result = detector(noise(90, 60), threshold=0.0)
    picture = result.draw()
    assert picture.size == (540, 360)
    assert picture.tobytes() != result.above(1.0).draw().tobytes()


@pytest.mark.filterwarnings("ignore:OpenCV .* is not installed:UserWarning")
def test_a_result_becomes_detections_of_supervision(detector: Predictor) -> None:
    import supervision

    result = detector(noise(90, 60), threshold=0.0)
    found = result.to_supervision()
    assert isinstance(found, supervision.Detections)
    assert len(found) == len(result)
    np.testing.assert_array_equal(found.xyxy, result.boxes)
    assert list(found.data["class_name"]) == result.names
    assert len(detector(noise(90, 60), threshold=1.0).to_supervision()) == 0


@pytest.mark.parametrize(
    ("image", "kind", "named"),
    [
        (3, TypeError, "int"),
        (np.zeros((4, 5, 3)), TypeError, "float64"),
        (np.zeros((3, 40, 50), dtype=np.uint8), ValueError, r"\(3, 40, 50\)"),
        (np.zeros((0, 5, 3), dtype=np.uint8), ValueError, r"\(0, 5, 3\)"),
        (torch.zeros(1, 3, 40, 50), ValueError, r"\(1, 3, 40, 50\)"),
        (torch.zeros(3, 40, 50, dtype=torch.int64), TypeError, "int64"),
        (torch.full((3, 40, 50), 255.0), ValueError, "255 to 255"),
        (torch.full((3, 40, 50), torch.nan), ValueError, "nan"),
        ("nothing.png", DatasetError, r"nothing\.png"),
        (Path("nothing.png"), DatasetError, r"nothing\.png"),
    ],
)
def test_what_is_no_image_is_refused(detector: Predictor, image: Any, kind: type[Exception], named: str) -> None:
    with pytest.raises(kind, match=named):
        detector([image])


@pytest.mark.unchecked
@pytest.mark.parametrize("image", [3, None, b"GIF89a"])
def test_what_is_neither_an_image_nor_a_list_is_refused_by_its_type(detector: Predictor, image: Any) -> None:
    with pytest.raises(TypeError, match=f"an image must be a path.*got {type(image).__name__}"):
        detector(image)


def test_invalid_thresholds_and_batches_are_refused(detector: Predictor) -> None:
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\], got 50.0"):
        detector(noise(40, 40), threshold=50.0)
    for images in (noise(40, 40), [noise(40, 40)]):
        with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
            detector(images, batch_size=0)


def test_a_run_and_its_checkpoint_are_loaded(finished_run: Path, tmp_path: Path) -> None:
    image = noise(64, 64)
    expected = deformdetr.load(finished_run)(image, threshold=0.0)
    assert equal(deformdetr.load(finished_run / "best.pt")(image, threshold=0.0), expected)
    with pytest.raises(RunError, match="there is no file"):
        deformdetr.load(tmp_path / "nothing")
    with pytest.raises(RunError, match="holds none of"):
        deformdetr.load(tmp_path)


@pytest.fixture
def pretrained(finished_run: Path, tmp_path: Path) -> Path:
    """Return a folder with the model of the run and other settings."""
    _, checkpoint = load_run(finished_run)
    label_map = LabelMap(names=("a", "b", "c"), category_ids=(7, 8, 9))
    settings = InferenceSettings(label_map=label_map, short_side=48, max_size=80, image_mean=(0.1, 0.2, 0.3))
    save_pretrained(checkpoint.build(), checkpoint.experiment.model, tmp_path / "folder", settings=settings)
    return tmp_path / "folder"


def test_a_folder_of_the_hub_is_loaded_with_its_settings(pretrained: Path) -> None:
    loaded = deformdetr.load(pretrained)
    image = noise(64, 96)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    mean, std = (0.1, 0.2, 0.3), (0.229, 0.224, 0.225)
    prepared = prepare_image(tensor, short_side=48, max_size=80, mean=mean, std=std)
    assert torch.equal(loaded.prepare(tensor), prepared)
    with torch.no_grad():
        outputs = loaded.model([prepared])
    result = loaded(image, threshold=0.0)
    torch.testing.assert_close(result.scores, loaded.postprocess(outputs, [(96, 64)])[0]["scores"])
    assert set(result.names) <= {"a", "b", "c"}
    (pretrained / "inference.json").unlink()
    assert deformdetr.load(str(pretrained)).names == ("0", "1", "2")


def test_a_published_run_decodes_images_as_the_run_does(finished_run: Path, tmp_path: Path) -> None:
    _, checkpoint = load_run(finished_run)
    decode = DecodeConfig(orientation="stored", gray_bits=12, max_pixels=9)
    experiment = checkpoint.experiment.replace(data=checkpoint.experiment.data.replace(decode=decode))
    settings = replace(checkpoint, experiment=experiment).inference_settings()
    save_pretrained(checkpoint.build(), experiment.model, tmp_path, settings=settings)
    assert deformdetr.load(tmp_path).decode == decode.replace(max_pixels=None)


def test_repositories_are_loaded_unless_there_is_a_folder_of_their_user(
    finished_run: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with serving() as server:
        point_hub_to(server.url, tmp_path / "cache", monkeypatch)
        server.repositories["user/cells"] = {path.name: path.read_bytes() for path in pretrained.iterdir()}
        server.repositories["user/run"] = {"best.pt": (finished_run / "best.pt").read_bytes()}
        assert deformdetr.load("user/cells").names == ("a", "b", "c")
        assert deformdetr.load("user/run").names == ("circle", "rectangle", "triangle")
        asked = len(server.requests)
        (tmp_path / "runs").mkdir()
        with pytest.raises(RunError, match="there is no file runs/mine; a relative path starts at the current"):
            deformdetr.load("runs/mine")
        assert len(server.requests) == asked
    point_hub_to("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    with pytest.raises(ConnectionError, match="there is no file or folder user/other here, and user/other"):
        deformdetr.load("user/other")


def test_a_published_threshold_is_suggested(pretrained: Path) -> None:
    assert deformdetr.load(pretrained).best_threshold is None
    file = pretrained / "inference.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"best_threshold": 0.375}))
    assert deformdetr.load(pretrained).best_threshold == 0.375


def test_the_threshold_of_the_evaluation_is_suggested(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "best.pt").write_bytes((finished_run / "best.pt").read_bytes())
    _, checkpoint = load_run(run)
    assert deformdetr.load(run).best_threshold == checkpoint.metrics.get("best_threshold")
    record = {"checkpoint": "best.pt", "step": checkpoint.step, "best_threshold": 0.125}
    (run / "evaluation.json").write_text(json.dumps(record))
    assert deformdetr.load(run).best_threshold == 0.125
    # The evaluation of another checkpoint says nothing about this one.
    (run / "evaluation.json").write_text(json.dumps(record | {"checkpoint": "last.pt"}))
    assert deformdetr.load(run).best_threshold == checkpoint.metrics.get("best_threshold")


@pytest.mark.parametrize("content", ["[]", "null", "{", ""])
def test_a_damaged_evaluation_is_named(finished_run: Path, tmp_path: Path, content: str) -> None:
    shutil.copy(finished_run / "best.pt", tmp_path)
    (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(ValueError, match=r"evaluation\.json "):
        deformdetr.load(tmp_path)


def test_photographs_are_turned_as_the_run_says(finished_run: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(64, 40).save(tmp_path / "phone.jpg", exif=exif)
    detector = deformdetr.load(finished_run)
    with Image.open(tmp_path / "phone.jpg") as opened:
        for image in (tmp_path / "phone.jpg", opened):
            assert detector(image).image.shape == (3, 64, 40)
    detector.decode = DecodeConfig(orientation="stored")
    assert detector(tmp_path / "phone.jpg").image.shape == (3, 40, 64)
