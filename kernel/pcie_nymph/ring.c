// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: a ring: slots, completion records, and who runs them.
 *
 * Entries run in order, one at a time or in flights, by whoever holds
 * NYMPH_RING_EXECUTING: the ring's worker, or a caller that would only wait
 * otherwise. The transfer under way belongs to the ring, not to the executor, so
 * an executor that is interrupted between two pieces lets another go on.
 */
#include <linux/atomic.h>
#include <linux/cpumask.h>
#include <linux/err.h>
#include <linux/freezer.h>
#include <linux/kthread.h>
#include <linux/memcontrol.h>
#include <linux/module.h>
#include <linux/sched/isolation.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/topology.h>
#include <linux/uaccess.h>

#include "compat.h"
#include "nymph.h"
#include "trace.h"

/* How long close() gives a transfer under way to notice. */
#define NYMPH_CLOSE_TIMEOUT	HZ

static atomic_t nymph_last_ring_id = ATOMIC_INIT(0);

/* The machine is about to be suspended, or is. */
static bool nymph_all_paused;
static DECLARE_WAIT_QUEUE_HEAD(nymph_resumed);

static int nymph_ring_work(void *data);

/**
 * nymph_rings_pause() - let all rings rest between two pieces, or go on
 * @pause: which of them
 */
void nymph_rings_pause(bool pause)
{
	WRITE_ONCE(nymph_all_paused, pause);
	if (!pause)
		wake_up_all(&nymph_resumed);
}

static struct nymph_estate *nymph_estate_create(void)
{
	struct nymph_estate *estate;

	estate = kvzalloc(sizeof(*estate), GFP_KERNEL_ACCOUNT);
	if (estate)
		xa_init_flags(&estate->regions, XA_FLAGS_ALLOC1);
	return estate;
}

/* Gives back all of a dead ring's estate that is not mere figures. */
static void nymph_ring_clear_estate(struct nymph_ring *ring)
{
	struct nymph_estate *estate = ring->estate;
	struct eventfd_ctx *eventfd;
	struct nymph_region *region;
	unsigned long handle;

	/* entries that still run leave records */
	mutex_lock(&ring->lock);
	eventfd = estate->eventfd;
	estate->eventfd = NULL;
	mutex_unlock(&ring->lock);
	if (eventfd)
		eventfd_ctx_put(eventfd);

	/* nobody looks for regions in a dead ring */
	xa_for_each(&estate->regions, handle, region)
		nymph_region_put(region);
	xa_destroy(&estate->regions);
}

static void nymph_ring_free(struct nymph_ring *ring)
{
	nymph_ring_withdraw(ring);
	kvfree(ring->estate);
	kvfree(ring->records);
	kvfree(ring->slots);
	nymph_team_free(ring->team);
	nymph_bounce_put(ring->bounce);
	nymph_flight_free(ring->flight);
	put_pid(ring->owner);
	mmdrop(ring->mm);
	nymph_context_put(ring->ctx);
	mutex_destroy(&ring->lock);
	mutex_destroy(&ring->reap_lock);
	nymph_user_drop_ring(ring->user);
	if (ring->engine)
		nymph_engine_put(ring);
	kvfree(ring);
	nymph_count(NYMPH_COUNT_RINGS, -1);
}

/* Memory next to the engine, which counts as current's. */
static void *nymph_ring_array(const struct nymph_ring *ring, size_t n,
			      size_t size)
{
	return kvmalloc_node(array_size(n, size),
			     GFP_KERNEL_ACCOUNT | __GFP_ZERO,
			     ring->engine->node);
}

/* Makes the worker, and has it run next to the engine if there are CPUs. */
static int nymph_ring_start_worker(struct nymph_ring *ring)
{
	int node = ring->engine->node;
	struct task_struct *worker;

	worker = kthread_create_on_node(nymph_ring_work, ring, node, "nymph/%u",
					ring->id);
	if (IS_ERR(worker))
		return PTR_ERR(worker);
	/* CPUs that the administrator keeps to himself stay so */
	if (node != NUMA_NO_NODE &&
	    cpumask_intersects(cpumask_of_node(node), cpu_online_mask) &&
	    cpumask_subset(cpumask_of_node(node),
			   housekeeping_cpumask(HK_TYPE_KTHREAD)))
		set_cpus_allowed_ptr(worker, cpumask_of_node(node));
	ring->worker = worker;
	wake_up_process(worker);
	return 0;
}

/**
 * nymph_ring_create() - make a ring that belongs to current's memory
 * @ctx: the context it is for
 * @setup: checked
 * @old: the ring whose place it takes if that is idle, or NULL
 *
 * Return: the ring, to be ended by nymph_ring_destroy() or
 * nymph_ring_release(); -ENODEV or what starting the engine says; -ENFILE,
 * -EMFILE, -ENOMEM, or -EINTR if current was killed.
 */
struct nymph_ring *nymph_ring_create(struct nymph_context *ctx,
				     const struct nymph_setup2 *setup,
				     const struct nymph_ring *old)
{
	struct nymph_engine *engine;
	struct nymph_user *user;
	struct nymph_ring *ring;
	int ret;

	user = nymph_user_add_ring(old);
	if (IS_ERR(user))
		return ERR_CAST(user);
	ring = kvzalloc(sizeof(*ring), GFP_KERNEL_ACCOUNT);
	if (!ring) {
		nymph_user_drop_ring(user);
		return ERR_PTR(-ENOMEM);
	}
	nymph_count(NYMPH_COUNT_RINGS, 1);

	refcount_set(&ring->refs, 1);
	init_waitqueue_head(&ring->work_wait);
	mutex_init(&ring->reap_lock);
	mutex_init(&ring->lock);
	refcount_inc(&ctx->refs);
	ring->ctx = ctx;
	mmgrab(current->mm);
	ring->mm = current->mm;
	ring->owner = get_pid(task_tgid(current));
	ring->user = user;
	ring->id = atomic_inc_return(&nymph_last_ring_id);
	ring->paused = setup->flags & NYMPH_SETUP_PAUSED;
	ring->active.size = setup->entries;
	ring->unread.size = setup->records;
	ring->label = setup->ring_addr;

	engine = nymph_engine_get(setup->engine, &ring->auto_engine);
	if (IS_ERR(engine)) {
		ret = PTR_ERR(engine);
		goto err;
	}
	ring->engine = engine;
	ring->estate = nymph_estate_create();
	ring->slots = nymph_ring_array(ring, setup->entries,
				       sizeof(*ring->slots));
	ring->records = nymph_ring_array(ring, setup->records,
					 sizeof(*ring->records));
	ring->flight = nymph_flight_create(engine);
	ring->bounce = nymph_bounce_create(engine);
	ret = -ENOMEM;
	if (!ring->estate || !ring->slots || !ring->records || !ring->flight ||
	    !ring->bounce)
		goto err;

	ret = nymph_ring_publish(ring);
	if (ret)
		goto err;
	ret = nymph_ring_start_worker(ring);
	if (ret)
		goto err;
	return ring;

err:
	nymph_ring_free(ring);
	return ERR_PTR(ret);
}

/**
 * nymph_ring_put() - a request is done with the ring
 * @ring: the ring
 */
void nymph_ring_put(struct nymph_ring *ring)
{
	if (refcount_dec_and_test(&ring->refs))
		nymph_ring_free(ring);
}

/* An answer without the lock: once it is yes, an executor can rely on it. */
static bool nymph_ring_runnable(struct nymph_ring *ring)
{
	/* pairs with nymph_fifo_push(): the slot at tail is filled */
	return smp_load_acquire(&ring->active.count) &&
	       (!READ_ONCE(ring->paused) || READ_ONCE(ring->dead));
}

/**
 * nymph_ring_claim() - become the executor
 * @ring: the ring
 *
 * Return: whether current is now, and has to call nymph_ring_execute().
 */
bool nymph_ring_claim(struct nymph_ring *ring)
{
	return !test_and_set_bit_lock(NYMPH_RING_EXECUTING, &ring->state);
}

/**
 * nymph_ring_claimable() - whether there is work and nobody does it
 * @ring: the ring
 */
bool nymph_ring_claimable(struct nymph_ring *ring)
{
	return !test_bit(NYMPH_RING_EXECUTING, &ring->state) &&
	       nymph_ring_runnable(ring);
}

/**
 * nymph_ring_kick() - let the worker do what nobody does
 * @ring: the ring
 */
void nymph_ring_kick(struct nymph_ring *ring)
{
	/*
	 * The caller has queued an entry, let the ring run, or stopped being the
	 * executor. Of two callers one has to see what the other did, or nobody
	 * runs what is queued: a mutex that was unlocked orders no load behind it.
	 */
	smp_mb();
	if (nymph_ring_claimable(ring))
		wake_up(&ring->work_wait);
}

/**
 * nymph_ring_enable() - let a paused ring run
 * @ring: the ring
 */
void nymph_ring_enable(struct nymph_ring *ring)
{
	mutex_lock(&ring->lock);
	WRITE_ONCE(ring->paused, false);
	mutex_unlock(&ring->lock);
	nymph_ring_kick(ring);
	/* an ENTER that waits for records can run them itself */
	wake_up(&ring->ctx->wait);
}

/* The entry at the tail; its slot is the executor's until it retires. */
static struct nymph_slot *nymph_ring_oldest(struct nymph_ring *ring)
{
	return &ring->slots[ring->active.tail];
}

static bool nymph_ring_is_full(const struct nymph_ring *ring, bool record)
{
	lockdep_assert_held(&ring->lock);
	return ring->active.count == ring->active.size ||
	       (record &&
		ring->unread.count + ring->reserved == ring->unread.size);
}

/**
 * nymph_ring_has_room() - whether an entry that wants a record is accepted now
 * @ring: the ring
 */
bool nymph_ring_has_room(struct nymph_ring *ring)
{
	bool room;

	mutex_lock(&ring->lock);
	room = !nymph_ring_is_full(ring, true);
	mutex_unlock(&ring->lock);
	return room;
}

static int nymph_ring_push(struct nymph_ring *ring, struct nymph_slot *slot)
{
	bool record = slot->entry.flags & NYMPH_DMA_FLAG_RECORD;
	int ret = 0;

	mutex_lock(&ring->lock);
	if (ring->dead) {
		ret = -ESTALE;
	} else if (nymph_ring_is_full(ring, record)) {
		ret = -ENOSPC;
	} else {
		slot->queued_ns = ktime_get_ns();
		ring->slots[nymph_fifo_head(&ring->active)] = *slot;
		ring->reserved += record;
		if (slot->waiter)
			slot->waiter->pending++;
		nymph_fifo_push(&ring->active);
		nymph_count(NYMPH_COUNT_SUBMITTED, 1);
		trace_nymph_submit(ring, &slot->entry, slot->queued_ns);
	}
	mutex_unlock(&ring->lock);
	return ret;
}

/**
 * nymph_ring_submit() - accept an entry
 * @ring: a ring of current's memory
 * @entry: a private copy, unchecked
 * @waiter: counts it if it is COMPLETE_SYNC
 *
 * The caller then runs it, or calls nymph_ring_kick().
 *
 * Return: 0; -ESTALE if the ring was reset or replaced; or what docs/abi.md
 * says. If it is not 0, nothing changed.
 */
int nymph_ring_submit(struct nymph_ring *ring, const struct nymph_entry *entry,
		      struct nymph_waiter *waiter)
{
	struct nymph_slot slot = { .entry = *entry };
	int ret;

	ret = nymph_entry_check(entry);
	if (ret)
		return ret;
	if (entry->flags & NYMPH_DMA_FLAG_COMPLETE_SYNC) {
		if (READ_ONCE(ring->paused))
			return -EAGAIN;
		slot.waiter = waiter;
	}
	trace_nymph_pin(ring, entry);
	ret = nymph_entry_prepare(ring, &slot);
	if (ret)
		return ret;
	trace_nymph_pinned(ring, entry);
	ret = nymph_ring_push(ring, &slot);
	if (ret)
		nymph_entry_release(ring, &slot);
	return ret;
}

/*
 * Makes the entry at tail the one under way. Returns 0, or -ECANCELED if it is to
 * retire unstarted.
 */
static int nymph_ring_start(struct nymph_ring *ring, u64 now)
{
	struct nymph_slot *slot = nymph_ring_oldest(ring);

	if (ring->chain_broken || READ_ONCE(slot->canceled))
		return -ECANCELED;
	/* it may have come after the one before it ended */
	now = max(now, slot->queued_ns);
	nymph_transfer_start(&ring->transfer, &slot->entry, now);
	trace_nymph_start(ring, &slot->entry, now);
	return 0;
}

static void nymph_ring_leave_record(struct nymph_ring *ring,
				    const struct nymph_slot *slot, int status,
				    u64 now)
{
	const struct nymph_transfer *t = &ring->transfer;
	struct nymph_record *r;

	r = &ring->records[nymph_fifo_head(&ring->unread)];
	memset(r, 0, sizeof(*r));
	r->cookie = slot->entry.cookie;
	r->size = sizeof(*r);
	r->status = status;
	r->queued_ns = slot->queued_ns;
	r->completed_ns = now;
	if (t->active) {
		r->bytes_done = t->done;
		r->engine = t->engine ?: ring->engine->id;
		r->flags = t->record_flags;
		r->started_ns = t->started_ns;
		if (r->flags & NYMPH_RECORD_SRC_DIGEST)
			memcpy(r->src_digest, t->src_digest, NYMPH_DIGEST_SIZE);
		if (r->flags & NYMPH_RECORD_DST_DIGEST)
			memcpy(r->dst_digest, t->dst_digest, NYMPH_DIGEST_SIZE);
	}
	ring->reserved--;
	nymph_fifo_push(&ring->unread);
	if (ring->estate->eventfd)
		nymph_eventfd_raise(ring->estate->eventfd);
}

/* Retires the entry at tail: one step for whoever looks. Returns when that was. */
static u64 nymph_ring_retire(struct nymph_ring *ring, int status)
{
	struct nymph_slot *slot = nymph_ring_oldest(ring);
	struct nymph_estate *estate = ring->estate;
	struct nymph_transfer *t = &ring->transfer;
	u64 done = t->active ? t->done : 0;
	u64 now;

	/* no engine uses it any more, and who sees the end sees it unpinned */
	nymph_entry_release(ring, slot);

	mutex_lock(&ring->lock);
	now = ktime_get_ns();
	if (slot->entry.flags & NYMPH_DMA_FLAG_RECORD) {
		nymph_ring_leave_record(ring, slot, status, now);
	} else if (status) {
		if (!estate->errors++)
			estate->first_error = status;
	}
	if (slot->waiter) {
		slot->waiter->status = status;
		WRITE_ONCE(slot->waiter->pending, slot->waiter->pending - 1);
		slot->waiter = NULL;
	}
	ring->chain_broken = status && slot->entry.flags & NYMPH_DMA_FLAG_LINK;
	if (t->active && status != -ECANCELED)
		nymph_latency_add(&estate->latency, now - slot->queued_ns);
	trace_nymph_complete(ring, &slot->entry, done, status, now);
	if (!nymph_entry_moves(&slot->entry))
		done = 0;
	estate->dma_bytes += done;
	nymph_fifo_pop(&ring->active, 1);
	t->active = false;
	mutex_unlock(&ring->lock);

	nymph_count(NYMPH_COUNT_BYTES, done);
	nymph_count(status ? NYMPH_COUNT_FAILED : NYMPH_COUNT_COMPLETED, 1);
	if (wq_has_sleeper(&ring->ctx->wait))
		wake_up(&ring->ctx->wait);
	return now;
}

/* @now: when the last entry ended, or 0 if that is some time ago */
static bool nymph_limits_reached(struct nymph_ring *ring,
				 const struct nymph_limits *limits, u64 now)
{
	if (limits->waiter && !READ_ONCE(limits->waiter->pending))
		return true;
	if (limits->records && READ_ONCE(ring->unread.count) >= limits->records)
		return true;
	if (limits->interruptible ? signal_pending(current) :
				    fatal_signal_pending(current))
		return true;
	return limits->deadline_ns != NYMPH_NO_DEADLINE &&
	       (now ?: ktime_get_ns()) >= limits->deadline_ns;
}

/*
 * The worker's own reference is all that keeps the memory: the process is
 * gone. Then the rest of the queue must not be run for nobody.
 */
static bool nymph_memory_abandoned(void)
{
	return current->flags & PF_KTHREAD && current->mm &&
	       atomic_read(&current->mm->mm_users) == 1;
}

static int nymph_ring_step(struct nymph_ring *ring)
{
	struct nymph_slot *slot = nymph_ring_oldest(ring);

	int ret;

	if (READ_ONCE(slot->canceled))
		return -ECANCELED;
	ret = nymph_transfer_step(ring, slot);
	trace_nymph_landed(ring, 1);
	return ret;
}

/*
 * Runs several entries at once, if they can be. Returns when the last of them was
 * retired, or 0.
 */
static u64 nymph_ring_fly(struct nymph_ring *ring)
{
	unsigned int i, n = nymph_flight_run(ring);
	u64 now = 0;

	if (n)
		trace_nymph_landed(ring, n);
	for (i = 0; i < n; i++) {
		struct nymph_slot *slot = nymph_ring_oldest(ring);
		int ret;

		nymph_transfer_start(&ring->transfer, &slot->entry,
				     ring->flight->started_ns);
		ret = nymph_flight_land(ring, slot, i);
		while (ret == NYMPH_STEP_MORE) {
			cond_resched();
			ret = nymph_ring_step(ring);
		}
		now = nymph_ring_retire(ring, ret);
	}
	return now;
}

/*
 * Starts the entry at tail, if none is under way, and runs a piece of it. Returns
 * as nymph_transfer_step(); @now is when the one before it ended, or 0.
 */
static int nymph_ring_run(struct nymph_ring *ring, u64 now)
{
	int ret = 0;

	if (!ring->transfer.active)
		ret = nymph_ring_start(ring, now ?: ktime_get_ns());
	return ret ?: nymph_ring_step(ring);
}

/**
 * nymph_ring_execute() - run what is queued, then stop being the executor
 * @ring: current is its executor
 * @limits: when to stop earlier, or NULL
 */
void nymph_ring_execute(struct nymph_ring *ring,
			const struct nymph_limits *limits)
{
	struct nymph_transfer *t = &ring->transfer;
	u64 now = 0, flown;
	int ret;

	for (;;) {
		if (READ_ONCE(ring->dead)) {
			/*
			 * Nobody adds to a dead ring, so this comes to an end;
			 * pairs with nymph_fifo_push(): the slot is filled.
			 */
			while (smp_load_acquire(&ring->active.count)) {
				nymph_ring_retire(ring, -ECANCELED);
				cond_resched();
			}
			break;
		}
		if (limits && nymph_limits_reached(ring, limits, now))
			break;
		if (!t->active && nymph_memory_abandoned())
			break;
		if (!t->active && !nymph_ring_runnable(ring))
			break;
		flown = t->active ? 0 : nymph_ring_fly(ring);
		if (flown) {
			now = flown;
		} else {
			ret = nymph_ring_run(ring, now);
			if (ret == NYMPH_STEP_INTERRUPTED) {
				if (!READ_ONCE(ring->dead))
					break;
			} else if (ret == NYMPH_STEP_MORE) {
				now = 0;
			} else {
				now = nymph_ring_retire(ring, ret);
				/* it was for the one that was canceled */
				if (current->flags & PF_KTHREAD &&
				    signal_pending(current))
					flush_signals(current);
			}
		}
		cond_resched();
		/* suspend shall not have to wait for the whole queue */
		if (READ_ONCE(nymph_all_paused)) {
			wait_event_state(nymph_resumed,
					 !READ_ONCE(nymph_all_paused),
					 (TASK_KILLABLE | TASK_FREEZABLE));
			now = 0;
		}
	}

	clear_bit_unlock(NYMPH_RING_EXECUTING, &ring->state);
	nymph_ring_kick(ring);
	wake_up(&ring->ctx->wait);
}

/**
 * nymph_ring_wait() - wait until a caller's COMPLETE_SYNC entries have retired
 * @ring: the ring
 * @waiter: the caller's
 *
 * Runs them, if nobody else does.
 *
 * Return: 0, or -EINTR if current is being killed; @waiter is free to go.
 */
int nymph_ring_wait(struct nymph_ring *ring, struct nymph_waiter *waiter)
{
	struct nymph_limits limits = {
		.waiter = waiter,
		.deadline_ns = NYMPH_NO_DEADLINE,
	};
	int ret = 0;
	u32 i;

	while (READ_ONCE(waiter->pending)) {
		if (fatal_signal_pending(current))
			break;
		if (nymph_ring_claimable(ring) && nymph_ring_claim(ring))
			nymph_ring_execute(ring, &limits);
		ret = wait_event_state(ring->ctx->wait,
				       !READ_ONCE(waiter->pending) ||
				       nymph_ring_claimable(ring),
				       (TASK_KILLABLE | TASK_FREEZABLE));
		if (ret)
			break;
	}

	/* also orders what the retiring side wrote to the waiter */
	mutex_lock(&ring->lock);
	if (waiter->pending) {
		for (i = 0; i < ring->active.size; i++)
			if (ring->slots[i].waiter == waiter)
				ring->slots[i].waiter = NULL;
		ret = -EINTR;
	} else {
		ret = 0;
	}
	mutex_unlock(&ring->lock);
	return ret;
}

/**
 * nymph_ring_reap() - hand out completion records
 * @ring: the ring
 * @to: where to, an array
 * @max: elements in it
 * @reaped: elements of it that were written before; raised
 * @count: where user space is told @reaped, or NULL
 *
 * Return: 0, -EINTR, or -EFAULT: a record that did not arrive whole, or was not
 * counted, stays unread.
 */
int nymph_ring_reap(struct nymph_ring *ring, struct nymph_record __user *to,
		    u32 max, u32 *reaped, u32 __user *count)
{
	u32 first, n, got;
	int ret = 0;

	if (*reaped == max || !READ_ONCE(ring->unread.count))
		return 0;
	if (mutex_lock_interruptible(&ring->reap_lock))
		return -EINTR;
	do {
		mutex_lock(&ring->lock);
		first = ring->unread.tail;
		n = min(max - *reaped, nymph_fifo_run(&ring->unread));
		mutex_unlock(&ring->lock);

		/* the reap_lock keeps these records from being overwritten */
		got = n - DIV_ROUND_UP(copy_to_user(to + *reaped,
						    &ring->records[first],
						    n * sizeof(*to)),
				       sizeof(*to));
		if (got < n)
			ret = -EFAULT;
		if (count && put_user(*reaped + got, count)) {
			ret = -EFAULT;
			break;
		}

		mutex_lock(&ring->lock);
		nymph_fifo_pop(&ring->unread, got);
		mutex_unlock(&ring->lock);
		*reaped += got;
	} while (got && !ret && *reaped < max);
	mutex_unlock(&ring->reap_lock);
	return ret;
}

static void nymph_ring_fill(const struct nymph_ring *ring,
			    struct nymph_dma_ring *out)
{
	lockdep_assert_held(&ring->lock);
	out->ring_size = ring->active.size;
	out->head = nymph_fifo_head(&ring->active);
	out->tail = ring->active.tail;
	out->reserved = 0;
	out->ring_addr = ring->label;
}

/**
 * nymph_ring_indices() - size, indices and label
 * @ring: the ring
 * @out: filled
 */
void nymph_ring_indices(struct nymph_ring *ring, struct nymph_dma_ring *out)
{
	mutex_lock(&ring->lock);
	nymph_ring_fill(ring, out);
	mutex_unlock(&ring->lock);
}

/* What nymph_ring_snapshot() works with. */
struct nymph_snapshot_copy {
	struct nymph_blake3 hash;
	u32 room;
	struct nymph_entry entries[];
};

/*
 * Returns how many entries are active, or -ESTALE; all is filled if @copy has
 * the room.
 */
static int nymph_ring_copy(struct nymph_ring *ring, struct nymph_snapshot *snap,
			   struct nymph_snapshot_copy *copy)
{
	int i, active;

	mutex_lock(&ring->lock);
	active = ring->dead ? -ESTALE : ring->active.count;
	if (active >= 0 && active <= copy->room) {
		nymph_ring_fill(ring, &snap->ring);
		snap->dma_bytes = ring->estate->dma_bytes;
		snap->active_descriptors = active;
		snap->unread_records = ring->unread.count;
		snap->errors = ring->estate->errors;
		snap->first_error = ring->estate->first_error;
		snap->state = ring->paused ? NYMPH_STATE_PAUSED : 0;
		snap->engine = ring->engine->id;
		for (i = 0; i < active; i++)
			copy->entries[i] =
				ring->slots[nymph_fifo_at(&ring->active, i)].entry;
	}
	mutex_unlock(&ring->lock);
	return active;
}

/**
 * nymph_ring_snapshot() - the ring at one moment, and its hash
 * @ring: the ring, or NULL if there is none
 * @snap: the fields that are answers are filled
 * @to: if not NULL: where the active entries are copied to
 *
 * Return: 0, -ENOMEM, -ENOSPC if @snap->max_entries is too small for @to,
 * -EFAULT, or -ESTALE if the ring was reset or replaced.
 */
int nymph_ring_snapshot(struct nymph_ring *ring, struct nymph_snapshot *snap,
			struct nymph_entry __user *to)
{
	struct nymph_snapshot_copy *copy = NULL;
	int active = ring ? READ_ONCE(ring->active.count) : 0;
	int room, ret = 0;

	do {
		room = active;
		kvfree(copy);
		copy = kvmalloc(struct_size(copy, entries, room),
				GFP_KERNEL_ACCOUNT);
		if (!copy)
			return -ENOMEM;
		copy->room = room;
		if (ring)
			active = nymph_ring_copy(ring, snap, copy);
	} while (active > room);
	if (active < 0) {
		ret = active;
		goto free;
	}

	nymph_ring_digest(&snap->ring, copy->entries, active, snap->dma_bytes,
			  snap->ring_hash, &copy->hash);
	if (to) {
		if (active > snap->max_entries)
			ret = -ENOSPC;
		else if (copy_to_user(to, copy->entries,
				      array_size(active, sizeof(*to))))
			ret = -EFAULT;
	}
free:
	kvfree(copy);
	return ret;
}

/**
 * nymph_ring_cancel() - have entries end early
 * @ring: a live ring; it stays so by the context's lock
 * @cookie: which
 *
 * Return: how many there are.
 */
u32 nymph_ring_cancel(struct nymph_ring *ring, u64 cookie)
{
	u32 i, found = 0;

	mutex_lock(&ring->lock);
	for (i = 0; i < ring->active.count; i++) {
		struct nymph_slot *slot;

		slot = &ring->slots[nymph_fifo_at(&ring->active, i)];
		if (slot->entry.cookie == cookie) {
			WRITE_ONCE(slot->canceled, true);
			found++;
		}
	}
	/* a page fault that nobody answers ends for a signal alone */
	if (found && nymph_ring_oldest(ring)->canceled)
		send_sig(SIGKILL, ring->worker, 1);
	mutex_unlock(&ring->lock);
	return found;
}

/**
 * nymph_ring_set_eventfd() - be told of records
 * @ring: a live ring; it stays so by the context's lock
 * @eventfd: raised for each from now on, and the ring's; or NULL
 *
 * Return: the one before, which is the caller's now; or NULL.
 */
struct eventfd_ctx *nymph_ring_set_eventfd(struct nymph_ring *ring,
					   struct eventfd_ctx *eventfd)
{
	mutex_lock(&ring->lock);
	swap(ring->estate->eventfd, eventfd);
	mutex_unlock(&ring->lock);
	return eventfd;
}

/**
 * nymph_ring_latency() - how long entries took so far
 * @ring: a live ring; it stays so by the context's lock
 * @to: filled
 */
void nymph_ring_latency(struct nymph_ring *ring, struct nymph_histogram *to)
{
	mutex_lock(&ring->lock);
	*to = ring->estate->latency;
	mutex_unlock(&ring->lock);
}

/**
 * nymph_ring_add_region() - find a handle for memory
 * @ring: a live ring; it stays so by the context's lock
 * @region: the memory; the reference is the ring's from now on
 * @handle: the handle
 *
 * Return: 0; -EMFILE if all handles are in use; -ENOMEM.
 */
int nymph_ring_add_region(struct nymph_ring *ring, struct nymph_region *region,
			  u32 *handle)
{
	int ret;

	mutex_lock(&ring->lock);
	ret = xa_alloc(&ring->estate->regions, handle, region,
		       XA_LIMIT(1, NYMPH_MAX_REGIONS - 1), GFP_KERNEL_ACCOUNT);
	mutex_unlock(&ring->lock);
	return ret == -EBUSY ? -EMFILE : ret;
}

/**
 * nymph_ring_remove_region() - give up a handle
 * @ring: a live ring; it stays so by the context's lock
 * @handle: the handle
 *
 * Return: the memory, whose reference is the caller's now; or NULL.
 */
struct nymph_region *nymph_ring_remove_region(struct nymph_ring *ring,
					      u32 handle)
{
	struct nymph_region *region;

	mutex_lock(&ring->lock);
	region = xa_erase(&ring->estate->regions, handle);
	mutex_unlock(&ring->lock);
	return region;
}

/**
 * nymph_ring_get_region() - the memory a handle names
 * @ring: the ring
 * @handle: the handle
 *
 * Return: the region, with a reference; -ENOENT, or -ESTALE if the ring was
 * reset or replaced.
 */
struct nymph_region *nymph_ring_get_region(struct nymph_ring *ring, u32 handle)
{
	struct nymph_region *region = ERR_PTR(-ESTALE);

	mutex_lock(&ring->lock);
	if (!ring->dead) {
		region = xa_load(&ring->estate->regions, handle);
		if (region)
			refcount_inc(&region->refs);
		else
			region = ERR_PTR(-ENOENT);
	}
	mutex_unlock(&ring->lock);
	return region;
}

/**
 * nymph_ring_retire_idle() - end a ring that another takes the place of
 * @ring: the old one; nymph_ring_destroy() is next
 * @heir: the new one, which gets its estate
 *
 * Return: false if @ring is not idle; it stays as it is.
 */
bool nymph_ring_retire_idle(struct nymph_ring *ring, struct nymph_ring *heir)
{
	bool idle;

	mutex_lock(&ring->lock);
	idle = !ring->dead && !ring->active.count &&
	       !ring->unread.count;
	if (idle) {
		WRITE_ONCE(ring->dead, true);
		swap(heir->estate, ring->estate);
	}
	mutex_unlock(&ring->lock);
	return idle;
}

/**
 * nymph_ring_kill() - accept nothing more, end what runs at its next piece
 * @ring: the ring
 *
 * What is queued is canceled by the next executor.
 */
void nymph_ring_kill(struct nymph_ring *ring)
{
	mutex_lock(&ring->lock);
	WRITE_ONCE(ring->dead, true);
	mutex_unlock(&ring->lock);
	/* a page fault that nobody answers ends for a signal alone */
	send_sig(SIGKILL, ring->worker, 1);
	wake_up(&ring->work_wait);
	wake_up(&ring->ctx->wait);
}

/**
 * nymph_ring_destroy() - give up the context's hold on a ring
 * @ring: dead, with nothing left to run
 */
void nymph_ring_destroy(struct nymph_ring *ring)
{
	kthread_stop(ring->worker);
	/* now, and not with the last reference: charges are given back */
	nymph_ring_clear_estate(ring);
	nymph_ring_put(ring);
}

/**
 * nymph_ring_release() - the file is closed
 * @ring: no request uses it
 */
void nymph_ring_release(struct nymph_ring *ring)
{
	bool orphan;

	nymph_ring_kill(ring);
	wait_event_timeout(ring->ctx->wait,
			   !test_bit(NYMPH_RING_EXECUTING, &ring->state),
			   NYMPH_CLOSE_TIMEOUT);

	/*
	 * The worker can be stuck in a page fault for as long as a file system
	 * likes. close() does not wait for that: the worker inherits the ring.
	 */
	orphan = !nymph_ring_claim(ring);
	if (orphan) {
		nymph_ring_clear_estate(ring);
		__module_get(THIS_MODULE);
		/* pairs with the worker's load: it sees the reference above */
		smp_store_release(&ring->orphan, true);
		wake_up(&ring->work_wait);
		return;
	}
	nymph_ring_execute(ring, NULL);
	nymph_ring_destroy(ring);
}

static void nymph_ring_work_in_mm(struct nymph_ring *ring)
{
	struct mem_cgroup *memcg, *old;

	/* without the memory its entries fail, one by one */
	if (READ_ONCE(ring->dead) || !mmget_not_zero(ring->mm)) {
		nymph_ring_execute(ring, NULL);
		return;
	}
	kthread_use_mm(ring->mm);
	/* what is allocated on the way is the process's */
	memcg = get_mem_cgroup_from_mm(ring->mm);
	old = set_active_memcg(memcg);
	nymph_ring_execute(ring, NULL);
	set_active_memcg(old);
	mem_cgroup_put(memcg);
	kthread_unuse_mm(ring->mm);
	mmput(ring->mm);
}

static int nymph_ring_work(void *data)
{
	struct nymph_ring *ring = data;

	allow_kernel_signal(SIGKILL);
	set_freezable();
	while (!kthread_should_stop()) {
		wait_event_freezable(ring->work_wait,
				     kthread_should_stop() ||
				     READ_ONCE(ring->orphan) ||
				     nymph_ring_claimable(ring));
		if (signal_pending(current))
			flush_signals(current);
		if (nymph_ring_claimable(ring) && nymph_ring_claim(ring))
			nymph_ring_work_in_mm(ring);
		/* pairs with nymph_ring_release() */
		if (smp_load_acquire(&ring->orphan)) {
			nymph_ring_put(ring);
			module_put_and_kthread_exit(0);
		}
	}
	return 0;
}
