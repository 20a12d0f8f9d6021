# SPDX-License-Identifier: MIT
"""Only what pyproject.toml can't say: the compiled binding, and the Pythons that it works with."""

import sysconfig

from setuptools import setup

# One wheel works with all later versions, too: cffi keeps to the stable ABI. A free-threaded Python has none.
STABLE = {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"bdist_wheel": {"py_limited_api": "cp311"}}
setup(cffi_modules=["pynymph/_build.py:ffibuilder", "pynymph/_build.py:tree"], options=STABLE)
