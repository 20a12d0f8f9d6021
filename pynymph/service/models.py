# SPDX-License-Identifier: MIT
"""The models there are: folders with a manifest. What runs of one is what arrived through the ring.

manifest.json says of which kind it is, and what BLAKE3 its files have; a model with others is refused.
"""

from __future__ import annotations

import asyncio
import base64
import io
import re
import zipfile
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import pynymph
from pynymph.errors import NymphError
from pynymph.service.answers import Digest
from pynymph.service.carrier import Carrier
from pynymph.service.credentials import make_folder, write_private
from pynymph.service.events import Events
from pynymph.service.log import log

if TYPE_CHECKING:
    pass

MAGIKA = "magika"
MODEL_FILE = "model.onnx"

_MANIFEST = "manifest.json"
_MAGIKA_FILES = (MODEL_FILE, "config.min.json")
_MAGIKA_TOKEN = "a byte, or padding, that the network sees: 1024 from the start and 1024 from the end"
_LARGEST = 1 << 30  # a file


class ModelRefused(Exception):
    """The model can't be used; the message says why."""


class UnknownModel(Exception):
    """There is no model of that name."""


class Manifest(BaseModel):
    """manifest.json."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["magika"]
    source: str | None = None
    files: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")], Digest]


@dataclass(frozen=True)
class Model:
    """One whose files all arrived, and are what its manifest says."""

    name: str
    manifest: Manifest
    files: dict[str, bytes]

    @property
    def digest(self) -> str:
        return self.manifest.files[MODEL_FILE]

    @property
    def folder(self) -> zipfile.Path:
        """The files as they arrived, as a folder in memory."""
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as packed:
            for name, content in self.files.items():
                packed.writestr(name, content)
        return zipfile.Path(zipfile.ZipFile(archive))


@dataclass(frozen=True)
class ModelState:
    """A model as /models has it."""

    name: str
    kind: str | None
    ready: bool
    reason: str | None
    model_digest: str | None = None
    files: dict[str, str] | None = None
    source: str | None = None
    token: str | None = None


class Models:
    """The models in one folder."""

    def __init__(self, folder: Path, carrier: Carrier, events: Events) -> None:
        self._folder = folder
        self._carrier = carrier
        self._events = events
        self._loaded: dict[str, Model] = {}
        self._refused: dict[str, str] = {}
        self._loading = asyncio.Lock()

    async def load_all(self) -> None:
        for name in self.names():
            try:
                await self.load(name)
            except (ModelRefused, NymphError):
                continue  # which an event has said

    def names(self) -> list[str]:
        found = (path.parent.name for path in self._folder.glob(f"*/{_MANIFEST}"))
        return sorted(name for name in found if re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name))

    async def load(self, name: str) -> Model:
        """The model, which was or is now brought through the ring. Raises ModelRefused, or
        UnknownModel."""
        if name in self._loaded:
            return self._loaded[name]
        if name not in self.names():
            raise UnknownModel(name)
        async with self._loading:
            if name not in self._loaded:
                try:
                    self._loaded[name] = await self._bring(name)
                except ModelRefused as refused:
                    if self._refused.get(name) != str(refused):
                        self._events.fault("model", None, str(refused))
                    self._refused[name] = str(refused)
                    raise
                except NymphError as error:
                    self._refused[name] = f"model {name}: no engine carried it: {error.strerror or error}"
                    raise
                self._refused.pop(name, None)
                log.info("a model is ready", model=name, digest=self._loaded[name].digest)
        return self._loaded[name]

    @property
    def unready(self) -> list[str]:
        """Why models that should be ready are not."""
        return list(self._refused.values()) or ([] if self._loaded else ["no model is loaded"])

    def states(self) -> list[dict[str, Any]]:
        return [vars(self._state(name)) for name in self.names()]

    def _state(self, name: str) -> ModelState:
        model = self._loaded.get(name)
        if model is None:
            return ModelState(name, None, False, self._refused.get(name, "it is not loaded yet"), files={})
        of = model.manifest
        return ModelState(name, of.kind, True, None, model.digest, of.files, of.source, _MAGIKA_TOKEN)

    async def _bring(self, name: str) -> Model:
        try:
            manifest = Manifest.model_validate_json((self._folder / name / _MANIFEST).read_bytes())
        except (OSError, ValidationError) as error:
            raise ModelRefused(f"model {name}: {_MANIFEST} is not as it should be: {error}") from None
        if missing := set(_MAGIKA_FILES) - manifest.files.keys():
            raise ModelRefused(f"model {name}: {_MANIFEST} does not name {', '.join(sorted(missing))}")
        files: dict[str, bytes] = {}
        for file, wanted in manifest.files.items():
            path = self._folder / name / file
            try:
                content = await asyncio.to_thread(_read, path)
                arrived = await self._carrier.carry(content, "model")
            except NymphError:
                raise  # the fabric's fault, not the model's
            except (OSError, ValueError) as error:
                said = error.strerror if isinstance(error, OSError) else None
                raise ModelRefused(f"model {name}: {file} can't be had: {said or error}") from None
            files[file] = arrived.memory[:]
            digest = pynymph.digest.payload(files[file]).hex()
            if digest != wanted:
                raise ModelRefused(
                    f"model {name}: {file} has BLAKE3 {digest}, and its manifest says {wanted}; "
                    "bring back the file that the manifest is of"
                )
        return Model(name, manifest, files)


def install_magika(folder: Path) -> None:
    """Put the model of the package magika there, or of its newer version; what others put there stays.

    The package's own record has a SHA-256 of each file, and they have to agree. Raises StartError.
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
        if file.parts[:2] == ("magika", "models") and file.name in _MAGIKA_FILES:
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
    """As a package's record has it."""
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _read(path: Path) -> bytes:
    if not 1 <= path.stat().st_size <= _LARGEST:
        raise ValueError(f"a file of a model has 1 to {_LARGEST} bytes, and this one {path.stat().st_size}")
    return path.read_bytes()
