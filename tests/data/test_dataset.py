import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from coco_files import coco_document, write_coco
from deformdetr.data import DataConfig, DatasetError, LabelMap, SeededIndex, build_dataset, build_datasets, collate


def config(folder: Path, **fields: Any) -> DataConfig:
    return DataConfig(
        train_images=folder,
        train_annotations=folder / "train.json",
        val_images=folder,
        val_annotations=folder / "val.json",
        **fields,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_coco(tmp_path, coco_document(), "train.json")
    write_coco(tmp_path, coco_document(), "val.json")
    return tmp_path


def edit(path: Path, key: str, index: int, **fields: Any) -> None:
    document = json.loads(path.read_text())
    document[key][index].update(fields)
    path.write_text(json.dumps(document))


def test_a_sample_is_a_normalized_image_and_its_target(folder: Path) -> None:
    dataset = build_dataset(config(folder, eval_short_side=60), "val")
    image, target = dataset[0]
    assert image.shape == (3, 60, 80)
    assert image.dtype == torch.float32
    assert set(target) == {"boxes", "labels", "image_id", "orig_size", "size"}
    assert target["image_id"] == 7
    assert target["orig_size"].tolist() == [30, 40]
    assert target["size"].tolist() == [60, 80]
    torch.testing.assert_close(target["boxes"][1], torch.tensor([0.5, 0.5, 1, 1]))
    assert target["labels"].tolist() == [0, 1]


def test_a_dataset_is_a_sequence(folder: Path) -> None:
    dataset = build_dataset(config(folder), "val")
    assert len(dataset) == 3
    assert [target["image_id"] for _, target in dataset] == [7, 3, 900]
    assert dataset[-1][1]["image_id"] == 900
    with pytest.raises(IndexError):
        dataset[3]


def test_an_image_without_boxes_has_an_empty_target(folder: Path) -> None:
    _, target = build_dataset(config(folder), "train")[2]
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].dtype == torch.int64


def test_untransformed_gives_the_stored_pixels(folder: Path) -> None:
    image, target = build_dataset(config(folder), "train").untransformed(1)
    assert (image.dtype, image.shape) == (torch.uint8, (3, 50, 20))
    torch.testing.assert_close(target["boxes"], torch.tensor([[6 / 20, 12 / 50, 10 / 20, 20 / 50]]))


def test_a_seeded_index_fixes_the_augmentation_without_touching_the_global_generator(folder: Path) -> None:
    dataset = build_dataset(config(folder), "train")
    before = torch.get_rng_state()
    first, again, other = (dataset[SeededIndex(0, seed)][0] for seed in (5, 5, 6))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_training_annotations_determine_the_labels_of_both_splits(folder: Path) -> None:
    document = coco_document()
    document["categories"] = [{"id": 20, "name": "dog"}]
    document["annotations"] = [row for row in document["annotations"] if row["category_id"] == 20]
    write_coco(folder, document, "val.json")
    for val in (build_datasets(config(folder)).val, build_dataset(config(folder), "val")):
        assert val.label_map == LabelMap(names=("cat", "dog"), category_ids=(4, 20))
        assert val[1][1]["labels"].tolist() == [1]


def test_categories_that_differ_between_the_splits_are_refused(folder: Path) -> None:
    edit(folder / "val.json", "categories", 0, name="wolf")
    with pytest.raises(DatasetError, match=r"val.json: category 20 is 'wolf' here but 'dog' in the label map"):
        build_datasets(config(folder))


def test_a_given_label_map_needs_no_training_files_for_evaluation(folder: Path) -> None:
    label_map = build_dataset(config(folder), "train").label_map
    (folder / "train.json").unlink()
    assert len(build_dataset(config(folder, label_map=label_map), "val")) == 3


def test_problems_of_both_splits_come_in_one_error(folder: Path) -> None:
    edit(folder / "train.json", "annotations", 0, image_id=1)
    edit(folder / "val.json", "annotations", 1, bbox=[1, 2, float("nan"), 4])
    with pytest.raises(DatasetError) as caught:
        build_datasets(config(folder))
    first, second = caught.value.problems
    assert "train.json: annotation 0: image 1 is not" in first
    assert "val.json: annotation 5" in second


def test_a_training_split_without_a_box_is_refused_and_an_evaluation_split_is_not(folder: Path) -> None:
    document = coco_document() | {"annotations": []}
    write_coco(folder, document, "val.json")
    assert build_datasets(config(folder)).val.report.boxes == 0
    write_coco(folder, document, "train.json")
    with pytest.raises(DatasetError, match=r"train.json.*no boxes to train on"):
        build_datasets(config(folder))


def test_variables_in_paths_are_replaced_and_missing_ones_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = DataConfig(
        train_images="$HERE", train_annotations="$HERE/train.json", val_images="$HERE", val_annotations="$HERE/val.json"
    )
    monkeypatch.setenv("HERE", str(folder))
    assert len(build_datasets(written).train) == 3
    monkeypatch.delenv("HERE")
    with pytest.raises(DatasetError, match="'HERE' is not set"):
        build_datasets(written)


def test_an_image_that_breaks_during_training_is_named(folder: Path) -> None:
    dataset = build_dataset(config(folder), "train")
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:100])
    with pytest.raises(DatasetError, match=r"b\.png: cannot be read"):
        dataset[1]


def test_published_photographs_are_read_with_one_degenerate_box_in_each_split(bccd: DataConfig) -> None:
    train, val = build_datasets(bccd)
    assert (train.report.images, train.report.boxes, train.report.degenerate) == (205, 2804, 1)
    assert (val.report.images, val.report.boxes, val.report.degenerate) == (87, 1137, 1)
    assert train.label_map.names == ("RBC", "WBC", "Platelets")
    image, target = val[0]
    assert image.shape == (3, 800, 1066)
    assert 0 < float(target["boxes"].min()) <= float(target["boxes"].max()) <= 1


def test_batches_are_padded_and_targets_stay_lists() -> None:
    small, large = torch.rand(3, 4, 6), torch.rand(3, 5, 3)
    targets = [{"boxes": torch.rand(n, 4), "labels": torch.zeros(n, dtype=torch.int64)} for n in (2, 0)]
    images, listed = collate([(small, targets[0]), (large, targets[1])])
    assert images.images.shape == (2, 3, 5, 6)
    assert images.padding_mask[0, 4:].all()
    assert images.padding_mask[1, :, 3:].all()
    assert int((~images.padding_mask).sum()) == 4 * 6 + 5 * 3
    assert listed == targets


def test_a_broken_image_is_named_across_processes(folder: Path) -> None:
    dataset = build_dataset(config(folder), "train")
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:100])
    loader = DataLoader(dataset, num_workers=1, collate_fn=collate)
    # Not pytest.raises: the traceback that it stores would keep the loader's process alive for seconds.
    try:
        list(loader)
    except DatasetError as error:
        message = str(error)
    assert f"{folder / 'b.png'}: cannot be read" in message
