"""Archives of strangers are unpacked whole into a new folder, or not at all: nothing outside, no links, no bombs."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segtrain.data import archives
from segtrain.data.archives import Limits, Unpacked, unpack
from segtrain.errors import DataError

LIMITS = Limits(max_bytes=2**30, max_ratio=100)
CONTENT = {"set/images/a.png": b"image", "set/masks/a.png": b"mask" * 1000, "set/empty.txt": b""}


def open_archive(archive: Path, folder: Path, *, limits: Limits = LIMITS) -> Unpacked:
    return unpack(archive, folder, limits=limits, advance=lambda count: None)


def zipped(path: Path, content: dict[str, bytes], *, modes: dict[str, int] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in content.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (modes or {}).get(name, stat.S_IFREG | 0o755) << 16
            file.writestr(info, data)
    return path


def tarred(path: Path, content: dict[str, bytes], *, mode: str = "w", **kinds: Any) -> Path:
    with tarfile.open(path, mode) as file:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mode = 0o777
            file.addfile(info, io.BytesIO(data))
        for name, (kind, target) in kinds.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            file.addfile(info)
    return path


def only(folder: Path, *names: str) -> bool:
    """Whether the folder holds these names and nothing else, hidden ones included."""
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


ARCHIVES: dict[str, Callable[[Path], Path]] = {
    "zip": lambda place: zipped(place / "set.zip", CONTENT),
    "tar": lambda place: tarred(place / "set.tar", CONTENT),
    "tar.gz": lambda place: tarred(place / "set.tgz", CONTENT, mode="w:gz"),
    "tar.xz": lambda place: tarred(place / "set.tar.xz", CONTENT, mode="w:xz"),
    "tar.bz2": lambda place: tarred(place / "set.tar.bz2", CONTENT, mode="w:bz2"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_all_files_arrive_and_nothing_else_is_left(tmp_path: Path, kind: str) -> None:
    archive = ARCHIVES[kind](tmp_path)
    done = open_archive(archive, tmp_path / "deep/er/data")
    found = {
        path.relative_to(tmp_path / "deep/er/data").as_posix(): path.read_bytes()
        for path in (tmp_path / "deep/er/data").rglob("*")
        if path.is_file()
    }
    assert found == CONTENT
    assert (done.files, done.num_bytes) == (3, sum(map(len, CONTENT.values())))
    assert only(tmp_path / "deep/er", "data")
    modes = {stat.S_IMODE(path.stat().st_mode) & 0o111 for path in (tmp_path / "deep").rglob("*") if path.is_file()}
    assert modes == {0}  # nothing that came along can be run


def test_the_name_of_the_archive_does_not_matter(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "set.tar.gz", CONTENT)
    assert open_archive(archive, tmp_path / "data").files == 3


OUTSIDE = ["../evil.txt", "a/../../evil.txt", "/tmp/evil.txt", "C:/evil.txt", "..\\evil.txt", "a\\..\\..\\evil.txt"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_paths_that_lead_outside_are_refused_and_nothing_is_kept(
    tmp_path: Path, name: str, pack: Callable[..., Path]
) -> None:
    place = tmp_path / "inner"
    place.mkdir()
    archive = pack(place / "set", {"good.txt": b"1", name: b"2", "more.txt": b"3"})
    with pytest.raises(DataError, match=r"is refused: .*evil.txt' is (a path that leads outside|an absolute path)"):
        open_archive(archive, place / "data")
    assert only(place, "set")
    assert only(tmp_path, "inner")
    assert not Path("/tmp/evil.txt").exists()


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.FIFOTYPE, "a device"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
    ],
)
def test_links_and_devices_in_tars_are_refused(tmp_path: Path, kind: bytes, word: str) -> None:
    archive = tarred(tmp_path / "set.tar", CONTENT, sly=(kind, "/etc/passwd"))
    with pytest.raises(DataError, match=f"'sly' is {word}"):
        open_archive(archive, tmp_path / "data")
    assert only(tmp_path, "set.tar")


@pytest.mark.parametrize(("mode", "word"), [(stat.S_IFLNK | 0o777, "a link"), (stat.S_IFCHR, "a device")])
def test_links_and_devices_in_zips_are_refused(tmp_path: Path, mode: int, word: str) -> None:
    archive = zipped(tmp_path / "set.zip", {"sly": b"/etc/passwd"}, modes={"sly": mode})
    with pytest.raises(DataError, match=f"'sly' is {word}"):
        open_archive(archive, tmp_path / "data")


def test_a_link_into_which_a_later_file_is_written_never_comes_into_being(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w") as file:
        link = tarfile.TarInfo("door")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside)
        file.addfile(link)
        info = tarfile.TarInfo("door/evil.txt")
        info.size = 4
        file.addfile(info, io.BytesIO(b"evil"))
    with pytest.raises(DataError, match="is a link"):
        open_archive(path, tmp_path / "data")
    assert only(outside)


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_bomb_is_refused_by_its_ratio(
    tmp_path: Path, pack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "RATIO_COUNTS_FROM", 2**16)
    options = {"mode": "w:gz"} if pack is tarred else {}
    archive = pack(tmp_path / "bomb", {"zeros.bin": bytes(2**22)}, **options)
    assert archive.stat().st_size * 100 < 2**22
    with pytest.raises(DataError, match="more than 100 times as large as it is"):
        open_archive(archive, tmp_path / "data")
    assert only(tmp_path, "bomb")
    assert open_archive(archive, tmp_path / "data", limits=Limits(2**30, 10_000)).num_bytes == 2**22


def test_a_zip_that_lies_about_its_sizes_is_stopped(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "lie.zip", {"zeros.bin": bytes(2**22)})
    content = bytearray(archive.read_bytes())
    for start in (content.find(b"PK\x01\x02") + 24, content.find(b"PK\x03\x04") + 22):
        content[start : start + 4] = (1000).to_bytes(4, "little")
    archive.write_bytes(bytes(content))
    with pytest.raises(DataError):
        open_archive(archive, tmp_path / "data", limits=Limits(2**20, 10_000))
    assert only(tmp_path, "lie.zip")


@pytest.mark.parametrize(
    ("limits", "message"),
    [(Limits(3000, 100), "larger than 2.794e-06 GiB"), (Limits(2**30, 100, max_files=2), "more than 2 files")],
)
def test_size_and_number_of_files_have_limits(tmp_path: Path, limits: Limits, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_archive(ARCHIVES["zip"](tmp_path), tmp_path / "data", limits=limits)
    assert only(tmp_path, "set.zip")


@pytest.mark.parametrize("there", ["folder", "file", "link"])
def test_nothing_is_overwritten(tmp_path: Path, there: str) -> None:
    folder = tmp_path / "data"
    if there == "folder":
        folder.mkdir()
        (folder / "mine.txt").write_text("mine")
    elif there == "file":
        folder.write_text("mine")
    else:
        folder.symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is there already: nothing is overwritten"):
        open_archive(ARCHIVES["zip"](tmp_path), folder)
    assert only(tmp_path, "data", "set.zip")


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_file_that_comes_twice_is_refused(tmp_path: Path, pack: Callable[..., Path]) -> None:
    archive = pack(tmp_path / "set", {"a.png": b"1", "./a.png": b"2"})
    with pytest.raises(DataError, match="twice"):
        open_archive(archive, tmp_path / "data")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.85])
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz"])
def test_a_cut_archive_leaves_nothing(tmp_path: Path, kind: str, share: float) -> None:
    content = {f"{number}.bin": os.urandom(3000) for number in range(20)}
    pack: Callable[..., Path] = zipped if kind == "zip" else tarred
    options = {} if ":" not in (mode := f"w:{kind[4:]}") or not kind[4:] else {"mode": mode}
    archive = pack(tmp_path / "set", content, **options)
    data = archive.read_bytes()
    archive.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DataError):
        open_archive(archive, tmp_path / "data")
    assert only(tmp_path, "set")


def test_a_tar_that_is_cut_between_two_files_leaves_nothing(tmp_path: Path) -> None:
    archive = tarred(tmp_path / "set.tar", {"a.bin": b"1" * 512, "b.bin": b"2" * 512})
    archive.write_bytes(archive.read_bytes()[:1024])
    with pytest.raises(DataError, match="the end of the tar is missing"):
        open_archive(archive, tmp_path / "data")
    assert only(tmp_path, "set.tar")


def test_ctrl_c_and_a_full_disk_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = ARCHIVES["zip"](tmp_path)

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(archive, tmp_path / "data", limits=LIMITS, advance=stop)
    assert only(tmp_path, "set.zip")
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    large = zipped(tmp_path / "large.zip", {"a.bin": os.urandom(2**20)})
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
        with pytest.raises(DataError, match=r"cannot be unpacked: File too large .*; nothing was kept"):
            open_archive(large, tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert only(tmp_path, "set.zip", "large.zip")


@pytest.mark.parametrize("content", [b"", b"no archive at all", b"PK\x03\x04 cut", b"\x1f\x8b broken"])
def test_files_that_are_no_archives_are_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError, match=r"neither a zip nor a tar|damaged"):
        open_archive(tmp_path / "file", tmp_path / "data")
    assert only(tmp_path, "file")


def test_leftovers_of_other_systems_are_passed_over_and_an_empty_archive_is_an_error(tmp_path: Path) -> None:
    junk = {"__MACOSX/set/._a.png": b"x", "set/.DS_Store": b"x"}
    assert open_archive(zipped(tmp_path / "set.zip", CONTENT | junk), tmp_path / "data").files == 3
    with pytest.raises(DataError, match="holds no files"):
        open_archive(zipped(tmp_path / "junk.zip", junk), tmp_path / "other")


def test_an_encrypted_zip_is_told(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "set.zip", {"a.txt": b"secret"})
    content = bytearray(archive.read_bytes())
    for start in (content.find(b"PK\x01\x02") + 8, content.find(b"PK\x03\x04") + 6):
        content[start] |= 1
    archive.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"'a\.txt' is encrypted"):
        open_archive(archive, tmp_path / "data")
