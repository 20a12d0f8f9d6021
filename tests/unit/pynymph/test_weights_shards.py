# SPDX-License-Identifier: MIT
"""Weights of which each rank has a part: FSDP2, tensor parallelism, and DTensor, on two ranks with gloo."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
shard_ranks = pytest.importorskip("shard_ranks")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return shard_ranks.tell(tmp_path_factory.mktemp("shards"), "cpu")


def test_fsdp_has_rows_of_the_files(ranks: list[dict[str, Any]]) -> None:
    for rank, slices in enumerate((((0, 3), (0, 6)), ((3, 5), (0, 6)))):
        _, ok, origins, wrong = ranks[rank]["fsdp"]
        assert ok and not wrong
        (first, last), _ = slices
        assert origins["up.weight"] == ["shard", "bytes", slices, ((24 * first, 24 * last),), ""]
    # 6 rows: 3 for each; and a row for two ranks: the second has none
    assert ranks[1]["fsdp"][2]["down.bias"][2] == ((3, 6),)
    assert ranks[0]["fsdp"][2]["norm.weight"][:2] == ["same name", "bytes"]
    assert ranks[1]["fsdp"][2]["norm.weight"][2] == ((1, 1),)


def test_shards_are_proven_after_a_cast(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        _, ok, origins, wrong = rank["cast"]
        assert ok and not wrong and origins["up.weight"][1] == "cast"


def test_a_shard_is_not_proven_without_the_files(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        _, ok, origins, wrong = rank["no files"]
        assert not ok and not wrong and origins["up.weight"][1] == ""
        assert origins["up.weight"][4] == "it is a part of up.weight; give the files to find out"


def test_tensor_parallelism_has_rows_and_columns_of_the_files(ranks: list[dict[str, Any]]) -> None:
    for rank, columns in enumerate(((0, 3), (3, 5))):
        _, ok, origins, _ = ranks[rank]["tp"]
        assert ok
        assert origins["up.weight"][:2] == ["shard", "bytes"]
        assert origins["down.weight"] == ["shard", "bytes", ((0, 6), columns), (), ""]  # no range of bytes
        assert origins["down.bias"][:2] == ["same name", "bytes"]  # replicated


def test_a_flipped_bit_in_a_shard_is_found_by_its_rank(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["flip"][1]
    _, ok, origins, wrong = ranks[1]["flip"]
    assert not ok and origins["down.weight"][1] == ""
    assert wrong == [["down.weight", "differs, in the part that is here", ((0, 48),)]]


def test_what_is_no_slice_is_not_proven(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        _, ok, origins, _ = rank["partial"]
        assert not ok and origins["up.weight"][0] == "unknown" and "of the whole" in origins["up.weight"][4]
        _, ok, origins, wrong = rank["shape"]
        assert not ok and wrong[0][1] == "is of F32 [4, 6] instead of F32 [5, 6]"


def test_a_manifest_of_shards_has_their_place_in_the_whole(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        names, ok = rank["manifest"]
        assert ok and "up.weight._local_tensor" in names and "up.weight.__context__" in names
        assert rank["context"] == ["w.__context__"]


def test_a_collective_under_way_is_waited_for(ranks: list[dict[str, Any]]) -> None:
    from pynymph import weights

    right = weights.manifest({"w": torch.tensor([1.0, 1, 2, 2])}).tensors["w"].digest.hex()
    for rank in ranks:
        assert rank["waits"] == ["AsyncCollectiveTensor", right]
