// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: the ring's hash. Its input is little-endian on every machine.
 */
#include <linux/kernel.h>

#include "nymph.h"

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
 * nymph_ring_digest() - BLAKE3-256 of a ring's state
 * @ring: as GET_RING gives it
 * @entries: the active entries from tail on
 * @nr_entries: how many
 * @dma_bytes: bytes moved so far
 * @digest: filled
 * @hash: to work with, too large for the stack
 */
void nymph_ring_digest(const struct nymph_dma_ring *ring,
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
