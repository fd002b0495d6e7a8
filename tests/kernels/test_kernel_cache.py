"""Kernels that Numba keeps on disk."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import pytest
import torch
from numba.core import caching

from deformdetr.kernels._numba._kernels import compile_backward, compile_forward

# Named by their arguments, what several processes compile at once.
RUN = """
import sys
import torch
from deformdetr.kernels import ms_deform_attn
from deformdetr.kernels._numba._kernels import compile_forward
channels, dtype = int(sys.argv[1]), getattr(torch, sys.argv[2])
value = torch.ones(1, 4, 1, channels, dtype=dtype, requires_grad=True)
locations, weights = torch.full((1, 3, 1, 1, 2, 2), 0.5), torch.full((1, 3, 1, 1, 2), 0.5)
out = ms_deform_attn(value, [(2, 2)], locations, weights)
out.sum().backward()
assert (out == 1).all()
assert (value.grad == 0.75).all()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have kernels kept in a folder of this test's own."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    return tmp_path


def compile_again(channels: int = 8, dtype: torch.dtype = torch.float32, compile_kernel: Any = compile_forward) -> Any:
    """Compile as in a process that has not yet."""
    return compile_kernel.__wrapped__(channels, dtype)


def test_a_kernel_is_compiled_once(folder: Path):
    for compile_kernel in (compile_forward, compile_backward):
        assert [compile_again(compile_kernel=compile_kernel).cache_hits for _ in range(2)] == [0, 1]


def test_kernels_never_share_a_file(folder: Path):
    for channels, dtype in ((8, torch.float32), (8, torch.bfloat16), (4, torch.float32)):
        assert compile_again(channels, dtype).cache_hits == 0
    assert len(list(folder.rglob("*.nbi"))) == len(list(folder.rglob("*.nbc"))) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr("numba.__version__", "0.0"),
        lambda patch: patch.setattr("llvmlite.__version__", "0.0"),
        lambda patch: patch.setattr("llvmlite.binding.get_host_cpu_name", lambda: "another"),
        lambda patch: patch.setattr("inspect.getsource", lambda module: "another"),
    ],
    ids=["numba", "llvmlite", "processor", "sources"],
)
def test_kernels_of_other_versions_processors_and_sources_are_not_taken(change: Any, monkeypatch: pytest.MonkeyPatch):
    compile_again()
    change(monkeypatch)
    assert compile_again().cache_hits == 0


def test_kernels_are_compiled_where_nothing_can_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "file").touch()
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(folder / "file" / "below"))
    assert compile_again().address
    # As where neither the sources' folder nor any home can be written to.
    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])
    assert compile_again().address


def test_a_full_disk_does_not_keep_kernels_from_being_compiled(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        assert compile_again().address
    assert compile_again().cache_hits == 0


@pytest.mark.parametrize("content", [pickle.dumps("0.0"), b"\x8c\x01\xff.", b"cos\nnothing\n.", b"h\x05."], ids=str)
def test_files_of_something_else_do_not_keep_kernels_from_being_compiled(content: bytes, folder: Path):
    compile_again()
    for file in folder.rglob("*.nbc"):
        file.write_bytes(content)
    assert compile_again().address


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("left", [0, 100])
def test_damaged_files_do_not_keep_kernels_from_being_compiled(left: int, suffix: str, folder: Path):
    compile_again()
    (file,) = folder.rglob(f"*{suffix}")
    file.write_bytes(file.read_bytes()[:left])
    assert compile_again().address


@pytest.mark.slow
def test_several_processes_may_compile_at_once(folder: Path):
    kinds = [(8, "float32"), (8, "float32"), (8, "bfloat16")]
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder)}
    processes = [
        subprocess.Popen([sys.executable, "-c", RUN, str(channels), dtype], env=environment, stderr=subprocess.PIPE)
        for channels, dtype in kinds
    ]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
    for channels, dtype in kinds:
        for compile_kernel in (compile_forward, compile_backward):
            assert compile_again(channels, getattr(torch, dtype), compile_kernel).cache_hits == 1
