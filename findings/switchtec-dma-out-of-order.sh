#!/bin/sh
# SPDX-License-Identifier: MIT
# switchtec_dma tells a client that a copy went well though its completion had an error, if the completions came out of
# order: it keeps an early completion as a flag, and gives the result of the last one to all that waited for it. The
# kernel's log has the error. A client has to check the bytes, as VERIFY_HASH does.
# Seen with Linux 7.3.4, on the model of the function in vm/nymph_vm/devices/switchtec.py, in a native guest.
# Builds that kernel if it is not there, prints its release and what was seen; fails if that is no longer so.
set -eu
cd "$(dirname "$0")/.."
.venv/bin/nymph-vm run --arch um --endpoints 0 -- uname -r
.venv/bin/pytest --native -q tests/vm/test_switchtec.py -k hides_an_error
echo "switchtec_dma: a copy whose bytes did not arrive was reported as good without verify, and as an error with it"
