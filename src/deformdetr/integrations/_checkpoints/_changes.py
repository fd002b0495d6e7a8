"""Differences other than names: how implementations store attention, norms, biases and embeddings."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deformdetr.integrations._checkpoints._translation import Loss, Translation, are_equal
from deformdetr.integrations._checkpoints._variant import has_masks, is_two_stage, refines_boxes

_COUNT = "num_batches_tracked"
_LABELS = "denoising.label_embedding.weight"


@dataclass(frozen=True)
class SecondNames:
    """The decoder holds heads under second names: box heads for refinement, class heads for proposals."""

    prefix: str
    always: tuple[str, ...] = ()
    """Heads with a second name in every model; empty: box heads with refinement, class heads in two stages."""

    def write(self, result: Translation, ours: Mapping[str, Tensor]) -> None:
        """Add the second names."""
        uses = (("bbox_embed.", refines_boxes(ours)), ("class_embed.", is_two_stage(ours)))
        aliased = self.always or tuple(name for name, used in uses if used)
        result.apply(
            "second names of heads added",
            lambda state: state | {self.prefix + name: state[name] for name in state if name.startswith(aliased)},
        )

    def read(self, result: Translation) -> None:
        """Drop the second names. If only refining decoders have them, they tell that every layer has its own heads.

        Raises:
            ValueError: If the two names have different values.
        """
        if not self.always:
            result.share_heads = not any(name.startswith(f"{self.prefix}bbox_embed.") for name in result.tensors)
        result.apply("second names of heads dropped", self._drop_second_names)

    def _drop_second_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        kept = {}
        for name, tensor in state.items():
            top_level = name.removeprefix(self.prefix)
            if top_level == name or not top_level.startswith(("bbox_embed.", "class_embed.")):
                kept[name] = tensor
            elif top_level not in state:
                kept[top_level] = tensor
            elif not are_equal(tensor, state[top_level]):
                raise ValueError(f"{name} and {top_level} are two names of the same tensor, but differ")
        return kept


class SplitProjections:
    """Attention has separate projections of queries, keys and values, which PyTorch stacks."""

    def write(self, result: Translation, ours: Mapping[str, Tensor]) -> None:
        """Split the projections."""
        result.apply("projections of queries, keys and values split", _split_projections)

    def read(self, result: Translation) -> None:
        """Stack the projections, unless one of the three is missing or of another shape."""
        result.apply("projections of queries, keys and values stacked", _stack_projections)


class NeckWithoutBiases:
    """The neck's convolutions have no biases, because a norm follows."""

    def write(self, result: Translation, ours: Mapping[str, Tensor]) -> None:
        """Drop the biases, which is a loss if they are not zero."""
        biases = {name: tensor for name, tensor in result.tensors.items() if re.fullmatch(_neck("bias"), name)}
        result.drop("biases of the neck's convolutions, which this format lacks", biases)

    def read(self, result: Translation) -> None:
        """Add biases of zero."""
        biases = {
            name.removesuffix("weight") + "bias": tensor.new_zeros(tensor.shape[:1])
            for name, tensor in result.tensors.items()
            if re.fullmatch(_neck("weight"), name)
        }
        result.apply("zero biases added to the neck", lambda state: biases | state)


class BatchCounts:
    """The backbone's norms count batches."""

    def write(self, result: Translation, ours: Mapping[str, Tensor]) -> None:
        """Add a count of 0 to the norms that have none."""
        counts = {
            name.removesuffix("running_var") + _COUNT: torch.tensor(0)
            for name in result.tensors
            if name.startswith("backbone.") and name.endswith(".running_var")
        }
        result.apply("counts of batches added", lambda state: counts | state)

    def read(self, result: Translation) -> None:
        """Keep the counts: trained norms have them here too."""


class NoBatchCounts:
    """The backbone's norms do not count batches."""

    def write(self, result: Translation, ours: Mapping[str, Tensor]) -> None:
        """Drop the counts, which norms of a fixed momentum do not use."""
        counts = {name: tensor for name, tensor in result.tensors.items() if name.endswith(_COUNT)}
        result.drop("counts of batches, which the norms do not use", counts, "unused")

    def read(self, result: Translation) -> None:
        """Drop the counts that some versions of PyTorch have added."""
        self.write(result, result.tensors)


class NoEmbeddingOfOneLevel:
    """A model of a single level has no level embedding."""

    def write(self, result: Translation, ours: Mapping[str, Tensor]) -> None:
        """Drop the embedding of the only level, which is a loss if it is not zero."""
        embedding = {
            name: tensor for name, tensor in ours.items() if name == "level_embed" and tensor.shape[:1] == (1,)
        }
        result.drop("embedding of the only level, which this format lacks", embedding)

    def read(self, result: Translation) -> None:
        """Add an embedding of zeros."""
        norm = result.tensors.get("neck.levels.0.norm.weight")
        if norm is not None and "level_embed" not in result.tensors:
            zeros = {"level_embed": norm.new_zeros(1, *norm.shape)}
            result.apply("embedding of the only level added", lambda state: zeros | state)


@dataclass(frozen=True)
class LabelRows:
    """The label embedding has unused rows in place of this library's last one, which is zero and stands for padding."""

    spare: bool
    """Whether there is a row after those of the classes, as in this library."""

    def write(self, result: Translation, ours: Mapping[str, Tensor]) -> None:
        """Cut off the row of padding, unless there is one in this format."""
        labels = result.tensors.get(_LABELS)
        if labels is not None and labels.ndim == 2 and len(labels) and not self.spare:
            self._cut(result, len(labels) - 1)

    def read(self, result: Translation) -> None:
        """Replace unused rows by one row of zeros."""
        labels, head = result.tensors.get(_LABELS), result.tensors.get("class_heads.0.weight")
        # An embedding of any other shape is kept, and reported as a mismatch.
        if labels is not None and labels.ndim == 2 and head is not None and head.ndim and len(labels) >= len(head):
            self._cut(result, len(head))
            kept = result.tensors[_LABELS]
            result.tensors[_LABELS] = torch.cat([kept, kept.new_zeros(1, kept.shape[1])])

    def _cut(self, result: Translation, count: int) -> None:
        rest = result.tensors[_LABELS][count:]
        result.tensors = {**result.tensors, _LABELS: result.tensors[_LABELS][:count]}
        if rest.count_nonzero():
            result.losses.append(Loss.of("rows of the label embedding without a label", {_LABELS: rest}, "unused"))


@dataclass(frozen=True)
class DetectorPrefix:
    """In a model with masks, the detector is a submodule beside the mask head."""

    prefix: str

    def write(self, result: Translation, ours: Mapping[str, Tensor]) -> None:
        """Add the prefix to the names of the detector."""
        if has_masks(ours):
            result.apply("prefix of the detector added", self._add)

    def read(self, result: Translation) -> None:
        """Remove the prefix."""
        result.apply(
            "prefix of the detector removed",
            lambda state: {name.removeprefix(self.prefix): tensor for name, tensor in state.items()},
        )

    def _add(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        beside = ("mask_head.", "bbox_attention.")
        return {name if name.startswith(beside) else self.prefix + name: tensor for name, tensor in state.items()}


def _neck(kind: str) -> str:
    return rf"neck\.levels\.\d+\.conv\.{kind}"


def _split_projections(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    split: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem, found, kind = name.rpartition("in_proj_")
        if found and (not tensor.ndim or len(tensor) % 3):
            raise ValueError(f"{name} of shape {tuple(tensor.shape)} is not three projections")
        if found:
            split |= {f"{stem}{part}_proj.{kind}": share for part, share in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            split[name] = tensor
    return split


def _stack_projections(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    stacked = dict(state)
    for name, tensor in state.items():
        match = re.fullmatch(r"(.+\.)q_proj\.(weight|bias)", name)
        names = [f"{match[1]}{part}_proj.{match[2]}" for part in "qkv"] if match else []
        if match and len({state[part].shape if part in state else None for part in names}) == 1 and tensor.ndim:
            stacked[f"{match[1]}in_proj_{match[2]}"] = torch.cat([stacked.pop(part) for part in names])
    return stacked
