# SPDX-License-Identifier: MIT
"""PCI functions in Python, for a driver that is not ours: Linux's plx_dma, unmodified, on a native guest."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from nymph_vm import build, kernels, slots
from nymph_vm.host import CHECKOUT
from nymph_vm.machine import Machine
from nymph_vm.uml import Uml

pytestmark = pytest.mark.native

MODEL = "nymph_vm.devices.plx"
REGISTERS = Path(__file__).with_name("registers.py")
HOW_TO = CHECKOUT / "docs/how-to/native.md"
DMATEST = """
modprobe plx_dma
modprobe dmatest
cd /sys/module/dmatest/parameters
echo 4 > threads_per_chan; echo 16384 > test_buf_size; echo 10000 > timeout; echo 50 > iterations
echo dma0chan0 > channel
dmesg --clear
echo 1 > run
until [ "$(dmesg | grep -c 'dmatest: .* summary ')" -eq 4 ]; do sleep 0.1; done
dmesg | grep -o 'summary .*'
"""


def machine_with(function: str) -> Machine:
    name = f"test-pci-{os.getpid()}"
    return Machine(name, kernel=kernels.NATIVE, memory="1G", slots=slots.native(0), pci=[function])


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """This process, and what it starts meanwhile, has one CPU of the host's."""
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(every)})
    yield
    os.sched_setaffinity(0, every)


def reach_registers(patience_us: int) -> None:
    """Reach registers from all CPUs and from interrupts, and memory in long pieces.

    patience_us: how often, with 1 us between, the kernel looks for an answer until it gives up.
    """
    modules = {path.stem: path for path in build.modules(build.TEST_MODULES, kernels.NATIVE)}
    patience = f"echo {patience_us} > /sys/module/virtio_pcidev/parameters/max_delay_us"
    with machine_with(f"{REGISTERS}:Registers") as machine:
        machine.run(["sh", "-c", patience])
        machine.load(modules["register_access"])
        assert machine.complaints() == []
        machine.run(["sh", "-c", "ls -d /sys/bus/pci/drivers/register_access/0000:*"])


def test_registers_read_right_from_everywhere() -> None:
    """It fails without any of the patches 1 to 3 of vm/nymph_vm/um."""
    reach_registers(5_000_000)


@pytest.mark.usefixtures("one_cpu")
def test_a_guest_and_its_function_share_a_cpu() -> None:
    """The function answers within the guest's time slice. It fails without patch 4 of vm/nymph_vm/um."""
    reach_registers(2000)


@pytest.mark.parametrize("interrupts", ["Plx", "PlxWithoutMsi"])
def test_a_mainline_driver_on_a_model_in_python(interrupts: str) -> None:
    """With MSI-X; and with an INTx, which fails without its patch in vm/nymph_vm/um."""
    with machine_with(f"{MODEL}:{interrupts}") as machine:
        said = machine.run(["timeout", "100", "sh", "-c", DMATEST]).stdout.splitlines()
        assert [line.split(" failures")[0] for line in said] == ["summary 50 tests, 0"] * 4
        assert (machine.complaints(), machine.taint()) == ([], 0)
        assert isinstance(machine.vmm, Uml)
        assert machine.vmm.functions["pci0"].log() == ""  # no DMA was refused, and nothing was raised


def test_class_of_the_documentation_is_a_pci_function(tmp_path: Path) -> None:
    example = re.search(r"```python\n(.*?)```", HOW_TO.read_text(), re.DOTALL)
    assert example
    adder = tmp_path / "adder.py"
    adder.write_text(example[1])
    with machine_with(f"{adder}:Adder") as machine:
        ids = machine.run(["sh", "-c", "cat /sys/bus/pci/devices/*/vendor /sys/bus/pci/devices/*/device"])
        assert ids.stdout.split() == ["0x1234", "0x5678"]
        assert machine.complaints() == []
