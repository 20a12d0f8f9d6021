# SPDX-License-Identifier: MIT
"""Models of DMA engines that Linux has drivers for: PCI functions of native guests, see nymph_vm.pci."""
