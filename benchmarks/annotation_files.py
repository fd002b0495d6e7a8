"""Time and memory of reading annotation files of any size: at first, and from the index that later starts map.

    python -m benchmarks.annotation_files 860000 5000000

Files are synthetic, with as many boxes per image as COCO. Each reading runs in a process of its own, whose memory also
has what the imports take.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

_BOXES_PER_IMAGE = 860_000 / 118_000
_IMAGE_FILES = 1_000
_READ = "import sys; from benchmarks.annotation_files import read; read(sys.argv[1])"


def write_annotations(file: Path, boxes: int, *, points: int) -> None:
    """Write a file of random boxes. With `points`, each has a polygon of so many. Some images share a file."""
    numbers = random.Random(0)
    images = max(1, round(boxes / _BOXES_PER_IMAGE))
    for number in range(min(images, _IMAGE_FILES)):
        (file.parent / f"{number:012d}.jpg").write_bytes(b"not read")
    with file.open("w") as opened:
        opened.write('{"images": ')
        _write_list(opened.write, (_image(number) for number in range(images)))
        opened.write(', "annotations": ')
        _write_list(opened.write, (_annotation(number, images, points, numbers) for number in range(boxes)))
        categories = [{"id": number, "name": f"class {number}"} for number in range(1, 81)]
        opened.write(f', "categories": {json.dumps(categories)}}}')


def _image(number: int) -> dict[str, object]:
    return {"id": number, "file_name": f"{number % _IMAGE_FILES:012d}.jpg", "height": 480, "width": 640}


def _annotation(number: int, images: int, points: int, numbers: random.Random) -> dict[str, object]:
    left, top = (round(numbers.uniform(0, side), 2) for side in (500, 400))
    width, height = (round(numbers.uniform(1, side), 2) for side in (130, 75))
    polygon = [round(numbers.uniform(0, 400), 2) for _ in range(2 * points)]
    entry = {"id": number, "image_id": numbers.randrange(images), "category_id": numbers.randint(1, 80), "iscrowd": 0}
    shape = {"segmentation": [polygon]} if points else {}
    return {**entry, "bbox": [left, top, width, height], "area": width * height, **shape}


def _write_list(write, entries: Iterable[dict[str, object]]) -> None:
    for number, entry in enumerate(entries):
        write("[" if number == 0 else ", ")
        write(json.dumps(entry))
    write("]")


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
