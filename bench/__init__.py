# SPDX-License-Identifier: MIT
"""The benchmarks: what bench/run.sh measures, and what it makes of that.

Where the driver is: `suite` says what is measured, `ways` how, with `load.c`, `fairness` and `inference`;
`tracing` records a trace. Anywhere: `figures` makes bench.json of it, pynymph.command.story the trace, which
`perfetto_trace` checks, `page` the plots and pages, and `comparison` compares two bench.json. `files`,
`native_blake3` and `gpu` are programs of their own.
"""

import sys
from pathlib import Path

# What the benchmarks share with tools/dma_vs_copy.py.
sys.path.append(str(Path(__file__).parents[1] / "tools"))
