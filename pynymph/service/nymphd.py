# SPDX-License-Identifier: MIT
"""The parts of the daemon that answers are made of."""

from __future__ import annotations

from importlib.metadata import version

from pynymph import NymphError
from pynymph.fabric import find_device
from pynymph.ring import MODEL
from pynymph.service import answers
from pynymph.service.carrier import Carrier
from pynymph.service.credentials import Doorkeeper, StartError
from pynymph.service.events import Events
from pynymph.service.log import log
from pynymph.service.settings import Settings
from pynymph.service.watch import Watch, Work


class Nymphd:
    """What requests are answered from. Needs a running loop. Raises StartError."""

    def __init__(self, settings: Settings, doorkeeper: Doorkeeper) -> None:
        self.settings = settings
        self.doorkeeper = doorkeeper
        self.version = version("pynymph")
        self.events = Events()
        self.work = Work()
        device = find_device() if settings.device == "auto" else settings.device
        try:
            self.carrier = Carrier(device, settings.ring_size, self.events)
        except NymphError as error:
            raise StartError(error.strerror or str(error)) from None
        if device == MODEL:
            log.warning("there is no driver: everything said of the fabric is of a model in Python")
        self.watch = Watch(settings, self.carrier, self.events, self.work)

    def readiness(self) -> answers.Readiness:
        checks = {"ring": answers.Check(ok=True, reason=None)}
        ready = all(check.ok for check in checks.values())
        return answers.Readiness(engine=self.carrier.engine, ready=ready, checks=checks)

    def close(self) -> None:
        self.watch.close()
        self.carrier.close()
