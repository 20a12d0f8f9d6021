/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * BLAKE3: what its variants for SIMD have in common with the rest of it.
 */
#ifndef _NYMPH_BLAKE3_VARIANT_H
#define _NYMPH_BLAKE3_VARIANT_H

#ifndef __KERNEL__
#include <stdbool.h>
#define __aligned(bytes)	__attribute((aligned(bytes)))
#define noinline		__attribute((noinline))
#define U32_MAX			((u32)~0U)
#define READ_ONCE(x)		__atomic_load_n(&(x), __ATOMIC_RELAXED)
#define WRITE_ONCE(x, value)	__atomic_store_n(&(x), value, __ATOMIC_RELAXED)
#endif

#include "blake3.h"

/* What a compression is part of. */
enum {
	CHUNK_START = 0x01,
	CHUNK_END = 0x02,
	PARENT = 0x04,
	ROOT = 0x08,
	KEYED_HASH = 0x10,
	DERIVE_KEY_CONTEXT = 0x20,
	DERIVE_KEY_MATERIAL = 0x40,
};

#define NYMPH_BLAKE3_CHUNK_SIZE	1024

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
 * @ahead: how far from each input what is wanted next is, or 0
 */
struct nymph_blake3_task {
	u32 key[8];
	u64 counter;
	bool counts;
	size_t blocks;
	u32 flags;
	u32 first;
	u32 last;
	size_t ahead[2];
};

static inline u32 nymph_blake3_flags(const struct nymph_blake3_task *task,
				     size_t block)
{
	return task->flags | (block == 0 ? task->first : 0) |
	       (block == task->blocks - 1 ? task->last : 0);
}

/**
 * struct nymph_blake3_job - a chunk or a parent, of any input
 * @in: where its blocks are, but for the last
 * @end: where the last is: 64 bytes
 * @blocks: how many
 * @len: bytes that the last has; the others are zeros
 * @counter: chunk number, or 0
 * @first: flags of the first block
 * @last: flags of the last block
 */
struct nymph_blake3_job {
	const u8 *in;
	const u8 *end;
	u32 blocks;
	u32 len;
	u64 counter;
	u32 first;
	u32 last;
};

/**
 * struct nymph_blake3_variant - code for some kind of CPU
 * @name: of the instruction set
 * @hash: of @n inputs, 1 to NYMPH_BLAKE3_MANY, writes a chaining value of 32 bytes
 *	each to @out
 * @compress: one block of @len bytes and zeros, started from @cv, to all of @out
 * @many: of @n jobs that have no key, 1 to NYMPH_BLAKE3_MANY, as @hash; fastest if
 *	they have as many blocks each
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
	void (*many)(const struct nymph_blake3_job *jobs, size_t n, u8 *out);
};

extern const struct nymph_blake3_variant nymph_blake3_sse41;
extern const struct nymph_blake3_variant nymph_blake3_avx2;
extern const struct nymph_blake3_variant nymph_blake3_avx512;
extern const struct nymph_blake3_variant nymph_blake3_neon;

const struct nymph_blake3_variant *nymph_blake3_simd_begin(size_t len);
void nymph_blake3_simd_end(const struct nymph_blake3_variant *variant);
void nymph_blake3_use(const struct nymph_blake3_variant *variant);

#endif /* _NYMPH_BLAKE3_VARIANT_H */
