"""Launch parameters of the kernels, from a table made offline: no search at the first call."""

import functools
import json
from importlib import resources
from typing import Literal, NamedTuple, TypeAlias, TypedDict

import torch

Direction: TypeAlias = Literal["forward", "backward"]
Precision: TypeAlias = Literal["float32", "half"]
Size: TypeAlias = Literal["few", "many"]

# Launch parameters by direction, precision of the value, and number of rows.
Entries: TypeAlias = dict[Direction, dict[Precision, dict[Size, dict[str, int]]]]


class Table(TypedDict):
    """Content of `launch_table.json`."""

    sources: dict[str, str]
    """Provenance of the entries of every architecture."""
    launches: dict[str, Entries]
    """By architecture; `any` serves all others."""


TABLE = "launch_table.json"

# With fewer (image, query, head) rows memory latency limits a GPU, with more instructions do.
MANY_ROWS = 2**16

# The most that one lane can read at once.
_BYTES_PER_LANE = 16


class Launch(NamedTuple):
    """Launch parameters of one kernel."""

    rows: int
    """Queries per program."""
    width: int
    """Words of a row read in one pass, a power of two."""
    chunks: int
    """Passes over a row, 1 or 2."""
    warps: int
    unrolled: int
    """Points of a level that the backward unrolls; the forward unrolls all."""
    tiled: bool
    """Whether queries that are the pixels themselves are served in square tiles, which sample the same pixels."""


class Architecture(NamedTuple):
    """Properties of a GPU that launches depend on."""

    name: str
    """For example sm_90 or gfx942."""
    lanes: int
    """Threads that run in lockstep: a warp."""
    predicates_loads: bool
    """Whether masked loads cost no more than others."""
    vector_sums: tuple[torch.dtype, ...] = ()
    """Half-precision dtypes of which an atomic addition takes several numbers at once."""


def choose(
    direction: Direction,
    architecture: Architecture,
    *,
    precision: Precision,
    row_words: int,
    word_size: int,
    rows: int,
) -> Launch:
    """Return the launch parameters of a kernel.

    Args:
        direction: Which kernel.
        architecture: Which GPU.
        precision: Precision of the value.
        row_words: Words in one head's channels of one pixel.
        word_size: Bytes per word.
        rows: Number of (image, query, head) combinations.
    """
    table = read_table()["launches"]
    entry = table.get(architecture.name, table["any"])[direction][precision]["many" if rows >= MANY_ROWS else "few"]
    chunks = entry["chunks"] if row_words * word_size > _BYTES_PER_LANE else 1
    width = next_power_of_2(-(-row_words // chunks))
    # One row per group of lanes that read it in one pass; more rows per warp would go through shared memory.
    served = max(1, entry["warps"] * architecture.lanes * _BYTES_PER_LANE // (width * word_size))
    return Launch(served, width, chunks, entry["warps"], entry.get("unrolled", 1), tiled=bool(entry["tiled"]))


def next_power_of_2(number: int) -> int:
    """Return the smallest power of two that is at least `number`, faster than Triton's own function."""
    return 1 << (number - 1).bit_length()


@functools.cache
def architecture_of(device: torch.device) -> Architecture:
    """Return the architecture of a GPU; the interpreter has none."""
    if device.type != "cuda":
        # The interpreter cannot add bfloat16.
        return Architecture("none", 32, predicates_loads=True, vector_sums=(torch.float16,))
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return Architecture(properties.gcnArchName.split(":")[0], properties.warp_size, predicates_loads=False)
    name = f"sm_{properties.major}{properties.minor}"
    vector_sums = (torch.float16, torch.bfloat16) if properties.major >= 9 else ()
    return Architecture(name, properties.warp_size, predicates_loads=True, vector_sums=vector_sums)


@functools.cache
def read_table() -> Table:
    """Return the table that is part of the library."""
    table: Table = json.loads(resources.files(__package__).joinpath(TABLE).read_text())
    return table
