"""Checkpoints of sharded runs: folders, whole or not there, of which each rank writes a part; none can run code.

`checkpoints/sharded-<step>` holds the tensors as torch.distributed.checkpoint writes them, so that another number of
ranks can read them, and `run.pt`, sealed, with all else and with the checksums of the other files.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from segtrain.distributed import gather_objects, rank
from segtrain.engine.average import WeightAverage
from segtrain.engine.checkpoint import load_checkpoint, save_checkpoint, sync_folder
from segtrain.engine.ranks import agreed
from segtrain.engine.shards import make_moments, sharded_tensors
from segtrain.errors import CheckpointError

NAME = re.compile(r"sharded-(\d+)(?:-(\d+))?")  # the second number: of a further save at that step
RUN_FILE = "run.pt"
METADATA_FILE = ".metadata"
MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
CLASSES = (
    *("Metadata", "MetadataIndex", "TensorStorageMetadata", "ChunkStorageMetadata", "TensorProperties"),
    *("StorageMeta", "_MEM_FORMAT_ENCODING", "_StorageInfo"),
)


def _member(kind: Any, name: str) -> Any:
    """Return the member of an enumeration: early versions of Python 3.11 (3.11.2 was seen to) name getattr for it."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind[name]
    raise pickle.UnpicklingError(f"it asks {kind!r} for {name}, which describes no tensor")


def _layout(name: str) -> torch.layout:
    value = getattr(torch, str(name).removeprefix("torch."), None)
    if isinstance(value, torch.layout):
        return value
    raise pickle.UnpicklingError(f"it names {name} as a layout, which describes no tensor")


OTHER_NAMES = {
    **{(module, name): PurePath for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")},
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): _layout,
    ("builtins", "getattr"): _member,
}


def sharded_folders(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, folder) of the sharded checkpoints in a run's folder of checkpoints, the newest first."""
    matches = ((NAME.fullmatch(path.name), path) for path in folder.glob("sharded-*") if path.is_dir())
    found = sorted(((int(match[1]), int(match[2] or 1), path) for match, path in matches if match), reverse=True)
    return [(step, path) for step, _, path in found]


def save_sharded(folder: Path, tensors: Mapping[str, Tensor], rest: Mapping[str, Any], *, step: int) -> None:
    """Write a checkpoint: each rank its part of the tensors, the first one the rest; every rank must call it.

    All goes to a temporary folder, reaches the disk, and takes its name in one step: what has its name is whole.

    Raises:
        CheckpointError: it could not be written; the ones before it are untouched. RankError: not by another rank.
    """
    target, temporary = folder / f"sharded-{step:08}", folder / f".sharded-{step:08}.tmp"
    with agreed(), _failures_explained(target):
        if rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
    with _failures_explained(target):
        save(dict(tensors), storage_writer=FileSystemWriter(str(temporary)))
    with agreed(), _failures_explained(target):
        digests = {path.name: _digest(path) for path in temporary.glob(f"__{rank()}_*.distcp")}
    found = gather_objects(digests)
    with agreed(), _failures_explained(target):
        if rank() == 0:
            files = {name: digest for one in found for name, digest in one.items()}
            files[METADATA_FILE] = _digest(temporary / METADATA_FILE)
            save_checkpoint(temporary / RUN_FILE, {**rest, "files": files})
            _take_name(temporary, target)


def newest_sharded(folder: Path, *, tell: Callable[[str], object]) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest whole sharded checkpoint with its `run.pt`, or None where there is none.

    Raises:
        CheckpointError: there are some, and none is whole.
    """
    told = ""
    for _, path in sharded_folders(folder):
        try:
            return path, load_sharded(path)
        except CheckpointError as error:
            tell(f"warning: passed over: {error}")
            told = told or str(error)
    if told:
        raise CheckpointError(f"no whole checkpoint is left in {folder}: {told}")
    return None


def load_sharded(path: Path) -> dict[str, Any]:
    """Read what a sharded checkpoint holds beside its tensors, once all its files are as they were written.

    Raises:
        CheckpointError: they are not.
    """
    payload = load_checkpoint(path / RUN_FILE)
    for name, digest in payload["files"].items():
        if Path(name).name != name or not (path / name).is_file() or _digest(path / name) != digest:
            raise CheckpointError(f"{path} is damaged: {name} is not the file that was written")
    return payload | {"sharded": str(path)}


def read_metadata(path: Path) -> Metadata:
    """Return what the tensors of a sharded checkpoint are; nothing but tensors may be in it.

    Raises:
        CheckpointError: it names a class that does not describe tensors, or holds other values.
    """
    try:
        with (path / METADATA_FILE).open("rb") as stream:
            metadata = cast(Metadata, _Unpickler(stream).load())
        entries = metadata.state_dict_metadata.values()
    except (OSError, pickle.UnpicklingError, AttributeError, EOFError) as error:
        raise CheckpointError(f"{path / METADATA_FILE} cannot be read: {error}") from error
    if not all(isinstance(entry, TensorStorageMetadata) for entry in entries):
        raise CheckpointError(f"{path} holds more than tensors: it was not written by segtrain")
    return metadata


def stored_sizes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the whole size of each tensor of a sharded checkpoint by name."""
    entries = read_metadata(path).state_dict_metadata.items()
    return {name: tuple(entry.size) for name, entry in entries if isinstance(entry, TensorStorageMetadata)}


def read_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors with what the checkpoint holds under their names, each rank its parts; every rank must call it.

    Raises:
        CheckpointError: names or sizes differ.
    """
    stored = stored_sizes(path)
    own = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = [name for name in {**stored, **own} if stored.get(name) != own.get(name)]
    if wrong:
        raise CheckpointError(
            f"{path} does not fit the model and its optimizer: {', '.join(wrong[:3])} ({len(wrong)} differences). "
            "Start a new run from the weights in best.pt with model.init_from"
        )
    load(dict(tensors), storage_reader=_Reader(path))


def read_shards(
    payload: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None
) -> None:
    """Fill a sharded model, its optimizer and its average from what `load_sharded` found; every rank must call it.

    Raises:
        CheckpointError: it is of another model or optimizer, or of a run with another `train.ema`.
    """
    path = Path(payload["sharded"])
    make_moments(model, optimizer, stored_sizes(path))
    read_tensors(path, sharded_tensors(model, optimizer, None if average is None else average.module))
    if average is not None:
        average.num_averaged.fill_(payload["training"]["num_averaged"])


class _Reader(FileSystemReader):
    """Reads as torch does, but for the description of the tensors: torch would run code that is in it."""

    def read_metadata(self, *args: Any, **options: Any) -> Metadata:
        metadata = read_metadata(Path(self.path))
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in MODULES and name in CLASSES:
            return super().find_class(module, name)
        if (module, name) in OTHER_NAMES:
            return OTHER_NAMES[module, name]
        value = getattr(torch, name, None) if module == "torch" else None
        if isinstance(value, torch.dtype):
            return value
        raise pickle.UnpicklingError(f"it names {module}.{name}, which describes no tensor")


def rotate_sharded(folder: Path, *, step: int, keep_last: int) -> None:
    """Keep the newest checkpoints up to `step`, one of each; those of later steps are of a course that was left."""
    found = sharded_folders(folder)
    newest = {number: path for number, path in reversed(found) if number <= step}
    kept = [newest[number] for number in sorted(newest, reverse=True)[:keep_last]]
    for _, path in found:
        if path not in kept:
            shutil.rmtree(path)


def _take_name(temporary: Path, target: Path) -> None:
    """Give a folder its name, or the next one where an earlier save at that step has it.

    No rename replaces a folder that holds something, and to move it away first would leave a moment without any.
    """
    sync_folder(temporary)
    name, number = target, 1
    while name.exists():
        number += 1
        name = target.with_name(f"{target.name}-{number}")
    temporary.rename(name)
    sync_folder(target.parent)


@contextmanager
def _failures_explained(target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, CheckpointException) as error:
        raise CheckpointError(
            f"could not write {target}: {error}; earlier checkpoints are intact. Free space or choose another folder "
            "with output=..., then go on with train.resume=auto"
        ) from error


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
