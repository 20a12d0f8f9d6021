# SPDX-License-Identifier: MIT
"""What the tests of nymphd in a VM are given."""

from dataclasses import dataclass

from nymph_vm import nymphd
from nymph_vm.machine import Machine


@dataclass(frozen=True)
class Served:
    """A machine in which systemd runs nymphd, and the way there."""

    machine: Machine
    service: nymphd.Service
