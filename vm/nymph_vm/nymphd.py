# SPDX-License-Identifier: MIT
"""nymphd in a machine of the image with systemd, and the way to it from the host."""

from dataclasses import dataclass, field

from nymph_vm.host import HarnessError
from nymph_vm.machine import Machine

PORT = 8443
STATE = "/var/lib/nymphd"


@dataclass(frozen=True)
class Service:
    """What a client on the host needs."""

    url: str
    token: str = field(repr=False)
    certificate: str  # in PEM: of itself, so also what to trust

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


def reach(machine: Machine, port: int = 0) -> Service:
    """The way to a machine's nymphd, once that is ready, at `port` of the host's loopback if it is free."""
    started = machine.run(["systemctl", "start", "nymphd"], check=False)
    if started.returncode:
        log = machine.run(["journalctl", "-o", "cat", "-n", "20", "-u", "nymphd"]).stdout
        raise HarnessError(f"nymphd does not start: {started.stderr.strip()}\n{log}")
    token, certificate = (
        machine.run(["cat", f"{STATE}/{name}"]).stdout for name in ("token", "certificate.pem")
    )
    return Service(f"https://localhost:{machine.forward(PORT, port)}", token.strip(), certificate)
