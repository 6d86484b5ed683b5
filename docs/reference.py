"""Builds the Python reference from the docstrings: ``python docs/reference.py FOLDER``.

What stands in it is what ``raypq`` offers by name, and the contract of methods and models.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pdoc

MODULES = (
    "raypq",
    "raypq.api",
    "raypq.config",
    "raypq.errors",
    "raypq.kernels",
    "raypq.methods.base",
    "raypq.methods.support.linear_model",
    "raypq.methods.model",
    "raypq.methods.registry",
    "raypq.sizing",
    "raypq.stages.classification.evaluate",
)


def build(folder: Path) -> None:
    """Writes one HTML page a module, and a search index."""
    pdoc.render.configure(docformat="google", math=False)
    pdoc.pdoc(*MODULES, output_directory=folder)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
