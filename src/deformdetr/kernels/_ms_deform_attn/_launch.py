"""How kernels are launched: a table made offline, never a search at the first call."""

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
    """What the file holds."""

    sources: dict[str, str]
    """Where the entries of every architecture come from."""
    launches: dict[str, Entries]
    """By architecture; `any` stands for all that have none."""


TABLE = "launch_table.json"

# Below this many (image, query, head) rows a GPU waits for memory, above it for instructions.
MANY_ROWS = 2**16

# Every lane reads as much at once as the hardware can.
_BYTES_PER_LANE = 16


class Launch(NamedTuple):
    """Launch parameters of one kernel."""

    rows: int
    """Queries that a program serves."""
    width: int
    """Words of a row that are read in one pass, a power of two."""
    chunks: int
    """Passes over a row, 1 or 2."""
    warps: int
    tiled: bool
    """Whether queries that are the pixels themselves are served in square tiles, which share what they sample."""


class Architecture(NamedTuple):
    """What the table distinguishes."""

    name: str
    """Such as sm_90 or gfx942; a name without entries of its own takes those of any."""
    lanes: int
    """Threads that run in step."""
    predicates_loads: bool
    """Whether a load that is masked out costs no more than another."""


def choose(
    direction: Direction,
    architecture: Architecture,
    *,
    precision: Precision,
    row_words: int,
    word_size: int,
    rows: int,
) -> Launch:
    """Look up how to launch.

    Args:
        direction: Which kernel.
        architecture: For which GPU.
        precision: That of the value.
        row_words: Words in one head's channels of one pixel.
        word_size: Bytes per word.
        rows: Number of (image, query, head) combinations.
    """
    table = read_table()["launches"]
    entry = table.get(architecture.name, table["any"])[direction][precision]["many" if rows >= MANY_ROWS else "few"]
    chunks = entry["chunks"] if row_words * word_size > _BYTES_PER_LANE else 1
    width = next_power_of_2(-(-row_words // chunks))
    # One row per group of lanes that read it in one go; more rows per warp would go through shared memory.
    served = max(1, entry["warps"] * architecture.lanes * _BYTES_PER_LANE // (width * word_size))
    return Launch(rows=served, width=width, chunks=chunks, warps=entry["warps"], tiled=bool(entry["tiled"]))


def next_power_of_2(number: int) -> int:
    """Give the smallest one that is not smaller, faster than Triton's own function."""
    return 1 << (number - 1).bit_length()


@functools.cache
def architecture_of(device: torch.device) -> Architecture:
    """Name the architecture of a GPU; the interpreter has none."""
    if device.type != "cuda":
        return Architecture("none", 32, predicates_loads=True)
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return Architecture(properties.gcnArchName.split(":")[0], properties.warp_size, predicates_loads=False)
    return Architecture(f"sm_{properties.major}{properties.minor}", properties.warp_size, predicates_loads=True)


@functools.cache
def read_table() -> Table:
    """Read the table that comes with the library."""
    table: Table = json.loads(resources.files(__package__).joinpath(TABLE).read_text())
    return table
