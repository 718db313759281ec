"""How the Triton kernels are launched: pixels of a tile, warps, and programs, by the number of classes and the layout.

`TUNER.enabled = True` has the kernels that read the logits try a few launches the first time they meet a number of
classes, a type and a layout, and keep the fastest, as `torch.backends.cudnn.benchmark` does. It is off by default: the
trials cost seconds, and sums rounded in another order differ in their last digits from one run to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace

import torch

FEW_CLASSES = 24  # up to here every channel can be a tensor of its own
FEW_ENLARGED = 8  # the same with four loads for each: at 19 they would take the compiler 25 seconds
MOST_SUMS = (
    114  # of a thread that holds them in registers: 19 classes with mining; more are spilled, and slow to compile
)
BINARY_ELEMENTS = 512  # of a tile with sigmoid
MOST_CLASSES = 1024  # beyond, a pixel's channels do not fit the registers of a program
MOST_TILES = 512  # of one program: its float32 sums lose no more than some 1e-6, even of equal values
MOST_IMAGES = 2**16 - 1  # of a grid
MOST_PIXELS = 2**31 - 2**26  # of an image: places are int32, and a program's next tile may lie beyond the end


@dataclass(frozen=True)
class Launch:
    """The parameters of one kernel."""

    block: int  # pixels of a tile
    warps: int
    programs: int  # for each multiprocessor


def holds_all(num_classes: int, rows: int) -> bool:
    """Whether the registers of `triton_columns.forward` hold `rows` sums of each class."""
    return num_classes <= FEW_CLASSES and num_classes * rows <= MOST_SUMS


def columns(num_classes: int, *, channels_last: bool) -> Launch:
    """Return how `triton_columns` is launched: two pixels a thread, and fewer threads where each holds much."""
    if channels_last and num_classes > 8:
        return Launch(block=128, warps=2, programs=4)
    return Launch(block=256, warps=4, programs=2 if num_classes > 12 else 4)


def tiles(width: int) -> Launch:
    """Return how `triton_tiles` is launched: 32 elements a thread; `width` is C, up to a power of two."""
    if width > 512:  # 16 warps have too few registers each for 32 elements a thread
        return Launch(block=8, warps=8, programs=2)
    warps = 4 if width <= 256 else 8
    return Launch(block=max(4096 // width, 16), warps=warps, programs=16 // warps)


def coarse_tiles(width: int) -> Launch:
    """Return how `triton_enlarged_backward` is launched: half the tile of `tiles`, as the sums take as much again."""
    whole = tiles(width)
    return Launch(block=min(max(whole.block // 2, 4), 256), warps=whole.warps, programs=whole.programs)


def binary(width: int, *, channels_last: bool) -> Launch:
    """Return how `triton_binary` is launched: one class in a program, or with channels_last up to 32 of each pixel."""
    if not channels_last:
        return Launch(block=BINARY_ELEMENTS, warps=4, programs=8)
    return Launch(block=BINARY_ELEMENTS // min(width, 32), warps=4, programs=8)


LABELS = Launch(block=256, warps=4, programs=4)
LABEL_CLASSES = 16  # of one program of `triton_labels`
MINING = Launch(block=1024, warps=4, programs=4)
TIES = Launch(block=128, warps=4, programs=8)
TILES_OF_A_RUN = 32  # of `triton_mining.keep_hardest`


@dataclass
class Tuner:
    """Which launch is the fastest, found by trial where `enabled`; a choice holds for the process."""

    enabled: bool = False
    chosen: dict[Hashable, Launch] = field(default_factory=dict)

    def choose(
        self, key: Hashable, default: Launch, run: Callable[[Launch], object], *, device: torch.device
    ) -> Launch:
        """Return `default`, or with `enabled` the fastest for `key` among it and others of its kind.

        Args:
            key: what a choice depends on.
            default: what the table says.
            run: launches the kernel; may be called many times.
            device: of the tensors; nothing is tried on the CPU, or while a CUDA graph is captured.
        """
        if not self.enabled or (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
            return default
        if key not in self.chosen:
            self.chosen[key] = min(candidates(default), key=lambda launch: milliseconds(run, launch))
        return self.chosen[key]


TUNER = Tuner()


def candidates(default: Launch) -> Iterable[Launch]:
    """Return the launches that are tried: tiles of the same size a thread, and more or fewer programs."""
    sizes = [replace(default, block=default.block * n // 4, warps=default.warps * n // 4) for n in (2, 4, 8)]
    sizes = [launch for launch in sizes if launch.warps and launch.block >= min(default.block, 16)]
    return [replace(launch, programs=n) for launch in sizes for n in sorted({2, 4, 8, default.programs})]


def milliseconds(run: Callable[[Launch], object], launch: Launch) -> float:
    """Return the median time of a launch over 7 runs on the current CUDA device, the first two left out."""
    times = []
    for _ in range(9):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        run(launch)
        end.record()
        end.synchronize()
        times.append(float(start.elapsed_time(end)))
    return sorted(times[2:])[3]


def num_programs(launch: Launch, size: int, *, device: torch.device, shared_by: int = 1) -> int:
    """Return how many programs share the tiles of `size` pixels: what fills the device, over `shared_by` images."""
    num_tiles = -(-size // launch.block)
    wanted = -(-launch.programs * multiprocessors(device) // max(shared_by, 1))
    return max(min(wanted, num_tiles), -(-num_tiles // MOST_TILES), 1)


def check_extent(images: int, pixels: int) -> None:
    """Raise ValueError for batches that no launch covers."""
    if images > MOST_IMAGES:
        raise ValueError(f"a batch of {images} images is more than the {MOST_IMAGES} of one launch on a GPU: split it")
    if pixels > MOST_PIXELS:
        raise ValueError(f"images of {pixels} pixels are more than the {MOST_PIXELS} of one launch on a GPU: cut them")


def multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors there are; 1 where kernels are interpreted, on the CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
