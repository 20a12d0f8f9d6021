# SPDX-License-Identifier: MIT
"""The NYMPH board (`nymph-vm run --board`): what is where, and that it all works, on the default kernel."""

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nymph_vm import slots
from nymph_vm.endpoint import CHANNELS
from nymph_vm.machine import Machine

ABI = Path(__file__).parents[1] / "guest/abi.py"

# Until a function's driver has registered the last of its channels.
WAIT = f'until [ -e "$1"/dma/dma*chan{CHANNELS - 1} ]; do sleep 0.1; done'
# Both get names of channels. The second copies until its input ends, and says how often it did.
COPY = """
import sys, pynymph
source = bytes(range(256)) * 4096
for engine in sys.argv[1:]:
    target = bytearray(len(source))
    with pynymph.Ring(engine=engine) as ring:
        done = ring.copy(src=source, dst=target, verify=True)
    assert (done.engine, target) == (engine, source)
"""
COPY_ON = """
import contextlib, select, sys, pynymph
source, rounds = bytes(range(256)) * 256, 0
with contextlib.ExitStack() as stack:
    rings = {name: stack.enter_context(pynymph.Ring(engine=name)) for name in sys.argv[1:]}
    print("started", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        for name, ring in rings.items():
            target = bytearray(len(source))
            done = ring.copy(src=source, dst=target, verify=True)
            assert (done.engine, target) == (name, source)
        rounds += 1
print(rounds)
"""
# Gets names of channels, each of another card.
CARDS = """
import sys, abi, pynymph
data, back = bytes(range(256)) * 4096, bytearray(1 << 20)
for engine in sys.argv[1:]:
    with pynymph.Ring(engine=engine) as ring:
        card = ring.allocate_on_card(len(data))
        for src, dst in ((data, card), (card, back)):
            done = ring.copy(src=src, dst=dst, verify=True)
            assert done.engine == engine
        assert back == data
one, other = sys.argv[1:3]
with abi.Context() as context:
    context.setup(engine=one.encode())
    card = context.buffer(abi.BUFFER_CARD, length=abi.PAGE).handle
    context.setup(engine=other.encode())
    memory = abi.Memory(abi.PAGE)
    print(context.run(abi.in_buffers(abi.copy(memory.address, 0, abi.PAGE), dst=card)).status)
"""


@pytest.fixture(scope="module")
def board() -> Iterator[Machine]:
    with Machine(f"test-board-{os.getpid()}", slots=slots.board()) as machine:
        yield machine


@pytest.fixture(autouse=True)
def clean_kernel_log(board: Machine) -> Iterator[None]:
    yield
    assert (board.complaints(), board.taint()) == ([], 0)


def ports(board: Machine) -> list[dict[str, Any]]:
    """What topology() says of DL0 to DL5."""
    tops = json.loads(board.run(["python3", "-m", "pynymph", "topology", "--json"]).stdout)
    (root,) = (top for top in tops if top["port"] == "root")
    (upstream,) = root["children"]
    assert upstream["port"] == "upstream"
    return list(upstream["children"])


@pytest.fixture(scope="module")
def booted(board: Machine) -> list[dict[str, Any]]:
    """The ports before any test."""
    return ports(board)


def test_switch_has_a_drive_and_four_endpoints(booted: list[dict[str, Any]]) -> None:
    assert [port["port"] for port in booted] == ["downstream"] * 6
    assert [port["address"][-4:] for port in booted] == [f"0{number}.0" for number in range(6)]
    kinds = [[function["kind"] for function in port["children"]] for port in booted]
    assert kinds == [[], ["nvme"], *[["memory"]] * 4]


def test_drive_has_its_driver_and_link(booted: list[dict[str, Any]]) -> None:
    (nvme,) = booted[1]["children"]
    assert nvme["driver"] == "nvme"
    assert nvme["link"]["width"] >= 1


def test_every_endpoint_copies(board: Machine, booted: list[dict[str, Any]]) -> None:
    endpoints = [port["children"][0] for port in booted[2:]]
    for endpoint in endpoints:
        assert (endpoint["id"], endpoint["driver"]) == ("1af4:1110", "nymph_endpoint")
        assert (endpoint["interrupts"], len(endpoint["dma_channels"])) == (CHANNELS, CHANNELS)
    board.run(["python3", "-c", COPY, *(endpoint["dma_channels"][0] for endpoint in endpoints)])


def test_channel_cannot_reach_memory_of_another_card(board: Machine, booted: list[dict[str, Any]]) -> None:
    first = [port["children"][0]["dma_channels"][0] for port in booted[2:]]
    board.copy_in(str(ABI))
    said = board.run(["python3", "-c", CARDS, *first]).stdout
    assert int(said) == -errno.EXDEV  # a channel does not reach the memory of another card


def test_ordinary_user_sees_all_but_capabilities(board: Machine) -> None:
    said = board.run(["python3", "-m", "pynymph", "topology"], user="nymph-user").stdout
    assert " bridge 104c:8233: pcieport" in said
    assert said.count(" nymph_endpoint, ") == 4


def test_other_endpoints_copy_while_one_is_replugged(board: Machine, booted: list[dict[str, Any]]) -> None:
    others = [booted[number]["children"][0]["dma_channels"][0] for number in (2, 4, 5)]
    device = f"/sys/bus/pci/devices/{booted[3]['children'][0]['address']}"
    with subprocess.Popen(
        board.command(["python3", "-c", COPY_ON, *others]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as copying:
        assert copying.stdout
        assert copying.stdout.readline() == "started\n"
        board.unplug("ep1")
        assert board.run(["test", "-e", device], check=False).returncode == 1
        board.plug("ep1")
        board.run(["timeout", "60", "sh", "-c", WAIT, "wait", device])
        (endpoint,) = ports(board)[3]["children"]
        assert len(endpoint["dma_channels"]) == CHANNELS
        board.run(["python3", "-c", COPY, endpoint["dma_channels"][0]])
        rounds, _ = copying.communicate()
    assert copying.returncode == 0
    assert int(rounds) > 0
