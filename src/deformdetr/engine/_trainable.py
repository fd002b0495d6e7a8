"""Freezing parts of a model."""

from collections.abc import Sequence

from torch import nn

from deformdetr.engine._errors import ConfigError


def freeze_all_but(model: nn.Module, parts: Sequence[str]) -> list[nn.Module]:
    """Freeze all parameters outside the given parts.

    Args:
        model: Model to change.
        parts: Names of submodules, as in `get_submodule`. If empty, nothing is frozen.

    Returns:
        The frozen modules, which must stay in evaluation mode because of dropout and batch statistics.

    Raises:
        ConfigError: If a part does not exist, or has no trainable parameter.
    """
    if not parts:
        return []
    modules = dict(model.named_modules())
    for part in parts:
        if not part or part not in modules:
            known = ", ".join(name for name, _ in model.named_children())
            raise ConfigError(f"train.trainable: the model has no part {part!r}; its parts are {known}")
        if not any(parameter.requires_grad for parameter in modules[part].parameters()):
            raise ConfigError(f"train.trainable: {part!r} has no trainable parameter")

    def trains(name: str) -> bool:
        return any(name == part or name.startswith(f"{part}.") for part in parts)

    for name, parameter in model.named_parameters():
        if not trains(name):
            parameter.requires_grad_(False)
    # Modules that contain a trainable part, such as the model itself, are not frozen.
    containing = {"", *(part[:end] for part in parts for end, letter in enumerate(part) if letter == ".")}
    return [module for name, module in modules.items() if not trains(name) and name not in containing]
