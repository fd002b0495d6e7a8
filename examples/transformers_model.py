"""Accelerate a model of the transformers package; its weights are random, so nothing is downloaded."""

import torch
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, ResNetConfig

from deformdetr.integrations.transformers import accelerate

config = DeformableDetrConfig(
    backbone_config=ResNetConfig(
        layer_type="basic",
        depths=[1, 1, 1, 1],
        embedding_size=16,
        hidden_sizes=[16, 16, 32, 32],
        out_features=["stage2", "stage3", "stage4"],
    ),
    d_model=64,
    encoder_layers=2,
    decoder_layers=2,
    num_queries=50,
)
model = DeformableDetrForObjectDetection(config).eval()
images = torch.randn(2, 3, 128, 160)

with torch.no_grad():
    before = model(images).logits
    acceleration = accelerate(model)  # permanent; `with accelerate(model):` undoes it after the block
    after = model(images).logits

print(acceleration)
print(f"largest difference {(after - before).abs().max():.1e}")

acceleration.undo()
