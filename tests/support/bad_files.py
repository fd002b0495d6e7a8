"""Damaged files, foreign files and paths that are not files, for tests of readers."""

import io
import json
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

Write = Callable[[Path], object]
_TEXTS = (
    "",
    "\n",
    "epoch,loss\n1,2.5\n",
    "<html>404</html>",
    "}[(",
    "K\x01t.",
    "version https://git-lfs.github.com/spec/v1\n",
)

_VALUES = (
    *("", " null,", " -1,", ' "text",', " [],", " {},", " 1e999,", " true,", " 99999999999999999999999,", "}"),
    *(' "\x00",', "[" * 3000),
)


def _tenfold(first: str, form: str) -> str:
    """Return lines of YAML, each with ten aliases of the one before."""
    names = "abcdefghijk"
    lines = [f"a: &a {first}"]
    lines += [f"{n}: &{n} {form.format(', '.join([f'*{p}'] * 10))}" for p, n in pairwise(names)]
    return "\n".join(lines)


_YAML = (
    "\ta: 1",
    "a: 1\na: 2",
    "{" * 3000,
    "[" * 3000,
    "- " * 3000 + "a",
    "a: &a [*a]",
    "a: &a {b: *a}",
    "a: &a {<<: *a}",
    _tenfold("[1]", "[{}]"),
    _tenfold("{x: 1}", "{{<<: [{}]}}"),
    "a: *b",
    "a: 2001-99-99",
    "a: !!timestamp never",
    "a: !!int ''",
    "a: !!bool perhaps",
    "a: !!binary '*'",
    "a: !!float x",
    "a: !!python/object/apply:os.system [exit]",
    "a: !unknown x",
    "a: 0x",
    "a: " + "9" * 5000,
    "on: 1",
    "1: 2",
    "[1, 2]: 3",
    "? {a: b}\n: c",
    "--- a\n--- b\n",
    "%YAML 9.9\n---\na: 1",
    "a: \x01",
    "a: \x85b",
    '{"a": 1, "a": 2}',
    '{"a": {"b": 1, "b": 1}}',
    "NaN",
    "[]",
    "null",
)


class Runs:
    """An object whose unpickling would run code."""

    called = False

    def __reduce__(self):
        return setattr, (Runs, "called", True)


class Thing:
    """A class that readers do not know."""


def bad_tensor_files(state: Mapping[str, Any], rng: np.random.Generator) -> Iterator[tuple[str, Write]]:
    """Yield names of tensor files, whose suffix gives their format, and functions that write them.

    Args:
        state: State dict in the undamaged files.
        rng: Generator of the damage.
    """
    contents = {
        "new.pth": _torch_bytes(state),
        "old.pth": _torch_bytes(state, new=False),
        "safe.safetensors": safetensors.torch.save({name: value.clone() for name, value in _tensors(state).items()}),
    }
    for name, content in contents.items():
        for number, damaged in enumerate(_damaged(content, rng)):
            yield f"{number}_{name}", _bytes(damaged)
        other = ".pth" if name.endswith(".safetensors") else ".safetensors"
        yield f"{Path(name).stem}_other{other}", _bytes(content)
    for number, text in enumerate(_TEXTS):
        for suffix in (".pth", ".safetensors"):
            yield f"text_{number}{suffix}", _bytes(text.encode())
            yield f"random_{number}{suffix}", _bytes(rng.bytes(int(rng.integers(1, 3000))))
    for number, header in enumerate(_safetensors_headers()):
        yield f"header_{number}.safetensors", _bytes(header)
    for number, value in enumerate((*_pickles(), *_wrong_values(state))):
        yield f"value_{number}.pth", _bytes(_torch_bytes(value))
    for number, value in enumerate(_pickles()):
        for protocol in (0, 2, 4):
            yield f"pickle_{number}_{protocol}.pth", _bytes(pickle.dumps(value, protocol))
    for number, code in enumerate(
        (b"\x80\x02]q\x00h\x00a.", b"\x80\x02" + b"(" * 5000 + b"l" * 5000 + b".", b"\x80\x02.")
    ):
        yield f"code_{number}.pth", _bytes(code)
    yield from (("archive.pth", _zip_of_text), ("tar.pth", _tar), *_script(), *_no_files())


def bad_text_files(content: Mapping[str, Any], suffix: str, rng: np.random.Generator) -> Iterator[tuple[str, Write]]:
    """Yield names of YAML or JSON files, and functions that write them.

    Args:
        content: Content of the undamaged file.
        suffix: `.yaml` or `.json`.
        rng: Generator of the damage.
    """
    whole = json.dumps(content, indent=1).encode()
    texts = [*(text.encode() for text in (*_TEXTS, *_YAML)), *_damaged(whole, rng), whole.decode().encode("utf-16")]
    # Lines with other values: wrong types, invalid syntax and too deep nesting.
    lines = whole.decode().splitlines()
    for _ in range(20):
        number = int(rng.integers(len(lines)))
        key, colon, _ = lines[number].partition(":")
        value = _VALUES[int(rng.integers(len(_VALUES)))]
        texts.append("\n".join([*lines[:number], f"{key}{colon}{value}", *lines[number + 1 :]]).encode())
    for number, text in enumerate(texts):
        yield f"{number}{suffix}", _bytes(text)
    yield from ((name.replace(".pth", suffix), write) for name, write in _no_files() if name.endswith(".pth"))


def _damaged(content: bytes, rng: np.random.Generator) -> Iterator[bytes]:
    for share in (*rng.random(4), 0.999):
        yield content[: int(share * len(content))]
    yield content[:-1]
    yield content[len(content) // 2 :]
    # Most bytes are weights, where damage cannot be detected. The ends of a file hold its structure.
    for low, high in [(0, len(content)), (0, min(200, len(content))), (max(0, len(content) - 600), len(content))] * 4:
        changed = bytearray(content)
        for _ in range(int(rng.integers(1, 6))):
            changed[int(rng.integers(low, high))] ^= int(rng.integers(1, 256))
        yield bytes(changed)
    yield content + b"more"


def _safetensors_headers() -> Iterator[bytes]:
    whole: dict[str, Any] = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    entries: list[Any] = [
        {"a": whole | {"data_offsets": [0, 80]}},
        {"a": whole | {"data_offsets": [8, 0]}},
        {"a": whole | {"data_offsets": [-8, 0]}},
        {"a": whole | {"shape": [3]}},
        {"a": whole | {"shape": [-2]}},
        {"a": whole | {"shape": [2**40, 2**40]}},
        {"a": whole | {"dtype": "X9"}},
        {"a": whole | {"dtype": 3}},
        {"a": whole, "b": whole},
        {"a": whole, "b": whole | {"data_offsets": [4, 12]}},
        {"a": 3},
        {"__metadata__": {"format": 3}},
        [whole],
        None,
    ]
    for entry in entries:
        header = json.dumps(entry).encode()
        yield struct.pack("<Q", len(header)) + header + bytes(8)
    yield struct.pack("<Q", 2**63) + b"{}"
    yield struct.pack("<Q", 100) + b"{}"
    yield struct.pack("<Q", 200_000) + b"[" * 200_000


def _pickles() -> list[Any]:
    nested: Any = []
    for _ in range(400):
        nested = [nested]
    return [Runs(), Thing(), {"model": Thing()}, os.system, Path("/"), np.zeros(3), {"a": np.float64(3)}, nested]


def _wrong_values(state: Mapping[str, Any]) -> list[Any]:
    name, tensor = next(iter(_tensors(state).items()))
    itself: dict[str, Any] = {}
    itself["model"] = itself
    wrong: list[Any] = [
        tensor.to_sparse(),
        _quantized(tensor),
        tensor.to("meta"),
        tensor.flatten()[:1],
        tensor.to(torch.complex64),
        tensor.to(torch.float8_e4m3fn),
        "text",
        3,
        None,
        [tensor],
        {"a": tensor},
    ]
    return [
        None,
        3,
        "text",
        [tensor],
        tensor,
        {},
        itself,
        Namespace(model=state),
        {1: tensor},
        {None: tensor, (1, 2): tensor},
        *({**state, name: each} for each in wrong),
        *(dict.fromkeys(state, each) for each in wrong),
        *({"model": each} for each in wrong),
        *(OrderedDict({**state, key: each}) for key in list(state)[:8] if key != name for each in (None, -1, [], {})),
        *({key: value for key, value in state.items() if key != missing} for missing in list(state)[:8]),
    ]


def _script() -> Iterator[tuple[str, Write]]:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for each in ("archive/constants.pkl", "archive/data.pkl", "archive/version", "archive/code/__torch__.py"):
            archive.writestr(each, pickle.dumps({}, 2))
    yield "script.pth", _bytes(content.getvalue())


def _no_files() -> Iterator[tuple[str, Write]]:
    for suffix in (".pth", ".safetensors"):
        yield f"folder{suffix}", Path.mkdir
        yield f"absent{suffix}", lambda path: None
        yield f"loop{suffix}", lambda path: path.symlink_to(path)
        yield f"gone{suffix}", lambda path: path.symlink_to(path.with_name("nowhere"))
        yield f"pipe{suffix}", os.mkfifo
        yield f"device{suffix}", lambda path: path.symlink_to("/dev/zero")
        # Root can read it, and it is empty.
        yield f"unreadable{suffix}", lambda path: (path.touch(), path.chmod(0))


def _tensors(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    own = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    return own or _tensors(state["model"])


def _quantized(tensor: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        # Quantized tensors are deprecated.
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)


def _torch_bytes(value: Any, *, new: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


def _bytes(content: bytes) -> Write:
    return lambda path: path.write_bytes(content)


def _zip_of_text(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no tensors")


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            archive.addfile(tarfile.TarInfo(name))
