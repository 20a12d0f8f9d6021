# SPDX-License-Identifier: MIT
"""Manifests of a model's weights, and verification where the weights are used.

>>> manifest = weights.manifest("model/")                      # once, of files that are known to be right
>>> manifest.save("model.weights.json")
>>> tensors = weights.load("model/", manifest="model.weights.json", device="cuda:0")   # or a WeightsError

A manifest has the dtype, the shape and the BLAKE3 digest of each tensor, and the nodes of its BLAKE3 tree
that span 16 MiB each, which locate a fault. The GPU hashes tensors in its memory, and the CPU all others.
"""

from pynymph.weights.actors import compare_actors
from pynymph.weights.checker import Checker, Comparison
from pynymph.weights.loaders import LOADERS, load, loaded, loaded_model
from pynymph.weights.making import file_digest, manifest
from pynymph.weights.manifests import (
    FORMAT,
    LEVEL,
    NODE_BYTES,
    VERSION,
    File,
    Manifest,
    Progress,
    Report,
    Tensor,
    WeightsError,
    Wrong,
    replace_file,
    spans,
)
from pynymph.weights.matching import Match, Origin, match
from pynymph.weights.ranks import RankDifference, RanksReport, compare_ranks
from pynymph.weights.safetensors_files import read_header, shards
from pynymph.weights.verification import verify
from pynymph.weights.watching import Fault, Watch, watch

__all__ = [
    "FORMAT",
    "LEVEL",
    "LOADERS",
    "NODE_BYTES",
    "VERSION",
    "Checker",
    "Comparison",
    "Fault",
    "File",
    "Manifest",
    "Match",
    "Origin",
    "Progress",
    "RankDifference",
    "RanksReport",
    "Report",
    "Tensor",
    "Watch",
    "WeightsError",
    "Wrong",
    "compare_actors",
    "compare_ranks",
    "file_digest",
    "load",
    "loaded",
    "loaded_model",
    "manifest",
    "match",
    "read_header",
    "replace_file",
    "shards",
    "spans",
    "verify",
    "watch",
]
