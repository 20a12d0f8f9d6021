// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: DMA rings for user space, with BLAKE3 digests of what they did.
 */
#include <linux/device.h>
#include <linux/miscdevice.h>
#include <linux/module.h>

#include "nymph.h"

unsigned int nymph_max_rings = NYMPH_MAX_RINGS_DEFAULT;
module_param_named(max_rings, nymph_max_rings, uint, 0444);
MODULE_PARM_DESC(max_rings, "rings there can be in all, each has a thread of its own; change it in sysfs, limits/max_rings");

unsigned int nymph_max_user_rings = NYMPH_MAX_USER_RINGS_DEFAULT;
module_param_named(max_user_rings, nymph_max_user_rings, uint, 0444);
MODULE_PARM_DESC(max_user_rings, "rings one user can have; change it in sysfs, limits/max_user_rings");

static struct miscdevice nymph_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "pcie_nymph",
	.fops = &nymph_fops,
	.mode = 0660,
	.groups = nymph_attr_groups,
};
module_misc_device(nymph_misc);

/**
 * nymph_device_kobject() - where the device is in sysfs
 *
 * There for every open file: misc_register() is done before any open().
 */
struct kobject *nymph_device_kobject(void)
{
	return &nymph_misc.this_device->kobj;
}

MODULE_DESCRIPTION("DMA rings for user space, with BLAKE3 digests");
MODULE_LICENSE("GPL");
