"""The samples of all shards of a split as arrays: found in one pass over the headers, and kept beside the data."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segtrain.config.data import DataConfig
from segtrain.data.places import cache_folders, data_root, short_hash
from segtrain.data.problems import Kind, Problem
from segtrain.data.samples import Texts
from segtrain.data.shards import NO_RANGES, Member, Shard, is_url
from segtrain.data.tar_members import Part, list_members
from segtrain.distributed import rank
from segtrain.errors import SegtrainError
from segtrain.files import write_whole

INDEX_VERSION = 1  # raise it when shards are read in another way
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
THREADS = 16  # servers take their time
TEXTS = ("names", "images", "masks")

# Chooses image and mask of a key from its files by their extensions: returns those two, a reason why not, or None
# where the key is no sample.
Choose = Callable[[dict[str, Part]], tuple[str, str] | str | None]


@dataclass
class Content:
    """The samples of one shard: names, the names of image and mask in it, and where these are, int64 [N, 4]: start and
    size of the image, then of the mask."""

    names: Sequence[str] = ()
    images: Sequence[str] = ()
    masks: Sequence[str] = ()
    spans: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 4), np.int64))
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Index:
    """The samples of some shards, in order. ends: int64 [S], where those of each shard end; spans: see Content."""

    locations: tuple[str, ...]
    shards: tuple[Shard, ...]
    ends: NDArray[np.int64]
    names: Texts
    images: Texts
    masks: Texts
    spans: NDArray[np.int64]
    problems: list[Problem] = field(default_factory=list)

    @property
    def numbers(self) -> NDArray[np.int32]:
        """The shard of each sample, int32 [N]."""
        return np.repeat(np.arange(len(self.ends), dtype=np.int32), np.diff(self.ends, prepend=0))

    def content(self, number: int) -> Content:
        """The samples of one shard."""
        rows = np.arange(int(self.ends[number - 1]) if number else 0, int(self.ends[number]))
        names, images, masks = (list(texts.select(rows)) for texts in (self.names, self.images, self.masks))
        return Content(names, images, masks, self.spans[rows])


def index_shards(data: DataConfig, locations: Sequence[str], *, key: str, choose: Choose) -> Index:
    """Index shards: paths under the root of the data set, or URLs.

    Those that kept size and stamp since they were indexed are taken from the file of the older index, `key` names it;
    those with problems are read again each time.

    Raises:
        SegtrainError: a URL of an unknown kind.
    """
    root = data_root(data)
    files = [folder / f"shards-{key}.npz" for folder in cache_folders(data)]
    older = _load(files, root)
    with ThreadPoolExecutor(min(THREADS, max(1, len(locations))), thread_name_prefix="shards") as pool:
        found = list(pool.map(lambda location: _find(root, location), locations))
        shards = tuple(shard for shard in found if isinstance(shard, Shard))
        lost = [problem for problem in found if isinstance(problem, Problem)]
        if older is not None and not lost and older.shards == shards:
            return older
        kept = tuple(place for place, shard in zip(locations, found, strict=True) if isinstance(shard, Shard))
        known = {} if older is None else {shard: number for number, shard in enumerate(older.shards)}

        def look(pair: tuple[str, Shard]) -> Content:
            location, shard = pair
            if older is not None and shard in known:
                return older.content(known[shard])
            return _read(shard, label=location, choose=choose)

        contents = list(pool.map(look, zip(kept, shards, strict=True)))
    index = _joined(kept, shards, contents, lost)
    if rank() == 0:
        _save(files, index, [not content.problems for content in contents])
    return index


def _find(root: Path, location: str) -> Shard | Problem:
    place = located(root, location)
    try:
        return Shard.find(place)
    except OSError as error:
        return Problem(Member(Shard(place, 0, 0), ""), f"no such shard ({error.strerror or error})", Kind.MISSING)


def located(root: Path, location: str) -> str:
    """The path or URL of a shard."""
    return location if is_url(location) else str(root / location)


def _read(shard: Shard, *, label: str, choose: Choose) -> Content:
    """Read the headers of a shard; names open with `label`, without the suffix of tar files and the start of URLs."""
    try:
        with shard.open() as stream:
            tar = list_members(stream, shard.size)
    except ValueError as error:  # of fsspec's http files; what is wrong with a tar is no exception
        return Content(problems=[Problem(Member(shard, ""), f"{NO_RANGES} ({error})", Kind.UNREADABLE)])
    except OSError as error:
        return Content(problems=[Problem(Member(shard, ""), f"cannot be read ({error})", Kind.UNREADABLE)])
    problems = [Problem(Member(shard, fault.name), fault.reason, fault.kind) for fault in tar.faults]
    label = label.partition("://")[2] or label
    names, images, masks, spans = [], [], [], []
    for key, files in tar.groups.items():
        chosen = choose(files)
        if isinstance(chosen, str):
            told = ", ".join(f".{extension}" for extension in sorted(files))
            reason = f"key {key}: {chosen}; the shard has of it: {told}"
            problems.append(Problem(Member(shard, key), reason, Kind.MISSING))
        if chosen is None or isinstance(chosen, str):
            continue
        image, mask = (files[extension] for extension in chosen)
        if not (image.name and mask.name):
            continue  # a fault tells why
        names.append(f"{label.removesuffix('.tar')}/{key}")
        images.append(image.name)
        masks.append(mask.name)
        spans.append((image.start, image.size, mask.start, mask.size))
    if not names and not problems:
        problems.append(Problem(Member(shard, ""), "the shard holds no samples", Kind.MISSING))
    return Content(names, images, masks, np.array(spans, np.int64).reshape(-1, 4), problems)


def _joined(
    locations: tuple[str, ...], shards: tuple[Shard, ...], contents: Sequence[Content], lost: list[Problem]
) -> Index:
    ends = np.cumsum([len(content.names) for content in contents], dtype=np.int64)
    texts = [
        Texts.pack(list(chain.from_iterable(getattr(content, name) for content in contents)), make=str)
        for name in TEXTS
    ]
    spans = np.concatenate([np.zeros((0, 4), np.int64), *(content.spans for content in contents)])
    problems = [*lost, *chain.from_iterable(content.problems for content in contents)]
    return Index(locations, shards, ends, texts[0], texts[1], texts[2], spans, problems)


def _load(files: Sequence[Path], root: Path) -> Index | None:
    """An older index; a damaged one counts as none."""
    for file in files:
        with suppress(*UNREADABLE), file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return _unpacked(arrays, root)
    return None


def _unpacked(arrays: Any, root: Path) -> Index:
    listed = json.loads(arrays["shards"].tobytes())
    texts = []
    for name in TEXTS:
        prefix, rest, ends = (arrays[f"{name}_{part}"] for part in ("prefix", "rest", "ends"))
        if (rest.dtype, ends.dtype) != (np.uint8, np.int64) or (len(ends) and ends[-1] != len(rest)):
            raise ValueError("damaged names")
        texts.append(Texts(prefix.tobytes(), rest, ends, str))
    ends, spans = arrays["ends"].astype(np.int64), arrays["spans"].astype(np.int64)
    num = int(ends[-1]) if len(ends) else 0
    if len(ends) != len(listed) or spans.shape != (num, 4) or any(len(text) != num for text in texts):
        raise ValueError("arrays disagree")
    shards = tuple(Shard(located(root, location), size, stamp) for location, size, stamp in listed)
    return Index(tuple(location for location, _, _ in listed), shards, ends, texts[0], texts[1], texts[2], spans)


def _save(files: Sequence[Path], index: Index, whole: Sequence[bool]) -> None:
    """Write what is known of the shards without problems, where one of the folders can be written."""
    content = index
    if not all(whole):
        kept = [number for number, good in enumerate(whole) if good]
        content = _joined(
            tuple(index.locations[number] for number in kept),
            tuple(index.shards[number] for number in kept),
            [index.content(number) for number in kept],
            [],
        )
    pairs = zip(content.locations, content.shards, strict=True)
    listed = [[location, shard.size, shard.stamp] for location, shard in pairs]
    arrays: dict[str, Any] = {"shards": np.frombuffer(json.dumps(listed).encode(), np.uint8)}
    for name in TEXTS:
        texts: Texts = getattr(content, name)
        arrays |= {f"{name}_prefix": np.frombuffer(texts.prefix, np.uint8)}
        arrays |= {f"{name}_rest": texts.rest, f"{name}_ends": texts.ends}
    packed = io.BytesIO()
    np.savez(packed, **arrays, ends=content.ends, spans=content.spans)
    for file in files:
        with suppress(SegtrainError):  # read-only or full: the next run reads the headers again
            write_whole(file, packed.getvalue())
            return


def index_key(data: DataConfig, split: str) -> str:
    """A short name for all on which the index of a split depends besides the shards."""
    return short_hash(json.dumps([INDEX_VERSION, data.splits[split], data.shards.model_dump(mode="json")]))
