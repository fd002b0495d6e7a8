"""Checkpoints: safe loading, completeness, and refusal of other files."""

from dataclasses import replace

import pytest
import torch

from deformdetr.config import DeformableDETRConfig
from deformdetr.data import prepare_for_evaluation
from deformdetr.engine import Checkpoint, RunError
from deformdetr.integrations import load_checkpoint
from deformdetr.integrations.hub import from_pretrained, pretrained_settings, save_pretrained
from deformdetr.models import prepare_image


def test_checkpoint_loads_with_weights_only(finished_run):
    content = torch.load(finished_run / "last.pt", weights_only=True)
    assert content["label_map"] == {
        "names": ["circle", "rectangle", "triangle"],
        "category_ids": [1, 2, 3],
        "stuff": [],
    }
    assert (content["epoch"], content["step"]) == (2, 6)
    assert "AP50" in content["metrics"]


def test_best_checkpoint_holds_no_optimizer(finished_run):
    assert Checkpoint.load(finished_run / "best.pt").training is None
    assert Checkpoint.load(finished_run / "last.pt").training is not None


def test_built_model_has_the_saved_weights_in_evaluation_mode(finished_run):
    checkpoint = Checkpoint.load(finished_run / "best.pt")
    model = checkpoint.build()
    assert not model.training
    for name, weights in model.state_dict().items():
        assert torch.equal(weights, checkpoint.model[name])


def test_load_checkpoint_reads_the_checkpoint_of_a_run(finished_run):
    checkpoint = Checkpoint.load(finished_run / "best.pt")
    model = checkpoint.experiment.model.build()
    assert load_checkpoint(model, finished_run / "best.pt").fits


def test_model_is_built_without_the_initial_weights_of_its_backbone(finished_run, tmp_path):
    checkpoint = Checkpoint.load(finished_run / "best.pt")
    backbone = {"kind": "resnet", "name": "resnet18", "weights": str(tmp_path / "gone.pth")}
    config = DeformableDETRConfig.model_validate(checkpoint.experiment.model.model_dump() | {"backbone": backbone})
    weights = config.replace(backbone=config.backbone.replace(weights=None)).build().state_dict()
    changed = Checkpoint(
        model=weights,
        experiment=checkpoint.experiment.replace(model=config),
        label_map=checkpoint.label_map,
        epoch=1,
        step=1,
        metrics={},
    )
    changed.save(tmp_path / "checkpoint.pt")
    model = Checkpoint.load(tmp_path / "checkpoint.pt").build()
    assert torch.equal(model.backbone.conv1.weight, weights["backbone.conv1.weight"])


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"PK\x03\x04 broken"])
def test_broken_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "last.pt"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"last\.pt cannot be read: not a file that torch\.save has written"):
        Checkpoint.load(path)


def test_truncated_checkpoint_is_refused_by_name(tmp_path, finished_run):
    path = tmp_path / "last.pt"
    path.write_bytes((finished_run / "last.pt").read_bytes()[:-5000])
    with pytest.raises(RunError, match=r"last\.pt cannot be read: not a file that torch\.save has written"):
        Checkpoint.load(path)


def test_foreign_state_dict_is_refused_with_advice(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"model": {"a": torch.zeros(1)}}, path)
    with pytest.raises(RunError, match=r"not the checkpoint of a run; .*init_checkpoint"):
        Checkpoint.load(path)


def test_checkpoint_of_another_format_is_refused(tmp_path, finished_run):
    content = torch.load(finished_run / "best.pt", weights_only=True)
    torch.save(content | {"format": 99}, tmp_path / "best.pt")
    with pytest.raises(RunError, match="has format 99, but this version reads format 1"):
        Checkpoint.load(tmp_path / "best.pt")


def test_weights_of_another_model_are_refused(finished_run):
    checkpoint = Checkpoint.load(finished_run / "best.pt")
    name = next(iter(checkpoint.model))
    for model in ({}, checkpoint.model | {name: torch.zeros(1)}):
        with pytest.raises(RunError, match="do not fit the model that it describes"):
            replace(checkpoint, model=model).build()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"model": {"a": 3}}, "model.a: Input should be an instance of Tensor"),
        ({"epoch": "one"}, "epoch: Input should be a valid integer"),
        ({"label_map": {"names": []}}, "label_map.names: .*, and 1 more"),
        ({"format": torch.zeros(3)}, "has format tensor"),
    ],
)
def test_entries_of_other_types_are_named(entry, message, finished_run, tmp_path):
    content = torch.load(finished_run / "best.pt", weights_only=True)
    torch.save(content | entry, tmp_path / "best.pt")
    with pytest.raises(RunError, match=message) as caught:
        Checkpoint.load(tmp_path / "best.pt")
    assert "\n" not in str(caught.value)


def test_a_run_becomes_a_folder_with_its_names_and_preparation(finished_run, tmp_path):
    checkpoint = Checkpoint.load(finished_run / "best.pt")
    settings = checkpoint.inference_settings()
    model = checkpoint.build()
    save_pretrained(model, checkpoint.experiment.model, tmp_path, settings=settings, metrics=checkpoint.metrics)
    assert pretrained_settings(tmp_path) == settings
    assert settings.label_map == checkpoint.label_map
    image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    theirs = prepare_image(
        image,
        short_side=settings.short_side,
        max_size=settings.max_size,
        mean=settings.image_mean,
        std=settings.image_std,
    )
    assert torch.equal(theirs, prepare_for_evaluation(image, checkpoint.experiment.data))
    restored = from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, restored[name]) for name, tensor in checkpoint.model.items())
    assert "| AP |" in (tmp_path / "README.md").read_text()
    assert checkpoint.has_dataset
    assert not Checkpoint.from_pretrained(tmp_path).has_dataset
