"""Freezing parts of a model."""

from collections.abc import Sequence

from torch import nn

from deformdetr.config import BackboneConfig, ConvBackboneConfig, DATConfig, ResNetConfig, TimmConfig
from deformdetr.engine._errors import ConfigError
from deformdetr.nn import MSDeformAttn

# For each backbone, how to start from pretrained weights, and how to train from random ones.
_ADVICE: dict[type, tuple[str, str]] = {
    ResNetConfig: (
        "model.backbone.weights: DEFAULT, or ",
        "set model.backbone.norm to group or batch and model.backbone.trainable_layers to 5, and ",
    ),
    DATConfig: ("model.backbone.weights, or ", "set model.backbone.trainable_layers to 5, and "),
    TimmConfig: ("model.backbone.weights: DEFAULT, or ", "leave model.backbone.frozen out, and "),
}


def freeze_all_but(model: nn.Module, parts: Sequence[str]) -> list[nn.Module]:
    """Freeze all parameters outside the given parts.

    Args:
        model: Model to change.
        parts: Names of submodules and parameters, as in `named_modules` and `named_parameters`. If empty, nothing is
            frozen.

    Returns:
        The frozen modules, which must stay in evaluation mode because of dropout and batch statistics.

    Raises:
        ConfigError: If a part does not exist, or has no trainable parameter.
    """
    if not parts:
        return []
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    for part in parts:
        if not part or (part not in modules and part not in parameters):
            known = ", ".join([*dict(model.named_children()), *dict(model.named_parameters(recurse=False))])
            raise ConfigError(f"train.trainable: the model has no part {part!r}; its parts are {known}")
        inside = [parameters[part]] if part in parameters else modules[part].parameters()
        if not any(parameter.requires_grad for parameter in inside):
            raise ConfigError(f"train.trainable: {part!r} has no trainable parameter")

    def trains(name: str) -> bool:
        return any(name == part or name.startswith(f"{part}.") for part in parts)

    for name, parameter in parameters.items():
        if not trains(name):
            parameter.requires_grad_(False)
    # Modules that contain a trainable part, such as the model itself, are not frozen.
    containing = {"", *(part[:end] for part in parts for end, letter in enumerate(part) if letter == ".")}
    return [module for name, module in modules.items() if not trains(name) and name not in containing]


def refuse_random_frozen(model: nn.Module, backbone: BackboneConfig) -> None:
    """Check that no part of a model that starts without a checkpoint is frozen at random weights.

    Args:
        model: Model with all of its parts frozen that will be.
        backbone: Config of its backbone, whose `weights` have been loaded.

    Raises:
        ConfigError: If a part is frozen and random, or if norms are frozen without the statistics of weights.
    """
    is_random = isinstance(backbone, ConvBackboneConfig) or backbone.weights is None
    # Frozen, but not random: every head starts with a direction of its own.
    directions = tuple(
        f"{name}.sampling_offsets."
        for name, module in model.named_modules()
        if isinstance(module, MSDeformAttn) and module.method == "discrete"
    )
    frozen = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
        and (is_random or not name.startswith("backbone."))
        and not name.startswith(directions)
    }
    reasons = []
    if frozen:
        parts = dict.fromkeys(".".join(name.split(".")[:2]) for name in frozen)
        listed = ", ".join(list(parts)[:6]) + ", ..." * (len(parts) > 6)
        reasons.append(f"{sum(frozen.values()):,} weights are random and frozen ({listed})")
    if is_random and isinstance(backbone, ResNetConfig) and backbone.norm == "frozen_batch":
        reasons.append("the norms of the backbone are frozen without statistics")
    if reasons:
        advice = next((advice for kind, advice in _ADVICE.items() if isinstance(backbone, kind)), ("", ""))
        pretrained, unfrozen = advice if is_random else ("", "")
        raise ConfigError(
            f"this model cannot learn: {', and '.join(reasons)}. Start from pretrained weights with "
            f"{pretrained}train.init_checkpoint: a path, a URL or a name on the Hugging Face Hub. "
            f"To train from random weights on purpose, {unfrozen}leave train.trainable out"
        )
