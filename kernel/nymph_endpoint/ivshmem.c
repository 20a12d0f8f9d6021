// SPDX-License-Identifier: GPL-2.0-only
/*
 * nymph_endpoint: the device behind QEMU's ivshmem-doorbell.
 */
#include <linux/io.h>
#include <linux/sizes.h>

#include "endpoint.h"

#define NYMPH_EP_BAR_DOORBELLS	0
#define NYMPH_EP_BAR_REGS	2

#define NYMPH_EP_DOORBELL	0xc

/* All that ivshmem is: most of them are something else. */
const struct pci_device_id nymph_ep_ids[] = {
	{ PCI_DEVICE(0x1af4, 0x1110) },
	{}
};
MODULE_DEVICE_TABLE(pci, nymph_ep_ids);

/**
 * nymph_ep_map() - reach the registers
 * @pdev: enabled, with devres
 * @bars: filled
 *
 * Return: 0, -ENODEV if this can't be an endpoint, or -ENOMEM.
 */
int nymph_ep_map(struct pci_dev *pdev, struct nymph_ep_bars *bars)
{
	bars->size = pci_resource_len(pdev, NYMPH_EP_BAR_REGS);
	bars->cpu_address = pci_resource_start(pdev, NYMPH_EP_BAR_REGS);
	bars->bus_address = pci_bus_address(pdev, NYMPH_EP_BAR_REGS);
	if (bars->size < SZ_1M)
		return -ENODEV;
	bars->regs = pcim_iomap(pdev, NYMPH_EP_BAR_REGS, SZ_1M);
	bars->doorbells = pcim_iomap(pdev, NYMPH_EP_BAR_DOORBELLS, 0);
	return bars->regs && bars->doorbells ? 0 : -ENOMEM;
}

/**
 * nymph_ep_ring_doorbell() - have the device look
 * @ep: the device
 * @n: a channel, or the number of channels: at the reset registers
 */
void nymph_ep_ring_doorbell(struct nymph_ep *ep, unsigned int n)
{
	/* orders what is written to memory and registers before it */
	writel(ep->peer << 16 | n, ep->doorbells + NYMPH_EP_DOORBELL);
}
