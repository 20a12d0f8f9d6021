/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Contract between pcie_nymph and the driver of a device with memory of its own.
 * pcie_nymph lends that memory to rings on the device's DMA channels.
 *
 * The driver creates a gen_pool with devm_gen_pool_create(dev, PAGE_SHIFT, nid,
 * NYMPH_CARD_POOL) before it registers its channels; @dev is dma_device.dev of the
 * channels. It adds memory with gen_pool_add_virt(), where
 *
 * - the virtual address is a mapping of normal memory for the CPU, such as that of
 *   memremap() with MEMREMAP_WC, and not one of ioremap();
 * - the physical address is the one that descriptors of the channels take as a
 *   source or a destination;
 * - both addresses and the size are multiples of PAGE_SIZE.
 *
 * pcie_nymph takes memory with gen_pool_dma_alloc() while it has one of the
 * channels. It returns all of it before the driver is unbound
 * (BUS_NOTIFY_UNBIND_DRIVER), and does not access it afterwards, so that devres can
 * unmap the memory and destroy the pool. The memory loses its contents when the
 * device is reset or loses power.
 */
#ifndef _NYMPH_CARD_H
#define _NYMPH_CARD_H

/* Name of the gen_pool. */
#define NYMPH_CARD_POOL	"card"

#endif /* _NYMPH_CARD_H */
