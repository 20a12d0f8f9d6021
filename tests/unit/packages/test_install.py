# SPDX-License-Identifier: MIT
"""What `make install` and the packages put on a machine, beside the module."""

import re
import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).parents[3]
KERNEL = CHECKOUT / "kernel"


def parameters() -> dict[tuple[str, str], tuple[str, str]]:
    """The modules' parameters, by module and name: what MODULE_PARM_DESC says, and the default."""
    found = {}
    headers = "".join(path.read_text() for path in KERNEL.rglob("*.h"))
    macros = dict(re.findall(r"^#define (\w+)[ \t]+(\w+)$", headers, re.MULTILINE))
    for source in KERNEL.rglob("*.c"):
        text = source.read_text()
        says = dict(re.findall(r'MODULE_PARM_DESC\((\w+), "(.*)"\);', text))
        for name, variable in re.findall(r"^module_param_named\((\w+), (\w+),", text, re.MULTILINE):
            default = re.search(rf"\b{variable} = (.*);", text)
            assert default
            found[source.parent.name, name] = (says[name], macros.get(default[1], default[1].strip('"')))
    return found


def test_the_example_of_modprobe_has_every_parameter_as_modinfo_says_it() -> None:
    text = (CHECKOUT / "modprobe.d/nymph.conf").read_text()
    lines = re.findall(r"^# (.*)\n#options (\w+) (\w+)=(.*)$", text, re.MULTILINE)
    assert {(module, name): (says, default) for says, module, name, default in lines} == parameters()
    assert len(lines) == text.count("options ") >= 7


def make(*arguments: str) -> None:
    done = subprocess.run(["make", *arguments], cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def test_what_is_installed_beside_the_module_goes_below_destdir_and_prefix(tmp_path: Path) -> None:
    make("install-files", f"DESTDIR={tmp_path}", "prefix=/opt/nymph")
    assert files(tmp_path) == {
        "opt/nymph/include/linux/pcie_nymph.h",
        "opt/nymph/lib/modules-load.d/nymph.conf",
        "opt/nymph/lib/sysusers.d/nymph.conf",
        "opt/nymph/lib/udev/rules.d/90-pcie-nymph.rules",
        "opt/nymph/share/doc/pynymph/examples/nymph.conf",
    }
    for path in files(tmp_path):
        assert (tmp_path / path).stat().st_mode & 0o777 == 0o644


def test_uninstall_leaves_nothing_of_install(tmp_path: Path) -> None:
    """With modules as `make install` leaves them: Debian's kernels have them packed."""
    make("install-files", f"DESTDIR={tmp_path}")
    updates = tmp_path / "lib/modules/6.1.0-test/updates"
    (updates / "nymph_endpoint").mkdir(parents=True)
    (updates / "pcie_nymph.ko.xz").touch()
    (updates / "nymph_endpoint/nymph_endpoint.ko").touch()
    (updates / "other.ko").touch()
    make("uninstall", f"DESTDIR={tmp_path}", "RELEASE=6.1.0-test")
    assert files(tmp_path) == {"lib/modules/6.1.0-test/updates/other.ko"}
