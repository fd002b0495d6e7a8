"""Gradient checkpointing does not change gradients."""

import pytest
import torch
from benchmarks.measure import peak_bytes

from checkpoints import tiny_config
from deformdetr.config import ConvBackboneConfig, ResNetConfig, TimmConfig
from deformdetr.engine import enable_gradient_checkpointing
from experiments import tiny_experiment


def gradients(model, images, seed):
    model.zero_grad()
    torch.manual_seed(seed)
    outputs = model(images)
    (outputs["pred_logits"].square().mean() + outputs["pred_boxes"].square().mean()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


SWIN = {"strict_img_size": False, "embed_dim": 24, "window_size": 4}
BACKBONES = {
    "conv": ConvBackboneConfig(channels=(8, 8, 16, 24)),
    "resnet": ResNetConfig(name="resnet18", norm="group", trainable_layers=3),
    "timm": TimmConfig(name="swin_tiny_patch4_window7_224", options=SWIN),
}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_gradients_names_and_dropout_stay_the_same(backbone, rng, seed):
    settings = {"dropout": 0.3, "aux_loss": False, "backbone": BACKBONES[backbone]}
    model = tiny_experiment().model.replace(**settings).build().train()
    images = torch.rand(2, 3, 64, 64, generator=rng)
    expected = gradients(model, images, seed)
    names = list(model.state_dict())
    enable_gradient_checkpointing(model)
    assert list(model.state_dict()) == names
    found = gradients(model, images, seed)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


def test_layers_run_again_in_the_backward_pass(rng):
    model = tiny_experiment().model.build().train()
    calls = []
    model.encoder.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(None))
    enable_gradient_checkpointing(model)
    outputs = model(torch.rand(1, 3, 64, 64, generator=rng))
    assert len(calls) == 1
    outputs["pred_boxes"].sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize("backbone", ["conv", "resnet"])
def test_blocks_of_the_backbone_run_again_if_they_train(backbone, rng):
    model = tiny_experiment().model.replace(backbone=BACKBONES[backbone]).build().train()
    calls = []
    for index, block in enumerate(model.backbone.blocks):
        next(block.children()).register_forward_hook(lambda *_, index=index: calls.append(index))
    enable_gradient_checkpointing(model)
    outputs = model(torch.rand(1, 3, 64, 64, generator=rng))
    count = len(model.backbone.blocks)
    assert calls == list(range(count))
    outputs["pred_boxes"].sum().backward()
    trained = [i for i, block in enumerate(model.backbone.blocks) if any(p.requires_grad for p in block.parameters())]
    assert sorted(calls[count:]) == trained


def test_timm_networks_checkpoint_themselves(rng):
    model = tiny_experiment().model.replace(backbone=BACKBONES["timm"]).build().train()
    enable_gradient_checkpointing(model)
    assert model.backbone.body.model.layers[0].grad_checkpointing


def test_batch_norm_counts_every_batch_once(rng):
    backbone = ResNetConfig(name="resnet18", norm="batch")
    model = tiny_experiment().model.replace(backbone=backbone).build().train()
    enable_gradient_checkpointing(model)
    model(torch.rand(2, 3, 64, 64, generator=rng))["pred_boxes"].sum().backward()
    assert model.backbone.layer4[0].bn1.num_batches_tracked == 1


def test_checkpointing_takes_less_memory():
    config, images = tiny_config(num_encoder_layers=6), torch.randn(2, 3, 128, 160)

    def peak(checkpointing):
        model = config.build().train()
        if checkpointing:
            enable_gradient_checkpointing(model)
        return peak_bytes(lambda: model(images)["pred_logits"].sum().backward(), "cpu")

    assert 0 < peak(True) < 0.7 * peak(False)
