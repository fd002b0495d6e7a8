"""Prediction on files of any size, readable or not, without overwriting them."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from deformdetr import preset
from deformdetr.data import ForeignDataset, find_images, write_documents
from deformdetr.engine import PredictionError, PredictResult, RunError, evaluate_run, load, predict, video_frames
from deformdetr.engine._image_files import find_files
from deformdetr.integrations.hub import save_pretrained


def save_picture(path, width, height, mode="RGB"):
    Image.effect_noise((width, height), 90).convert(mode).save(path)
    return path


def test_pictures_and_json_have_the_detections(finished_run, tmp_path):
    (tmp_path / "in").mkdir()
    wide = save_picture(tmp_path / "in" / "wide.png", 150, 40)
    gray = save_picture(tmp_path / "in" / "gray.jpg", 33, 97, mode="L")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    result = predict(finished_run, [tmp_path / "in"], tmp_path / "out", threshold=0.0)
    assert result.skipped == {}
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert written["images"] == result.images
    assert [image["file"] for image in result.images] == [str(gray), str(wide)]
    assert [(image["width"], image["height"]) for image in result.images] == [(33, 97), (150, 40)]
    for image in result.images:
        assert len(image["boxes"]) == len(image["scores"]) == len(image["labels"]) == len(image["names"]) == 20
        assert image["scores"] == sorted(image["scores"], reverse=True)
        assert set(image["names"]) <= {"circle", "rectangle", "triangle"}
        assert [label + 1 for label in image["labels"]] == image["category_ids"]
        boxes = torch.tensor(image["boxes"])
        assert (boxes[:, 2:] >= boxes[:, :2]).all()
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["gray.png", "predictions.json", "wide.png"]
    with Image.open(tmp_path / "out" / "wide.png") as drawn:
        assert drawn.width > drawn.height


def test_boxes_scale_with_the_picture(finished_run, tmp_path):
    small = Image.new("RGB", (64, 64), (200, 40, 40))
    small.save(tmp_path / "a.png")
    found = predict(finished_run, [tmp_path / "a.png"], tmp_path / "out").images[0]
    assert found["boxes"]
    centers = torch.tensor(found["boxes"]).view(-1, 2, 2).mean(1)
    assert ((centers > 0) & (centers < 64)).all()


def test_unreadable_file_is_named_and_skipped(finished_run, tmp_path):
    good = save_picture(tmp_path / "good.png", 64, 64)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not a picture")
    result = predict(finished_run, [broken, good], tmp_path / "out")
    assert list(result.skipped) == [str(broken)]
    assert str(broken) in result.skipped[str(broken)]
    assert [image["file"] for image in result.images] == [str(good)]
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["skipped"] == result.skipped


def test_pictures_of_images_with_equal_names_are_numbered(finished_run, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save_picture(tmp_path / folder / "same.png", 64, 64)
    predict(finished_run, [tmp_path / "a", tmp_path / "b" / "same.png"], tmp_path / "out")
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["predictions.json", "same.png", "same_2.png"]


def test_picture_over_an_image_is_refused_before_anything_is_written(finished_run, tmp_path):
    image = save_picture(tmp_path / "photo.png", 64, 64)
    before = image.read_bytes()
    with pytest.raises(PredictionError, match=r"photo\.png would be replaced"):
        predict(finished_run, [tmp_path], tmp_path)
    assert image.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["photo.png"]


def test_missing_images_are_refused_before_anything_is_written(finished_run, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(PredictionError, match=r"no such file or folder: .*nothing\.png"):
        predict(finished_run, [tmp_path / "nothing.png"], tmp_path / "out")
    with pytest.raises(PredictionError, match=r"no image with one of the suffixes .*empty"):
        predict(finished_run, [tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(RunError, match="there is no file"):
        predict(tmp_path / "no_run", [save_picture(tmp_path / "a.png", 64, 64)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_are_read_with_their_subfolders_and_every_suffix(finished_run, tmp_path):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    names = ["UPPER.JPG", "x.jfif", "sub/y.jp2", "sub/pages.tif", "z.gif"]
    for name in names:
        Image.effect_noise((60, 40), 90).save(folder / name, format="JPEG" if name == "x.jfif" else None)
    others = [".hidden.png", "._mac.jpg", "notes.txt", "noext"]
    for name in others:
        (folder / name).write_bytes(b"\0")
    result = predict(finished_run, [folder], tmp_path / "out")
    assert [image["file"] for image in result.images] == sorted(str(folder / name) for name in names)
    assert result.skipped == {}
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert written["not_images"] == sorted(str(folder / name) for name in others)


def test_photographs_are_turned_as_in_training(finished_run, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((64, 40), 90).save(tmp_path / "phone.jpg", exif=exif)
    image = predict(finished_run, [tmp_path / "phone.jpg"], tmp_path / "out").images[0]
    assert (image["width"], image["height"]) == (40, 64)
    with Image.open(tmp_path / "out" / "phone.png") as drawn:
        assert drawn.height > drawn.width


def test_images_without_a_detection_above_the_threshold_are_reported_with_the_best_score(finished_run, tmp_path):
    files = [save_picture(tmp_path / name, 64, 64) for name in ("a.png", "b.png")]
    result = predict(finished_run, files, tmp_path / "out", threshold=1.0)
    best = max(result.images, key=lambda image: image["scores"][0])
    expected = f"no detection scores 1 or more in 2 of 2 images; the best score is {best['scores'][0]:.3f} "
    assert result.remarks(1.0)[0].startswith(expected + f"({best['names'][0]} in {best['file']})")
    assert not any(line.startswith("no detection") for line in result.remarks(0.0))


def test_the_best_threshold_is_suggested_unless_it_is_used():
    result = PredictResult([], {}, best_threshold=0.25)
    assert result.remarks(0.5) == [
        "in the run's evaluation, a threshold of 0.250 gave the highest F1: --threshold 0.250"
    ]
    assert result.remarks(0.25) == PredictResult([], {}).remarks(0.5) == []


def test_patterns_take_images_by_their_names_and_files_whatever_these_are(tmp_path):
    for name in ("a.png", "b.JPG", "c.txt", ".d.png", "clip.mp4", "scan"):
        (tmp_path / name).touch()
    found = find_files([tmp_path / "*"])
    assert [file.name for file in found.images] == ["a.png", "b.JPG", "clip.mp4"]
    assert [file.name for file in found.others] == [".d.png", "c.txt", "scan"]
    assert find_files([tmp_path / "scan"]).images == [tmp_path / "scan"]
    with pytest.raises(PredictionError, match="no image with one of the suffixes"):
        find_files([tmp_path / "*.txt"])
    # Newer releases of Python take this pattern, which fits nothing.
    with pytest.raises(PredictionError, match=r"(\*\*x is no valid pattern: |no such file or folder: .*\*\*x)"):
        find_files([tmp_path / "**x"])


def test_pictures_of_images_with_long_names_are_written(finished_run, tmp_path):
    (tmp_path / "b").mkdir()
    files = [save_picture(tmp_path / folder / ("x" * 250 + ".bmp"), 40, 40) for folder in (".", "b")]
    for file in files:
        file.rename(file.with_name("x" * 252 + ".im"))
    predict(finished_run, [file.with_name("x" * 252 + ".im") for file in files], tmp_path / "out")
    assert sorted(file.name for file in tmp_path.glob("out/*.png")) == ["x" * 249 + "_2.png", "x" * 251 + ".png"]


def test_folders_are_searched_recursively_and_patterns_are_expanded(finished_run, tmp_path):
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    files = [save_picture(tmp_path / "photos" / name, 64, 64) for name in ("a.png", "deep/b.jp2", "deep/c.PNG")]
    out = tmp_path / "photos" / "found"
    for images in ([tmp_path / "photos"], [tmp_path / "photos"], [tmp_path / "photos" / "**" / "[abc].*"]):
        # Pictures of the call before lie in the folder too.
        result = predict(finished_run, images, out)
        assert {image["file"] for image in result.images} >= {str(file) for file in files}
        if "*" not in str(images[0]):
            assert len(result.images) == 3
    with pytest.raises(PredictionError, match=r"no such file or folder: .*x\*\.png"):
        predict(finished_run, [tmp_path / "x*.png"], tmp_path / "out")


def test_pictures_of_an_earlier_call_are_left_out_however_their_folder_is_written(tmp_path, monkeypatch):
    (tmp_path / "photos" / "found").mkdir(parents=True)
    for name in ("a.png", "found/a.png"):
        save_picture(tmp_path / "photos" / name, 8, 8)
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("photos")
    folder, out = Path("photos"), Path("photos", "found")
    links = ((folder, Path("link", "found")), (Path("link"), out), (folder, Path("link", "..", "photos", "found")))
    for given, leave_out in (
        (folder, out), (folder.resolve(), out), (folder, out.resolve()), (Path(), out.resolve()), *links
    ):  # fmt: skip
        assert [file.resolve() for file in find_files([given], leave_out=leave_out).images] == [
            folder.resolve() / "a.png"
        ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be positive, got 0"),
        ({"batch_size": -1}, "batch_size must be positive, got -1"),
        ({"threshold": 1.5}, r"threshold must be in \[0, 1\], got 1.5"),
    ],
)
def test_wrong_numbers_are_refused_before_anything_is_written(arguments, message, finished_run, tmp_path):
    picture = save_picture(tmp_path / "a.png", 64, 64)
    with pytest.raises(ValueError, match=message):
        predict(finished_run, [picture], tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_file_in_place_of_the_folder_is_named_whatever_is_written(finished_run, tmp_path):
    picture = save_picture(tmp_path / "a.png", 64, 64)
    document = {"images": [], "annotations": [], "categories": []}
    model = preset("demo")
    for write in (
        lambda: predict(tmp_path / "no run", [picture], picture),
        lambda: write_documents(ForeignDataset(tmp_path, {"train": document}, []), picture),
        lambda: save_pretrained(model.build(), model, picture),
        lambda: evaluate_run(finished_run, output=picture.with_suffix(".png.json")),
    ):
        with pytest.raises(NotADirectoryError, match=r"a\.png is a file, and a folder is needed"):
            write()


def test_one_path_is_a_list_of_one(finished_run, tmp_path):
    picture = save_picture(tmp_path / "a.png", 64, 64)
    detector = load(finished_run)
    for given in (picture, str(picture)):
        assert [each["file"] for each in predict(detector, given, tmp_path / "out").images] == [str(picture)]
        assert [each.source for each in detector.stream(given)] == [picture]
        assert find_images(given).images == [picture]


def test_batches_do_not_change_detections(finished_run, tmp_path):
    files = [save_picture(tmp_path / f"{number}.png", 64 + number % 2, 64) for number in range(5)]
    one, three = (predict(finished_run, files, tmp_path / "out", batch_size=size) for size in (1, 3))
    assert [image["file"] for image in three.images] == [str(file) for file in files]
    for first, second in zip(one.images, three.images, strict=True):
        torch.testing.assert_close(torch.tensor(first["scores"]), torch.tensor(second["scores"]), rtol=0, atol=2e-5)


def save_video(path, frames):
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48), (40 * number, 90, 200)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_videos_are_drawn_frame_by_frame(finished_run, tmp_path):
    video = save_video(tmp_path / "clip.mp4", 5)
    photo = save_picture(tmp_path / "photo.png", 64, 64)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    result = predict(finished_run, [video, photo, broken], tmp_path / "out", threshold=0.0, batch_size=2)
    assert [(image["file"], image.get("frame")) for image in result.images] == [
        *((str(video), number) for number in range(5)),
        (str(photo), None),
    ]
    assert list(result.skipped) == [str(broken)]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["clip.mp4", "photo.png", "predictions.json"]
    drawn = list(video_frames(tmp_path / "out" / "clip.mp4"))
    assert [tuple(frame.shape) for frame in drawn] == [(3, 48 * 8, 64 * 8)] * 5


def test_videos_without_a_decoder_are_refused_before_anything_is_written(finished_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(ModuleNotFoundError, match=r'pip install "deformdetr\[video\]"'):
        predict(finished_run, [tmp_path / "clip.mp4"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_videos_of_folders_are_found_and_hidden_files_are_not(tmp_path):
    for name in ("a.png", "clip.mp4", ".hidden.mp4", ".hidden.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    found = find_files([tmp_path])
    assert [file.name for file in found.images] == ["a.png", "clip.mp4"]
    assert sorted(file.name for file in found.others) == [".hidden.mp4", ".hidden.png", "notes.txt"]
