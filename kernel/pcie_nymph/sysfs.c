// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: counters and limits, in /sys/class/misc/pcie_nymph.
 */
#include <linux/device.h>
#include <linux/percpu.h>
#include <linux/sysfs.h>

#include "nymph.h"

static DEFINE_PER_CPU(long [NYMPH_NR_COUNTERS], nymph_counters);

/**
 * nymph_count() - raise or lower a counter
 * @counter: which
 * @n: by how much
 */
void nymph_count(enum nymph_counter counter, long n)
{
	this_cpu_add(nymph_counters[counter], n);
}

static ssize_t nymph_show_counter(char *buf, enum nymph_counter counter)
{
	long sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += per_cpu(nymph_counters, cpu)[counter];
	return sysfs_emit(buf, "%ld\n", sum);
}

#define NYMPH_COUNTER_ATTR(_name, _counter)				\
static ssize_t _name##_show(struct device *dev,				\
			    struct device_attribute *attr, char *buf)	\
{									\
	return nymph_show_counter(buf, _counter);			\
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

static ssize_t max_rings_show(struct device *dev,
			      struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%u\n", READ_ONCE(nymph_max_rings));
}

static ssize_t max_rings_store(struct device *dev,
			       struct device_attribute *attr,
			       const char *buf, size_t count)
{
	unsigned int max;
	int ret;

	ret = kstrtouint(buf, 0, &max);
	if (ret)
		return ret;
	WRITE_ONCE(nymph_max_rings, max);
	return count;
}
static DEVICE_ATTR_RW(max_rings);

static struct attribute *nymph_limit_attrs[] = {
	&dev_attr_max_entries.attr,
	&dev_attr_max_length.attr,
	&dev_attr_max_rings.attr,
	NULL
};

static const struct attribute_group nymph_limit_group = {
	.name = "limits",
	.attrs = nymph_limit_attrs,
};

const struct attribute_group *nymph_attr_groups[] = {
	&nymph_counter_group,
	&nymph_limit_group,
	NULL
};
