/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * BLAKE3 in vectors, which the compiler turns into the CPU's instructions. A
 * variant includes this file, and defines before that
 *
 * NAME, NAME_TEXT: name of the struct, and of the instruction set
 * HAS_8, HAS_16: if the CPU has vectors of 8 and of 16 words beside those of 4
 * HAS_ROTATE: if the CPU rotates words; else SHUFFLE_BYTES(v, by), which moves the
 *	bytes of every 128 bits
 * KEEP(v): a barrier that keeps the compiler from reordering the making of @v
 * FEW_REGISTERS: if the CPU has only 16 vector registers
 */
#ifdef __KERNEL__
#include <linux/string.h>
#include <linux/types.h>
#else
#include <string.h>
#endif

#include "constants.h"
#include "variant.h"

/* sparse does not know vectors */
#ifndef __CHECKER__

typedef u32 quad __attribute__((vector_size(16)));

static __always_inline quad load_quad(const u8 *from)
{
	quad q;

	memcpy(&q, from, sizeof(q));
	return q;
}

static __always_inline void store_quad(u32 *to, quad q)
{
	memcpy(to, &q, sizeof(q));
}

#ifndef HAS_ROTATE
static const u8 ror16_bytes[32] __aligned(32) = {
	2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13,
	2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13,
};

static const u8 ror8_bytes[32] __aligned(32) = {
	1, 2, 3, 0, 5, 6, 7, 4, 9, 10, 11, 8, 13, 14, 15, 12,
	1, 2, 3, 0, 5, 6, 7, 4, 9, 10, 11, 8, 13, 14, 15, 12,
};
#endif

#ifdef HAS_8
typedef u64 pair __attribute__((vector_size(16)));
typedef u32 oct __attribute__((vector_size(32)));

static __always_inline oct join_quads(quad a, quad b)
{
	return (oct)__builtin_shufflevector((pair)a, (pair)b, 0, 1, 2, 3);
}
#endif

#ifdef HAS_8
/*
 * Loads the second half from memory: that needs no shuffle unit, unlike the code of
 * gcc 12.
 */
static __always_inline oct load_quads_2(const u8 *a, const u8 *b)
{
	oct o;

	asm("vinserti128 $1, %2, %t1, %0"
	    : "=x" (o)
	    : "x" (load_quad(a)), "m" (*(const u8 (*)[16])b));
	return o;
}
#endif

/* Indices into two vectors of LANES words: of the first 128 bits of each. */
#define WORD_0	0
#define WORD_1	1
#define WORD_2	2
#define WORD_3	3
#define WORD_4	(LANES)
#define WORD_5	(LANES + 1)
#define WORD_6	(LANES + 2)
#define WORD_7	(LANES + 3)

#define LONG_0	0
#define LONG_1	1
#define LONG_2	(LANES / 2)
#define LONG_3	(LANES / 2 + 1)

#ifdef HAS_16
typedef u64 four __attribute__((vector_size(32)));
typedef u32 hex __attribute__((vector_size(64)));

static __always_inline oct load_oct(const u8 *from)
{
	oct o;

	memcpy(&o, from, sizeof(o));
	return o;
}

static __always_inline hex join_octs(oct a, oct b)
{
	return (hex)__builtin_shufflevector((four)a, (four)b, 0, 1, 2, 3, 4, 5,
					    6, 7);
}

static __always_inline hex load_octs_2(const u8 *a, const u8 *b)
{
	hex h;

	asm("vinserti64x4 $1, %2, %g1, %0"
	    : "=v" (h)
	    : "v" (load_oct(a)), "m" (*(const u8 (*)[32])b));
	return h;
}

static __always_inline hex load_quads_4(const u8 *a, const u8 *b, const u8 *c,
					const u8 *d)
{
	hex h;

	asm("vinserti32x4 $1, %2, %g1, %0\n\t"
	    "vinserti32x4 $2, %3, %0, %0\n\t"
	    "vinserti32x4 $3, %4, %0, %0"
	    : "=&v" (h)
	    : "v" (load_quad(a)), "m" (*(const u8 (*)[16])b),
	      "m" (*(const u8 (*)[16])c), "m" (*(const u8 (*)[16])d));
	return h;
}

#define LANES	16
#define WIDE(name)	name##_16
#include "wide.h"
#undef LANES
#undef WIDE
#endif

#ifdef HAS_8
#define LANES	8
#define WIDE(name)	name##_8
#include "wide.h"
#undef LANES
#undef WIDE
#endif

#if defined(HAS_16)
#define WIDEST	16
#define WIDEST_HASH	hash_16
#define WIDEST_MANY	many_16
#elif defined(HAS_8)
#define WIDEST	8
#define WIDEST_HASH	hash_8
#define WIDEST_MANY	many_8
#else
#define WIDEST	4
#define WIDEST_HASH	hash_4
#define WIDEST_MANY	many_4
#endif

#ifdef HAS_8
#define ROWS_ONLY
#endif
#define LANES	4
#define WIDE(name)	name##_4
#include "wide.h"
#undef LANES
#undef WIDE

/* Compresses one block; implements nymph_blake3_variant.compress. */
static void compress(const u32 cv[8], const u8 block[NYMPH_BLAKE3_BLOCK_SIZE],
		     u32 len, u64 counter, u32 flags, u32 out[16])
{
	quad m[4], row[4], h[2];
	int i;

#pragma GCC unroll 8
	for (i = 0; i < 4; i++)
		m[i] = load_quad(block + 16 * i);
	arrange_4(m);
	h[0] = load_quad((const u8 *)cv);
	h[1] = load_quad((const u8 *)(cv + 4));
	row[0] = h[0];
	row[1] = h[1];
	row[2] = load_quad((const u8 *)nymph_blake3_iv);
	row[3] = (quad){ (u32)counter, (u32)(counter >> 32), len, flags };
#pragma GCC unroll 8
	for (i = 0; i < 7; i++) {
		mix_rows_4(row, m[0], false);
		mix_rows_4(row, m[1], true);
		turn_rows_4(row, false);
		mix_rows_4(row, m[2], false);
		mix_rows_4(row, m[3], true);
		turn_rows_4(row, true);
		if (i < 6)
			permute_4(m);
	}
	store_quad(out, row[0] ^ row[2]);
	store_quad(out + 4, row[1] ^ row[3]);
	store_quad(out + 8, row[2] ^ h[0]);
	store_quad(out + 12, row[3] ^ h[1]);
}

static void hash_1(const u8 *const *in, const struct nymph_blake3_task *task,
		   u8 *out)
{
	hash_rows_4(in, 1, task, out, 1);
}

static void hash_2(const u8 *const *in, const struct nymph_blake3_task *task,
		   u8 *out)
{
#ifdef HAS_8
	hash_rows_8(in, 2, task, out, 1);
#else
	hash_rows_4(in, 2, task, out, 2);
#endif
}

/* Reads all four of @in, and writes the outputs of the first @n. */
static void hash_3_or_4(const u8 *const *in, size_t n,
			const struct nymph_blake3_task *task, u8 *out)
{
#ifdef HAS_16
	hash_rows_16(in, n, task, out, 1);
#elif defined(HAS_8)
	hash_rows_8(in, n, task, out, 2);
#else
	hash_4(in, n, task, out);
#endif
}

/*
 * Implements nymph_blake3_variant.hash, with the narrowest vectors that take all @n
 * inputs. Lanes that are left over hash the last input again.
 */
static void hash(const u8 *const *in, size_t n,
		 const struct nymph_blake3_task *task, u8 *out)
{
	const u8 *lanes[WIDEST];
	struct nymph_blake3_task rest;
	size_t i;

	if (n > WIDEST) {
		rest = *task;
		task = &rest;
		for (; n > WIDEST; n -= WIDEST) {
			WIDEST_HASH(in, WIDEST, &rest, out);
			in += WIDEST;
			out += 32 * WIDEST;
			rest.counter += rest.counts ? WIDEST : 0;
		}
	}
	if (n == 1) {
		hash_1(in, task, out);
		return;
	}
	if (n == 2) {
		hash_2(in, task, out);
		return;
	}
	if (n != 4 && n != 8 && n != WIDEST) {
		for (i = 0; i < WIDEST; i++)
			lanes[i] = in[i < n ? i : n - 1];
		in = lanes;
	}
	if (n <= 4)
		hash_3_or_4(in, n, task, out);
#ifdef HAS_16
	else if (n <= 8)
		hash_8(in, n, task, out);
#endif
	else
		WIDEST_HASH(in, n, task, out);
}

static void many_1(const struct nymph_blake3_job *job, u8 *out)
{
	struct nymph_blake3_task task = {
		.counter = job->counter,
		.blocks = job->blocks - 1,
		.first = job->first,
	};
	u32 cv[8], all[16];

	memcpy(task.key, nymph_blake3_iv, sizeof(task.key));
	hash_1(&job->in, &task, (u8 *)cv);
	compress(cv, job->end, job->len, job->counter,
		 job->last | (job->blocks == 1 ? job->first : 0), all);
	memcpy(out, all, NYMPH_BLAKE3_OUT_SIZE);
}

static void many(const struct nymph_blake3_job *jobs, size_t n, u8 *out)
{
	for (; n > WIDEST; n -= WIDEST) {
		WIDEST_MANY(jobs, WIDEST, out);
		jobs += WIDEST;
		out += NYMPH_BLAKE3_OUT_SIZE * WIDEST;
	}
	if (n == 1)
		many_1(jobs, out);
#ifdef HAS_16
	else if (n <= 8)
		many_8(jobs, n, out);
#endif
	else
		WIDEST_MANY(jobs, n, out);
}

const struct nymph_blake3_variant NAME = {
	.name = NAME_TEXT,
	.hash = hash,
	.compress = compress,
	.many = many,
};

#endif /* __CHECKER__ */
