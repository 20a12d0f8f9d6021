# SPDX-License-Identifier: MIT
"""Only what pyproject.toml can't say: the compiled binding. All else is there."""

from setuptools import setup

setup(cffi_modules=["pynymph/_build.py:ffibuilder", "pynymph/_build.py:tree"])
