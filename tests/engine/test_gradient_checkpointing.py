"""Recomputing layers gives the same gradients."""

import torch

from deformdetr.engine import enable_gradient_checkpointing
from experiments import tiny_experiment


def gradients(model, images, seed):
    model.zero_grad()
    torch.manual_seed(seed)
    outputs = model(images)
    (outputs["pred_logits"].square().mean() + outputs["pred_boxes"].square().mean()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_gradients_names_and_dropout_stay_the_same(rng, seed):
    model = tiny_experiment().model.replace(dropout=0.3, aux_loss=False).build().train()
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
