"""A training step waits for the device only once, in the matcher."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from checkpoints import VARIANTS, tiny_config, tiny_detr_config
from deformdetr.matching import _hungarian
from targets import random_targets

SMALL: dict[str, Any] = {"num_encoder_layers": 1, "num_decoder_layers": 2}
DETR = tiny_detr_config(**SMALL)
CONFIGS: dict[str, Any] = {name: tiny_config(**SMALL, **variant) for name, variant in VARIANTS.items()} | {
    "detr": DETR,
    "masks": tiny_config(**SMALL, masks=True),
    "detr_masks": DETR.replace(masks=True),
}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def targets_for(config: Any, counts: list[int], size: tuple[int, int], rng: torch.Generator) -> list[Any]:
    targets = random_targets(counts, 5, rng)
    if config.masks:
        for target in targets:
            target["masks"] = torch.rand(len(target["labels"]), *size, generator=rng) > 0.5
    return targets


# Tensors on the meta device have no values: reading one is an error, and so is a shape that depends on values.
@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.item(),
        lambda x: bool(x.any()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
    ],
    ids=["item", "if", "tolist", "cpu", "nonzero", "boolean index", "masked_select", "unique"],
)
def test_reading_the_meta_device_is_an_error(read: Callable[[Tensor], object]) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        read(torch.empty(1, device="meta"))


@configs
def test_a_training_step_reads_nothing_but_costs(
    config: Any, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfers = []

    def to_host(blocks: Sequence[Tensor]) -> Any:
        transfers.append({block.device.type for block in blocks})
        return iter([torch.rand(block.shape, generator=rng) for block in blocks])

    monkeypatch.setattr(_hungarian, "_copy_to_host", to_host)
    criterion = config.build_criterion()
    drawn = targets_for(config, [2, 0], (64, 96), rng)
    targets: Any = [{key: value.to("meta") for key, value in target.items()} for target in drawn]
    with torch.device("meta"):
        model = config.build().train()
        outputs = model(torch.empty(2, 3, 64, 96), torch.empty(2, 64, 96, dtype=torch.bool))
    criterion.total(criterion(outputs, targets)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert transfers == [{"meta"}]


@pytest.mark.gpu
@configs
def test_a_training_step_waits_for_the_gpu_once(
    config: Any, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_host, transfers = _hungarian._copy_to_host, []

    def to_host_and_wait(blocks: Sequence[Tensor]) -> Any:
        torch.cuda.set_sync_debug_mode("default")
        rows = list(to_host(blocks))
        transfers.append(len(rows))
        torch.cuda.set_sync_debug_mode("error")
        return iter(rows)

    monkeypatch.setattr(_hungarian, "_copy_to_host", to_host_and_wait)
    model, criterion = config.build().cuda().train(), config.build_criterion()
    images, mask = torch.randn(2, 3, 96, 128, device="cuda"), torch.zeros(2, 96, 128, dtype=torch.bool, device="cuda")
    drawn = targets_for(config, [2, 3], (96, 128), rng)
    targets: Any = [{key: value.cuda() for key, value in target.items()} for target in drawn]
    # The first step may wait for compilation.
    criterion.total(criterion(model(images, mask), targets)).backward()
    transfers.clear()
    torch.cuda.set_sync_debug_mode("error")
    try:
        criterion.total(criterion(model(images, mask), targets)).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(transfers) == 1
