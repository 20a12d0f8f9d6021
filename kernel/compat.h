/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What differs between the kernels the modules build for, 6.1 and newer. Kbuild
 * looks what there is: a version says little where distributions backport.
 */
#ifndef _NYMPH_COMPAT_H
#define _NYMPH_COMPAT_H

#include <linux/eventfd.h>
#include <linux/mm.h>

#ifndef NYMPH_HAS_VM_FLAGS_SET
static inline void vm_flags_set(struct vm_area_struct *vma,
				unsigned long flags)
{
	vma->vm_flags |= flags;
}
#endif

static inline void nymph_eventfd_raise(struct eventfd_ctx *eventfd)
{
#ifdef NYMPH_EVENTFD_SIGNAL_TAKES_N
	eventfd_signal(eventfd, 1);
#else
	eventfd_signal(eventfd);
#endif
}

#endif /* _NYMPH_COMPAT_H */
