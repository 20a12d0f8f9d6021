// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: entries that are moved and hashed side by side, a flight. An engine
 * that moves by itself is given all of them at once, and waited for once; and
 * many small inputs fill the lanes of a hash as one of them could not.
 *
 * Whoever looks sees no difference to one after the other: they are retired in
 * order, and no two are in a flight of which one writes what the other reads or
 * writes. What is seen of memory is its buffer and the offset into it, so all of
 * a flight is in buffers.
 */
#include <linux/align.h>
#include <linux/cache.h>
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "nymph.h"
#include "trace.h"

/* The longest inputs that are hashed faster side by side. */
#define NYMPH_FLIGHT_HASHED	SZ_16K

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

/* Whether an entry can fly at all, and gains by it. */
static bool nymph_slot_flies(const struct nymph_ring *ring,
			     const struct nymph_slot *slot)
{
	const struct nymph_entry *e = &slot->entry;

	if (!ring->engine->offloads &&
	    (!nymph_slot_is_hashed(slot) || e->length > NYMPH_FLIGHT_HASHED))
		return false;
	return nymph_entry_moves(e) && e->length <= NYMPH_PIECE &&
	       !(e->flags & NYMPH_DMA_FLAG_BARRIER) &&
	       !READ_ONCE(slot->canceled) && nymph_is_in_buffer(&slot->src) &&
	       nymph_is_in_buffer(&slot->dst);
}

static struct nymph_slot *nymph_flight_slot(struct nymph_ring *ring, u32 i)
{
	return &ring->slots[nymph_fifo_at(&ring->active, i)];
}

/* Whether entry @i, from tail on, can go along with all before it. */
static bool nymph_flight_takes(struct nymph_ring *ring, u32 i)
{
	const struct nymph_slot *slot = nymph_flight_slot(ring, i);
	u32 k;

	if (!nymph_slot_flies(ring, slot))
		return false;
	for (k = 0; k < i; k++)
		if (nymph_slots_conflict(nymph_flight_slot(ring, k), slot))
			return false;
	return true;
}

/* What an entry takes of the bounce buffer: no two have a cache line in common. */
static size_t nymph_flight_room(const struct nymph_slot *slot)
{
	return ALIGN(slot->entry.length, SMP_CACHE_BYTES);
}

/* How many entries, from tail on, can go together. */
static unsigned int nymph_flight_count(struct nymph_ring *ring)
{
	/* pairs with nymph_fifo_push(): so many slots are filled */
	u32 i, active = smp_load_acquire(&ring->active.count);
	size_t left = NYMPH_PIECE;

	active = min_t(u32, active, NYMPH_MAX_MOVES);
	if (active < 2 || ring->chain_broken)
		return 0;
	for (i = 0; i < active; i++) {
		struct nymph_slot *slot = nymph_flight_slot(ring, i);

		if (!nymph_flight_takes(ring, i) ||
		    nymph_flight_room(slot) > left)
			break;
		left -= nymph_flight_room(slot);
		/* what is behind it has to know how it ends */
		if (slot->entry.flags & NYMPH_DMA_FLAG_LINK)
			return i + 1;
	}
	return i;
}

/* Gets ready what can be moved side by side; returns how many entries. */
static unsigned int nymph_flight_prepare(struct nymph_ring *ring)
{
	unsigned int i, n = nymph_flight_count(ring);
	struct nymph_flight *flight = ring->flight;
	size_t at = 0;

	if (n < 2 || nymph_transfer_renew_bounce(ring))
		return 0;
	for (i = 0; i < n; i++) {
		struct nymph_slot *slot = nymph_flight_slot(ring, i);

		flight->room[i] = at;
		if (nymph_transfer_prepare(ring, slot, 0, slot->entry.length, 0,
					   at, &flight->moves[i]))
			break;
		at += nymph_flight_room(slot);
	}
	return i;
}

/*
 * Has the bytes of all entries with one of @flags, as they are at the source or
 * the destination, hashed. Those that are there no more are not hashed.
 */
static void nymph_flight_hash_side(struct nymph_ring *ring, u32 flags,
				   bool source, u8 to[][NYMPH_DIGEST_SIZE])
{
	struct nymph_flight *flight = ring->flight;
	unsigned int i, k = 0;

	for (i = 0; i < flight->nr; i++) {
		const struct nymph_slot *slot = nymph_flight_slot(ring, i);
		const struct nymph_move *move = &flight->moves[i];
		void *bytes = ring->bounce->data + flight->room[i];
		const struct nymph_operand *side;

		if (!flight->hashed[i] || !(slot->entry.flags & flags))
			continue;
		side = source ? move->src : move->dst;
		/* on the default path what was sent is there still */
		if (side && !nymph_pin_load(&side->region->pin, side->at, bytes,
					    slot->entry.length)) {
			flight->hashed[i] = false;
			continue;
		}
		flight->inputs[k].data = bytes;
		flight->inputs[k].len = slot->entry.length;
		flight->which[k++] = i;
	}
	nymph_blake3_hash_many(flight->batch, flight->inputs, k,
			       flight->digests);
	while (k--)
		memcpy(to[flight->which[k]], flight->digests[k],
		       NYMPH_DIGEST_SIZE);
}

/* What is sent, while an engine is at it. */
static void nymph_flight_hash_sent(void *arg)
{
	struct nymph_ring *ring = arg;
	struct nymph_flight *flight = ring->flight;
	unsigned int i;

	for (i = 0; i < flight->nr; i++)
		flight->hashed[i] =
			nymph_slot_is_hashed(nymph_flight_slot(ring, i));
	nymph_flight_hash_side(ring, NYMPH_DMA_FLAG_VERIFY_HASH, true,
			       flight->src);
}

/* What arrived; and what is there no more has failed. */
static void nymph_flight_hash_moved(struct nymph_ring *ring)
{
	struct nymph_flight *flight = ring->flight;
	bool arrived[NYMPH_MAX_MOVES];
	unsigned int i;

	for (i = 0; i < flight->nr; i++) {
		const struct nymph_slot *slot = nymph_flight_slot(ring, i);
		const struct nymph_move *move = &flight->moves[i];

		arrived[i] = nymph_slot_is_hashed(slot) && !move->status &&
			  move->done == slot->entry.length;
		flight->hashed[i] &= arrived[i];
	}
	nymph_flight_hash_side(ring, NYMPH_FLAGS_HASHED, false, flight->dst);
	for (i = 0; i < flight->nr; i++)
		if (arrived[i] && !flight->hashed[i])
			flight->moves[i].status = -EFAULT;
}

/**
 * nymph_flight_run() - move what can be moved side by side
 * @ring: current is its executor, and no entry is under way
 *
 * A flight is no longer than a piece, so that signals, deadlines and RESET are
 * looked at as often.
 *
 * Return: how many entries, from tail on, are to be started, landed with
 * nymph_flight_land() and retired; 0 if there are none for a flight.
 */
unsigned int nymph_flight_run(struct nymph_ring *ring)
{
	unsigned int i, n = nymph_flight_prepare(ring);
	struct nymph_flight *flight = ring->flight;

	if (n < 2)
		return 0;
	flight->nr = n;
	flight->started_ns = ktime_get_ns();
	for (i = 0; i < n; i++)
		trace_nymph_start(ring, &nymph_flight_slot(ring, i)->entry,
				  flight->started_ns);
	flight->moves->meanwhile = nymph_flight_hash_sent;
	flight->moves->meanwhile_arg = ring;
	nymph_engine_move(ring, flight->moves, n);
	nymph_flight_hash_moved(ring);
	return n;
}

/**
 * nymph_flight_land() - what became of an entry of a flight
 * @ring: current is its executor
 * @slot: the one at tail, started
 * @i: which of the flight it is
 *
 * Return: as nymph_transfer_step(), which is for what is left to do.
 */
int nymph_flight_land(struct nymph_ring *ring, struct nymph_slot *slot,
		      unsigned int i)
{
	const struct nymph_flight *flight = ring->flight;
	const struct nymph_move *move = &flight->moves[i];

	/* the engine takes less at a time: it is done all over, piece by piece */
	if (!move->status && move->done < slot->entry.length)
		return NYMPH_STEP_MORE;
	return nymph_transfer_land(ring, slot, move,
				   flight->hashed[i] ? flight->src[i] : NULL,
				   flight->hashed[i] ? flight->dst[i] : NULL);
}

/**
 * nymph_flight_create() - make what a ring's flights need
 * @engine: the ring's
 *
 * Return: it, to be freed with nymph_flight_free(); or NULL.
 */
struct nymph_flight *nymph_flight_create(const struct nymph_engine *engine)
{
	struct nymph_flight *flight;

	flight = kvmalloc_node(sizeof(*flight), GFP_KERNEL_ACCOUNT | __GFP_ZERO,
			       engine->node);
	if (!flight)
		return NULL;
	flight->batch = kvmalloc_node(nymph_blake3_batch_size(),
				      GFP_KERNEL_ACCOUNT, engine->node);
	if (!flight->batch) {
		kvfree(flight);
		return NULL;
	}
	return flight;
}

/**
 * nymph_flight_free() - the ring goes
 * @flight: what nymph_flight_create() made, or NULL
 */
void nymph_flight_free(struct nymph_flight *flight)
{
	if (flight)
		kvfree(flight->batch);
	kvfree(flight);
}
