// SPDX-License-Identifier: GPL-2.0-only
/*
 * nymph_endpoint: driver of the device in docs/reference/endpoint.md. It registers
 * the device's channels with the kernel's dmaengine.
 */
#include <linux/dma-mapping.h>
#include <linux/genalloc.h>
#include <linux/io.h>
#include <linux/io-64-nonatomic-lo-hi.h>
#include <linux/module.h>
#include <linux/sizes.h>
#include <linux/slab.h>

#include "endpoint.h"
#include "nymph_card.h"
#include "pcie_nymph.h"

/* --- sysfs --- */

static ssize_t nymph_ep_counter_show(struct device *dev,
				     struct device_attribute *attr, char *buf)
{
	struct nymph_ep *ep = dev_get_drvdata(dev);
	long counter = (long)container_of(attr, struct dev_ext_attribute,
					  attr)->var;

	return sysfs_emit(buf, "%ld\n",
			  atomic_long_read(&ep->counters[counter]));
}

#define NYMPH_EP_COUNTER_ATTR(_name, _counter)				\
	static struct dev_ext_attribute nymph_ep_attr_##_name = {	\
		__ATTR(_name, 0444, nymph_ep_counter_show, NULL),	\
		(void *)(_counter)					\
	}

NYMPH_EP_COUNTER_ATTR(resets, NYMPH_EP_RESETS);
NYMPH_EP_COUNTER_ATTR(unanswered_resets, NYMPH_EP_UNANSWERED);
NYMPH_EP_COUNTER_ATTR(stalls, NYMPH_EP_STALLS);
NYMPH_EP_COUNTER_ATTR(errors, NYMPH_EP_ERRORS);
NYMPH_EP_COUNTER_ATTR(violations, NYMPH_EP_VIOLATIONS);
NYMPH_EP_COUNTER_ATTR(missed_interrupts, NYMPH_EP_MISSED_INTERRUPTS);

static struct attribute *nymph_ep_attrs[] = {
	&nymph_ep_attr_resets.attr.attr,
	&nymph_ep_attr_unanswered_resets.attr.attr,
	&nymph_ep_attr_stalls.attr.attr,
	&nymph_ep_attr_errors.attr.attr,
	&nymph_ep_attr_violations.attr.attr,
	&nymph_ep_attr_missed_interrupts.attr.attr,
	NULL
};

static const struct attribute_group nymph_ep_group = {
	.name = "counters",
	.attrs = nymph_ep_attrs,
};

static const struct attribute_group *nymph_ep_groups[] = {
	&nymph_ep_group,
	NULL
};

/* --- probe and remove --- */

static void nymph_ep_free(struct nymph_ep *ep)
{
	unsigned int i;

	for (i = 0; i < ep->nr_channels; i++)
		nymph_ep_chan_free(&ep->channels[i]);
	pci_dev_put(ep->pdev);
	kfree(ep);
}

static void nymph_ep_release(struct dma_device *dma)
{
	nymph_ep_free(container_of(dma, struct nymph_ep, dma));
}

/* Reads the device's description of itself once, and refuses impossible values. */
static int nymph_ep_identify(struct pci_dev *pdev,
			     const struct nymph_ep_bars *bars,
			     struct nymph_ep_regs *found)
{
	struct nymph_ep_regs __iomem *regs = bars->regs;
	u64 card_offset, card_size;

	if (readl(&regs->id) != NYMPH_EP_ID)
		return -ENODEV;
	found->version = cpu_to_le32(readl(&regs->version));
	found->channels = cpu_to_le32(readl(&regs->channels));
	found->peer = cpu_to_le32(readl(&regs->peer));
	found->max_length = cpu_to_le32(readl(&regs->max_length));
	card_offset = lo_hi_readq(&regs->card_offset);
	card_size = lo_hi_readq(&regs->card_size);
	found->card_offset = cpu_to_le64(card_offset);
	found->card_size = cpu_to_le64(card_size);

	if (le32_to_cpu(found->version) != NYMPH_EP_VERSION) {
		pci_err(pdev, "register version %u is not supported; this driver needs version %u\n",
			le32_to_cpu(found->version), NYMPH_EP_VERSION);
		return -ENODEV;
	}
	if (!found->channels || !found->max_length ||
	    le32_to_cpu(found->channels) > NYMPH_EP_MAX_CHANNELS ||
	    le32_to_cpu(found->peer) > U16_MAX || card_offset < SZ_1M ||
	    card_offset % SZ_1M || card_offset > bars->size ||
	    card_size > bars->size - card_offset) {
		pci_err(pdev, "registers have impossible values; reset the device\n");
		return -ENODEV;
	}
	return 0;
}

static void nymph_ep_free_irqs(struct nymph_ep *ep, unsigned int n)
{
	while (n--)
		free_irq(pci_irq_vector(ep->pdev, n), &ep->channels[n]);
	pci_free_irq_vectors(ep->pdev);
}

static int nymph_ep_request_irqs(struct nymph_ep *ep)
{
	struct pci_dev *pdev = ep->pdev;
	unsigned int i;
	int ret;

	ret = pci_alloc_irq_vectors(pdev, ep->nr_channels, ep->nr_channels,
				    PCI_IRQ_MSIX);
	if (ret < 0) {
		pci_err(pdev, "no MSI-X vector for each of %u channels: %d\n",
			ep->nr_channels, ret);
		return ret;
	}
	for (i = 0; i < ep->nr_channels; i++) {
		ret = request_irq(pci_irq_vector(pdev, i), nymph_ep_chan_irq, 0,
				  "nymph_endpoint", &ep->channels[i]);
		if (ret) {
			nymph_ep_free_irqs(ep, i);
			return ret;
		}
	}
	return 0;
}

/* Largest allocation of a kernel with the usual configuration. */
#define NYMPH_EP_RAM_MAX	SZ_4M

/* For user-mode Linux, where no loads and stores reach a BAR: uses RAM instead. */
static int nymph_ep_publish_ram(struct pci_dev *pdev, struct gen_pool *pool,
				u64 size)
{
	dma_addr_t address;
	void *memory;
	size_t now;
	int ret;

	for (; size; size -= now) {
		now = min_t(u64, size, NYMPH_EP_RAM_MAX);
		memory = dmam_alloc_coherent(&pdev->dev, now, &address,
					     GFP_KERNEL);
		if (!memory)
			return -ENOMEM;
		ret = gen_pool_add_virt(pool, (unsigned long)memory, address,
					now, dev_to_node(&pdev->dev));
		if (ret)
			return ret;
	}
	return 0;
}

/* Makes the card's memory available to clients of its channels: nymph_card.h. */
static int nymph_ep_publish_card(struct pci_dev *pdev,
				 const struct nymph_ep_bars *bars,
				 const struct nymph_ep_regs *found)
{
	u64 offset = le64_to_cpu(found->card_offset);
	u64 size = le64_to_cpu(found->card_size) & PAGE_MASK;
	struct gen_pool *pool;
	void *memory;

	if (!size)
		return 0;
	pool = devm_gen_pool_create(&pdev->dev, PAGE_SHIFT,
				    dev_to_node(&pdev->dev), NYMPH_CARD_POOL);
	if (IS_ERR(pool))
		return PTR_ERR(pool);
	if (IS_ENABLED(CONFIG_UML))
		return nymph_ep_publish_ram(pdev, pool, size);
	memory = devm_memremap(&pdev->dev, bars->cpu_address + offset, size,
			       MEMREMAP_WC);
	if (IS_ERR(memory))
		return PTR_ERR(memory);
	return gen_pool_add_virt(pool, (unsigned long)memory,
				 bars->bus_address + offset, size,
				 dev_to_node(&pdev->dev));
}

static int nymph_ep_register(struct nymph_ep *ep)
{
	struct dma_device *dma = &ep->dma;

	dma->dev = &ep->pdev->dev;
	dma_cap_set(DMA_MEMCPY, dma->cap_mask);
	dma_cap_set(DMA_INTERRUPT, dma->cap_mask);
	/* only for clients that ask for a channel by name */
	dma_cap_set(DMA_PRIVATE, dma->cap_mask);
	dma->residue_granularity = DMA_RESIDUE_GRANULARITY_DESCRIPTOR;
	dma->device_release = nymph_ep_release;
	nymph_ep_chan_set_ops(dma);
	return dma_async_device_register(dma);
}

static int nymph_ep_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct nymph_ep_regs found = {};
	struct nymph_ep_bars bars;
	unsigned int i, channels;
	struct nymph_ep *ep;
	int ret;

	ret = pcim_enable_device(pdev);
	if (!ret)
		ret = nymph_ep_map(pdev, &bars);
	if (!ret)
		ret = nymph_ep_identify(pdev, &bars, &found);
	if (!ret)
		ret = dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(64));
	if (!ret)
		ret = nymph_ep_publish_card(pdev, &bars, &found);
	if (ret)
		return ret;
	dma_set_max_seg_size(&pdev->dev, le32_to_cpu(found.max_length));

	channels = le32_to_cpu(found.channels);
	ep = kzalloc(struct_size(ep, channels, channels), GFP_KERNEL);
	if (!ep)
		return -ENOMEM;
	ep->pdev = pci_dev_get(pdev);
	ep->regs = bars.regs;
	ep->doorbells = bars.doorbells;
	ep->peer = le32_to_cpu(found.peer);
	ep->max_length = le32_to_cpu(found.max_length);
	INIT_LIST_HEAD(&ep->dma.channels);
	pci_set_drvdata(pdev, ep);
	ep->card_base = found.card_size && !IS_ENABLED(CONFIG_UML) ?
			bars.bus_address + le64_to_cpu(found.card_offset) : 0;

	for (i = 0; i < channels; i++) {
		ep->nr_channels++;
		ret = nymph_ep_chan_init(ep, i);
		if (ret)
			goto free;
	}
	/* frozen with the tasks: no work accesses a suspended device */
	ep->wq = alloc_workqueue("nymph_endpoint", WQ_UNBOUND | WQ_FREEZABLE,
				 0);
	if (!ep->wq) {
		ret = -ENOMEM;
		goto free;
	}
	ret = nymph_ep_request_irqs(ep);
	if (ret)
		goto free_wq;
	pci_set_master(pdev);
	for (i = 0; i < channels; i++) {
		ret = nymph_ep_chan_reset(&ep->channels[i]);
		if (ret) {
			pci_err(pdev, "channel %u does not answer\n", i);
			goto clear_master;
		}
	}
	/* slot_reset restores this state */
	pci_save_state(pdev);
	ret = nymph_ep_register(ep);
	if (ret)
		goto clear_master;
	pci_info(pdev, "%u DMA channels, %llu MiB of memory\n", channels,
		 le64_to_cpu(found.card_size) / SZ_1M);
	return 0;

clear_master:
	pci_clear_master(pdev);
	nymph_ep_free_irqs(ep, channels);
free_wq:
	destroy_workqueue(ep->wq);
free:
	nymph_ep_free(ep);
	return ret;
}

static void nymph_ep_stop(struct nymph_ep *ep, enum nymph_ep_state state)
{
	unsigned int i;

	for (i = 0; i < ep->nr_channels; i++)
		nymph_ep_chan_stop(&ep->channels[i], state);
}

static void nymph_ep_start(struct nymph_ep *ep)
{
	unsigned int i;

	pci_set_master(ep->pdev);
	/* a restore invalidates the saved state, and slot_reset may need it again */
	pci_save_state(ep->pdev);
	for (i = 0; i < ep->nr_channels; i++)
		nymph_ep_chan_resume(&ep->channels[i]);
}

static void nymph_ep_remove(struct pci_dev *pdev)
{
	struct nymph_ep *ep = pci_get_drvdata(pdev);

	nymph_ep_stop(ep, NYMPH_EP_GONE);
	pci_clear_master(pdev);
	nymph_ep_free_irqs(ep, ep->nr_channels);
	destroy_workqueue(ep->wq);
	/*
	 * Clients may still hold channels; ep is freed when the last client ends.
	 * Until then the kernel's list contains the other channels, whose
	 * devices with their names are gone: no client may find them there.
	 */
	dma_cap_clear(DMA_MEMCPY, ep->dma.cap_mask);
	dma_cap_clear(DMA_INTERRUPT, ep->dma.cap_mask);
	dma_async_device_unregister(&ep->dma);
}

static void nymph_ep_shutdown(struct pci_dev *pdev)
{
	nymph_ep_stop(pci_get_drvdata(pdev), NYMPH_EP_STOPPED);
	pci_clear_master(pdev);
}

static int nymph_ep_suspend(struct device *dev)
{
	nymph_ep_stop(dev_get_drvdata(dev), NYMPH_EP_STOPPED);
	return 0;
}

static int nymph_ep_resume(struct device *dev)
{
	nymph_ep_start(dev_get_drvdata(dev));
	return 0;
}

static DEFINE_SIMPLE_DEV_PM_OPS(nymph_ep_pm_ops, nymph_ep_suspend,
				nymph_ep_resume);

/* --- errors of the bus, and resets by others --- */

static pci_ers_result_t nymph_ep_error_detected(struct pci_dev *pdev,
						pci_channel_state_t state)
{
	struct nymph_ep *ep = pci_get_drvdata(pdev);

	if (state == pci_channel_io_perm_failure) {
		nymph_ep_stop(ep, NYMPH_EP_GONE);
		return PCI_ERS_RESULT_DISCONNECT;
	}
	nymph_ep_stop(ep, NYMPH_EP_STOPPED);
	return state == pci_channel_io_normal ? PCI_ERS_RESULT_CAN_RECOVER :
						PCI_ERS_RESULT_NEED_RESET;
}

static pci_ers_result_t nymph_ep_mmio_enabled(struct pci_dev *pdev)
{
	return PCI_ERS_RESULT_RECOVERED;
}

static pci_ers_result_t nymph_ep_slot_reset(struct pci_dev *pdev)
{
	if (pci_enable_device(pdev))
		return PCI_ERS_RESULT_DISCONNECT;
	pci_restore_state(pdev);
	return PCI_ERS_RESULT_RECOVERED;
}

static void nymph_ep_error_resume(struct pci_dev *pdev)
{
	nymph_ep_start(pci_get_drvdata(pdev));
}

static void nymph_ep_reset_prepare(struct pci_dev *pdev)
{
	nymph_ep_stop(pci_get_drvdata(pdev), NYMPH_EP_STOPPED);
}

static void nymph_ep_reset_done(struct pci_dev *pdev)
{
	nymph_ep_start(pci_get_drvdata(pdev));
}

static const struct pci_error_handlers nymph_ep_err_handlers = {
	.error_detected = nymph_ep_error_detected,
	.mmio_enabled = nymph_ep_mmio_enabled,
	.slot_reset = nymph_ep_slot_reset,
	.resume = nymph_ep_error_resume,
	.reset_prepare = nymph_ep_reset_prepare,
	.reset_done = nymph_ep_reset_done,
};

static struct pci_driver nymph_ep_driver = {
	.name = "nymph_endpoint",
	.id_table = nymph_ep_ids,
	.probe = nymph_ep_probe,
	.remove = nymph_ep_remove,
	.shutdown = nymph_ep_shutdown,
	.dev_groups = nymph_ep_groups,
	.driver.pm = pm_sleep_ptr(&nymph_ep_pm_ops),
	.err_handler = &nymph_ep_err_handlers,
};
module_pci_driver(nymph_ep_driver);

MODULE_DESCRIPTION("The NYMPH endpoint's DMA channels");
MODULE_AUTHOR("The pynymph maintainers");
MODULE_VERSION(NYMPH_VERSION);
MODULE_LICENSE("GPL");
