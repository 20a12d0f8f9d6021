// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: DMA rings for user space, with BLAKE3 digests of what they did.
 */
#include <linux/device.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/suspend.h>

#include "engine.h"
#include "ring.h"
#include "select.h"

static char *nymph_blake3_wanted = "";
module_param_named(blake3, nymph_blake3_wanted, charp, 0444);
MODULE_PARM_DESC(blake3, "what makes hashes: avx512, avx2, sse41, neon, portable; the best there is if empty");

static struct miscdevice nymph_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "pcie_nymph",
	.fops = &nymph_fops,
	.mode = 0660,
	.groups = nymph_attr_groups,
};

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
	ret = nymph_engines_init();
	if (ret)
		goto pm;
	ret = nymph_workers_init();
	if (ret)
		goto engines;
	ret = nymph_attest_init();
	if (ret)
		goto workers;
	ret = misc_register(&nymph_misc);
	if (ret)
		goto attest;
	return 0;

attest:
	nymph_attest_exit();
workers:
	nymph_workers_exit();
engines:
	nymph_engines_exit();
pm:
	unregister_pm_notifier(&nymph_pm_notifier);
	return ret;
}
module_init(nymph_init);

static void __exit nymph_exit(void)
{
	misc_deregister(&nymph_misc);
	nymph_attest_exit();
	nymph_workers_exit();
	nymph_engines_exit();
	unregister_pm_notifier(&nymph_pm_notifier);
}
module_exit(nymph_exit);

MODULE_DESCRIPTION("DMA rings for user space, with BLAKE3 digests");
MODULE_AUTHOR("The pynymph maintainers");
MODULE_VERSION(NYMPH_VERSION);
MODULE_LICENSE("GPL");
