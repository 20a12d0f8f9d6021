/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * BLAKE3 for the kernel and for user space.
 */
#ifndef _NYMPH_BLAKE3_H
#define _NYMPH_BLAKE3_H

#include <linux/types.h>

#ifndef __KERNEL__
#include <stddef.h>

typedef __u8 u8;
typedef __u32 u32;
typedef __u64 u64;
#endif

#define NYMPH_BLAKE3_OUT_SIZE	32
#define NYMPH_BLAKE3_KEY_SIZE	32
#define NYMPH_BLAKE3_BLOCK_SIZE	64

/* Leaves of the largest subtree that is hashed at a time. */
#define NYMPH_BLAKE3_SUBTREE	128

/*
 * 2^64 bytes are 2^54 leaves, so at most 54 subtrees are complete. A subtree of 2^7
 * leaves starts behind at most 54 - 7 of them. Hashing it takes 16 chaining values
 * for each doubling from 16 leaves on, and 16 for their siblings.
 */
#define NYMPH_BLAKE3_STACK	(54 - 7 + 16 * (7 - 4 + 1))

/**
 * struct nymph_blake3 - state of a hash to which input is added
 * @key: chaining value that every leaf and parent starts from
 * @cv: chaining value of the leaf being filled
 * @counter: whole leaves before the leaf being filled
 * @flags: mode, part of every compression
 * @blocks: number of blocks of the leaf being filled that @cv contains
 * @block_len: bytes in @block
 * @depth: number of subtrees in @stack
 * @block: last bytes of the leaf being filled; empty only if the leaf is
 * @stack: chaining values of whole subtrees, oldest and largest first. The room
 *	behind them is where more are computed
 *
 * The struct has almost 4 KiB: too much for the kernel's stack. If the key is
 * secret, the caller wipes the struct.
 */
struct nymph_blake3 {
	u32 key[8];
	u32 cv[8];
	u64 counter;
	u32 flags;
	u8 blocks;
	u8 block_len;
	u8 depth;
	u8 block[NYMPH_BLAKE3_BLOCK_SIZE];
	u8 stack[NYMPH_BLAKE3_STACK][NYMPH_BLAKE3_OUT_SIZE];
};

/**
 * struct nymph_blake3_input - one input of nymph_blake3_hash_many()
 * @data: bytes, at any alignment
 * @len: number of bytes
 */
struct nymph_blake3_input {
	const void *data;
	size_t len;
};

struct nymph_blake3_batch;

void nymph_blake3_init(struct nymph_blake3 *b);
void nymph_blake3_init_keyed(struct nymph_blake3 *b,
			     const u8 key[NYMPH_BLAKE3_KEY_SIZE]);
void nymph_blake3_init_derive_key(struct nymph_blake3 *b, const void *context,
				  size_t len);
void nymph_blake3_update(struct nymph_blake3 *b, const void *data, size_t len);
void nymph_blake3_update_copy(struct nymph_blake3 *b, void *dst,
			      const void *src, size_t len);
u64 nymph_blake3_len(const struct nymph_blake3 *b);
void nymph_blake3_fork(struct nymph_blake3 *part, const struct nymph_blake3 *b,
		       u64 at);
void nymph_blake3_join(struct nymph_blake3 *b, struct nymph_blake3 *part);
void nymph_blake3_final(const struct nymph_blake3 *b,
			u8 out[NYMPH_BLAKE3_OUT_SIZE]);
void nymph_blake3_final_xof(const struct nymph_blake3 *b, u64 seek, void *out,
			    size_t len);

size_t nymph_blake3_batch_size(void);
void nymph_blake3_hash_many(struct nymph_blake3_batch *batch,
			    const struct nymph_blake3_input *in, size_t n,
			    u8 out[][NYMPH_BLAKE3_OUT_SIZE]);

#endif /* _NYMPH_BLAKE3_H */
