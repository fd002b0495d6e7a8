"""Panoptic segmentation of synthetic shapes on a striped background: PQ during a short training, and a picture."""

import json
import sys
from pathlib import Path

import deformdetr
from deformdetr.data import ShapesConfig, build_dataset, panoptic_truth
from deformdetr.engine import RunDirectory, demo_experiment, train
from deformdetr.visualize import draw_panoptic, save_image, tile_pictures


def main(folder, *, num_train=1600, num_val=100, epochs=8):
    """Train a run in a folder, draw three images as annotated and as found, and return PQ after each epoch."""
    demo = demo_experiment(masks=True)
    data = ShapesConfig(num_train=num_train, num_val=num_val, image_size=96, stuff=True)
    settings = demo.train.replace(epochs=epochs, eval_every=1)
    train(demo.replace(model=demo.model.replace(num_classes=5), data=data, train=settings), folder)
    rows = map(json.loads, RunDirectory(folder).metrics.read_text().splitlines())

    detector = deformdetr.load(folder, device="cpu")
    dataset = build_dataset(data, "val", masks=True)
    pictures = []
    for index in range(min(3, num_val)):
        image, _ = dataset.untransformed(index)
        truth = panoptic_truth(dataset.annotations, index)
        pictures.append(draw_panoptic(image, truth, detector.names, min_size=192))
        pictures.append(detector(image).draw_panoptic(min_size=192))
    save_image(tile_pictures(pictures, columns=2), Path(folder) / "panoptic.jpg")
    return [row["panoptic"]["PQ"] for row in rows if "panoptic" in row]


if __name__ == "__main__":
    for epoch, quality in enumerate(main(sys.argv[1]), start=1):
        print(f"epoch {epoch}: PQ {quality:.3f}")
