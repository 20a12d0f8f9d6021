/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * BLAKE3: what its variants for SIMD have in common with the rest of it.
 */
#ifndef _NYMPH_BLAKE3_VARIANT_H
#define _NYMPH_BLAKE3_VARIANT_H

#ifndef __KERNEL__
#include <stdbool.h>
#define READ_ONCE(x)		__atomic_load_n(&(x), __ATOMIC_RELAXED)
#define WRITE_ONCE(x, value)	__atomic_store_n(&(x), value, __ATOMIC_RELAXED)
#endif

#include "blake3.h"

/* The most inputs a variant is given at a time. */
#define NYMPH_BLAKE3_MANY	16

/**
 * struct nymph_blake3_task - what inputs of one kind have in common
 * @key: chaining value that each starts from
 * @counter: chunk number of the first, or 0
 * @counts: the others' are one more each
 * @blocks: blocks of 64 bytes each has
 * @flags: of all blocks
 * @first: more flags, of the first block
 * @last: more flags, of the last block
 */
struct nymph_blake3_task {
	u32 key[8];
	u64 counter;
	bool counts;
	size_t blocks;
	u32 flags;
	u32 first;
	u32 last;
};

static inline u32 nymph_blake3_flags(const struct nymph_blake3_task *task,
				     size_t block)
{
	return task->flags | (block == 0 ? task->first : 0) |
	       (block == task->blocks - 1 ? task->last : 0);
}

/**
 * struct nymph_blake3_variant - code for some kind of CPU
 * @name: of the instruction set
 * @hash: of @n inputs, 1 to NYMPH_BLAKE3_MANY, writes a chaining value of 32 bytes
 *	each to @out
 * @compress: one block of @len bytes and zeros, started from @cv, to all of @out
 *
 * In the kernel they are called where SIMD may be used.
 */
struct nymph_blake3_variant {
	const char *name;
	void (*hash)(const u8 *const *in, size_t n,
		     const struct nymph_blake3_task *task, u8 *out);
	void (*compress)(const u32 cv[8],
			 const u8 block[NYMPH_BLAKE3_BLOCK_SIZE], u32 len,
			 u64 counter, u32 flags, u32 out[16]);
};

extern const struct nymph_blake3_variant nymph_blake3_sse41;
extern const struct nymph_blake3_variant nymph_blake3_avx2;
extern const struct nymph_blake3_variant nymph_blake3_avx512;

void nymph_blake3_use(const struct nymph_blake3_variant *variant);

#endif /* _NYMPH_BLAKE3_VARIANT_H */
