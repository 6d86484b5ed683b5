"""Commands that neither train by gradients nor run a network import no torch, in the driver or in
a worker; nor other packages that take long to import, such as pandas."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from raypq.data import synthetic

SHARDS, IMAGES = 2, 200
SLOW = {"torch", "scipy", "pandas", "pyarrow.dataset", "s3fs", "aiobotocore", "sklearn", "faiss"}
# Python imports a module of this name at its start, in workers too.
REFUSAL = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in {refused}:
            frame = sys._getframe()
            while frame and not frame.f_globals["__name__"].startswith("raypq."):
                frame = frame.f_back
            importer = frame.f_globals["__name__"] if frame else "a module outside raypq"
            raise AssertionError(f"{{importer}} imports {{name}}")

sys.meta_path.insert(0, Refuse())
"""
SMALL = "--set M=4 --set K=16 --set iterations=2"
MODELS = (
    f"train pq --features train --output pq {SMALL}",
    f"train opq --features train --output opq {SMALL} --set polish=1",
)
# In this order: each command may read what those before it wrote.
ROOT = Path(__file__).parents[3]
RATES = ROOT / "raypq" / "bench" / "results" / "2026-11-21-zen4-2-cores-rates.json"
COMMANDS = (
    f"train pq --features train --output again {SMALL}",
    "train vq --features train --output vq --set K=16 --set iterations=2",
    "encode --model pq --features features --output codes",
    "train linear --codes codes --classes classes.parquet --output head --set loss=ridge",
    "classify --model pq --codes codes --classes classes.parquet --output predictions",
    "evaluate classification --predictions predictions --classes classes.parquet",
    "search --codes codes --queries features --top-k 3 --output found",
    "search --codes codes --queries features --top-k 3 --distance sdc --output found-sdc",
    "evaluate retrieval --codes codes --queries features",
    "duplicates --codes codes --threshold 0.1 --output pairs",
    "deduplicate --codes codes --threshold 0.1 --output groups",
    "neighbors --codes codes --top-k 3 --output near",
    "cluster --codes codes --k 3 --output clusters",
    "export predictions --output exported",
    "predictions predictions --classes classes.parquet",
    "reindex --model pq --features features --codes nightly",
    "snapshots list codes",
    "snapshots show codes",
    "snapshots verify codes",
    "snapshots diff predictions 1 1",
    "snapshots gc codes",
    f"plan --images 1000000 --rates {RATES}",
)
WITHOUT_WORKERS = {"snapshots", "plan", "predictions"}


class Commands:
    """Runs commands in a folder, each in a Python that refuses to import some packages."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, command: str, refused: set[str], cluster: str = "none") -> str:
        """The stderr of a command that fails; empty where it does not."""
        place = self.root / f"without-{'-'.join(sorted(refused))}"
        place.mkdir(exist_ok=True)
        (place / "sitecustomize.py").write_text(REFUSAL.format(refused=sorted(refused)))
        words = command.split()
        if words[0] not in WITHOUT_WORKERS:
            words += ["--cluster", cluster, "--workers", "2" if cluster == "none" else "1"]
        done = subprocess.run(
            [sys.executable, "-m", "raypq", *words],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(place)},
            capture_output=True,
            text=True,
        )
        return done.stderr if done.returncode else ""


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """Features and classes of one space, and the models pq and opq."""
    root, rng = tmp_path_factory.mktemp("imports"), np.random.default_rng(2)
    classes = synthetic.SyntheticClasses.create(classes=6, dx=24, da=24, rng=rng)
    synthetic.write_classes(root / "classes.parquet", classes)
    for name in ("train", "features"):
        synthetic.write_features(
            root / name,
            classes,
            classes=np.flatnonzero(classes.seen),
            images=IMAGES,
            shards=SHARDS,
            name=name,
            rng=rng,
        )
    made = Commands(root)
    for command in MODELS:
        assert not made.run(command, set())
    return made


@pytest.mark.timeout(600)
def test_commands_on_codes_import_no_torch(commands: Commands) -> None:
    for command in COMMANDS:
        assert not commands.run(command, SLOW | {"ray"}), command


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_workers_of_ray_import_no_torch(commands: Commands) -> None:
    command = "encode --model pq --features features --output on-ray"
    assert not commands.run(command, SLOW, cluster="local")


def test_the_error_names_the_module_that_imports_torch(commands: Commands) -> None:
    """Projections are products of torch, whose bits codes depend on."""
    error = commands.run("encode --model opq --features features --output projected", SLOW)
    assert "raypq.methods.support.matrix_product imports torch" in error
