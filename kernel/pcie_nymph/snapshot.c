// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: the state of a ring at one moment, and the ring hash over it. The
 * input of the hash is little-endian on every machine.
 */
#include <linux/kernel.h>
#include <linux/mutex.h>
#include <linux/overflow.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "ring.h"

static void nymph_hash_words(struct nymph_blake3 *hash, const u64 *words,
			     unsigned int nr)
{
	__le64 le[sizeof(struct nymph_entry) / sizeof(__le64)];
	unsigned int i;

	for (i = 0; i < nr; i++)
		le[i] = cpu_to_le64(words[i]);
	nymph_blake3_update(hash, le, nr * sizeof(*le));
}

/**
 * nymph_ring_digest() - Compute the BLAKE3-256 digest of a ring's state
 * @ring: size and indices, as in GET_RING
 * @entries: the active entries from tail on
 * @nr_entries: number of @entries
 * @dma_bytes: number of bytes moved
 * @digest: filled
 * @hash: working memory, too large for the stack
 */
static void nymph_ring_digest(const struct nymph_dma_ring *ring,
			      const struct nymph_entry *entries, u32 nr_entries,
			      u64 dma_bytes, u8 digest[NYMPH_DIGEST_SIZE],
			      struct nymph_blake3 *hash)
{
	const struct nymph_entry *e;
	u64 words[] = {
		ring->ring_size | (u64)ring->head << 32,
		ring->tail | (u64)ring->reserved << 32,
		ring->ring_addr,
	};

	nymph_blake3_init(hash);
	nymph_hash_words(hash, words, ARRAY_SIZE(words));

	for (e = entries; e < entries + nr_entries; e++) {
		u64 entry[] = {
			e->size | (u64)e->opcode << 16 | (u64)e->flags << 32,
			e->length,
			e->src,
			e->dst,
			e->src_buffer | (u64)e->dst_buffer << 32,
			e->cookie,
			e->reserved[0],
			e->reserved[1],
		};

		nymph_hash_words(hash, entry, ARRAY_SIZE(entry));
	}

	nymph_hash_words(hash, &dma_bytes, 1);
	nymph_blake3_final(hash, digest);
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
 * nymph_ring_indices() - Report size, indices and label of a ring
 * @ring: the ring
 * @out: filled
 */
void nymph_ring_indices(struct nymph_ring *ring, struct nymph_dma_ring *out)
{
	mutex_lock(&ring->lock);
	nymph_ring_fill(ring, out);
	mutex_unlock(&ring->lock);
}

/* Working memory of nymph_ring_snapshot(). */
struct nymph_snapshot_copy {
	struct nymph_blake3 hash;
	u32 room;
	struct nymph_entry entries[];
};

/*
 * Returns the number of active entries, or -ESTALE. Fills @copy if it has room for
 * them.
 */
static int nymph_ring_copy(struct nymph_ring *ring, struct nymph_snapshot *snap,
			   struct nymph_snapshot_copy *copy)
{
	struct nymph_transcript *transcript;
	int i, active;

	mutex_lock(&ring->lock);
	active = ring->dead ? -ESTALE : ring->active.count;
	if (active >= 0 && active <= copy->room) {
		nymph_ring_fill(ring, &snap->ring);
		snap->dma_bytes = ring->carried->dma_bytes;
		snap->active_descriptors = active;
		snap->unread_records = ring->unread.count;
		snap->errors = ring->carried->errors;
		snap->first_error = ring->carried->first_error;
		snap->state = ring->paused ? NYMPH_STATE_PAUSED : 0;
		snap->engine = ring->engine->id;
		transcript = &ring->carried->transcript;
		nymph_transcript_read(transcript, snap->transcript);
		snap->transcript_count = transcript->count;
		snap->transcript_id = transcript->id;
		for (i = 0; i < active; i++)
			copy->entries[i] =
				ring->slots[nymph_fifo_at(&ring->active, i)].entry;
	}
	mutex_unlock(&ring->lock);
	return active;
}

/**
 * nymph_ring_snapshot() - Report the state of a ring at one moment, and its hash
 * @ring: the ring, or NULL if there is none
 * @snap: the out fields are filled
 * @to: destination of the active entries, or NULL
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
				NYMPH_GFP_SIZED);
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
	if (!ring) {
		nymph_transcript_start_hash(&copy->hash);
		nymph_blake3_final(&copy->hash, snap->transcript);
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
