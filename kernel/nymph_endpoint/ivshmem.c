// SPDX-License-Identifier: GPL-2.0-only
/*
 * nymph_endpoint: access to the device behind QEMU's ivshmem-doorbell.
 */
#include <linux/io.h>
#include <linux/sizes.h>

#include "endpoint.h"

#define NYMPH_EP_BAR_DOORBELLS	0
#define NYMPH_EP_BAR_REGS	2

#define NYMPH_EP_DOORBELL	0xc

#define NYMPH_EP_IVSHMEM	0x1110

/*
 * All ivshmem devices of QEMU have these ids. The register id, NYMPH_EP_ID, tells
 * the endpoint from the others.
 */
const struct pci_device_id nymph_ep_ids[] = {
	{ PCI_DEVICE_SUB(PCI_VENDOR_ID_REDHAT_QUMRANET, NYMPH_EP_IVSHMEM,
			 PCI_SUBVENDOR_ID_REDHAT_QUMRANET,
			 PCI_SUBDEVICE_ID_QEMU) },
	{}
};
MODULE_DEVICE_TABLE(pci, nymph_ep_ids);

/**
 * nymph_ep_map() - Map registers and doorbells
 * @pdev: PCI function, enabled by pcim_enable_device()
 * @bars: filled
 *
 * Return: 0, -ENODEV if the function cannot be an endpoint, or -ENOMEM.
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
 * nymph_ep_ring_doorbell() - Tell the device that memory or a register has changed
 * @ep: the device
 * @n: number of the channel whose ring changed; or the number of channels, if a
 *	reset register changed
 */
void nymph_ep_ring_doorbell(struct nymph_ep *ep, unsigned int n)
{
	/* writel() orders earlier writes to memory and registers before it */
	writel(ep->peer << 16 | n, ep->doorbells + NYMPH_EP_DOORBELL);
}
