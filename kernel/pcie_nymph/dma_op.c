// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: operations: moves that a DMA channel makes for a ring. An operation
 * holds the memory of its moves, the mappings of that memory, and a transaction for
 * each run of contiguous bytes.
 */
#include <linux/device.h>
#include <linux/dma-fence.h>
#include <linux/dma-map-ops.h>
#include <linux/dma-mapping.h>
#include <linux/dmaengine.h>
#include <linux/err.h>
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/vmalloc.h>

#include "compat.h"
#include "counters.h"
#include "dma.h"
#include "runs.h"

/* Operations that an engine keeps for reuse. */
#define NYMPH_DMA_MAX_SPARE	8

/* Returns an operation kept for reuse, or NULL. */
static struct nymph_dma_op *nymph_dma_op_again(struct nymph_dma_engine *dma)
{
	struct nymph_dma_op *op;

	spin_lock_irq(&dma->ops_lock);
	op = list_first_entry_or_null(&dma->spare, struct nymph_dma_op, list);
	if (op) {
		list_del(&op->list);
		dma->nr_spare--;
	}
	spin_unlock_irq(&dma->ops_lock);
	return op;
}

/**
 * nymph_dma_op_create() - Begin an operation
 * @dma: the engine that will run it
 * @moves: the moves
 * @n: number of moves, at most NYMPH_MAX_MOVES
 *
 * Return: the operation, which holds the memory of the moves, to be freed with
 * nymph_dma_op_free(); or NULL.
 */
struct nymph_dma_op *nymph_dma_op_create(struct nymph_dma_engine *dma,
					 const struct nymph_move *moves,
					 unsigned int n)
{
	struct nymph_dma_op *op = nymph_dma_op_again(dma);
	unsigned int i;

	if (!op)
		op = kmalloc(sizeof(*op), GFP_KERNEL_ACCOUNT);
	if (!op)
		return NULL;
	INIT_LIST_HEAD(&op->list);
	op->dma = dma;
	op->dev = NULL;
	op->pending = 0;
	op->quarantined = false;
	op->whole = false;
	op->fence = NULL;
	init_completion(&op->ended);
	op->nr_moves = n;
	op->bounce = NULL;
	op->handed_over = 0;
	op->nr_pages = 0;
	op->nr_runs = 0;
	for (i = 0; i < n; i++) {
		op->dst_map[i] = NULL;
		op->src_map[i] = NULL;
		op->dst[i] = moves[i].dst->region;
		if (op->dst[i])
			refcount_inc(&op->dst[i]->refs);
		op->src[i] = moves[i].src ? moves[i].src->region : NULL;
		if (op->src[i])
			refcount_inc(&op->src[i]->refs);
		else if (!op->bounce)
			op->bounce = moves[i].bounce;
	}
	if (op->bounce)
		refcount_inc(&op->bounce->refs);
	return op;
}

static void nymph_dma_op_put_by(struct nymph_dma_op *op)
{
	struct nymph_dma_engine *dma = op->dma;

	spin_lock_irq(&dma->ops_lock);
	if (dma->nr_spare < NYMPH_DMA_MAX_SPARE) {
		list_add(&op->list, &dma->spare);
		dma->nr_spare++;
		op = NULL;
	}
	spin_unlock_irq(&dma->ops_lock);
	kfree(op);
}

/**
 * nymph_dma_drop_spare() - Free the operations that are kept for reuse
 * @dma: the engine
 */
void nymph_dma_drop_spare(struct nymph_dma_engine *dma)
{
	struct nymph_dma_op *op;

	while ((op = nymph_dma_op_again(dma)))
		kfree(op);
}

/*
 * Runs can begin and end anywhere, so two of them can share a cache line, except where
 * that matters, see nymph_dma_alignment(). To the DMA API a mapping owns its cache
 * lines, unless the code that maps also syncs.
 */
static dma_addr_t nymph_dma_map(struct device *dev, struct page *page,
				size_t offset, size_t len,
				enum dma_data_direction direction)
{
	dma_addr_t dma = dma_map_page_attrs(dev, page, offset, len, direction,
					    NYMPH_DMA_ATTRS);

	/*
	 * Only where it has an effect: memory that is mapped twice at a time, for
	 * instance as a source and in a dma-buf, confuses the DMA_API_DEBUG of 7.3.
	 */
	if (!dma_mapping_error(dev, dma) && dma_need_sync(dev, dma))
		dma_sync_single_for_device(dev, dma, len, direction);
	return dma;
}

static void nymph_dma_unmap(struct device *dev, dma_addr_t dma, size_t len,
			    enum dma_data_direction direction)
{
	if (dma_need_sync(dev, dma))
		dma_sync_single_for_cpu(dev, dma, len, direction);
	dma_unmap_page_attrs(dev, dma, len, direction, NYMPH_DMA_ATTRS);
}

static void nymph_dma_side_end(struct nymph_dma_op *op,
			       struct nymph_dma_side *side, size_t len,
			       enum dma_data_direction direction)
{
	if (side->mapped)
		nymph_dma_unmap(op->dev, side->at, len, direction);
	else if (side->synced)
		dma_sync_single_for_cpu(op->dev, side->at, len, direction);
	side->mapped = false;
	side->synced = false;
}

/**
 * nymph_dma_run_end() - Unmap or sync a run, so that the CPU can access its bytes
 * @op: its operation
 * @run: the run; a second call does nothing
 */
void nymph_dma_run_end(struct nymph_dma_op *op, struct nymph_dma_run *run)
{
	nymph_dma_side_end(op, &run->src, run->len, DMA_TO_DEVICE);
	nymph_dma_side_end(op, &run->dst, run->len, DMA_FROM_DEVICE);
}

/* Ends all runs but the first @left. */
static void nymph_dma_op_unmap(struct nymph_dma_op *op, unsigned int left)
{
	while (op->nr_runs > left)
		nymph_dma_run_end(op, &op->runs[--op->nr_runs]);
}

/* Drops the mappings before the regions: a region that is mapped must stay. */
static void nymph_dma_op_drop_move(struct nymph_dma_op *op, unsigned int i)
{
	nymph_mapping_put(op->dst_map[i]);
	nymph_mapping_put(op->src_map[i]);
	nymph_region_put(op->dst[i]);
	nymph_region_put(op->src[i]);
}

static struct dma_resv *nymph_dma_resv(const struct nymph_region *region)
{
	return region && region->pin.dmabuf ?
	       nymph_dmabuf_resv(region->pin.dmabuf) : NULL;
}

/**
 * nymph_dma_op_fence() - Tell others that the channel is about to use dma-bufs
 * @op: mapped; its engine's lock is held
 *
 * An operation with dma-bufs has one move.
 *
 * Return: 0; -EBUSY if others are at them; -ENOMEM.
 */
int nymph_dma_op_fence(struct nymph_dma_op *op)
{
	struct dma_resv *dst = nymph_dma_resv(op->dst[0]);
	struct dma_resv *src = nymph_dma_resv(op->src[0]);
	struct dma_fence *fence;

	if (op->fence || (!dst && !src))
		return 0;
	fence = nymph_fence_begin(op->dma->engine.name, dst, src);
	if (IS_ERR(fence))
		return PTR_ERR(fence);
	op->fence = fence;
	return 0;
}

/**
 * nymph_dma_op_signal() - Tell others that the channel does not use the dma-bufs any more
 * @op: the operation; the engine's ops_lock is held
 * @error: 0, or the error that others get; -ETIMEDOUT if the channel may still use
 *	the dma-bufs, because nobody may have to wait for that for ever
 */
void nymph_dma_op_signal(struct nymph_dma_op *op, int error)
{
	unsigned int i;

	lockdep_assert_held(&op->dma->ops_lock);
	if (!IS_ENABLED(CONFIG_DMA_SHARED_BUFFER) || !op->fence ||
	    dma_fence_is_signaled(op->fence))
		return;
	for (i = 0; !error && i < op->handed_over; i++)
		if (op->runs[i].status != -EINPROGRESS)
			error = op->runs[i].status;
	if (error)
		dma_fence_set_error(op->fence, error);
	dma_fence_signal(op->fence);
}

static void nymph_dma_op_end_fence(struct nymph_dma_op *op)
{
	if (!op->fence)
		return;
	spin_lock_irq(&op->dma->ops_lock);
	nymph_dma_op_signal(op, 0);
	spin_unlock_irq(&op->dma->ops_lock);
	nymph_fence_end(op->fence, nymph_dma_resv(op->dst[0]),
			nymph_dma_resv(op->src[0]));
	op->fence = NULL;
}

/**
 * nymph_dma_op_free() - Release an operation and its memory
 * @op: an operation that the channel is known to be done with, or never had
 */
void nymph_dma_op_free(struct nymph_dma_op *op)
{
	bool quarantined = op->quarantined;
	unsigned int i;

	nymph_dma_op_end_fence(op);
	nymph_dma_op_unmap(op, 0);
	if (op->nr_pages)
		unpin_user_pages_dirty_lock(op->pages, op->nr_pages, true);
	for (i = 0; i < op->nr_moves; i++)
		nymph_dma_op_drop_move(op, i);
	nymph_bounce_put(op->bounce);
	if (op->dev) {
		spin_lock_irq(&op->dma->ops_lock);
		op->dma->held--;
		spin_unlock_irq(&op->dma->ops_lock);
		wake_up_all(&op->dma->stopped);
		put_device(op->dev);
	}
	nymph_dma_op_put_by(op);
	if (quarantined) {
		nymph_count(NYMPH_COUNT_QUARANTINED, -1);
		module_put(THIS_MODULE);
	}
}

/**
 * nymph_dma_op_pin() - Pin memory of current that an operation writes to
 * @op: the operation
 * @addr: start
 * @len: bytes, at most NYMPH_CHUNK
 *
 * Return: number of bytes that are pinned, from the start on.
 */
size_t nymph_dma_op_pin(struct nymph_dma_op *op, u64 addr, size_t len)
{
	unsigned long start = untagged_addr((unsigned long)addr);
	unsigned int offset = offset_in_page(start);
	unsigned int nr_pages = DIV_ROUND_UP(offset + len, PAGE_SIZE);

	while (op->nr_pages < nr_pages) {
		int got = nymph_pin_pages((start & PAGE_MASK) +
					  op->nr_pages * PAGE_SIZE,
					  nr_pages - op->nr_pages, FOLL_WRITE,
					  op->pages + op->nr_pages);

		if (got <= 0)
			break;
		op->nr_pages += got;
	}
	if (op->nr_pages == nr_pages)
		return len;
	return op->nr_pages ? op->nr_pages * PAGE_SIZE - offset : 0;
}

/**
 * struct nymph_place - location of bytes
 * @card: memory of a device, or NULL
 * @dmabuf: dma-buf, or NULL
 * @page: page of host memory, if both are NULL
 * @offset: offset into @card, @dmabuf or @page
 * @map: mapping for the channel's device, or NULL
 * @dma: address in @map
 * @len: number of contiguous bytes
 */
struct nymph_place {
	struct nymph_card *card;
	struct nymph_dmabuf *dmabuf;
	struct page *page;
	u64 offset;
	const struct nymph_mapping *map;
	dma_addr_t dma;
	size_t len;
};

/* Returns the low bits, which are those of the address for the channel, too. */
static u64 nymph_place_low_bits(const struct nymph_place *place)
{
	return place->dmabuf ? place->dma : place->offset;
}

static struct nymph_place nymph_place_in(struct page *const *pages, u64 offset,
					 size_t max)
{
	return (struct nymph_place) {
		.page = pages[offset >> PAGE_SHIFT],
		.offset = offset_in_page(offset),
		.len = nymph_neighbours(pages, offset, max),
	};
}

/* Finds bytes of a region; @map is NULL if it is pinned for one entry. */
static struct nymph_place
nymph_place_in_region(const struct nymph_region *in,
		      const struct nymph_mapping *map, u64 offset, size_t max)
{
	const struct nymph_pin *pin = &in->pin;
	struct nymph_place place = {
		.card = pin->card,
		.dmabuf = pin->dmabuf,
		.offset = offset,
		.map = map,
		.len = max,
	};

	if (pin->card)
		return place;
	offset += pin->offset;
	if (map)
		place.dma = nymph_mapping_at(map, offset, &place.len);
	if (pin->dmabuf)
		return place;
	place.page = pin->pages[offset >> PAGE_SHIFT];
	place.offset = offset_in_page(offset);
	if (!map || nymph_mapping_needs_sync(map))
		place.len = nymph_neighbours(pin->pages, offset, place.len);
	return place;
}

static struct nymph_place nymph_place_in_bounce(const struct nymph_move *move,
						size_t at, size_t max)
{
	void *address = nymph_move_bounce(move) + at;
	struct nymph_place place = {
		.offset = offset_in_page(address),
		.len = max,
	};

	if (is_vmalloc_addr(address)) {
		place.page = vmalloc_to_page(address);
		place.len = min_t(size_t, max, PAGE_SIZE - place.offset);
	} else {
		place.page = virt_to_page(address);
	}
	return place;
}

static struct nymph_place nymph_dma_op_dst(const struct nymph_dma_op *op,
					   const struct nymph_move *move,
					   unsigned int i, size_t at,
					   size_t max)
{
	if (move->dst->region)
		return nymph_place_in_region(move->dst->region, op->dst_map[i],
					     move->dst_off + at, max);
	return nymph_place_in(op->pages, offset_in_page(move->dst_off) + at,
			      max);
}

static struct nymph_place nymph_dma_op_src(const struct nymph_dma_op *op,
					   const struct nymph_move *move,
					   unsigned int i, size_t at,
					   size_t max)
{
	if (move->src)
		return nymph_place_in_region(move->src->region, op->src_map[i],
					     move->src_off + at, max);
	return nymph_place_in_bounce(move, at, max);
}

/*
 * Has the CPU move bytes that the channel can't. Returns how many it moved, or
 * -EFAULT.
 */
static ssize_t nymph_dma_by_cpu(const struct nymph_place *dst,
				const struct nymph_place *src, size_t len)
{
	u8 some[256];

	len = min(len, sizeof(some));
	if (!src->card) {
		len = min_t(size_t, len, PAGE_SIZE - src->offset);
		memcpy_from_page(some, src->page, src->offset, len);
	} else if (!nymph_card_load(src->card, src->offset, some, len)) {
		return -EFAULT;
	}
	if (!dst->card) {
		len = min_t(size_t, len, PAGE_SIZE - dst->offset);
		memcpy_to_page(dst->page, dst->offset, some, len);
	} else if (!nymph_card_store(dst->card, dst->offset, some, len)) {
		return -EFAULT;
	}
	return len;
}

/*
 * Does the same where one side is a dma-buf: beginning and ending the access can
 * take much more time than the bytes.
 */
static ssize_t nymph_dma_by_cpu_at_once(const struct nymph_move *move,
					size_t at, size_t len)
{
	const struct nymph_pin *dst = &move->dst->region->pin;
	bool done;

	if (move->src)
		done = nymph_pin_copy_dmabuf(dst, move->dst_off + at,
					     &move->src->region->pin,
					     move->src_off + at, len);
	else
		done = nymph_pin_store(dst, move->dst_off + at,
				       nymph_move_bounce(move) + at, len);
	return done ? (ssize_t)len : -EFAULT;
}

/* Finds the address of bytes for the channel; -EXDEV if another device has them. */
static int nymph_dma_side_begin(struct nymph_dma_op *op,
				struct nymph_dma_side *side,
				const struct nymph_place *place, size_t len,
				enum dma_data_direction direction)
{
	side->mapped = false;
	side->synced = false;
	if (place->card) {
		int ret = nymph_card_dma(place->card,
					 op->dma->chan->device->dev, &side->at);

		side->at += place->offset;
		return ret;
	}
	if (place->map) {
		side->at = place->dma;
		side->synced = nymph_mapping_needs_sync(place->map);
		if (side->synced)
			dma_sync_single_for_device(op->dev, side->at, len,
						   direction);
		return 0;
	}
	side->at = nymph_dma_map(op->dev, place->page, place->offset, len,
				 direction);
	side->mapped = !dma_mapping_error(op->dev, side->at);
	return side->mapped ? 0 : -EIO;
}

static int nymph_dma_run_begin(struct nymph_dma_op *op, unsigned int move,
			       const struct nymph_place *dst,
			       const struct nymph_place *src, size_t len)
{
	struct nymph_dma_run *run = &op->runs[op->nr_runs];
	int ret;

	if (op->nr_runs == NYMPH_DMA_MAX_RUNS)
		return -ENOSPC;
	run->op = op;
	run->move = move;
	run->status = -EINPROGRESS;
	run->len = len;
	ret = nymph_dma_side_begin(op, &run->src, src, len, DMA_TO_DEVICE);
	if (ret)
		return ret;
	ret = nymph_dma_side_begin(op, &run->dst, dst, len, DMA_FROM_DEVICE);
	if (ret)
		nymph_dma_side_end(op, &run->src, len, DMA_TO_DEVICE);
	else
		op->nr_runs++;
	return ret;
}

/*
 * Returns what a channel's addresses and lengths have to be multiples of. Where
 * caches are not coherent, the CPU must not write to the cache lines of a run.
 */
static size_t nymph_dma_alignment(struct dma_chan *chan, struct device *dev)
{
	size_t align = 1UL << chan->device->copy_align;

	if (!dev_is_dma_coherent(dev))
		align = max_t(size_t, align, dma_get_cache_alignment());
	return align;
}

/*
 * Maps the memory of a handle for the channel's device, at @maps[@i], if it can stay
 * mapped. Else each run maps its pages.
 */
static int nymph_dma_op_attach(struct nymph_dma_op *op,
			       struct nymph_region *const *regions,
			       struct nymph_mapping **maps, unsigned int i)
{
	struct nymph_region *region = regions[i];
	struct nymph_mapping *map;

	if (!region || !region->pin.mappable)
		return 0;
	if (i && regions[i - 1] == region) {
		maps[i] = maps[i - 1] ? nymph_mapping_again(maps[i - 1]) : NULL;
		return 0;
	}
	map = nymph_mapping_get(region->pin.mappable, op->dev,
				op->dma->chan->device->dev);
	if (!IS_ERR(map))
		maps[i] = map;
	else if (region->pin.dmabuf)
		return PTR_ERR(map);
	return 0;
}

/*
 * Cuts a move into runs of at most @longest bytes. Returns 0 or a negative errno;
 * -ENOSPC if there are too many runs, and then done of the first move is what had
 * room.
 */
static int nymph_dma_map_move(struct nymph_dma_op *op,
			      struct nymph_move *moves, unsigned int i,
			      size_t align, size_t longest)
{
	struct nymph_move *move = &moves[i];
	size_t at = 0;
	int ret;

	ret = nymph_dma_op_attach(op, op->dst, op->dst_map, i);
	if (!ret)
		ret = nymph_dma_op_attach(op, op->src, op->src_map, i);
	while (!ret && at < move->done) {
		size_t left = min(move->done - at, longest);
		struct nymph_place dst = nymph_dma_op_dst(op, move, i, at,
							  left);
		struct nymph_place src = nymph_dma_op_src(op, move, i, at,
							  left);
		struct nymph_cut cut;

		cut = nymph_cut(nymph_place_low_bits(&dst),
				nymph_place_low_bits(&src),
				min(dst.len, src.len), align);
		if (cut.by_cpu) {
			ssize_t n;

			n = dst.dmabuf || src.dmabuf ?
			    nymph_dma_by_cpu_at_once(move, at, cut.by_cpu) :
			    nymph_dma_by_cpu(&dst, &src, cut.by_cpu);
			if (n < 0)
				return n;
			at += n;
			continue;
		}
		ret = nymph_dma_run_begin(op, i, &dst, &src, cut.by_dma);
		/* a FILL goes on with a whole pattern; the rest is done again */
		if (ret == -ENOSPC && !i)
			move->done = round_down(at, sizeof(u64));
		at += cut.by_dma;
	}
	return ret;
}

/**
 * nymph_dma_op_map() - Map the moves of an operation for the channel
 * @op: the operation; its engine's lock is held, and there is a channel
 * @moves: the moves it was created for
 *
 * op->nr_moves becomes the number of moves that had room and are mapped.
 */
void nymph_dma_op_map(struct nymph_dma_op *op, struct nymph_move *moves)
{
	struct dma_chan *chan = op->dma->chan;
	size_t align, longest;
	unsigned int i;
	int ret;

	op->dev = get_device(dmaengine_get_dma_device(chan));
	spin_lock_irq(&op->dma->ops_lock);
	op->dma->held++;
	spin_unlock_irq(&op->dma->ops_lock);
	align = nymph_dma_alignment(chan, op->dev);
	longest = min_t(size_t, dma_get_max_seg_size(op->dev),
			dma_max_mapping_size(op->dev));
	longest = max(longest & ~(align - 1), align);

	for (i = 0; i < op->nr_moves; i++) {
		unsigned int nr_runs = op->nr_runs;

		ret = nymph_dma_map_move(op, moves, i, align, longest);
		if (!ret)
			continue;
		/* a part of the first move is better than nothing */
		if (ret == -ENOSPC && !i) {
			moves->len = moves->done;
			i = 1;
			break;
		}
		nymph_dma_op_unmap(op, nr_runs);
		if (ret == -ENOSPC)
			break;
		moves[i].status = ret;
	}
	while (op->nr_moves > i)
		nymph_dma_op_drop_move(op, --op->nr_moves);
}
