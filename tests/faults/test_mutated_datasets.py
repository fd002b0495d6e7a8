"""Annotation files and images with damage in them are refused in one error that is documented, or are read.

`pytest -m slow tests/faults/test_mutated_datasets.py --examples 2000` tries so many; without the option, few.
"""

import json
import random
from collections import Counter

import pytest
from PIL import Image

from deformdetr.data import DatasetError, ShapesConfig, load_image, read_coco, write_shapes
from mutations import mutated_json

pytestmark = pytest.mark.slow

_FORMATS = ("png", "jpeg", "bmp", "gif", "tiff", "webp", "ppm", "tga")


def test_mutated_annotations_are_refused_or_read(tmp_path, seed, pytestconfig, figures):
    draw = random.Random(seed)
    config = write_shapes(ShapesConfig(num_train=3, num_val=1, image_size=64), tmp_path)
    whole = json.loads(config.train_annotations.read_text())
    found: Counter[str] = Counter()
    for number in range(pytestconfig.getoption("--examples") or 150):
        text = mutated_json(whole, draw)
        config.train_annotations.write_bytes(text.encode(errors="surrogatepass"))
        try:
            read = read_coco(config.train_images, config.train_annotations, masks=number % 2 == 1)
        except DatasetError as error:
            is_readable = str(config.train_annotations) in str(error) and len(str(error)) < 20_000
            found["refused" if is_readable else f"unreadable: {error}"] += 1
        else:
            assert len(read.file_names) == len(read.sizes)
            found["read"] += 1
    assert found.keys() <= {"read", "refused"}
    figures.append(f"{found.total():,} mutated annotation files: {dict(found)}")


def test_mutated_images_are_refused_or_read(tmp_path, seed, pytestconfig, figures):
    draw = random.Random(seed)
    image = Image.effect_noise((40, 30), 90).convert("RGB")
    found: Counter[str] = Counter()
    for number in range((pytestconfig.getoption("--examples") or 400) // 4):
        path = tmp_path / f"{number}.{draw.choice(_FORMATS)}"
        image.save(path)
        content = bytearray(path.read_bytes())
        for _ in range(draw.choice([1, 3, 20])):
            content[draw.randrange(min(len(content), draw.choice([40, len(content)])))] = draw.randrange(256)
        path.write_bytes(content[: draw.choice([len(content), draw.randrange(len(content))])])
        try:
            read = load_image(path)
        except DatasetError as error:
            found["refused" if str(path) in str(error) else f"unnamed: {error}"] += 1
        else:
            assert read.shape[0] == 3
            found["read"] += 1
        path.unlink()
    assert found.keys() <= {"read", "refused"}
    figures.append(f"{found.total():,} mutated images: {dict(found)}")
