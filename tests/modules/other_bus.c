// SPDX-License-Identifier: GPL-2.0-only
/*
 * other_bus: a DMA channel of a device that is on a bus of its own. The driver has
 * the name of one whose channels pcie_nymph uses.
 */
#include <linux/device.h>
#include <linux/dmaengine.h>
#include <linux/err.h>
#include <linux/module.h>
#include <linux/slab.h>

/**
 * struct other_provider - the driver's
 * @dma: as dmaengine has it; its release frees this
 * @chan: its only channel
 */
struct other_provider {
	struct dma_device dma;
	struct dma_chan chan;
};

static struct dma_async_tx_descriptor *
other_prep(struct dma_chan *chan, dma_addr_t dst, dma_addr_t src, size_t len,
	   unsigned long flags)
{
	return NULL;
}

static enum dma_status other_status(struct dma_chan *chan, dma_cookie_t cookie,
				    struct dma_tx_state *state)
{
	return DMA_COMPLETE;
}

static void other_issue(struct dma_chan *chan)
{
}

static void other_free(struct dma_device *dma)
{
	kfree(container_of(dma, struct other_provider, dma));
}

static int other_probe(struct device *dev)
{
	struct other_provider *other = kzalloc(sizeof(*other), GFP_KERNEL);
	int ret;

	if (!other)
		return -ENOMEM;
	INIT_LIST_HEAD(&other->dma.channels);
	other->dma.dev = dev;
	dma_cap_set(DMA_MEMCPY, other->dma.cap_mask);
	dma_cap_set(DMA_PRIVATE, other->dma.cap_mask);
	other->dma.device_prep_dma_memcpy = other_prep;
	other->dma.device_tx_status = other_status;
	other->dma.device_issue_pending = other_issue;
	other->dma.device_release = other_free;
	other->chan.device = &other->dma;
	list_add_tail(&other->chan.device_node, &other->dma.channels);
	dev_set_drvdata(dev, other);
	ret = dma_async_device_register(&other->dma);
	if (ret)
		kfree(other);
	return ret;
}

static void other_remove(struct device *dev)
{
	struct other_provider *other = dev_get_drvdata(dev);

	dma_async_device_unregister(&other->dma);
}

static struct bus_type other_bus = {
	.name = "nymph_other",
	.probe = other_probe,
	.remove = other_remove,
};

static struct device_driver other_driver = {
	.name = "nymph_endpoint",
	.bus = &other_bus,
	.owner = THIS_MODULE,
};

static void other_release(struct device *dev)
{
	kfree(dev);
}

static struct device *other_device;

static int other_add(void)
{
	int ret;

	other_device = kzalloc(sizeof(*other_device), GFP_KERNEL);
	if (!other_device)
		return -ENOMEM;
	device_initialize(other_device);
	other_device->bus = &other_bus;
	other_device->release = other_release;
	ret = dev_set_name(other_device, "other");
	if (!ret)
		ret = device_add(other_device);
	if (ret)
		put_device(other_device);
	return ret;
}

static int __init other_init(void)
{
	int ret = bus_register(&other_bus);

	if (ret)
		return ret;
	ret = driver_register(&other_driver);
	if (ret)
		goto bus;
	ret = other_add();
	if (ret)
		goto driver;
	return 0;

driver:
	driver_unregister(&other_driver);
bus:
	bus_unregister(&other_bus);
	return ret;
}
module_init(other_init);

static void __exit other_exit(void)
{
	device_unregister(other_device);
	driver_unregister(&other_driver);
	bus_unregister(&other_bus);
}
module_exit(other_exit);

MODULE_DESCRIPTION("A DMA channel on a bus of its own");
MODULE_LICENSE("GPL");
