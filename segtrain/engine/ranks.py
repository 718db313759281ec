"""The ranks of a run: how they join, agree, share a device each, and how an error on one ends all with its reason."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from rich.console import Console
from torch import distributed as dist
from torch import nn

from segtrain.config import Config
from segtrain.distributed import gather_objects, joined_ranks, local_rank, rank, world_size
from segtrain.engine.device import select_device
from segtrain.engine.signals import Interrupted
from segtrain.errors import ConfigError, SegtrainError

# What gloo says of a peer that is gone or late; NCCL and the store have exceptions of their own.
LOST = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "Application timeout", "gloo")
ROLL_CALL_SECONDS = 10.0
STOPPED = "a signal"


class RankError(SegtrainError):
    """Another rank failed: the message says which one, and why."""


def rank_device(name: str) -> torch.device:
    """Return the device of this rank: with CUDA the one of its place on the machine.

    Raises:
        ConfigError: as `select_device`, or ranks that would share one CUDA device.
    """
    device = select_device(name)
    if world_size() == 1 or device.type != "cuda":
        return device
    if ":" in name:
        raise ConfigError(
            f"device: {name} names one device, and {world_size()} ranks need one each: use device=cuda (or auto), and "
            "choose the devices with CUDA_VISIBLE_DEVICES"
        )
    number = torch.cuda.device_count()
    if local_rank() >= number:
        raise ConfigError(
            f"rank {rank()} is number {local_rank()} on its machine, which has {number} CUDA "
            "devices: start as many processes as devices (torchrun --nproc-per-node), or use device=cpu"
        )
    device = torch.device("cuda", local_rank())
    torch.cuda.set_device(device)
    return device


def rank_console(console: Console) -> Console:
    """Return the console on the first rank, and on the others one that shows nothing."""
    return console if rank() == 0 else Console(file=io.StringIO(), quiet=True)


@contextmanager
def training_ranks(config: Config) -> Iterator[None]:
    """Join the ranks for a run, and end them together: where one fails, the others raise RankError with its reason.

    A group that the caller started is used, and left as it is. One process alone has nothing of this.
    """
    cuda = config.device != "cpu" and torch.cuda.is_available()
    with joined_ranks(cuda=cuda, timeout_seconds=config.train.rank_timeout_seconds):
        if world_size() == 1:
            yield
            return
        board = Board()
        try:
            yield
        except RankError:
            raise
        except BaseException as error:
            if _is_lost(error):
                raise RankError(board.roll_call(config.train.rank_timeout_seconds)) from error
            board.report(error)
            raise


def _is_lost(error: BaseException) -> bool:
    """Whether an error is about the connection to another rank."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in LOST)


class Board:
    """Where ranks leave word for each other while no collective can pass: the store by which they found each other."""

    def __init__(self) -> None:
        from torch.distributed.distributed_c10d import PrefixStore

        assert dist.group.WORLD is not None
        store = dist.group.WORLD.get_group_store()
        # several runs may use one store, one after another
        number = gather_objects(store.add("segtrain/runs", 1) if rank() == 0 else 0)[0]
        self._store = PrefixStore(f"segtrain/{number}", store)

    def report(self, error: BaseException) -> None:
        """Leave the reason for which this rank ends."""
        text = str(error) if isinstance(error, SegtrainError) else f"{type(error).__name__}: {error}".rstrip(": ")
        if isinstance(error, KeyboardInterrupt | SystemExit | Interrupted):
            text = STOPPED
        with suppress(dist.DistError):  # whoever keeps the store is gone: then the others notice that
            self._store.set(f"failed/{rank()}", text)

    def roll_call(self, timeout_seconds: float) -> str:
        """Return which rank is missing, and why as far as it left word; waits for others that noticed as well."""
        others = [number for number in range(world_size()) if number != rank()]
        try:
            self._store.set(f"present/{rank()}", "")
            deadline = time.monotonic() + ROLL_CALL_SECONDS
            while time.monotonic() < deadline:
                for number in others:
                    if self._store.check([f"failed/{number}"]):
                        return stopped_text(number, self._store.get(f"failed/{number}").decode())
                if len(self._absent(others)) <= 1:
                    break
                time.sleep(0.1)
            time.sleep(0.5)  # for a reason that is on its way
            for number in others:
                if self._store.check([f"failed/{number}"]):
                    return stopped_text(number, self._store.get(f"failed/{number}").decode())
            absent = self._absent(others) or others
        except dist.DistError:
            absent = [0]  # it keeps the store, where no agent does
        names = " and ".join(f"rank {number}" for number in absent)
        return (
            f"{names} of {world_size()} no longer answers: killed, out of memory, its machine lost, or busy for longer "
            f"than train.rank_timeout_seconds ({timeout_seconds:g}). All ranks end; go on from the last checkpoint "
            "with train.resume=auto"
        )

    def _absent(self, others: list[int]) -> list[int]:
        return [number for number in others if not self._store.check([f"present/{number}"])]


def stopped_text(number: int, reason: str) -> str:
    """Say that another rank ended."""
    return f"rank {number} of {world_size()} stopped: {reason}"


@contextmanager
def agreed() -> Iterator[None]:
    """Run a block in which ranks do not wait for each other; where it fails on one, it fails on all.

    Raises:
        RankError: on the ranks where it did not fail. Interrupted: where it was left for a signal on another rank.
    """
    if world_size() == 1:
        yield
        return
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    own = None
    if failure is not None:
        own = STOPPED if isinstance(failure, Interrupted) else f"{type(failure).__name__}: {failure}"
        own = str(failure) if isinstance(failure, SegtrainError) else own
    reasons: Mapping[int, str] = {n: text for n, text in enumerate(gather_objects(own)) if text is not None}
    errors = [stopped_text(number, text) for number, text in reasons.items() if text != STOPPED]
    if failure is not None and (not errors or not isinstance(failure, Interrupted)):
        raise failure
    if errors:
        raise RankError(errors[0])
    if reasons:
        raise Interrupted


def check_alike(facts: Mapping[str, Any]) -> None:
    """Refuse to go on where ranks found different things.

    Raises:
        ConfigError: with what differs, on all ranks.
    """
    seen = gather_objects(dict(facts))
    for name in facts:
        values = [one.get(name) for one in seen]
        if any(value != values[0] for value in values):
            told = "; ".join(f"rank {number}: {value}" for number, value in enumerate(values))
            raise ConfigError(
                f"the ranks differ in {name} ({told}): give all the same configuration, data and run folder"
            )


def broadcast_weights(model: nn.Module) -> None:
    """Give all ranks the parameters and buffers of the first one."""
    if world_size() == 1:
        return
    with torch.no_grad():
        for value in model.state_dict().values():
            dist.broadcast(value, src=0)


def from_first(value: Any) -> Any:
    """Return the first rank's value on all ranks."""
    return gather_objects(value)[0]
