/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What differs between the kernels the modules build for, 6.1 and newer. Kbuild
 * looks what there is: a version says little where distributions backport.
 */
#ifndef _NYMPH_COMPAT_H
#define _NYMPH_COMPAT_H

#include <linux/eventfd.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/sched.h>

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

/*
 * What more pin_user_pages() needs to be told to pin @nr_pages pages at @addr of
 * current's memory for long and for reading; @nr_pages is lowered to what this
 * is true for. Memory that is copied once somebody writes to it has to be
 * copied now, or its owner's next write goes elsewhere: the pin would hold a
 * page of zeros, or one left over from fork(), for ever. Newer kernels do so.
 */
static inline unsigned int nymph_gup_read_flags(unsigned long addr,
						unsigned long *nr_pages)
{
	unsigned int flags = 0;
#ifdef NYMPH_GUP_READS_STALE_PAGES
	struct vm_area_struct *vma;

	mmap_read_lock(current->mm);
	vma = vma_lookup(current->mm, addr);
	if (vma) {
		*nr_pages = min(*nr_pages, (vma->vm_end - addr) >> PAGE_SHIFT);
		if (is_cow_mapping(vma->vm_flags))
			flags = FOLL_WRITE | FOLL_FORCE;
	}
	mmap_read_unlock(current->mm);
#endif
	return flags;
}

#endif /* _NYMPH_COMPAT_H */
