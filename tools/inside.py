"""Draw the pictures of detections, of an evaluation and of the inside of a model, from a run of `deformdetr demo`.

deformdetr demo --output runs/demo
python -m tools.inside runs/demo
"""

import argparse
import shutil
from pathlib import Path

import torch
from benchmarks.pages import ROOT

import deformdetr
from deformdetr.data import build_dataset
from deformdetr.engine import RunDirectory, load_run
from deformdetr.visualize import draw_proposals, draw_refinement, plot_sampling_layers, save_image, tile_pictures

OUT = ROOT / "docs" / "images"


def draw(run: Path, out: Path, index: int = 15) -> None:
    """Write the pictures.

    Args:
        run: A run directory with an evaluation.
        out: Folder to write to.
        index: Evaluation image to look at.
    """
    dataset = build_dataset(load_run(run)[1].experiment.data, "val")
    picture, _ = dataset.untransformed(index)
    detector = deformdetr.load(run, device="cpu")
    crowded = [each for each in range(40) if len(dataset[each][1]["labels"]) >= 3][1:4]
    found = [detector(dataset.untransformed(each)[0], threshold=detector.best_threshold or 0.5) for each in crowded]
    save_image(tile_pictures([each.draw(min_size=360) for each in found], columns=3), out / "detections.jpg")
    model = detector.model
    with deformdetr.capture(model) as captured, torch.no_grad():
        outputs = model([dataset[index][0]])

    best = outputs["pred_logits"][0].amax(-1).topk(3).indices
    boxes = [of_layer[0, best] for of_layer in captured.boxes]
    save_image(draw_refinement(picture, boxes, references=captured.references[0, best]), out / "refinement.jpg")

    decoder = [name for name in captured.layers if name.startswith("decoder.")]
    sampled = [(name, captured.in_image(name, image=0, query=int(best[0]))) for name in decoder]
    save_image(plot_sampling_layers(picture, sampled), out / "sampling_layers.jpg")
    proposals = draw_proposals(picture, captured.proposal_boxes[0], captured.proposal_scores[0], count=30)
    save_image(proposals, out / "proposals.jpg")

    for name in ("precision_recall.png", "confusion.png"):
        shutil.copyfile(RunDirectory(run).evaluation_files / name, out / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory of `deformdetr demo`")
    draw(parser.parse_args().run, OUT)


if __name__ == "__main__":
    main()
