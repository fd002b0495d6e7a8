"""A small dataset in COCO format, in which tests introduce single problems."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def coco_document() -> dict[str, Any]:
    """Return three images, the last without boxes, three boxes, and two categories with non-consecutive ids."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 3, "file_name": "b.png", "width": 20, "height": 50},
            {"id": 900, "file_name": "c.png", "width": 16, "height": 16},
        ],
        "annotations": [
            {"id": 0, "image_id": 3, "category_id": 20, "bbox": [1, 2, 10, 20], "area": 200, "iscrowd": 0},
            {"id": 5, "image_id": 7, "category_id": 4, "bbox": [5.5, 6, 10, 12], "area": 120, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 20, "bbox": [0, 0, 40, 30], "area": 1200, "iscrowd": 0},
        ],
        "categories": [{"id": 20, "name": "dog"}, {"id": 4, "name": "cat"}],
    }


def write_coco(folder: Path, document: Any, name: str = "annotations.json") -> Path:
    """Write an annotation file and a random image for each entry, and return the path of the file."""
    folder.mkdir(parents=True, exist_ok=True)
    images = document.get("images", []) if isinstance(document, dict) else []
    for image in images if isinstance(images, list) else []:
        if isinstance(image, dict) and isinstance(image.get("file_name"), str):
            height, width = (side if isinstance(side := image.get(key), int) else 8 for key in ("height", "width"))
            pixels = np.random.default_rng().integers(0, 256, (max(1, height), max(1, width), 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / image["file_name"])
    path = folder / name
    path.write_text(json.dumps(document), encoding="utf-8")
    return path
