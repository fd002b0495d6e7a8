"""Panoptic segmentation of synthetic shapes on a striped background: training, panoptic quality, and pictures."""

import sys
from pathlib import Path

import torch

from deformdetr.data import SHAPES_STUFF, ShapesConfig, build_dataset, panoptic_truth
from deformdetr.engine import demo_experiment, load_run, train
from deformdetr.evaluation import PanopticEvaluator
from deformdetr.models import PanopticPostProcess, SigmoidPostProcess
from deformdetr.visualize import draw_panoptic, save_image


def main(folder, *, num_train=1600, num_val=100, epochs=8):
    """Train a run in a folder, draw four pictures into it, and return the metrics."""
    demo = demo_experiment(masks=True)
    data = ShapesConfig(num_train=num_train, num_val=num_val, image_size=96, stuff=True)
    model = demo.model.replace(num_classes=5)
    train(demo.replace(model=model, data=data, train=demo.train.replace(epochs=epochs, eval_every=epochs)), folder)

    model = load_run(folder)[1].build().eval()
    dataset = build_dataset(data, "val", masks=True)
    merge = PanopticPostProcess(stuff=SHAPES_STUFF, detections=SigmoidPostProcess(top_k=30), threshold=0.5)
    evaluator = PanopticEvaluator(dataset.label_map, SHAPES_STUFF)
    for index in range(len(dataset)):
        with torch.inference_mode():
            (found,) = merge(model([dataset[index][0]]), [(96, 96)])
        truth = panoptic_truth(dataset.annotations, index)
        evaluator.update(found, truth)
        if index < 4:
            picture, _ = dataset.untransformed(index)
            for name, segmentation in (("truth", truth), ("found", found)):
                drawn = draw_panoptic(picture, segmentation, dataset.label_map.names, min_size=288)
                save_image(drawn, Path(folder) / f"{index}_{name}.png")
    return evaluator.compute()


if __name__ == "__main__":
    for name, number in main(sys.argv[1]).items():
        print(name, number)
