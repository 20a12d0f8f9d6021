// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: which DMA channels there are, and devices that leave.
 */
#include <linux/device.h>
#include <linux/dmaengine.h>
#include <linux/err.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/platform_device.h>
#include <linux/string.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include "dma.h"

static char *nymph_dma_channels = "nymph_endpoint";
module_param_named(dma_channels, nymph_dma_channels, charp, 0444);
MODULE_PARM_DESC(dma_channels, "DMA channels that may be used: names of channels, of devices, or of drivers, separated by commas");

/* Devices that are being unbound from their drivers: not to be touched. */
static DEFINE_XARRAY(nymph_dma_unbinding);

/*
 * Whether the channel's device is there to stay. If it leaves, its channels are
 * in the kernel's list for longer than their names are.
 */
static bool nymph_dma_is_live(struct dma_chan *chan)
{
	struct device *dev = chan->device->dev;

	return READ_ONCE(dev->driver) &&
	       !xa_load(&nymph_dma_unbinding, (unsigned long)dev);
}

/* Whether this channel may be used, as the administrator has it. */
static bool nymph_dma_is_allowed(struct dma_chan *chan)
{
	struct device *dev = chan->device->dev;
	const char *const names[] = {
		dma_chan_name(chan), dev_name(dev), dev_driver_string(dev),
	};
	const char *at = nymph_dma_channels;

	while (*at) {
		size_t len = strcspn(at, ",");
		unsigned int i;

		for (i = 0; i < ARRAY_SIZE(names); i++)
			if (strlen(names[i]) == len &&
			    !strncmp(names[i], at, len))
				return true;
		at += len;
		if (*at)
			at++;
	}
	return false;
}

static bool nymph_dma_is_ours(struct dma_chan *chan, void *param)
{
	const struct nymph_dma_engine *dma = param;

	return nymph_dma_is_live(chan) &&
	       !strcmp(dma_chan_name(chan), dma->engine.name) &&
	       nymph_dma_is_allowed(chan);
}

static dma_cap_mask_t nymph_dma_wanted(void)
{
	dma_cap_mask_t mask;

	dma_cap_zero(mask);
	dma_cap_set(DMA_MEMCPY, mask);
	return mask;
}

/**
 * nymph_dma_request() - take an engine's channel
 * @dma: the engine
 *
 * Return: the channel, until dma_release_channel(); or NULL.
 */
struct dma_chan *nymph_dma_request(struct nymph_dma_engine *dma)
{
	dma_cap_mask_t mask = nymph_dma_wanted();

	return dma_request_channel(mask, nymph_dma_is_ours, dma);
}

static void nymph_dma_unsee(struct nymph_engine *engine, void *unused)
{
	to_nymph_dma(engine)->seen = false;
}

/* Takes no channel, but sees all that nobody has. */
static bool nymph_dma_see(struct dma_chan *chan, void *param)
{
	struct nymph_engine *engine;
	int *error = param;

	if (!nymph_dma_is_live(chan) || !nymph_dma_is_allowed(chan) ||
	    strlen(dma_chan_name(chan)) >= NYMPH_ENGINE_NAME_SIZE)
		return false;
	engine = nymph_engine_lookup(dma_chan_name(chan));
	if (!engine) {
		engine = nymph_dma_create(chan);
		if (!engine) {
			*error = -ENOMEM;
			return false;
		}
		nymph_engine_add(engine);
	}
	engine->node = dev_to_node(chan->device->dev);
	engine->device = chan->device->dev;
	to_nymph_dma(engine)->seen = true;
	return false;
}

/**
 * nymph_dma_scan() - look which channels can be had
 *
 * The engines' lock is held; new ones are added.
 *
 * Return: 0 or -ENOMEM.
 */
int nymph_dma_scan(void)
{
	dma_cap_mask_t mask = nymph_dma_wanted();
	int error = 0;

	nymph_engines_each_locked(nymph_dma_unsee, NULL);
	dma_request_channel(mask, nymph_dma_see, &error);
	return error;
}

/**
 * nymph_dma_is_there() - whether a ring can have the engine
 * @engine: after nymph_dma_scan(), with the engines' lock held
 */
bool nymph_dma_is_there(struct nymph_engine *engine)
{
	struct nymph_dma_engine *dma = to_nymph_dma(engine);

	return dma->seen || READ_ONCE(dma->chan);
}

/* --- devices that leave --- */

static int nymph_dma_bus_event(struct notifier_block *nb, unsigned long event,
			       void *data)
{
	unsigned long key = (unsigned long)data;

	switch (event) {
	case BUS_NOTIFY_UNBIND_DRIVER:
		/* only so that nobody takes a channel of it before it is gone */
		xa_store(&nymph_dma_unbinding, key, data, GFP_KERNEL);
		nymph_engines_each(nymph_dma_give_up, data);
		nymph_cards_withdraw(data);
		nymph_mappables_withdraw(data);
		break;
	case BUS_NOTIFY_UNBOUND_DRIVER:
		nymph_engines_each(nymph_dma_let_go, data);
		xa_erase(&nymph_dma_unbinding, key);
		break;
	}
	return NOTIFY_DONE;
}

/* Before DMA_API_DEBUG looks what is mapped still for a device without driver. */
static struct notifier_block nymph_dma_pci_notifier = {
	.notifier_call = nymph_dma_bus_event,
	.priority = 1,
};

static struct notifier_block nymph_dma_platform_notifier = {
	.notifier_call = nymph_dma_bus_event,
	.priority = 1,
};

/**
 * nymph_dma_init() - the module comes
 *
 * Return: 0 or a negative errno.
 */
int nymph_dma_init(void)
{
	int ret;

	nymph_dma_wq = alloc_workqueue("nymph_dma", WQ_UNBOUND, 0);
	if (!nymph_dma_wq)
		return -ENOMEM;
	ret = bus_register_notifier(&pci_bus_type, &nymph_dma_pci_notifier);
	if (ret)
		goto wq;
	ret = bus_register_notifier(&platform_bus_type,
				    &nymph_dma_platform_notifier);
	if (ret)
		goto pci;
	return 0;

pci:
	bus_unregister_notifier(&pci_bus_type, &nymph_dma_pci_notifier);
wq:
	destroy_workqueue(nymph_dma_wq);
	return ret;
}

/**
 * nymph_dma_exit() - the module goes
 *
 * No operation is left: what is in quarantine keeps the module.
 */
void nymph_dma_exit(void)
{
	bus_unregister_notifier(&platform_bus_type,
				&nymph_dma_platform_notifier);
	bus_unregister_notifier(&pci_bus_type, &nymph_dma_pci_notifier);
	nymph_engines_exit();
	destroy_workqueue(nymph_dma_wq);
	xa_destroy(&nymph_dma_unbinding);
}
