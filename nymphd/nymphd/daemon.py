# SPDX-License-Identifier: MIT
"""The parts of the daemon that answer requests."""

from __future__ import annotations

import asyncio

from nymphd import answers
from nymphd.carrier import Carrier
from nymphd.credentials import Doorkeeper, StartError, make_folder
from nymphd.engines import Engines
from nymphd.events import Events
from nymphd.inference import Inference
from nymphd.log import log
from nymphd.models import Models, install_magika
from nymphd.settings import Settings
from nymphd.watch import Watch, Work
from pynymph import NymphError
from pynymph.fabric import find_device
from pynymph.ring import MODEL


class Nymphd:
    """Make the parts that answer requests. The caller has a running event loop. Raises StartError."""

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
        self.inference = Inference(
            self.carrier, self.models, self.events, self.work, settings.infer_timeout_s
        )

    async def run(self) -> None:
        """Watch models and driver until the task is cancelled."""
        await asyncio.gather(self.models.run(), self.watch.run())

    def readiness(self) -> answers.Readiness:
        try:
            self.carrier.snapshot()
            ring = None
        except NymphError as error:
            ring = error.strerror or str(error)
        reasons = {"ring": ring, "models": self.models.unready}
        checks = {name: answers.Check(ok=reason is None, reason=reason) for name, reason in reasons.items()}
        ready = all(check.ok for check in checks.values())
        return answers.Readiness(engine=self.carrier.engine, ready=ready, checks=checks)

    def close(self) -> None:
        self.models.close()
        self.watch.close()
        self.engines.close()
        self.carrier.close()
