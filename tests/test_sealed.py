"""A sealed file notices damage at any byte, and stays a zip file that torch and others read."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from segtrain.sealed import COMMENT_BYTES, is_whole, write_sealed


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    path = tmp_path / "sealed.pt"
    with path.open("wb") as stream:
        write_sealed(stream, lambda out: torch.save({"w": torch.arange(300.0), "step": 3}, out))
    return path


def test_a_sealed_file_reads_as_before(sealed: Path) -> None:
    assert is_whole(sealed)
    assert torch.equal(torch.load(sealed, weights_only=True)["w"], torch.arange(300.0))
    with zipfile.ZipFile(sealed) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"segtrain sha256 ")


def test_a_flip_of_any_byte_is_noticed(sealed: Path) -> None:
    content = sealed.read_bytes()
    size = len(content)
    # all bytes of the last records, where the checksum itself is, and many of the rest
    for place in {*range(0, size, 7), *range(size - COMMENT_BYTES - 30, size)}:
        for flip in (0x01, 0xFF):
            damaged = bytearray(content)
            damaged[place] ^= flip
            sealed.write_bytes(damaged)
            assert not is_whole(sealed), f"byte {place} of {size}"


def test_a_file_that_lost_its_end_or_gained_one_is_noticed(sealed: Path) -> None:
    content = sealed.read_bytes()
    for left in (1, 10, COMMENT_BYTES - 17, COMMENT_BYTES - 1, COMMENT_BYTES):
        sealed.write_bytes(content[:-left])
        assert not is_whole(sealed), f"{left} bytes shorter"
    sealed.write_bytes(content + b"\0")
    assert not is_whole(sealed)


def test_files_of_others_pass(tmp_path: Path) -> None:
    plain, commented = tmp_path / "plain.pt", tmp_path / "commented.zip"
    torch.save({"w": torch.zeros(3)}, plain)
    with zipfile.ZipFile(commented, "w") as archive:
        archive.writestr("a", "b")
        archive.comment = b"x" * COMMENT_BYTES
    empty = tmp_path / "empty"
    empty.touch()
    assert all(is_whole(path) for path in (plain, commented, empty))
