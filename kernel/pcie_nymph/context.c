// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: one open file, and the requests made through it.
 */
#include <linux/dma-buf.h>
#include <linux/err.h>
#include <linux/eventfd.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "nymph.h"

/* A request whose struct may grow is known by all but the size in its number. */
#define NYMPH_SIZELESS(cmd)	((cmd) & ~IOCSIZE_MASK)

/**
 * nymph_context_put() - the file, or the ring, is done with the context
 * @ctx: the context
 */
void nymph_context_put(struct nymph_context *ctx)
{
	if (!refcount_dec_and_test(&ctx->refs))
		return;
	mutex_destroy(&ctx->lock);
	kfree(ctx);
}

static int nymph_open(struct inode *inode, struct file *file)
{
	struct nymph_context *ctx;

	ctx = kzalloc(sizeof(*ctx), GFP_KERNEL_ACCOUNT);
	if (!ctx)
		return -ENOMEM;
	refcount_set(&ctx->refs, 1);
	init_waitqueue_head(&ctx->wait);
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

/*
 * Reads a struct that may have grown, its first member being its size, since it
 * had @least bytes. The size is read twice; the first is the one that counts.
 */
static int nymph_get_grown_arg(void *arg, size_t size, size_t least,
			       void __user *uarg)
{
	u32 usize;
	int ret;

	if (get_user(usize, (u32 __user *)uarg))
		return -EFAULT;
	if (usize < least)
		return -EINVAL;
	if (usize > PAGE_SIZE)
		return -E2BIG;
	ret = copy_struct_from_user(arg, size, uarg, usize);
	if (ret)
		return ret;
	*(u32 *)arg = usize;
	return 0;
}

static int nymph_get_arg(void *arg, size_t size, void __user *uarg)
{
	return nymph_get_grown_arg(arg, size, size, uarg);
}

/*
 * The ring; NULL if there is none, or RESET is about to take it away; -EPERM if
 * it is tied to other memory than current's. Under the context's lock.
 */
static struct nymph_ring *nymph_live_ring(struct nymph_context *ctx)
{
	struct nymph_ring *ring = ctx->ring;

	if (!ring || READ_ONCE(ring->dead))
		return NULL;
	return ring->mm == current->mm ? ring : ERR_PTR(-EPERM);
}

/* The same with a reference; it may be reset or replaced at any moment. */
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

/* The same for requests that can do nothing without a ring. */
static struct nymph_ring *nymph_need_ring(struct nymph_context *ctx)
{
	return nymph_get_ring(ctx) ?: ERR_PTR(-EINVAL);
}

/*
 * For requests that are done in no time: the ring, which stays what it is until
 * nymph_unlock_ring(); or an error, and nothing is locked.
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

/* As many can be unread as are reserved, so a full ring can be refilled. */
static u32 nymph_nr_records(u32 entries)
{
	return 2 * entries;
}

static int nymph_setup(struct nymph_context *ctx,
		       const struct nymph_setup2 *arg)
{
	struct nymph_ring *ring, *old;
	int ret = 0;

	if (arg->flags & ~NYMPH_SETUP_PAUSED ||
	    !arg->entries || arg->entries > NYMPH_MAX_ENTRIES ||
	    strnlen(arg->engine, sizeof(arg->engine)) == sizeof(arg->engine))
		return -EINVAL;
	mutex_lock(&ctx->lock);
	old = ctx->ring;
	if (old && !READ_ONCE(old->dead) && old->mm != current->mm) {
		ret = -EPERM;
		goto unlock;
	}
	ring = nymph_ring_create(ctx, arg, old);
	if (IS_ERR(ring)) {
		ret = PTR_ERR(ring);
		goto unlock;
	}
	if (old && !nymph_ring_retire_idle(old, ring)) {
		old = ring;
		ret = -EBUSY;
	} else {
		ctx->ring = ring;
	}
	if (old)
		nymph_ring_destroy(old);
unlock:
	mutex_unlock(&ctx->lock);
	return ret;
}

static int nymph_ioc_setup2(struct nymph_context *ctx, void __user *uarg)
{
	struct nymph_setup2 arg;
	int ret;

	ret = nymph_get_arg(&arg, sizeof(arg), uarg);
	if (ret)
		return ret;
	arg.records = nymph_nr_records(arg.entries);
	/* first, so that no ring is made for a caller who can't be told */
	if (copy_to_user(uarg, &arg, sizeof(arg)))
		return -EFAULT;
	return nymph_setup(ctx, &arg);
}

static int nymph_ioc_setup_ring(struct nymph_context *ctx, void __user *uarg)
{
	struct nymph_setup2 setup = {};
	struct nymph_dma_ring arg;

	if (copy_from_user(&arg, uarg, sizeof(arg)))
		return -EFAULT;
	if (arg.head || arg.tail || arg.reserved)
		return -EINVAL;
	setup.entries = arg.ring_size;
	setup.records = nymph_nr_records(arg.ring_size);
	setup.ring_addr = arg.ring_addr;
	return nymph_setup(ctx, &setup);
}

static int nymph_ioc_get_ring(struct nymph_context *ctx, void __user *uarg)
{
	struct nymph_ring *ring = nymph_lock_ring(ctx);
	struct nymph_dma_ring arg;

	if (IS_ERR(ring))
		return PTR_ERR(ring);
	nymph_ring_indices(ring, &arg);
	nymph_unlock_ring(ctx);
	return copy_to_user(uarg, &arg, sizeof(arg)) ? -EFAULT : 0;
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

static int nymph_ioc_snapshot(struct nymph_context *ctx, void __user *uarg)
{
	struct nymph_snapshot arg, snap = {};
	int ret;

	ret = nymph_get_arg(&arg, sizeof(arg), uarg);
	if (ret)
		return ret;
	if (arg.flags)
		return -EINVAL;
	snap.size = arg.size;
	snap.entries = arg.entries;
	snap.max_entries = arg.max_entries;
	ret = nymph_snapshot(ctx, &snap, u64_to_user_ptr(arg.entries));
	if (ret)
		return ret;
	return copy_to_user(uarg, &snap, sizeof(snap)) ? -EFAULT : 0;
}

static int nymph_ioc_get_status(struct nymph_context *ctx, void __user *uarg)
{
	struct nymph_fabric_status arg = {};
	struct nymph_snapshot snap = {};
	int ret;

	ret = nymph_snapshot(ctx, &snap, NULL);
	if (ret)
		return ret;
	arg.dma_bytes = snap.dma_bytes;
	memcpy(arg.ring_hash, snap.ring_hash, sizeof(arg.ring_hash));
	arg.ring_size = snap.ring.ring_size;
	arg.active_descriptors = snap.active_descriptors;
	return copy_to_user(uarg, &arg, sizeof(arg)) ? -EFAULT : 0;
}

static int nymph_ioc_submit_dma(struct nymph_context *ctx, void __user *uarg)
{
	struct nymph_waiter waiter = {};
	struct nymph_entry entry = {};
	struct nymph_dma_desc arg;
	struct nymph_ring *ring;
	int ret;

	if (copy_from_user(&arg, uarg, sizeof(arg)))
		return -EFAULT;
	entry.size = sizeof(entry);
	entry.opcode = NYMPH_OP_COPY;
	entry.flags = arg.flags;
	entry.length = arg.length;
	entry.src = arg.src_addr;
	entry.dst = arg.dst_addr;
	entry.cookie = arg.cookie;

	/* a ring that was replaced under this request is looked up again */
	do {
		ring = nymph_need_ring(ctx);
		if (IS_ERR(ring))
			return PTR_ERR(ring);
		ret = nymph_ring_submit(ring, &entry, &waiter);
		if (!ret)
			ret = nymph_ring_wait(ring, &waiter) ?: waiter.status;
		nymph_ring_kick(ring);
		nymph_ring_put(ring);
	} while (ret == -ESTALE);
	return ret;
}

static int nymph_ioc_reset(struct nymph_context *ctx)
{
	struct nymph_ring *ring;
	bool last;
	int ret;

	mutex_lock(&ctx->lock);
	ring = ctx->ring;
	if (!ring)
		ret = -EINVAL;
	else if (!READ_ONCE(ring->dead) && ring->mm != current->mm)
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

	while (!nymph_ring_claim(ring)) {
		ret = wait_event_interruptible(ctx->wait,
					       !test_bit(NYMPH_RING_EXECUTING,
							 &ring->state));
		if (ret) {
			nymph_ring_put(ring);
			return ret;
		}
	}
	nymph_ring_execute(ring, NULL);

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

static int nymph_ioc_enable(struct nymph_context *ctx)
{
	struct nymph_ring *ring = nymph_lock_ring(ctx);

	if (IS_ERR(ring))
		return PTR_ERR(ring);
	nymph_ring_enable(ring);
	nymph_unlock_ring(ctx);
	return 0;
}

/* Takes entries in until one is refused, and says why. */
static int nymph_enter_submit(struct nymph_ring *ring, struct nymph_enter *arg,
			      struct nymph_waiter *waiter)
{
	struct nymph_entry __user *from = u64_to_user_ptr(arg->entries);
	struct nymph_entry some[8];
	u32 i, n, left;
	int ret;

	while (arg->submitted < arg->to_submit) {
		if (fatal_signal_pending(current))
			return -EINTR;
		n = min_t(u32, arg->to_submit - arg->submitted,
			  ARRAY_SIZE(some));
		left = copy_from_user(some, from + arg->submitted,
				      n * sizeof(*some));
		n -= DIV_ROUND_UP(left, sizeof(*some));
		for (i = 0; i < n; i++) {
			ret = nymph_ring_submit(ring, &some[i], waiter);
			if (ret)
				return ret;
			arg->submitted++;
		}
		if (left)
			return -EFAULT;
		cond_resched();
	}
	return 0;
}

/**
 * struct nymph_reaper - a caller that sleeps until there are records
 * @wait: in the context's queue
 * @ring: the ring
 * @records: how many
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

/* Every entry that retires comes by here; only the last one is worth waking for. */
static int nymph_reaper_wake(struct wait_queue_entry *wait, unsigned int mode,
			     int flags, void *key)
{
	const struct nymph_reaper *reaper;

	reaper = container_of(wait, struct nymph_reaper, wait);
	return nymph_reaper_can_go_on(reaper) ?
	       autoremove_wake_function(wait, mode, flags, key) : 0;
}

/* Sleeps until there are so many records, or somebody has to run the ring. */
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

/* Hands out records, and waits until there were enough, or says why not. */
static int nymph_enter_reap(struct nymph_ring *ring, struct nymph_enter *arg,
			    u32 __user *reaped)
{
	struct nymph_record __user *to = u64_to_user_ptr(arg->records);
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

/* Returns why less was done than asked, or 0; @arg says what was done. */
static int nymph_enter(struct nymph_context *ctx, struct nymph_enter *arg,
		       u32 __user *reaped)
{
	struct nymph_waiter waiter = {};
	struct nymph_ring *ring;
	int ret, err;

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
		err = nymph_enter_reap(ring, arg, reaped);
	nymph_ring_kick(ring);
	nymph_ring_put(ring);
	return ret ?: err;
}

static int nymph_ioc_enter(struct nymph_context *ctx, void __user *uarg)
{
	struct nymph_enter __user *to = uarg;
	struct nymph_enter arg;
	int ret;

	ret = nymph_get_arg(&arg, sizeof(arg), uarg);
	if (ret)
		return ret;
	if (arg.flags || arg.min_records > arg.max_records)
		return -EINVAL;
	arg.submitted = 0;
	arg.reaped = 0;
	arg.error = 0;
	/* first, so that nothing is done for a caller who can't be told */
	if (copy_to_user(uarg, &arg, sizeof(arg)))
		return -EFAULT;

	ret = nymph_enter(ctx, &arg, &to->reaped);

	/* should these fail now, what is returned still says what was done */
	if (put_user(arg.submitted, &to->submitted) ||
	    put_user(ret, &to->error))
		ret = ret ?: -EFAULT;
	if (arg.submitted)
		return arg.submitted;
	return arg.reaped ? 0 : ret;
}

static int nymph_ioc_query(void __user *uarg)
{
	struct nymph_engine_info *infos;
	struct nymph_query arg;
	int ret;

	ret = nymph_get_arg(&arg, sizeof(arg), uarg);
	if (ret)
		return ret;
	arg.version = NYMPH_ABI_VERSION;
	arg.features = NYMPH_FEATURE_POLL | NYMPH_FEATURE_READ |
		       NYMPH_FEATURE_ALLOC | NYMPH_FEATURE_REGISTER |
		       NYMPH_FEATURE_CARD | NYMPH_FEATURE_DMABUF;
	arg.requests = GENMASK_ULL(_IOC_NR(NYMPH_IOC_LATENCY),
				   _IOC_NR(NYMPH_IOC_SUBMIT_DMA));
	arg.opcodes = GENMASK_ULL(NYMPH_OP_COMPARE, NYMPH_OP_NOP);
	arg.entry_flags = NYMPH_FLAGS_SERVED;
	arg.max_length = NYMPH_MAX_LENGTH;
	arg.max_entries = NYMPH_MAX_ENTRIES;
	arg.setup_flags = NYMPH_SETUP_PAUSED;

	infos = kcalloc(NYMPH_MAX_ENGINES, sizeof(*infos), GFP_KERNEL_ACCOUNT);
	if (!infos)
		return -ENOMEM;
	ret = nymph_engine_infos(infos, NYMPH_MAX_ENGINES);
	if (ret < 0)
		goto free;
	arg.num_engines = ret;
	ret = 0;
	if ((arg.engines && copy_to_user(u64_to_user_ptr(arg.engines), infos,
					 min(arg.max_engines, arg.num_engines) *
					 sizeof(*infos))) ||
	    copy_to_user(uarg, &arg, sizeof(arg)))
		ret = -EFAULT;
free:
	kfree(infos);
	return ret;
}

static int nymph_ioc_cancel(struct nymph_context *ctx, void __user *uarg)
{
	struct nymph_cancel __user *to = uarg;
	struct nymph_cancel arg;
	struct nymph_ring *ring;
	int ret;

	ret = nymph_get_arg(&arg, sizeof(arg), uarg);
	if (ret)
		return ret;
	if (arg.flags || arg.reserved)
		return -EINVAL;
	/* first, so that nothing is canceled for a caller who can't be told */
	if (put_user(0, &to->canceled))
		return -EFAULT;
	ring = nymph_lock_ring(ctx);
	if (IS_ERR(ring))
		return PTR_ERR(ring);
	arg.canceled = nymph_ring_cancel(ring, arg.cookie);
	nymph_unlock_ring(ctx);
	return arg.canceled ? put_user(arg.canceled, &to->canceled) : -ENOENT;
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
	region = nymph_ring_remove_region(ring, handle);
	nymph_unlock_ring(ctx);
	if (!region)
		return -ENOENT;
	nymph_region_put(region);
	return 0;
}

/* Who can't be told of the file has none. */
static int nymph_buffer_export(struct nymph_context *ctx, u32 handle,
			       s32 __user *to)
{
	struct nymph_ring *ring = nymph_lock_ring(ctx);
	struct nymph_region *region;
	struct dma_buf *buf;
	int fd;

	if (IS_ERR(ring))
		return PTR_ERR(ring);
	region = nymph_ring_get_region(ring, handle);
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
	region = nymph_region_create(ring, arg);
	nymph_ring_put(ring);
	if (IS_ERR(region))
		return PTR_ERR(region);

	/* not the same one, if it was replaced meanwhile; just as good */
	ring = nymph_lock_ring(ctx);
	if (IS_ERR(ring)) {
		nymph_region_put(region);
		return PTR_ERR(ring);
	}
	ret = nymph_ring_add_region(ring, region, &arg->handle);
	nymph_unlock_ring(ctx);
	if (ret) {
		nymph_region_put(region);
		return ret;
	}
	arg->mmap_offset = arg->op == NYMPH_BUFFER_ALLOC ?
			   (u64)arg->handle << NYMPH_REGION_SHIFT : 0;
	return 0;
}

static int nymph_ioc_buffer(struct nymph_context *ctx, void __user *uarg)
{
	struct nymph_buffer __user *to = uarg;
	struct nymph_buffer arg;
	size_t told;
	int ret;

	ret = nymph_get_grown_arg(&arg, sizeof(arg),
				  offsetof(struct nymph_buffer, fd), uarg);
	if (ret)
		return ret;
	ret = nymph_buffer_check(&arg);
	if (ret)
		return ret;
	if (arg.op == NYMPH_BUFFER_FREE)
		return nymph_buffer_free(ctx, arg.handle);
	if (arg.op == NYMPH_BUFFER_EXPORT)
		return nymph_buffer_export(ctx, arg.handle, &to->fd);

	/* first, so that nothing is made for a caller who can't be told */
	told = min_t(size_t, arg.size, sizeof(arg));
	if (copy_to_user(uarg, &arg, told))
		return -EFAULT;
	ret = nymph_buffer_create(ctx, &arg);
	if (ret)
		return ret;
	if (copy_to_user(uarg, &arg, told)) {
		nymph_buffer_free(ctx, arg.handle);
		return -EFAULT;
	}
	return 0;
}

static int nymph_ioc_eventfd(struct nymph_context *ctx, void __user *uarg)
{
	struct eventfd_ctx *eventfd = NULL;
	struct nymph_eventfd arg;
	struct nymph_ring *ring;
	int ret;

	ret = nymph_get_arg(&arg, sizeof(arg), uarg);
	if (ret)
		return ret;
	if (arg.flags || arg.reserved)
		return -EINVAL;
	if (arg.fd != -1) {
		eventfd = eventfd_ctx_fdget(arg.fd);
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

static int nymph_ioc_latency(struct nymph_context *ctx, void __user *uarg)
{
	struct nymph_histogram *h;
	struct nymph_latency arg;
	struct nymph_ring *ring;
	int ret;

	ret = nymph_get_arg(&arg, sizeof(arg), uarg);
	if (ret)
		return ret;
	if (arg.flags)
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
	arg.count = h->count;
	arg.sum_ns = h->sum_ns;
	arg.max_ns = h->max_ns;
	if ((arg.buckets && copy_to_user(u64_to_user_ptr(arg.buckets),
					 h->buckets, sizeof(h->buckets))) ||
	    copy_to_user(uarg, &arg, sizeof(arg)))
		ret = -EFAULT;
free:
	kfree(h);
	return ret;
}

static long nymph_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct nymph_context *ctx = file->private_data;
	void __user *uarg = (void __user *)arg;

	switch (cmd) {
	case NYMPH_IOC_SUBMIT_DMA:
		return nymph_ioc_submit_dma(ctx, uarg);
	case NYMPH_IOC_GET_STATUS:
		return nymph_ioc_get_status(ctx, uarg);
	case NYMPH_IOC_SETUP_RING:
		return nymph_ioc_setup_ring(ctx, uarg);
	case NYMPH_IOC_GET_RING:
		return nymph_ioc_get_ring(ctx, uarg);
	case NYMPH_IOC_RESET:
		return nymph_ioc_reset(ctx);
	case NYMPH_IOC_ENABLE:
		return nymph_ioc_enable(ctx);
	}

	switch (NYMPH_SIZELESS(cmd)) {
	case NYMPH_SIZELESS(NYMPH_IOC_QUERY):
		return nymph_ioc_query(uarg);
	case NYMPH_SIZELESS(NYMPH_IOC_SETUP2):
		return nymph_ioc_setup2(ctx, uarg);
	case NYMPH_SIZELESS(NYMPH_IOC_ENTER):
		return nymph_ioc_enter(ctx, uarg);
	case NYMPH_SIZELESS(NYMPH_IOC_SNAPSHOT):
		return nymph_ioc_snapshot(ctx, uarg);
	case NYMPH_SIZELESS(NYMPH_IOC_CANCEL):
		return nymph_ioc_cancel(ctx, uarg);
	case NYMPH_SIZELESS(NYMPH_IOC_BUFFER):
		return nymph_ioc_buffer(ctx, uarg);
	case NYMPH_SIZELESS(NYMPH_IOC_EVENTFD):
		return nymph_ioc_eventfd(ctx, uarg);
	case NYMPH_SIZELESS(NYMPH_IOC_LATENCY):
		return nymph_ioc_latency(ctx, uarg);
	}
	return -ENOTTY;
}

static ssize_t nymph_read(struct file *file, char __user *to, size_t count,
			  loff_t *pos)
{
	struct nymph_enter arg = {
		.records = (unsigned long)to,
		.max_records = min_t(size_t, count /
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
	ret = nymph_enter_reap(ring, &arg, NULL);
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
		 nymph_ring_get_region(ring, handle) : ERR_PTR(-ENOENT);
	nymph_ring_put(ring);
	if (IS_ERR(region))
		return -EINVAL;
	ret = nymph_region_map(region, vma);
	nymph_region_put(region);
	return ret;
}

static void nymph_show_fdinfo(struct seq_file *m, struct file *file)
{
	struct nymph_context *ctx = file->private_data;
	struct nymph_ring *ring;

	mutex_lock(&ctx->lock);
	ring = ctx->ring;
	if (ring)
		refcount_inc(&ring->refs);
	mutex_unlock(&ctx->lock);
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
	ring = nymph_get_ring(ctx);
	if (!ring)
		return EPOLLHUP;
	if (IS_ERR(ring))
		return EPOLLERR;
	if (READ_ONCE(ring->unread.count))
		events |= EPOLLIN | EPOLLRDNORM;
	if (nymph_ring_has_room(ring))
		events |= EPOLLOUT | EPOLLWRNORM;
	nymph_ring_put(ring);
	return events;
}

const struct file_operations nymph_fops = {
	.owner = THIS_MODULE,
	.open = nymph_open,
	.release = nymph_release,
	.unlocked_ioctl = nymph_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.read = nymph_read,
	.poll = nymph_poll,
	.mmap = nymph_mmap,
	.show_fdinfo = nymph_show_fdinfo,
};
