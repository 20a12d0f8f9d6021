// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: counters and limits in /sys/class/misc/pcie_nymph, and rings in the
 * fdinfo of their files. sysfs has only totals, because everyone can read it. A user
 * sees the rings of a process only with permission to see the files of the process.
 */
#include <linux/device.h>
#include <linux/pid.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/sysfs.h>

#include "counters.h"
#include "ring.h"

const char *nymph_blake3_chosen;

#define NYMPH_COUNTER_ATTR(_name, _counter)				\
static ssize_t _name##_show(struct device *dev,				\
			    struct device_attribute *attr, char *buf)	\
{									\
	return sysfs_emit(buf, "%ld\n", nymph_counter_read(_counter));			\
}									\
static DEVICE_ATTR_RO(_name)

NYMPH_COUNTER_ATTR(submitted, NYMPH_COUNT_SUBMITTED);
NYMPH_COUNTER_ATTR(completed, NYMPH_COUNT_COMPLETED);
NYMPH_COUNTER_ATTR(failed, NYMPH_COUNT_FAILED);
NYMPH_COUNTER_ATTR(bytes, NYMPH_COUNT_BYTES);
NYMPH_COUNTER_ATTR(verified, NYMPH_COUNT_VERIFIED);
NYMPH_COUNTER_ATTR(mismatched, NYMPH_COUNT_MISMATCHED);
NYMPH_COUNTER_ATTR(contexts, NYMPH_COUNT_CONTEXTS);
NYMPH_COUNTER_ATTR(rings, NYMPH_COUNT_RINGS);
NYMPH_COUNTER_ATTR(pinned_pages, NYMPH_COUNT_PINNED_PAGES);
NYMPH_COUNTER_ATTR(allocated_pages, NYMPH_COUNT_ALLOCATED_PAGES);
NYMPH_COUNTER_ATTR(card_bytes, NYMPH_COUNT_CARD_BYTES);
NYMPH_COUNTER_ATTR(imported_bytes, NYMPH_COUNT_IMPORTED_BYTES);
NYMPH_COUNTER_ATTR(exports, NYMPH_COUNT_EXPORTS);
NYMPH_COUNTER_ATTR(mappings, NYMPH_COUNT_MAPPINGS);
NYMPH_COUNTER_ATTR(engine_failures, NYMPH_COUNT_ENGINE_FAILURES);
NYMPH_COUNTER_ATTR(fallbacks, NYMPH_COUNT_FALLBACKS);
NYMPH_COUNTER_ATTR(quarantined, NYMPH_COUNT_QUARANTINED);

static struct attribute *nymph_counter_attrs[] = {
	&dev_attr_submitted.attr,
	&dev_attr_completed.attr,
	&dev_attr_failed.attr,
	&dev_attr_bytes.attr,
	&dev_attr_verified.attr,
	&dev_attr_mismatched.attr,
	&dev_attr_contexts.attr,
	&dev_attr_rings.attr,
	&dev_attr_pinned_pages.attr,
	&dev_attr_allocated_pages.attr,
	&dev_attr_card_bytes.attr,
	&dev_attr_imported_bytes.attr,
	&dev_attr_exports.attr,
	&dev_attr_mappings.attr,
	&dev_attr_engine_failures.attr,
	&dev_attr_fallbacks.attr,
	&dev_attr_quarantined.attr,
	NULL
};

static const struct attribute_group nymph_counter_group = {
	.name = "counters",
	.attrs = nymph_counter_attrs,
};

static ssize_t max_entries_show(struct device *dev,
				struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%u\n", NYMPH_MAX_ENTRIES);
}
static DEVICE_ATTR_RO(max_entries);

static ssize_t max_length_show(struct device *dev,
			       struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%llu\n", NYMPH_MAX_LENGTH);
}
static DEVICE_ATTR_RO(max_length);

static ssize_t nymph_store_limit(unsigned int *limit, const char *buf,
				 size_t count)
{
	unsigned int max;
	int ret;

	ret = kstrtouint(buf, 0, &max);
	if (ret)
		return ret;
	WRITE_ONCE(*limit, max);
	return count;
}

#define NYMPH_LIMIT_ATTR(_name)						\
static ssize_t _name##_show(struct device *dev,				\
			    struct device_attribute *attr, char *buf)	\
{									\
	return sysfs_emit(buf, "%u\n", READ_ONCE(nymph_##_name));	\
}									\
static ssize_t _name##_store(struct device *dev,			\
			     struct device_attribute *attr,		\
			     const char *buf, size_t count)		\
{									\
	return nymph_store_limit(&nymph_##_name, buf, count);		\
}									\
static DEVICE_ATTR_RW(_name)

NYMPH_LIMIT_ATTR(max_rings);
NYMPH_LIMIT_ATTR(max_user_rings);
NYMPH_LIMIT_ATTR(max_user_card_percent);

static struct attribute *nymph_limit_attrs[] = {
	&dev_attr_max_entries.attr,
	&dev_attr_max_length.attr,
	&dev_attr_max_rings.attr,
	&dev_attr_max_user_rings.attr,
	&dev_attr_max_user_card_percent.attr,
	NULL
};

static const struct attribute_group nymph_limit_group = {
	.name = "limits",
	.attrs = nymph_limit_attrs,
};

static ssize_t engines_show(struct device *dev, struct device_attribute *attr,
			    char *buf)
{
	struct nymph_engine_info *infos;
	int i, n, len = 0;

	infos = kcalloc(NYMPH_MAX_ENGINES, sizeof(*infos), GFP_KERNEL);
	if (!infos)
		return -ENOMEM;
	n = nymph_engine_infos(infos, NYMPH_MAX_ENGINES);
	for (i = 0; i < n; i++)
		len += sysfs_emit_at(buf, len, "%s%s", i ? " " : "",
				     infos[i].name);
	if (n > 0)
		len += sysfs_emit_at(buf, len, "\n");
	kfree(infos);
	return n < 0 ? n : len;
}
static DEVICE_ATTR_RO(engines);

static ssize_t blake3_show(struct device *dev, struct device_attribute *attr,
			   char *buf)
{
	return sysfs_emit(buf, "%s\n", nymph_blake3_chosen);
}
static DEVICE_ATTR_RO(blake3);

static struct attribute *nymph_attrs[] = {
	&dev_attr_blake3.attr,
	&dev_attr_engines.attr,
	NULL
};

static const struct attribute_group nymph_group = {
	.attrs = nymph_attrs,
};

const struct attribute_group *nymph_attr_groups[] = {
	&nymph_group,
	&nymph_counter_group,
	&nymph_limit_group,
	NULL
};

/* Values of a ring that fdinfo shows. */
struct nymph_ring_info {
	u32 active;
	u32 unread;
	u64 errors;
	u64 dma_bytes;
	u64 pinned_bytes;
	u64 buffer_bytes;
	u64 card_bytes;
	u64 imported_bytes;
	u64 latency[6];
};

static const unsigned int nymph_permilles[] = { 500, 950, 990, 999 };

static void nymph_ring_describe(struct nymph_ring *ring,
				struct nymph_ring_info *info)
{
	const struct nymph_histogram *latency;
	struct nymph_region *region;
	unsigned long handle;
	unsigned int i;

	memset(info, 0, sizeof(*info));
	mutex_lock(&ring->lock);
	info->active = ring->active.count;
	info->unread = ring->unread.count;
	info->errors = ring->carried->errors;
	info->dma_bytes = ring->carried->dma_bytes;
	info->pinned_bytes = (u64)atomic_long_read(&ring->pinned_pages)
			     << PAGE_SHIFT;
	/* the regions of a dead ring are being released */
	if (!ring->dead)
		xa_for_each(&ring->carried->regions, handle, region) {
			info->buffer_bytes += (u64)region->pin.nr_pages
					      << PAGE_SHIFT;
			if (region->pin.card)
				info->card_bytes += region->length;
			if (region->pin.dmabuf)
				info->imported_bytes += region->length;
		}
	latency = &ring->carried->latency;
	for (i = 0; i < ARRAY_SIZE(nymph_permilles); i++)
		info->latency[i] = nymph_latency_quantile(latency,
							  nymph_permilles[i]);
	info->latency[i++] = latency->max_ns;
	info->latency[i] = latency->count;
	mutex_unlock(&ring->lock);
}

/**
 * nymph_ring_show_fdinfo() - Show a file's ring in /proc/PID/fdinfo/FD
 * @ring: the ring; the caller has a reference
 * @m: destination
 */
void nymph_ring_show_fdinfo(struct nymph_ring *ring, struct seq_file *m)
{
	struct nymph_ring_info info;
	const u64 *l = info.latency;

	nymph_ring_describe(ring, &info);
	seq_printf(m, "nymph-ring:\t%u\n", ring->id);
	seq_printf(m, "nymph-owner:\t%d\n", pid_vnr(ring->owner));
	seq_printf(m, "nymph-engine:\t%s\n", ring->engine->name);
	seq_printf(m, "nymph-entries:\t%u\n", ring->active.size);
	seq_printf(m, "nymph-active:\t%u\n", info.active);
	seq_printf(m, "nymph-unread:\t%u\n", info.unread);
	seq_printf(m, "nymph-errors:\t%llu\n", info.errors);
	seq_printf(m, "nymph-dma-bytes:\t%llu\n", info.dma_bytes);
	seq_printf(m, "nymph-ring-bytes:\t%llu\n",
		   (u64)ring->charged << PAGE_SHIFT);
	seq_printf(m, "nymph-pinned-bytes:\t%llu\n", info.pinned_bytes);
	seq_printf(m, "nymph-buffer-bytes:\t%llu\n", info.buffer_bytes);
	seq_printf(m, "nymph-card-bytes:\t%llu\n", info.card_bytes);
	seq_printf(m, "nymph-imported-bytes:\t%llu\n", info.imported_bytes);
	seq_printf(m, "nymph-latency-ns:\tp50=%llu p95=%llu p99=%llu p99.9=%llu max=%llu count=%llu\n",
		   l[0], l[1], l[2], l[3], l[4], l[5]);
}
