// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: entries that an engine moves side by side, a flight. It is given
 * all of them at once, and waited for once.
 *
 * Whoever looks sees no difference to one after the other: they are retired in
 * order, and no two are in a flight of which one writes what the other reads or
 * writes. What is seen of memory is its buffer and the offset into it, so all of
 * a flight is in buffers.
 */
#include <linux/align.h>
#include <linux/cache.h>

#include "nymph.h"
#include "trace.h"

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

/* Whether an entry can fly at all. */
static bool nymph_slot_flies(const struct nymph_slot *slot)
{
	const struct nymph_entry *e = &slot->entry;

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

	if (!nymph_slot_flies(slot))
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

	active = min(active, ring->engine->max_moves);
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

/**
 * nymph_flight_gather() - get ready what can be moved side by side
 * @ring: current is its executor, and no entry is under way
 *
 * A flight is no longer than a piece, so that signals, deadlines and RESET are
 * looked at as often.
 *
 * Return: how many entries, from tail on, are in ring->moves; less than two are
 * not worth it.
 */
unsigned int nymph_flight_gather(struct nymph_ring *ring)
{
	unsigned int i, n = nymph_flight_count(ring);
	size_t at = 0;

	if (n < 2 || nymph_transfer_renew_bounce(ring))
		return 0;
	for (i = 0; i < n; i++) {
		struct nymph_slot *slot = nymph_flight_slot(ring, i);
		u64 len = slot->entry.length;

		if (nymph_transfer_prepare(ring, slot, 0, len, at,
					   &ring->moves[i]))
			break;
		at += nymph_flight_room(slot);
	}
	return i;
}
