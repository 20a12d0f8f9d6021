/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Differences between the kernels that the modules build for, 6.1 and newer. Kbuild
 * searches the kernel's headers: a version says little where distributions backport.
 */
#ifndef _NYMPH_COMPAT_H
#define _NYMPH_COMPAT_H

#include <linux/dma-mapping.h>
#include <linux/eventfd.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched.h>
#include <linux/uio.h>
#include <linux/userfaultfd_k.h>
#include <linux/workqueue.h>

#ifdef CONFIG_X86_INTEL_MEMORY_PROTECTION_KEYS
#include <asm/pkru.h>
#endif

#ifndef NYMPH_HAS_VM_FLAGS_SET
static inline void vm_flags_set(struct vm_area_struct *vma,
				unsigned long flags)
{
	vma->vm_flags |= flags;
}
#endif

#ifndef ITER_DEST
#define ITER_DEST	READ
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
 * Each thread has its own protection keys. The executor of an entry may access the
 * memory that the entry's submitter could access, and no more.
 */
static inline u32 nymph_access_get(void)
{
#ifdef CONFIG_X86_INTEL_MEMORY_PROTECTION_KEYS
	return read_pkru();
#else
	return 0;
#endif
}

/* Sets the access of current; returns the access before. */
static inline u32 nymph_access_switch(u32 access)
{
	u32 before = nymph_access_get();

#ifdef CONFIG_X86_INTEL_MEMORY_PROTECTION_KEYS
	write_pkru(access);
#endif
	return before;
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

/* The functions that older kernels have under the short names take the lock, too. */
#ifndef NYMPH_HAS_DMA_BUF_MAP_UNLOCKED
#define dma_buf_map_attachment_unlocked		dma_buf_map_attachment
#define dma_buf_unmap_attachment_unlocked	dma_buf_unmap_attachment
#endif
#ifndef NYMPH_HAS_DMA_BUF_VMAP_UNLOCKED
#define dma_buf_vmap_unlocked			dma_buf_vmap
#define dma_buf_vunmap_unlocked			dma_buf_vunmap
#endif

/* With DMA_API_DEBUG, kernels without this attribute count mappings of a page. */
#ifndef DMA_ATTR_DEBUGGING_IGNORE_CACHELINES
#define DMA_ATTR_DEBUGGING_IGNORE_CACHELINES	0
#ifdef CONFIG_DMA_API_DEBUG
#define NYMPH_OVERLAPS_COUNT
#endif
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
		 * A copy-on-write page has to be copied now. Else the owner's
		 * next write goes to a copy, and the pin keeps a page of zeros,
		 * or a page shared since fork(). Where the owner may not write,
		 * the page is pinned as it is: in these kernels only FOLL_FORCE
		 * would copy it.
		 */
		if (!write && is_cow_mapping(vma->vm_flags) &&
		    vma->vm_flags & VM_WRITE)
			flags |= FOLL_WRITE;
		armed = userfaultfd_armed(vma);
	}
	mmap_read_unlock(current->mm);
	/* only a fault that may drop mmap_lock can wait for userfaultfd */
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
