// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: DMA rings for user space, with BLAKE3 digests of what they did.
 */
#include <linux/miscdevice.h>
#include <linux/module.h>

#include "nymph.h"

unsigned int nymph_max_rings = NYMPH_MAX_RINGS_DEFAULT;
module_param_named(max_rings, nymph_max_rings, uint, 0444);
MODULE_PARM_DESC(max_rings, "rings there can be in all, each has a thread of its own; change it in sysfs, limits/max_rings");

static struct miscdevice nymph_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "pcie_nymph",
	.fops = &nymph_fops,
	.mode = 0660,
	.groups = nymph_attr_groups,
};
module_misc_device(nymph_misc);

MODULE_DESCRIPTION("DMA rings for user space, with BLAKE3 digests");
MODULE_LICENSE("GPL");
