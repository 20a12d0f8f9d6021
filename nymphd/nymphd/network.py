# SPDX-License-Identifier: MIT
"""Running models: sessions of private, verified bytes, own threads, and a deadline for each run."""

from __future__ import annotations

import asyncio
import ctypes
import io
import os
import re
import threading
import time
import zipfile
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
from magika import Magika
from magika.types import MagikaResult, ModelFeatures, Seekable
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

import pynymph
from nymphd.log import log
from nymphd.sensors import EnergyMeter
from nymphd.tensors import BadInput, Tensor, TensorSpec, packed

MODEL_FILE = "model.onnx"
CONFIG_FILE = "config.min.json"
LOAD_TIMEOUT_S = 120.0

_WORKERS = len(os.sched_getaffinity(0))
_NO_FOLDER = "/dev/null/nowhere"  # a folder in which ONNX Runtime finds no file that a model names
_BFLOAT16 = 16  # its number in ONNX
_STOP_S = 5.0  # longest time that a run takes to stop after it was told to
_MOST_STUCK = 2  # runs of one model that do not
_PROBE = b"import os\n\n\nprint(os.getcwd())\n" * 40
_LOW_INFORMATION = 8  # an input with fewer distinct bytes where the network looks says little


class ModelRefused(Exception):
    """The model can't be used. The message says why."""


class ModelBusy(ModelRefused):
    """The model can't be used now. The message says why."""


class ModelFailed(Exception):
    """The model failed with this input. The message has the cause."""


class InferenceTimeout(Exception):
    """The model did not answer in time."""


@dataclass(frozen=True)
class Profile:
    """Describe how inputs run. `wide`: an input uses all CPUs if the model is idle, else one CPU; and the
    number of waiting inputs that run in one batch."""

    wide: bool
    batch: int


PROFILES = {
    "latency": Profile(wide=True, batch=1),
    "throughput": Profile(wide=False, batch=8),
    "efficient": Profile(wide=False, batch=8),
}


@dataclass(frozen=True)
class Model:
    """Keep the files of a model, which arrived and have the digests of its manifest."""

    name: str
    kind: Literal["magika", "onnx"]
    source: str | None
    digests: dict[str, str]
    files: dict[str, bytes]

    @property
    def digest(self) -> str:
        """BLAKE3-256 of the output of `b3sum` for all files in the order of their names."""
        lines = "".join(f"{self.digests[name]}  {name}\n" for name in sorted(self.digests))
        return pynymph.digest.payload(lines.encode()).hex()


@dataclass(frozen=True)
class Ran:
    """Keep the result of one input of a batch. `began`: start on time.perf_counter()."""

    output: Any
    tokens: int
    batch: int
    began: float
    seconds: float
    energy_wh: float | None


class Sessions:
    """Keep ONNX Runtime's sessions of one model, on all CPUs and on one, made at their first use."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files
        self._made: dict[bool, onnxruntime.InferenceSession] = {}
        self._making = threading.Lock()

    def get(self, wide: bool) -> onnxruntime.InferenceSession:
        """Return a session. Raises the errors of ONNX Runtime."""
        with self._making:
            if wide not in self._made:
                self._made[wide] = self._make(0 if wide else 1)
            return self._made[wide]

    def _make(self, threads: int) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong is raised, too
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NO_FOLDER)
        others = self._files.keys() - {MODEL_FILE, CONFIG_FILE}
        data = {name: self._files[name] for name in others}
        if data:
            lengths = [len(content) for content in data.values()]
            options.add_external_initializers_from_files_in_memory(list(data), list(data.values()), lengths)
        return onnxruntime.InferenceSession(self._files[MODEL_FILE], options, ["CPUExecutionProvider"])


class Classifier(Magika):
    """Run Magika and its preparation of bytes; network and configuration came through the ring."""

    inputs = (TensorSpec("input", "BYTES", (-1,)),)
    outputs = (
        TensorSpec("label", "BYTES", (-1,)),
        TensorSpec("mime_type", "BYTES", (-1,)),
        TensorSpec("description", "BYTES", (-1,)),
        TensorSpec("group", "BYTES", (-1,)),
        TensorSpec("score", "FP32", (-1,)),
    )

    def __init__(self, model: Model) -> None:
        self._sessions = Sessions(model.files)
        self._run = threading.local()  # of the thread: which session, and with what options
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as packing:
            packing.writestr(CONFIG_FILE, model.files[CONFIG_FILE])
            packing.writestr(MODEL_FILE, b"")  # which has to be there, and is not read
        folder = zipfile.Path(zipfile.ZipFile(archive))
        super().__init__(model_dir=folder)  # type: ignore[arg-type]  # does all a Path has to here

    def _init_onnx_session(self) -> None:
        """Do nothing: Sessions makes the sessions."""

    def _get_raw_predictions(self, features: list[tuple[Path, ModelFeatures]]) -> list[list[float]]:
        seen = np.array([of.beg + of.mid + of.end for _, of in features], np.int32)
        run = self._run
        predicted = run.session.run(["target_label"], {"bytes": seen}, run.options)[0].tolist()
        return predicted  # type: ignore[no-any-return]

    def probe(self) -> None:
        self.run([io.BytesIO(_PROBE)], False, onnxruntime.RunOptions())

    def run(self, items: list[Any], wide: bool, options: Any) -> list[tuple[dict[str, Any], int]]:
        """Classify items, which are binary files. Returns each label, and the number of tokens read."""
        self._run.session, self._run.options = self._sessions.get(wide), options
        found: dict[int, MagikaResult] = {}
        features: list[tuple[Path, ModelFeatures]] = []
        for i, each in enumerate(items):
            ruled, wanted = self._get_result_or_features_from_seekable(Seekable(each))
            if ruled is not None:  # it is too short for the network
                found[i] = ruled
            elif wanted is not None:
                features.append((Path(str(i)), wanted))
        seen = {int(name): each for name, each in self._get_results_from_features(features).items()}
        config = self._model_config
        tokens = config.beg_size + config.mid_size + config.end_size
        notes = {int(path.name): self._note(of) for path, of in features}
        return [
            (_as_json(seen[i], notes[i]), tokens) if i in seen else (_as_json(found[i], _note_ruled(each)), 0)
            for i, each in enumerate(items)
        ]

    def _note(self, features: ModelFeatures) -> str | None:
        """Return a note for a label if the input has few distinct bytes where the network looks."""
        distinct = len({*features.beg, *features.end} - {self._model_config.padding_token})
        if distinct >= _LOW_INFORMATION:
            return None
        return (
            f"low information: where the network looks, the input has {distinct} distinct "
            f"byte{'s' if distinct > 1 else ''}, so the label says little, whatever its score"
        )


def _note_ruled(item: Any) -> str:
    item.seek(0, os.SEEK_END)
    size = item.tell()  # a mmap's seek() returns it only since Python 3.13
    why = f"it has {size} bytes" if size < _LOW_INFORMATION else "its first 4096 bytes are blank"
    return f"low information: {why}, so the network did not look, and only text was told from other bytes"


def _as_json(result: MagikaResult, note: str | None) -> dict[str, Any]:
    of = result.prediction.output
    return {
        "label": str(of.label),
        "description": of.description,
        "mime_type": of.mime_type,
        "group": of.group,
        "extensions": list(of.extensions),
        "is_text": of.is_text,
        "score": result.prediction.score,
        "model_label": str(result.prediction.dl.label),
        "overwrite_reason": str(result.prediction.overwrite_reason),
        "note": note,
    }


class Graph:
    """Run any ONNX model on tensors."""

    def __init__(self, model: Model) -> None:
        self._sessions = Sessions(model.files)
        session = self._sessions.get(wide=False)
        self.inputs = tuple(TensorSpec.of(each) for each in session.get_inputs())
        self.outputs = tuple(TensorSpec.of(each) for each in session.get_outputs())

    def probe(self) -> None:
        """Run it on zeros, or empty strings, with each free dimension 1."""
        zeros = {}
        for each in self.inputs:
            shape = tuple(1 if size == -1 else size for size in each.shape)
            zero = np.full(shape, "") if each.datatype == "BYTES" else np.zeros(shape)
            zeros[each.name] = packed(each, zero)
        self.run([zeros], False, onnxruntime.RunOptions())

    def run(self, items: list[Any], wide: bool, options: Any) -> list[tuple[list[Tensor], int]]:
        """Return the outputs of each item, tensors by name. Raises BadInput."""
        session = self._sessions.get(wide)
        return [(self._run_one(session, each, options), 0) for each in items]

    def _run_one(self, session: Any, given: dict[str, Tensor], options: Any) -> list[Tensor]:
        arrays = {spec.name: _array(spec, given[spec.name]) for spec in self.inputs}
        names = [each.name for each in self.outputs]
        if all(each.datatype != "BF16" for each in (*self.inputs, *self.outputs)):
            found = session.run(names, arrays, options)
            return [packed(spec, array) for spec, array in zip(self.outputs, found, strict=True)]
        # NumPy has no BF16, and ONNX Runtime makes no OrtValue of text; a model with both is refused.
        values = {spec.name: _ort_value(spec, arrays[spec.name]) for spec in self.inputs}
        found = session.run_with_ort_values(names, values, options)
        return [_tensor(spec, value) for spec, value in zip(self.outputs, found, strict=True)]


def _array(spec: TensorSpec, given: Tensor) -> Any:
    """Convert a tensor for ONNX Runtime; BYTES become text. Raises BadInput."""
    array = given.array()
    if spec.datatype != "BYTES":
        return array
    texts = np.empty(array.size, object)
    try:
        texts[:] = [each.decode() for each in array.reshape(-1).tolist()]
    except UnicodeDecodeError as error:
        raise BadInput(f"input {spec.name}: this model takes text in UTF-8: {error}") from None
    return texts.reshape(array.shape)


def _ort_value(spec: TensorSpec, array: Any) -> Any:
    if spec.datatype == "BF16":
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _tensor(spec: TensorSpec, value: Any) -> Tensor:
    if spec.datatype != "BF16":
        return packed(spec, value.numpy())
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return Tensor(spec.name, spec.datatype, tuple(value.shape()), data)


KINDS: dict[str, type[Classifier] | type[Graph]] = {"magika": Classifier, "onnx": Graph}


@dataclass(eq=False)
class _Job:
    item: Any
    profile: Profile
    answer: asyncio.Future[Ran]
    timeout_s: float
    deadline: float
    """Time on the loop's clock."""


class _Threads:
    """Keep a network and its threads. Both are abandoned if a run does not end."""

    def __init__(self, network: Classifier | Graph, name: str) -> None:
        self.network = network
        self.pool = ThreadPoolExecutor(_WORKERS, f"nymphd-{name}")


class Runner:
    """Run one model: inputs wait for one of its threads, one for each CPU.

    A late run is told to stop. Sessions and threads are replaced, so that waiting inputs run.
    """

    def __init__(self, model: Model, meter: EnergyMeter) -> None:
        self.model = model
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self.failure: str | None = None
        """Why it can't be used any more."""
        self._meter = meter
        self._threads: _Threads | None = None
        self._waiting: deque[_Job] = deque()
        self._running = 0
        self._stuck: set[asyncio.Future[Any]] = set()
        self._is_closed = self._has_too_many_stuck = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Make the sessions, and run the model once. Raises ModelRefused."""
        self._threads = await self._make()
        self.inputs, self.outputs = self._threads.network.inputs, self._threads.network.outputs
        self._pump()

    def close(self) -> None:
        """Refuse waiting inputs, and let runs end."""
        self._is_closed, self._has_too_many_stuck = True, False
        self._fail(f"model {self.model.name} was removed, or has changed")

    def check(self) -> None:
        """Raise ModelRefused, or ModelBusy, if the model can't be used."""
        if self.failure is not None:
            raise self._refusal(self.failure)

    def _refusal(self, why: str) -> ModelRefused:
        return (ModelBusy if self._has_too_many_stuck else ModelRefused)(why)

    async def run(self, item: Any, profile: str, timeout_s: float) -> Ran:
        """Run one input. Raises BadInput, ModelFailed, ModelRefused, ModelBusy and InferenceTimeout."""
        self.check()
        loop = asyncio.get_running_loop()
        job = _Job(item, PROFILES[profile], loop.create_future(), timeout_s, loop.time() + timeout_s)
        self._waiting.append(job)
        self._pump()
        try:
            async with asyncio.timeout_at(job.deadline):
                return await job.answer
        except TimeoutError:
            was = "input waited for others" if job in self._waiting else "input ran"
            raise self._late(job, was) from None
        finally:
            if job in self._waiting:
                self._waiting.remove(job)

    def _pump(self) -> None:
        """Run waiting inputs in free threads."""
        while self._waiting and self._running < _WORKERS and self._threads is not None:
            first = self._waiting.popleft()
            share = -(-len(self._waiting) // (_WORKERS - self._running))
            others = [job for job in self._waiting if job.profile is first.profile]
            batch = [first, *others[: min(share, first.profile.batch) - 1]] if share else [first]
            for job in batch[1:]:
                self._waiting.remove(job)
            wide = first.profile.wide and not self._running and not self._waiting
            self._running += 1
            # Here and not in the task: by the time that runs, the threads may be replaced.
            options, items = onnxruntime.RunOptions(), [job.item for job in batch]
            running = asyncio.get_running_loop().run_in_executor(
                self._threads.pool, self._run, self._threads.network, items, wide, options
            )
            self._start(self._await_batch(self._threads, batch, running, options))

    def _start(self, running: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(running)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _await_batch(
        self, threads: _Threads, batch: list[_Job], running: asyncio.Future[list[Ran]], options: Any
    ) -> None:
        late = min(job.deadline for job in batch) - asyncio.get_running_loop().time()
        await asyncio.wait([running], timeout=max(0.0, late))
        self._running -= 1
        if not running.done():
            options.terminate = True
            for job in batch:
                if not job.answer.done():
                    job.answer.set_exception(self._late(job, "input, or another of its batch, ran"))
            self._note_stuck(running)
            if self._threads is threads:
                await self._replace(threads)
            self._pump()
            return
        if running.cancelled():  # by _replace(), before it began
            self._waiting.extendleft(reversed(batch))
            if self.failure is not None:
                self._fail(self.failure)
            self._pump()
            return
        error = running.exception()
        for i, job in enumerate(batch):
            if job.answer.done():
                continue  # whoever asked may be gone
            if error is None:
                job.answer.set_result(running.result()[i])
            else:
                job.answer.set_exception(error)
        self._pump()

    def _run(self, network: Classifier | Graph, items: list[Any], wide: bool, options: Any) -> list[Ran]:
        """Run the network on items, in a thread."""
        before = self._meter.read()
        began = time.perf_counter()
        try:
            outputs = network.run(items, wide, options)
        except BadInput:
            raise
        except InvalidArgument as error:
            raise BadInput(f"model {self.model.name} does not take this: {cause(error)}") from None
        except Exception as error:  # whatever ONNX Runtime makes of it
            raise ModelFailed(f"model {self.model.name} failed at this input: {cause(error)}") from None
        seconds = time.perf_counter() - began
        used = self._meter.used_wh(before)
        share = None if used is None else used / len(items)
        return [Ran(output, tokens, len(items), began, seconds, share) for output, tokens in outputs]

    def _late(self, job: _Job, what: str) -> InferenceTimeout:
        return InferenceTimeout(
            f"model {self.model.name}: the {what} for {job.timeout_s:g} s, which is all it may take; "
            "send less at once, or raise infer_timeout_s"
        )

    async def _make(self) -> _Threads:
        """Make sessions, run them once, and start threads. Raises ModelRefused."""
        loop = asyncio.get_running_loop()
        name = self.model.name
        pool = ThreadPoolExecutor(1, f"nymphd-load-{name}")
        making = loop.run_in_executor(pool, self._make_now)
        pool.shutdown(wait=False)
        done, _ = await asyncio.wait([making], timeout=LOAD_TIMEOUT_S)
        if not done:
            raise ModelRefused(f"model {name} did not load and run once within {LOAD_TIMEOUT_S:g} s")
        return making.result()

    def _make_now(self) -> _Threads:
        try:
            network = KINDS[self.model.kind](self.model)
            network.probe()
        except Exception as error:  # whatever a file makes of ONNX Runtime, or Magika
            raise ModelRefused(f"model {self.model.name} can't be run: {cause(error)}") from None
        return _Threads(network, self.model.name)

    async def _replace(self, late: _Threads) -> None:
        """Abandon the sessions and threads of a run that does not end, and make others."""
        late.pool.shutdown(wait=False, cancel_futures=True)
        self._threads = None
        log.warning("a run was late; the model's sessions are replaced", model=self.model.name)
        await self._renew(lambda: self.failure is None)

    async def _recover(self) -> None:
        """Use the model again: its runs were slow, as those of a machine that is too busy are."""
        is_renewed = await self._renew(lambda: not self._is_closed)
        self._has_too_many_stuck = False
        if is_renewed:
            self.failure = None
            log.info("a late run has ended; the model is used again", model=self.model.name)

    async def _renew(self, are_wanted: Callable[[], bool]) -> bool:
        """Make sessions and threads, and have them if they are still wanted then."""
        try:
            threads = await self._make()
        except ModelRefused as refused:
            self._fail(str(refused))
            return False
        if not are_wanted():
            threads.pool.shutdown(wait=False)
            return False
        self._threads = threads
        return True

    def _note_stuck(self, running: asyncio.Future[Any]) -> None:
        def ended(running: asyncio.Future[Any]) -> None:
            self._stuck.discard(running)
            if not running.cancelled():
                running.exception()  # nobody wants it any more
            if self._has_too_many_stuck and len(self._stuck) == _MOST_STUCK - 1:
                self._start(self._recover())

        def look() -> None:
            if len(self._stuck) >= _MOST_STUCK and not running.done():
                self._has_too_many_stuck = True
                self._fail(
                    f"model {self.model.name}: {len(self._stuck)} runs do not end though told to; it is used "
                    "again when one of them has; else replace it, and restart nymphd to be rid of them"
                )

        self._stuck.add(running)
        running.add_done_callback(ended)
        asyncio.get_running_loop().call_later(_STOP_S, look)

    def _fail(self, why: str) -> None:
        self.failure = why
        if self._threads is not None:
            self._threads.pool.shutdown(wait=False)
            self._threads = None
        while self._waiting:
            if not (answer := self._waiting.popleft().answer).done():
                answer.set_exception(self._refusal(why))


def cause(error: Exception) -> str:
    """Format an error of ONNX Runtime or Magika in one line, without codes and places in its source."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error) or type(error).__name__)
    text = re.sub(r"\S*/\S+\.(cc|h|cpp):\d+ ", "", text)
    return " ".join(text.split())[:300]
