"""Imports the packages that only some data sets need, and says what to install where one is missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from segtrain.errors import ConfigError


def require(module: str, *, extra: str, what: str) -> ModuleType:
    """Import a module of an extra of this package.

    Args:
        module: its dotted name.
        extra: in which extra of setup.cfg it stands.
        what: what needs it, for the message.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ConfigError(
            f"{what}, which takes {package} ({error}): pip install {package}, or segtrain with its extra {extra}"
        ) from error
