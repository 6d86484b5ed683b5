"""Images to codes, against the network alone and against decoding alone."""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from raypq import api
from raypq.backbones import Backbone, load_backbone
from raypq.bench.harness import Contender, Goal, Result, rounds
from raypq.config import ClusterSettings, EncodeJob, ExtractJob, NetworkSettings, TrainJob

_PIXELS = (500, 375)  # of the images, as most of ImageNet
_BATCH = 16  # of the bare network
_DISTINCT = 512  # images; more are copies
_REPEATS = 3
_ENCODE, _EXTRACT = "raypq encode --images", "raypq extract"
_NETWORK, _DECODE = "the network alone, on decoded images", "decoding alone, on all threads"


def run(threads: int) -> Iterator[Result]:
    """A network that takes longer than decoding, and one that takes less."""
    with tempfile.TemporaryDirectory(prefix="raypq-bench-") as folder:
        root = Path(folder)
        for name, images, layers in (("large", 128, _large()), ("small", 4096, _small())):
            yield _case(root / name, name, images, layers, threads)


def _large() -> torch.nn.Module:
    """Convolutions of about 4 GFLOPs an image, as ResNet-50."""
    widths = (3, 64, 128, 256, 512)
    layers: list[torch.nn.Module] = []
    for before, width in pairwise(widths):
        layers += [torch.nn.Conv2d(before, width, 3, stride=2, padding=1), torch.nn.ReLU()]
        layers += [torch.nn.Conv2d(width, width, 3, padding=1), torch.nn.ReLU()] * 2
    return torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())


def _small() -> torch.nn.Module:
    """Means of squares of pixels, which cost far less than decoding."""
    return torch.nn.Sequential(torch.nn.AvgPool2d(16), torch.nn.Flatten())


def _case(root: Path, name: str, images: int, network: torch.nn.Module, threads: int) -> Result:
    # Pixels of the network's input; of a small one, so that preparing it costs little, too.
    size = 224 if name == "large" else 96
    files = _write_images(root / "images", images)
    script = _write_network(root / "network.pt", network, size)
    where = ClusterSettings(cluster="none", workers=1, threads=threads)
    columns = {"image_size": size}
    outputs = count()

    def extract() -> str:
        output = str(root / f"features-{next(outputs)}")  # a second run into one has no work
        api.extract(
            ExtractJob(
                images=[str(root / "images")], backbone=script, output=output, columns=columns,
                where=where,
            )
        )  # fmt: skip
        return output

    model = str(root / "model")
    settings = {"M": 4, "K": 16, "iterations": 2}
    api.train(
        TrainJob(method="opq", features=[extract()], output=model, settings=settings, where=where)
    )

    def encode() -> None:
        output = str(root / f"codes-{next(outputs)}")
        api.encode(
            EncodeJob(
                model=model, images=[str(root / "images")], backbone=script, output=output,
                columns=columns, where=where,
            )
        )  # fmt: skip

    backbone = load_backbone(script, NetworkSettings(), size=size, device="cpu")
    decoded = _decode(backbone, files, threads)
    lines = rounds(
        [
            Contender(name=_ENCODE, run=encode, work=images, ours=True),
            Contender(name=_EXTRACT, run=extract, work=images, ours=True),
            Contender(name=_NETWORK, run=partial(_compute, network, decoded, size), work=images),
            Contender(name=_DECODE, run=partial(_decode, backbone, files, threads), work=images),
        ],
        repeats=_REPEATS,
    )
    peer, least = (_NETWORK, 0.95) if name == "large" else (_DECODE, 0.9)
    result = Result(
        bench="extract",
        case=f"{images:,} JPEG images of {_PIXELS[0]} × {_PIXELS[1]}, a {name} network, one worker "
        f"of {threads} threads",
        unit="images/s",
        lines=lines,
    )
    return result.with_goals([Goal(ours=_ENCODE, peer=peer, at_least=least)])


def _compute(network: torch.nn.Module, decoded: NDArray[np.uint8], size: int) -> None:
    """A plain loop: normalise and run."""
    images = torch.from_numpy(decoded).reshape(len(decoded), 3, size, size)
    with torch.inference_mode():
        for start in range(0, len(images), _BATCH):
            network((images[start : start + _BATCH].float() / 255 - 0.45) / 0.225)


def _decode(backbone: Backbone, files: Sequence[Path], threads: int) -> NDArray[np.uint8]:
    def one(path: Path) -> NDArray[np.uint8]:
        return backbone.image_format.decode(path.read_bytes(), 1 << 30)

    with ThreadPoolExecutor(threads) as pool:
        return np.stack(list(pool.map(one, files)))


def _write_images(folder: Path, images: int) -> list[Path]:
    """Smooth images with some noise, which take as long to decode as photographs."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    contents = []
    for _ in range(min(images, _DISTINCT)):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(_PIXELS, Image.Resampling.BICUBIC), np.int16)
        noisy = smooth + rng.integers(-12, 13, smooth.shape, dtype=np.int16)
        data = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=90)
        contents.append(data.getvalue())
    files = [folder / f"{number:05d}.jpg" for number in range(images)]
    for number, path in enumerate(files):
        path.write_bytes(contents[number % _DISTINCT])
    return files


def _write_network(path: Path, network: torch.nn.Module, size: int) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript itself
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            network.eval(), torch.zeros(1, 3, size, size)
        )
        traced.save(str(path))
    return str(path)
