"""Packages that raypq needs for a few jobs only, which an extra of raypq installs; and one that
it never needs."""

from __future__ import annotations

import importlib
import sys
from importlib.abc import MetaPathFinder
from typing import Any

from raypq.errors import ConfigError


def require(module: str, *, extra: str, purpose: str = "") -> Any:
    """Imports an optional package, or a module of one.

    Args:
        extra: the extra of raypq that installs the package.
        purpose: what needs it, for the error (``"a report"``).

    Raises:
        ConfigError: the package is not installed; names the extra and the command to install it. Or
            it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        problem = "is not installed" if _is_absent(error, name) else f"cannot be imported ({error})"
        subject = f"{purpose} needs {name}, which" if purpose else name
        raise ConfigError(
            f"{subject} {problem}; the extra '{extra}' has it: pip install 'raypq[{extra}]'"
        ) from error
    except RuntimeError as error:  # torchvision beside a torch of another build
        reason = str(error).partition("\n")[0]
        subject = f"{purpose} needs {module}, which" if purpose else module
        raise ConfigError(
            f"{subject} cannot be imported ({reason}); where torch and torchvision are of "
            "different builds, install both from one index"
        ) from error


def leave_out_pandas() -> None:
    """Has Arrow do without pandas in this process, which must be raypq's own.

    Arrow looks for series of pandas in whatever it makes an array of, and imports pandas for it
    where that is installed, which takes half a second. It looks for pandas once: here, and in vain.
    """
    if "pandas" in sys.modules:
        return
    import pyarrow as pa

    sys.meta_path.insert(0, _Pandas())
    try:
        pa.array([])
    finally:
        sys.meta_path.pop(0)


class _Pandas(MetaPathFinder):
    """A finder by which pandas is not installed."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError(f"no module named {fullname!r}", name=fullname)


def _is_absent(error: ImportError, name: str) -> bool:
    return isinstance(error, ModuleNotFoundError) and error.name in (None, name)
