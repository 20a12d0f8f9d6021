// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: DMA channels of the kernel: which may be used, and which device is
 * about to leave.
 */
#include <linux/amba/bus.h>
#include <linux/device.h>
#include <linux/dmaengine.h>
#include <linux/fsl/mc.h>
#include <linux/jiffies.h>
#include <linux/minmax.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/pci.h>
#include <linux/platform_device.h>
#include <linux/string.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include "dma.h"

static char *nymph_dma_channels = "nymph_endpoint";
module_param_named(dma_channels, nymph_dma_channels, charp, 0444);
MODULE_PARM_DESC(dma_channels, "DMA channels that may be used: names of channels, of devices, or of drivers, separated by commas");

struct workqueue_struct *nymph_dma_wq;

/*
 * Buses of devices with channels. Only these announce that a device leaves. Some
 * kernels have them const, as struct device has its bus then.
 */
static const typeof(((struct device *)0)->bus) nymph_dma_buses[] = {
	&platform_bus_type,
#ifdef CONFIG_PCI
	&pci_bus_type,
#endif
#ifdef CONFIG_ARM_AMBA
	&amba_bustype,
#endif
#ifdef CONFIG_FSL_MC_BUS
	&fsl_mc_bus_type,
#endif
};

static bool nymph_dma_is_heard(const struct device *dev)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(nymph_dma_buses); i++)
		if (dev->bus == nymph_dma_buses[i])
			return true;
	return false;
}

/* Devices that are being unbound from their drivers; not to be dereferenced. */
static DEFINE_XARRAY(nymph_dma_unbinding);

/*
 * Tells whether the channel's device stays. The kernel lists the channels of a
 * device that leaves for longer than their names exist.
 */
static bool nymph_dma_is_live(struct dma_chan *chan)
{
	struct device *dev = chan->device->dev;

	return READ_ONCE(dev->driver) &&
	       !xa_load(&nymph_dma_unbinding, (unsigned long)dev);
}

/* Tells whether the module parameter names the channel. */
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
	struct nymph_dma_engine *dma = param;
	bool ours = nymph_dma_is_live(chan) &&
		    !strcmp(dma_chan_name(chan), dma->engine.name) &&
		    nymph_dma_is_allowed(chan);

	dma->tried |= ours;
	return ours;
}

static dma_cap_mask_t nymph_dma_wanted(void)
{
	dma_cap_mask_t mask;

	dma_cap_zero(mask);
	dma_cap_set(DMA_MEMCPY, mask);
	return mask;
}

/* A provider may refuse a channel so often before it is left alone for a while. */
#define NYMPH_DMA_REFUSALS	3U
/* The longest while is 64 s. */
#define NYMPH_DMA_REFUSED_MAX	6U

/*
 * Tells whether it is too early to ask the provider again. An attempt is expensive for
 * some with a dead device, and leaks memory of switchtec_dma in 7.3.
 */
static bool nymph_dma_is_refused(const struct nymph_dma_engine *dma)
{
	unsigned int shift;

	if (dma->refusals < NYMPH_DMA_REFUSALS)
		return false;
	shift = min(dma->refusals - NYMPH_DMA_REFUSALS, NYMPH_DMA_REFUSED_MAX);
	return time_before(jiffies, dma->refused_at + (HZ << shift));
}

/**
 * nymph_dma_request() - Take the channel of an engine
 * @dma: the engine, with its lock held
 *
 * Return: the channel, until dma_release_channel(); or NULL.
 */
struct dma_chan *nymph_dma_request(struct nymph_dma_engine *dma)
{
	dma_cap_mask_t mask = nymph_dma_wanted();
	struct dma_chan *chan;

	if (nymph_dma_is_refused(dma))
		return NULL;
	dma->tried = false;
	chan = dma_request_channel(mask, nymph_dma_is_ours, dma);
	if (chan) {
		dma->refusals = 0;
	} else if (dma->tried) {
		dma->refusals++;
		dma->refused_at = jiffies;
	}
	return chan;
}

/**
 * nymph_dma_is_usable() - Tell whether a channel can be an engine
 * @chan: a channel that nymph_dma_show_channels() shows
 *
 * Return: whether its device stays, the administrator allows the channel, its name
 * fits, and its bus announces when the device leaves.
 */
bool nymph_dma_is_usable(struct dma_chan *chan)
{
	struct device *dev = chan->device->dev;

	if (!nymph_dma_is_live(chan) || !nymph_dma_is_allowed(chan) ||
	    strlen(dma_chan_name(chan)) >= NYMPH_ENGINE_NAME_SIZE)
		return false;
	if (nymph_dma_is_heard(dev))
		return true;
	dev_notice_once(dev, "%s is not used: the bus %s does not announce when a device leaves\n",
			dma_chan_name(chan), dev_bus_name(dev));
	return false;
}

/**
 * nymph_dma_show_channels() - Show all channels that can copy and nobody has
 * @see: callback for each channel; it returns false, and then no channel is taken
 * @param: argument of @see
 *
 * dmaengine has no list of its channels: a caller can ask for one channel, under
 * the lock of all clients, and refuse every one.
 */
void nymph_dma_show_channels(dma_filter_fn see, void *param)
{
	dma_cap_mask_t mask = nymph_dma_wanted();

	dma_request_channel(mask, see, param);
}

/*
 * A device was bound or unbound, or a channel was released, since the last scan,
 * which began at nymph_dma_seen_at.
 */
static bool nymph_dma_changed = true;
static unsigned long nymph_dma_seen_at;

/**
 * nymph_dma_scan_again() - Have the next scan look, however recent the last one is
 *
 * A scan does not see a channel that a client has.
 */
void nymph_dma_scan_again(void)
{
	WRITE_ONCE(nymph_dma_changed, true);
}

/**
 * nymph_dma_scan_due() - Tell whether a scan has to look at the channels
 * @again: the caller wants a channel; else the result of a scan up to a second ago
 *	is good enough, if no device came or left since
 *
 * The engines' lock is held.
 *
 * Return: whether the caller has to scan now.
 */
bool nymph_dma_scan_due(bool again)
{
	if (!again && !READ_ONCE(nymph_dma_changed) &&
	    time_before(jiffies, nymph_dma_seen_at + HZ))
		return false;
	WRITE_ONCE(nymph_dma_changed, false);
	nymph_dma_seen_at = jiffies;
	return true;
}

/**
 * nymph_dma_unbinding_begin() - Keep everybody from taking channels of a device
 * @dev: a device whose driver is about to be unbound
 */
void nymph_dma_unbinding_begin(struct device *dev)
{
	xa_store(&nymph_dma_unbinding, (unsigned long)dev, dev, GFP_KERNEL);
	nymph_dma_scan_again();
}

/**
 * nymph_dma_unbinding_end() - Undo nymph_dma_unbinding_begin()
 * @dev: the device, whose driver is unbound; not to be dereferenced
 */
void nymph_dma_unbinding_end(struct device *dev)
{
	xa_erase(&nymph_dma_unbinding, (unsigned long)dev);
}

/* They run before any check for leaked mappings of a device without driver. */
static struct notifier_block nymph_dma_notifiers[ARRAY_SIZE(nymph_dma_buses)];

static void nymph_dma_unlisten(unsigned int n)
{
	while (n--)
		bus_unregister_notifier(nymph_dma_buses[n],
					&nymph_dma_notifiers[n]);
}

/**
 * nymph_dma_listen() - Listen to devices that come and leave
 * @event: callback for events of buses
 *
 * Return: 0 or a negative errno.
 */
int nymph_dma_listen(notifier_fn_t event)
{
	unsigned int i;
	int ret;

	nymph_dma_wq = alloc_workqueue("nymph_dma", WQ_UNBOUND, 0);
	if (!nymph_dma_wq)
		return -ENOMEM;
	for (i = 0; i < ARRAY_SIZE(nymph_dma_buses); i++) {
		nymph_dma_notifiers[i].notifier_call = event;
		nymph_dma_notifiers[i].priority = 1;
		ret = bus_register_notifier(nymph_dma_buses[i],
					    &nymph_dma_notifiers[i]);
		if (ret) {
			nymph_dma_unlisten(i);
			destroy_workqueue(nymph_dma_wq);
			return ret;
		}
	}
	return 0;
}

/**
 * nymph_dma_stop_listening() - Undo the first half of nymph_dma_listen()
 *
 * No event comes any more. Engines can still queue work.
 */
void nymph_dma_stop_listening(void)
{
	nymph_dma_unlisten(ARRAY_SIZE(nymph_dma_buses));
}

/**
 * nymph_dma_exit() - Undo the rest of nymph_dma_listen()
 *
 * No engine and no operation exists any more.
 */
void nymph_dma_exit(void)
{
	destroy_workqueue(nymph_dma_wq);
	xa_destroy(&nymph_dma_unbinding);
}
