"""Pictures of augmented training images."""

from itertools import islice

from PIL import Image

from deformdetr.boxes import cxcywh_to_xyxy, scale_boxes
from deformdetr.data import SeededSampler, build_dataset
from deformdetr.engine._config import Experiment
from deformdetr.visualize import displayable, draw_boxes, tile_pictures


def draw_augmented(experiment: Experiment, *, count: int = 16) -> Image.Image:
    """Return a sheet of augmented training images with their boxes.

    They are those that the first epoch starts with, on a single process: same images, same random numbers.

    Args:
        experiment: Its dataset, augmentation and seed are used.
        count: Number of images; fewer if the dataset has fewer.

    Raises:
        ValueError: If `count` is not positive.
        DatasetError: If the dataset has problems, or an image cannot be read.

    Examples:
        >>> from deformdetr.engine import demo_experiment, draw_augmented
        >>> draw_augmented(demo_experiment(), count=4).size
        (1640, 416)
    """
    if count < 1:
        raise ValueError(f"count must be positive, got {count}")
    dataset = build_dataset(experiment.data, "train", masks=experiment.model.masks)
    mean, std = experiment.data.image_mean, experiment.data.image_std
    pictures = []
    for index in islice(SeededSampler(len(dataset), shuffle=True, seed=experiment.train.seed), count):
        image, target = dataset[index]
        height, width = image.shape[1:]
        boxes = scale_boxes(cxcywh_to_xyxy(target["boxes"]), (height, width))
        picture = displayable(image, mean=mean, std=std)
        names = dataset.label_map.names
        pictures.append(draw_boxes(picture, boxes, target["labels"], names, masks=target.get("masks")))
    return tile_pictures(pictures)
