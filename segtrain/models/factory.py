"""Models from their configuration: names looked up, networks built and tried, weights started."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn

from segtrain.config.schema import ModelConfig
from segtrain.errors import ConfigError, nearest, suggest
from segtrain.models.network import SegmentationModel
from segtrain.models.prior_bias import set_prior_bias
from segtrain.models.weights import load_encoder, load_matching

if TYPE_CHECKING:
    from segtrain.data.frequencies import ClassFrequencies

ARCHITECTURES: dict[str, type[nn.Module]] = smp.MODEL_ARCHITECTURES_MAPPING
# What the rest of the configuration decides, or what would make the output something else than logits.
FIXED_PARAMS = frozenset(
    {"self", "kwargs", "encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params"}
)
# Arguments that pass on to timm encoders. A list, because others (checkpoint_path, pretrained_cfg) would fetch files.
TIMM_PARAMS = frozenset({"img_size", "dynamic_img_size", "strict_img_size", "drop_rate", "drop_path_rate"})
# What wrong values raise deep inside smp, timm and torch: caught around their code alone, never around ours.
BUILD_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def build_model(
    model: ModelConfig,
    num_classes: int,
    *,
    frequencies: ClassFrequencies | None = None,
    load_weights: bool = True,
    coarse: bool = False,
) -> SegmentationModel:
    """Build the model that a configuration names; random weights follow torch's global seed.

    Args:
        model: the section `model` of the configuration.
        num_classes: number of channels of the logits.
        frequencies: class frequencies of the training split, which `prior_bias` needs.
        load_weights: False skips encoder_weights, init_from and prior_bias: the caller loads a whole checkpoint,
            which needs neither network nor the files of the first training.
        coarse: take the bilinear upsampling out of the head: the model gives coarse logits in training mode, and
            enlarges them itself otherwise, with corners not aligned (smp's heads align them).

    Raises:
        ConfigError: a name is unknown, a parameter is wrong, or the weights do not fit or cannot be fetched.
        CheckpointError: a file of weights cannot be read.
    """
    _check_encoder(model.encoder)
    weights_file = _weights_file(model)
    hub_weights = model.encoder_weights if load_weights and weights_file is None else None
    network = _construct(model, num_classes, hub_weights=hub_weights)
    upsampling = _take_upsampling(network, model) if coarse else 1
    stride = _stride(network, model.arch)
    min_size, unused = _try(network, model, stride=stride, upsampling=upsampling)
    for _, parameter in unused:
        # Without a gradient they would stall DistributedDataParallel and count as trained.
        parameter.requires_grad_(False)
    built = SegmentationModel(
        network,
        in_channels=model.in_channels,
        num_classes=num_classes,
        stride=stride,
        min_size=min_size,
        freeze=model.freeze,
        upsampling=upsampling,
    )
    if unused:
        parts = sorted({".".join(name.split(".")[:2]) for name, _ in unused})
        built.init_report.append(f"{len(unused)} parameters take no part in the output: {', '.join(parts)}")
    if load_weights:
        _start(built, model, weights_file=weights_file, frequencies=frequencies)
    return built


def _start(
    built: SegmentationModel, model: ModelConfig, *, weights_file: Path | None, frequencies: ClassFrequencies | None
) -> None:
    """Set the first weights from files and frequencies, and report it."""
    taken: set[str] = set()
    if weights_file is not None:
        built.init_report += load_encoder(
            built.encoder, weights_file, name=model.encoder, in_channels=model.in_channels
        )
    if model.init_from is not None:
        taken, lines = load_matching(built, Path(model.init_from))
        built.init_report += lines
    if model.prior_bias:
        bias = next(name for name, value in built.named_parameters() if value is built.classifier.bias)
        if bias.removeprefix("network.") in taken:
            built.init_report.append("prior_bias: skipped, because init_from brought a trained bias")
        else:
            set_prior_bias(built.classifier, frequencies)
            built.init_report.append("prior_bias: the output bias starts at the log of the class shares")
    if "encoder" in model.freeze and model.encoder_weights is None and model.init_from is None:
        built.init_report.append("freeze: the frozen encoder has random weights; give encoder_weights or init_from")


def _construct(model: ModelConfig, num_classes: int, *, hub_weights: str | None) -> nn.Module:
    architecture = _architecture(model.arch)
    params = _params(model, architecture)
    if hub_weights is not None:
        _check_hub_weights(model.encoder, hub_weights)
    # For timm's encoders smp wants True instead of a name; the variant is part of the encoder's name.
    weights = True if hub_weights is not None and model.encoder.startswith("tu-") else hub_weights
    try:
        return architecture(
            encoder_name=model.encoder,
            encoder_weights=weights,
            in_channels=model.in_channels,
            classes=num_classes,
            **params,
        )
    except OSError as error:
        if hub_weights is None:
            raise
        raise ConfigError(
            f"model.encoder_weights: {hub_weights!r} of {model.encoder} cannot be fetched ({_cause(error)}): check the "
            "network, or give a local file of the encoder's weights, or null"
        ) from error
    except torch.OutOfMemoryError:
        raise
    except BUILD_ERRORS as error:
        raise ConfigError(_refusal(model, error)) from error


def _take_upsampling(network: nn.Module, model: ModelConfig) -> int:
    """Take the upsampling out of the network's head, and return its factor."""
    head: Any = network.segmentation_head
    for name, module in head.named_children():
        factor = getattr(module, "scale_factor", None)
        if not isinstance(module, nn.Upsample) or module.mode != "bilinear" or not isinstance(factor, int | float):
            continue
        if factor != int(factor):
            raise ConfigError(f"loss.fused_upsample: the head of {model.arch} enlarges {factor} times, no whole number")
        setattr(head, name, nn.Identity())
        return int(factor)
    raise ConfigError(
        f"loss.fused_upsample: the logits of {model.arch} are made at full size, there is no upsampling in its head to "
        "fuse: drop it, or take fpn, deeplabv3, deeplabv3plus, pan, pspnet, segformer or upernet"
    )


def _stride(network: nn.Module, arch: str) -> int:
    """What height and width must be divisible by, in pixels."""
    encoder: Any = network.encoder
    stride = int(encoder.output_stride)
    if arch.lower() == "dpt":
        # DPT halves the coarsest of its maps once more for each level, whatever the patch size of the encoder.
        return math.lcm(stride, 2 ** (len(encoder.out_channels) + 1))
    return stride


def _try(
    network: nn.Module, model: ModelConfig, *, stride: int, upsampling: int
) -> tuple[tuple[int, int], list[tuple[str, nn.Parameter]]]:
    """Run the network on the smallest image it takes, so that wrong sizes are found before the data are read.

    Returns:
        The smallest (height, width), and the parameters on which the output does not depend.
    """
    network.eval()
    sizes = [(stride * multiple, stride * multiple) for multiple in (1, 2, 4, 8)]
    if (fixed := model.params.get("img_size")) is not None:
        sizes.append((fixed, fixed) if isinstance(fixed, int) else tuple(fixed))
    causes: list[Exception] = []
    for size in sizes:
        try:
            with torch.enable_grad():
                logits = network(torch.zeros(1, model.in_channels, *size))
        except torch.OutOfMemoryError:
            raise
        except BUILD_ERRORS as error:
            causes.append(error)
            continue
        if tuple(length * upsampling for length in logits.shape[-2:]) != size:
            raise ConfigError(_refusal(model, f"logits of {list(logits.shape[-2:])} for an image of {list(size)}"))
        parameters = dict(network.named_parameters())
        gradients = torch.autograd.grad(logits.sum(), list(parameters.values()), allow_unused=True)
        network.train()
        return size, [item for item, gradient in zip(parameters.items(), gradients, strict=True) if gradient is None]
    raise ConfigError(_refusal(model, causes[-1])) from causes[-1]


def _architecture(name: str) -> type[nn.Module]:
    if name.lower() not in ARCHITECTURES:
        raise ConfigError(f"model.arch: {name!r} is unknown; {_listed(ARCHITECTURES)}{suggest(name, ARCHITECTURES)}")
    return ARCHITECTURES[name.lower()]


def _check_encoder(name: str) -> None:
    own = smp.encoders.get_encoder_names()
    # The part before the first dot names the timm model, the part after it the weights; never a hub address.
    if name in own or (name.startswith("tu-") and name[3:].split(".")[0] in timm.list_models()):
        return
    others = [f"tu-{other}" for other in timm.list_models()]
    likest = nearest(name, [*own, *others], limit=5, cutoff=0.5) or ["resnet18", "tu-convnext_tiny"]
    raise ConfigError(
        f"model.encoder: {name!r} is unknown; nearest of {len(own)} encoders of smp and {len(others)} of timm "
        f"(tu-<name>): {', '.join(likest)}"
    )


def _weights_file(model: ModelConfig) -> Path | None:
    """The local file that encoder_weights names, or None for null and for names of the hub."""
    if model.encoder_weights is None or model.encoder_weights in _hub_names(model.encoder):
        return None
    path = Path(model.encoder_weights)
    return path if path.suffix or len(path.parts) > 1 or path.is_file() else None


def _hub_names(encoder: str) -> list[str]:
    if encoder.startswith("tu-"):
        return ["imagenet"]
    return list(smp.encoders.encoders[encoder]["pretrained_settings"])


def _check_hub_weights(encoder: str, weights: str) -> None:
    names = _hub_names(encoder)
    if weights not in names:
        variant = "; other variants are named by the encoder: tu-<name>.<tag>" if encoder.startswith("tu-") else ""
        raise ConfigError(
            f"model.encoder_weights: {encoder} has no {weights!r}; {_listed(names)}, null or a local file{variant}"
            f"{suggest(weights, names)}"
        )
    if encoder.startswith("tu-") and not timm.is_model_pretrained(encoder[3:]):
        raise ConfigError(f"model.encoder_weights: timm has no weights for {encoder}: give null or a local file")


def _params(model: ModelConfig, architecture: type[nn.Module]) -> dict[str, Any]:
    own = [name for name in inspect.signature(architecture.__init__).parameters if name not in FIXED_PARAMS]
    is_timm = model.encoder.startswith("tu-")
    known = [*own, *(sorted(TIMM_PARAMS) if is_timm else ())]
    for name in model.params:
        if name in FIXED_PARAMS:
            raise ConfigError(f"model.params.{name} is set by segtrain: drop it; {_listed(known)}")
        if name not in known:
            raise ConfigError(
                f"model.params.{name}: {model.arch} with {model.encoder} has no such argument; {_listed(known)}"
                f"{suggest(name, known)}"
            )
    if architecture is not smp.DPT or not is_timm or {"img_size", "dynamic_img_size"} & set(model.params):
        return dict(model.params)
    # Vision transformers of timm take one image size only unless told otherwise.
    return {**model.params, **({"dynamic_img_size": True} if _can_be_dynamic(model.encoder[3:]) else {})}


def _can_be_dynamic(name: str) -> bool:
    try:
        with torch.device("meta"):
            timm.create_model(name, pretrained=False, dynamic_img_size=True)
    except BUILD_ERRORS:
        return False  # what else is wrong with the name, building the network says
    return True


def _refusal(model: ModelConfig, error: Exception | str) -> str:
    params = ", ".join(f"{key}: {_plain(value)}" for key, value in model.params.items()) or "none"
    cause = _cause(error)
    advice = "check model.params, or take another encoder"
    if "doesn't match model" in cause:
        advice = "this encoder is made for one image size: give model.params.img_size, or take another encoder"
    return f"model: {model.arch} with encoder {model.encoder} (params: {params}) cannot be built: {cause}; {advice}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _cause(error: Exception | str) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, str) else f"{type(error).__name__}: {text}"


def _listed(names: Iterable[str]) -> str:
    return f"known: {', '.join(names)}"
