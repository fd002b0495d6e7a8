"""All known formats: recognizing one, looking one up, and translating to and from two of them by name."""

from collections.abc import Iterator, Mapping
from typing import Literal

from torch import Tensor

from deformdetr.integrations._checkpoints import _detrex, _hugging_face, _mmdetection, _original, _own
from deformdetr.integrations._checkpoints._format import Format

FORMATS = (
    *_own.FORMATS,
    *_original.FORMATS,
    *_hugging_face.FORMATS,
    *_mmdetection.FORMATS,
    *_detrex.FORMATS,
)


def find_formats(names: Mapping[str, object]) -> list[tuple[str, Format]]:
    """Return the formats that a state dict has, each with the prefix of its names.

    A prefix is followed by all marks of a format. The shortest one counts, because some implementations' names are
    another's with a prefix. Several models beside each other, such as a student and its teacher, are all found.

    Args:
        names: The state dict.

    Returns:
        (prefix, format), prefixes of the fewest parts first.
    """
    found: list[tuple[str, Format]] = []
    for prefix in sorted(dict.fromkeys(_possible_prefixes(names)), key=lambda prefix: prefix.count(".")):
        if any(prefix.startswith(shorter) for shorter, _ in found):
            continue
        inside = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        recognized = next((each for each in FORMATS if each.recognizes(inside)), None)
        if recognized is not None:
            found.append((prefix, recognized))
    return found


def _possible_prefixes(names: Mapping[str, object]) -> Iterator[str]:
    firsts = {prefix + each.marks[0] for each in FORMATS for prefix in each.prefixes()}
    endings = tuple(f".{first}" for first in firsts)
    yield ""
    for name in names:
        if name.endswith(endings):
            yield from (name.removesuffix(first) for first in firsts if name.endswith(f".{first}"))


def get_format(name: str, architecture: str) -> Format:
    """Return the format of this name for an architecture.

    Raises:
        ValueError: If there is none.
    """
    known = {each.name: each for each in FORMATS if each.architecture == architecture}
    if name not in known:
        raise ValueError(f"no format {name!r} for {architecture}; there are {', '.join(known)}")
    return known[name]


def from_original(state_dict: Mapping[str, Tensor], *, share_heads: bool | None = None) -> dict[str, Tensor]:
    """Translate a state dict of the original Deformable DETR, DINO, DN-DETR or DETR to this library's names.

    Args:
        state_dict: Entries that the original does not name stay as they are.
        share_heads: Whether all decoder layers of a DINO share their heads, if neither values nor memory tell.

    Raises:
        ValueError: If it holds a head under two names with different values, or does not tell whether layers share
            their heads.

    Examples:
        >>> import torch
        >>> list(from_original({"transformer.level_embed": torch.zeros(4, 8)}))
        ['level_embed']
    """
    found = next((each for each in _original.FORMATS if each.recognizes(state_dict)), _original.DEFORMABLE_DETR)
    return found.read(state_dict, share_heads=share_heads).everything


def to_original(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate a state dict of this library to the original's names, including second names of heads.

    Args:
        state_dict: State dict of a `DeformableDETR` or a `DETR`; entries that the original does not name stay as they
            are.

    Raises:
        ValueError: If the original has no such model.

    Examples:
        >>> import torch
        >>> list(to_original({"level_embed": torch.zeros(4, 8)}))
        ['transformer.level_embed']
    """
    return get_format("original", _own.architecture_of(state_dict)).write(state_dict).everything


def from_hugging_face(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate a state dict of transformers to this library's names: Deformable DETR, and DETR with or without masks.

    Names may be those of version 5 in memory or those of version 4, which files of both versions have. Backbones may be
    timm's or transformers' own ResNet.

    Raises:
        ValueError: If it holds a head under two names with different values.

    Examples:
        >>> import torch
        >>> list(from_hugging_face({"model.level_embed": torch.zeros(4, 8)}))
        ['level_embed']
    """
    detr = [each for each in _hugging_face.FORMATS if each.architecture == "detr"]
    architecture = "detr" if any(each.recognizes(state_dict) for each in detr) else "deformable_detr"
    return get_format("hugging_face_5", architecture).read(state_dict).everything


def to_hugging_face(
    state_dict: Mapping[str, Tensor],
    *,
    backbone: Literal["timm_backbone", "resnet"] = "timm_backbone",
    version: Literal[4, 5] = 5,
) -> dict[str, Tensor]:
    """Translate a state dict of this library to transformers' names, including second names of heads.

    Args:
        state_dict: State dict of a `DeformableDETR` or a `DETR` with a ResNet.
        backbone: The `model_type` of transformers' `backbone_config`: timm's ResNet, as in the published checkpoints,
            or transformers' own.
        version: Version of transformers whose names in memory to use. Files of both versions have the names of 4.

    Raises:
        ValueError: If transformers has no such model.

    Examples:
        >>> import torch
        >>> list(to_hugging_face({"level_embed": torch.zeros(4, 8)}))
        ['model.level_embed']
    """
    target = get_format(f"hugging_face_{version}", _own.architecture_of(state_dict))
    return target.write(state_dict, own_resnet=backbone == "resnet").everything
