"""What the kernels are made of: runs of pixels, labels, ranks of hard pixels, and memory in large pages."""

from __future__ import annotations

import mmap

import pytest
import torch

from segtrain.errors import DataError
from segtrain.kernels import mining, pages
from segtrain.kernels.labels import check_labels, count, to_buckets
from segtrain.kernels.mining import HardExamples
from segtrain.kernels.rows import few_rows, memory, runs, share_out


@pytest.mark.parametrize(("images", "pixels", "channels"), [(1, 1, 1), (3, 35, 2), (2, 100_001, 19), (5, 9000, 300)])
def test_runs_cover_each_pixel_once(images: int, pixels: int, channels: int) -> None:
    seen = torch.zeros(images, pixels, dtype=torch.int64)
    for image, start, stop in runs(images, pixels, channels=channels):
        seen[image, start:stop] += 1
    assert bool((seen == 1).all())
    assert not list(runs(0, pixels, channels=channels))
    assert not list(runs(images, 0, channels=channels))


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_in_a_thread_is_raised(threads: int) -> None:
    def work(job: int) -> None:
        if job == 5:
            raise ValueError("job 5")

    torch.set_num_threads(threads)
    try:
        with pytest.raises(ValueError, match="job 5"):
            share_out(work, range(8))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_memory_starts_at_the_first_element_and_shows_halves_as_integers(dtype: torch.dtype) -> None:
    values = torch.arange(24.0).to(dtype).view(2, 3, 4)[1, :, 1:3]
    seen = torch.from_numpy(memory(values)).view(dtype)
    assert seen[0] == values[0, 0]
    assert len(seen) == 2 * 4 + 2
    assert len(memory(values[:0])) == 0


def test_rows_are_joined_where_strides_allow_it_and_only_there() -> None:
    logits = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    for same in (logits, logits.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(few_rows(same).flatten(2), logits.flatten(2))
        assert few_rows(same).data_ptr() == same.data_ptr()
    crop = logits[..., 1:4]
    assert few_rows(crop).shape == crop.shape


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("ignore_index", [255, 100, 4])
def test_counts_and_buckets_of_any_integer_type(dtype: torch.dtype, ignore_index: int) -> None:
    target = torch.tensor([[0, 3, 3, ignore_index], [1, 1, ignore_index, ignore_index]]).to(dtype)
    buckets = to_buckets(target, num_classes=4, ignore_index=ignore_index)
    assert buckets.tolist() == [[0, 3, 3, 4], [1, 1, 4, 4]]
    assert count(buckets, num_buckets=4, weight=None).tolist() == [[1, 0, 0, 2], [0, 2, 0, 0]]


@pytest.mark.parametrize("num_classes", [1, 19, 127, 128, 255])
@pytest.mark.parametrize("pixels", [1, 2, 999, 1000])
def test_bytes_are_counted_as_other_integers_are(num_classes: int, pixels: int) -> None:
    generator = torch.Generator().manual_seed(pixels)
    buckets = torch.randint(0, num_classes + 1, (3, pixels + 1), generator=generator)[:, 1:]
    counted = count(buckets.to(torch.uint8), num_buckets=num_classes, weight=None)
    assert torch.equal(counted, count(buckets, num_buckets=num_classes, weight=None))
    odd_start = torch.cat((buckets[0, :1], buckets[0])).to(torch.uint8)[1:].unsqueeze(0)
    assert torch.equal(count(odd_start, num_buckets=num_classes, weight=None), counted[:1])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("wrong", [4, 200, 254])
def test_a_label_out_of_range_is_found_by_the_check(dtype: torch.dtype, wrong: int) -> None:
    target = torch.tensor([[0, 3, wrong, 255]]).to(dtype)
    with pytest.raises(DataError, match=rf"{wrong} \(1 pixels\)"):
        check_labels(target, num_classes=4, ignore_index=255)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("top_k", [1e-5, 0.01, 0.5, 0.999])
def test_ranks_by_histogram_are_those_by_sorting(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, top_k: float
) -> None:
    generator = torch.Generator().manual_seed(3)
    loss = torch.rand(2, 30_000, generator=generator, dtype=dtype).pow(8)
    loss[:, ::7] = 0.25  # ties
    buckets = torch.randint(0, 4, loss.shape, generator=generator)
    monkeypatch.setattr(mining, "WORTH_A_HISTOGRAM", 1)
    fast = HardExamples(top_k=top_k)(loss, buckets, num_buckets=3)
    monkeypatch.setattr(mining, "WORTH_A_HISTOGRAM", 10**9)
    assert torch.equal(fast, HardExamples(top_k=top_k)(loss, buckets, num_buckets=3))


@pytest.mark.parametrize("format_", [torch.contiguous_format, torch.channels_last])
def test_memory_in_large_pages_is_a_tensor_like_any_other(
    monkeypatch: pytest.MonkeyPatch, format_: torch.memory_format
) -> None:
    monkeypatch.setattr(pages, "WORTH_IT", 1)
    values = torch.randn(2, 3, 40, 50).contiguous(memory_format=format_)
    made = pages.empty_like(values)
    assert (made.shape, made.dtype, made.stride()) == (values.shape, values.dtype, values.stride())
    made.copy_(values)
    clone = made.clone()
    del made
    assert torch.equal(clone, values)


def test_memory_is_plain_where_the_system_has_no_large_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "WORTH_IT", 1)
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert pages.empty_like(torch.zeros(4, 5)).shape == (4, 5)


def test_memory_is_plain_where_the_kernel_refuses_large_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise OSError("Invalid argument")

    monkeypatch.setattr(pages, "WORTH_IT", 1)
    monkeypatch.setattr(mmap, "mmap", Refused)
    assert pages.empty_like(torch.zeros(4, 5)).shape == (4, 5)
