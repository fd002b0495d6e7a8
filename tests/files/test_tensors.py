"""Reading and writing tensor files, and the reasons for refusing one."""

import argparse
import pathlib
import struct
import warnings

import pytest
import safetensors.torch
import torch

from deformdetr._files import (
    FileError,
    check_stored_sums,
    read_tensor_file,
    reading_tensors,
    write_tensor_file,
    write_tensors,
)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".SafeTensors"])
def test_written_tensors_are_read_again(suffix, tmp_path, rng):
    state = {"a": torch.randn(3, 4, generator=rng).T, "b": torch.arange(5), "c": torch.tensor(True)}
    write_tensors(state, tmp_path / f"file{suffix}")
    content = read_tensor_file(tmp_path / f"file{suffix}")
    assert content.keys() == state.keys()
    assert all(torch.equal(content[name], state[name]) for name in state)


def test_plain_values_are_read_beside_tensors(tmp_path):
    content = {"epoch": 3, "args": argparse.Namespace(lr=1e-4), "nested": [{"a": torch.zeros(2)}, (None, "text")]}
    write_tensor_file(content, tmp_path / "file.pt")
    assert str(read_tensor_file(tmp_path / "file.pt")) == str(content)


def test_a_container_holds_the_state_dict(tmp_path):
    write_tensors({"a": torch.ones(1)}, tmp_path / "file.pth", container="model")
    assert read_tensor_file(tmp_path / "file.pth") == {"model": {"a": torch.ones(1)}}


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.eye(3).to_sparse(), "'deep.0.a' is torch.sparse_coo on cpu"),
        (torch.zeros(3, device="meta"), "'deep.0.a' is torch.strided on meta"),
        (torch.zeros(3, dtype=torch.complex64), "'deep.0.a' is complex"),
    ],
)
def test_tensors_that_are_not_plain_are_named(tensor, kind, tmp_path):
    torch.save({"deep": [{"a": tensor}], "fine": torch.zeros(1)}, tmp_path / "file.pth")
    with pytest.raises(FileError, match=rf"file\.pth holds a tensor that is not plain: {kind}"):
        read_tensor_file(tmp_path / "file.pth")


def test_a_reason_is_one_line_without_advice_to_run_code(tmp_path):
    torch.save({"a": pathlib.PurePosixPath("/")}, tmp_path / "path.pth")
    (tmp_path / "text.pth").write_text("<html>")
    for name, reason in (("path", r"it holds a pathlib\.(_local\.)?PurePosixPath"), ("text", "Unsupported operand 60")):
        with pytest.raises(FileError, match=rf"{name}\.pth cannot be read: .*{reason}") as caught:
            read_tensor_file(tmp_path / f"{name}.pth")
        assert "\n" not in str(caught.value)
        assert "weights_only" not in str(caught.value)


def test_warnings_of_readers_are_suppressed(tmp_path):
    (tmp_path / "a.pth").touch()
    with reading_tensors(tmp_path / "a.pth"):
        warnings.warn("this file is old", UserWarning, stacklevel=1)


def test_tensors_that_share_memory_are_copied_for_safetensors(tmp_path):
    shared = torch.arange(6.0)
    write_tensors({"a": shared, "b": shared[2:]}, tmp_path / "file.safetensors")
    content = safetensors.torch.load_file(tmp_path / "file.safetensors")
    assert content["b"].tolist() == [2, 3, 4, 5]


def test_names_that_share_a_tensor_share_its_copy(tmp_path, rng):
    tensor = torch.randn(3, 4, generator=rng).T
    write_tensors({"a": tensor, "b": tensor.detach(), "c": tensor.clone()}, tmp_path / "file.pth")
    content = read_tensor_file(tmp_path / "file.pth")
    assert content["a"].is_set_to(content["b"])
    assert not content["a"].is_set_to(content["c"])


def test_changed_bytes_of_weights_are_found_by_their_checksums(tmp_path, rng):
    path = tmp_path / "file.pt"
    write_tensor_file({"a": torch.rand(500, generator=rng)}, path)
    check_stored_sums(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    read_tensor_file(path)
    with pytest.raises(FileError, match=r"file\.pt is damaged: \S+ in it has another checksum") as damaged:
        check_stored_sums(path)
    assert "\n" not in str(damaged.value)


def test_archive_that_claims_several_disks_is_refused(tmp_path):
    path = tmp_path / "state.pth"
    torch.save({"weight": torch.zeros(2)}, path)
    content = path.read_bytes()
    end = content.rindex(b"PK\5\6")
    # The locator of zip64's end, with five disks.
    path.write_bytes(content[:end] + struct.pack("<4sLQL", b"PK\6\7", 0, 0, 5) + content[end:])
    with pytest.raises(FileError, match=r"state\.pth cannot be read: .*multiple disks"):
        check_stored_sums(path)
