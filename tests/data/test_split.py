import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deformdetr.data import DatasetError, split_coco


def write(folder: Path, document: Any) -> Path:
    path = folder / "all.json"
    path.write_text(json.dumps(document))
    return path


def document(count: int = 60) -> dict[str, Any]:
    """Return images with one object each, of a frequent, a rare and a single category."""
    categories = [3 if number == 7 else 2 if number % 6 == 0 else 1 for number in range(count)]
    return {
        "info": {"year": 2020},
        "images": [{"id": f"img{number}", "file_name": f"{number}.png"} for number in range(count)],
        "annotations": [
            {"image_id": f"img{number}", "category_id": category, "bbox": [1, 2, 3, 4]}
            for number, category in enumerate(categories)
        ],
        "categories": [{"id": number, "name": str(number)} for number in (1, 2, 3)],
    }


def test_each_category_has_its_share_in_both_parts(tmp_path: Path) -> None:
    train, val = split_coco(write(tmp_path, document()), val_share=0.2)
    assert (len(train["images"]), len(val["images"])) == (48, 12)
    assert Counter(row["category_id"] for row in val["annotations"]) == {1: 10, 2: 2}
    assert Counter(row["category_id"] for row in train["annotations"]) == {1: 39, 2: 8, 3: 1}


def test_nothing_is_lost_or_changed(tmp_path: Path) -> None:
    whole = document()
    whole["annotations"] += whole["annotations"][:10]
    parts = split_coco(write(tmp_path, whole), val_share=0.3)
    for part in parts:
        assert part["categories"] == whole["categories"]
        assert part["info"] == whole["info"]
        ids = {image["id"] for image in part["images"]}
        assert {row["image_id"] for row in part["annotations"]} == ids
    for key in ("images", "annotations"):
        together = sorted(map(json.dumps, [*parts.train[key], *parts.val[key]]))
        assert together == sorted(map(json.dumps, whole[key]))


def test_equal_arguments_give_equal_parts_and_another_seed_others(tmp_path: Path) -> None:
    path = write(tmp_path, document())
    assert split_coco(path) == split_coco(path)
    assert split_coco(path) != split_coco(path, seed=1)


def test_shares_are_close_for_images_with_many_categories(tmp_path: Path) -> None:
    whole = document(200)
    rng = np.random.default_rng(0)
    whole["annotations"] = [
        {"image_id": image["id"], "category_id": int(category), "bbox": [1, 2, 3, 4]}
        for image in whole["images"]
        for category in rng.choice(8, size=3, replace=False)
    ]
    _, val = split_coco(write(tmp_path, whole), val_share=0.25)
    assert 45 <= len(val["images"]) <= 60
    counts = Counter(row["category_id"] for row in val["annotations"])
    total = Counter(row["category_id"] for row in whole["annotations"])
    assert all(0.15 < counts[category] / total[category] < 0.35 for category in total)


def test_images_without_boxes_are_dealt_out_too(tmp_path: Path) -> None:
    _, val = split_coco(write(tmp_path, document() | {"annotations": []}), val_share=0.5)
    assert len(val["images"]) == 30


def test_annotations_without_an_image_are_refused(tmp_path: Path) -> None:
    whole = document()
    whole["annotations"] += [{"image_id": "img99", "category_id": 1}, "nonsense"]
    with pytest.raises(DatasetError) as caught:
        split_coco(write(tmp_path, whole))
    assert len(caught.value.problems) == 2
    assert "annotation number 61: image 'img99' is not in the list of images" in str(caught.value)


@pytest.mark.parametrize(
    ("count", "share", "reason"), [(2, 0.1, "too few"), (60, 1.0, "between"), (60, 0.0, "between")]
)
def test_a_part_without_images_is_refused(tmp_path: Path, count: int, share: float, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        split_coco(write(tmp_path, document(count)), val_share=share)
