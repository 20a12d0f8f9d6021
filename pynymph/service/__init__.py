# SPDX-License-Identifier: MIT
"""The former name of the package nymphd, for one release."""

import importlib
import pkgutil
import sys
import warnings

import nymphd

warnings.warn("pynymph.service is now the package nymphd: import that", DeprecationWarning, stacklevel=2)
for _each in pkgutil.iter_modules(nymphd.__path__):
    if _each.name != "__main__":
        sys.modules[f"{__name__}.{_each.name}"] = importlib.import_module(f"nymphd.{_each.name}")
sys.modules[__name__] = nymphd
