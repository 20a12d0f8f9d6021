// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: batches: entries that are moved and hashed together. An engine that
 * offloads is given all moves of a batch at once, and the executor waits once. Many
 * small inputs fill the lanes of a hash that one of them could not fill.
 *
 * User space sees no difference to one entry after the other. Entries retire in
 * order, and no entry of a batch writes memory that another one reads or writes.
 * Buffer and offset decide whether memory overlaps, so all memory of a batch is in
 * buffers.
 */
#include <linux/align.h>
#include <linux/cache.h>
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "ring.h"
#include "trace.h"

/* The longest input that is hashed faster together with others. */
#define NYMPH_BATCH_HASHED	SZ_16K

static bool nymph_operands_overlap(const struct nymph_operand *a, u64 a_len,
				   const struct nymph_operand *b, u64 b_len)
{
	return a->used && b->used && a->region == b->region &&
	       a->at < b->at + b_len && b->at < a->at + a_len;
}

static bool nymph_slots_conflict(const struct nymph_slot *a,
				 const struct nymph_slot *b)
{
	u64 a_len = a->entry.length, b_len = b->entry.length;

	return nymph_operands_overlap(&a->dst, a_len, &b->dst, b_len) ||
	       nymph_operands_overlap(&a->dst, a_len, &b->src, b_len) ||
	       nymph_operands_overlap(&a->src, a_len, &b->dst, b_len);
}

/* A dma-buf may have to be waited for. */
static bool nymph_is_in_buffer(const struct nymph_operand *o)
{
	return !o->used || (o->region && !o->own && !o->region->pin.dmabuf);
}

/* Whether bytes of the entry are hashed. */
static bool nymph_slot_is_hashed(const struct nymph_slot *slot)
{
	return slot->entry.flags & NYMPH_FLAGS_HASHED;
}

/* Tells whether an entry can be in a batch, and gains by it. */
static bool nymph_slot_can_batch(const struct nymph_ring *ring,
				 const struct nymph_slot *slot)
{
	const struct nymph_entry *e = &slot->entry;

	if (!ring->engine->offloads &&
	    (!nymph_slot_is_hashed(slot) || e->length > NYMPH_BATCH_HASHED))
		return false;
	return nymph_entry_moves(e) && e->length <= NYMPH_CHUNK &&
	       !(e->flags & NYMPH_DMA_FLAG_BARRIER) &&
	       !READ_ONCE(slot->canceled) && nymph_is_in_buffer(&slot->src) &&
	       nymph_is_in_buffer(&slot->dst);
}

static struct nymph_slot *nymph_batch_slot(struct nymph_ring *ring, u32 i)
{
	return &ring->slots[nymph_fifo_at(&ring->active, i)];
}

/**
 * struct nymph_span - where one side of all entries of a batch lies
 * @region: memory of all, or NULL if they are in several regions
 * @start: lowest offset
 * @end: the end of the highest one
 */
struct nymph_span {
	const struct nymph_region *region;
	u64 start;
	u64 end;
};

static struct nymph_span nymph_span_of(const struct nymph_operand *o, u64 len)
{
	return (struct nymph_span) { o->region, o->at, o->at + len };
}

static void nymph_span_add(struct nymph_span *span, const struct nymph_span *add)
{
	if (span->region != add->region)
		span->region = NULL;
	span->start = min(span->start, add->start);
	span->end = max(span->end, add->end);
}

/* Tells whether a span cannot overlap with memory of one entry. */
static bool nymph_span_misses(const struct nymph_span *span,
			      const struct nymph_span *one)
{
	return span->region && (span->region != one->region ||
				span->end <= one->start ||
				one->end <= span->start);
}

/*
 * Tells whether entry @i, from tail on, can run with all entries before it. Most
 * batches go through two buffers from one end to the other: there the spans tell,
 * and the entries before need no look.
 */
static bool nymph_batch_takes(struct nymph_ring *ring, u32 i,
			      struct nymph_span *srcs, struct nymph_span *dsts)
{
	const struct nymph_slot *slot = nymph_batch_slot(ring, i);
	struct nymph_span src, dst;
	u32 k;

	if (!nymph_slot_can_batch(ring, slot))
		return false;
	/* a FILL has no source: its span is empty, in no region */
	src = nymph_span_of(&slot->src, slot->src.used ? slot->entry.length : 0);
	dst = nymph_span_of(&slot->dst, slot->entry.length);
	if (!i) {
		*srcs = src;
		*dsts = dst;
		return true;
	}
	if (!nymph_span_misses(dsts, &dst) || !nymph_span_misses(dsts, &src) ||
	    !nymph_span_misses(srcs, &dst))
		for (k = 0; k < i; k++)
			if (nymph_slots_conflict(nymph_batch_slot(ring, k),
						 slot))
				return false;
	nymph_span_add(srcs, &src);
	nymph_span_add(dsts, &dst);
	return true;
}

/* Room of an entry in the bounce buffer: no two share a cache line. */
static size_t nymph_batch_room(const struct nymph_slot *slot)
{
	return ALIGN(slot->entry.length, SMP_CACHE_BYTES);
}

/* Returns how many entries, from tail on, can run together. */
static unsigned int nymph_batch_count(struct nymph_ring *ring)
{
	/* pairs with nymph_fifo_push(): so many slots are filled */
	u32 i, active = smp_load_acquire(&ring->active.count);
	struct nymph_span srcs, dsts;
	size_t left = NYMPH_CHUNK;

	active = min_t(u32, active, NYMPH_MAX_MOVES);
	if (active < 2 || ring->chain_broken)
		return 0;
	for (i = 0; i < active; i++) {
		struct nymph_slot *slot = nymph_batch_slot(ring, i);

		if (!nymph_batch_takes(ring, i, &srcs, &dsts) ||
		    nymph_batch_room(slot) > left)
			break;
		left -= nymph_batch_room(slot);
		/* the next entry has to know how this one ends */
		if (slot->entry.flags & NYMPH_DMA_FLAG_LINK)
			return i + 1;
	}
	return i;
}

/* Prepares the moves of a batch; returns the number of entries. */
static unsigned int nymph_batch_prepare(struct nymph_ring *ring)
{
	unsigned int i, n = nymph_batch_count(ring);
	struct nymph_batch *batch = ring->batch;
	size_t at = 0;

	if (n < 2 || nymph_transfer_renew_bounce(ring))
		return 0;
	for (i = 0; i < n; i++) {
		struct nymph_slot *slot = nymph_batch_slot(ring, i);

		batch->room[i] = at;
		if (nymph_transfer_prepare(ring, slot, 0, slot->entry.length, 0,
					   at, &batch->moves[i]))
			break;
		at += nymph_batch_room(slot);
	}
	return i;
}

/*
 * Hashes the source or the destination of all entries with one of @flags. Memory
 * that is gone is not hashed.
 */
static void nymph_batch_hash_side(struct nymph_ring *ring, u32 flags,
				  bool source, u8 to[][NYMPH_DIGEST_SIZE])
{
	struct nymph_batch *batch = ring->batch;
	unsigned int i, k = 0;

	for (i = 0; i < batch->nr; i++) {
		const struct nymph_slot *slot = nymph_batch_slot(ring, i);
		const struct nymph_move *move = &batch->moves[i];
		void *room = ring->bounce->data + batch->room[i];
		const struct nymph_operand *side;
		const void *bytes = NULL;

		if (!batch->hashed[i] || !(slot->entry.flags & flags))
			continue;
		side = source ? move->src : move->dst;
		if (side)
			bytes = nymph_pin_in_place(&side->region->pin, side->at,
						   slot->entry.length);
		/* on the default path what was sent is in its room still */
		if (side && !bytes &&
		    !nymph_pin_load(&side->region->pin, side->at, room,
				    slot->entry.length)) {
			batch->hashed[i] = false;
			continue;
		}
		batch->inputs[k].data = bytes ?: room;
		batch->inputs[k].len = slot->entry.length;
		batch->which[k++] = i;
	}
	nymph_blake3_hash_many(batch->hasher, batch->inputs, k,
			       batch->digests);
	while (k--)
		memcpy(to[batch->which[k]], batch->digests[k],
		       NYMPH_DIGEST_SIZE);
}

/* Hashes what is sent, while the engine moves it. */
static void nymph_batch_hash_sent(void *arg)
{
	struct nymph_ring *ring = arg;
	struct nymph_batch *batch = ring->batch;
	unsigned int i;

	for (i = 0; i < batch->nr; i++)
		batch->hashed[i] =
			nymph_slot_is_hashed(nymph_batch_slot(ring, i));
	nymph_batch_hash_side(ring, NYMPH_DMA_FLAG_VERIFY_HASH, true,
			      batch->src);
}

/* Hashes what arrived. An entry whose memory is gone has failed. */
static void nymph_batch_hash_moved(struct nymph_ring *ring)
{
	struct nymph_batch *batch = ring->batch;
	bool arrived[NYMPH_MAX_MOVES];
	unsigned int i;

	for (i = 0; i < batch->nr; i++) {
		const struct nymph_slot *slot = nymph_batch_slot(ring, i);
		const struct nymph_move *move = &batch->moves[i];

		arrived[i] = nymph_slot_is_hashed(slot) && !move->status &&
			  move->done == slot->entry.length;
		batch->hashed[i] &= arrived[i];
	}
	nymph_batch_hash_side(ring, NYMPH_FLAGS_HASHED, false, batch->dst);
	for (i = 0; i < batch->nr; i++)
		if (arrived[i] && !batch->hashed[i])
			batch->moves[i].status = -EFAULT;
}

/**
 * nymph_batch_run() - Move the entries that can run together
 * @ring: current is its executor, and no entry is under way
 *
 * A batch is no longer than a chunk, so that the executor checks for signals,
 * deadlines and RESET as often.
 *
 * Return: number of entries, from tail on, to be started, landed with
 * nymph_batch_land() and retired; 0 if no entries can run together.
 */
unsigned int nymph_batch_run(struct nymph_ring *ring)
{
	unsigned int i, n = nymph_batch_prepare(ring);
	struct nymph_batch *batch = ring->batch;

	if (n < 2)
		return 0;
	batch->nr = n;
	batch->started_ns = ktime_get_ns();
	for (i = 0; i < n; i++)
		trace_nymph_start(ring, &nymph_batch_slot(ring, i)->entry,
				  batch->started_ns);
	batch->moves->overlap = nymph_batch_hash_sent;
	batch->moves->overlap_arg = ring;
	nymph_engine_move(ring, batch->moves, n);
	nymph_batch_hash_moved(ring);
	return n;
}

/**
 * nymph_batch_has_ended() - Tell whether one entry of a batch needs no more work
 * @batch: the ring's, that has run
 * @entry: the entry
 * @i: its index in the batch
 *
 * Return: true if all of it is moved, and hashed as it asks for.
 */
bool nymph_batch_has_ended(const struct nymph_batch *batch,
			   const struct nymph_entry *entry, unsigned int i)
{
	const struct nymph_move *move = &batch->moves[i];

	return !move->status && move->done == entry->length &&
	       (batch->hashed[i] || !(entry->flags & NYMPH_FLAGS_HASHED));
}

/**
 * nymph_batch_land() - Take in the result of one entry of a batch
 * @ring: current is its executor
 * @slot: the one at tail, started
 * @i: its index in the batch
 *
 * Return: as nymph_transfer_step(), which is for what is left to do.
 */
int nymph_batch_land(struct nymph_ring *ring, struct nymph_slot *slot,
		     unsigned int i)
{
	const struct nymph_batch *batch = ring->batch;
	const struct nymph_move *move = &batch->moves[i];

	/* the engine takes less at a time: do the entry again, chunk by chunk */
	if (!move->status && move->done < slot->entry.length)
		return NYMPH_STEP_MORE;
	return nymph_transfer_land(ring, slot, move,
				   batch->hashed[i] ? batch->src[i] : NULL,
				   batch->hashed[i] ? batch->dst[i] : NULL);
}

/**
 * nymph_batch_create() - Allocate what the batches of a ring need
 * @engine: the ring's
 *
 * Return: it, to be freed with nymph_batch_free(); or NULL.
 */
struct nymph_batch *nymph_batch_create(const struct nymph_engine *engine)
{
	struct nymph_batch *batch;

	batch = kvmalloc_node(sizeof(*batch), NYMPH_GFP_SIZED | __GFP_ZERO,
			      engine->node);
	if (!batch)
		return NULL;
	batch->hasher = kvmalloc_node(nymph_blake3_batch_size(),
				      NYMPH_GFP_SIZED, engine->node);
	if (!batch->hasher) {
		kvfree(batch);
		return NULL;
	}
	return batch;
}

/**
 * nymph_batch_free() - Free what nymph_batch_create() allocated
 * @batch: what nymph_batch_create() made, or NULL
 */
void nymph_batch_free(struct nymph_batch *batch)
{
	if (batch)
		kvfree(batch->hasher);
	kvfree(batch);
}
