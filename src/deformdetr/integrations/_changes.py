"""What else than a name differs between implementations: how they store attention, norms, biases and embeddings."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deformdetr.integrations._structure import has_masks, is_two_stage, refines_boxes
from deformdetr.integrations._translation import Loss, Translation
from deformdetr.integrations._values import are_equal

_COUNT = "num_batches_tracked"
_LABELS = "denoising.label_embedding.weight"


@dataclass(frozen=True)
class SecondNames:
    """The decoder names heads a second time: the box heads that it refines with, and the class heads that propose."""

    prefix: str
    always: tuple[str, ...] = ()
    """Heads that have a second name in every model; empty: box heads where it refines, class heads in two stages."""

    def write(self, done: Translation, ours: Mapping[str, Tensor]) -> None:
        """Add the second names."""
        uses = (("bbox_embed.", refines_boxes(ours)), ("class_embed.", is_two_stage(ours)))
        aliased = self.always or tuple(name for name, used in uses if used)
        done.apply(
            "second names of heads added",
            lambda state: state | {self.prefix + name: state[name] for name in state if name.startswith(aliased)},
        )

    def read(self, done: Translation) -> None:
        """Drop the second names; where only refining decoders have them, they tell that layers have a head each.

        Raises:
            ValueError: If the two names have different values.
        """
        if not self.always:
            done.share_heads = not any(name.startswith(f"{self.prefix}bbox_embed.") for name in done.tensors)
        done.apply("second names of heads left out", self._without)

    def _without(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        kept = {}
        for name, tensor in state.items():
            top_level = name.removeprefix(self.prefix)
            if top_level == name or not top_level.startswith(("bbox_embed.", "class_embed.")):
                kept[name] = tensor
            elif top_level not in state:
                kept[top_level] = tensor
            elif not are_equal(tensor, state[top_level]):
                raise ValueError(f"{name} and {top_level} are names of one tensor, but differ")
        return kept


class SplitProjections:
    """Attention has the projections of queries, keys and values apart, which PyTorch stacks."""

    def write(self, done: Translation, ours: Mapping[str, Tensor]) -> None:
        """Split the projections."""
        done.apply("projections of queries, keys and values split", _split_projections)

    def read(self, done: Translation) -> None:
        """Stack them; where one of the three is missing or of another shape, they stay."""
        done.apply("projections of queries, keys and values stacked", _stack_projections)


class NeckWithoutBiases:
    """The neck's convolutions have no biases, because a norm follows."""

    def write(self, done: Translation, ours: Mapping[str, Tensor]) -> None:
        """Leave them out, which is a loss where they are not zero."""
        biases = {name: tensor for name, tensor in done.tensors.items() if re.fullmatch(_neck("bias"), name)}
        done.lose("biases of the neck's convolutions, which its model lacks", biases)

    def read(self, done: Translation) -> None:
        """Add biases of zero where there are none."""
        done.apply("biases of zero added to the neck", _add_neck_biases)


class BatchCounts:
    """The backbone's norms count batches."""

    def write(self, done: Translation, ours: Mapping[str, Tensor]) -> None:
        """Add counts of no batches to the norms that have none."""
        done.apply("counts of batches added", _with_batch_counts)

    def read(self, done: Translation) -> None:
        """Keep them: trained norms have them here too."""


class NoBatchCounts:
    """The backbone's norms do not count batches."""

    def write(self, done: Translation, ours: Mapping[str, Tensor]) -> None:
        """Leave the counts out, which norms of a fixed momentum do not use."""
        counts = {name: tensor for name, tensor in done.tensors.items() if name.endswith(_COUNT)}
        done.lose("counts of batches, which the norms do not use", counts, "unused")

    def read(self, done: Translation) -> None:
        """Leave out what some versions of PyTorch have added."""
        self.write(done, done.tensors)


class NoEmbeddingOfOneLevel:
    """A model of one level has no embedding of it."""

    def write(self, done: Translation, ours: Mapping[str, Tensor]) -> None:
        """Leave the embedding of the only level out, which is a loss where it is not zero."""
        embedding = {
            name: tensor for name, tensor in ours.items() if name == "level_embed" and tensor.shape[:1] == (1,)
        }
        done.lose("embedding of the only level, which its model lacks", embedding)

    def read(self, done: Translation) -> None:
        """Add an embedding of zeros."""
        norm = done.tensors.get("neck.levels.0.norm.weight")
        if norm is not None and "level_embed" not in done.tensors:
            zeros = {"level_embed": norm.new_zeros(1, *norm.shape)}
            done.apply("embedding of the only level added", lambda state: zeros | state)


@dataclass(frozen=True)
class LabelRows:
    """The embedding of labels has rows that no label has, instead of the last one here, of zeros, for padding."""

    spare: bool
    """Whether there is a row after those of the classes."""

    def write(self, done: Translation, ours: Mapping[str, Tensor]) -> None:
        """Cut the row of padding off, unless there is one."""
        labels = done.tensors.get(_LABELS)
        if labels is not None and labels.ndim == 2 and len(labels) and not self.spare:
            self._cut(done, len(labels) - 1)

    def read(self, done: Translation) -> None:
        """Put zeros in the place of rows that no label has."""
        labels, head = done.tensors.get(_LABELS), done.tensors.get("class_heads.0.weight")
        # What has no such shape is left to be reported where it does not fit.
        if labels is not None and labels.ndim == 2 and head is not None and head.ndim and len(labels) >= len(head):
            self._cut(done, len(head))
            kept = done.tensors[_LABELS]
            done.tensors[_LABELS] = torch.cat([kept, kept.new_zeros(1, kept.shape[1])])

    def _cut(self, done: Translation, count: int) -> None:
        rest = done.tensors[_LABELS][count:]
        done.tensors = {**done.tensors, _LABELS: done.tensors[_LABELS][:count]}
        if rest.count_nonzero():
            done.losses.append(Loss.of("rows of the label embedding that no label has", {_LABELS: rest}, "unused"))


@dataclass(frozen=True)
class DetectorPrefix:
    """In a model with masks, the detector is one part beside its mask head."""

    prefix: str

    def write(self, done: Translation, ours: Mapping[str, Tensor]) -> None:
        """Put the prefix before the names of the detector."""
        if has_masks(ours):
            done.apply("names of the detector beside its mask head", self._add)

    def read(self, done: Translation) -> None:
        """Take the prefix off."""
        done.apply(
            "names of the detector in the model",
            lambda state: {name.removeprefix(self.prefix): tensor for name, tensor in state.items()},
        )

    def _add(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        beside = ("mask_head.", "bbox_attention.")
        return {name if name.startswith(beside) else self.prefix + name: tensor for name, tensor in state.items()}


def _neck(kind: str) -> str:
    return rf"neck\.levels\.\d+\.conv\.{kind}"


def _add_neck_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    added = {
        name.removesuffix("weight") + "bias": tensor.new_zeros(tensor.shape[:1])
        for name, tensor in state.items()
        if re.fullmatch(_neck("weight"), name)
    }
    return {**added, **state}


def _with_batch_counts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    counts = {
        name.removesuffix("running_var") + _COUNT: torch.tensor(0)
        for name in state
        if name.startswith("backbone.") and name.endswith(".running_var")
    }
    return {**counts, **state}


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
