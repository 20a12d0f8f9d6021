// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: memory that stays where it is: pinned user memory, memory of the
 * driver, memory of a device, or a dma-buf; how the CPU accesses it, and who is
 * charged for it. And bounce buffers.
 */
#include <linux/backing-dev.h>
#include <linux/err.h>
#include <linux/highmem.h>
#include <linux/iosys-map.h>
#include <linux/kasan.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#include "compat.h"
#include "counters.h"
#include "engine.h"
#include "memory.h"
#include "runs.h"

/* The longest run of pages that an allocation tries to get. */
#define NYMPH_ALLOC_ORDER	get_order(SZ_2M)

/* Bytes that go through the stack where the CPU must not address the memory. */
#define NYMPH_PIN_SOME		256

/* Loops over pages call cond_resched() once per this many pages. */
#define NYMPH_PIN_STEP		512UL

/**
 * nymph_bounce_create() - Allocate a bounce buffer
 * @node: NUMA node of the engine that will read it, or NUMA_NO_NODE
 *
 * Return: the buffer, with one reference; or NULL.
 */
struct nymph_bounce *nymph_bounce_create(int node)
{
	struct nymph_bounce *bounce;

	bounce = kvmalloc_node(struct_size(bounce, data, NYMPH_CHUNK),
			       NYMPH_GFP_SIZED, node);
	if (bounce)
		refcount_set(&bounce->refs, 1);
	return bounce;
}

/**
 * nymph_bounce_put() - Drop a reference to a bounce buffer
 * @bounce: the buffer, or NULL
 */
void nymph_bounce_put(struct nymph_bounce *bounce)
{
	if (bounce && refcount_dec_and_test(&bounce->refs))
		kvfree(bounce);
}

/**
 * nymph_check_mapped() - Check how current's memory is mapped
 * @addr: start
 * @len: bytes
 * @vm_flags: VM_READ, VM_WRITE: what every mapping in the range has to allow
 * @long_term: it is to be pinned
 *
 * The answer can be out of date when it arrives: the check reports errors early, and
 * is no protection.
 *
 * Return: 0; -EFAULT; -EINTR if current was killed; -EOPNOTSUPP if the memory
 * would be written while pinned and is a shared mapping of a file, whose pages
 * would then change behind the back of writeback.
 */
int nymph_check_mapped(u64 addr, u64 len, unsigned long vm_flags,
		       bool long_term)
{
	struct mm_struct *mm = current->mm;
	unsigned long at, end;
	int ret = 0;

	if (addr > ULONG_MAX || len > ULONG_MAX)
		return -EFAULT;
	at = untagged_addr((unsigned long)addr);
	if (!access_ok((void __user *)at, len))
		return -EFAULT;
	end = at + len;

	if (mmap_read_lock_killable(mm))
		return -EINTR;
	while (at < end) {
		struct vm_area_struct *vma = find_vma(mm, at);

		if (!vma || vma->vm_start > at ||
		    (vma->vm_flags & vm_flags) != vm_flags) {
			ret = -EFAULT;
			break;
		}
		if (long_term && (vm_flags & VM_WRITE) &&
		    (vma->vm_flags & VM_SHARED) && vma->vm_file &&
		    mapping_can_writeback(vma->vm_file->f_mapping))
			ret = -EOPNOTSUPP;
		at = vma->vm_end;
	}
	mmap_read_unlock(mm);
	return ret;
}

/* Returns the number of pages that the pin keeps in memory: all of each folio. */
static unsigned long nymph_pin_weight(const struct nymph_pin *pin)
{
	struct folio *last = NULL;
	unsigned long i, weight = 0;

	for (i = 0; i < pin->nr_pages; i++) {
		struct folio *folio = page_folio(pin->pages[i]);

		if (!(i % NYMPH_PIN_STEP))
			cond_resched();
		if (folio == last)
			continue;
		weight += folio_nr_pages(folio);
		last = folio;
	}
	return weight;
}

/*
 * Tells whether writeback could see pages of the pin change. The mappings were
 * checked before, but another thread can have replaced them since.
 */
static bool nymph_pin_needs_writeback(const struct nymph_pin *pin)
{
	struct folio *last = NULL;
	unsigned long i;

	for (i = 0; i < pin->nr_pages; i++) {
		struct folio *folio = page_folio(pin->pages[i]);
		struct address_space *mapping;
		bool needs;

		if (!(i % NYMPH_PIN_STEP))
			cond_resched();
		if (folio == last || folio_test_anon(folio))
			continue;
		/* the lock keeps truncation from taking the mapping away */
		folio_lock(folio);
		mapping = folio_mapping(folio);
		needs = mapping && mapping_can_writeback(mapping);
		folio_unlock(folio);
		if (needs)
			return true;
		last = folio;
	}
	return false;
}

/**
 * nymph_pin_user() - Pin current's memory for as long as a transfer is queued
 * @pin: filled
 * @user: the user who is charged
 * @addr: start
 * @len: bytes, not 0
 * @write: whether an engine will write to it
 *
 * Return: 0; -ENOMEM if no memory is left or RLIMIT_MEMLOCK does not allow it;
 * -EFAULT; -EOPNOTSUPP, see nymph_check_mapped(). On failure nothing is pinned or
 * charged.
 */
int nymph_pin_user(struct nymph_pin *pin, struct user_struct *user, u64 addr,
		   u64 len, bool write)
{
	unsigned long start = untagged_addr((unsigned long)addr);
	unsigned long nr_pages, weight;
	unsigned int flags = FOLL_LONGTERM | (write ? FOLL_WRITE : 0);
	int ret;

	memset(pin, 0, sizeof(*pin));
	pin->offset = offset_in_page(start);
	pin->write = write;
	nr_pages = DIV_ROUND_UP(pin->offset + len, PAGE_SIZE);

	/* at least that many, so nothing is pinned far beyond the limit */
	ret = nymph_charge(user, nr_pages, 0);
	if (ret)
		return ret;
	pin->charged = nr_pages;

	pin->pages = kvmalloc_array(nr_pages, sizeof(*pin->pages),
				    NYMPH_GFP_SIZED);
	if (!pin->pages) {
		ret = -ENOMEM;
		goto err;
	}

	while (pin->nr_pages < nr_pages) {
		unsigned long at = (start & PAGE_MASK) +
				   (pin->nr_pages << PAGE_SHIFT);

		ret = nymph_pin_pages(at, nr_pages - pin->nr_pages, flags,
				      pin->pages + pin->nr_pages);
		if (ret <= 0) {
			ret = ret ?: -EFAULT;
			goto err;
		}
		pin->nr_pages += ret;
		nymph_count(NYMPH_COUNT_PINNED_PAGES, ret);
	}

	if (write && nymph_pin_needs_writeback(pin)) {
		ret = -EOPNOTSUPP;
		goto err;
	}

	weight = nymph_pin_weight(pin);
	if (weight > nr_pages) {
		ret = nymph_charge(user, weight - nr_pages, 0);
		if (ret)
			goto err;
		pin->charged = weight;
	}
	return 0;

err:
	nymph_unpin(pin, user);
	return ret;
}

/**
 * nymph_pin_alloc() - Allocate zeroed memory
 * @pin: filled
 * @user: the user who is charged
 * @len: bytes, not 0
 *
 * Return: 0; -ENOMEM if no memory is left or RLIMIT_MEMLOCK does not allow it;
 * -EINTR if current was killed. On failure nothing is allocated or charged.
 */
int nymph_pin_alloc(struct nymph_pin *pin, struct user_struct *user, u64 len)
{
	unsigned long nr_pages = DIV_ROUND_UP(len, PAGE_SIZE);
	unsigned int i;
	int ret;

	memset(pin, 0, sizeof(*pin));
	pin->write = true;
	pin->ours = true;
	ret = nymph_charge(user, nr_pages, 0);
	if (ret)
		return ret;
	pin->charged = nr_pages;
	pin->pages = kvmalloc_array(nr_pages, sizeof(*pin->pages),
				    NYMPH_GFP_SIZED);
	if (!pin->pages) {
		ret = -ENOMEM;
		goto err;
	}

	while (pin->nr_pages < nr_pages) {
		unsigned int order = min_t(unsigned int, NYMPH_ALLOC_ORDER,
					   ilog2(nr_pages - pin->nr_pages));
		gfp_t gfp = GFP_HIGHUSER | __GFP_ZERO | __GFP_ACCOUNT;
		struct page *page = NULL;

		ret = -EINTR;
		if (fatal_signal_pending(current))
			goto err;
		/* the longer the runs, the fewer runs for an engine */
		if (order)
			page = alloc_pages(gfp | __GFP_NORETRY | __GFP_NOWARN,
					   order);
		if (!page) {
			order = 0;
			/* beyond a cgroup's limit: no reason to kill anybody */
			page = alloc_page(gfp | __GFP_RETRY_MAYFAIL |
					  __GFP_NOWARN);
		}
		ret = -ENOMEM;
		if (!page)
			goto err;
		/* user space maps and unmaps them one by one */
		if (order)
			split_page(page, order);
		for (i = 0; i < 1U << order; i++)
			pin->pages[pin->nr_pages++] = page + i;
		nymph_count(NYMPH_COUNT_ALLOCATED_PAGES, 1L << order);
		cond_resched();
	}
	return 0;

err:
	nymph_unpin(pin, user);
	return ret;
}

/**
 * nymph_pin_card() - Allocate memory of an engine's device
 * @pin: filled
 * @engine: the engine
 * @len: bytes, not 0
 *
 * Return: 0; -EOPNOTSUPP if there is none; -ENOMEM if not enough of it is left;
 * -ENODEV if the device is gone.
 */
int nymph_pin_card(struct nymph_pin *pin, struct nymph_engine *engine, u64 len)
{
	struct nymph_card *card;

	memset(pin, 0, sizeof(*pin));
	pin->write = true;
	card = engine->card ? engine->card(engine, len) :
			      ERR_PTR(-EOPNOTSUPP);
	if (IS_ERR(card))
		return PTR_ERR(card);
	if (!nymph_card_clear(card)) {
		nymph_card_free(card);
		return -ENODEV;
	}
	pin->card = card;
	return 0;
}

/**
 * nymph_pin_dmabuf() - Import a dma-buf of current
 * @pin: filled
 * @fd: number of its file
 * @write: whether an engine will write to it
 * @len: filled: bytes
 *
 * Nobody is charged: the memory is its exporter's.
 *
 * Return: 0, or what nymph_dmabuf_import() says.
 */
int nymph_pin_dmabuf(struct nymph_pin *pin, int fd, bool write, u64 *len)
{
	struct nymph_dmabuf *dmabuf;

	memset(pin, 0, sizeof(*pin));
	pin->write = write;
	dmabuf = nymph_dmabuf_import(fd, write, len);
	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	pin->dmabuf = dmabuf;
	pin->mappable = nymph_dmabuf_mappable(dmabuf);
	return 0;
}

/**
 * nymph_unpin() - Release memory
 * @pin: memory that a function above filled in; no engine may still use it
 * @user: the user who was charged
 */
void nymph_unpin(struct nymph_pin *pin, struct user_struct *user)
{
	unsigned long i, n;

	if (pin->card) {
		nymph_card_free(pin->card);
	} else if (pin->dmabuf) {
		nymph_dmabuf_free(pin->dmabuf);
	} else if (pin->ours) {
		vunmap(pin->vaddr);
		for (i = 0; i < pin->nr_pages; i++) {
			if (!(i % NYMPH_PIN_STEP))
				cond_resched();
			__free_page(pin->pages[i]);
		}
		nymph_count(NYMPH_COUNT_ALLOCATED_PAGES, -(long)pin->nr_pages);
	} else if (pin->nr_pages) {
		for (i = 0; i < pin->nr_pages; i += n) {
			n = min(pin->nr_pages - i, NYMPH_PIN_STEP);
			unpin_user_pages_dirty_lock(pin->pages + i, n,
						    pin->write);
			cond_resched();
		}
		nymph_count(NYMPH_COUNT_PINNED_PAGES, -(long)pin->nr_pages);
	}
	kvfree(pin->pages);
	nymph_uncharge(user, pin->charged);
	memset(pin, 0, sizeof(*pin));
}

/**
 * nymph_pin_load() - Copy out of pinned memory
 * @pin: the memory
 * @offset: where in it to start
 * @to: kernel memory
 * @len: bytes
 *
 * Return: whether the memory is still there. Memory of a device may be gone, and the
 * exporter of a dma-buf may refuse the CPU.
 */
bool nymph_pin_load(const struct nymph_pin *pin, u64 offset, void *to,
		    size_t len)
{
	size_t n;

	if (pin->card)
		return nymph_card_load(pin->card, offset, to, len);
	if (pin->dmabuf)
		return nymph_dmabuf_load(pin->dmabuf, offset, to, len);
	offset += pin->offset;
	for (; len; len -= n, offset += n, to += n) {
		size_t off = offset_in_page(offset);

		n = min_t(size_t, len, PAGE_SIZE - off);
		memcpy_from_page(to, pin->pages[offset >> PAGE_SHIFT], off, n);
	}
	return true;
}

/**
 * nymph_pin_store() - Copy into pinned memory
 * @pin: the memory
 * @offset: where in it to start
 * @from: kernel memory
 * @len: bytes
 *
 * Return: whether the memory is still there.
 */
bool nymph_pin_store(const struct nymph_pin *pin, u64 offset, const void *from,
		     size_t len)
{
	size_t n;

	if (pin->card)
		return nymph_card_store(pin->card, offset, from, len);
	if (pin->dmabuf)
		return nymph_dmabuf_store(pin->dmabuf, offset, from, len);
	offset += pin->offset;
	for (; len; len -= n, offset += n, from += n) {
		size_t off = offset_in_page(offset);

		n = min_t(size_t, len, PAGE_SIZE - off);
		memcpy_to_page(pin->pages[offset >> PAGE_SHIFT], off, from, n);
	}
	return true;
}

/*
 * Returns how many bytes can be accessed at a time; hashing long runs is faster.
 * Where kmap_local_page() maps, which some kernels without high memory do as well, it
 * maps one page.
 */
static size_t nymph_pin_run(const struct nymph_pin *pin, u64 offset,
			    size_t max)
{
	if (!IS_ENABLED(CONFIG_KMAP_LOCAL))
		return nymph_neighbours(pin->pages, offset, max);
	return min_t(size_t, max, PAGE_SIZE - offset_in_page(offset));
}

/* Pages that are neighbours can have different tags: this has none. */
static void *nymph_kmapped(void *page, u64 offset)
{
	return kasan_reset_tag(page) + offset_in_page(offset);
}

/**
 * nymph_pin_in_place() - Get the kernel's address of pinned memory
 * @pin: the memory
 * @offset: where in it to start
 * @len: bytes
 *
 * Return: the address; NULL if the CPU cannot read all of it there.
 */
const void *nymph_pin_in_place(const struct nymph_pin *pin, u64 offset,
			       size_t len)
{
	if (!pin->pages || IS_ENABLED(CONFIG_KMAP_LOCAL))
		return NULL;
	offset += pin->offset;
	if (nymph_neighbours(pin->pages, offset, len) < len)
		return NULL;
	return nymph_kmapped(page_address(pin->pages[offset >> PAGE_SHIFT]),
			     offset);
}

static void nymph_pages_hash(const struct nymph_pin *pin, u64 offset,
			     size_t len, struct nymph_blake3 *hash)
{
	size_t n;

	offset += pin->offset;
	for (; len; len -= n, offset += n) {
		void *at = kmap_local_page(pin->pages[offset >> PAGE_SHIFT]);

		n = nymph_pin_run(pin, offset, len);
		nymph_blake3_update(hash, nymph_kmapped(at, offset), n);
		kunmap_local(at);
	}
}

/*
 * Piece by piece, so that what one pass read or wrote is in a cache for the next one.
 * With @bounce, what is hashed is what is sent: each byte of the source is read once.
 */
static void nymph_pages_copy(const struct nymph_pin *dst, u64 dst_off,
			     const struct nymph_pin *src, u64 src_off,
			     size_t len, struct nymph_blake3 *src_hash,
			     struct nymph_blake3 *dst_hash,
			     struct nymph_bounce *bounce)
{
	size_t n, i;

	dst_off += dst->offset;
	src_off += src->offset;
	for (; len; len -= n, dst_off += n, src_off += n) {
		struct page **pages = dst->pages + (dst_off >> PAGE_SHIFT);
		void *from_page = kmap_local_page(src->pages[src_off >> PAGE_SHIFT]);
		void *to_page = kmap_local_page(*pages);
		void *from = nymph_kmapped(from_page, src_off);
		void *to = nymph_kmapped(to_page, dst_off);

		n = min_t(size_t, len, NYMPH_CHUNK);
		n = nymph_pin_run(dst, dst_off, nymph_pin_run(src, src_off, n));
		if (bounce) {
			nymph_blake3_update_copy(src_hash, bounce->data, from, n);
			from = bounce->data;
		} else if (src_hash) {
			nymph_blake3_update(src_hash, from, n);
		}
		if (dst_hash)
			nymph_blake3_update_copy(dst_hash, to, from, n);
		else
			memcpy(to, from, n);
		kunmap_local(to_page);
		kunmap_local(from_page);
		for (i = 0; i < offset_in_page(dst_off) + n; i += PAGE_SIZE)
			flush_dcache_page(*pages++);
	}
}

/**
 * struct nymph_shared - work that a team shares
 * @team: the team
 * @dst: where to copy it to, or NULL
 * @dst_off: where in that it starts
 * @src: memory that has pages
 * @src_off: where in that it starts
 * @src_hash: what the source is added to, or NULL
 * @dst_hash: what the destination is added to, or NULL
 * @len: how much was added to these before
 */
struct nymph_shared {
	struct nymph_team *team;
	const struct nymph_pin *dst;
	u64 dst_off;
	const struct nymph_pin *src;
	u64 src_off;
	struct nymph_blake3 *src_hash;
	struct nymph_blake3 *dst_hash;
	u64 len;
};

static void nymph_pin_part(void *arg, unsigned int i)
{
	const struct nymph_shared *s = arg;
	struct nymph_part *part = nymph_team_part(s->team, i);
	struct nymph_blake3 *src_hash = s->src_hash ? &part->src_hash : NULL;
	struct nymph_blake3 *dst_hash = s->dst_hash ? &part->dst_hash : NULL;
	u64 at = (u64)i * NYMPH_TEAM_PART;

	if (src_hash)
		nymph_blake3_fork(src_hash, s->src_hash, s->len + at);
	if (dst_hash)
		nymph_blake3_fork(dst_hash, s->dst_hash, s->len + at);
	if (s->dst)
		nymph_pages_copy(s->dst, s->dst_off + at, s->src,
				 s->src_off + at, NYMPH_TEAM_PART, src_hash,
				 dst_hash, NULL);
	else
		nymph_pages_hash(s->src, s->src_off + at, NYMPH_TEAM_PART,
				 src_hash);
}

/* Has a team do its share of @len bytes; returns how many bytes it did. */
static size_t nymph_pin_share(struct nymph_shared *s, size_t len)
{
	struct nymph_blake3 *hash = s->src_hash ?: s->dst_hash;
	unsigned int i, nr_parts = s->team ? nymph_team_share(len) : 0;

	/* a part of a hash has to start at a multiple of its size */
	if (hash) {
		s->len = nymph_blake3_len(hash);
		if (s->len % NYMPH_TEAM_PART)
			return 0;
	}
	if (!nr_parts)
		return 0;
	nymph_team_run(s->team, nymph_pin_part, s, nr_parts);
	for (i = 0; i < nr_parts; i++) {
		struct nymph_part *part = nymph_team_part(s->team, i);

		if (s->src_hash)
			nymph_blake3_join(s->src_hash, &part->src_hash);
		if (s->dst_hash)
			nymph_blake3_join(s->dst_hash, &part->dst_hash);
	}
	return nr_parts * NYMPH_TEAM_PART;
}

/**
 * nymph_pin_hash() - Hash pinned memory
 * @pin: the memory; it has pages
 * @offset: where in it to start
 * @len: bytes
 * @hash: is updated
 * @team: with which the work can be shared, or NULL
 */
void nymph_pin_hash(const struct nymph_pin *pin, u64 offset, size_t len,
		    struct nymph_blake3 *hash, struct nymph_team *team)
{
	struct nymph_shared shared = {
		.team = team,
		.src = pin,
		.src_off = offset,
		.src_hash = hash,
	};
	size_t n;

	n = nymph_pin_share(&shared, len);
	nymph_pages_hash(pin, offset + n, len - n, hash);
}

/**
 * nymph_pin_copy() - Copy pinned memory, and hash both sides in the same pass
 * @dst: where to; it has pages
 * @dst_off: where in it
 * @src: where from; it has pages
 * @src_off: where in it
 * @len: bytes
 * @src_hash: is updated with the source, if it is not NULL
 * @dst_hash: is updated with what arrived, if it is not NULL; as many bytes were
 *	added to it before as to @src_hash
 * @bounce: buffer through which the source goes into @src_hash and to @dst, so that
 *	both get the same bytes even if somebody changes them; or NULL
 * @team: with which the work can be shared, if there is no @bounce; or NULL
 */
void nymph_pin_copy(const struct nymph_pin *dst, u64 dst_off,
		    const struct nymph_pin *src, u64 src_off, size_t len,
		    struct nymph_blake3 *src_hash,
		    struct nymph_blake3 *dst_hash, struct nymph_bounce *bounce,
		    struct nymph_team *team)
{
	struct nymph_shared shared = {
		.team = bounce ? NULL : team,
		.dst = dst,
		.dst_off = dst_off,
		.src = src,
		.src_off = src_off,
		.src_hash = src_hash,
		.dst_hash = dst_hash,
	};
	size_t n = nymph_pin_share(&shared, len);

	nymph_pages_copy(dst, dst_off + n, src, src_off + n, len - n, src_hash,
			 dst_hash, bounce);
}

/**
 * nymph_pin_copy_dmabuf() - Have the CPU copy from or to a dma-buf
 * @dst: the destination
 * @dst_off: offset into @dst
 * @src: the source; one of the two is a dma-buf
 * @src_off: offset into @src
 * @len: bytes
 *
 * Return: whether the memory is still there and all exporters agreed.
 */
bool nymph_pin_copy_dmabuf(const struct nymph_pin *dst, u64 dst_off,
			   const struct nymph_pin *src, u64 src_off, size_t len)
{
	bool write = !src->dmabuf, there = true;
	struct nymph_dmabuf *d = write ? dst->dmabuf : src->dmabuf;
	const struct iosys_map *at = nymph_dmabuf_begin(d, write);
	struct iosys_map map;
	u8 some[NYMPH_PIN_SOME];
	size_t n;

	if (!at)
		return false;
	map = *at;
	if (!map.is_iomem) {
		there = write ? nymph_pin_load(src, src_off,
					       map.vaddr + dst_off, len) :
				nymph_pin_store(dst, dst_off,
						map.vaddr + src_off, len);
		len = 0;
	}
	for (; there && len; len -= n, dst_off += n, src_off += n) {
		n = min(len, sizeof(some));
		if (write) {
			there = nymph_pin_load(src, src_off, some, n);
			if (there)
				iosys_map_memcpy_to(&map, dst_off, some, n);
		} else {
			iosys_map_memcpy_from(some, &map, src_off, n);
			there = nymph_pin_store(dst, dst_off, some, n);
		}
	}
	return nymph_dmabuf_end(d, write) && there;
}
