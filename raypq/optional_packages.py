"""Packages that raypq needs for a few jobs only; an extra of raypq installs them."""

from __future__ import annotations

import importlib
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


def _is_absent(error: ImportError, name: str) -> bool:
    return isinstance(error, ModuleNotFoundError) and error.name in (None, name)
