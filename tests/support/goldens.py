"""Golden values and the tensors they were computed from; `tests/goldens/README.md` describes the entries."""

import json
import math
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "goldens"


class Golden(NamedTuple):
    """One whole-model golden: arrays of the `.npz` file and facts of the `.json` file."""

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]


def load_golden(name: str) -> Golden:
    """Read `NAME.npz` and, where it exists, `NAME.json`."""
    with np.load(FOLDER / f"{name}.npz") as archive:
        arrays = {key: archive[key] for key in archive.files}
    facts = FOLDER / f"{name}.json"
    return Golden(arrays, json.loads(facts.read_text()) if facts.exists() else {})


def unit(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return float64 values of zero mean and unit variance that depend on name and position alone.

    Element i is output i + 1 of a splitmix64 generator seeded with the CRC-32 of the name, mapped to a uniform
    distribution on [-sqrt(3), sqrt(3)).
    """
    count = math.prod(shape)
    with np.errstate(over="ignore"):
        seed = np.uint64(zlib.crc32(name.encode())) * np.uint64(0xD1B54A32D192ED03)
        state = seed + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    fraction = (state >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return torch.from_numpy(((2 * fraction - 1) * math.sqrt(3.0)).reshape(shape))


def fill(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return the float32 value of a parameter or buffer, by its name in an original checkpoint and its shape."""
    value = unit(name, shape)
    if name.endswith("running_var"):
        value = 1.0 + 0.1 * value.abs()
    elif name.endswith("sampling_offsets.bias"):
        value = 2.0 * value
    elif len(shape) >= 2:
        fan_in = math.prod(shape[1:])
        value = (math.sqrt(2.0) if len(shape) == 4 else 1.0) * value / math.sqrt(fan_in)
        if name.endswith(("query_embed.weight", "level_embed")):
            value = value * math.sqrt(fan_in)
    elif name.endswith("weight"):
        value = 1.0 + 0.1 * value
    else:
        value = 0.1 * value
    return value.float()
