"""Layers of Deformable DETR and DETR: attention, encoders, decoders, queries, positions, masks, backbones and neck."""

from deformdetr.nn._anchor_position import AnchorPosition
from deformdetr.nn._attention import MSDeformAttn
from deformdetr.nn._conv_backbone import ConvBackbone
from deformdetr.nn._dat_backbone import DATBackbone
from deformdetr.nn._dcnv3 import DCNv3
from deformdetr.nn._decoder import DecoderOutput, DeformableDecoder, DeformableDecoderLayer, offset_boxes
from deformdetr.nn._deform_attn import DeformAttn
from deformdetr.nn._deform_conv import DeformConv2d
from deformdetr.nn._deformable_attention import DeformableAttention2d
from deformdetr.nn._denoising import ContrastiveDenoising, Denoising, NoisedQueries
from deformdetr.nn._encoder import DeformableEncoder, DeformableEncoderLayer
from deformdetr.nn._feature_backbone import FeatureBackbone
from deformdetr.nn._feed_forward import MLP, FeedForward
from deformdetr.nn._geometry import pixel_centers, valid_ratios
from deformdetr.nn._heads import box_head, class_head
from deformdetr.nn._mask_head import AttentionMaps, MaskHead
from deformdetr.nn._neck import ChannelMapper
from deformdetr.nn._position import LearnedPositionEncoding, SinePositionEncoding, sine_features
from deformdetr.nn._proposals import ProposalQueries, proposal_embedding, proposal_logits
from deformdetr.nn._queries import AnchorQueries, LearnedQueries, Queries
from deformdetr.nn._resnet_backbone import ResNetBackbone
from deformdetr.nn._transformer import (
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)

__all__ = [
    "MLP",
    "AnchorPosition",
    "AnchorQueries",
    "AttentionMaps",
    "ChannelMapper",
    "ContrastiveDenoising",
    "ConvBackbone",
    "DATBackbone",
    "DCNv3",
    "DecoderOutput",
    "DeformAttn",
    "DeformConv2d",
    "DeformableAttention2d",
    "DeformableDecoder",
    "DeformableDecoderLayer",
    "DeformableEncoder",
    "DeformableEncoderLayer",
    "Denoising",
    "FeatureBackbone",
    "FeedForward",
    "LearnedPositionEncoding",
    "LearnedQueries",
    "MSDeformAttn",
    "MaskHead",
    "NoisedQueries",
    "ProposalQueries",
    "Queries",
    "ResNetBackbone",
    "SinePositionEncoding",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "box_head",
    "class_head",
    "offset_boxes",
    "pixel_centers",
    "proposal_embedding",
    "proposal_logits",
    "sine_features",
    "valid_ratios",
]
