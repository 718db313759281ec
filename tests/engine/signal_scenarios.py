"""Trains in forked children that get a signal at a chosen place, and writes down how they ended.

Run as a script (`python signal_scenarios.py CONFIG FOLDER`): one process imports everything, each child is its copy.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from segtrain.cli.main import main

SECONDS = 120
# name: where the signal comes, which one, whether the whole process group gets it
SCENARIOS: dict[str, tuple[str, int, bool]] = {
    "start-up, SIGINT": ("start-up", signal.SIGINT, True),
    "start-up, SIGTERM": ("start-up", signal.SIGTERM, False),
    "start-up, SIGUSR1": ("start-up", signal.SIGUSR1, True),
    "epoch, SIGTERM to the group": ("epoch", signal.SIGTERM, True),
    "epoch, SIGUSR1 to the process": ("epoch", signal.SIGUSR1, False),
    "evaluation, SIGINT to the group": ("evaluation", signal.SIGINT, True),
    "saving, SIGUSR1 to the group": ("saving", signal.SIGUSR1, True),
    "the end, SIGTERM to the group": ("the end", signal.SIGTERM, True),
    "epoch, SIGKILL to the process": ("epoch", signal.SIGKILL, False),
}
PLACES = {
    "start-up": ("segtrain.engine.setup", "build_sampler"),
    "epoch": ("segtrain.engine.advance", "make_step"),
    "evaluation": ("segtrain.engine.train", "evaluate"),
    "saving": ("segtrain.engine.saving", "save_checkpoint"),
    "the end": ("segtrain.engine.train", "load_checkpoint"),
}
# the call at which the signal comes: step 3, the evaluation after step 4, the save after step 2, ...
CALL = {"start-up": 1, "epoch": 3, "evaluation": 1, "saving": 2, "the end": 1}


class Child:
    """What one child does and notes: it sends itself the signal, which no timing can then change."""

    def __init__(self, name: str, notes: Path) -> None:
        self.place, self.number, self.to_group = SCENARIOS[name]
        self.notes = notes
        self.found: dict[str, Any] = {"saves": [], "sent_after": 0, "workers": [], "workers_alive": None}

    def around(self, module: str, name: str, before: Callable[[], None]) -> None:
        """Have `before` called ahead of each call of a function."""
        owner = importlib.import_module(module)
        inner = getattr(owner, name)

        def outer(*args: Any, **options: Any) -> Any:
            before()
            return inner(*args, **options)

        setattr(owner, name, outer)

    def send(self) -> None:
        """Send the signal, and look whether the workers survive it."""
        workers = multiprocessing.active_children()
        self.found |= {"workers": [worker.pid for worker in workers], "sent_after": len(self.found["saves"])}
        self.write()
        if self.to_group:
            os.killpg(0, self.number)
        else:
            os.kill(os.getpid(), self.number)
        time.sleep(0.05)
        self.found["workers_alive"] = all(worker.is_alive() for worker in workers)
        self.write()

    def write(self) -> None:
        self.notes.write_text(json.dumps(self.found))

    def run(self, config: str, name: str) -> int:
        """Train through the command line, and return its exit code."""
        calls = 0

        def count() -> None:
            nonlocal calls
            calls += 1
            if calls == CALL[self.place]:
                self.send()

        def saved() -> None:
            self.found["saves"].append(time.monotonic())
            self.write()

        self.around("segtrain.engine.saving", "save_checkpoint", saved)
        self.around(*PLACES[self.place], count)
        options = {"saving": ["train.save_every_seconds=1e-9"], "the end": ["train.steps=4", "train.resume=auto"]}
        code = main(["train", config, f"name={name}", *options.get(self.place, [])])
        return code


def in_child(config: str, name: str, folder: Path) -> None:
    """Be the child: a process group and a session of its own, and the exit of a program."""
    os.setsid()
    sys.stdout = sys.stderr = (folder / f"{name}.log").open("w")
    if SCENARIOS[name][0] == "the end":  # a run that has nothing left to do but to evaluate its best checkpoint
        assert main(["train", config, f"name={run_name(name)}", "train.steps=4"]) == 0
    raise SystemExit(Child(name, folder / f"{name}.json").run(config, run_name(name)))


def run_name(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has reaped yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def all_scenarios(config: str, folder: Path) -> None:
    """Fork a child for each scenario, one after another, and write what became of them to found.json."""
    torch.set_num_threads(1)  # a forked child must not wait for threads that it does not have
    for module in ("segtrain.engine", "segtrain.report.tables", "segmentation_models_pytorch"):
        importlib.import_module(module)
    worker = importlib.import_module("torch.utils.data._utils.worker")
    worker.MP_STATUS_CHECK_INTERVAL = 0.2  # workers look every five seconds whether their parent lives
    found = {}
    for name in SCENARIOS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            in_child(config, name, folder)
        _, status = os.waitpid(pid, 0)
        assert (folder / f"{name}.json").exists(), (folder / f"{name}.log").read_text()
        notes = json.loads((folder / f"{name}.json").read_text())
        deadline = time.monotonic() + SECONDS
        while not all(map(is_gone, notes["workers"])) and time.monotonic() < deadline:
            time.sleep(0.05)
        orphans = [each for each in notes["workers"] if not is_gone(each)]
        found[name] = {**notes, "code": os.waitstatus_to_exitcode(status), "orphans": orphans}
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    all_scenarios(sys.argv[1], Path(sys.argv[2]))
