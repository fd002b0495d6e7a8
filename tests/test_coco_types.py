import json
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pydantic import ValidationError

from deformdetr.data import LabelMap
from deformdetr.evaluation import encode_masks


def test_contiguous_labels_are_in_order_of_category_ids() -> None:
    label_map = LabelMap.contiguous({20: "dog", -3: "fish", 4: "cat"})
    assert label_map.names == ("fish", "cat", "dog")
    assert label_map.category_ids == (-3, 4, 20)
    assert label_map.labels() == {-3: 0, 4: 1, 20: 2}
    assert label_map.num_classes == 3


def test_sparse_labels_equal_their_category_ids() -> None:
    label_map = LabelMap.sparse({1: "person", 3: "car"})
    assert label_map.names == ("N/A", "person", "N/A", "car")
    assert label_map.labels()[3] == 3
    with pytest.raises(ValueError, match="-2"):
        LabelMap.sparse({-2: "fish"})


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"names": ("a", "b"), "category_ids": (1,)}, "2 names for 1 category"),
        ({"names": ("a", "b", "c"), "category_ids": (5, 1, 5)}, r"more than once: \[5\]"),
        ({"names": (), "category_ids": ()}, "at least 1"),
    ],
)
def test_contradictory_label_maps_are_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        LabelMap(**fields)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_encoded_masks_decode_to_the_given_ones(rng: torch.Generator) -> None:
    masks = torch.rand(5, 1, 7, 11, generator=rng) > 0.6
    encoded = json.loads(json.dumps(encode_masks(masks)))
    assert [each["size"] for each in encoded] == [[7, 11]] * 5
    np.testing.assert_array_equal(coco_mask.decode(encoded).transpose(2, 0, 1), masks[:, 0])
    assert encode_masks(masks[:0]) == []
