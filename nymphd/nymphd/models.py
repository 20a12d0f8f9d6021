# SPDX-License-Identifier: MIT
"""Models: folders with a manifest. A model runs from the bytes of its files that arrived through the ring.

manifest.json has the kind of the model and the BLAKE3 digests of its files. A model whose files have other
digests is refused.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import stat
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import pynymph
from nymphd.answers import Digest, ModelState
from nymphd.carrier import Carrier
from nymphd.credentials import make_folder, write_private
from nymphd.events import Events, now
from nymphd.log import log
from nymphd.network import CONFIG_FILE, MODEL_FILE, Model, ModelRefused, Runner
from nymphd.sensors import EnergyMeter
from pynymph.errors import NymphError

MAGIKA = "magika"
LOOK_EVERY_S = 2.0  # for models that came, went or changed

_MANIFEST = "manifest.json"
_NAME = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"
_WANTED = {"magika": (MODEL_FILE, CONFIG_FILE), "onnx": (MODEL_FILE,)}
_MAGIKA_TOKEN = "a byte, or padding, that the network sees: 1024 from the start and 1024 from the end"
_LARGEST = 1 << 30  # a file
_LARGEST_MANIFEST = 1 << 20

Signature = tuple[tuple[Any, ...], ...]


class UnknownModel(Exception):
    """There is no model with that name."""


class Manifest(BaseModel):
    """manifest.json."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["magika", "onnx"]
    source: str | None = None
    files: Annotated[dict[Annotated[str, Field(pattern=f"^{_NAME}$")], Digest], Field(max_length=1000)]


class _Entry:
    """Keep a model's folder, and its runner or the reason why there is none."""

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.runner: Runner | None = None
        self.refusal: str | None = None
        self.loaded_at: str | None = None

    @property
    def reason(self) -> str | None:
        """Why the model can't be used, or None."""
        if self.runner is not None:
            return self.runner.failure
        return self.refusal or "it is being loaded"


class Models:
    """Load the models of one folder, and look for changes every LOOK_EVERY_S seconds."""

    def __init__(self, folder: Path, carrier: Carrier, events: Events) -> None:
        self._folder = folder
        self._carrier = carrier
        self._events = events
        self._meter = EnergyMeter()
        self._entries: dict[str, _Entry] = {}
        self._looking = asyncio.Lock()
        self._is_settled = False

    async def run(self) -> None:
        """Load models that exist, come or change, until the task is cancelled."""
        while True:
            try:
                await self.look()
            except Exception:
                log.exception("looking for models failed")
            await asyncio.sleep(LOOK_EVERY_S)

    def close(self) -> None:
        for entry in self._entries.values():
            if entry.runner is not None:
                entry.runner.close()

    async def look(self) -> None:
        """Load each model that came or changed, and remove those that went."""
        async with self._looking:
            there = await asyncio.to_thread(self._signatures)
            for name in self._entries.keys() - there.keys():
                self._drop(name)
            changed = [name for name, signature in there.items() if self._is_other(name, signature)]
            await asyncio.gather(*(self._load(name, there[name]) for name in changed))
            self._is_settled = True

    def _is_other(self, name: str, signature: Signature) -> bool:
        known = self._entries.get(name)
        return known is None or known.signature != signature

    def _signatures(self) -> dict[str, Signature]:
        """Return a signature of each model's files, which differs if they changed."""
        found: dict[str, Signature] = {}
        for path in self._folder.glob(f"*/{_MANIFEST}"):
            folder = path.parent
            if re.fullmatch(_NAME, folder.name):
                try:
                    found[folder.name] = tuple(
                        (each.name, stats.st_ino, stats.st_size, stats.st_mtime_ns, stats.st_ctime_ns)
                        for each in sorted(folder.iterdir())
                        for stats in (each.stat(),)
                    )
                except OSError:
                    found[folder.name] = ()  # it is being changed, or is refused for what can't be read
        return dict(sorted(found.items()))

    def _drop(self, name: str) -> None:
        runner = self._entries.pop(name).runner
        if runner is not None:
            runner.close()
        log.info("a model is gone", model=name)

    async def _load(self, name: str, signature: Signature) -> None:
        """Copy a model through the ring, and run it once. Its former version runs until that has ended."""
        before = self._entries.get(name)
        entry = _Entry(signature)
        if before is None:
            self._entries[name] = entry
        try:
            runner = Runner(await self._bring(name), self._meter)
            await runner.start()
            entry.runner, entry.loaded_at = runner, now()
            log.info("a model is ready", model=name, digest=runner.model.digest)
        except ModelRefused as refused:
            entry.refusal = str(refused)
            if before is None or before.refusal != entry.refusal:
                self._events.fault("model", None, entry.refusal, "refused")
        except NymphError as error:
            entry.refusal = f"model {name}: no engine carried it: {error.strerror or error}"
            entry.signature = ()  # to be tried again
        self._entries[name] = entry
        if before is not None and before.runner is not None:
            before.runner.close()

    def names(self) -> list[str]:
        return sorted(self._entries)

    async def runner(self, name: str) -> Runner:
        """Return a model's runner; looks for changes if there is none.

        Raises ModelRefused, ModelBusy and UnknownModel.
        """
        if name not in self._entries or self._entries[name].reason is not None:
            await self.look()
        if name not in self._entries:
            raise UnknownModel(name)
        entry = self._entries[name]
        if entry.runner is None:
            raise ModelRefused(str(entry.reason))
        entry.runner.check()
        return entry.runner

    @property
    def unready(self) -> str | None:
        """Return why models can't be used yet, or None. A refused model is no reason."""
        if self._is_settled or any(entry.reason is None for entry in self._entries.values()):
            return None
        return "the models are being loaded"

    def states(self) -> list[ModelState]:
        return [self.state(name) for name in self.names()]

    def state(self, name: str) -> ModelState:
        """Return the state of a model. Raises UnknownModel."""
        if name not in self._entries:
            raise UnknownModel(name)
        entry = self._entries[name]
        reason, runner = entry.reason, entry.runner
        model = None if runner is None else runner.model
        verdict = runner is not None or entry.refusal is not None
        return ModelState(
            name=name,
            kind=None if model is None else model.kind,
            ready=reason is None,
            state="ready" if reason is None else "refused" if verdict else "loading",
            reason=reason,
            model_digest=None if model is None else model.digest,
            files={} if model is None else model.digests,
            source=None if model is None else model.source,
            token=_MAGIKA_TOKEN if model is not None and model.kind == "magika" else None,
            inputs=[] if runner is None else list(runner.inputs),
            outputs=[] if runner is None else list(runner.outputs),
            loaded_at=entry.loaded_at,
        )

    async def _bring(self, name: str) -> Model:
        """Copy a model's files through the ring. Raises ModelRefused, or NymphError if the ring failed."""
        folder = self._folder / name
        try:
            manifest = Manifest.model_validate_json(await asyncio.to_thread(_read, folder, _MANIFEST))
        except ValidationError as error:
            raise ModelRefused(f"model {name}: {_MANIFEST} is not as it should be: {wrong(error)}") from None
        except (OSError, ValueError) as error:
            raise ModelRefused(f"model {name}: {_MANIFEST} can't be had: {_why(error)}") from None
        if missing := set(_WANTED[manifest.kind]) - manifest.files.keys():
            raise ModelRefused(f"model {name}: {_MANIFEST} does not name {', '.join(sorted(missing))}")
        files: dict[str, bytes] = {}
        for file, wanted in manifest.files.items():
            try:
                content = await asyncio.to_thread(_read, folder, file)
                arrived = await self._carrier.carry(content, "model")
            except NymphError:
                raise  # the fabric's fault, not the model's
            except (OSError, ValueError) as error:
                raise ModelRefused(f"model {name}: {file} can't be had: {_why(error)}") from None
            files[file] = await asyncio.to_thread(bytes, arrived.memory)
            digest = (await asyncio.to_thread(pynymph.digest.payload, files[file])).hex()
            if digest != wanted:
                raise ModelRefused(
                    f"model {name}: {file} has BLAKE3 {digest}, and its manifest says {wanted}; "
                    "bring back the file that the manifest is of"
                )
        return Model(name, manifest.kind, manifest.source, manifest.files, files)


def wrong(error: ValidationError) -> str:
    """Format a validation error in one line, with at most 5 places."""
    found = error.errors(include_url=False, include_input=False)
    texts = [f"{'.'.join(map(str, each['loc'])) or 'it'}: {each['msg']}"[:200] for each in found[:5]]
    return "; ".join(texts) + (f"; and {len(found) - 5} more" if len(found) > 5 else "")


def install_magika(folder: Path) -> None:
    """Install the model of the package magika, unless the folder has a model that nymphd did not install.

    The package's record has a SHA-256 of each file, which is checked. Raises StartError.
    """
    package = metadata.distribution("magika")
    source = f"magika {package.version}"
    target = folder / MAGIKA
    if (target / _MANIFEST).exists():
        try:
            installed = Manifest.model_validate_json((target / _MANIFEST).read_bytes()).source
        except (OSError, ValidationError):
            return  # it is refused, which says why
        if installed == source or not (installed or "").startswith("magika "):
            return
    make_folder(target)
    digests = {}
    for file in package.files or []:
        if file.parts[:2] == ("magika", "models") and file.name in _WANTED["magika"]:
            content = file.read_binary()
            if file.hash is None or file.hash.value != _urlsafe(sha256(content).digest()):
                log.error("the package magika is damaged; install it again", file=str(file))
                return
            write_private(target / file.name, content)
            digests[file.name] = pynymph.digest.payload(content).hex()
    manifest = Manifest(kind="magika", source=source, files=digests)
    write_private(target / _MANIFEST, manifest.model_dump_json(indent=2).encode() + b"\n")
    log.info("a model is installed", model=MAGIKA, source=source, folder=str(target))


def _urlsafe(digest: bytes) -> str:
    """Encode a digest as a package's record does."""
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _read(folder: Path, name: str) -> bytes:
    """Read a regular file of the folder. Raises OSError, or ValueError if it is outside or special."""
    path = (folder / name).resolve(strict=True)
    if not path.is_relative_to(folder.resolve()):
        raise ValueError("it is a link to outside of the model's folder; put the file itself there")
    most = _LARGEST_MANIFEST if name == _MANIFEST else _LARGEST
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        stats = os.fstat(file.fileno())
        if not stat.S_ISREG(stats.st_mode):
            raise ValueError("it is no regular file")
        if not 1 <= stats.st_size <= most:
            raise ValueError(f"it has {stats.st_size} bytes, and may have 1 to {most}")
        return file.read()


def _why(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
