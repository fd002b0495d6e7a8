"""Parity with transformers: names in both directions, and the same predictions from the same random weights."""

import copy

import pytest
import torch

from checkpoints import tiny_config
from deformdetr import DeformableDETRConfig
from deformdetr.config import ResNetConfig
from deformdetr.integrations import from_hugging_face, load_checkpoint, to_hugging_face

transformers = pytest.importorskip("transformers")

VARIANTS = {
    "single_scale": {"num_feature_levels": 1},
    "multi_scale": {},
    "box_refine": {"with_box_refine": True},
    "two_stage": {"with_box_refine": True, "two_stage": True},
}
variants = pytest.mark.parametrize(
    "variant",
    [pytest.param(v, id=k, marks=pytest.mark.slow if k == "single_scale" else ()) for k, v in VARIANTS.items()],
)

SIZES = {
    "num_classes": 7,
    "num_queries": 20,
    "d_model": 64,
    "n_heads": 4,
    "d_ffn": 96,
    "enc_n_points": 2,
    "dec_n_points": 3,
    "norm_groups": 32,
}


def our_config(variant: dict[str, object]) -> DeformableDETRConfig:
    return tiny_config(**SIZES, **variant, backbone=ResNetConfig(name="resnet18"))


def their_model(variant: dict[str, object]):
    """Build transformers' model with its own ResNet-18, which needs no download, and all weights drawn at random."""
    stages = ["stage4"] if variant.get("num_feature_levels") == 1 else ["stage2", "stage3", "stage4"]
    backbone = transformers.ResNetConfig(
        layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], out_features=stages
    )
    config = transformers.DeformableDetrConfig(
        backbone_config=backbone,
        num_labels=SIZES["num_classes"],
        num_queries=SIZES["num_queries"],
        two_stage_num_proposals=SIZES["num_queries"],
        d_model=SIZES["d_model"],
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=SIZES["n_heads"],
        decoder_attention_heads=SIZES["n_heads"],
        encoder_ffn_dim=SIZES["d_ffn"],
        decoder_ffn_dim=SIZES["d_ffn"],
        encoder_n_points=SIZES["enc_n_points"],
        decoder_n_points=SIZES["dec_n_points"],
        disable_custom_kernels=True,
        **variant,
    )
    model = transformers.DeformableDetrForObjectDetection(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.8, 1.2)
            elif tensor.ndim > 1 and "backbone" not in name:
                tensor.normal_(0, 0.5 * tensor[0].numel() ** -0.5)
            elif tensor.ndim == 1:
                tensor.add_(torch.randn_like(tensor) * 0.1)
    return model


def padded_batch(rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.zeros(2, 96, 128, dtype=torch.bool)
    mask[0, 64:] = True
    mask[1, :, 96:] = True
    return torch.randn(2, 3, 96, 128, generator=rng).masked_fill(mask[:, None], 0), mask


@torch.no_grad()
def assert_same_predictions(ours, theirs, rng: torch.Generator) -> None:
    images, mask = padded_batch(rng)
    outputs = ours(images, mask)
    # Theirs is 1 where there is an image.
    expected = theirs(images, pixel_mask=(~mask).long())
    tolerance = {"rtol": 0, "atol": 1e-4}
    torch.testing.assert_close(outputs["pred_logits"], expected.logits, **tolerance)
    torch.testing.assert_close(outputs["pred_boxes"], expected.pred_boxes, **tolerance)
    if "enc_outputs" in outputs:
        proposals = outputs["enc_outputs"]
        torch.testing.assert_close(proposals["pred_logits"], expected.enc_outputs_class, **tolerance)
        boxes = expected.enc_outputs_coord_logits.sigmoid()
        torch.testing.assert_close(proposals["pred_boxes"], boxes, **tolerance)


@variants
def test_their_weights_give_the_same_predictions_here(variant, rng):
    theirs, ours = their_model(variant), our_config(variant).build().eval()
    report = load_checkpoint(ours, theirs.state_dict())
    assert (report.format, report.fits) == ("hugging_face", True)
    assert_same_predictions(ours, theirs, rng)


@variants
def test_our_weights_give_the_same_predictions_there(variant, rng):
    theirs, ours = their_model(variant), our_config(variant).build().eval()
    load_checkpoint(ours, their_model(variant).state_dict())
    if variant.get("with_box_refine") and not variant.get("two_stage"):
        # Built from a config, theirs ties the class heads of all layers when it refines.
        theirs.class_embed = torch.nn.ModuleList(copy.deepcopy(head) for head in theirs.class_embed)
        for head in ours.class_heads:
            torch.nn.init.normal_(head.weight)
    missing, unexpected = theirs.load_state_dict(to_hugging_face(ours.state_dict(), backbone="resnet"), strict=False)
    assert missing == []
    assert unexpected == []
    assert_same_predictions(ours, theirs, rng)


@variants
def test_files_of_transformers_load(variant, tmp_path, rng):
    # Files have the names of version 4, and tensors with several names once.
    theirs, ours = their_model(variant), our_config(variant).build().eval()
    theirs.save_pretrained(tmp_path)
    assert load_checkpoint(ours, tmp_path / "model.safetensors").fits
    assert_same_predictions(ours, theirs, rng)


@variants
@pytest.mark.parametrize("backbone", ["timm_backbone", "resnet"])
def test_round_trip_through_their_names_changes_no_bit(variant, backbone):
    state = our_config(variant).build().state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    back = from_hugging_face(to_hugging_face(state, backbone=backbone))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_names_of_a_timm_backbone_are_those_of_the_published_checkpoints():
    names = to_hugging_face(our_config({}).build().state_dict()).keys()
    assert {"model.backbone.model.conv1.weight", "model.backbone.model.layer2.0.downsample.1.running_mean"} <= names
