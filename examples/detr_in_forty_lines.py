"""DETR in forty lines, trained for seconds on eight images of shapes until the loss falls."""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from deformdetr.data import ShapesConfig, build_dataset, collate
from deformdetr.losses import SetCriterion, SoftmaxClassification
from deformdetr.matching import HungarianMatcher, SoftmaxClassCost
from deformdetr.nn import (
    ConvBackbone,
    FeedForward,
    SinePositionEncoding,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
    box_head,
)


class DETR(nn.Module):
    """Predict a set of objects by attention to one feature map (Carion et al., ECCV 2020)."""

    def __init__(self, backbone, num_classes, num_queries=100, d_model=256, n_heads=8, n_layers=6, d_ffn=2048):
        super().__init__()

        def encoder_layer():
            return TransformerEncoderLayer(attention(), FeedForward(d_model, d_ffn))

        def decoder_layer():
            return TransformerDecoderLayer(attention(), attention(), FeedForward(d_model, d_ffn))

        def attention():
            return nn.MultiheadAttention(d_model, n_heads, batch_first=True)

        self.backbone = backbone
        self.projection = nn.Conv2d(backbone.channels[-1], d_model, 1)
        self.position = SinePositionEncoding(d_model, offset=0.0)
        self.encoder = TransformerEncoder(encoder_layer() for _ in range(n_layers))
        self.query_position = nn.Embedding(num_queries, d_model)
        self.decoder = TransformerDecoder((decoder_layer() for _ in range(n_layers)), norm=nn.LayerNorm(d_model))
        self.class_head = nn.Linear(d_model, num_classes + 1)  # The last class is "no object".
        self.box_head = box_head(d_model)

    def forward(self, images: Tensor, padding_mask: Tensor):
        """Return logits and boxes of every query; the mask (batch, height, width) is True at padding."""
        features = self.projection(self.backbone(images)[-1])
        mask = interpolate(padding_mask[:, None].float(), features.shape[-2:])[:, 0].bool()
        position = self.position(mask).flatten(2).transpose(1, 2)
        mask = mask.flatten(1)
        memory = self.encoder(features.flatten(2).transpose(1, 2), position, mask)
        query_position = self.query_position.weight.expand(len(images), -1, -1)
        hidden = self.decoder(torch.zeros_like(query_position), query_position, memory, position, mask)
        *earlier, last = [
            {"pred_logits": self.class_head(state), "pred_boxes": self.box_head(state).sigmoid()} for state in hidden
        ]
        return last | {"aux_outputs": earlier}


def train(steps: int = 30) -> list[float]:
    """Train a small model on the same eight images again and again, and return the loss of every step."""
    torch.manual_seed(0)
    backbone = ConvBackbone((8, 16, 32, 64), out_layers=(3,))
    model = DETR(backbone, num_classes=3, num_queries=10, d_model=64, n_heads=4, n_layers=2, d_ffn=128)
    criterion = SetCriterion(
        HungarianMatcher(cost_class=1.0, class_cost=SoftmaxClassCost()),
        classification=SoftmaxClassification(),
        weights={"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0},
    )
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
    print("the loss falls:", last < 0.9 * first)
