# SPDX-License-Identifier: MIT
"""weights.compare_actors() on a local Ray cluster of two nodes."""

import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pynymph import weights
from pynymph.errors import ArgumentError, NymphError

MiB = 1 << 20


class Replica:
    """What an engine's actor has."""

    def __init__(self) -> None:
        self.worker = type("Worker", (), {})()
        generator = np.random.default_rng(1)
        large = generator.integers(0, 256, 40 * MiB, np.uint8)
        self.worker.model = {"large": large, "norm": np.ones(5, np.float32), "none": np.zeros((0, 2))}

    def change(self, name: str, at: int) -> None:
        self.worker.model[name] = self.worker.model[name].copy()
        self.worker.model[name].view(np.uint8)[at] ^= 1

    def take(self, name: str) -> None:
        del self.worker.model[name]

    def node(self) -> str:
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def wait(self, seconds: float) -> None:
        import time

        time.sleep(seconds)

    def end(self) -> None:
        os._exit(1)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray with two nodes, as two hosts would be."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    node = {"num_cpus": 2, "object_store_memory": 100 * MiB}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node, resources={"other": 2})
        paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        ray.init(address=cluster.address, runtime_env={"env_vars": paths}, log_to_driver=False)
        yield ray
        ray.shutdown()
    finally:
        cluster.shutdown()


@pytest.fixture
def actors(ray: Any) -> Iterator[list[Any]]:
    """Three replicas, two of them on the other node."""
    made = [
        ray.remote(Replica).options(num_cpus=0.5, resources={"other": 1} if i else {}).remote()
        for i in range(3)
    ]
    assert len(set(ray.get([each.node.remote() for each in made]))) == 2
    yield made
    for each in made:
        ray.kill(each)


def test_replicas_that_are_equal_are_found_equal(actors: list[Any]) -> None:
    report = weights.compare_actors(actors, "worker.model")
    assert report.ok and report.ranks == (0, 1, 2) and report.tensors == 3
    assert report.nbytes == 40 * MiB + 20


def test_the_actor_that_differs_is_named_with_its_bytes(ray: Any, actors: list[Any]) -> None:
    ray.get(actors[1].change.remote("large", 20 * MiB))
    report = weights.compare_actors(actors, lambda actor: actor.worker.model)
    assert [(d.name, d.majority, d.ranges) for d in report.differences] == [
        ("large", (0, 2), {1: ((16 * MiB, 32 * MiB),)})
    ]
    ray.get(actors[2].change.remote("norm", 3))
    report = weights.compare_actors(actors[1:], "worker.model")  # no majority of two
    assert [(d.name, d.majority, d.ranges) for d in report.differences] == [
        ("large", (), {1: ((16 * MiB, 32 * MiB),)}),
        ("norm", (), {1: ((0, 20),)}),
    ]


def test_actors_with_other_tensors_are_named(ray: Any, actors: list[Any]) -> None:
    ray.get(actors[2].take.remote("norm"))
    with pytest.raises(
        ArgumentError, match=r"actors \[2\] have other names.*\(2 and 3 tensors\); give actors"
    ):
        weights.compare_actors(actors, "worker.model")


def test_an_actor_without_a_model_is_named(actors: list[Any]) -> None:
    with pytest.raises(ArgumentError, match=r"actor 0: a Replica has no worker\.engine; give the path"):
        weights.compare_actors(actors, "worker.engine")
    with pytest.raises(NymphError, match="actor 0 failed: ZeroDivisionError: division by zero"):
        weights.compare_actors(actors, lambda actor: 1 / 0)


def test_an_actor_that_does_not_answer_is_named(actors: list[Any]) -> None:
    actors[1].wait.remote(60)
    with pytest.raises(NymphError, match="actor 1 did not answer in time; look whether it is busy"):
        weights.compare_actors(actors, "worker.model", timeout=10)


def test_an_actor_that_died_is_named(actors: list[Any]) -> None:
    actors[2].end.remote()
    with pytest.raises(NymphError, match=r"actor 2 is gone: .*; leave it out, or start it again"):
        weights.compare_actors(actors, "worker.model", timeout=60)


def test_one_actor_is_no_comparison() -> None:
    with pytest.raises(ArgumentError, match="nothing to compare 1 actors with; give two"):
        weights.compare_actors([None], "model")


def test_ray_has_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(NymphError, match=r"ray is not installed: .*pip install 'pynymph\[ray\]'"):
        weights.compare_actors([None, None], "model")
