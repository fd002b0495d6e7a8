"""Training parts of a model, and leaving the others as they are."""

from collections.abc import Sequence

from torch import nn

from deformdetr.engine._errors import ConfigError


def freeze_all_but(model: nn.Module, parts: Sequence[str]) -> list[nn.Module]:
    """Take the gradients from all parameters outside the parts.

    Args:
        model: What to freeze.
        parts: Names of submodules, as in `get_submodule`; without any, nothing is frozen.

    Returns:
        The modules that have to stay in evaluation mode, so that neither dropout nor statistics change what they do.

    Raises:
        ConfigError: If a part does not exist, or has no parameter that trains.
    """
    if not parts:
        return []
    modules = dict(model.named_modules())
    for part in parts:
        if not part or part not in modules:
            known = ", ".join(name for name, _ in model.named_children())
            raise ConfigError(f"train.trainable: the model has no part {part!r}; its parts are {known}")
        if not any(parameter.requires_grad for parameter in modules[part].parameters()):
            raise ConfigError(f"train.trainable: {part!r} has no parameter that trains")

    def trains(name: str) -> bool:
        return any(name == part or name.startswith(f"{part}.") for part in parts)

    for name, parameter in model.named_parameters():
        if not trains(name):
            parameter.requires_grad_(False)
    # What is around a part, the model itself for one, does not belong to the frozen ones.
    around = {"", *(part[:end] for part in parts for end, letter in enumerate(part) if letter == ".")}
    return [module for name, module in modules.items() if not trains(name) and name not in around]
