"""The version of raypq, and a digest of its code.

The version is that of the first section of CHANGELOG.md; docs/upgrading.md has the rule.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

__version__ = "0.2.0"


@cache
def code_digest() -> str:
    """sha256 of the Python files of this package, by path, which differs between two builds of one
    version."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
