"""The Triton class sums on a GPU: the plain sums' values, no wait, CUDA graphs, large images, several devices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from segtrain.kernels import class_sums as ops
from segtrain.kernels.mining import HardExamples
from segtrain.kernels.request import SUMS, Inputs, Request, encode_mining
from segtrain.losses import build_loss
from segtrain.losses.class_sums import PREDICTIONS, ClassSums, class_sums, fused_sums, target_pixels
from segtrain.losses.plain_sums import plain_sums

# of torch, the first time that it is asked to tell of waits
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")]
HEADLINE = {"terms": [{"name": "cross_entropy"}, {"name": "focal"}, {"name": "dice"}], "ohem": {"threshold": 0.7}}


def on_gpu(
    *, classes: int = 19, size: tuple[int, int] = (67, 91), dtype: torch.dtype = torch.float32, last: bool = False
) -> tuple[Tensor, Tensor]:
    """Return logits and a uint8 target on the GPU, a fifth of it ignored, with NaN under an ignored pixel."""
    generator = torch.Generator("cuda").manual_seed(0)
    logits = torch.randn((2, classes, *size), generator=generator, device="cuda").mul_(3).to(dtype)
    target = torch.randint(0, classes, (2, *size), generator=generator, device="cuda").to(torch.uint8)
    target[torch.rand(target.shape, generator=generator, device="cuda") < 0.2] = 255
    target[0, 0, 0] = 255
    logits[0, :, 0, 0] = float("nan")
    return (logits.contiguous(memory_format=torch.channels_last) if last else logits).requires_grad_(), target


@pytest.mark.parametrize("classes", [1, 2, 3, 11, 19, 24, 25, 64, 65, 150])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gpu_sums_what_the_plain_form_does(classes: int, last: bool, dtype: torch.dtype) -> None:
    logits, target = on_gpu(classes=classes, dtype=dtype, last=last)
    inputs, request = Inputs(logits, target), Request(SUMS, False, 255, (2.0,), 1.0)
    double = logits.detach().nan_to_num(0.0).double().requires_grad_()
    found, exact = fused_sums(inputs, request), plain_sums(replace(inputs, logits=double), request)
    for name, value in exact.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-5, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    scale = torch.linspace(-1, 2, 2 * classes, dtype=torch.float64, device="cuda").view(2, classes)
    (grad,) = torch.autograd.grad(sum((found[name] * scale).sum() for name in SUMS), logits)
    (expected,) = torch.autograd.grad(sum((exact[name] * scale).sum() for name in SUMS), double)
    assert grad.stride() == logits.stride()
    torch.testing.assert_close(grad.double(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-4)


@pytest.mark.parametrize("last", [False, True])
def test_the_gpu_sums_sigmoids_as_the_plain_form_does(last: bool) -> None:
    logits, target = on_gpu(classes=5, last=last)
    target = torch.where(target == 255, 255, target % 2).to(torch.uint8).unsqueeze(1).repeat(1, 5, 1, 1)
    inputs, request = Inputs(logits, target), Request(SUMS[:-1], True, 255, (1.5,), 1.0)
    double = logits.detach().nan_to_num(0.0).double().requires_grad_()
    found, exact = fused_sums(inputs, request), plain_sums(replace(inputs, logits=double), request)
    for name, value in exact.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-4)
    names = [name for name in exact if exact[name].requires_grad]
    (grad,) = torch.autograd.grad(sum(found[name].sum() for name in names), logits)
    (expected,) = torch.autograd.grad(sum(exact[name].sum() for name in names), double)
    torch.testing.assert_close(grad.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "rule",
    [
        HardExamples(threshold=0.5, min_kept=0.1),
        HardExamples(threshold=1e-6, min_kept=0.3),
        HardExamples(top_k=0.25),
        HardExamples(top_k=0.25, per_class=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("classes", [4, 40])
def test_the_gpu_mines_exactly_as_many_pixels_and_equally_each_time(rule: HardExamples, classes: int) -> None:
    logits, target = on_gpu(classes=classes)
    request = Request(SUMS, False, 255, (2.0,), 1.0, encode_mining(rule))
    arguments = (list(range(len(SUMS))), False, 255, [2.0], 1.0, list(request.mining), False)
    first = ops.class_sums(logits, target, None, None, None, None, *arguments)
    second = ops.class_sums(logits, target, None, None, None, None, *arguments)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    exact = plain_sums(Inputs(logits.detach().nan_to_num(0.0).double(), target), request)
    torch.testing.assert_close(first[1][1], exact["kept"], rtol=0, atol=0)
    torch.testing.assert_close(first[0][3], exact["cross_entropy"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("classes", [1, 2, 19, 25, 150])
@pytest.mark.parametrize("last", [False, True])
def test_the_gpu_counts_the_largest_logits_as_torch_finds_them(classes: int, last: bool) -> None:
    logits, target = on_gpu(classes=classes, last=last)
    with torch.no_grad():
        logits.round_()  # ties
        logits[1, classes // 2, 5] = torch.nan
    request = Request(("cross_entropy",), False, 255, (2.0,), 1.0, predictions=True)
    found, exact = (make(Inputs(logits, target), request) for make in (fused_sums, plain_sums))
    for name in PREDICTIONS:
        assert torch.equal(found[name], exact[name])


@pytest.mark.parametrize("classes", [5, 40])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_the_gradient_of_a_slice_is_that_of_its_copy(classes: int, sigmoid: bool) -> None:
    logits, target = on_gpu(classes=classes)
    target = (target == 1).to(torch.uint8).unsqueeze(1).expand(logits.shape) if sigmoid else target
    whole = logits.detach().nan_to_num(0.0)
    request = Request(("probability", "cross_entropy"), sigmoid, 255, (2.0,), 1.0)

    def gradient(values: Tensor) -> Tensor:
        leaf = values.detach().requires_grad_()
        sums = fused_sums(Inputs(leaf, target), request)
        return torch.autograd.grad(sums["cross_entropy"].sum() + sums["probability"][:, 0].sum(), leaf)[0]

    expected = gradient(whole)
    wider = torch.cat((whole, whole), dim=1)
    for sliced in (wider[:, :classes], whole.repeat_interleave(2, 0)[::2]):
        assert torch.equal(gradient(sliced), expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_kernels_run_on_the_device_of_their_tensors() -> None:
    logits, target = on_gpu(classes=5)
    loss = build_loss(HEADLINE, num_classes=5)

    def gradient(device: str) -> Tensor:
        leaf = logits.detach().to(device).requires_grad_()
        return torch.autograd.grad(loss.to(device)(leaf, target.to(device)), leaf)[0]

    with torch.cuda.device(0):
        assert torch.equal(gradient("cuda:1").cpu(), gradient("cuda:0").cpu())


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """An error wherever the host waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("ohem", [{"threshold": 0.7}, {"top_k": 0.25}, {"top_k": 0.25, "per_class": True}])
def test_a_loss_on_the_gpu_never_waits_and_is_captured_in_a_graph(ohem: dict[str, object]) -> None:
    loss = build_loss(HEADLINE | {"ohem": ohem}, num_classes=19).cuda()
    logits, target = on_gpu(dtype=torch.bfloat16)
    seen: list[ClassSums] = []

    def run() -> Tensor:
        total = loss.terms(logits, target, observe=seen.append, also=PREDICTIONS)["total"]
        return torch.autograd.grad(total, logits)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        expected = run()
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        grad = run()
    grad.fill_(7.0)
    graph.replay()
    assert torch.equal(grad, expected)
    for first, captured in zip(vars(seen[0]).values(), vars(seen[-1]).values(), strict=True):
        assert (first is None) == (captured is None)
        assert first is None or torch.equal(first, captured)


@pytest.mark.usefixtures("no_waiting")
def test_exponents_by_class_reach_the_gpu_without_a_wait() -> None:
    logits, target = on_gpu(classes=5)
    class_sums(logits, target, gamma=[0.0, 0.5, 1.0, 2.0, 3.0])


@pytest.mark.parametrize("last", [False, True])
def test_images_beyond_two_billion_elements_are_summed_on_the_gpu(last: bool) -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < 14 * 2**30:
        pytest.skip("needs 14 GiB of free GPU memory")
    height = 2**15 + 1
    logits = torch.zeros((1, 2, height, 2**15), dtype=torch.bfloat16, device="cuda")
    logits = (logits.contiguous(memory_format=torch.channels_last) if last else logits).requires_grad_()
    target = torch.zeros((1, height, 2**15), dtype=torch.uint8, device="cuda")
    sums = class_sums(logits, target, wanted=("cross_entropy",))
    assert sums.pixels.tolist() == [[height * 2**15, 0]]
    assert sums.cross_entropy is not None
    assert sums.cross_entropy[0, 0].item() == pytest.approx(height * 2**15 * 0.6931471805599453, rel=1e-5)
    sums.cross_entropy.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, :, -1, -1].tolist() == [-0.5, 0.5]
    assert logits.grad[0, :, 0, 0].tolist() == [-0.5, 0.5]


def test_a_compiled_loss_on_the_gpu_is_one_graph() -> None:
    loss = build_loss(HEADLINE, num_classes=19).cuda()
    logits, target = on_gpu()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, target), loss(logits, target))


@pytest.mark.parametrize("classes", [2, 8, 19, 150])
@pytest.mark.parametrize("ohem", [None, {"top_k": 0.25}])
def test_coarse_logits_are_summed_as_interpolated_ones_are(classes: int, ohem: dict[str, float] | None) -> None:
    coarse, _ = on_gpu(classes=classes, size=(17, 23))
    coarse = coarse.detach().nan_to_num(0.0).requires_grad_()
    target = torch.randint(0, classes, (2, 65, 90), device="cuda").to(torch.uint8)
    section = {"terms": [{"name": "cross_entropy"}, {"name": "dice"}], "ohem": ohem}
    full = torch.nn.functional.interpolate(coarse, size=(65, 90), mode="bilinear", align_corners=False)
    plain, fused = (build_loss(section | more, num_classes=classes) for more in ({}, {"fused_upsample": True}))
    values = plain(full, target), fused(coarse, target)
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-5)
    expected, found = (torch.autograd.grad(value, coarse)[0] for value in values)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("classes", [2, 19, 150])
def test_the_pixels_of_a_target_are_counted_without_a_wait(classes: int) -> None:
    logits, target = on_gpu(classes=classes)
    found = target_pixels(target, num_classes=classes, ignore_index=255)
    expected = class_sums(logits, target, wanted=()).pixels
    torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found, expected)
