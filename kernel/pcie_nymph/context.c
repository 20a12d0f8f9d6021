// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: one open file, and the requests made through it.
 *
 * The file is long because there are 15 requests: each is a short handler, which
 * nymph_ioctl() finds in one table, and all get the ring by the functions at the top.
 */
#include <linux/dma-buf.h>
#include <linux/err.h>
#include <linux/eventfd.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/nospec.h>
#include <linux/overflow.h>
#include <linux/poll.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/uio.h>

#include "compat.h"
#include "counters.h"
#include "ring.h"

/* A request whose struct may grow is known by all but the size in its number. */
#define NYMPH_SIZELESS(cmd)	((cmd) & ~IOCSIZE_MASK)

static int nymph_open(struct inode *inode, struct file *file)
{
	struct nymph_context *ctx;

	ctx = kzalloc(sizeof(*ctx), GFP_KERNEL_ACCOUNT);
	if (!ctx)
		return -ENOMEM;
	refcount_set(&ctx->refs, 1);
	init_waitqueue_head(&ctx->wait);
	mutex_init(&ctx->setup);
	mutex_init(&ctx->lock);
	file->private_data = ctx;
	nymph_count(NYMPH_COUNT_CONTEXTS, 1);
	return stream_open(inode, file);
}

static int nymph_release(struct inode *inode, struct file *file)
{
	struct nymph_context *ctx = file->private_data;

	if (ctx->ring)
		nymph_ring_release(ctx->ring);
	nymph_context_put(ctx);
	nymph_count(NYMPH_COUNT_CONTEXTS, -1);
	return 0;
}

/* The argument of a request, in or out. */
union nymph_request_arg {
	struct nymph_dma_desc desc;
	struct nymph_dma_ring ring;
	struct nymph_fabric_status status;
	struct nymph_query query;
	struct nymph_setup2 setup2;
	struct nymph_enter enter;
	struct nymph_snapshot snapshot;
	struct nymph_cancel cancel;
	struct nymph_buffer buffer;
	struct nymph_eventfd eventfd;
	struct nymph_latency latency;
	struct nymph_attest attest;
};

/**
 * struct nymph_handler - how a request is handled, as nymph_ioctl() dispatches it
 * @cmd: its number, with the size that its struct has today
 * @least: size of its struct when it was new, if the struct may grow: its first
 *	member is the size that user space knows, and the size in the number that
 *	user space gives does not count. Else 0
 * @answers: the struct is copied to user space if @handle succeeds
 * @handle: does it. The struct is at @arg, if user space gives one, or else zeros;
 *	@uarg is where user space has it. Returns 0, what ioctl() returns, or a
 *	negative errno
 */
struct nymph_handler {
	unsigned int cmd;
	size_t least;
	bool answers;
	int (*handle)(struct nymph_context *ctx, union nymph_request_arg *arg,
		      void __user *uarg);
};

/*
 * Reads a struct that may have grown. The size is read twice; the first value
 * counts.
 */
static int nymph_get_grown_arg(const struct nymph_handler *handler,
			       union nymph_request_arg *arg, void __user *uarg)
{
	u32 usize;
	int ret;

	if (get_user(usize, (u32 __user *)uarg))
		return -EFAULT;
	if (usize < handler->least)
		return -EINVAL;
	if (usize > PAGE_SIZE)
		return -E2BIG;
	ret = copy_struct_from_user(arg, _IOC_SIZE(handler->cmd), uarg, usize);
	if (ret)
		return ret;
	*(u32 *)arg = usize;
	return 0;
}

/*
 * Tells whether the ring belongs to other memory than current's. RESET ends that;
 * the end of the ring's process does not.
 */
static bool nymph_ring_is_foreign(const struct nymph_ring *ring)
{
	return ring->mm != current->mm &&
	       (!READ_ONCE(ring->dead) || READ_ONCE(ring->orphan));
}

/*
 * Returns the ring; NULL if there is none, or RESET is about to take it away; -EPERM
 * if it belongs to other memory than current's; -EOWNERDEAD if current shares the
 * memory of the process that set it up and has ended. The context's lock is held.
 */
static struct nymph_ring *nymph_live_ring(struct nymph_context *ctx)
{
	struct nymph_ring *ring = ctx->ring;

	if (!ring)
		return NULL;
	if (nymph_ring_is_foreign(ring))
		return ERR_PTR(-EPERM);
	if (READ_ONCE(ring->orphan))
		return ERR_PTR(-EOWNERDEAD);
	return READ_ONCE(ring->dead) ? NULL : ring;
}

/* Returns the same, with a reference; RESET or SETUP may end it at any moment. */
static struct nymph_ring *nymph_get_ring(struct nymph_context *ctx)
{
	struct nymph_ring *ring;

	mutex_lock(&ctx->lock);
	ring = nymph_live_ring(ctx);
	if (!IS_ERR_OR_NULL(ring))
		refcount_inc(&ring->refs);
	mutex_unlock(&ctx->lock);
	return ring;
}

/* Returns the ring of any process, with a reference; NULL if there is none. */
static struct nymph_ring *nymph_get_any_ring(struct nymph_context *ctx)
{
	struct nymph_ring *ring;

	mutex_lock(&ctx->lock);
	ring = ctx->ring;
	if (ring)
		refcount_inc(&ring->refs);
	mutex_unlock(&ctx->lock);
	return ring;
}

/* Returns nymph_get_ring(), or -EINVAL if there is none. */
static struct nymph_ring *nymph_need_ring(struct nymph_context *ctx)
{
	return nymph_get_ring(ctx) ?: ERR_PTR(-EINVAL);
}

/*
 * Returns the ring, which nobody ends or replaces until nymph_unlock_ring(): for
 * requests that are short. Locks nothing if it returns an error.
 */
static struct nymph_ring *nymph_lock_ring(struct nymph_context *ctx)
{
	struct nymph_ring *ring;

	mutex_lock(&ctx->lock);
	ring = nymph_live_ring(ctx) ?: ERR_PTR(-EINVAL);
	if (IS_ERR(ring))
		mutex_unlock(&ctx->lock);
	return ring;
}

static void nymph_unlock_ring(struct nymph_context *ctx)
{
	mutex_unlock(&ctx->lock);
}

/* A full ring can be refilled while all its records are unread. */
static u32 nymph_nr_records(u32 entries)
{
	return 2 * entries;
}

/*
 * Creates a ring, and replaces the present one with it, if that is idle. All that
 * takes long is done without the context's lock.
 */
static int nymph_setup_locked(struct nymph_context *ctx,
			      const struct nymph_setup2 *arg)
{
	struct nymph_ring *ring, *old;
	int ret = 0;

	mutex_lock(&ctx->lock);
	old = ctx->ring;
	if (old && nymph_ring_is_foreign(old))
		ret = -EPERM;
	else if (old)
		refcount_inc(&old->refs);
	mutex_unlock(&ctx->lock);
	if (ret)
		return ret;

	ring = nymph_ring_create(ctx, arg, old);
	if (old)
		nymph_ring_put(old);
	if (IS_ERR(ring))
		return PTR_ERR(ring);

	mutex_lock(&ctx->lock);
	/* RESET may have taken the ring away in between */
	old = ctx->ring;
	if (!old)
		nymph_transcript_begin(&ring->carried->transcript);
	if (!old || nymph_ring_retire_idle(old, ring))
		ctx->ring = ring;
	else
		ret = READ_ONCE(old->orphan) ? -EOWNERDEAD : -EBUSY;
	mutex_unlock(&ctx->lock);
	if (ret)
		old = ring;
	if (old)
		nymph_ring_destroy(old);
	return ret;
}

static int nymph_setup(struct nymph_context *ctx,
		       const struct nymph_setup2 *arg)
{
	int ret;

	if (arg->flags & ~NYMPH_SETUP_PAUSED ||
	    !arg->entries || arg->entries > NYMPH_MAX_ENTRIES ||
	    strnlen(arg->engine, sizeof(arg->engine)) == sizeof(arg->engine))
		return -EINVAL;
	if (mutex_lock_killable(&ctx->setup))
		return -EINTR;
	ret = nymph_setup_locked(ctx, arg);
	mutex_unlock(&ctx->setup);
	return ret;
}

static int nymph_ioc_setup2(struct nymph_context *ctx,
			    union nymph_request_arg *arg, void __user *uarg)
{
	struct nymph_setup2 *setup = &arg->setup2;

	setup->records = nymph_nr_records(setup->entries);
	/* first, so that no ring is made for a caller who can't be told */
	if (copy_to_user(uarg, setup, sizeof(*setup)))
		return -EFAULT;
	return nymph_setup(ctx, setup);
}

static int nymph_ioc_setup_ring(struct nymph_context *ctx,
				union nymph_request_arg *arg,
				void __user *uarg)
{
	const struct nymph_dma_ring *ring = &arg->ring;
	struct nymph_setup2 setup = {};

	if (ring->head || ring->tail || ring->reserved)
		return -EINVAL;
	setup.entries = ring->ring_size;
	setup.records = nymph_nr_records(ring->ring_size);
	setup.ring_addr = ring->ring_addr;
	return nymph_setup(ctx, &setup);
}

static int nymph_ioc_get_ring(struct nymph_context *ctx,
			      union nymph_request_arg *arg, void __user *uarg)
{
	struct nymph_ring *ring = nymph_lock_ring(ctx);

	if (IS_ERR(ring))
		return PTR_ERR(ring);
	nymph_ring_indices(ring, &arg->ring);
	nymph_unlock_ring(ctx);
	return 0;
}

static int nymph_snapshot(struct nymph_context *ctx,
			  struct nymph_snapshot *snap,
			  struct nymph_entry __user *to)
{
	struct nymph_ring *ring;
	int ret;

	do {
		ring = nymph_get_ring(ctx);
		if (IS_ERR(ring))
			return PTR_ERR(ring);
		ret = nymph_ring_snapshot(ring, snap, to);
		if (ring)
			nymph_ring_put(ring);
	} while (ret == -ESTALE);
	return ret;
}

static int nymph_ioc_snapshot(struct nymph_context *ctx,
			      union nymph_request_arg *arg, void __user *uarg)
{
	struct nymph_snapshot snap = {
		.size = arg->snapshot.size,
		.entries = arg->snapshot.entries,
		.max_entries = arg->snapshot.max_entries,
	};
	int ret;

	if (arg->snapshot.flags)
		return -EINVAL;
	ret = nymph_snapshot(ctx, &snap, u64_to_user_ptr(snap.entries));
	arg->snapshot = snap;
	return ret;
}

static int nymph_ioc_get_status(struct nymph_context *ctx,
				union nymph_request_arg *arg,
				void __user *uarg)
{
	struct nymph_fabric_status *status = &arg->status;
	struct nymph_snapshot snap = {};
	int ret;

	ret = nymph_snapshot(ctx, &snap, NULL);
	if (ret)
		return ret;
	status->dma_bytes = snap.dma_bytes;
	memcpy(status->ring_hash, snap.ring_hash, sizeof(status->ring_hash));
	status->ring_size = snap.ring.ring_size;
	status->active_descriptors = snap.active_descriptors;
	return 0;
}

static int nymph_ioc_submit_dma(struct nymph_context *ctx,
				union nymph_request_arg *arg,
				void __user *uarg)
{
	const struct nymph_dma_desc *desc = &arg->desc;
	const struct nymph_entry entry = {
		.size = sizeof(entry),
		.opcode = NYMPH_OP_COPY,
		.flags = desc->flags,
		.length = desc->length,
		.src = desc->src_addr,
		.dst = desc->dst_addr,
		.cookie = desc->cookie,
	};
	struct nymph_waiter waiter = {};
	struct nymph_ring *ring;
	u32 accepted = 0;
	int ret;

	/* a ring that was replaced under this request is looked up again */
	do {
		ring = nymph_need_ring(ctx);
		if (IS_ERR(ring))
			return PTR_ERR(ring);
		ret = nymph_ring_submit(ring, &entry, 1, &waiter, &accepted);
		if (!ret)
			ret = nymph_ring_wait(ring, &waiter) ?: waiter.status;
		nymph_ring_kick(ring);
		nymph_ring_put(ring);
	} while (ret == -ESTALE);
	return ret;
}

static int nymph_ioc_reset(struct nymph_context *ctx,
			   union nymph_request_arg *arg, void __user *uarg)
{
	struct nymph_ring *ring;
	bool last;
	int ret;

	mutex_lock(&ctx->lock);
	ring = ctx->ring;
	if (!ring)
		ret = -EINVAL;
	else if (nymph_ring_is_foreign(ring))
		ret = -EPERM;
	else
		ret = 0;
	if (!ret) {
		refcount_inc(&ring->refs);
		nymph_ring_kill(ring);
	}
	mutex_unlock(&ctx->lock);
	if (ret)
		return ret;

	while (!nymph_ring_has_ended(ring)) {
		if (nymph_ring_claimable(ring) && nymph_ring_claim(ring))
			nymph_ring_execute(ring, NULL);
		ret = wait_event_interruptible(ctx->wait,
					       nymph_ring_has_ended(ring) ||
					       nymph_ring_claimable(ring));
		if (ret) {
			nymph_ring_put(ring);
			return ret;
		}
	}

	/* of several that reset it, one takes it away */
	mutex_lock(&ctx->lock);
	last = ctx->ring == ring;
	if (last)
		ctx->ring = NULL;
	mutex_unlock(&ctx->lock);
	if (last)
		nymph_ring_destroy(ring);
	nymph_ring_put(ring);
	wake_up(&ctx->wait);
	return 0;
}

static int nymph_ioc_enable(struct nymph_context *ctx,
			    union nymph_request_arg *arg, void __user *uarg)
{
	struct nymph_ring *ring = nymph_need_ring(ctx);

	if (IS_ERR(ring))
		return PTR_ERR(ring);
	nymph_ring_enable(ring);
	nymph_ring_put(ring);
	return 0;
}

/* Submits entries until one is refused; returns why, or 0. */
static int nymph_enter_submit(struct nymph_ring *ring, struct nymph_enter *arg,
			      struct nymph_waiter *waiter)
{
	struct nymph_entry __user *from = u64_to_user_ptr(arg->entries);
	struct nymph_entry some[8];
	u32 n, left;
	int ret;

	while (arg->submitted < arg->to_submit) {
		if (fatal_signal_pending(current))
			return -EINTR;
		n = min_t(u32, arg->to_submit - arg->submitted,
			  ARRAY_SIZE(some));
		left = copy_from_user(some, from + arg->submitted,
				      n * sizeof(*some));
		n -= DIV_ROUND_UP(left, sizeof(*some));
		ret = nymph_ring_submit(ring, some, n, waiter, &arg->submitted);
		if (ret)
			return ret;
		if (left)
			return -EFAULT;
		cond_resched();
	}
	return 0;
}

/**
 * struct nymph_reaper - a caller that sleeps until there are records
 * @wait: entry in the context's queue
 * @ring: the ring
 * @records: number of records it waits for
 */
struct nymph_reaper {
	struct wait_queue_entry wait;
	struct nymph_ring *ring;
	u32 records;
};

static bool nymph_reaper_can_go_on(const struct nymph_reaper *reaper)
{
	struct nymph_ring *ring = reaper->ring;

	return READ_ONCE(ring->unread.count) >= reaper->records ||
	       READ_ONCE(ring->dead) || nymph_ring_claimable(ring);
}

/* Called for every entry that retires; wakes the caller for the last one only. */
static int nymph_reaper_wake(struct wait_queue_entry *wait, unsigned int mode,
			     int flags, void *key)
{
	const struct nymph_reaper *reaper;

	reaper = container_of(wait, struct nymph_reaper, wait);
	return nymph_reaper_can_go_on(reaper) ?
	       autoremove_wake_function(wait, mode, flags, key) : 0;
}

/* Sleeps until there are enough records, or somebody has to run the ring. */
static void nymph_reaper_sleep(struct nymph_ring *ring, u32 records,
			       ktime_t *timeout)
{
	struct nymph_reaper reaper = { .ring = ring, .records = records };

	init_wait(&reaper.wait);
	reaper.wait.func = nymph_reaper_wake;
	prepare_to_wait(&ring->ctx->wait, &reaper.wait, TASK_INTERRUPTIBLE);
	if (!nymph_reaper_can_go_on(&reaper) && !signal_pending(current))
		schedule_hrtimeout(timeout, HRTIMER_MODE_REL);
	finish_wait(&ring->ctx->wait, &reaper.wait);
}

/*
 * Hands out records to @to, and waits until there were enough. Returns 0 or why not.
 * The deadline is a time of the kernel's clock.
 */
static int nymph_enter_reap(struct nymph_ring *ring, struct nymph_enter *arg,
			    struct iov_iter *to, u32 __user *reaped)
{
	struct nymph_limits limits = {
		.deadline_ns = arg->deadline_ns,
		.interruptible = true,
	};

	for (;;) {
		ktime_t left, *timeout = NULL;
		int ret;

		ret = nymph_ring_reap(ring, to, arg->max_records, &arg->reaped,
				      reaped);
		if (ret || arg->reaped >= arg->min_records)
			return ret;
		if (READ_ONCE(ring->dead))
			return -ECANCELED;
		if (signal_pending(current))
			return -EINTR;
		if (arg->deadline_ns != NYMPH_NO_DEADLINE) {
			u64 now = ktime_get_ns();

			if (now >= arg->deadline_ns)
				return -ETIME;
			left = ns_to_ktime(min_t(u64, arg->deadline_ns - now,
						 KTIME_MAX));
			timeout = &left;
		}

		limits.records = min(arg->min_records - arg->reaped,
				     ring->unread.size);
		if (nymph_ring_claimable(ring) && nymph_ring_claim(ring)) {
			nymph_ring_execute(ring, &limits);
			continue;
		}
		/* why it woke up is seen above */
		nymph_reaper_sleep(ring, limits.records, timeout);
	}
}

/* Returns 0, or why less was done than asked; @arg has what was done. */
static int nymph_enter(struct nymph_context *ctx, struct nymph_enter *arg,
		       u32 __user *reaped)
{
	struct nymph_waiter waiter = {};
	struct nymph_ring *ring;
	struct iov_iter to;
	int ret, err;

	iov_iter_ubuf(&to, ITER_DEST, u64_to_user_ptr(arg->records),
		      array_size(arg->max_records,
				 sizeof(struct nymph_record)));
	for (;;) {
		ring = nymph_need_ring(ctx);
		if (IS_ERR(ring))
			return PTR_ERR(ring);
		ret = nymph_enter_submit(ring, arg, &waiter);
		if (ret != -ESTALE || arg->submitted)
			break;
		/* it was replaced under this request */
		nymph_ring_put(ring);
	}
	if (ret == -ESTALE)
		ret = -ECANCELED;
	/* not all was accepted: the caller has to act, not to wait */
	if (ret)
		arg->min_records = 0;

	err = nymph_ring_wait(ring, &waiter);
	if (!err)
		err = nymph_enter_reap(ring, arg, &to, reaped);
	nymph_ring_kick(ring);
	nymph_ring_put(ring);
	return ret ?: err;
}

/* Converts a time of current's clock to the kernel's. */
static u64 nymph_deadline(u64 ns)
{
	s64 offset = nymph_clock_offset();
	u64 at;

	if (ns == NYMPH_NO_DEADLINE)
		return ns;
	if (offset > 0)
		return ns > offset ? ns - offset : 0;
	return check_add_overflow(ns, (u64)-offset, &at) ? NYMPH_NO_DEADLINE :
							   at;
}

static int nymph_ioc_enter(struct nymph_context *ctx,
			   union nymph_request_arg *arg, void __user *uarg)
{
	struct nymph_enter *enter = &arg->enter;
	struct nymph_enter __user *to = uarg;
	int ret;

	if (enter->flags || enter->min_records > enter->max_records)
		return -EINVAL;
	enter->submitted = 0;
	enter->reaped = 0;
	enter->error = 0;
	/* first, so that nothing is done for a caller who can't be told */
	if (copy_to_user(uarg, enter, sizeof(*enter)))
		return -EFAULT;

	enter->deadline_ns = nymph_deadline(enter->deadline_ns);
	ret = nymph_enter(ctx, enter, &to->reaped);

	/* should these fail now, what is returned still says what was done */
	if (put_user(enter->submitted, &to->submitted) ||
	    put_user(ret, &to->error))
		ret = ret ?: -EFAULT;
	if (enter->submitted)
		return enter->submitted;
	return enter->reaped ? 0 : ret;
}

static int nymph_ioc_query(struct nymph_context *ctx,
			   union nymph_request_arg *arg, void __user *uarg)
{
	struct nymph_query *query = &arg->query;
	struct nymph_engine_info *infos;
	int ret;

	query->version = NYMPH_ABI_VERSION;
	query->features = NYMPH_FEATURE_POLL | NYMPH_FEATURE_READ |
			  NYMPH_FEATURE_ALLOC | NYMPH_FEATURE_REGISTER |
			  NYMPH_FEATURE_CARD;
	if (IS_ENABLED(CONFIG_DMA_SHARED_BUFFER))
		query->features |= NYMPH_FEATURE_DMABUF;
	query->requests = GENMASK_ULL(_IOC_NR(NYMPH_IOC_ATTEST),
				      _IOC_NR(NYMPH_IOC_SUBMIT_DMA));
	query->opcodes = GENMASK_ULL(NYMPH_OP_COMPARE, NYMPH_OP_NOP);
	query->entry_flags = NYMPH_FLAGS_SERVED;
	query->max_length = NYMPH_MAX_LENGTH;
	query->max_entries = NYMPH_MAX_ENTRIES;
	query->setup_flags = NYMPH_SETUP_PAUSED;

	infos = kcalloc(NYMPH_MAX_ENGINES, sizeof(*infos), GFP_KERNEL_ACCOUNT);
	if (!infos)
		return -ENOMEM;
	ret = nymph_engine_infos(infos, NYMPH_MAX_ENGINES);
	if (ret < 0)
		goto free;
	query->num_engines = ret;
	ret = 0;
	if (query->engines &&
	    copy_to_user(u64_to_user_ptr(query->engines), infos,
			 min(query->max_engines, query->num_engines) *
			 sizeof(*infos)))
		ret = -EFAULT;
free:
	kfree(infos);
	return ret;
}

static int nymph_ioc_cancel(struct nymph_context *ctx,
			    union nymph_request_arg *arg, void __user *uarg)
{
	struct nymph_cancel *cancel = &arg->cancel;
	struct nymph_cancel __user *to = uarg;
	struct nymph_ring *ring;
	u32 canceled;

	if (cancel->flags || cancel->reserved)
		return -EINVAL;
	/* first, so that nothing is canceled for a caller who can't be told */
	if (put_user(0, &to->canceled))
		return -EFAULT;
	ring = nymph_lock_ring(ctx);
	if (IS_ERR(ring))
		return PTR_ERR(ring);
	canceled = nymph_ring_cancel(ring, cancel->cookie);
	nymph_unlock_ring(ctx);
	return canceled ? put_user(canceled, &to->canceled) : -ENOENT;
}

static int nymph_buffer_check(const struct nymph_buffer *arg)
{
	bool has_fd = arg->op == NYMPH_BUFFER_IMPORT ||
		      arg->op == NYMPH_BUFFER_EXPORT;
	u32 flags = 0;

	if (arg->reserved ||
	    (has_fd ? arg->size < sizeof(*arg) : arg->fd != 0))
		return -EINVAL;
	switch (arg->op) {
	case NYMPH_BUFFER_REGISTER:
		flags = NYMPH_BUFFER_READ_ONLY;
		fallthrough;
	case NYMPH_BUFFER_ALLOC:
	case NYMPH_BUFFER_CARD:
		if (arg->flags & ~flags || !arg->length ||
		    arg->length > NYMPH_MAX_LENGTH)
			return -EINVAL;
		if (arg->op != NYMPH_BUFFER_REGISTER && arg->addr)
			return -EINVAL;
		return 0;
	case NYMPH_BUFFER_IMPORT:
		flags = NYMPH_BUFFER_READ_ONLY;
		fallthrough;
	case NYMPH_BUFFER_FREE:
	case NYMPH_BUFFER_EXPORT:
		return arg->flags & ~flags || arg->addr || arg->length ?
		       -EINVAL : 0;
	default:
		return -EINVAL;
	}
}

static int nymph_buffer_free(struct nymph_context *ctx, u32 handle)
{
	struct nymph_ring *ring = nymph_lock_ring(ctx);
	struct nymph_region *region;

	if (IS_ERR(ring))
		return PTR_ERR(ring);
	region = nymph_region_remove(ring, handle);
	nymph_unlock_ring(ctx);
	if (!region)
		return -ENOENT;
	nymph_region_put(region);
	return 0;
}

/* A caller who can't be told the file's number gets no file. */
static int nymph_buffer_export(struct nymph_context *ctx, u32 handle,
			       s32 __user *to)
{
	struct nymph_ring *ring = nymph_lock_ring(ctx);
	struct nymph_region *region;
	struct dma_buf *buf;
	int fd;

	if (IS_ERR(ring))
		return PTR_ERR(ring);
	region = nymph_region_get(ring, handle);
	nymph_unlock_ring(ctx);
	if (IS_ERR(region))
		return PTR_ERR(region);
	buf = nymph_dmabuf_export(region);
	nymph_region_put(region);
	if (IS_ERR(buf))
		return PTR_ERR(buf);

	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0) {
		dma_buf_put(buf);
		return fd;
	}
	if (put_user(fd, to)) {
		put_unused_fd(fd);
		dma_buf_put(buf);
		return -EFAULT;
	}
	fd_install(fd, buf->file);
	return 0;
}

static int nymph_buffer_create(struct nymph_context *ctx,
			       struct nymph_buffer *arg)
{
	struct nymph_ring *ring = nymph_need_ring(ctx);
	struct nymph_region *region;
	int ret;

	if (IS_ERR(ring))
		return PTR_ERR(ring);
	region = nymph_region_create(ring->cred, ring->engine, arg);
	nymph_ring_put(ring);
	if (IS_ERR(region))
		return PTR_ERR(region);

	/* a ring that has replaced it is just as good */
	ring = nymph_lock_ring(ctx);
	if (IS_ERR(ring)) {
		nymph_region_put(region);
		return PTR_ERR(ring);
	}
	ret = nymph_region_add(ring, region, &arg->handle);
	nymph_unlock_ring(ctx);
	if (ret) {
		nymph_region_put(region);
		return ret;
	}
	arg->mmap_offset = arg->op == NYMPH_BUFFER_ALLOC ?
			   (u64)arg->handle << NYMPH_REGION_SHIFT : 0;
	return 0;
}

static int nymph_ioc_buffer(struct nymph_context *ctx,
			    union nymph_request_arg *arg, void __user *uarg)
{
	struct nymph_buffer *buffer = &arg->buffer;
	struct nymph_buffer __user *to = uarg;
	size_t told = min_t(size_t, buffer->size, sizeof(*buffer));
	int ret;

	ret = nymph_buffer_check(buffer);
	if (ret)
		return ret;
	if (buffer->op == NYMPH_BUFFER_FREE)
		return nymph_buffer_free(ctx, buffer->handle);
	if (buffer->op == NYMPH_BUFFER_EXPORT)
		return nymph_buffer_export(ctx, buffer->handle, &to->fd);

	/* first, so that nothing is made for a caller who can't be told */
	if (copy_to_user(uarg, buffer, told))
		return -EFAULT;
	ret = nymph_buffer_create(ctx, buffer);
	if (ret)
		return ret;
	if (copy_to_user(uarg, buffer, told)) {
		nymph_buffer_free(ctx, buffer->handle);
		return -EFAULT;
	}
	return 0;
}

static int nymph_ioc_eventfd(struct nymph_context *ctx,
			     union nymph_request_arg *arg, void __user *uarg)
{
	struct eventfd_ctx *eventfd = NULL;
	struct nymph_ring *ring;
	int ret = 0;

	if (arg->eventfd.flags || arg->eventfd.reserved)
		return -EINVAL;
	if (arg->eventfd.fd != -1) {
		eventfd = eventfd_ctx_fdget(arg->eventfd.fd);
		if (IS_ERR(eventfd))
			return PTR_ERR(eventfd);
	}
	ring = nymph_lock_ring(ctx);
	if (IS_ERR(ring)) {
		ret = PTR_ERR(ring);
	} else {
		eventfd = nymph_ring_set_eventfd(ring, eventfd);
		nymph_unlock_ring(ctx);
	}
	if (eventfd)
		eventfd_ctx_put(eventfd);
	return ret;
}

static int nymph_ioc_latency(struct nymph_context *ctx,
			     union nymph_request_arg *arg, void __user *uarg)
{
	struct nymph_latency *latency = &arg->latency;
	struct nymph_histogram *h;
	struct nymph_ring *ring;
	int ret = 0;

	if (latency->flags)
		return -EINVAL;
	h = kmalloc(sizeof(*h), GFP_KERNEL_ACCOUNT);
	if (!h)
		return -ENOMEM;
	ring = nymph_lock_ring(ctx);
	if (IS_ERR(ring)) {
		ret = PTR_ERR(ring);
		goto free;
	}
	nymph_ring_latency(ring, h);
	nymph_unlock_ring(ctx);
	latency->count = h->count;
	latency->sum_ns = h->sum_ns;
	latency->max_ns = h->max_ns;
	if (latency->buckets &&
	    copy_to_user(u64_to_user_ptr(latency->buckets), h->buckets,
			 sizeof(h->buckets)))
		ret = -EFAULT;
free:
	kfree(h);
	return ret;
}

static int nymph_ioc_attest(struct nymph_context *ctx,
			    union nymph_request_arg *arg, void __user *uarg)
{
	struct nymph_ring *ring;
	int ret;

	if (arg->attest.flags & ~NYMPH_ATTEST_SIGN)
		return -EINVAL;
	if (arg->attest.flags & NYMPH_ATTEST_SIGN) {
		if (arg->attest.size < sizeof(arg->attest))
			return -EINVAL;
	} else if (arg->attest.signature || arg->attest.max_signature) {
		return -EINVAL;
	}
	do {
		ring = nymph_need_ring(ctx);
		if (IS_ERR(ring))
			return PTR_ERR(ring);
		ret = nymph_attest(ring, &arg->attest);
		nymph_ring_put(ring);
	} while (ret == -ESTALE);
	return ret;
}

#define NYMPH_REQUEST(_name, _least, _answers, _handle)			\
	[_IOC_NR(NYMPH_IOC_##_name)] = {				\
		.cmd = NYMPH_IOC_##_name,				\
		.least = _least,					\
		.answers = _answers,					\
		.handle = _handle,					\
	}

static const struct nymph_handler nymph_handlers[] = {
	NYMPH_REQUEST(SUBMIT_DMA, 0, false, nymph_ioc_submit_dma),
	NYMPH_REQUEST(GET_STATUS, 0, true, nymph_ioc_get_status),
	NYMPH_REQUEST(SETUP_RING, 0, false, nymph_ioc_setup_ring),
	NYMPH_REQUEST(GET_RING, 0, true, nymph_ioc_get_ring),
	NYMPH_REQUEST(RESET, 0, false, nymph_ioc_reset),
	NYMPH_REQUEST(QUERY, sizeof(struct nymph_query), true,
		      nymph_ioc_query),
	NYMPH_REQUEST(SETUP2, sizeof(struct nymph_setup2), false,
		      nymph_ioc_setup2),
	NYMPH_REQUEST(ENABLE, 0, false, nymph_ioc_enable),
	NYMPH_REQUEST(ENTER, sizeof(struct nymph_enter), false,
		      nymph_ioc_enter),
	NYMPH_REQUEST(SNAPSHOT, offsetof(struct nymph_snapshot, transcript),
		      true, nymph_ioc_snapshot),
	NYMPH_REQUEST(CANCEL, sizeof(struct nymph_cancel), false,
		      nymph_ioc_cancel),
	NYMPH_REQUEST(BUFFER, offsetof(struct nymph_buffer, fd), false,
		      nymph_ioc_buffer),
	NYMPH_REQUEST(EVENTFD, sizeof(struct nymph_eventfd), false,
		      nymph_ioc_eventfd),
	NYMPH_REQUEST(LATENCY, sizeof(struct nymph_latency), true,
		      nymph_ioc_latency),
	NYMPH_REQUEST(ATTEST, offsetof(struct nymph_attest, signature), true,
		      nymph_ioc_attest),
};

static const struct nymph_handler *nymph_handler_find(unsigned int cmd)
{
	const struct nymph_handler *handler;
	unsigned int nr = _IOC_NR(cmd);

	if (nr >= ARRAY_SIZE(nymph_handlers))
		return NULL;
	handler = &nymph_handlers[array_index_nospec(nr,
						     ARRAY_SIZE(nymph_handlers))];
	/* the size in the number of a request that may grow does not count */
	if (handler->least ?
	    NYMPH_SIZELESS(cmd) != NYMPH_SIZELESS(handler->cmd) :
	    cmd != handler->cmd)
		return NULL;
	return handler->handle ? handler : NULL;
}

static long nymph_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	const struct nymph_handler *handler = nymph_handler_find(cmd);
	void __user *uarg = (void __user *)arg;
	union nymph_request_arg karg;
	size_t told;
	int ret = 0;

	if (!handler)
		return -ENOTTY;
	if (handler->least)
		ret = nymph_get_grown_arg(handler, &karg, uarg);
	else if (!(_IOC_DIR(cmd) & _IOC_WRITE))
		memset(&karg, 0, sizeof(karg));
	else if (copy_from_user(&karg, uarg, _IOC_SIZE(cmd)))
		ret = -EFAULT;
	if (ret)
		return ret;
	told = _IOC_SIZE(handler->cmd);
	if (handler->least)
		told = min_t(size_t, told, *(u32 *)&karg);
	ret = handler->handle(file->private_data, &karg, uarg);
	if (ret >= 0 && handler->answers && copy_to_user(uarg, &karg, told))
		return -EFAULT;
	return ret;
}

static ssize_t nymph_read_iter(struct kiocb *iocb, struct iov_iter *to)
{
	struct file *file = iocb->ki_filp;
	struct nymph_enter arg = {
		.max_records = min_t(size_t, iov_iter_count(to) /
				     sizeof(struct nymph_record), U32_MAX),
		.min_records = !(file->f_flags & O_NONBLOCK),
		.deadline_ns = NYMPH_NO_DEADLINE,
	};
	struct nymph_ring *ring;
	int ret;

	if (!arg.max_records)
		return -EINVAL;
	ring = nymph_need_ring(file->private_data);
	if (IS_ERR(ring))
		return PTR_ERR(ring);
	ret = nymph_enter_reap(ring, &arg, to, NULL);
	nymph_ring_kick(ring);
	nymph_ring_put(ring);
	if (arg.reaped)
		return (ssize_t)arg.reaped * sizeof(struct nymph_record);
	if (ret == -EINTR)
		return -ERESTARTSYS;
	return ret ?: -EAGAIN;
}

static int nymph_mmap(struct file *file, struct vm_area_struct *vma)
{
	u64 handle = vma->vm_pgoff >> (NYMPH_REGION_SHIFT - PAGE_SHIFT);
	struct nymph_context *ctx = file->private_data;
	struct nymph_region *region;
	struct nymph_ring *ring;
	int ret;

	ring = nymph_need_ring(ctx);
	if (IS_ERR(ring))
		return PTR_ERR(ring);
	region = handle < NYMPH_MAX_REGIONS ?
		 nymph_region_get(ring, handle) : ERR_PTR(-ENOENT);
	nymph_ring_put(ring);
	if (IS_ERR(region))
		return -EINVAL;
	ret = nymph_region_map(region, vma);
	nymph_region_put(region);
	return ret;
}

static void nymph_show_fdinfo(struct seq_file *m, struct file *file)
{
	struct nymph_ring *ring = nymph_get_any_ring(file->private_data);

	if (!ring)
		return;
	nymph_ring_show_fdinfo(ring, m);
	nymph_ring_put(ring);
}

static __poll_t nymph_poll(struct file *file, poll_table *wait)
{
	struct nymph_context *ctx = file->private_data;
	struct nymph_ring *ring;
	__poll_t events = 0;

	poll_wait(file, &ctx->wait, wait);
	ring = nymph_get_any_ring(ctx);
	if (!ring)
		return EPOLLHUP;
	if (READ_ONCE(ring->orphan)) {
		events = EPOLLERR;
	} else if (READ_ONCE(ring->dead)) {
		events = EPOLLHUP;
	} else if (current->mm && current->mm != ring->mm) {
		/* a kernel thread has no memory: AIO asks by one for its user */
		events = EPOLLERR;
	} else {
		if (READ_ONCE(ring->unread.count))
			events |= EPOLLIN | EPOLLRDNORM;
		if (nymph_ring_has_room(ring))
			events |= EPOLLOUT | EPOLLWRNORM;
	}
	nymph_ring_put(ring);
	return events;
}

const struct file_operations nymph_fops = {
	.owner = THIS_MODULE,
	.open = nymph_open,
	.release = nymph_release,
	.unlocked_ioctl = nymph_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.read_iter = nymph_read_iter,
	.poll = nymph_poll,
	.mmap = nymph_mmap,
	.show_fdinfo = nymph_show_fdinfo,
};
