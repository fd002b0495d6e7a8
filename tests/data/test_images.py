import pickle
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from deformdetr.data import DatasetError, DecodeConfig, ImageFiles, load_image, read_header


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


def save_turned(path: Path, pixels: np.ndarray, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


# As browsers show an image of rows "12" and "34" with each orientation.
UPRIGHT = {1: "1234", 2: "2143", 3: "4321", 4: "3412", 5: "1324", 6: "3142", 7: "4231", 8: "2413"}


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_photographs_are_turned_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    corners = np.uint8([[10, 20], [30, 40]]).repeat(20, axis=0).repeat(30, axis=1)
    path = tmp_path / f"x{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.dstack([corners] * 3)).save(path, exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
    image = load_image(path)
    height, width = image.shape[1:]
    assert (height, width) == ((60, 40) if orientation > 4 else (40, 60))
    found = [image[0, y, x] // 10 for y in (2, height - 3) for x in (2, width - 3)]
    assert "".join(str(int(each)) for each in found) == UPRIGHT[orientation]
    header = read_header(path)
    assert (header.height, header.width) == (height, width)


def test_photographs_are_used_as_stored_if_asked(tmp_path: Path, rng: torch.Generator) -> None:
    pixels = random_pixels(rng, 20, 40, 3)
    path = save_turned(tmp_path / "x.png", pixels, 6)
    stored = DecodeConfig(orientation="stored")
    np.testing.assert_array_equal(load_image(path, stored).permute(1, 2, 0), pixels)
    assert read_header(path, stored) == (20, 40, "RGB", 6)


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_an_undefined_orientation_changes_nothing(tmp_path: Path, orientation: int) -> None:
    path = save_turned(tmp_path / "x.jpg", np.zeros((20, 40, 3), np.uint8), orientation)
    assert load_image(path).shape == (3, 20, 40)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_metadata_leaves_an_image_as_stored(tmp_path: Path) -> None:
    for number, exif in enumerate(
        (b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    ):
        path = tmp_path / f"{number}.jpg"
        Image.new("RGB", (40, 20)).save(path, exif=exif)
        assert load_image(path).shape == (3, 20, 40)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_gray_of_any_depth_in_16_bits_uses_the_whole_range(tmp_path: Path, bits: int, suffix: str) -> None:
    ramp = np.linspace(0, 2**bits - 1, 256).astype(np.uint16)[None].repeat(4, axis=0)
    path = tmp_path / f"x{suffix}"
    Image.fromarray(ramp).save(path)
    expected = np.arange(256)
    for decode in (DecodeConfig(), DecodeConfig(gray_bits=bits)):
        assert np.abs(load_image(path, decode)[0].numpy().astype(int) - expected).max() <= 1
    deeper = load_image(path, DecodeConfig(gray_bits=16))
    assert int(deeper.max()) == 255 >> (16 - bits)
    if bits > 8:
        with pytest.raises(DatasetError, match=rf"value of {2**bits - 1}, .*gray_bits \(8\)"):
            load_image(path, DecodeConfig(gray_bits=8))


def test_large_images_are_refused_unless_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    Image.new("1", (100, 60)).save(path)
    assert load_image(path, DecodeConfig(max_pixels=6000)).shape == (3, 60, 100)
    with pytest.raises(DatasetError, match=r"6,000 pixels, and the limit is 5,999; data\.decode\.max_pixels"):
        load_image(path, DecodeConfig(max_pixels=5999))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DatasetError, match=r"x\.png: .*data\.decode\.max_pixels"):
        load_image(path)
    assert load_image(path, DecodeConfig(max_pixels=6000)).shape == (3, 60, 100)
    assert Image.MAX_IMAGE_PIXELS == 1000


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


@pytest.mark.parametrize(("used", "other"), [("upright", "stored"), ("stored", "upright")])
def test_a_size_that_belongs_to_the_other_orientation_names_the_setting(
    tmp_path: Path, used: Literal["upright", "stored"], other: str
) -> None:
    path = save_turned(tmp_path / "x.jpg", np.zeros((20, 40, 3), np.uint8), 6)
    annotated = np.array([(20, 40) if used == "upright" else (40, 20)])
    images = ImageFiles([path], annotated, DecodeConfig(orientation=used))
    for read in (images, images.header):
        with pytest.raises(DatasetError, match=f"EXIF orientation is 6.*set data.decode.orientation to {other}"):
            read(0)


def test_the_error_can_be_pickled_by_a_loader_process() -> None:
    error = pickle.loads(pickle.dumps(DatasetError("a.jpg: broken")))
    assert str(error) == "a.jpg: broken"
    assert error.problems == ("a.jpg: broken",)
