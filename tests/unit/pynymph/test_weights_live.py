# SPDX-License-Identifier: MIT
"""weights.Checker, watch() and compare_ranks() on the CPU: of arrays, and of torch if it is installed."""

import json
import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from rank_processes import run_ranks

from pynymph import weights
from pynymph.errors import ArgumentError, NymphError

MiB = 1 << 20
KEY = "dp=0/pp=1/tp=2/ep=3:"


def arrays() -> dict[str, Any]:
    generator = np.random.default_rng(1)
    return {
        "large": generator.integers(0, 256, 40 * MiB, np.uint8),
        "norm": np.ones(7, np.float32),
        "empty": np.zeros((0, 3), np.float16),
    }


def test_comparison_names_tensors_and_the_first_wrong_bytes() -> None:
    model = arrays()
    checker = weights.Checker(model, pp=1, tp=2, ep=3)
    checker.snapshot()
    assert checker.compare().match and checker.compare().tensors == 3
    model["large"][17 * MiB] ^= 1
    model["norm"][3] = 2
    found = checker.compare()
    assert not found.match
    assert {wrong.name: wrong.ranges for wrong in found.mismatches} == {
        f"{KEY}large": ((16 * MiB, 32 * MiB),),
        f"{KEY}norm": ((0, 28),),
    }
    model["large"][17 * MiB] ^= 1
    del model["norm"]
    model["empty"] = np.zeros((3, 0), np.float16)
    model["other"] = np.zeros(1, np.uint8)
    assert [(wrong.name, wrong.problem) for wrong in checker.compare().mismatches] == [
        (f"{KEY}empty", "is F16 [3, 0] instead of F16 [0, 3]"),
        (f"{KEY}norm", "is missing"),
        (f"{KEY}other", "is new"),
    ]


def test_checksums_of_another_process_are_compared() -> None:
    sender, receiver = arrays(), arrays()
    checksums = weights.Checker(sender).checksum()
    assert checksums["dp=0/pp=0/tp=0/ep=0:large"] == blake3(sender["large"]).hexdigest()
    checksums = json.loads(json.dumps(checksums))
    checker = weights.Checker(receiver)
    assert checker.compare(checksums).match
    receiver["norm"][0] = 5
    wrong = checker.compare(checksums).mismatches
    assert [(each.name, each.problem) for each in wrong] == [("dp=0/pp=0/tp=0/ep=0:norm", "differs")]
    del checksums["dp=0/pp=0/tp=0/ep=0:large"]
    assert [each.problem for each in checker.compare(checksums).mismatches] == ["differs", "is new"]


def test_a_tensor_whose_memory_was_freed_is_an_error() -> None:
    """FSDP frees a parameter's storage so, and keeps the tensor. Its pointer is 0 then."""
    torch = pytest.importorskip("torch")
    freed = torch.ones(10)
    freed.untyped_storage().resize_(0)
    with pytest.raises(ArgumentError, match="the memory of w was freed, as FSDP does it"):
        weights.Checker({"w": freed}).checksum()
    with pytest.raises(ArgumentError, match="the memory of w was freed, as FSDP does it"):
        weights.manifest({"w": freed})


def test_comparison_needs_a_snapshot() -> None:
    with pytest.raises(ArgumentError, match=r"call snapshot\(\) first"):
        weights.Checker(arrays()).compare()


def module(torch: Any) -> Any:
    torch.manual_seed(2)
    made = torch.nn.Sequential(
        torch.nn.Embedding(50, 16), torch.nn.Linear(16, 16, dtype=torch.bfloat16), torch.nn.BatchNorm1d(16)
    )
    made.register_buffer("inv_freq", torch.arange(4.0), persistent=False)
    made.register_buffer("flag", torch.tensor([True]))
    made.register_buffer("fp8", torch.ones(3, 5).to(torch.float8_e4m3fn))
    made.register_buffer("scale", torch.ones(1))
    made.scale._skip_weight_check = True
    made.tied = torch.nn.Linear(16, 50)
    made.tied.weight = made[0].weight
    return made


def test_reset_and_update_are_noticed_as_vllm_and_sglang_notice_them() -> None:
    """Snapshot, reset, update, compare. A snapshot of CPU tensors must not change with them."""
    torch = pytest.importorskip("torch")
    model = module(torch)
    right = {name: each.clone() for name, each in model.state_dict().items()}
    checker = weights.Checker(model)
    checker.snapshot()
    checksums = checker.checksum()
    names = {name.partition(":")[2] for name in checksums}
    assert names == {*right, "tied.bias"} - {"scale", "tied.weight"}
    checker.reset()
    assert {wrong.name for wrong in checker.compare().mismatches} == checksums.keys()
    assert torch.equal(model.inv_freq, torch.arange(4.0))  # no update brings these
    assert torch.equal(model.scale, torch.ones(1))
    model.load_state_dict({name: each for name, each in right.items() if name != "1.bias"}, strict=False)
    assert [wrong.name.partition(":")[2] for wrong in checker.compare().mismatches] == ["1.bias"]
    model.load_state_dict(right)
    assert checker.compare().match and checker.compare(checksums).match


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int64", "float16", "bfloat16", "float64", "complex64", "float8_e4m3fn"]
)
def test_reset_changes_a_tensor_of_any_dtype(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    for shape in ((), (1,), (2, 3), (100, 100)):
        model = {"t": torch.zeros(shape).to(getattr(torch, dtype))}
        checker = weights.Checker(model)
        for _ in range(3):
            checker.snapshot()
            checker.reset()
            assert not checker.compare().match
    assert model["t"].to(torch.complex64).isfinite().all()


class Told:
    """The faults of a watch, as they come."""

    def __init__(self) -> None:
        self.faults: list[weights.Fault] = []
        self._news = threading.Semaphore(0)

    def __call__(self, fault: weights.Fault) -> None:
        self.faults.append(fault)
        self._news.release()

    def wait(self) -> weights.Fault:
        assert self._news.acquire(timeout=60), "no fault was told"
        return self.faults[-1]


def until(true: Callable[[], bool]) -> None:
    for _ in range(6000):
        if true():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not happen within a minute")


def test_flipped_bits_are_found_and_named_while_a_model_is_watched(caplog: pytest.LogCaptureFixture) -> None:
    model, told = arrays(), Told()
    with (
        caplog.at_level(logging.ERROR, "pynymph.weights"),
        weights.watch(model, share=1, on_fault=told) as watch,
    ):
        until(lambda: watch.passes >= 1)
        assert not watch.faults
        model["large"][33 * MiB] ^= 8
        fault = told.wait()
        assert (fault.name, fault.ranges, fault.lasting) == ("large", ((32 * MiB, 40 * MiB),), True)
        passes = watch.passes
        until(lambda: watch.passes >= passes + 2)
        assert len(watch.faults) == 1  # told once
        model["norm"][0] = 3
        assert told.wait().name == "norm"
    assert "large differs in bytes 33554432 to 41943040" in caplog.text
    assert watch.nbytes >= watch.passes * 40 * MiB


def test_an_update_is_no_fault_if_the_watch_is_renewed() -> None:
    model, told = arrays(), Told()

    def update() -> None:
        model["large"] = np.zeros(20 * MiB, np.uint8)
        model["new"] = np.ones(3)
        del model["norm"]

    with weights.watch(model, share=1, on_fault=told) as watch:
        watch.renew(update)
        passes = watch.passes
        until(lambda: watch.passes >= passes + 2)
        assert not told.faults
        model["new"][1] = 0
        assert told.wait().name == "new"


def test_a_tensor_that_vanishes_is_a_fault() -> None:
    model, told = arrays(), Told()
    with weights.watch(model, share=1, on_fault=told):
        del model["norm"]
        fault = told.wait()
        assert (fault.name, fault.ranges, fault.lasting) == ("norm", ((0, 28),), True)


def test_the_watch_keeps_to_its_share_of_the_time() -> None:
    """It waits after each tensor in proportion to the time that reading took."""
    waits: list[float] = []
    watch = weights.watch(arrays(), share=0.5)
    try:
        stopping = watch._stopping
        original = stopping.wait

        def wait(timeout: float | None = None) -> bool:
            waits.append(timeout or 0)
            return original(0)

        stopping.wait = wait  # type: ignore[method-assign]
        busy, passes = watch.busy_seconds, watch.passes
        until(lambda: watch.passes >= passes + 3)
    finally:
        watch.stop()
    assert sum(waits) == pytest.approx(watch.busy_seconds - busy, rel=0.5)
    for share in (0, -1, 1.1):
        with pytest.raises(ArgumentError, match="above 0"):
            weights.watch({}, share=share)


def test_a_watch_that_ended_says_so() -> None:
    def fail(fault: weights.Fault) -> None:
        raise RuntimeError("no pager")

    model = arrays()
    watch = weights.watch(model, share=1, on_fault=fail)
    model["norm"][0] = 3
    until(lambda: watch.error is not None)
    with pytest.raises(NymphError, match="no pager; start it again"):
        watch.stop()


def test_prometheus_has_the_figures_of_a_watch() -> None:
    prometheus = pytest.importorskip("prometheus_client")
    registry, told, model = prometheus.CollectorRegistry(), Told(), arrays()
    with weights.watch(model, share=1, on_fault=told) as watch:
        registry.register(watch)
        assert registry.get_sample_value("pynymph_weights_wrong") == 0
        model["norm"][0] = 3
        told.wait()
        assert registry.get_sample_value("pynymph_weights_wrong") == 1
        assert registry.get_sample_value("pynymph_weights_faults_total") == 1
        assert registry.get_sample_value("pynymph_weights_watching") == 1
    assert registry.get_sample_value("pynymph_weights_watching") == 0


RANK = """
import sys, torch, torch.distributed as dist
from pynymph import weights
from pynymph.errors import ArgumentError
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=3)
part = dist.new_group([1, 2])
for case in ("equal", "flips", "layout", "part"):
    torch.manual_seed(3)
    large = torch.randint(0, 256, (40 << 20,), dtype=torch.uint8)
    model = {"large": large, "norm": torch.ones(5), "none": torch.ones(0)}
    if case == "flips":
        if rank == 1:
            model["large"][20 << 20] ^= 1
        model["norm"][0] = rank  # no two are the same
    if case == "layout" and rank == 2:
        model["norm"] = torch.ones(6)
    if case == "part":
        model["norm"][0] = 1 if rank else 7
    try:
        report = weights.compare_ranks(model, part if case == "part" else None)
        print(case, report.ok, report.ranks, [(d.name, d.majority, d.ranges) for d in report.differences])
    except ArgumentError as error:
        print(case, error.strerror)
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What each of three ranks prints of each case."""
    pytest.importorskip("torch")
    store = tmp_path_factory.mktemp("ranks") / "store"
    return [dict(line.split(" ", 1) for line in out.splitlines()) for out in run_ranks(RANK, 3, str(store))]


def test_ranks_that_are_equal_are_found_equal(ranks: list[dict[str, str]]) -> None:
    assert [rank["equal"] for rank in ranks] == ["True (0, 1, 2) []"] * 3


def test_ranks_that_differ_from_the_majority_are_named_with_their_bytes(ranks: list[dict[str, str]]) -> None:
    large = "('large', (0, 2), {1: ((16777216, 33554432),)})"
    norm = "('norm', (), {1: ((0, 20),), 2: ((0, 20),)})"
    assert [rank["flips"] for rank in ranks] == [f"False (0, 1, 2) [{large}, {norm}]"] * 3


def test_ranks_with_other_tensors_are_named(ranks: list[dict[str, str]]) -> None:
    expected = "ranks [2] have other names, dtypes or shapes than the others"
    assert all(rank["layout"].startswith(expected) for rank in ranks)


def test_only_the_ranks_of_the_group_are_compared(ranks: list[dict[str, str]]) -> None:
    outside, *inside = (rank["part"] for rank in ranks)
    assert outside.startswith("this process is not in the group")
    assert inside == ["True (1, 2) []"] * 2


def test_comparison_of_ranks_needs_a_group() -> None:
    pytest.importorskip("torch")
    with pytest.raises(ArgumentError, match=r"call init_process_group\(\) first"):
        weights.compare_ranks({})
