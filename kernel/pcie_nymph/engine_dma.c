// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: any dmaengine channel that can copy, as an engine.
 *
 * Moves that a ring wants made are an operation: it holds the memory they are
 * about, its mappings, and a transaction for each run of neighbouring bytes.
 * Whoever waits for it does so until a deadline. Then the channel is told to stop;
 * as long as it is not known to have, the operation is in quarantine: what it
 * holds is neither unmapped nor given back, and the channel is not used.
 */
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/device.h>
#include <linux/dma-map-ops.h>
#include <linux/dma-mapping.h>
#include <linux/dmaengine.h>
#include <linux/err.h>
#include <linux/highmem.h>
#include <linux/jiffies.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/platform_device.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/vmalloc.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include "compat.h"
#include "nymph.h"
#include "trace.h"
#include "runs.h"

/* Transactions an operation can have: more than a piece in scattered memory has. */
#define NYMPH_DMA_MAX_RUNS	112
#define NYMPH_DMA_MAX_PAGES	(NYMPH_PIECE / PAGE_SIZE + 1)
/* Operations that are kept to be used again. */
#define NYMPH_DMA_MAX_SPARE	8

/* When a channel that did not stop is told to again. */
#define NYMPH_DMA_RETRY		HZ
/* How long it may take to be told. */
#define NYMPH_DMA_STOP_TIMEOUT	(5 * HZ)
/* How long one that failed is spared by rings that can do without. */
#define NYMPH_DMA_PENANCE	HZ

static char *nymph_dma_channels = "nymph_endpoint";
module_param_named(dma_channels, nymph_dma_channels, charp, 0444);
MODULE_PARM_DESC(dma_channels, "DMA channels that may be used: names of channels, of devices, or of drivers, separated by commas");

unsigned int nymph_dma_timeout_ms = 3000;
module_param_named(dma_timeout_ms, nymph_dma_timeout_ms, uint, 0644);
MODULE_PARM_DESC(dma_timeout_ms, "how long a DMA channel may take for what it is given at once, 1 MiB at most");

/**
 * struct nymph_dma_engine - a channel
 * @engine: as the rest of the module has it
 * @seen: the last scan found that it can be had; under the engines' lock
 * @lock: serializes what follows; taken before @ops_lock
 * @wanted: a ring has the engine
 * @chan: the channel, if it is ours
 * @failed: it did, at @failed_at
 * @failed_at: when, in jiffies
 * @stopping: it was told to stop, and is not known to have
 * @stops: how often it was told
 * @stop_work: tells it
 * @stopped: woken when that was done
 * @ops_lock: serializes @ops, what becomes of them, and @spare
 * @ops: operations that the channel may be at
 * @spare: operations to be used again
 * @nr_spare: how many
 */
struct nymph_dma_engine {
	struct nymph_engine engine;
	bool seen;
	struct mutex lock;	/* wanted to stops */
	bool wanted;
	struct dma_chan *chan;
	bool failed;
	unsigned long failed_at;
	bool stopping;
	unsigned int stops;
	struct delayed_work stop_work;
	wait_queue_head_t stopped;
	spinlock_t ops_lock;	/* ops, spare */
	struct list_head ops;
	struct list_head spare;
	unsigned int nr_spare;
};

/**
 * struct nymph_dma_run - bytes that are neighbours on either side
 * @op: what it belongs to
 * @move: index of the move it is of
 * @status: how it ended; -EINPROGRESS until it has; under ops_lock
 * @src: where the device has them
 * @dst: where the device has them
 * @len: how many
 * @src_mapped: @src is host memory, and its mapping
 * @dst_mapped: the same for @dst
 */
struct nymph_dma_run {
	struct nymph_dma_op *op;
	unsigned int move;
	int status;
	dma_addr_t src;
	dma_addr_t dst;
	size_t len;
	bool src_mapped;
	bool dst_mapped;
};

/**
 * struct nymph_dma_op - moves that are being made
 * @list: in the engine's ops, or its spare
 * @dma: the engine
 * @dev: what the mappings are for, held
 * @pending: transactions that the channel has; under ops_lock
 * @abandoned: nobody waits any more; under ops_lock
 * @ended: the channel is done with all it was given
 * @nr_moves: how many
 * @dst: of each move, held; NULL if @pages are the destination
 * @src: of each move, held; NULL if it is @bounce
 * @bounce: held, or NULL
 * @dst_map: the only move's destination is a dma-buf, which the channel has
 *	there; held
 * @src_map: the same for its source
 * @nr_pages: how many
 * @pages: of the caller's memory, pinned for this
 * @nr_runs: how many are mapped
 * @runs: what is to be moved
 */
struct nymph_dma_op {
	struct list_head list;
	struct nymph_dma_engine *dma;
	struct device *dev;
	unsigned int pending;
	bool abandoned;
	struct completion ended;
	unsigned int nr_moves;
	struct nymph_region *dst[NYMPH_MAX_MOVES];
	struct nymph_region *src[NYMPH_MAX_MOVES];
	struct nymph_bounce *bounce;
	struct nymph_dmabuf_map *dst_map;
	struct nymph_dmabuf_map *src_map;
	unsigned int nr_pages;
	struct page *pages[NYMPH_DMA_MAX_PAGES];
	unsigned int nr_runs;
	struct nymph_dma_run runs[NYMPH_DMA_MAX_RUNS];
};

static struct workqueue_struct *nymph_dma_wq;

/* Devices that are being unbound from their drivers: not to be touched. */
static DEFINE_XARRAY(nymph_dma_unbinding);

static struct nymph_dma_engine *to_nymph_dma(struct nymph_engine *engine)
{
	return container_of(engine, struct nymph_dma_engine, engine);
}

/* --- an operation, and the memory it holds --- */

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

static struct nymph_dma_op *nymph_dma_op_create(struct nymph_dma_engine *dma,
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
	op->dst_map = NULL;
	op->src_map = NULL;
	op->nr_pages = 0;
	op->nr_runs = 0;
	for (i = 0; i < n; i++) {
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

static void nymph_dma_drop_spare(struct nymph_dma_engine *dma)
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

static void nymph_dma_run_unmap(struct nymph_dma_op *op,
				struct nymph_dma_run *run)
{
	if (run->src_mapped)
		nymph_dma_unmap(op->dev, run->src, run->len, DMA_TO_DEVICE);
	if (run->dst_mapped)
		nymph_dma_unmap(op->dev, run->dst, run->len, DMA_FROM_DEVICE);
	run->src_mapped = false;
	run->dst_mapped = false;
}

/* Unmaps all runs but the first @left. */
static void nymph_dma_op_unmap(struct nymph_dma_op *op, unsigned int left)
{
	while (op->nr_runs > left)
		nymph_dma_run_unmap(op, &op->runs[--op->nr_runs]);
}

/* The channel is known to be done with it, or never had it. May sleep. */
static void nymph_dma_op_free(struct nymph_dma_op *op)
{
	bool abandoned = op->abandoned;
	unsigned int i;

	nymph_dma_op_unmap(op, 0);
	if (op->dev)
		put_device(op->dev);
	if (op->nr_pages)
		unpin_user_pages_dirty_lock(op->pages, op->nr_pages, true);
	nymph_dmabuf_map_put(op->dst_map);
	nymph_dmabuf_map_put(op->src_map);
	for (i = 0; i < op->nr_moves; i++) {
		nymph_region_put(op->dst[i]);
		nymph_region_put(op->src[i]);
	}
	nymph_bounce_put(op->bounce);
	nymph_dma_op_put_by(op);
	if (abandoned) {
		nymph_count(NYMPH_COUNT_QUARANTINED, -1);
		module_put(THIS_MODULE);
	}
}

/* Pins the caller's memory; returns how many bytes of it. */
static size_t nymph_dma_op_pin(struct nymph_dma_op *op, u64 addr, size_t len)
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
 * struct nymph_place - where bytes are
 * @card: memory of a device, or NULL
 * @dmabuf: a dma-buf, or NULL
 * @page: where in host memory
 * @offset: into the one or the other
 * @dma: where the channel has a dma-buf's
 * @len: how many of them are neighbours
 */
struct nymph_place {
	struct nymph_card *card;
	struct nymph_dmabuf *dmabuf;
	struct page *page;
	u64 offset;
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

static struct nymph_place
nymph_place_in_region(const struct nymph_region *in,
		      const struct nymph_dmabuf_map *map, u64 offset,
		      size_t max)
{
	if (in->pin.dmabuf) {
		struct nymph_place place = {
			.dmabuf = in->pin.dmabuf,
			.offset = offset,
			.len = max,
		};

		place.dma = nymph_dmabuf_map_at(map, offset, &place.len);
		return place;
	}
	if (in->pin.card)
		return (struct nymph_place) {
			.card = in->pin.card,
			.offset = offset,
			.len = max,
		};
	return nymph_place_in(in->pin.pages, in->pin.offset + offset, max);
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
					   size_t at, size_t max)
{
	if (move->dst->region)
		return nymph_place_in_region(move->dst->region, op->dst_map,
					     move->dst_off + at, max);
	return nymph_place_in(op->pages, offset_in_page(move->dst_off) + at,
			      max);
}

static struct nymph_place nymph_dma_op_src(const struct nymph_dma_op *op,
					   const struct nymph_move *move,
					   size_t at, size_t max)
{
	if (move->src)
		return nymph_place_in_region(move->src->region, op->src_map,
					     move->src_off + at, max);
	return nymph_place_in_bounce(move, at, max);
}

static bool nymph_place_is_page(const struct nymph_place *place)
{
	return !place->card && !place->dmabuf;
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
static int nymph_dma_map_place(struct nymph_dma_op *op,
			       const struct nymph_place *place, size_t len,
			       enum dma_data_direction direction,
			       dma_addr_t *dma)
{
	if (place->card) {
		int ret = nymph_card_dma(place->card,
					 op->dma->chan->device->dev, dma);

		*dma += place->offset;
		return ret;
	}
	if (place->dmabuf) {
		*dma = place->dma;
		return 0;
	}
	*dma = nymph_dma_map(op->dev, place->page, place->offset, len,
			     direction);
	return dma_mapping_error(op->dev, *dma) ? -EIO : 0;
}

static int nymph_dma_map_run(struct nymph_dma_op *op, unsigned int move,
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
	run->src_mapped = nymph_place_is_page(src);
	run->dst_mapped = nymph_place_is_page(dst);
	ret = nymph_dma_map_place(op, src, len, DMA_TO_DEVICE, &run->src);
	if (ret)
		return ret;
	ret = nymph_dma_map_place(op, dst, len, DMA_FROM_DEVICE, &run->dst);
	if (!ret)
		op->nr_runs++;
	else if (run->src_mapped)
		nymph_dma_unmap(op->dev, run->src, len, DMA_TO_DEVICE);
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

/* Has the channel's device have the region, if that is a dma-buf. */
static int nymph_dma_op_attach(struct nymph_dma_op *op,
			       const struct nymph_region *region,
			       struct nymph_dmabuf_map **map)
{
	struct nymph_dmabuf_map *got;

	if (!region || !region->pin.dmabuf)
		return 0;
	got = nymph_dmabuf_map_get(region->pin.dmabuf, op->dev,
				   op->dma->chan->device->dev);
	if (IS_ERR(got))
		return PTR_ERR(got);
	*map = got;
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

	while (at < move->done) {
		size_t left = min(move->done - at, longest);
		struct nymph_place dst = nymph_dma_op_dst(op, move, at, left);
		struct nymph_place src = nymph_dma_op_src(op, move, at, left);
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
		ret = nymph_dma_map_run(op, i, &dst, &src, cut.by_dma);
		/* a FILL goes on with a whole pattern; what is behind is done again */
		if (ret == -ENOSPC && !i)
			move->done = round_down(at, sizeof(u64));
		if (ret)
			return ret;
		at += cut.by_dma;
	}
	return 0;
}

/*
 * Maps as many of the moves as there is room for, and says so in op->nr_moves.
 * @op->dma->lock is held, and there is a channel.
 */
static void nymph_dma_op_map(struct nymph_dma_op *op, struct nymph_move *moves)
{
	struct dma_chan *chan = op->dma->chan;
	size_t align, longest;
	unsigned int i;
	int ret;

	op->dev = get_device(dmaengine_get_dma_device(chan));
	align = nymph_dma_alignment(chan, op->dev);
	longest = min_t(size_t, dma_get_max_seg_size(op->dev),
			dma_max_mapping_size(op->dev));
	longest = max(longest & ~(align - 1), align);

	/* none of several has a dma-buf */
	ret = nymph_dma_op_attach(op, op->dst[0], &op->dst_map);
	if (!ret)
		ret = nymph_dma_op_attach(op, op->src[0], &op->src_map);
	if (ret) {
		moves->status = ret;
		return;
	}

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
	for (; op->nr_moves > i; op->nr_moves--) {
		nymph_region_put(op->dst[op->nr_moves - 1]);
		nymph_region_put(op->src[op->nr_moves - 1]);
	}
}

/* --- the channel --- */

static int nymph_dma_status(const struct dmaengine_result *result)
{
	switch (result ? result->result : DMA_TRANS_NOERROR) {
	case DMA_TRANS_NOERROR:
		return 0;
	case DMA_TRANS_ABORTED:
		return -ETIMEDOUT;
	default:
		return -EIO;
	}
}

/*
 * The provider may hold its lock, and call from an interrupt: nothing is done
 * here but to say so.
 */
static void nymph_dma_callback(void *param,
			       const struct dmaengine_result *result)
{
	struct nymph_dma_run *run = param;
	struct nymph_dma_op *op = run->op;
	unsigned long flags;

	spin_lock_irqsave(&op->dma->ops_lock, flags);
	run->status = nymph_dma_status(result);
	/* the waiter may free it as soon as the lock is gone */
	if (!--op->pending)
		complete(&op->ended);
	spin_unlock_irqrestore(&op->dma->ops_lock, flags);
}

/*
 * Hands over as many runs from @first on as the channel has room for. Returns
 * how many, or why it can't be.
 */
static int nymph_dma_submit(struct nymph_dma_op *op, unsigned int first)
{
	struct nymph_dma_engine *dma = op->dma;
	struct dma_chan *chan = dma->chan;
	unsigned int i;

	lockdep_assert_held(&dma->lock);
	if (!chan || dmaengine_get_dma_device(chan) != op->dev)
		return -ENODEV;
	if (dma->stopping)
		return -EIO;

	/* one more, so that it can't end before all of it is handed over */
	spin_lock_irq(&dma->ops_lock);
	op->pending = op->nr_runs - first + 1;
	list_add_tail(&op->list, &dma->ops);
	spin_unlock_irq(&dma->ops_lock);

	for (i = first; i < op->nr_runs; i++) {
		struct nymph_dma_run *run = &op->runs[i];
		struct dma_async_tx_descriptor *tx;

		/* until it is submitted, the provider may hold a spinlock */
		tx = dmaengine_prep_dma_memcpy(chan, run->dst, run->src,
					       run->len, DMA_PREP_INTERRUPT |
					       DMA_CTRL_ACK);
		if (!tx)
			break;
		tx->callback_result = nymph_dma_callback;
		tx->callback_param = run;
		dmaengine_submit(tx);
	}

	dma_async_issue_pending(chan);
	spin_lock_irq(&dma->ops_lock);
	op->pending -= op->nr_runs - i + 1;
	if (!op->pending)
		complete(&op->ended);
	spin_unlock_irq(&dma->ops_lock);
	return i - first;
}

/*
 * Ends operations: those that the channel was done with by itself, and all those
 * of @stopped, if that is not NULL: it is known not to be at them, and not to
 * call back.
 */
static void nymph_dma_end_ops(struct nymph_dma_engine *dma,
			      const struct device *stopped)
{
	struct nymph_dma_op *op, *next;
	LIST_HEAD(abandoned);

	spin_lock_irq(&dma->ops_lock);
	list_for_each_entry_safe(op, next, &dma->ops, list) {
		if (op->pending && op->dev != stopped)
			continue;
		if (op->pending) {
			op->pending = 0;
			complete(&op->ended);
		}
		if (op->abandoned)
			list_move_tail(&op->list, &abandoned);
		else
			list_del_init(&op->list);
	}
	spin_unlock_irq(&dma->ops_lock);

	list_for_each_entry_safe(op, next, &abandoned, list)
		nymph_dma_op_free(op);
}

static void nymph_dma_release(struct nymph_dma_engine *dma)
{
	dma_release_channel(dma->chan);
	dma->chan = NULL;
	dma->stopping = false;
}

/*
 * Has the channel stop, and ends what it is known to be done with. All rings'
 * operations are: it can't be told to stop only some.
 */
static void nymph_dma_stop_locked(struct nymph_dma_engine *dma)
{
	struct device *stopped = NULL;
	bool idle;

	lockdep_assert_held(&dma->lock);
	/* then BUS_NOTIFY_UNBOUND_DRIVER ends what is left */
	if (!dma->chan)
		return;
	dmaengine_terminate_async(dma->chan);
	dmaengine_synchronize(dma->chan);
	/*
	 * A provider that could not make sure says so the second time; and one
	 * that can't stop at all, each time.
	 */
	if (!dmaengine_terminate_async(dma->chan))
		stopped = dmaengine_get_dma_device(dma->chan);
	nymph_dma_end_ops(dma, stopped);

	spin_lock_irq(&dma->ops_lock);
	idle = list_empty(&dma->ops);
	spin_unlock_irq(&dma->ops_lock);
	dma->stops++;
	dma->stopping = !idle;
	if (!idle)
		queue_delayed_work(nymph_dma_wq, &dma->stop_work,
				   NYMPH_DMA_RETRY);
	else if (!dma->wanted) {
		nymph_dma_release(dma);
		nymph_dma_drop_spare(dma);
	}
}

static void nymph_dma_stop_work(struct work_struct *work)
{
	struct nymph_dma_engine *dma;

	dma = container_of(to_delayed_work(work), struct nymph_dma_engine,
			   stop_work);
	mutex_lock(&dma->lock);
	nymph_dma_stop_locked(dma);
	mutex_unlock(&dma->lock);
	wake_up_all(&dma->stopped);
}

/* Says of each move how the first @nr_runs runs ended; or did not, in time. */
static void nymph_dma_collect(struct nymph_dma_op *op, struct nymph_move *moves,
			      unsigned int nr_runs)
{
	const struct nymph_dma_run *run;

	lockdep_assert_held(&op->dma->ops_lock);
	for (run = op->runs; run < op->runs + nr_runs; run++) {
		struct nymph_move *move = &moves[run->move];

		if (run->status == -EINPROGRESS && op->pending) {
			/* worse than any error: it may still be written to */
			move->adrift = true;
			move->status = -ETIMEDOUT;
		} else if (run->status && !move->status) {
			move->status = run->status == -EINPROGRESS ?
				       -ETIMEDOUT : run->status;
		}
	}
}

/*
 * Waits for what was handed over, the first @handed_over runs. Returns whether
 * the channel is done with it, well or not; else the operation is in quarantine,
 * and not to be touched any more.
 */
static bool nymph_dma_wait(struct nymph_dma_op *op, struct nymph_move *moves,
			   unsigned int handed_over)
{
	struct nymph_dma_engine *dma = op->dma;
	unsigned int i, stops;
	bool done;

	if (!wait_for_completion_timeout(&op->ended,
					 msecs_to_jiffies(READ_ONCE(nymph_dma_timeout_ms)))) {
		/* other rings' operations go on with it, if it is not so bad */
		stops = READ_ONCE(dma->stops);
		mod_delayed_work(nymph_dma_wq, &dma->stop_work, 0);
		wait_event_timeout(dma->stopped,
				   READ_ONCE(dma->stops) != stops,
				   NYMPH_DMA_STOP_TIMEOUT);
	}

	spin_lock_irq(&dma->ops_lock);
	done = !op->pending;
	nymph_dma_collect(op, moves, done ? handed_over : op->nr_runs);
	if (done) {
		list_del_init(&op->list);
	} else {
		/* what is said to have ended has to be there, and stay as it is */
		for (i = 0; i < op->nr_runs; i++)
			if (op->runs[i].status != -EINPROGRESS)
				nymph_dma_run_unmap(op, &op->runs[i]);
		/* from now on it is end_ops()'s to free */
		op->abandoned = true;
		nymph_count(NYMPH_COUNT_QUARANTINED, 1);
		__module_get(THIS_MODULE);
	}
	spin_unlock_irq(&dma->ops_lock);
	return done;
}

/*
 * Whether the channel's device is there to stay. If it leaves, its channels are
 * in the kernel's list for longer than their names are.
 */
static bool nymph_dma_is_live(struct dma_chan *chan)
{
	struct device *dev = chan->device->dev;

	return READ_ONCE(dev->driver) &&
	       !xa_load(&nymph_dma_unbinding, (unsigned long)dev);
}

/* Whether this channel may be used, as the administrator has it. */
static bool nymph_dma_is_allowed(struct dma_chan *chan)
{
	struct device *dev = chan->device->dev;
	const char *const names[] = {
		dma_chan_name(chan), dev_name(dev), dev_driver_string(dev),
	};
	const char *at = nymph_dma_channels;

	while (*at) {
		size_t len = strcspn(at, ",");
		unsigned int i;

		for (i = 0; i < ARRAY_SIZE(names); i++)
			if (strlen(names[i]) == len &&
			    !strncmp(names[i], at, len))
				return true;
		at += len;
		if (*at)
			at++;
	}
	return false;
}

static bool nymph_dma_is_ours(struct dma_chan *chan, void *param)
{
	struct nymph_dma_engine *dma = param;

	return nymph_dma_is_live(chan) &&
	       !strcmp(dma_chan_name(chan), dma->engine.name) &&
	       nymph_dma_is_allowed(chan);
}

/* Makes the channel ours. The engine's lock is held. */
static int nymph_dma_acquire(struct nymph_dma_engine *dma)
{
	dma_cap_mask_t mask;

	lockdep_assert_held(&dma->lock);
	if (dma->chan)
		return dma->stopping ? -EIO : 0;
	dma_cap_zero(mask);
	dma_cap_set(DMA_MEMCPY, mask);
	dma->chan = dma_request_channel(mask, nymph_dma_is_ours, dma);
	return dma->chan ? 0 : -ENODEV;
}

static int nymph_dma_start(struct nymph_engine *engine)
{
	struct nymph_dma_engine *dma = to_nymph_dma(engine);
	int ret;

	mutex_lock(&dma->lock);
	ret = nymph_dma_acquire(dma);
	if (!ret)
		dma->wanted = true;
	mutex_unlock(&dma->lock);
	return ret;
}

static void nymph_dma_stop(struct nymph_engine *engine)
{
	struct nymph_dma_engine *dma = to_nymph_dma(engine);
	bool idle;

	mutex_lock(&dma->lock);
	dma->wanted = false;
	nymph_dma_drop_spare(dma);
	spin_lock_irq(&dma->ops_lock);
	idle = list_empty(&dma->ops);
	spin_unlock_irq(&dma->ops_lock);
	/*
	 * A channel that failed may take long to be given back, and nobody is to
	 * wait for it; one that is at an operation still is given back behind
	 * that.
	 */
	if (dma->chan && idle && dma->failed)
		mod_delayed_work(nymph_dma_wq, &dma->stop_work, 0);
	else if (dma->chan && idle)
		nymph_dma_release(dma);
	mutex_unlock(&dma->lock);
}

static bool nymph_dma_ready(struct nymph_engine *engine)
{
	struct nymph_dma_engine *dma = to_nymph_dma(engine);

	if (READ_ONCE(dma->stopping))
		return false;
	return !READ_ONCE(dma->failed) ||
	       time_after(jiffies, READ_ONCE(dma->failed_at) +
			  NYMPH_DMA_PENANCE);
}

/* Maps the operation, and hands over what the channel has room for. */
static int nymph_dma_begin(struct nymph_dma_op *op, struct nymph_move *moves,
			   unsigned int *handed_over)
{
	struct nymph_dma_engine *dma = op->dma;
	int ret;

	mutex_lock(&dma->lock);
	/* its device may have come back */
	ret = nymph_dma_acquire(dma);
	if (!ret && !op->dev) {
		nymph_dma_op_map(op, moves);
		trace_nymph_mapped(dma->engine.id, op->nr_moves, op->nr_runs);
	}
	if (!ret && *handed_over < op->nr_runs) {
		ret = nymph_dma_submit(op, *handed_over);
		if (ret > 0)
			*handed_over += ret;
	}
	mutex_unlock(&dma->lock);
	return ret;
}

/*
 * Makes the first @n of the moves, which becomes fewer if there is no room for so
 * many. Returns whether the operation is ours still, see nymph_dma_wait().
 */
static bool nymph_dma_carry_out(struct nymph_dma_op *op,
				struct nymph_move *moves, unsigned int *n)
{
	unsigned long deadline = jiffies +
			msecs_to_jiffies(READ_ONCE(nymph_dma_timeout_ms));
	unsigned int i, handed_over = 0;
	int ret;

	for (;;) {
		reinit_completion(&op->ended);
		ret = nymph_dma_begin(op, moves, &handed_over);
		*n = op->nr_moves;
		if (ret < 0 || !op->nr_runs)
			break;
		if (!nymph_dma_wait(op, moves, handed_over))
			return false;
		if (handed_over == op->nr_runs)
			break;
		/* others have it full */
		ret = -ETIMEDOUT;
		if (time_after(jiffies, deadline))
			break;
		usleep_range(50, 200);
	}
	if (ret < 0) {
		for (i = 0; i < *n && !op->dev; i++)
			moves[i].status = ret;
		for (i = handed_over; i < op->nr_runs; i++)
			if (!moves[op->runs[i].move].status)
				moves[op->runs[i].move].status = ret;
	}
	return true;
}

/* What moves say of the channel, if they say anything: one failure is enough. */
static void nymph_dma_judge(struct nymph_dma_engine *dma,
			    const struct nymph_move *moves, unsigned int n)
{
	const struct nymph_move *move;
	bool good = false;

	for (move = moves; move < moves + n; move++) {
		if (!move->status) {
			good |= move->done;
		} else if (move->status != -EFAULT && move->status != -EXDEV &&
			   move->status != -ENOMEM) {
			WRITE_ONCE(dma->failed_at, jiffies);
			WRITE_ONCE(dma->failed, true);
			return;
		}
	}
	if (good && READ_ONCE(dma->failed))
		WRITE_ONCE(dma->failed, false);
}

/* Makes the first moves of @n; returns how many. */
static unsigned int nymph_dma_move_some(struct nymph_dma_engine *dma,
					struct nymph_move *moves,
					unsigned int n)
{
	struct nymph_dma_op *op = nymph_dma_op_create(dma, moves, n);
	struct nymph_move *move;

	for (move = moves; move < moves + n; move++) {
		move->status = op ? 0 : -ENOMEM;
		move->done = op ? move->len : 0;
	}
	if (!op)
		return n;
	if (!moves->dst->region)
		moves->done = nymph_dma_op_pin(op, moves->dst_off, moves->len);
	if (!moves->done || nymph_dma_carry_out(op, moves, &n))
		nymph_dma_op_free(op);

	nymph_dma_judge(dma, moves, n);
	for (move = moves; move < moves + n; move++) {
		if (move->status)
			move->done = 0;
		else if (move->done < move->len)
			move->status = -EFAULT;
	}
	return n;
}

static void nymph_dma_move(struct nymph_engine *engine,
			   struct nymph_move *moves, unsigned int n)
{
	unsigned int made;

	for (; n; moves += made, n -= made)
		made = nymph_dma_move_some(to_nymph_dma(engine), moves, n);
}

static struct nymph_card *nymph_dma_card(struct nymph_engine *engine,
					 u64 length)
{
	struct nymph_dma_engine *dma = to_nymph_dma(engine);
	struct nymph_card *card;
	int ret;

	/* the device's driver is not unbound while that is held */
	mutex_lock(&dma->lock);
	ret = nymph_dma_acquire(dma);
	card = dma->chan ? nymph_card_alloc(dma->chan->device->dev, length) :
			   ERR_PTR(ret);
	mutex_unlock(&dma->lock);
	return card;
}

/* --- which channels there are --- */

static void nymph_dma_unsee(struct nymph_engine *engine, void *unused)
{
	to_nymph_dma(engine)->seen = false;
}

/* Takes no channel, but sees all that nobody has. */
static bool nymph_dma_see(struct dma_chan *chan, void *param)
{
	struct nymph_engine *engine;
	struct nymph_dma_engine *dma;
	int *error = param;

	if (!nymph_dma_is_live(chan) || !nymph_dma_is_allowed(chan) ||
	    strlen(dma_chan_name(chan)) >= NYMPH_ENGINE_NAME_SIZE)
		return false;
	engine = nymph_engine_lookup(dma_chan_name(chan));
	if (!engine) {
		dma = kzalloc(sizeof(*dma), GFP_KERNEL_ACCOUNT);
		if (!dma) {
			*error = -ENOMEM;
			return false;
		}
		mutex_init(&dma->lock);
		spin_lock_init(&dma->ops_lock);
		INIT_LIST_HEAD(&dma->ops);
		INIT_LIST_HEAD(&dma->spare);
		init_waitqueue_head(&dma->stopped);
		INIT_DELAYED_WORK(&dma->stop_work, nymph_dma_stop_work);
		engine = &dma->engine;
		strscpy(engine->name, dma_chan_name(chan),
			sizeof(engine->name));
		engine->offloads = true;
		engine->start = nymph_dma_start;
		engine->stop = nymph_dma_stop;
		engine->ready = nymph_dma_ready;
		engine->card = nymph_dma_card;
		engine->move = nymph_dma_move;
		nymph_engine_add(engine);
	}
	engine->node = dev_to_node(chan->device->dev);
	to_nymph_dma(engine)->seen = true;
	return false;
}

/**
 * nymph_dma_scan() - look which channels can be had
 *
 * The engines' lock is held; new ones are added.
 *
 * Return: 0 or -ENOMEM.
 */
int nymph_dma_scan(void)
{
	dma_cap_mask_t mask;
	int error = 0;

	nymph_engines_each_locked(nymph_dma_unsee, NULL);
	dma_cap_zero(mask);
	dma_cap_set(DMA_MEMCPY, mask);
	dma_request_channel(mask, nymph_dma_see, &error);
	return error;
}

/**
 * nymph_dma_is_there() - whether a ring can have the engine
 * @engine: after nymph_dma_scan(), with the engines' lock held
 */
bool nymph_dma_is_there(struct nymph_engine *engine)
{
	struct nymph_dma_engine *dma = to_nymph_dma(engine);

	return dma->seen || READ_ONCE(dma->chan);
}

/**
 * nymph_dma_forget() - the module goes
 * @engine: no ring has it
 */
void nymph_dma_forget(struct nymph_engine *engine)
{
	struct nymph_dma_engine *dma = to_nymph_dma(engine);

	cancel_delayed_work_sync(&dma->stop_work);
	if (dma->chan)
		nymph_dma_release(dma);
	nymph_dma_drop_spare(dma);
	mutex_destroy(&dma->lock);
	kfree(dma);
}

/* --- devices that leave --- */

/*
 * Gives the channel up, if the device it is of is @param. What is not known to
 * have ended stays: the driver may call back for it on its way out.
 */
static void nymph_dma_give_up(struct nymph_engine *engine, void *param)
{
	struct nymph_dma_engine *dma = to_nymph_dma(engine);
	struct device *dev = param;

	mutex_lock(&dma->lock);
	if (dma->chan && dma->chan->device->dev == dev) {
		nymph_dma_stop_locked(dma);
		if (dma->chan)
			nymph_dma_release(dma);
	}
	mutex_unlock(&dma->lock);
	wake_up_all(&dma->stopped);
}

/* A driver that is unbound has stopped its device, and calls nobody any more. */
static void nymph_dma_let_go(struct nymph_engine *engine, void *param)
{
	struct nymph_dma_engine *dma = to_nymph_dma(engine);

	mutex_lock(&dma->lock);
	nymph_dma_end_ops(dma, param);
	mutex_unlock(&dma->lock);
}

static int nymph_dma_bus_event(struct notifier_block *nb, unsigned long event,
			       void *data)
{
	unsigned long key = (unsigned long)data;

	switch (event) {
	case BUS_NOTIFY_UNBIND_DRIVER:
		/* only so that nobody takes a channel of it before it is gone */
		xa_store(&nymph_dma_unbinding, key, data, GFP_KERNEL);
		nymph_engines_each(nymph_dma_give_up, data);
		nymph_cards_withdraw(data);
		nymph_dmabufs_withdraw(data);
		break;
	case BUS_NOTIFY_UNBOUND_DRIVER:
		nymph_engines_each(nymph_dma_let_go, data);
		xa_erase(&nymph_dma_unbinding, key);
		break;
	}
	return NOTIFY_DONE;
}

static struct notifier_block nymph_dma_pci_notifier = {
	.notifier_call = nymph_dma_bus_event,
};

static struct notifier_block nymph_dma_platform_notifier = {
	.notifier_call = nymph_dma_bus_event,
};

/**
 * nymph_dma_init() - the module comes
 *
 * Return: 0 or a negative errno.
 */
int nymph_dma_init(void)
{
	int ret;

	nymph_dma_wq = alloc_workqueue("nymph_dma", WQ_UNBOUND, 0);
	if (!nymph_dma_wq)
		return -ENOMEM;
	ret = bus_register_notifier(&pci_bus_type, &nymph_dma_pci_notifier);
	if (ret)
		goto wq;
	ret = bus_register_notifier(&platform_bus_type,
				    &nymph_dma_platform_notifier);
	if (ret)
		goto pci;
	return 0;

pci:
	bus_unregister_notifier(&pci_bus_type, &nymph_dma_pci_notifier);
wq:
	destroy_workqueue(nymph_dma_wq);
	return ret;
}

/**
 * nymph_dma_exit() - the module goes
 *
 * No operation is left: what is in quarantine keeps the module.
 */
void nymph_dma_exit(void)
{
	bus_unregister_notifier(&platform_bus_type,
				&nymph_dma_platform_notifier);
	bus_unregister_notifier(&pci_bus_type, &nymph_dma_pci_notifier);
	nymph_engines_exit();
	destroy_workqueue(nymph_dma_wq);
	xa_destroy(&nymph_dma_unbinding);
}
