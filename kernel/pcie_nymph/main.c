// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: DMA rings for user space, with BLAKE3 digests of what they did.
 */
#include <linux/device.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/suspend.h>

#include "nymph.h"
#include "select.h"

static char *nymph_blake3_wanted = "";
module_param_named(blake3, nymph_blake3_wanted, charp, 0444);
MODULE_PARM_DESC(blake3, "what makes hashes: avx512, avx2, sse41, neon, portable; the best there is if empty");

const char *nymph_blake3_chosen;

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

/**
 * nymph_device_kobject() - where the device is in sysfs
 *
 * There for every open file: misc_register() is done before any open().
 */
struct kobject *nymph_device_kobject(void)
{
	return &nymph_misc.this_device->kobj;
}

static int nymph_pm_event(struct notifier_block *nb, unsigned long event,
			  void *unused)
{
	switch (event) {
	case PM_SUSPEND_PREPARE:
	case PM_HIBERNATION_PREPARE:
	case PM_RESTORE_PREPARE:
		nymph_rings_pause(true);
		break;
	case PM_POST_SUSPEND:
	case PM_POST_HIBERNATION:
	case PM_POST_RESTORE:
		nymph_rings_pause(false);
		break;
	}
	return NOTIFY_DONE;
}

static struct notifier_block nymph_pm_notifier = {
	.notifier_call = nymph_pm_event,
};

static int __init nymph_init(void)
{
	int ret;

	nymph_blake3_chosen = nymph_blake3_select(nymph_blake3_wanted);
	ret = register_pm_notifier(&nymph_pm_notifier);
	if (ret)
		return ret;
	ret = nymph_dma_init();
	if (ret)
		goto pm;
	ret = misc_register(&nymph_misc);
	if (ret)
		goto dma;
	return 0;

dma:
	nymph_dma_exit();
pm:
	unregister_pm_notifier(&nymph_pm_notifier);
	return ret;
}
module_init(nymph_init);

static void __exit nymph_exit(void)
{
	misc_deregister(&nymph_misc);
	nymph_dma_exit();
	unregister_pm_notifier(&nymph_pm_notifier);
}
module_exit(nymph_exit);

MODULE_DESCRIPTION("DMA rings for user space, with BLAKE3 digests");
MODULE_LICENSE("GPL");
