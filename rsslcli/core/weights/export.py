"""Exporting a classifier as an ONNX or torch.export program, or as safetensors; checked before writing."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rsslcli.core.errors import RsslError, UserError, sanitize
from rsslcli.core.evaluation.class_names import carried_names, check_names, networks_in
from rsslcli.core.files import quietly, replacing
from rsslcli.core.networks.normalization import HALF
from rsslcli.core.networks.wide_resnet import WideResNet

#: The packages that each format needs.
PACKAGES = {".onnx": ("onnx", "onnxscript"), ".pt2": (), ".safetensors": ("safetensors",)}
SUFFIXES = tuple(PACKAGES)
#: Largest allowed difference of a score from the network's, relative to the largest score.
TOLERANCE = 1e-4
_OTHER_FLOATS = (torch.float16, torch.bfloat16, torch.float64)
#: Name of the description in a .pt2 file; in other files its entries are metadata.
DESCRIPTION = "rssl.json"


@dataclass(frozen=True)
class Exported:
    """The result of an export."""

    path: Path  #: the file
    image_size: int  #: height and width of the images that the program takes, in pixels
    #: the largest difference of a score from the network's on random images, relative to the largest score;
    #: None if nothing installed here can run the program
    difference: float | None


def check_export(path: Path) -> None:
    """Check, before anything is loaded, that the format of `path` can be written here.

    Raises:
        UserError: the suffix is none of `SUFFIXES`, or a package that the format needs is missing.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: the name must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    missing = [name for name in PACKAGES[path.suffix] if not _installed(name)]
    if missing:
        extra = path.suffix[1:]
        raise UserError(f"{path} needs the package {' and '.join(missing)}: pip install 'rsslcli[{extra}]'")


def preprocessing(path: Path, size: int) -> dict[str, Any]:
    """How an image becomes the input of the classifier in this file, as its metadata says it."""
    return {
        "size": [size, size],
        "fit": "the center square, scaled with antialiasing (Lanczos)",
        "channels": "RGB",
        "layout": "NCHW",
        "dtype": "float32",
        "range": [0.0, 1.0],
        "normalization": "(x - mu) / sigma, tensors of the file"
        if path.suffix == ".safetensors"
        else "none: the program includes it",
    }


def export_classifier(
    network: nn.Module,
    path: Path | str,
    *,
    classes: Sequence[str] | None = None,
    image_size: int | None = None,
    about: Mapping[str, str] | None = None,
) -> Exported:
    """Write `network` to `path` as an ONNX (.onnx) or torch.export (.pt2) program, or as .safetensors.

    The program takes `images`, float32 (N, 3, S, S) in [0, 1] with any N, and returns `scores`, float32
    (N, classes); it includes the normalization. Before it is written, it is run on random images and compared
    with `network`, for ONNX only if onnxruntime is installed.

    A .safetensors file has the weights of a WideResNet by the names of its public checkpoints, and the
    normalization as `mu` and `sigma`; `load_classifier` reads it.

    All have metadata: class names and how to prepare an image, see docs/python.md.

    Args:
        network: maps such images to such scores; it is switched to evaluation mode. If it is on another
            device or in another precision, a float32 copy on the CPU is exported.
        path: the file to write.
        classes: class names in the order of the scores, for the file's metadata. By default those that a
            network of ours in `network` carries, such as a `Classifier`'s.
        image_size: S, in pixels. By default that on which a network of ours in `network` trained, or else
            that for which it is built; 32 without such a network.
        about: other entries of its metadata.

    Raises:
        UserError: see `check_export`; or the number of class names is not that of the scores.
        RsslError: the export fails, or the program computes different scores; nothing is written.
    """
    path = Path(path)
    check_export(path)
    size = size_for(network) if image_size is None else image_size
    described = {
        "input": f"images: float32 (N, 3, {size}, {size}), RGB in [0, 1]",
        "output": "scores",
        "preprocessing": json.dumps(preprocessing(path, size)),
        **(about or {}),
    }
    # A program for any device is made on the CPU.
    tensors = (*network.parameters(), *network.buffers())
    if any(each.device.type != "cpu" or each.dtype in _OTHER_FLOATS for each in tensors):
        network = copy.deepcopy(network).cpu().float()
    network = network.eval()
    outputs = _outputs(network, size, path)
    if classes is None:
        classes = carried_names(network, outputs) or None
    if classes is not None:
        check_names(classes, outputs)
        described["classes"] = json.dumps(list(classes), ensure_ascii=False)
    formats: dict[str, Callable[[nn.Module, int, Mapping[str, str]], tuple[bytes, Program | None]]] = {
        ".onnx": _onnx,
        ".pt2": _torch_export,
        ".safetensors": _safetensors,
    }
    with _silence():
        try:
            data, run = formats[path.suffix](network, size, described)
            difference = None if run is None else _difference(network, size, run)
        except UserError:
            raise
        except Exception as error:  # the exporters raise almost anything
            advice = "change that in the network, or keep its state_dict alone, with torch.save"
            raise RsslError(f"{path} cannot be made: {_reason(error)}: {advice}") from None
    if difference is not None and not difference < TOLERANCE:
        raise RsslError(f"{path} is not written: its scores are off by {difference:.2g} of the largest score")
    with replacing(path) as file:
        file.write(data)
    return Exported(path, size, difference)


Program = Callable[[Tensor], Tensor]


def _torch_export(network: nn.Module, size: int, described: Mapping[str, str]) -> tuple[bytes, Program]:
    """Export to the bytes of a .pt2 file; also return a function that runs them."""
    file = io.BytesIO()
    program = torch.export.export(network, (_images(2, size),), dynamic_shapes=_any_batch())
    torch.export.save(program, file, extra_files={DESCRIPTION: json.dumps(described, ensure_ascii=False)})
    module = torch.export.load(io.BytesIO(file.getvalue())).module()
    return file.getvalue(), module


def _onnx(network: nn.Module, size: int, described: Mapping[str, str]) -> tuple[bytes, Program | None]:
    """Export to the bytes of an .onnx file; also return a function that runs them, if onnxruntime can."""
    import onnx

    program: Any = torch.onnx.export(
        network,
        (_images(2, size),),
        dynamo=True,
        dynamic_shapes=_any_batch(),
        input_names=["images"],
        output_names=["scores"],
        verbose=False,
    )
    model = program.model_proto
    onnx.helper.set_model_props(model, dict(described))
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    if not _installed("onnxruntime"):
        return data, None
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return data, lambda images: torch.from_numpy(session.run(["scores"], {"images": images.numpy()})[0])


def _safetensors(network: nn.Module, size: int, described: Mapping[str, str]) -> tuple[bytes, Program]:
    """Format the weights; also return the network that they make when they are read again."""
    from safetensors.torch import load, save

    networks = networks_in(network)
    is_alone = len(networks) == 1 and len(networks[0].state_dict()) == len(network.state_dict())
    if not is_alone or not isinstance(networks[0], WideResNet):
        raise UserError("a .safetensors file holds one WideResNet of rssl and nothing else: write .pt2")
    mean, std = (torch.tensor(numbers).reshape(1, 3, 1, 1) for numbers in HALF)
    state = {"mu": mean, "sigma": std} | networks[0].state_dict()
    data: bytes = save({name: value.contiguous() for name, value in state.items()}, dict(described))
    state = load(data)
    mean, std = (state.pop(name).flatten() for name in ("mu", "sigma"))
    with torch.random.fork_rng(devices=[]):  # the initial weights will be overwritten
        again = WideResNet.from_state_dict(state).eval()
    again.set_normalization(mean.tolist(), std.tolist())
    return data, again


def _any_batch() -> tuple[dict[int, Any]]:
    return ({0: torch.export.Dim("batch")},)


def size_for(network: nn.Module) -> int:
    """The size of the images for the network of ours in a model, in pixels; 32 if there is none."""
    return next((each.image_size or each.built_for for each in networks_in(network)), 32)


def _images(count: int, size: int) -> Tensor:
    random = np.random.default_rng(count)
    return torch.from_numpy(random.random((count, 3, size, size), np.float32))


def _outputs(network: nn.Module, size: int, path: Path) -> int:
    """How many scores the network gives an image."""
    try:
        with torch.inference_mode():
            return int(network(_images(1, size)).shape[1])
    except Exception as error:  # whatever a network of the user's own raises
        raise RsslError(f"{path} cannot be made: {_reason(error)}") from None


def _difference(network: nn.Module, size: int, run: Program) -> float:
    """The largest difference between the scores of `network` and `run`, relative to the largest score."""
    worst = 0.0
    with torch.inference_mode():
        for count in (1, 2, 7):  # the exporter has seen only batches of 2
            expected = network(_images(count, size))
            found = run(_images(count, size))
            if found.shape != expected.shape or not (found - expected).isfinite().all():
                return float("inf")
            worst = max(worst, float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)))
    return worst


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _reason(error: BaseException) -> str:
    """The innermost cause of an error, in one line, with the code that torch.export blames for it."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    first = sanitize((text.splitlines() or [""])[0])
    place = re.search(r'following call raised this error:\s*File "(.+)", (line \d+, in .+)', text)
    where = f" ({sanitize(place[1])}, {sanitize(place[2])})" if place else ""
    return f"{type(error).__name__}: {first}{where}"


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress the exporters' output: warnings, progress, logs."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            quietly(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        logging.disable(before)
