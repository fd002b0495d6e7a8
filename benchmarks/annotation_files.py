"""Time and memory of reading annotation files of any size: at first, and from the index that later starts map.

    python -m benchmarks.annotation_files 860000 5000000

Files are synthetic, with as many boxes per image as COCO. Each reading runs in a process of its own, whose memory also
has what the imports take.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

_BOXES_PER_IMAGE = 860_000 / 118_000
_IMAGE_FILES = 1_000
_BLOCK = 10_000
_READ = "import sys; from benchmarks.annotation_files import read; read(sys.argv[1])"


def write_annotations(file: Path, boxes: int, *, points: int) -> None:
    """Write a file of random boxes. With `points`, each has a polygon of so many. Some images share a file."""
    images = max(1, round(boxes / _BOXES_PER_IMAGE))
    for number in range(min(images, _IMAGE_FILES)):
        (file.parent / f"{number:012d}.jpg").write_bytes(b"not read")
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, 81)]
    with file.open("w") as opened:
        opened.write('{"images": [')
        opened.writelines(_joined(map(_image, range(images))))
        opened.write('], "annotations": [')
        opened.writelines(_joined(_annotations(boxes, images, points)))
        opened.write(f'], "categories": {json.dumps(categories)}}}')


def _image(number: int) -> str:
    return f'{{"id": {number}, "file_name": "{number % _IMAGE_FILES:012d}.jpg", "height": 480, "width": 640}}'


def _annotations(boxes: int, images: int, points: int) -> Iterator[str]:
    rng = np.random.default_rng(0)
    polygon = ", ".join(["%.2f"] * (2 * points))
    shape = f', "segmentation": [[{polygon}]]' if points else ""
    # Formatting in one step takes a fifth of the time of `json.dumps`.
    entry = (
        '{"id": %d, "image_id": %d, "category_id": %d, "iscrowd": 0, "bbox": [%.2f, %.2f, %.2f, %.2f], "area": %.4f'
        + f"{shape}}}"
    )
    for start in range(0, boxes, _BLOCK):
        count = min(_BLOCK, boxes - start)
        corners = rng.uniform(0, (500, 400), (count, 2))
        sides = rng.uniform(1, (130, 75), (count, 2)).round(2)
        columns = [
            np.arange(start, start + count),
            rng.integers(0, images, count),
            rng.integers(1, 81, count),
            *corners.T,
            *sides.T,
            sides.prod(axis=1),
            *rng.uniform(0, 400, (2 * points, count)),
        ]
        for row in zip(*(column.tolist() for column in columns), strict=True):
            yield entry % row


def _joined(entries: Iterable[str]) -> Iterator[str]:
    return (entry if number == 0 else f", {entry}" for number, entry in enumerate(entries))


def read(file: str) -> None:
    """Print seconds (of the clock, and of the processor) and MiB at the peak (before, and after) of reading a file."""
    from deformdetr.data import read_coco

    before, wall, processor = _peak(), time.perf_counter(), time.process_time()
    read_coco(Path(file).parent, file)
    print(json.dumps([time.perf_counter() - wall, time.process_time() - processor, before, _peak()]))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure reading of annotation files.")
    parser.add_argument("boxes", type=int, nargs="+", help="numbers of boxes")
    parser.add_argument("--points", type=int, default=13, help="points of each polygon; 13 as in COCO, 0: none")
    arguments = parser.parse_args()
    print("| boxes | file, MB | reading | seconds | processor seconds | imports, MiB | peak, MiB |")
    print("| ---: | ---: | --- | ---: | ---: | ---: | ---: |")
    for boxes in arguments.boxes:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "annotations.json")
            write_annotations(file, boxes, points=arguments.points)
            for kind in ("first", "index"):
                process = subprocess.run(
                    [sys.executable, "-c", _READ, file], check=True, capture_output=True, text=True
                )
                wall, processor, before, peak = json.loads(process.stdout)
                size = file.stat().st_size / 1e6
                row = (
                    f"| {boxes:,} | {size:,.0f} | {kind} | {wall:.2f} | {processor:.2f} | {before:,.0f} | {peak:,.0f} |"
                )
                print(row, flush=True)


if __name__ == "__main__":
    main()
