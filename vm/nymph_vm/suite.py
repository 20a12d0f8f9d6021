# SPDX-License-Identifier: MIT
"""Runs pynymph's guest tests and KUnit on one kernel, as a pytest of its own."""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nymph_vm import kernels, project

TESTS = ("tests/vm/test_guest_suite.py", "tests/vm/test_kunit.py")


@dataclass(frozen=True)
class Run:
    """What came of it. `properties`: what the fixture `vm` recorded, boot_seconds and complaints."""

    status: int
    passed: int
    failed: int
    properties: dict[str, str]

    @property
    def whole(self) -> bool:
        """Whether pytest came to its end: with any other status it was interrupted, or lost the machine."""
        return self.status in (0, 1)


def run(kernel: str, arguments: Sequence[str] = ()) -> Run:
    """Run the tests on the kernel, a key of KERNELS; `arguments` are more for pytest.

    Its output is shown as it comes.
    """
    name, arch = kernels.split(kernel)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", f"--kernel={name}", f"--arch={arch}"]
        command += [f"--junit-xml={report}", *TESTS]
        status = subprocess.run([*command, *arguments], cwd=project.pynymph().folder).returncode
        if not report.exists():  # pytest did not like the arguments
            return Run(status, 0, 0, {})
        (suite,) = ElementTree.parse(report).iter("testsuite")
    counts = {key: int(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped")}
    failed = counts["failures"] + counts["errors"]
    properties = {each.attrib["name"]: each.attrib["value"] for each in suite.iter("property")}
    return Run(status, counts["tests"] - failed - counts["skipped"], failed, properties)
