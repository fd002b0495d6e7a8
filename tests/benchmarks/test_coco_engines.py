"""Random ground truth and detections for engines of COCO's metrics."""

import numpy as np
from benchmarks.coco_engines import _evaluate, draw
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def test_drawn_detections_find_some_of_the_objects_and_repeat_with_the_seed():
    truth, detections = draw(3, np.random.default_rng(5))
    assert draw(3, np.random.default_rng(5)) == (truth, detections)
    assert len(detections) == 300
    evaluation, seconds = _evaluate(COCO, COCOeval, truth, detections)
    assert 0 < evaluation.stats[1] < 1
    assert seconds > 0
