# SPDX-License-Identifier: MIT
"""setup.py: which Pythons a wheel is for."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[3]
# What a Python asks of setuptools that may say that it is a free-threaded one.
ASK = """
import sysconfig
from setuptools.dist import Distribution
from distutils.core import run_setup
asked = sysconfig.get_config_var
sysconfig.get_config_var = lambda name: {free} if name == "Py_GIL_DISABLED" else asked(name)
options = run_setup("setup.py", stop_after="commandline").get_option_dict("bdist_wheel")
print({{name: value for name, (_, value) in options.items()}})
"""


@pytest.mark.parametrize(("free", "options"), [(0, {"py_limited_api": "cp311"}), (1, {})])
def test_a_wheel_keeps_to_the_stable_abi_where_python_has_one(free: int, options: dict[str, str]) -> None:
    """setuptools refuses one for the stable ABI of a free-threaded Python, which has none."""
    done = subprocess.run(
        [sys.executable, "-c", ASK.format(free=free)], cwd=CHECKOUT, capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.returncode) == (str(options), 0), done.stderr
