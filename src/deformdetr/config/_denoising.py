"""Configs of denoising."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat

from deformdetr.config._base import Count, DefaultedConfig
from deformdetr.nn import ContrastiveDenoising, Denoising


class DenoisingConfig(DefaultedConfig):
    """Denoising of DN-DETR; see `deformdetr.nn.Denoising`.

    Examples:
        >>> DenoisingConfig(num_groups=3).build(num_classes=91, d_model=256, eps=1e-3).num_groups
        3
    """

    kind: Literal["dn"] = "dn"
    num_groups: Count = Field(default=5, description="Noised copies of every target.")
    label_noise_scale: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.2, description="Probability that a label is replaced by one drawn from all classes."
    )
    box_noise_scale: NonNegativeFloat = Field(
        default=0.4,
        description="Largest shift of a center, as a fraction of half the size; largest relative change of the size.",
    )

    def build(self, num_classes: int, d_model: int, *, eps: float) -> Denoising:
        """Build the module that noises targets."""
        return Denoising(
            num_classes,
            d_model,
            num_groups=self.num_groups,
            label_noise_scale=self.label_noise_scale,
            box_noise_scale=self.box_noise_scale,
            eps=eps,
        )


class ContrastiveDenoisingConfig(DefaultedConfig):
    """Contrastive denoising of DINO; see `deformdetr.nn.ContrastiveDenoising`.

    Examples:
        >>> ContrastiveDenoisingConfig(dn_number=50).build(num_classes=91, d_model=256, eps=1e-3).dn_number
        50
    """

    kind: Literal["cdn"] = "cdn"
    dn_number: Count = Field(default=100, description="Approximate number of positives per image, and of negatives.")
    label_noise_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5, description="Twice the probability that a label is replaced by one drawn from all classes."
    )
    box_noise_scale: NonNegativeFloat = Field(
        default=0.4,
        description="Largest move of a positive's sides, as a fraction of half the size; negatives move farther.",
    )

    def build(self, num_classes: int, d_model: int, *, eps: float) -> ContrastiveDenoising:
        """Build the module that noises targets."""
        return ContrastiveDenoising(
            num_classes,
            d_model,
            dn_number=self.dn_number,
            label_noise_ratio=self.label_noise_ratio,
            box_noise_scale=self.box_noise_scale,
            eps=eps,
        )


AnyDenoisingConfig = Annotated[DenoisingConfig | ContrastiveDenoisingConfig, Field(discriminator="kind")]
