// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: memory that stays where it is: the caller's, pinned, the driver's
 * own, a device's, or a dma-buf; who is charged for it, and what the CPU does with it.
 */
#include <linux/backing-dev.h>
#include <linux/capability.h>
#include <linux/err.h>
#include <linux/highmem.h>
#include <linux/log2.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/user.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#include "compat.h"
#include "nymph.h"
#include "runs.h"

/* The longest run of pages that is looked for when memory is allocated. */
#define NYMPH_ALLOC_ORDER	get_order(SZ_2M)

/**
 * nymph_check_mapped() - whether current's memory is mapped as it must be
 * @addr: start
 * @len: bytes
 * @vm_flags: VM_READ, VM_WRITE: what every mapping in the range has to allow
 * @long_term: it is to be pinned
 *
 * The answer can be out of date when it arrives: it makes errors early where
 * they can be, and is no protection.
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

static int nymph_charge(struct user_struct *user, unsigned long nr_pages)
{
	unsigned long limit = rlimit(RLIMIT_MEMLOCK) >> PAGE_SHIFT;
	long old = atomic_long_read(&user->locked_vm);

	do {
		if (old + nr_pages > limit)
			return -ENOMEM;
	} while (!atomic_long_try_cmpxchg(&user->locked_vm, &old,
					  old + nr_pages));
	return 0;
}

/* Pages that stay in memory because of the pin: all those of each folio. */
static unsigned long nymph_pin_weight(const struct nymph_pin *pin)
{
	struct folio *last = NULL;
	unsigned long i, weight = 0;

	for (i = 0; i < pin->nr_pages; i++) {
		struct folio *folio = page_folio(pin->pages[i]);

		if (folio == last)
			continue;
		weight += folio_nr_pages(folio);
		last = folio;
	}
	return weight;
}

/*
 * The mappings were checked before, but another thread can have replaced
 * them since: what counts is which pages the pin got.
 */
static bool nymph_pin_needs_writeback(const struct nymph_pin *pin)
{
	struct folio *last = NULL;
	unsigned long i;

	for (i = 0; i < pin->nr_pages; i++) {
		struct folio *folio = page_folio(pin->pages[i]);
		struct address_space *mapping;
		bool needs;

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
 * nymph_pin_user() - pin current's memory for as long as a transfer is queued
 * @pin: filled
 * @user: who is charged
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
	bool charge = !capable(CAP_IPC_LOCK);
	int ret;

	memset(pin, 0, sizeof(*pin));
	pin->offset = offset_in_page(start);
	pin->write = write;
	nr_pages = DIV_ROUND_UP(pin->offset + len, PAGE_SIZE);

	/* at least that many, so nothing is pinned far beyond the limit */
	if (charge) {
		ret = nymph_charge(user, nr_pages);
		if (ret)
			return ret;
		pin->charged = nr_pages;
	}

	pin->pages = kvmalloc_array(nr_pages, sizeof(*pin->pages),
				    GFP_KERNEL_ACCOUNT);
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
	if (charge && weight > nr_pages) {
		ret = nymph_charge(user, weight - nr_pages);
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
 * nymph_pin_alloc() - allocate zeroed memory
 * @pin: filled
 * @user: who is charged
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
	if (!capable(CAP_IPC_LOCK)) {
		ret = nymph_charge(user, nr_pages);
		if (ret)
			return ret;
		pin->charged = nr_pages;
	}
	pin->pages = kvmalloc_array(nr_pages, sizeof(*pin->pages),
				    GFP_KERNEL_ACCOUNT);
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
		/* the longer the runs, the fewer pieces for an engine */
		if (order)
			page = alloc_pages(gfp | __GFP_NORETRY | __GFP_NOWARN,
					   order);
		if (!page) {
			order = 0;
			page = alloc_page(gfp);
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
 * nymph_pin_card() - take memory of the device that an engine is part of
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
 * nymph_pin_dmabuf() - import a dma-buf of current's
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
 * nymph_unpin() - let go of memory
 * @pin: what one of the functions above filled; no engine may still use it
 * @user: who was charged
 */
void nymph_unpin(struct nymph_pin *pin, struct user_struct *user)
{
	unsigned long i;

	if (pin->card) {
		nymph_card_free(pin->card);
	} else if (pin->dmabuf) {
		nymph_dmabuf_free(pin->dmabuf);
	} else if (pin->ours) {
		vunmap(pin->vaddr);
		for (i = 0; i < pin->nr_pages; i++)
			__free_page(pin->pages[i]);
		nymph_count(NYMPH_COUNT_ALLOCATED_PAGES, -(long)pin->nr_pages);
	} else if (pin->nr_pages) {
		unpin_user_pages_dirty_lock(pin->pages, pin->nr_pages,
					    pin->write);
		nymph_count(NYMPH_COUNT_PINNED_PAGES, -(long)pin->nr_pages);
	}
	kvfree(pin->pages);
	atomic_long_sub(pin->charged, &user->locked_vm);
	memset(pin, 0, sizeof(*pin));
}

/**
 * nymph_pin_load() - copy out of pinned memory
 * @pin: the memory
 * @offset: where in it to start
 * @to: kernel memory
 * @len: bytes
 *
 * Return: whether the memory is still there; a device's may not be, and the
 * exporter of a dma-buf may not let the CPU at it.
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
 * nymph_pin_store() - copy into pinned memory
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

/* The longer what is hashed at a time, the faster it is. */
static size_t nymph_pin_run(const struct nymph_pin *pin, u64 offset,
			    size_t max)
{
	if (!IS_ENABLED(CONFIG_HIGHMEM))
		return nymph_neighbours(pin->pages, offset, max);
	return min_t(size_t, max, PAGE_SIZE - offset_in_page(offset));
}

static void nymph_pages_hash(const struct nymph_pin *pin, u64 offset,
			     size_t len, struct nymph_blake3 *hash)
{
	size_t n;

	offset += pin->offset;
	for (; len; len -= n, offset += n) {
		void *at = kmap_local_page(pin->pages[offset >> PAGE_SHIFT]);

		n = nymph_pin_run(pin, offset, len);
		nymph_blake3_update(hash, at + offset_in_page(offset), n);
		kunmap_local(at);
	}
}

static void nymph_pages_copy(const struct nymph_pin *dst, u64 dst_off,
			     const struct nymph_pin *src, u64 src_off,
			     size_t len, struct nymph_blake3 *hash)
{
	size_t n, i;

	dst_off += dst->offset;
	src_off += src->offset;
	for (; len; len -= n, dst_off += n, src_off += n) {
		struct page **pages = dst->pages + (dst_off >> PAGE_SHIFT);
		void *from = kmap_local_page(src->pages[src_off >> PAGE_SHIFT]);
		void *to = kmap_local_page(*pages);

		n = nymph_pin_run(dst, dst_off,
				  nymph_pin_run(src, src_off, len));
		if (hash)
			nymph_blake3_update_copy(hash,
						 to + offset_in_page(dst_off),
						 from + offset_in_page(src_off),
						 n);
		else
			memcpy(to + offset_in_page(dst_off),
			       from + offset_in_page(src_off), n);
		kunmap_local(to);
		kunmap_local(from);
		for (i = 0; i < offset_in_page(dst_off) + n; i += PAGE_SIZE)
			flush_dcache_page(*pages++);
	}
}

/**
 * struct nymph_shared - what a team is at
 * @team: the team
 * @dst: where to copy it to, or NULL
 * @dst_off: where in that it starts
 * @src: memory that has pages
 * @src_off: where in that it starts
 * @hash: what it is added to, or NULL
 * @len: how much was added to that before
 */
struct nymph_shared {
	struct nymph_team *team;
	const struct nymph_pin *dst;
	u64 dst_off;
	const struct nymph_pin *src;
	u64 src_off;
	struct nymph_blake3 *hash;
	u64 len;
};

static void nymph_pin_part(void *arg, unsigned int i)
{
	const struct nymph_shared *s = arg;
	u64 at = (u64)i * NYMPH_TEAM_PART;
	struct nymph_blake3 *hash = NULL;

	if (s->hash) {
		hash = nymph_team_hash(s->team, i);
		nymph_blake3_fork(hash, s->hash, s->len + at);
	}
	if (s->dst)
		nymph_pages_copy(s->dst, s->dst_off + at, s->src,
				 s->src_off + at, NYMPH_TEAM_PART, hash);
	else
		nymph_pages_hash(s->src, s->src_off + at, NYMPH_TEAM_PART,
				 hash);
}

/* Has a team do what is worth it of @len bytes; returns how many that are. */
static size_t nymph_pin_share(struct nymph_shared *s, size_t len)
{
	unsigned int i, nr_parts = s->team ? nymph_team_share(len) : 0;

	/* what is not at a multiple of its size is no part of a hash */
	if (s->hash) {
		s->len = nymph_blake3_len(s->hash);
		if (s->len % NYMPH_TEAM_PART)
			return 0;
	}
	if (!nr_parts)
		return 0;
	nymph_team_run(s->team, nymph_pin_part, s, nr_parts);
	for (i = 0; s->hash && i < nr_parts; i++)
		nymph_blake3_join(s->hash, nymph_team_hash(s->team, i));
	return nr_parts * NYMPH_TEAM_PART;
}

/**
 * nymph_pin_hash() - hash pinned memory
 * @pin: the memory
 * @offset: where in it to start
 * @len: bytes
 * @hash: is updated
 * @team: with which the work can be shared, or NULL
 *
 * Return: whether the memory is still there.
 */
bool nymph_pin_hash(const struct nymph_pin *pin, u64 offset, size_t len,
		    struct nymph_blake3 *hash, struct nymph_team *team)
{
	struct nymph_shared shared = {
		.team = team,
		.src = pin,
		.src_off = offset,
		.hash = hash,
	};
	size_t n;

	if (pin->card)
		return nymph_card_hash(pin->card, offset, len, hash);
	if (pin->dmabuf)
		return nymph_dmabuf_hash(pin->dmabuf, offset, len, hash);
	n = nymph_pin_share(&shared, len);
	nymph_pages_hash(pin, offset + n, len - n, hash);
	return true;
}

/**
 * nymph_pin_copy() - copy pinned memory, and hash what arrives in one pass
 * @dst: where to; it has pages
 * @dst_off: where in it
 * @src: where from; it has pages
 * @src_off: where in it
 * @len: bytes
 * @hash: is updated, if it is not NULL
 * @team: with which the work can be shared, or NULL
 */
void nymph_pin_copy(const struct nymph_pin *dst, u64 dst_off,
		    const struct nymph_pin *src, u64 src_off, size_t len,
		    struct nymph_blake3 *hash, struct nymph_team *team)
{
	struct nymph_shared shared = {
		.team = team,
		.dst = dst,
		.dst_off = dst_off,
		.src = src,
		.src_off = src_off,
		.hash = hash,
	};
	size_t n = nymph_pin_share(&shared, len);

	nymph_pages_copy(dst, dst_off + n, src, src_off + n, len - n, hash);
}
