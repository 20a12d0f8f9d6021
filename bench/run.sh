#!/bin/sh
# SPDX-License-Identifier: MIT
# All benchmarks: in a VM, or right here if this machine has the module loaded. What comes of it is in dist/.
#   bench/run.sh [--quick] [--only GROUP] [--rounds N] [--seconds N]
set -eu
cd "$(dirname "$0")/.."
make -s .venv/ready
# What an earlier run left is not to be taken for this one's.
rm -rf dist/bench.json dist/bench-raw.json dist/trace.perfetto dist/report.html dist/performance.md
program=$(.venv/bin/nymph-vm program bench/load.c -- -luring)
if [ -c /dev/pcie_nymph ]; then
	.venv/bin/python -m bench measure "$program" "$@"
else
	# The image that has what nymphd needs; the one that udev starts there would be in the way.
	.venv/bin/nymph-vm run --image systemd --endpoints 4 --copy tools --copy bench --copy "$program" -- \
		sh -c 'systemctl stop nymphd && exec python3 -m bench measure "$@"' measure "./${program##*/}" "$@"
fi
.venv/bin/python -m bench publish
