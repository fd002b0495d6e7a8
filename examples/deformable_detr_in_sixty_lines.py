"""Deformable DETR in sixty lines, trained for seconds on eight images of shapes until the loss falls."""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from deformdetr.boxes import inverse_sigmoid
from deformdetr.data import ShapesConfig, build_dataset, collate
from deformdetr.losses import SetCriterion
from deformdetr.matching import HungarianMatcher
from deformdetr.nn import (
    ChannelMapper,
    ConvBackbone,
    DeformableDecoderLayer,
    DeformableEncoder,
    DeformableEncoderLayer,
    FeedForward,
    MSDeformAttn,
    SinePositionEncoding,
    box_head,
    class_head,
    valid_ratios,
)


class DeformableDETR(nn.Module):
    """Predict a set of objects by deformable attention to a pyramid of features (Zhu et al., ICLR 2021)."""

    def __init__(
        self, backbone, num_classes, num_queries=300, d_model=256, n_heads=8, n_levels=4, n_layers=6, d_ffn=1024
    ):
        super().__init__()

        def encoder_layer():
            return DeformableEncoderLayer(MSDeformAttn(d_model, n_levels, n_heads), FeedForward(d_model, d_ffn))

        def decoder_layer():
            between_queries = nn.MultiheadAttention(d_model, n_heads, batch_first=True)
            to_pixels = MSDeformAttn(d_model, n_levels, n_heads)
            return DeformableDecoderLayer(between_queries, to_pixels, FeedForward(d_model, d_ffn))

        self.backbone = backbone
        self.neck = ChannelMapper(backbone.channels, d_model, n_levels=n_levels)
        self.position = SinePositionEncoding(d_model)
        self.level_embed = nn.Parameter(torch.randn(n_levels, d_model))
        self.encoder = DeformableEncoder(encoder_layer() for _ in range(n_layers))
        self.query_content = nn.Embedding(num_queries, d_model)
        self.query_position = nn.Embedding(num_queries, d_model)
        self.reference_points = nn.Linear(d_model, 2)
        self.decoder_layers = nn.ModuleList(decoder_layer() for _ in range(n_layers))
        self.class_head = class_head(d_model, num_classes)
        self.box_head = box_head(d_model, size_bias=-2.0)

    def forward(self, images: Tensor, padding_mask: Tensor):
        """Return logits and boxes of every query; the mask (batch, height, width) is True at padding."""
        levels = self.neck(self.backbone(images))
        shapes = [(level.shape[-2], level.shape[-1]) for level in levels]
        masks = [interpolate(padding_mask[:, None].float(), shape)[:, 0].bool() for shape in shapes]
        ratios = valid_ratios(masks)
        mask = torch.cat([mask.flatten(1) for mask in masks], dim=1)
        pixels = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
        positions = [self.position(mask).flatten(2).transpose(1, 2) for mask in masks]
        positions = torch.cat([each + level for each, level in zip(positions, self.level_embed, strict=True)], dim=1)
        memory = self.encoder(pixels, positions, shapes, ratios, mask)

        query = self.query_content.weight.expand(len(images), -1, -1)
        query_position = self.query_position.weight.expand(len(images), -1, -1)
        points = self.reference_points(query_position).sigmoid()  # (x, y) as fractions of the image without padding.
        outputs = []
        for layer in self.decoder_layers:
            query = layer(query, query_position, points[:, :, None] * ratios[:, None], memory, shapes, mask)
            center, size = self.box_head(query).split(2, dim=-1)
            boxes = torch.cat([center + inverse_sigmoid(points), size], dim=-1).sigmoid()
            outputs.append({"pred_logits": self.class_head(query), "pred_boxes": boxes})
        return outputs[-1] | {"aux_outputs": outputs[:-1]}


def train(steps: int = 30) -> list[float]:
    """Train a small model on the same eight images again and again, and return the loss of every step."""
    torch.manual_seed(0)
    backbone = ConvBackbone((8, 16, 32, 64), out_layers=(2, 3, 4))
    model = DeformableDETR(backbone, num_classes=3, num_queries=10, d_model=64, n_heads=4, n_layers=2, d_ffn=128)
    criterion = SetCriterion(HungarianMatcher())
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    batch, targets = collate(list(build_dataset(ShapesConfig(num_train=8, image_size=64), "train")))
    losses = []
    for _ in range(steps):
        loss = criterion.total(criterion(model(batch.images, batch.padding_mask), targets))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    losses = train()
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    print(f"loss of the first five steps {first:.1f}, of the last five {last:.1f}")
    print("the loss falls:", last < 0.5 * first)
