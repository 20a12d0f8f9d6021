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
#include <linux/pagemap.h>
#include <linux/sched.h>
#include <linux/userfaultfd_k.h>
#include <linux/workqueue.h>

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

#ifdef NYMPH_IMPORT_NS_STRINGIFIES
#define NYMPH_IMPORT_NS(ns)	MODULE_IMPORT_NS(ns)
#else
#define NYMPH_IMPORT_NS(ns)	MODULE_IMPORT_NS(#ns)
#endif

#ifdef NYMPH_HAS_DFL_WQ
#define NYMPH_UNBOUND_WQ	system_dfl_wq
#else
#define NYMPH_UNBOUND_WQ	system_unbound_wq
#endif

/* Before they had these names, the functions locked what they need. */
#ifndef NYMPH_HAS_DMA_BUF_MAP_UNLOCKED
#define dma_buf_map_attachment_unlocked		dma_buf_map_attachment
#define dma_buf_unmap_attachment_unlocked	dma_buf_unmap_attachment
#endif
#ifndef NYMPH_HAS_DMA_BUF_VMAP_UNLOCKED
#define dma_buf_vmap_unlocked			dma_buf_vmap
#define dma_buf_vunmap_unlocked			dma_buf_vunmap
#endif

/*
 * pin_user_pages_fast() of current's memory, for @nr_pages pages or less.
 */
static inline int nymph_pin_pages(unsigned long addr, unsigned long nr_pages,
				  unsigned int flags, struct page **pages)
{
#ifdef NYMPH_GUP_IS_NARROW
	bool armed = false, write = flags & FOLL_WRITE;
	struct vm_area_struct *vma;

	mmap_read_lock(current->mm);
	vma = vma_lookup(current->mm, addr);
	if (vma) {
		nr_pages = min(nr_pages, (vma->vm_end - addr) >> PAGE_SHIFT);
		/*
		 * Memory that is copied once somebody writes to it has to be
		 * copied now, or its owner's next write goes elsewhere: the pin
		 * would hold a page of zeros, or one left over from fork(), for
		 * ever.
		 */
		if (!write && is_cow_mapping(vma->vm_flags))
			flags |= FOLL_WRITE | FOLL_FORCE;
		armed = userfaultfd_armed(vma);
	}
	mmap_read_unlock(current->mm);
	/* only a fault that may let go of mmap_lock can wait for userfaultfd */
	if (armed) {
		nr_pages = 1;
		if (write ? fault_in_safe_writeable((char __user *)addr, 1) :
			    fault_in_readable((char __user *)addr, 1))
			return -EFAULT;
	}
#endif
	return pin_user_pages_fast(addr, nr_pages, flags, pages);
}

#endif /* _NYMPH_COMPAT_H */
