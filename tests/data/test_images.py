import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deformdetr.data import DatasetError, ImageFiles, load_image


def random_pixels(rng: torch.Generator, *shape: int) -> np.ndarray:
    return torch.randint(256, shape, generator=rng, dtype=torch.uint8).numpy()


def test_a_color_image_keeps_its_pixels(tmp_path: Path, rng: torch.Generator) -> None:
    pixels = random_pixels(rng, 7, 9, 3)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    np.testing.assert_array_equal(load_image(tmp_path / "x.png").permute(1, 2, 0), pixels)


def test_gray_images_repeat_their_channel(tmp_path: Path, rng: torch.Generator) -> None:
    pixels = random_pixels(rng, 7, 9)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    for channel in load_image(tmp_path / "x.png"):
        np.testing.assert_array_equal(channel, pixels)


def test_sixteen_bit_gray_keeps_its_upper_byte(tmp_path: Path, rng: torch.Generator) -> None:
    upper = random_pixels(rng, 5, 6)
    Image.fromarray(upper.astype(np.uint16) * 256 + 200).save(tmp_path / "x.png")
    np.testing.assert_array_equal(load_image(tmp_path / "x.png")[1], upper)


def test_transparency_is_dropped(tmp_path: Path, rng: torch.Generator) -> None:
    pixels = random_pixels(rng, 7, 9, 4)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    np.testing.assert_array_equal(load_image(tmp_path / "x.png").permute(1, 2, 0), pixels[..., :3])


def test_palettes_become_colors_even_with_transparent_entries(tmp_path: Path) -> None:
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "x.png", transparency=bytes([0, 128]))
    assert load_image(tmp_path / "x.png")[:, 2, 3].tolist() == [10, 20, 30]


def test_the_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "x.jpg", exif=exif)
    assert load_image(tmp_path / "x.jpg").shape == (3, 20, 40)


def write_truncated(path: Path, rng: torch.Generator) -> Path:
    Image.fromarray(random_pixels(rng, 64, 64, 3)).save(path)
    path.write_bytes(path.read_bytes()[:-1500])
    return path


@pytest.mark.parametrize("name", ["x.jpg", "x.png"])
def test_a_truncated_file_is_named(tmp_path: Path, rng: torch.Generator, name: str) -> None:
    path = write_truncated(tmp_path / name, rng)
    with pytest.raises(DatasetError, match=r"cannot be read as an image.*truncated") as caught:
        load_image(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_an_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_text("hello")
    Image.fromarray(np.zeros((3, 3), dtype=np.float32)).save(tmp_path / "float.tiff")
    for name in ("x.jpg", "nowhere.jpg", "float.tiff"):
        with pytest.raises(DatasetError, match=name):
            load_image(tmp_path / name)


def test_a_file_that_differs_from_its_annotated_size_is_named_with_both_sizes(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20)).save(tmp_path / "x.png")
    images = ImageFiles([tmp_path / "x.png"], np.array([(40, 20)]))
    with pytest.raises(DatasetError, match=r"x.png: .*holds 40 x 20 .*annotations say 20 x 40$"):
        images(0)


def test_the_exif_orientation_of_a_rotated_photograph_explains_its_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "x.jpg", exif=exif)
    with pytest.raises(DatasetError, match="EXIF orientation is 6"):
        ImageFiles([tmp_path / "x.jpg"], np.array([(40, 20)]))(0)


def test_the_error_can_be_pickled_by_a_loader_process() -> None:
    error = pickle.loads(pickle.dumps(DatasetError("a.jpg: broken")))
    assert str(error) == "a.jpg: broken"
    assert error.problems == ("a.jpg: broken",)
