# SPDX-License-Identifier: MIT
# Everything starts here; `make` alone lists what there is.

NYMPH_VM := .venv/bin/nymph-vm

.PHONY: gpu help setup demo bench performance bench-blake3 bench-files fuzz-blake3 fuzz-readers fuzz test module install install-files uninstall packages vm service signatures serve lint docs audit check native endpoint sanitized sanitized-guest sanitized-user sanitized-endpoint stock long matrix arm64 coverage clean

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: .venv/ready ## install what the rest needs: Debian packages (with sudo), and .venv/

demo: .venv/ready ## build all, boot a VM, and measure verified copies in it: dist/dma_vs_copy.json
	$(NYMPH_VM) run --copy tools -- python3 tools/dma_vs_copy.py

bench: .venv/ready ## all benchmarks: dist/report.html, bench.json, trace.perfetto; bench/run.sh --quick for fewer
	bench/run.sh

performance: bench-blake3 bench ## docs/explanation/performance.md, the figures that readers need, of a full run
	cp dist/performance.md docs/explanation/performance.md

bench-blake3: .venv/ready ## kernel/blake3 natively, against the official implementation: dist/blake3.json
	.venv/bin/python -m bench.native_blake3

SIZE := 2048
bench-files: .venv/ready ## `pynymph copy` of SIZE=2048 MiB, against cp and b3sum of both files: dist/files.json
	.venv/bin/python -m bench.files --size $(SIZE)

SECONDS := 60
MINUTES := 10
FUZZ := build/fuzz-blake3
SANITIZE := -g -O1 -std=gnu11 -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all

fuzz-blake3: ## every BLAKE3 variant against portable C, for SECONDS=60; it needs clang and libclang-rt-dev
	mkdir -p $(FUZZ)/found
	for each in blake3: many: sse41:-msse4.1 avx2:-mavx2 'avx512:-mavx512f -mavx512vl'; do \
		clang $(SANITIZE) $${each#*:} -c kernel/blake3/$${each%%:*}.c -o $(FUZZ)/$${each%%:*}.o || exit 1; \
	done
	clang $(SANITIZE) -fsanitize=fuzzer -Ikernel/blake3 -o $(FUZZ)/fuzz tests/fuzz_blake3.c $(FUZZ)/*.o
	$(FUZZ)/fuzz -max_total_time=$(SECONDS) -max_len=200 -print_final_stats=1 -artifact_prefix=$(FUZZ)/ $(FUZZ)/found

READERS := manifest safetensors gguf npz bundle certificates statement evidence slice inference elements descriptors

fuzz-readers: .venv/ready ## what reads files and requests of others, for SECONDS=60 each; it needs atheris (CPython 3.11 to 3.13)
	.venv/bin/pip install --quiet atheris
	for each in $(READERS); do mkdir -p build/fuzz-readers/$$each && .venv/bin/python tests/fuzz/readers.py $$each \
		-max_total_time=$(SECONDS) -artifact_prefix=build/fuzz-readers/ build/fuzz-readers/$$each || exit 1; done

fuzz: .venv/ready ## the requests of the driver, in native guests, for MINUTES=10; dist/fuzz has what was found
	$(NYMPH_VM) fuzz --minutes $(MINUTES)

# What QEMU has more of in these, such as swap and ports, `make sanitized` runs.
NATIVELY := $(addprefix tests/vm/test_,bench_run.py endpoint.py leftovers.py)

test: .venv/ready ## unit tests here, what can be natively, then in a VM what needs one
	.venv/bin/pytest tests/unit
	.venv/bin/pytest --arch um --native $(sort $(NATIVELY) $(addprefix tests/vm/test_,guest_suite.py native.py pci.py))
	.venv/bin/pytest --after-native $(addprefix --ignore=,$(NATIVELY)) tests/vm

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

# Debian's headers have no System.map, without which modules_install leaves depmod out. Another root's is not indexed.
# modprobe prefers what is in updates/.
RELEASE ?= $(shell uname -r)
prefix ?= /usr/local
MODULES = $(DESTDIR)/lib/modules/$(RELEASE)/updates
# Whatever the kernel's own modules are: sign-file cannot sign a module that is packed.
UNPACKED = $(addprefix CONFIG_MODULE_COMPRESS_,ALL= GZIP= XZ= ZSTD=)
INDEX = $(if $(DESTDIR),:,PATH="$$PATH:/usr/sbin:/sbin" depmod $(RELEASE))

install: install-files ## as root, build and install the module for RELEASE, and install-files; DESTDIR=, prefix=/usr/local
	$(MAKE) module KDIR=/lib/modules/$(RELEASE)/build
	$(MAKE) -C /lib/modules/$(RELEASE)/build M=$(CURDIR)/build/kdir INSTALL_MOD_PATH=$(DESTDIR) \
		INSTALL_MOD_DIR=updates $(UNPACKED) modules_install
	$(INDEX)

install-files: ## as root, install the header, and what udev, systemd and modprobe need; DESTDIR=, prefix=/usr/local
	install -D -m 644 -t $(DESTDIR)$(prefix)/include/linux kernel/pcie_nymph.h
	install -D -m 644 -t $(DESTDIR)$(prefix)/lib/udev/rules.d udev/90-pcie-nymph.rules
	install -D -m 644 -t $(DESTDIR)$(prefix)/lib/sysusers.d systemd/sysusers.d/nymph.conf
	install -D -m 644 -t $(DESTDIR)$(prefix)/lib/modules-load.d systemd/modules-load.d/nymph.conf
	install -D -m 644 -t $(DESTDIR)$(prefix)/share/doc/pynymph/examples modprobe.d/nymph.conf

uninstall: ## as root, remove what install put there: RELEASE=, DESTDIR= and prefix= as it had them
	cd $(DESTDIR)$(prefix) && rm -f include/linux/pcie_nymph.h lib/udev/rules.d/90-pcie-nymph.rules \
		lib/sysusers.d/nymph.conf lib/modules-load.d/nymph.conf share/doc/pynymph/examples/nymph.conf
	rm -f $(MODULES)/pcie_nymph.ko* $(MODULES)/nymph_endpoint/nymph_endpoint.ko*
	$(INDEX)

packages: .venv/arm64 ## build Debian packages and wheels, and install them in clean systems: tests/packages
	.venv/bin/pip install --quiet -e 'vm[packages]'
	.venv/bin/pytest tests/packages

vm: .venv/ready ## a shell in a VM, with the module loaded, tests/, tools/ and bench/ there, and pynymph importable
	$(NYMPH_VM) run --copy tests --copy tools --copy bench

service: .venv/browser ## nymphd in a VM: its unit, attacks, faults beside it, the dashboard in Chromium, a soak; real clients
	.venv/bin/pytest --long tests/unit/nymphd/test_clients.py
	.venv/bin/pytest tests/service

signatures: .venv/ready ## signatures against model-signing, securesystemslib and @sigstore/verify; it needs npm
	.venv/bin/pytest --long tests/unit/pynymph/test_signatures.py

serve: .venv/ready ## nymphd in a VM, its dashboard on a port of this machine, until Ctrl-C
	$(NYMPH_VM) serve

gpu: .venv/ready ## on a machine with an NVIDIA GPU: its tests, and its benchmarks into dist/gpu.json, gpu_weights.json
	.venv/bin/pip install --quiet torch safetensors
	.venv/bin/pytest tests/gpu
	.venv/bin/pytest --model tests/guest/test_ring_examples.py
	.venv/bin/python -m bench.gpu
	.venv/bin/python -m bench.gpu_weights

lint: .venv/ready ## ruff, mypy, clang-format, reuse; W=1, sparse, checkpatch.pl, padding and small kernels for the module
	.venv/bin/pip install --quiet -e 'vm[lint]'
	.venv/bin/reuse lint --quiet || { .venv/bin/reuse lint; exit 1; }
	.venv/bin/ruff check pynymph nymphd vm tools bench examples tests
	.venv/bin/ruff format --check --quiet pynymph nymphd vm tools bench examples tests
	.venv/bin/mypy --strict pynymph nymphd/nymphd vm/nymph_vm tools bench examples
	.venv/bin/clang-format --dry-run --Werror tests/*.c tests/guest/*.c tests/unit/kernel/*.c bench/*.c
	$(NYMPH_VM) lint

docs: .venv/ready ## the documentation: build/docs/html and manual pages in build/docs/man; any warning is an error
	.venv/bin/pip install --quiet -e 'vm[docs]'
	rm -rf build/docs/html build/docs/man
	.venv/bin/sphinx-build -q -W --keep-going -d build/docs/trees -b html docs build/docs/html
	.venv/bin/sphinx-build -q -W --keep-going -d build/docs/trees -b man docs build/docs/man
	@echo build/docs/html/index.html

audit: .venv/ready ## asks an advisory service about the packages that nymphd needs; says so where none answers
	.venv/bin/pip install --quiet 'pip-audit>=2.7'
	.venv/bin/python tools/audit.py

check: lint docs audit sanitized stock long ## lint, docs, audit, sanitized, stock and long

sanitized: sanitized-guest sanitized-user sanitized-endpoint ## all of these

sanitized-guest: .venv/ready ## the guest tests, as root, on a kernel with sanitizers
	.venv/bin/pytest --kernel debug-6.1 -k 'not nymph-user' tests/vm/test_debug_kernel.py tests/vm/test_guest_suite.py

sanitized-user: .venv/ready ## the same as a user, KUnit, leftovers and planted bugs
	.venv/bin/pytest --kernel debug-6.1 -k 'not root-' tests/vm/test_guest_suite.py \
		tests/vm/test_kunit.py tests/vm/test_leftovers.py tests/vm/test_planted.py

sanitized-endpoint: .venv/ready ## the endpoint's faults on a kernel with sanitizers
	.venv/bin/pytest --kernel debug-6.1 tests/vm/test_endpoint.py tests/vm/test_spread.py

stock: .venv/ready ## all guest tests on the kernel that Debian ships
	.venv/bin/pytest tests/vm/test_guest_suite.py

long: .venv/ready ## leftovers, the driver against its model, and all guest tests as a user with sanitizers, for long
	.venv/bin/pytest --long tests/vm/test_leftovers.py tests/vm/test_guest_suite.py::test_driver_and_model_agree_for_long
	.venv/bin/pytest --long --kernel debug-6.1 -k 'nymph-user-engine1' tests/vm/test_guest_suite.py

native: .venv/ready ## guests without emulation (user-mode Linux), and PCI devices in Python
	.venv/bin/pytest --native -m native tests/vm

endpoint: .venv/ready ## faults far more often, and docs/reference/faults.md of it; every engine; swiotlb; dmatest for long
	.venv/bin/pytest --long tests/vm/test_endpoint.py
	cp dist/faults.md docs/reference/faults.md
	.venv/bin/pytest --every-engine tests/vm/test_guest_suite.py
	.venv/bin/pytest --append swiotlb=force tests/vm/test_guest_suite.py tests/vm/test_endpoint.py
	.venv/bin/pytest --long --kernel debug-6.1 tests/vm/test_endpoint.py::test_dmatest_passes

matrix: .venv/ready ## the guest tests and KUnit on every kernel, and one table
	$(NYMPH_VM) matrix

# An emulated NEON can be slower than portable C, which the module would then choose. On the debug kernel, KUnit
# and the tests of the variants have portable C hash, too.
arm64: .venv/arm64 ## the guest tests on arm64, the board's architecture, with NEON and without; KUnit, endpoint, lint
	$(NYMPH_VM) lint --arch arm64
	.venv/bin/pytest --arch arm64 --append pcie_nymph.blake3=neon tests/vm/test_blake3_variants.py \
		tests/vm/test_vm_guest.py tests/vm/test_legacy_client.py tests/vm/test_guest_suite.py \
		tests/vm/test_leftovers.py tests/vm/test_endpoint.py tests/vm/test_mte.py
	.venv/bin/pytest --arch arm64 --append pcie_nymph.blake3=portable \
		tests/vm/test_blake3_variants.py::test_asked_variant_is_chosen tests/vm/test_guest_suite.py
	.venv/bin/pytest --arch arm64 --kernel debug-6.1 --append pcie_nymph.blake3=neon \
		tests/vm/test_debug_kernel.py tests/vm/test_kunit.py tests/vm/test_blake3_variants.py \
		tests/vm/test_guest_suite.py

coverage: .venv/ready ## how much of the module the guest tests run: a table, and dist/coverage.json
	$(NYMPH_VM) coverage

clean: ## remove what was built here (~/.cache/nymph-vm has the rest)
	rm -rf .venv build dist nymphd/build *.egg-info */*.egg-info pynymph/*.so

INSTALLED_FROM := tools/setup pyproject.toml setup.py nymphd/pyproject.toml vm/pyproject.toml pynymph/_build.py pynymph/_tree.c kernel/pcie_nymph.h

.venv/arm64: .venv/ready
	tools/setup arm64
	touch $@

.venv/ready: $(INSTALLED_FROM)
	tools/setup
	touch $@

.venv/browser: $(INSTALLED_FROM)
	tools/setup browser
	touch .venv/ready $@
