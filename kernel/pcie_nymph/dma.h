/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * pcie_nymph: what the files about DMA channels share: dma_op.c what a channel is
 * to move, engine_dma.c the channel at it, dma_channels.c which there are.
 */
#ifndef _NYMPH_DMA_H
#define _NYMPH_DMA_H

#include <linux/completion.h>
#include <linux/dmaengine.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "nymph.h"

/* Transactions an operation can have: more than a piece in scattered memory has. */
#define NYMPH_DMA_MAX_RUNS	112
#define NYMPH_DMA_MAX_PAGES	(NYMPH_PIECE / PAGE_SIZE + 1)

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
 * @stopped: woken when that was done, and when one less is mapped
 * @ops_lock: serializes @ops, what becomes of them, @held and @spare
 * @ops: operations that the channel may be at
 * @held: operations that have something mapped
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
	spinlock_t ops_lock;	/* ops, held, spare */
	struct list_head ops;
	unsigned int held;
	struct list_head spare;
	unsigned int nr_spare;
};

/**
 * struct nymph_dma_side - where a channel has the bytes of a run
 * @at: address
 * @mapped: for this run, and to be unmapped
 * @synced: for this run, and the CPU's to be again
 */
struct nymph_dma_side {
	dma_addr_t at;
	bool mapped;
	bool synced;
};

/**
 * struct nymph_dma_run - bytes that are neighbours on either side
 * @op: what it belongs to
 * @move: index of the move it is of
 * @status: how it ended; -EINPROGRESS until it has; under ops_lock
 * @src: where the device has them
 * @dst: where the device has them
 * @len: how many
 */
struct nymph_dma_run {
	struct nymph_dma_op *op;
	unsigned int move;
	int status;
	struct nymph_dma_side src;
	struct nymph_dma_side dst;
	size_t len;
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
 * @dst_map: of each move whose destination stays mapped, held; or NULL
 * @src_map: the same for sources
 * @nr_pages: how many
 * @pages: of the caller's memory, pinned for this
 * @nr_runs: how many are mapped
 * @runs: what is to be moved
 * @handed_over: how many of them the channel was given
 * @error: why it was given no more, or 0
 * @deadline: in jiffies, for the channel to have done them
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
	struct nymph_mapping *dst_map[NYMPH_MAX_MOVES];
	struct nymph_mapping *src_map[NYMPH_MAX_MOVES];
	unsigned int nr_pages;
	struct page *pages[NYMPH_DMA_MAX_PAGES];
	unsigned int nr_runs;
	struct nymph_dma_run runs[NYMPH_DMA_MAX_RUNS];
	unsigned int handed_over;
	int error;
	unsigned long deadline;
};

static inline struct nymph_dma_engine *to_nymph_dma(struct nymph_engine *engine)
{
	return container_of(engine, struct nymph_dma_engine, engine);
}

/* dma_op.c: moves that are being made, and the memory they are about */

struct nymph_dma_op *nymph_dma_op_create(struct nymph_dma_engine *dma,
					 const struct nymph_move *moves,
					 unsigned int n);
void nymph_dma_op_free(struct nymph_dma_op *op);
size_t nymph_dma_op_pin(struct nymph_dma_op *op, u64 addr, size_t len);
void nymph_dma_op_map(struct nymph_dma_op *op, struct nymph_move *moves);
void nymph_dma_run_end(struct nymph_dma_op *op, struct nymph_dma_run *run);
void nymph_dma_drop_spare(struct nymph_dma_engine *dma);

/* engine_dma.c: a channel at work */

extern struct workqueue_struct *nymph_dma_wq;

struct nymph_engine *nymph_dma_create(struct dma_chan *chan);
void nymph_dma_give_up(struct nymph_engine *engine, void *param);
void nymph_dma_let_go(struct nymph_engine *engine, void *param);

/* dma_channels.c: which there are */

struct dma_chan *nymph_dma_request(struct nymph_dma_engine *dma);

#endif /* _NYMPH_DMA_H */
