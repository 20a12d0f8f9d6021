// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: a ring: its slots, its completion records, and its executors.
 *
 * The executor, which holds NYMPH_RING_EXECUTING, runs entries in order, one at a
 * time or in batches: it is the ring's worker, or a caller that would only wait
 * otherwise. The transfer under way belongs to the ring, not to the executor, so
 * another executor can go on if one is interrupted between two chunks.
 *
 * The file is long because submission, execution, retirement and the end of a ring
 * share the state that nymph_ring.lock and NYMPH_RING_EXECUTING serialize.
 */
#include <linux/atomic.h>
#include <linux/cred.h>
#include <linux/err.h>
#include <linux/freezer.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/time_namespace.h>
#include <linux/uaccess.h>
#include <linux/uio.h>

#include "compat.h"
#include "counters.h"
#include "ring.h"
#include "trace.h"

static atomic_t nymph_last_ring_id = ATOMIC_INIT(0);

/* The machine is being suspended. */
static bool nymph_all_paused;
static DECLARE_WAIT_QUEUE_HEAD(nymph_resumed);

/**
 * nymph_rings_pause() - Pause or resume all rings, each between two chunks
 * @pause: true to pause them
 */
void nymph_rings_pause(bool pause)
{
	WRITE_ONCE(nymph_all_paused, pause);
	if (!pause)
		wake_up_all(&nymph_resumed);
}

/**
 * nymph_context_put() - Drop a reference to a context
 * @ctx: the context
 */
void nymph_context_put(struct nymph_context *ctx)
{
	if (!refcount_dec_and_test(&ctx->refs))
		return;
	mutex_destroy(&ctx->lock);
	mutex_destroy(&ctx->setup);
	kfree(ctx);
}

static struct nymph_carried *nymph_carried_create(void)
{
	struct nymph_carried *carried;

	carried = kvzalloc(sizeof(*carried), NYMPH_GFP_SIZED);
	if (carried)
		xa_init_flags(&carried->regions, XA_FLAGS_ALLOC1);
	return carried;
}

/*
 * Releases the eventfd and the regions in a dead ring's carried-over state. Several
 * callers can do this at once: one of them releases each region.
 */
static void nymph_ring_clear_carried(struct nymph_ring *ring)
{
	struct nymph_carried *carried;
	struct eventfd_ctx *eventfd;
	struct nymph_region *region;
	unsigned long handle;

	/* entries that still run leave records */
	mutex_lock(&ring->lock);
	carried = ring->carried;
	eventfd = carried->eventfd;
	carried->eventfd = NULL;
	mutex_unlock(&ring->lock);
	if (eventfd)
		eventfd_ctx_put(eventfd);

	xa_for_each(&carried->regions, handle, region)
		nymph_region_put(xa_erase(&carried->regions, handle));
}

/**
 * nymph_ring_has_ended() - Tell whether a ring has released all that others could have
 * @ring: the ring
 *
 * Return: whether the engine and the user's charge are released.
 */
bool nymph_ring_has_ended(struct nymph_ring *ring)
{
	return test_bit(NYMPH_RING_ENDED, &ring->state);
}

/*
 * Releases what others could have, once nothing is left to run. Current is the
 * executor, or the only one that knows the ring. Returns whether it released it; it
 * always does if it may wait.
 */
static bool nymph_ring_end(struct nymph_ring *ring, bool may_wait)
{
	if (nymph_ring_has_ended(ring))
		return true;
	if (ring->engine && !nymph_engine_put(ring, may_wait))
		return false;
	nymph_uncharge(ring->cred->user, ring->charged);
	ring->charged = 0;
	nymph_user_drop_ring(ring->cred);
	nymph_count(NYMPH_COUNT_RINGS, -1);
	/* whoever sees this bit sees what was given back */
	smp_mb__before_atomic();
	set_bit(NYMPH_RING_ENDED, &ring->state);
	if (ring->worker)
		nymph_worker_wake(ring);
	return true;
}

static void nymph_ring_free(struct nymph_ring *ring)
{
	nymph_ring_end(ring, true);
	/* a request may have added something when it had ended */
	if (ring->carried) {
		nymph_ring_clear_carried(ring);
		xa_destroy(&ring->carried->regions);
	}
	kvfree(ring->carried);
	kvfree(ring->records);
	kvfree(ring->slots);
	nymph_team_free(ring->team);
	nymph_bounce_put(ring->bounce);
	nymph_batch_free(ring->batch);
	nymph_worker_free(ring);
	put_pid(ring->owner);
	put_cred(ring->cred);
	mmdrop(ring->mm);
	nymph_context_put(ring->ctx);
	mutex_destroy(&ring->lock);
	mutex_destroy(&ring->reap_lock);
	kvfree(ring);
}

/* Allocates an array next to the engine, charged to the cgroup of current. */
static void *nymph_ring_array(const struct nymph_ring *ring, size_t n,
			      size_t size)
{
	return kvmalloc_node(array_size(n, size),
			     NYMPH_GFP_SIZED | __GFP_ZERO,
			     ring->engine->node);
}

/* Returns the number of pages that a ring takes. */
static unsigned long nymph_ring_weight(const struct nymph_ring *ring)
{
	size_t bytes = sizeof(*ring) + sizeof(*ring->carried) +
		       array_size(ring->active.size, sizeof(*ring->slots)) +
		       array_size(ring->unread.size, sizeof(*ring->records)) +
		       sizeof(*ring->batch) + nymph_blake3_batch_size() +
		       struct_size(ring->bounce, data, NYMPH_CHUNK);

	return DIV_ROUND_UP(bytes, PAGE_SIZE);
}

/* Charges a new ring to its user, less the charge of the ring that it replaces. */
static int nymph_ring_charge(struct nymph_ring *ring,
			     const struct nymph_ring *old)
{
	unsigned long weight = nymph_ring_weight(ring), credit = 0;
	int ret;

	if (old && old->cred->user == ring->cred->user)
		credit = old->charged;
	ret = nymph_charge(ring->cred->user, weight, credit);
	if (!ret)
		ring->charged = weight;
	return ret;
}

/**
 * nymph_ring_create() - Create a ring that belongs to current's memory
 * @ctx: the context that will have it
 * @setup: checked parameters
 * @old: the ring whose place it takes if that is idle, or NULL
 *
 * Return: the ring, to be ended by nymph_ring_destroy() or
 * nymph_ring_release(); -ENODEV or what starting the engine says; -ENFILE,
 * -EMFILE, -ENOMEM, -EINTR if current was killed, or what nymph_worker_start()
 * says.
 */
struct nymph_ring *nymph_ring_create(struct nymph_context *ctx,
				     const struct nymph_setup2 *setup,
				     const struct nymph_ring *old)
{
	struct nymph_engine *engine;
	const struct cred *cred;
	struct nymph_ring *ring;
	int ret;

	cred = nymph_user_add_ring(old ? old->cred : NULL);
	if (IS_ERR(cred))
		return ERR_CAST(cred);
	ring = kvzalloc(sizeof(*ring), NYMPH_GFP_SIZED);
	if (!ring) {
		nymph_user_drop_ring(cred);
		return ERR_PTR(-ENOMEM);
	}
	nymph_count(NYMPH_COUNT_RINGS, 1);

	refcount_set(&ring->refs, 1);
	mutex_init(&ring->reap_lock);
	mutex_init(&ring->lock);
	refcount_inc(&ctx->refs);
	ring->ctx = ctx;
	mmgrab(current->mm);
	ring->mm = current->mm;
	ring->owner = get_pid(task_tgid(current));
	ring->cred = get_cred(cred);
	ring->id = atomic_inc_return(&nymph_last_ring_id);
	ring->paused = setup->flags & NYMPH_SETUP_PAUSED;
	ring->active.size = setup->entries;
	ring->unread.size = setup->records;
	ring->label = setup->ring_addr;

	ret = nymph_ring_charge(ring, old);
	if (ret)
		goto err;
	engine = nymph_engine_get(setup->engine, &ring->auto_engine);
	if (IS_ERR(engine)) {
		ret = PTR_ERR(engine);
		goto err;
	}
	ring->engine = engine;
	ring->carried = nymph_carried_create();
	ring->slots = nymph_ring_array(ring, setup->entries,
				       sizeof(*ring->slots));
	ring->records = nymph_ring_array(ring, setup->records,
					 sizeof(*ring->records));
	ring->batch = nymph_batch_create(engine);
	ring->bounce = nymph_bounce_create(engine->node);
	ret = -ENOMEM;
	if (!ring->carried || !ring->slots || !ring->records || !ring->batch ||
	    !ring->bounce)
		goto err;

	ret = nymph_worker_start(ring);
	if (ret)
		goto err;
	return ring;

err:
	nymph_ring_free(ring);
	return ERR_PTR(ret);
}

/**
 * nymph_ring_put() - Drop a reference to a ring
 * @ring: the ring
 */
void nymph_ring_put(struct nymph_ring *ring)
{
	if (refcount_dec_and_test(&ring->refs))
		nymph_ring_free(ring);
}

/* Takes no lock: an executor can rely on a true. */
static bool nymph_ring_has_entry(struct nymph_ring *ring)
{
	/* pairs with nymph_fifo_push(): the slot at tail is filled */
	return smp_load_acquire(&ring->active.count) && !READ_ONCE(ring->paused);
}

/* Tells whether an executor has something to do: entries, or the ring's end. */
static bool nymph_ring_runnable(struct nymph_ring *ring)
{
	if (READ_ONCE(ring->dead))
		return !nymph_ring_has_ended(ring);
	return nymph_ring_has_entry(ring);
}

/**
 * nymph_ring_claim() - Become the executor
 * @ring: the ring
 *
 * Return: true if current is the executor now, and has to call
 * nymph_ring_execute().
 */
bool nymph_ring_claim(struct nymph_ring *ring)
{
	return !test_and_set_bit_lock(NYMPH_RING_EXECUTING, &ring->state);
}

/**
 * nymph_ring_claimable() - Tell whether a ring has work and no executor
 * @ring: the ring
 *
 * Return: whether current can become the executor and has something to do.
 */
bool nymph_ring_claimable(struct nymph_ring *ring)
{
	return !test_bit(NYMPH_RING_EXECUTING, &ring->state) &&
	       nymph_ring_runnable(ring);
}

/**
 * nymph_ring_kick() - Have the worker run a ring that has work and no executor
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
	if (!nymph_ring_claimable(ring))
		return;
	if (!READ_ONCE(ring->orphan))
		nymph_worker_wake(ring);
	else if (nymph_ring_claim(ring))
		nymph_ring_execute(ring, NULL);
}

/**
 * nymph_ring_enable() - Let a paused ring run
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
 * nymph_ring_has_room() - Tell whether an entry that wants a record is accepted now
 * @ring: the ring
 *
 * Return: whether there is a free slot and a free record.
 */
bool nymph_ring_has_room(struct nymph_ring *ring)
{
	bool room;

	mutex_lock(&ring->lock);
	room = !nymph_ring_is_full(ring, true);
	mutex_unlock(&ring->lock);
	return room;
}

/* Puts an entry into the ring. */
static int nymph_ring_push(struct nymph_ring *ring, struct nymph_slot *slot,
			   u64 now)
{
	bool record = slot->entry.flags & NYMPH_DMA_FLAG_RECORD;

	lockdep_assert_held(&ring->lock);
	if (ring->dead)
		return -ESTALE;
	if (nymph_ring_is_full(ring, record))
		return -ENOSPC;
	slot->queued_ns = now;
	ring->slots[nymph_fifo_head(&ring->active)] = *slot;
	ring->reserved += record;
	if (slot->waiter)
		slot->waiter->pending++;
	nymph_fifo_push(&ring->active);
	nymph_count(NYMPH_COUNT_SUBMITTED, 1);
	trace_nymph_submit(ring, &slot->entry, now);
	return 0;
}

/* Begins to accept an entry; returns 0 or why not. */
static int nymph_slot_init(struct nymph_ring *ring, struct nymph_slot *slot,
			   const struct nymph_entry *entry,
			   struct nymph_waiter *waiter)
{
	int ret;

	*slot = (struct nymph_slot) {
		.entry = *entry,
		.access = nymph_access_get(),
	};
	ret = nymph_entry_check(entry);
	if (ret)
		return ret;
	if (entry->flags & NYMPH_DMA_FLAG_COMPLETE_SYNC) {
		if (READ_ONCE(ring->paused))
			return -EAGAIN;
		slot->waiter = waiter;
	}
	return 0;
}

/*
 * Accepts entries as long as all their memory is in buffers, under one lock and with
 * one reading of the clock. Returns 0 or why one of these was refused.
 */
static int nymph_ring_submit_buffers(struct nymph_ring *ring,
				     const struct nymph_entry *entries, u32 n,
				     struct nymph_waiter *waiter, u32 *accepted)
{
	struct nymph_slot slot;
	int ret = 0;
	u64 now;
	u32 i;

	/* memory of the process is the most frequent of the rest */
	if (entries->length && !entries->src_buffer && !entries->dst_buffer)
		return 0;
	mutex_lock(&ring->lock);
	now = ktime_get_ns();
	for (i = 0; i < n; i++) {
		ret = nymph_slot_init(ring, &slot, &entries[i], waiter);
		if (ret || !nymph_entry_is_in_buffers(&slot.entry))
			break;
		trace_nymph_pin(ring, &slot.entry);
		ret = nymph_entry_prepare_locked(ring, &slot);
		if (ret)
			break;
		trace_nymph_pinned(ring, &slot.entry);
		/* in a trace one stage ends before the next one begins */
		if (trace_nymph_submit_enabled())
			now = ktime_get_ns();
		ret = nymph_ring_push(ring, &slot, now);
		if (ret) {
			nymph_entry_release(ring, &slot);
			break;
		}
		++*accepted;
	}
	mutex_unlock(&ring->lock);
	return ret;
}

/* Accepts an entry, whatever its memory is. */
static int nymph_ring_submit_one(struct nymph_ring *ring,
				 const struct nymph_entry *entry,
				 struct nymph_waiter *waiter)
{
	struct nymph_slot slot;
	int ret;

	ret = nymph_slot_init(ring, &slot, entry, waiter);
	if (ret)
		return ret;
	trace_nymph_pin(ring, entry);
	ret = nymph_entry_prepare(ring, &slot);
	if (ret)
		return ret;
	trace_nymph_pinned(ring, entry);
	mutex_lock(&ring->lock);
	ret = nymph_ring_push(ring, &slot, ktime_get_ns());
	mutex_unlock(&ring->lock);
	if (ret)
		nymph_entry_release(ring, &slot);
	return ret;
}

/**
 * nymph_ring_submit() - Accept entries until one is refused
 * @ring: a ring of current's memory
 * @entries: private copies, unchecked
 * @n: number of entries
 * @waiter: the caller, which counts entries with COMPLETE_SYNC
 * @accepted: is raised by the number of entries that were accepted
 *
 * The caller then runs the entries, or calls nymph_ring_kick().
 *
 * Return: 0; or why the first entry that was not accepted was refused: -ESTALE if the
 * ring was reset or replaced, or what docs/reference/requests.md says. Of that entry
 * nothing is kept.
 */
int nymph_ring_submit(struct nymph_ring *ring,
		      const struct nymph_entry *entries, u32 n,
		      struct nymph_waiter *waiter, u32 *accepted)
{
	u32 done = 0;
	int ret = 0;

	while (!ret && done < n) {
		ret = nymph_ring_submit_buffers(ring, entries + done, n - done,
						waiter, &done);
		if (ret || done == n)
			break;
		ret = nymph_ring_submit_one(ring, entries + done, waiter);
		done += !ret;
	}
	*accepted += done;
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

/* The engine that worked last on the entry under way. */
static u32 nymph_ring_engine_used(const struct nymph_ring *ring)
{
	return ring->transfer.engine ?: ring->engine->id;
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
		r->engine = nymph_ring_engine_used(ring);
		r->flags = t->record_flags;
		r->started_ns = t->started_ns;
		if (r->flags & NYMPH_RECORD_SRC_DIGEST)
			memcpy(r->src_digest, t->src_digest, NYMPH_DIGEST_SIZE);
		if (r->flags & NYMPH_RECORD_DST_DIGEST)
			memcpy(r->dst_digest, t->dst_digest, NYMPH_DIGEST_SIZE);
	}
	ring->reserved--;
	nymph_fifo_push(&ring->unread);
	if (ring->carried->eventfd)
		nymph_eventfd_raise(ring->carried->eventfd);
}

/*
 * Retires the entry at tail at time @now. No engine uses its memory any more, which is
 * released: who sees the end sees it unpinned.
 */
static void nymph_ring_retire_locked(struct nymph_ring *ring, int status,
				     u64 now)
{
	struct nymph_slot *slot = nymph_ring_oldest(ring);
	struct nymph_carried *carried = ring->carried;
	struct nymph_transfer *t = &ring->transfer;
	u64 done = t->active ? t->done : 0;

	lockdep_assert_held(&ring->lock);
	if (slot->entry.flags & NYMPH_DMA_FLAG_RECORD) {
		nymph_ring_leave_record(ring, slot, status, now);
	} else if (status) {
		if (!carried->errors++)
			carried->first_error = status;
	}
	nymph_transcript_add(&carried->transcript, &slot->entry, status,
			     t->active ? nymph_ring_engine_used(ring) : 0,
			     t->active ? t : NULL);
	if (slot->waiter) {
		slot->waiter->status = status;
		WRITE_ONCE(slot->waiter->pending, slot->waiter->pending - 1);
		slot->waiter = NULL;
	}
	ring->chain_broken = status && slot->entry.flags & NYMPH_DMA_FLAG_LINK;
	if (t->active && status != -ECANCELED)
		nymph_latency_add(&carried->latency, now - slot->queued_ns);
	trace_nymph_complete(ring, &slot->entry, done, status, now);
	if (!nymph_entry_moves(&slot->entry))
		done = 0;
	carried->dma_bytes += done;
	nymph_fifo_pop(&ring->active, 1);
	t->active = false;
	nymph_count(NYMPH_COUNT_BYTES, done);
	nymph_count(status ? NYMPH_COUNT_FAILED : NYMPH_COUNT_COMPLETED, 1);
}

/* Retires the entry at tail, in one step for all readers. Returns the time. */
static u64 nymph_ring_retire(struct nymph_ring *ring, int status)
{
	u64 now;

	nymph_entry_release(ring, nymph_ring_oldest(ring));
	mutex_lock(&ring->lock);
	now = ktime_get_ns();
	nymph_ring_retire_locked(ring, status, now);
	mutex_unlock(&ring->lock);
	if (wq_has_sleeper(&ring->ctx->wait))
		wake_up(&ring->ctx->wait);
	return now;
}

/*
 * Retires the entries of a batch, from number @first on, that have ended and need no
 * more work. Returns how many there are; @now is set if there are any.
 */
static unsigned int nymph_ring_retire_batch(struct nymph_ring *ring,
					    unsigned int first, unsigned int n,
					    u64 *now)
{
	unsigned int i, ended;

	for (ended = 0; first + ended < n; ended++) {
		struct nymph_slot *slot;

		slot = &ring->slots[nymph_fifo_at(&ring->active, ended)];
		if (!nymph_batch_has_ended(ring->batch, &slot->entry,
					   first + ended))
			break;
		nymph_entry_release(ring, slot);
	}
	if (!ended)
		return 0;
	mutex_lock(&ring->lock);
	*now = ktime_get_ns();
	for (i = 0; i < ended; i++) {
		struct nymph_slot *slot = nymph_ring_oldest(ring);

		nymph_transfer_start(&ring->transfer, &slot->entry,
				     ring->batch->started_ns);
		nymph_ring_retire_locked(ring, nymph_batch_land(ring, slot,
								first + i),
					 *now);
	}
	mutex_unlock(&ring->lock);
	if (wq_has_sleeper(&ring->ctx->wait))
		wake_up(&ring->ctx->wait);
	return ended;
}

/* Retires all entries of a dead ring. Current is its executor. */
static void nymph_ring_drain(struct nymph_ring *ring)
{
	/*
	 * Nobody adds to a dead ring, so this comes to an end; pairs with
	 * nymph_fifo_push(): the slot is filled.
	 */
	while (smp_load_acquire(&ring->active.count)) {
		nymph_ring_retire(ring, -ECANCELED);
		cond_resched();
	}
}

/* @now: the time at which the last entry ended; 0 if it is not recent */
static bool nymph_limits_reached(struct nymph_ring *ring,
				 const struct nymph_limits *limits, u64 now)
{
	if (limits->is_worker)
		return !nymph_worker_may_run(ring);
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

static int nymph_ring_step(struct nymph_ring *ring)
{
	struct nymph_slot *slot = nymph_ring_oldest(ring);
	u32 access;
	int ret;

	if (READ_ONCE(slot->canceled))
		return -ECANCELED;
	access = nymph_access_switch(slot->access);
	ret = nymph_transfer_step(ring, slot);
	nymph_access_switch(access);
	trace_nymph_landed(ring, 1);
	return ret;
}

/*
 * Runs several entries together, if they can be. Returns the time at which the last
 * of them retired, or 0.
 */
static u64 nymph_ring_run_batch(struct nymph_ring *ring)
{
	unsigned int i, n = nymph_batch_run(ring);
	u64 now = 0;

	if (n)
		trace_nymph_landed(ring, n);
	for (i = 0; i < n; i++) {
		struct nymph_slot *slot;
		int ret;

		i += nymph_ring_retire_batch(ring, i, n, &now);
		if (i == n)
			break;
		slot = nymph_ring_oldest(ring);
		nymph_transfer_start(&ring->transfer, &slot->entry,
				     ring->batch->started_ns);
		ret = nymph_batch_land(ring, slot, i);
		while (ret == NYMPH_STEP_MORE) {
			cond_resched();
			ret = nymph_ring_step(ring);
		}
		now = nymph_ring_retire(ring, ret);
	}
	return now;
}

/*
 * Starts the entry at tail, if none is under way, and runs a chunk of it. Returns
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
 * nymph_ring_execute() - Run queued entries, then stop being the executor
 * @ring: current is its executor
 * @limits: when to stop earlier, or NULL
 */
void nymph_ring_execute(struct nymph_ring *ring,
			const struct nymph_limits *limits)
{
	struct nymph_transfer *t = &ring->transfer;
	u64 now = 0, batched;
	int ret;

	for (;;) {
		if (READ_ONCE(ring->dead)) {
			nymph_ring_drain(ring);
			nymph_ring_clear_carried(ring);
			nymph_ring_end(ring, true);
			break;
		}
		if (limits && nymph_limits_reached(ring, limits, now))
			break;
		/* not whether it is runnable: it may be dead by now, and empty */
		if (!t->active && !nymph_ring_has_entry(ring))
			break;
		batched = t->active ? 0 : nymph_ring_run_batch(ring);
		if (batched) {
			now = batched;
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
 * nymph_ring_wait() - Wait until a caller's COMPLETE_SYNC entries have retired
 * @ring: the ring
 * @waiter: the caller
 *
 * The caller runs the entries, if nobody else does.
 *
 * Return: 0, or -EINTR if current is being killed; @waiter is not used any more.
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
 * nymph_clock_offset() - Get the offset of current's clock to the kernel's
 *
 * A time namespace shifts CLOCK_MONOTONIC for its processes.
 *
 * Return: nanoseconds, negative if it is behind.
 */
s64 nymph_clock_offset(void)
{
	struct timespec64 offset = {};

	timens_add_monotonic(&offset);
	return timespec64_to_ns(&offset);
}

/* Converts a time of the kernel's clock to current's; 0, never, stays 0. */
static u64 nymph_shift_time(u64 ns, s64 offset)
{
	return ns ? max_t(s64, 1, ns + offset) : 0;
}

/* Copies records out with times of current's clock; returns how many arrived whole. */
static u32 nymph_records_copy(struct iov_iter *to,
			      const struct nymph_record *records, u32 n)
{
	s64 offset = nymph_clock_offset();
	struct nymph_record r;
	size_t got;
	u32 i;

	if (!offset) {
		got = copy_to_iter(records, n * sizeof(r), to);
		iov_iter_revert(to, got % sizeof(r));
		return got / sizeof(r);
	}
	for (i = 0; i < n; i++) {
		r = records[i];
		r.queued_ns = nymph_shift_time(r.queued_ns, offset);
		r.started_ns = nymph_shift_time(r.started_ns, offset);
		r.completed_ns = nymph_shift_time(r.completed_ns, offset);
		got = copy_to_iter(&r, sizeof(r), to);
		if (got < sizeof(r)) {
			iov_iter_revert(to, got);
			break;
		}
	}
	return i;
}

/**
 * nymph_ring_reap() - Hand out completion records
 * @ring: the ring
 * @to: destination, with room for @max records less @reaped
 * @max: highest number of records
 * @reaped: number of records handed out before; raised
 * @count: user memory that is told @reaped, or NULL
 *
 * Return: 0, -EINTR, or -EFAULT: a record that did not arrive whole, or was not
 * counted, stays unread.
 */
int nymph_ring_reap(struct nymph_ring *ring, struct iov_iter *to, u32 max,
		    u32 *reaped, u32 __user *count)
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
		got = nymph_records_copy(to, &ring->records[first], n);
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

/**
 * nymph_ring_cancel() - Cancel the entries with a cookie
 * @ring: a live ring; the caller holds the context's lock, so it stays alive
 * @cookie: the cookie
 *
 * Return: number of entries that have it.
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
	if (found && nymph_ring_oldest(ring)->canceled)
		nymph_worker_interrupt(ring);
	mutex_unlock(&ring->lock);
	return found;
}

/**
 * nymph_ring_set_eventfd() - Set the eventfd that is raised for records
 * @ring: a live ring; the caller holds the context's lock, so it stays alive
 * @eventfd: eventfd that the ring owns from now on, or NULL
 *
 * Return: the eventfd before, which the caller owns now; or NULL.
 */
struct eventfd_ctx *nymph_ring_set_eventfd(struct nymph_ring *ring,
					   struct eventfd_ctx *eventfd)
{
	mutex_lock(&ring->lock);
	swap(ring->carried->eventfd, eventfd);
	mutex_unlock(&ring->lock);
	return eventfd;
}

/**
 * nymph_ring_latency() - Copy the times that entries took so far
 * @ring: a live ring; the caller holds the context's lock, so it stays alive
 * @to: filled
 */
void nymph_ring_latency(struct nymph_ring *ring, struct nymph_histogram *to)
{
	mutex_lock(&ring->lock);
	*to = ring->carried->latency;
	mutex_unlock(&ring->lock);
}

/**
 * nymph_ring_retire_idle() - End an idle ring whose place another takes
 * @ring: the old ring; nymph_ring_destroy() is next
 * @successor: the new ring, which gets the carried-over state
 *
 * Return: false if @ring is not idle; it stays as it is.
 */
bool nymph_ring_retire_idle(struct nymph_ring *ring, struct nymph_ring *successor)
{
	bool idle;

	mutex_lock(&ring->lock);
	idle = !ring->dead && !ring->active.count &&
	       !ring->unread.count;
	if (idle) {
		WRITE_ONCE(ring->dead, true);
		swap(successor->carried, ring->carried);
	}
	mutex_unlock(&ring->lock);
	return idle;
}

static void nymph_ring_refuse_all(struct nymph_ring *ring)
{
	mutex_lock(&ring->lock);
	WRITE_ONCE(ring->dead, true);
	mutex_unlock(&ring->lock);
	wake_up(&ring->ctx->wait);
}

/**
 * nymph_ring_kill() - Stop accepting entries, and end the running one at its next chunk
 * @ring: the ring
 *
 * The next executor cancels queued entries and ends the ring.
 */
void nymph_ring_kill(struct nymph_ring *ring)
{
	nymph_ring_refuse_all(ring);
	nymph_worker_interrupt(ring);
	nymph_worker_wake(ring);
}

/**
 * nymph_ring_orphan() - End a ring whose process has ended
 * @ring: current is its worker
 *
 * All queued entries are canceled and the process's memory is released, even if
 * another process has the file.
 */
void nymph_ring_orphan(struct nymph_ring *ring)
{
	mutex_lock(&ring->lock);
	WRITE_ONCE(ring->orphan, true);
	WRITE_ONCE(ring->dead, true);
	mutex_unlock(&ring->lock);
	nymph_ring_kick(ring);
	wake_up(&ring->ctx->wait);
}

/**
 * nymph_ring_destroy() - Drop the context's reference to a ring and end it
 * @ring: a ring that nobody can look up
 *
 * The ring has ended on return, unless the worker or a request is about to end it.
 */
void nymph_ring_destroy(struct nymph_ring *ring)
{
	nymph_ring_refuse_all(ring);
	if (nymph_ring_claim(ring))
		nymph_ring_execute(ring, NULL);
	nymph_ring_put(ring);
}

/* Tells whether current, which closes the file, owns the ring. */
static bool nymph_ring_is_currents(const struct nymph_ring *ring)
{
	return !(current->flags & PF_KTHREAD) &&
	       (current->mm == ring->mm || task_tgid(current) == ring->owner);
}

/**
 * nymph_ring_release() - End a ring whose file is closed
 * @ring: a ring that no request uses
 *
 * The function does not wait. If the owner closes the file, everything that is not
 * in use is released on return, and the worker releases the rest. If another
 * process closes it, the worker releases everything.
 */
void nymph_ring_release(struct nymph_ring *ring)
{
	bool is_currents = nymph_ring_is_currents(ring);

	nymph_ring_refuse_all(ring);
	if (is_currents && nymph_ring_claim(ring)) {
		nymph_ring_drain(ring);
		nymph_ring_clear_carried(ring);
		nymph_ring_end(ring, false);
		clear_bit_unlock(NYMPH_RING_EXECUTING, &ring->state);
	} else {
		nymph_worker_interrupt(ring);
		if (is_currents)
			nymph_ring_clear_carried(ring);
	}
	nymph_ring_kick(ring);
	nymph_ring_put(ring);
}
