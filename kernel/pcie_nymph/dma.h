/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * pcie_nymph: DMA channels: dma_channels.c finds them, dma_op.c maps what they
 * move, and engine_dma.c runs them.
 */
#ifndef _NYMPH_DMA_H
#define _NYMPH_DMA_H

#include <linux/completion.h>
#include <linux/dmaengine.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/ratelimit.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "engine.h"

/* Runs of an operation: more than a chunk in scattered memory has. */
#define NYMPH_DMA_MAX_RUNS	112
#define NYMPH_DMA_MAX_PAGES	(NYMPH_CHUNK / PAGE_SIZE + 1)

/**
 * struct nymph_dma_engine - an engine that is a channel
 * @engine: the engine, for the rest of the module
 * @seen: the last scan found that the channel can be had; under the engines' lock
 * @users: rings that have the engine, or its help; raised under @lock
 * @log: rate limit of notices about the channel
 * @lock: serializes @chan to @stops; taken before @ops_lock; held while a dead
 *	channel is told to stop
 * @chan: the channel, while the driver has it
 * @tried: the provider was asked for the channel; only while it is requested
 * @refusals: number of times in a row that the provider refused the channel
 * @refused_at: time of the last refusal, in jiffies
 * @polled_at: time at which a waiter last asked the provider, in jiffies
 * @erred: the channel reported an error since it was taken: it may have paused
 * @ended: number of runs that the channel ended
 * @failed: the channel failed, at @failed_at
 * @failed_at: time of the failure, in jiffies
 * @stopping: the channel was told to stop, and is not known to have stopped
 * @stops: number of times it was told
 * @stop_work: stops the channel
 * @stopped: woken after each stop, and when an operation is unmapped
 * @ops_lock: serializes @erred, @ended, @ops, the state of operations, @held and
 *	@spare
 * @ops: operations that the channel may be running
 * @held: number of operations that have memory mapped
 * @spare: operations kept for reuse
 * @nr_spare: number of @spare
 */
struct nymph_dma_engine {
	struct nymph_engine engine;
	bool seen;
	atomic_t users;
	struct ratelimit_state log;
	struct mutex lock;	/* chan to stops */
	struct dma_chan *chan;
	bool tried;
	unsigned int refusals;
	unsigned long refused_at;
	unsigned long polled_at;
	bool erred;
	unsigned int ended;
	bool failed;
	unsigned long failed_at;
	bool stopping;
	unsigned int stops;
	struct delayed_work stop_work;
	wait_queue_head_t stopped;
	spinlock_t ops_lock;	/* erred, ended, ops, held, spare */
	struct list_head ops;
	unsigned int held;
	struct list_head spare;
	unsigned int nr_spare;
};

/**
 * struct nymph_dma_side - source or destination of a run, as the device has it
 * @at: address for the device
 * @mapped: mapped for this run, which has to unmap it
 * @synced: synced for this run, which has to sync it for the CPU again
 */
struct nymph_dma_side {
	dma_addr_t at;
	bool mapped;
	bool synced;
};

/**
 * struct nymph_dma_run - bytes that are contiguous at source and destination
 * @op: the operation
 * @move: index of the move
 * @status: 0 or a negative errno; -EINPROGRESS until the run ends; under ops_lock
 * @src: the source
 * @dst: the destination
 * @len: bytes
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
 * struct nymph_dma_op - an operation: moves that a channel makes
 * @list: entry in the engine's ops, or its spare
 * @dma: the engine
 * @dev: device that the memory is mapped for, held
 * @pending: number of transactions that the channel has; under ops_lock
 * @quarantined: nobody waits any more, and the channel may still write; under
 *	ops_lock
 * @whole: the channel was given all runs; under ops_lock
 * @fence: fence that others wait for who want the dma-bufs, or NULL; under ops_lock
 *	once the channel is given a run
 * @ended: completed when the channel is done with all runs it was given
 * @nr_moves: number of moves
 * @dst: destination of each move, held; NULL if it is @pages
 * @src: source of each move, held; NULL if it is @bounce
 * @bounce: bounce buffer, held, or NULL
 * @dst_map: mapping of each destination that stays mapped, held; or NULL
 * @src_map: mapping of each source that stays mapped, held; or NULL
 * @nr_pages: number of @pages
 * @pages: pages of current's memory, pinned for this operation
 * @nr_runs: number of @runs that are mapped
 * @runs: bytes to move
 * @handed_over: number of runs that the channel was given
 * @cookie: cookie of the last of them
 * @error: 0, or why the channel was given no more runs
 * @blocked: others were using a dma-buf when the channel was to be given a run
 * @deadline: time, in jiffies, at which the channel has to have ended the runs; moved
 *	forward, under ops_lock, if the channel stays paused behind an error
 */
struct nymph_dma_op {
	struct list_head list;
	struct nymph_dma_engine *dma;
	struct device *dev;
	unsigned int pending;
	bool quarantined;
	bool whole;
	struct dma_fence *fence;
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
	dma_cookie_t cookie;
	int error;
	bool blocked;
	unsigned long deadline;
};

static inline struct nymph_dma_engine *to_nymph_dma(struct nymph_engine *engine)
{
	return container_of(engine, struct nymph_dma_engine, engine);
}

/* dma_op.c: operations, and the memory that they use */

struct nymph_dma_op *nymph_dma_op_create(struct nymph_dma_engine *dma,
					 const struct nymph_move *moves,
					 unsigned int n);
void nymph_dma_op_free(struct nymph_dma_op *op);
size_t nymph_dma_op_pin(struct nymph_dma_op *op, u64 addr, size_t len);
void nymph_dma_op_map(struct nymph_dma_op *op, struct nymph_move *moves);
int nymph_dma_op_fence(struct nymph_dma_op *op);
void nymph_dma_op_signal(struct nymph_dma_op *op, int error);
void nymph_dma_run_end(struct nymph_dma_op *op, struct nymph_dma_run *run);
void nymph_dma_drop_spare(struct nymph_dma_engine *dma);

/* engine_dma.c: a channel at work */

struct nymph_engine *nymph_dma_create(struct dma_chan *chan);
void nymph_dma_destroy(struct nymph_engine *engine);
unsigned int nymph_dma_move_parts(struct nymph_engine *const *engines,
				  unsigned int nr_engines,
				  struct nymph_move *move,
				  struct nymph_move *parts);
void nymph_dma_unbind_begin(struct nymph_engine *engine, struct device *dev);
void nymph_dma_unbind_end(struct nymph_engine *engine, struct device *dev);

/* dma_channels.c: channels of the kernel */

extern struct workqueue_struct *nymph_dma_wq;

struct dma_chan *nymph_dma_request(struct nymph_dma_engine *dma);
bool nymph_dma_is_usable(struct dma_chan *chan);
void nymph_dma_show_channels(dma_filter_fn see, void *param);
void nymph_dma_scan_again(void);
bool nymph_dma_scan_due(bool again);
void nymph_dma_unbinding_begin(struct device *dev);
void nymph_dma_unbinding_end(struct device *dev);
int nymph_dma_listen(notifier_fn_t event);
void nymph_dma_stop_listening(void);
void nymph_dma_exit(void);

#endif /* _NYMPH_DMA_H */
