// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: moves that a ring wants made by a DMA channel, an operation: it holds
 * the memory they are about, its mappings, and a transaction for each run of
 * neighbouring bytes.
 */
#include <linux/device.h>
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
#include "dma.h"
#include "runs.h"

/* Operations that are kept to be used again. */
#define NYMPH_DMA_MAX_SPARE	8

/* Returns one that was used before, or NULL. */
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
 * nymph_dma_op_create() - begin an operation
 * @dma: what is to carry it out
 * @moves: what is to be moved
 * @n: how many, at most NYMPH_MAX_MOVES
 *
 * Return: the operation, which holds their memory, to be freed with
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
	op->abandoned = false;
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
 * nymph_dma_drop_spare() - free what is kept to be used again
 * @dma: the engine
 */
void nymph_dma_drop_spare(struct nymph_dma_engine *dma)
{
	struct nymph_dma_op *op;

	while ((op = nymph_dma_op_again(dma)))
		kfree(op);
}

/*
 * Runs can begin and end anywhere, so that two of them share a cache line. Where
 * that matters, see nymph_dma_alignment(), they do not; but to the DMA API a
 * mapping owns its cache lines, unless who maps does the syncing.
 */
static dma_addr_t nymph_dma_map(struct device *dev, struct page *page,
				size_t offset, size_t len,
				enum dma_data_direction direction)
{
	dma_addr_t dma = dma_map_page_attrs(dev, page, offset, len, direction,
					    DMA_ATTR_SKIP_CPU_SYNC);

	/*
	 * Only where it does something: memory that is mapped twice at a time, as
	 * a source and in a dma-buf say, confuses the DMA_API_DEBUG of 7.3.
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
	dma_unmap_page_attrs(dev, dma, len, direction, DMA_ATTR_SKIP_CPU_SYNC);
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
 * nymph_dma_run_end() - the channel is done with a run, and the CPU may look
 * @op: what it belongs to
 * @run: the run; once is enough
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

/* A region may only go when nobody has it mapped any more. */
static void nymph_dma_op_drop_move(struct nymph_dma_op *op, unsigned int i)
{
	nymph_mapping_put(op->dst_map[i]);
	nymph_mapping_put(op->src_map[i]);
	nymph_region_put(op->dst[i]);
	nymph_region_put(op->src[i]);
}

/**
 * nymph_dma_op_free() - an operation is over
 * @op: the channel is known to be done with it, or never had it
 */
void nymph_dma_op_free(struct nymph_dma_op *op)
{
	bool abandoned = op->abandoned;
	unsigned int i;

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
	if (abandoned) {
		nymph_count(NYMPH_COUNT_QUARANTINED, -1);
		module_put(THIS_MODULE);
	}
}

/**
 * nymph_dma_op_pin() - pin memory of current's, which the operation writes to
 * @op: the operation
 * @addr: start
 * @len: bytes, at most NYMPH_PIECE
 *
 * Return: how many of the bytes are pinned.
 */
size_t nymph_dma_op_pin(struct nymph_dma_op *op, u64 addr, size_t len)
{
	unsigned long start = addr;
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
 * struct nymph_place - where bytes are
 * @card: memory of a device, or NULL
 * @dmabuf: a dma-buf, or NULL
 * @page: where in host memory
 * @offset: into the one or the other
 * @map: the channel has it mapped; or NULL
 * @dma: where
 * @len: how many of them are neighbours
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

/* What it has in common with an address of the channel's: the low bits. */
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

/* Memory behind a handle, or pinned for one entry: then there is no @map. */
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
 * What the CPU can't leave to the channel. Returns how much of it is done, or
 * -EFAULT if it can't be.
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
 * The same, where one side is a dma-buf: what begins and ends that can be far
 * more work than the bytes are.
 */
static ssize_t nymph_dma_by_cpu_at_once(const struct nymph_move *move,
					size_t at, size_t len)
{
	const struct nymph_pin *dst = &move->dst->region->pin;
	bool done;

	if (move->src)
		done = nymph_dmabuf_copy(dst, move->dst_off + at,
					 &move->src->region->pin,
					 move->src_off + at, len);
	else
		done = nymph_pin_store(dst, move->dst_off + at,
				       nymph_move_bounce(move) + at, len);
	return done ? (ssize_t)len : -EFAULT;
}

/* Where the channel is to find bytes. Memory of another device is -EXDEV. */
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
 * What a channel's addresses and lengths have to be multiples of. Where caches
 * are not coherent, no line may be shared with what the CPU writes meanwhile.
 */
static size_t nymph_dma_alignment(struct dma_chan *chan, struct device *dev)
{
	size_t align = 1UL << chan->device->copy_align;

	if (!dev_is_dma_coherent(dev))
		align = max_t(size_t, align, dma_get_cache_alignment());
	return align;
}

/*
 * Has the channel's device have what is behind a handle, at @maps[@i]. Pages that
 * it can't have for longer are mapped for this operation.
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
 * Cuts a move into runs of at most @longest bytes. Returns 0, or why it can't be;
 * -ENOSPC if there are too many, and then the first move is as long as there was
 * room for.
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
		/* a FILL goes on with a whole pattern; what is behind is done again */
		if (ret == -ENOSPC && !i)
			move->done = round_down(at, sizeof(u64));
		at += cut.by_dma;
	}
	return ret;
}

/**
 * nymph_dma_op_map() - have the channel have what is to be moved
 * @op: its engine's lock is held, and there is a channel
 * @moves: what it was made for
 *
 * As many of them as there is room for are mapped, which op->nr_moves says.
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
		/* what there was room for of the first is better than nothing */
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
