"""One command for a machine with a GPU: tests, benches and two trainings; figures as one JSON.

    make gpu WHEELS=wheels GPU_OPTIONS="--data FOLDER"
    make gpu GPU_OPTIONS=--rehearse

``make gpu`` builds raypq first, without network, and runs this file. Figures are written as they
come, so an interrupted run loses only what was not measured yet. ``--rehearse`` runs the same code
on the CPU with small sizes. ``--data`` names a folder with CIFAR-10: ``images/train``,
``images/test`` (Parquet with ``id``, ``image``, ``label``) and ``classes.parquet``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from raypq import kernels
from raypq.bench import gpu
from raypq.bench.harness import Result, machine
from raypq.kernels.device import REHEARSAL

TESTS = Path(__file__).parents[1]
FILES = (
    "gpu/test_device_kernels.py",
    "gpu/test_device_filters.py",
    "unit/methods/test_rows.py",
    "integration/training/test_device_training.py",
    "integration/encoding/test_device_encoding.py",
    "integration/retrieval/test_device_results.py",
)
_LEAST_TRAINING = 60.0  # seconds without which a training is not begun
TRAININGS: dict[str, dict[str, Any]] = {
    "dpq": {"M": 6, "backbone": "dsh"},
    "gpq": {"M": 6, "backbone": "vgg32"},
}


class Proof:
    """The figures so far, and the time that is left."""

    def __init__(self, output: Path, seconds: float) -> None:
        self.start, self._end = time.monotonic(), time.monotonic() + seconds
        self._output = output
        self.figures: dict[str, Any] = {}

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def write(self, **figures: Any) -> None:
        """Adds figures, and writes the file."""
        self.figures |= figures
        self.figures["seconds"] = round(time.monotonic() - self.start, 1)
        self._output.write_text(json.dumps(self.figures, indent=1) + "\n")


def run_tests(device: str, limit: float) -> dict[str, Any]:
    """The tests of the device, without the plugins of a development machine."""
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "RAYPQ_TEST_DEVICE": device,
        "PYTHONPATH": os.pathsep.join(paths),
    }
    files = [str(TESTS / name) for name in FILES]
    options = ["-q", "--maxfail=30", "-p", "no:cacheprovider", "--noconftest", "-c", os.devnull]
    options += ["-m", "not slow", "-W", "ignore::pytest.PytestUnknownMarkWarning"]
    command = [sys.executable, "-m", "pytest", *options, "--rootdir", str(TESTS), *files]
    start = time.monotonic()
    try:
        done = subprocess.run(
            command,
            env=environment,
            cwd=TESTS,  # in the root of a clone, its source tree would be imported
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
        code, out = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        code, out = 124, str(error)
    print(out, flush=True)
    seconds = round(time.monotonic() - start, 1)
    return {"passed": code == 0, "seconds": seconds, "output": out[-2000:]}


def measure(
    case: Callable[[str, gpu.Sizes], Result], device: str, sizes: gpu.Sizes, proof: Proof
) -> None:
    """Adds the figures of a case, or why it failed."""
    try:
        result = case(device, sizes)
    except Exception as error:  # the other cases are measured all the same
        traceback.print_exc()
        failed = {"bench": case.__name__, "failed": f"{type(error).__name__}: {error}"}
        proof.figures["results"].append(failed)
        proof.write()
        return
    proof.figures["results"].append(asdict(result))
    proof.write()
    for line in result.lines:
        print(f"{result.bench:24} {line.name:34} {line.rate:14,.0f} {result.unit}", flush=True)
    for goal in result.goals:
        print(f"{'':24} ratio {goal['ratio']:.2f} of {goal['at_least']}", flush=True)


def train(method: str, device: str, data: Path, root: Path, proof: Proof, share: float) -> Any:
    """A training from pictures in this share of the time that is left; mAP of the test images.

    A first epoch shows how many fit.
    """
    images = ["--image-size", "32", "--feature-column", "image"]
    where = ["--cluster", "none", "--device", torch.device(device).type]
    classes = ["--classes", str(data / "classes.parquet")]
    settings = TRAININGS[method]

    def command(name: str, *given: str, limit: float) -> str:
        line = [sys.executable, "-m", "raypq", name, *given]
        return subprocess.run(
            line, cwd=root, capture_output=True, text=True, timeout=limit, check=True
        ).stdout

    def fit(epochs: int, model: str, limit: float) -> float:
        unlabelled = ["--unlabelled", str(data / "images/train")] if method == "gpq" else []
        chosen = [f"--set={key}={value}" for key, value in {**settings, "epochs": epochs}.items()]
        start = time.monotonic()
        command(
            "train", method, "--features", str(data / "images/train"), *unlabelled, *classes,
            *images, *where, *chosen, "--output", str(root / model), "--set=precision=bf16",
            limit=limit,
        )  # fmt: skip
        return time.monotonic() - start

    limit = share * proof.left
    first = fit(1, f"{method}-first", limit)
    epochs = max(1, int((limit - first) / first * 0.7))
    seconds = fit(epochs, method, proof.left)
    model, codes = ["--model", str(root / method)], str(root / f"{method}-codes")
    command(
        "encode", *model, "--features", str(data / "images/train"), *images, *where,
        "--output", codes, limit=proof.left,
    )  # fmt: skip
    figures = root / f"{method}.json"
    command(
        "evaluate", "retrieval", "--codes", codes, "--queries", str(data / "images/test"), *images,
        "--cluster", "none", "--json", str(figures), limit=proof.left,
    )  # fmt: skip
    return {"epochs": epochs, "seconds": seconds, "retrieval": json.loads(figures.read_text())}


def main() -> int:
    """Runs everything; 1 if a test failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with small sizes")
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10")
    parser.add_argument("--seconds", type=float, default=420.0, help="that everything may take")
    parser.add_argument("--output", type=Path, default="gpu.json", help="file of the figures")
    options = parser.parse_args()
    device = REHEARSAL if options.rehearse else options.device
    kernels.check_device(device)
    proof = Proof(options.output, options.seconds)
    card = None
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        card = {"name": properties.name, "memory": properties.total_memory}
    proof.write(machine=machine(kernels.threads()), device=device, card=card, results=[])
    tests = run_tests(device, proof.left)
    proof.write(tests=tests)
    sizes = gpu.SMALL if options.rehearse else gpu.FULL
    for case in gpu.CASES:
        if proof.left > 0:
            measure(case, device, sizes, proof)
    trainings: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as root:
        for number, method in enumerate(TRAININGS):
            if options.data is None or proof.left < _LEAST_TRAINING:
                continue
            share = 0.8 / (len(TRAININGS) - number)
            try:
                trainings[method] = train(
                    method, device, options.data.absolute(), Path(root), proof, share
                )
            except subprocess.SubprocessError as error:
                trainings[method] = {"failed": str(error), "output": str(error.stderr)[-2000:]}  # type: ignore[attr-defined]
            proof.write(trainings=trainings)
    proof.write(trainings=trainings)
    print(f"{options.output}: {proof.figures['seconds']} s", flush=True)
    return 0 if tests["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
