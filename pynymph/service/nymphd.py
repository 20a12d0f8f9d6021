# SPDX-License-Identifier: MIT
"""The parts of the daemon that answers are made of."""

from __future__ import annotations

from pynymph import NymphError
from pynymph.fabric import find_device
from pynymph.ring import MODEL
from pynymph.service import answers
from pynymph.service.carrier import Carrier
from pynymph.service.credentials import Doorkeeper, StartError, make_folder
from pynymph.service.engines import Engines
from pynymph.service.events import Events
from pynymph.service.inference import Inference
from pynymph.service.log import log
from pynymph.service.models import Models, install_magika
from pynymph.service.settings import Settings
from pynymph.service.watch import Watch, Work


class Nymphd:
    """What requests are answered from. Needs a running loop. Raises StartError."""

    def __init__(self, settings: Settings, doorkeeper: Doorkeeper) -> None:
        self.settings = settings
        self.doorkeeper = doorkeeper
        self.events = Events()
        self.work = Work()
        device = find_device() if settings.device == "auto" else settings.device
        try:
            self.carrier = Carrier(device, settings.ring_size, self.events)
        except NymphError as error:
            raise StartError(error.strerror or str(error)) from None
        if device == MODEL:
            log.warning("there is no driver: everything said of the fabric is of a model in Python")
        self.engines = Engines(self.carrier, self.events, settings.verify_timeout_s)
        self.watch = Watch(settings, self.carrier, self.engines, self.events, self.work)
        assert settings.models_dir is not None
        make_folder(settings.models_dir)
        install_magika(settings.models_dir)
        self.models = Models(settings.models_dir, self.carrier, self.events)
        self.inference = Inference(self.carrier, self.models, self.events, self.work)

    async def run(self) -> None:
        """Load the models, and watch the driver, until cancelled."""
        await self.models.load_all()
        await self.watch.run()

    def readiness(self) -> answers.Readiness:
        try:
            self.carrier.snapshot()
            ring = None
        except NymphError as error:
            ring = error.strerror or str(error)
        reasons = {"ring": ring, "models": "; ".join(self.models.unready) or None}
        checks = {name: answers.Check(ok=reason is None, reason=reason) for name, reason in reasons.items()}
        ready = all(check.ok for check in checks.values())
        return answers.Readiness(engine=self.carrier.engine, ready=ready, checks=checks)

    def close(self) -> None:
        self.inference.close()
        self.watch.close()
        self.engines.close()
        self.carrier.close()
