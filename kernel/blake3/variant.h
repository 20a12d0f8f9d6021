/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * BLAKE3: interface between the variants for SIMD and the code that uses them.
 */
#ifndef _NYMPH_BLAKE3_VARIANT_H
#define _NYMPH_BLAKE3_VARIANT_H

#ifdef NYMPH_NEON_TAKES_STATE
#include <asm/ptrace.h>
#endif

#ifndef __KERNEL__
#include <stdbool.h>
#define __aligned(bytes)	__attribute((aligned(bytes)))
#define noinline		__attribute((noinline))
#define U32_MAX			((u32)~0U)
#define READ_ONCE(x)		__atomic_load_n(&(x), __ATOMIC_RELAXED)
#define WRITE_ONCE(x, value)	__atomic_store_n(&(x), value, __ATOMIC_RELAXED)
#endif

#include "blake3.h"

/* Flags of a compression, named as in BLAKE3's specification. A chunk is a leaf. */
enum {
	CHUNK_START = 0x01,
	CHUNK_END = 0x02,
	PARENT = 0x04,
	ROOT = 0x08,
	KEYED_HASH = 0x10,
	DERIVE_KEY_CONTEXT = 0x20,
	DERIVE_KEY_MATERIAL = 0x40,
};

#define NYMPH_BLAKE3_LEAF_SIZE	1024

/* Highest number of inputs that a variant is given at a time. */
#define NYMPH_BLAKE3_MANY	16

/**
 * struct nymph_blake3_task - parameters that several leaves or parents share
 * @key: chaining value that each starts from
 * @counter: leaf number of the first input, or 0
 * @counts: whether the leaf number of each other input is one more
 * @blocks: number of blocks of 64 bytes that each input has
 * @flags: flags of all blocks
 * @first: additional flags of the first block
 * @last: additional flags of the last block
 * @ahead: distance in bytes from each input to the bytes to prefetch; 0 for none
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
 * struct nymph_blake3_job - a leaf or a parent of any input
 * @in: all blocks but the last
 * @end: the last block, 64 bytes
 * @blocks: number of blocks
 * @len: bytes of input in the last block; zeros follow them
 * @counter: leaf number, or 0
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
 * struct nymph_blake3_variant - code for one instruction set
 * @name: name of the instruction set
 * @hash: hashes @n inputs, 1 to NYMPH_BLAKE3_MANY, and writes a chaining value of 32
 *	bytes for each to @out
 * @compress: compresses a block of @len bytes, with zeros behind, from @cv to all
 *	words of @out
 * @many: hashes @n jobs without a key, 1 to NYMPH_BLAKE3_MANY, as @hash does;
 *	fastest if all have the same number of blocks
 *
 * The kernel calls these between nymph_blake3_simd_begin() and
 * nymph_blake3_simd_end().
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

/**
 * struct nymph_blake3_simd - a section that hashes, on its caller's stack
 * @variant: the variant to hash with
 * @state: the kernel saves the vector registers of a section that is preempted
 *	here; kernels without NYMPH_NEON_TAKES_STATE have memory of their own
 */
struct nymph_blake3_simd {
	const struct nymph_blake3_variant *variant;
#ifdef NYMPH_NEON_TAKES_STATE
	struct user_fpsimd_state state;
#endif
};

const struct nymph_blake3_variant *
nymph_blake3_simd_begin(struct nymph_blake3_simd *simd, size_t len);
void nymph_blake3_simd_end(struct nymph_blake3_simd *simd);
void nymph_blake3_use(const struct nymph_blake3_variant *variant);

#endif /* _NYMPH_BLAKE3_VARIANT_H */
