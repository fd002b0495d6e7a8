"""Parity with transformers' DetrForSegmentation: names in both directions, and the same masks from the same weights."""

import torch
import transformers

from deformdetr import DETRConfig
from deformdetr.config import ResNetConfig
from deformdetr.integrations import load_checkpoint, save_checkpoint, to_hugging_face

OURS = DETRConfig(
    num_classes=7,
    num_queries=30,
    d_model=64,
    n_heads=8,
    d_ffn=96,
    num_encoder_layers=2,
    num_decoder_layers=3,
    backbone=ResNetConfig(name="resnet18"),
    masks=True,
)
TOLERANCE = {"rtol": 0, "atol": 1e-4}


def their_config():
    backbone = transformers.ResNetConfig(
        layer_type="basic",
        depths=[2, 2, 2, 2],
        hidden_sizes=[64, 128, 256, 512],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return transformers.DetrConfig(
        backbone_config=backbone,
        num_labels=7,
        num_queries=30,
        d_model=64,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
    )


def their_model():
    """Build transformers' model with all weights drawn at random, so that no norm or bias is idle."""
    model = transformers.DetrForSegmentation(their_config()).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.8, 1.2)
            elif tensor.ndim > 1 and "backbone" not in name:
                tensor.normal_(0, tensor[0].numel() ** -0.5)
            elif tensor.ndim == 1:
                tensor.add_(torch.randn_like(tensor) * 0.1)
    return model


@torch.no_grad()
def assert_same_masks(ours, theirs, rng):
    mask = torch.zeros(2, 96, 136, dtype=torch.bool)
    mask[0, 64:] = True
    mask[1, :, 96:] = True
    images = torch.randn(2, 3, 96, 136, generator=rng).masked_fill(mask[:, None], 0)
    outputs = ours(images, mask)
    expected = theirs(images, pixel_mask=(~mask).long())
    assert outputs["pred_masks"].shape == (2, 30, 24, 34)
    assert expected.pred_masks.std() > 0.1
    torch.testing.assert_close(outputs["pred_masks"], expected.pred_masks, **TOLERANCE)
    torch.testing.assert_close(outputs["pred_logits"], expected.logits, **TOLERANCE)
    torch.testing.assert_close(outputs["pred_boxes"], expected.pred_boxes, **TOLERANCE)


def test_their_weights_give_the_same_masks_here(rng):
    theirs, ours = their_model(), OURS.build().eval()
    report = load_checkpoint(ours, theirs.state_dict())
    assert (report.format, report.fits) == ("hugging_face_5", True)
    assert_same_masks(ours, theirs, rng)


def test_our_weights_give_the_same_masks_there(rng):
    theirs, ours = their_model(), OURS.build().eval()
    load_checkpoint(ours, their_model().state_dict())
    missing, unexpected = theirs.load_state_dict(to_hugging_face(ours.state_dict(), backbone="resnet"), strict=False)
    assert missing == unexpected == []
    assert_same_masks(ours, theirs, rng)


def test_files_move_in_both_directions(tmp_path, rng):
    theirs, ours = their_model(), OURS.build().eval()
    theirs.save_pretrained(tmp_path / "theirs")
    report = load_checkpoint(ours, tmp_path / "theirs" / "model.safetensors")
    assert (report.format, report.fits) == ("hugging_face_4", True)
    assert_same_masks(ours, theirs, rng)

    their_config().save_pretrained(tmp_path / "ours")
    written = save_checkpoint(ours, tmp_path / "ours" / "model.safetensors", "hugging_face_4", backbone="resnet")
    assert written.losses == []
    again, info = transformers.DetrForSegmentation.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    assert_same_masks(ours, again.eval(), rng)
