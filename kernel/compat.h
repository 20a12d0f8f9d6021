/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What differs between the kernels the modules build for, 6.1 and newer.
 * Included by whoever needs it, so that the logic is free of versions.
 */
#ifndef _NYMPH_COMPAT_H
#define _NYMPH_COMPAT_H

#include <linux/eventfd.h>
#include <linux/mm.h>
#include <linux/version.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
static inline void vm_flags_set(struct vm_area_struct *vma,
				unsigned long flags)
{
	vma->vm_flags |= flags;
}
#endif

static inline void nymph_eventfd_raise(struct eventfd_ctx *eventfd)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 8, 0)
	eventfd_signal(eventfd, 1);
#else
	eventfd_signal(eventfd);
#endif
}

#endif /* _NYMPH_COMPAT_H */
