# SPDX-License-Identifier: MIT
"""The benchmarks: what tools/bench-run.sh measures, and what it makes of that.

Where the driver is: `suite` says what is measured, `ways` how, with `load.c`; `tracing` records a trace.
Anywhere: `figures` makes bench.json of it, `perfetto_trace` the trace, `page` the plots and pages, and
`comparison` compares two bench.json.
"""
