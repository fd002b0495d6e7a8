"""A model that knows the answers."""

import torch
from torch import nn

from deformdetr.structures import Predictions


class Oracle(nn.Module):
    """Predicts what the dataset holds, by counting the images it is shown; one class too many, to be left out."""

    def __init__(self, dataset, queries=8):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.targets = [dataset[index][1] for index in range(len(dataset))]
        self.queries = queries
        self.classes = dataset.label_map.num_classes + 1
        self.shown = 0

    def forward(self, images, padding_mask):
        logits = torch.full((len(images), self.queries, self.classes), -20.0)
        boxes = torch.full((len(images), self.queries, 4), 0.5)
        masks = torch.full((len(images), self.queries, *images.shape[-2:]), -20.0)
        shown = self.targets[self.shown : self.shown + len(images)]
        for index, target in enumerate(shown):
            count = len(target["labels"])
            logits[index, range(count), target["labels"]] = 5.0
            boxes[index, :count] = target["boxes"]
            if "masks" in target:
                _, height, width = target["masks"].shape
                masks[index, :count, :height, :width] = target["masks"] * 40.0 - 20.0
        logits[:, -1, -1] = 9.0
        self.shown += len(images)
        outputs = Predictions(pred_logits=logits, pred_boxes=boxes)
        if "masks" in shown[0]:
            outputs |= {"pred_masks": masks, "valid_ratios": torch.ones(len(images), 2)}
        return outputs
