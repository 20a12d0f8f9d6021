# SPDX-License-Identifier: MIT
# Everything starts here; `make` alone lists what there is.

NYMPH_VM := .venv/bin/nymph-vm

.PHONY: help setup demo rate bench performance bench-blake3 fuzz-blake3 test module vm service serve lint check endpoint matrix arm64 coverage clean

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: .venv/ready ## install what the rest needs: Debian packages (with sudo), and .venv/

demo: .venv/ready ## build all, boot a VM, and measure verified copies in it: dist/dma_vs_copy.json
	$(NYMPH_VM) run --copy tools -- python3 tools/dma_vs_copy.py

rate: .venv/ready ## copies per second, one request each and in batches, from C and Python: dist/rate.json
	$(NYMPH_VM) run --copy tools --copy $$($(NYMPH_VM) program tools/rate.c) -- python3 tools/rate.py rate

bench: .venv/ready ## all benchmarks: dist/report.html, bench.json, trace.perfetto; tools/bench-run.sh --quick for fewer
	tools/bench-run.sh

performance: bench-blake3 bench ## docs/performance.md and its plots, of a full run, and of one natively
	cp dist/performance.md docs/performance.md
	rm -rf docs/plots
	cp -r dist/plots docs/plots

bench-blake3: .venv/ready ## kernel/blake3 natively, against the official implementation: dist/blake3.json
	.venv/bin/python tools/bench_blake3.py

SECONDS := 60
FUZZ := build/fuzz-blake3
SANITIZE := -g -O1 -std=gnu11 -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all

fuzz-blake3: ## every BLAKE3 variant against portable C, for SECONDS=60; it needs clang and libclang-rt-dev
	mkdir -p $(FUZZ)/found
	for each in blake3: many: sse41:-msse4.1 avx2:-mavx2 'avx512:-mavx512f -mavx512vl'; do \
		clang $(SANITIZE) $${each#*:} -c kernel/blake3/$${each%%:*}.c -o $(FUZZ)/$${each%%:*}.o || exit 1; \
	done
	clang $(SANITIZE) -fsanitize=fuzzer -Ikernel/blake3 -o $(FUZZ)/fuzz tests/fuzz_blake3.c $(FUZZ)/*.o
	$(FUZZ)/fuzz -max_total_time=$(SECONDS) -max_len=200 -print_final_stats=1 -artifact_prefix=$(FUZZ)/ $(FUZZ)/found

test: .venv/ready ## unit tests here, then the others in a VM
	.venv/bin/pytest tests/unit tests/vm

ifdef KDIR
module: ## build pcie_nymph.ko for the VM's kernel; KDIR=/lib/modules/.../build for another
	mkdir -p build/kdir
	cp -rpu kernel/. build/kdir/
	$(MAKE) -C $(KDIR) M=$(CURDIR)/build/kdir modules
	@echo build/kdir/pcie_nymph.ko
else
module: .venv/ready
	$(NYMPH_VM) build
endif

vm: .venv/ready ## a shell in a VM, with the module loaded, tests/ and tools/ there, and pynymph importable
	$(NYMPH_VM) run --copy tests --copy tools

service: .venv/browser ## nymphd in a VM: its unit, faults of the endpoint beside it, the dashboard in Chromium, a soak of a minute
	.venv/bin/pytest tests/service

serve: .venv/ready ## nymphd in a VM, its dashboard on a port of this machine, until Ctrl-C
	$(NYMPH_VM) serve

lint: .venv/ready ## ruff, mypy, clang-format; W=1, sparse, checkpatch.pl and padding for the module
	.venv/bin/pip install --quiet -e 'vm[lint]'
	.venv/bin/ruff check pynymph vm tools examples tests
	.venv/bin/mypy --strict pynymph vm/nymph_vm tools examples
	.venv/bin/clang-format --dry-run --Werror tests/*.c tests/guest/*.c tests/unit/*.c tools/*.c tools/benchmark/*.c
	$(NYMPH_VM) lint

check: lint ## lint; guest tests, KUnit and planted bugs on a kernel with sanitizers; long runs on the stock one
	.venv/bin/pytest --kernel debug-6.1 tests/vm/test_debug_kernel.py tests/vm/test_guest_suite.py \
		tests/vm/test_kunit.py tests/vm/test_leftovers.py tests/vm/test_endpoint.py tests/vm/test_spread.py \
		tests/vm/test_planted.py
	.venv/bin/pytest --long tests/vm/test_leftovers.py tests/vm/test_guest_suite.py::test_model_for_long

endpoint: .venv/ready ## faults far more often, and docs/faults.md of it; every engine; swiotlb; dmatest for long
	.venv/bin/pytest --long tests/vm/test_endpoint.py
	cp dist/faults.md docs/faults.md
	.venv/bin/pytest --every-engine tests/vm/test_guest_suite.py
	.venv/bin/pytest --append swiotlb=force tests/vm/test_guest_suite.py tests/vm/test_endpoint.py
	.venv/bin/pytest --long --kernel debug-6.1 tests/vm/test_endpoint.py::test_dmatest

matrix: .venv/ready ## the guest tests and KUnit on every kernel, and one table
	$(NYMPH_VM) matrix

# An emulated NEON can be slower than portable C, which the module would then choose. On the debug kernel, KUnit
# and the tests of the variants have portable C hash, too.
arm64: .venv/arm64 ## the guest tests on arm64, the board's architecture, with NEON and without; KUnit, endpoint, lint
	$(NYMPH_VM) lint --arch arm64
	.venv/bin/pytest --arch arm64 --append pcie_nymph.blake3=neon tests/vm/test_blake3_variants.py \
		tests/vm/test_vm_guest.py tests/vm/test_legacy_client.py tests/vm/test_rate.py tests/vm/test_guest_suite.py \
		tests/vm/test_leftovers.py tests/vm/test_endpoint.py
	.venv/bin/pytest --arch arm64 --append pcie_nymph.blake3=portable \
		tests/vm/test_blake3_variants.py::test_one_is_chosen tests/vm/test_guest_suite.py
	.venv/bin/pytest --arch arm64 --kernel debug-6.1 --append pcie_nymph.blake3=neon \
		tests/vm/test_debug_kernel.py tests/vm/test_kunit.py tests/vm/test_blake3_variants.py \
		tests/vm/test_guest_suite.py

coverage: .venv/ready ## how much of the module the guest tests run: a table, and dist/coverage.json
	$(NYMPH_VM) coverage

clean: ## remove what was built here (~/.cache/nymph-vm has the rest)
	rm -rf .venv build dist *.egg-info vm/*.egg-info pynymph/*.so

INSTALLED_FROM := vm/setup pyproject.toml setup.py vm/pyproject.toml pynymph/_build.py kernel/pcie_nymph.h

.venv/arm64: .venv/ready
	vm/setup arm64
	touch $@

.venv/ready: $(INSTALLED_FROM)
	vm/setup
	touch $@

.venv/browser: $(INSTALLED_FROM)
	vm/setup browser
	touch .venv/ready $@
