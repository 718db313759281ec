"""How often each training image is drawn: the schemes of data.sampling, from the pixels of each class per image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segtrain.config import sampling as sections
from segtrain.config.per_class import class_numbers
from segtrain.errors import ConfigError, DataError, some

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

ROWS_AT_ONCE = 65536  # of the counts: a million images need no second table of a million rows
TEMPERATURES = {"linear": 0.01, "log": 2.0}


class Scheme(Protocol):
    """Draws the images of an epoch."""

    @property
    def shares(self) -> Floats:
        """Expected share of each image in the draws, float64 [N]; their sum is 1."""

    def draw(self, count: int, generator: np.random.Generator) -> Counts:
        """Draw `count` images: int64 [count], in random order."""


class Divisible(Scheme, Protocol):
    """A scheme that goes on within a part of the images, as a quota wants it."""

    def within(self, chosen: Mask) -> Divisible:
        """The same scheme over the images where `chosen` (bool [N], at least one) is true."""


@dataclass(frozen=True, eq=False)
class Rounds:
    """Whole rounds, without luck: image i comes ⌊r_i⌋ or ⌈r_i⌉ times in each, r_i times on average.

    repeats: r_i, float64 [N]; 0 for images that never come, else at least 1.
    """

    repeats: Floats

    @property
    def shares(self) -> Floats:
        return np.asarray(self.repeats / self.repeats.sum())

    def draw(self, count: int, generator: np.random.Generator) -> Counts:
        parts: list[Counts] = []
        missing = count
        while missing > 0:
            parts.append(generator.permutation(self._one_round(generator))[:missing])
            missing -= len(parts[-1])
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def within(self, chosen: Mask) -> Rounds:
        return Rounds(np.where(chosen, self.repeats, 0.0))

    def _one_round(self, generator: np.random.Generator) -> Counts:
        times = np.floor(self.repeats)
        rest = self.repeats - times
        if rest.any():
            times += generator.random(len(times)) < rest
        return np.repeat(np.arange(len(times)), times.astype(np.int64))


@dataclass(frozen=True, eq=False)
class Weighted:
    """Independent draws with replacement, each image with its probability: float64 [N], of any sum."""

    probability: Floats

    @property
    def shares(self) -> Floats:
        return np.asarray(self.probability / self.probability.sum())

    def draw(self, count: int, generator: np.random.Generator) -> Counts:
        cumulative = np.cumsum(self.probability)
        last = np.flatnonzero(self.probability)[-1]  # rounding could lead past it
        places = np.searchsorted(cumulative, generator.random(count) * cumulative[-1], side="right")
        return np.asarray(np.minimum(places, last), np.int64)

    def within(self, chosen: Mask) -> Weighted:
        kept = np.where(chosen, self.probability, 0.0)
        return Weighted(kept if kept.any() else chosen.astype(np.float64))


@dataclass(frozen=True, eq=False)
class Exactly:
    """A share of the draws from the negatives, the rest from the positives; rounded to whole images."""

    negatives: Scheme
    positives: Scheme
    share: float

    @property
    def shares(self) -> Floats:
        return self.share * self.negatives.shares + (1 - self.share) * self.positives.shares

    def draw(self, count: int, generator: np.random.Generator) -> Counts:
        return self.draw_with(count, generator, num_negatives=round(self.share * count))

    def draw_with(self, count: int, generator: np.random.Generator, *, num_negatives: int) -> Counts:
        """Draw with exactly so many negatives."""
        negatives = self.negatives.draw(num_negatives, generator)
        positives = self.positives.draw(count - num_negatives, generator)
        return generator.permutation(np.concatenate([negatives, positives]))


@dataclass(frozen=True, eq=False)
class AtMost:
    """The draws of `free` where few enough are negatives; else as many negatives as allowed. Exact in each epoch."""

    free: Scheme
    capped: Exactly
    is_negative: Mask

    @property
    def shares(self) -> Floats:
        free = self.free.shares
        return free if free[self.is_negative].sum() <= self.capped.share else self.capped.shares

    def draw(self, count: int, generator: np.random.Generator) -> Counts:
        allowed = math.floor(self.capped.share * count + 1e-9)  # 0.29 * 100 = 28.999999999999996
        drawn = self.free.draw(count, generator)
        if self.is_negative[drawn].sum() <= allowed:
            return drawn
        return self.capped.draw_with(count, generator, num_negatives=allowed)


def uniform(section: sections.UniformSampling, counts: Counts) -> Divisible:
    """Each image once in a round."""
    return Rounds(np.ones(len(counts)))


def rare_class(section: sections.RareClassSampling, counts: Counts) -> Divisible:
    """Rare-class sampling (Hoyer, Dai & Van Gool, DAFormer, CVPR 2022, eq. 7): a class, then an image with it.

    P(c) = softmax_c((1 − f_c) / T), f_c being the share of the pixels. With T = 0.01 that tells 10 % from 1 %, but
    not 1e-4 from 1e-6: `weighting: log` takes softmax_c(−log f_c / T) = f_c^(−1/T) / Σ instead. The image is drawn
    evenly among those that hold at least min_pixels of the class; where none does, among all that hold it. A class
    without a pixel is never drawn.
    """
    return Weighted(_through_classes(counts, class_probability(section, counts), min_pixels=section.min_pixels))


def class_probability(section: sections.RareClassSampling, counts: Counts) -> Floats:
    """P(c) of rare-class sampling, float64 [C]; 0 for classes without a pixel."""
    pixels = counts[:, :-1].sum(axis=0)
    share = pixels / pixels.sum()
    temperature = section.temperature or TEMPERATURES[section.weighting]
    score = np.full(len(share), -np.inf)
    present = share > 0
    score[present] = (1 - share[present] if section.weighting == "linear" else -np.log(share[present])) / temperature
    weight = np.exp(score - score.max())
    return np.asarray(weight / weight.sum())


def class_uniform(section: sections.ClassUniformSampling, counts: Counts) -> Divisible:
    """Weights Σ_{c in image} 1/N_c, N_c images with c, drawn with replacement as WeightedRandomSampler draws."""
    present = counts[:, :-1].any(axis=0)
    return Weighted(_through_classes(counts, present / present.sum(), min_pixels=1))


def repeat_factor(section: sections.RepeatFactorSampling, counts: Counts) -> Divisible:
    """Repeat factors (Gupta, Dollár & Girshick, LVIS, CVPR 2019): r_c = max(1, √(t / f_c)), r_i = max_{c in i} r_c.

    f_c is the share of the images that hold c. The fractional part of r_i is drawn anew for each round.
    """
    images = sum((part > 0).sum(axis=0) for part in _blocks(counts))
    share = np.maximum(images, 1) / len(counts)
    factor = np.maximum(1.0, np.sqrt(section.threshold / share))
    return Rounds(np.concatenate([np.where(part > 0, factor, 1.0).max(axis=1) for part in _blocks(counts)]))


SCHEMES: dict[str, Callable[[Any, Counts], Divisible]] = {
    "uniform": uniform,
    "rare_class": rare_class,
    "repeat_factor": repeat_factor,
    "class_uniform": class_uniform,
}


def build_scheme(section: sections.SamplingConfig, counts: Counts, *, class_names: Sequence[str]) -> Scheme:
    """Turn data.sampling into a scheme.

    Args:
        section: the section.
        counts: pixels of each class in each image, int64 [N, C + 1]; the last column counts ignored pixels.
        class_names: in class order.

    Raises:
        DataError: no labelled pixel where classes decide, or a quota that the images cannot fill.
    """
    if section.name != "uniform" and not counts[:, :-1].any():
        raise DataError(f"data.sampling: {section.name} goes by classes, and the training masks hold not one pixel")
    scheme = SCHEMES[section.name](section, counts)
    return scheme if section.negatives is None else _with_quota(scheme, section.negatives, counts, class_names)


def _with_quota(
    scheme: Divisible, quota: sections.NegativesConfig, counts: Counts, class_names: Sequence[str]
) -> Scheme:
    chosen = chosen_classes(quota.classes, counts.sum(axis=0)[:-1], class_names, key="data.sampling.negatives.classes")
    negative = np.asarray((counts[:, list(chosen)] == 0).all(axis=1))
    names = some([class_names[c] for c in chosen], limit=5)
    if negative.all():
        raise DataError(f"data.sampling.negatives: no training image holds {names}, so there is no positive image")
    share = quota.at_most if quota.exactly is None else quota.exactly
    assert share is not None
    if not negative.any():
        if quota.exactly:
            raise DataError(f"data.sampling.negatives.exactly: {share}, and every training image holds one of {names}")
        return scheme
    exactly = Exactly(scheme.within(negative), scheme.within(~negative), share)
    return exactly if quota.exactly is not None else AtMost(scheme, exactly, negative)


def chosen_classes(
    choice: sections.ClassChoice, pixels: Counts, class_names: Sequence[str], *, key: str
) -> tuple[int, ...]:
    """Class numbers of a choice: `rare` is the rarest third of the classes with pixels (int64 [C]), rarest first.

    Raises:
        ConfigError: a name or number that is none of the classes.
    """
    if choice == "rare":
        present = [int(c) for c in np.argsort(pixels, kind="stable") if pixels[c] > 0]
        return tuple(present[: math.ceil(len(present) / 3 - 1e-9)])
    try:
        return class_numbers(choice, num_classes=len(class_names), class_names=class_names, key=key)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _through_classes(counts: Counts, class_probability: Floats, *, min_pixels: int) -> Floats:
    """p_i = Σ_c P(c) [i is a candidate of c] / candidates of c, float64 [N]: a class, then one of its images."""
    fewest = np.where(counts[:, :-1].max(axis=0) >= min_pixels, min_pixels, 1)
    candidates = sum((part >= fewest).sum(axis=0) for part in _blocks(counts))
    each = class_probability / np.maximum(candidates, 1)
    return np.concatenate([(part >= fewest) @ each for part in _blocks(counts)])


def _blocks(counts: Counts) -> list[Counts]:
    return [counts[start : start + ROWS_AT_ONCE, :-1] for start in range(0, len(counts), ROWS_AT_ONCE)]
