"""Small datasets in the layouts that other tools export. Each has a box of a cat, and of a dog, in 80 x 40 pixels."""

from collections.abc import Callable
from pathlib import Path

from PIL import Image

# Center, width and height as fractions of (80, 40), and the same in pixels from 0: left, top, width, height.
CAT, DOG = "0.25 0.5 0.25 0.5", "0.75 0.25 0.125 0.25"
CAT_PIXELS, DOG_PIXELS = [10, 10, 20, 20], [55, 5, 10, 10]
Write = Callable[[Path], None]


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (80, 40)).save(path)


def yolo_roboflow(root: Path) -> None:
    for split in ("train", "valid"):
        picture(root / split / "images" / "a.v1.jpg")
        put(root / split / "labels" / "a.v1.txt", f"0 {CAT}\n1 {DOG}\n")
    put(
        root / "data.yaml",
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 2\nnames: ['cat', 'dog']\n",
    )


def yolo_ultralytics(root: Path) -> None:
    for split in ("train", "val"):
        picture(root / "images" / split / "sub" / "a.png")
        put(root / "labels" / split / "sub" / "a.txt", f"0 {CAT}\n1 {DOG} 0.9\n\n")
    put(
        root / "pets.yaml",
        "path: ../datasets/pets\ntrain: images/train\nval: [images/val]\nnames:\n  0: cat\n  1: dog\n",
    )


def yolo_cvat(root: Path) -> None:
    for split, folder in (("train", "obj_train_data"), ("valid", "obj_valid_data")):
        picture(root / folder / "a.jpg")
        put(root / folder / "a.txt", f"0 {CAT}\n1 {DOG}\n")
        put(root / f"{split}.txt", f"data/{folder}/a.jpg\n")
    put(
        root / "obj.data",
        "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = backup/\n",
    )
    put(root / "obj.names", "cat\ndog\n")


def yolo_label_studio(root: Path) -> None:
    picture(root / "images" / "a.jpg")
    put(root / "labels" / "a.txt", f"0 {CAT}\n1 {DOG}\n")
    put(root / "classes.txt", "cat\ndog\n")
    put(root / "notes.json", "{}")


def voc_xml(name: str, *, origin: int, splits: str = "") -> str:
    """Return annotations of an image. Pascal VOC's last pixel is inside; distances from 0 end behind it."""
    objects = ""
    for label, (left, top, width, height) in (("cat", CAT_PIXELS), ("dog", DOG_PIXELS)):
        edges = {"xmin": left + origin, "ymin": top + origin, "xmax": left + width, "ymax": top + height}
        box = "".join(f"<{edge}>{value if origin else float(value) + 0.5}</{edge}>" for edge, value in edges.items())
        objects += f"<object><name>{label}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
    return f"<annotation><folder>{splits}</folder><filename>{name}</filename>{objects}</annotation>"


def voc_devkit(root: Path) -> None:
    for name in ("a", "b"):
        picture(root / "JPEGImages" / f"{name}.jpg")
        put(root / "Annotations" / f"{name}.xml", voc_xml(f"{name}.jpg", origin=1))
    for split, names in {"train": "a", "val": "b", "trainval": "a\nb", "cat_train": "a 1"}.items():
        put(root / "ImageSets" / "Main" / f"{split}.txt", f"{names}\n")


def voc_roboflow(root: Path) -> None:
    for split in ("train", "valid"):
        picture(root / split / "a.rf.jpg")
        put(root / split / "a.rf.xml", voc_xml("a.rf.jpg", origin=1))


def voc_cvat(root: Path) -> None:
    for split in ("train", "val"):
        picture(root / "JPEGImages" / split / "a.png")
        put(root / "Annotations" / split / "a.xml", voc_xml(f"{split}/a.png", origin=0))


def voc_labelimg(root: Path) -> None:
    picture(root / "a.png")
    put(root / "a.xml", voc_xml("C:\\photos\\a.png", origin=1))
    picture(root / "unlabeled.png")
