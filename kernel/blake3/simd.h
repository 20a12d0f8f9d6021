/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * BLAKE3 in vectors, for the compiler to make of them what the CPU has. A
 * variant defines NAME, its widths HAS_8 and HAS_16 beside 4, and HAS_ROTATE if
 * the CPU can rotate; then it includes this.
 */
#ifdef __KERNEL__
#include <linux/string.h>
#include <linux/types.h>
#else
#include <string.h>
#endif

#include "constants.h"
#include "variant.h"

/* which does not know vectors */
#ifndef __CHECKER__

typedef u32 quad __attribute__((vector_size(16)));

static __always_inline quad load_quad(const u8 *from)
{
	quad q;

	memcpy(&q, from, sizeof(q));
	return q;
}

#ifdef HAS_8
typedef u32 oct __attribute__((vector_size(32)));

static __always_inline oct join_quads(quad a, quad b)
{
	return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7);
}
#endif

#ifdef HAS_16
typedef u32 hex __attribute__((vector_size(64)));

static __always_inline hex join_octs(oct a, oct b)
{
	return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10,
				       11, 12, 13, 14, 15);
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

#define LANES	4
#define WIDE(name)	name##_4
#include "wide.h"
#undef LANES
#undef WIDE

/* --- one block: a row of the state in each vector --- */

static __always_inline void mix_rows(quad row[4], quad x, quad y)
{
	row[0] += row[1] + x;
	row[3] = ror16_4(row[3] ^ row[0]);
	row[2] += row[3];
	row[1] ^= row[2];
	row[1] = row[1] >> 12 | row[1] << 20;
	row[0] += row[1] + y;
	row[3] = ror8_4(row[3] ^ row[0]);
	row[2] += row[3];
	row[1] ^= row[2];
	row[1] = row[1] >> 7 | row[1] << 25;
}

static __always_inline quad turn_1(quad q)
{
	return __builtin_shufflevector(q, q, 1, 2, 3, 0);
}

static __always_inline quad turn_2(quad q)
{
	return __builtin_shufflevector(q, q, 2, 3, 0, 1);
}

static __always_inline quad turn_3(quad q)
{
	return __builtin_shufflevector(q, q, 3, 0, 1, 2);
}

/*
 * @x and @y are the words that the columns take, @p and @q those of the
 * diagonals. Row 1 stays where it is and the others turn, so that the diagonal
 * of row 0's last word is first.
 */
static __always_inline void round_of_rows(quad row[4], quad x, quad y, quad p,
					  quad q)
{
	mix_rows(row, x, y);
	row[0] = turn_3(row[0]);
	row[2] = turn_1(row[2]);
	row[3] = turn_2(row[3]);
	mix_rows(row, p, q);
	row[0] = turn_1(row[0]);
	row[2] = turn_3(row[2]);
	row[3] = turn_2(row[3]);
}

static void compress(u32 cv[8], const u8 block[NYMPH_BLAKE3_BLOCK_SIZE],
		     u32 len, u64 counter, u32 flags)
{
	quad m[4], x, y, p, q, row[4];
	int i;

	for (i = 0; i < 4; i++)
		m[i] = load_quad(block + 16 * i);
	x = __builtin_shufflevector(m[0], m[1], 0, 2, 4, 6);
	y = __builtin_shufflevector(m[0], m[1], 1, 3, 5, 7);
	p = __builtin_shufflevector(m[2], m[3], 6, 0, 2, 4);
	q = __builtin_shufflevector(m[2], m[3], 7, 1, 3, 5);
	row[0] = load_quad((const u8 *)cv);
	row[1] = load_quad((const u8 *)(cv + 4));
	row[2] = load_quad((const u8 *)nymph_blake3_iv);
	row[3] = (quad){ (u32)counter, (u32)(counter >> 32), len, flags };

	for (i = 0;; i++) {
		quad a, b, c;

		round_of_rows(row, x, y, p, q);
		if (i == 6)
			break;
		/* the words in the order of the next round */
		a = __builtin_shufflevector(p, q, 2, 7, 2, 7);
		b = __builtin_shufflevector(y, p, 0, 7, 0, 7);
		c = __builtin_shufflevector(q, y, 2, 6, 2, 6);
		a = __builtin_shufflevector(x, a, 3, 4, 0, 5);
		b = __builtin_shufflevector(q, b, 0, 4, 5, 1);
		c = __builtin_shufflevector(p, c, 1, 4, 5, 0);
		x = __builtin_shufflevector(x, y, 1, 5, 7, 2);
		y = a;
		p = b;
		q = c;
	}
	row[0] ^= row[2];
	row[1] ^= row[3];
	memcpy(cv, &row[0], sizeof(row[0]));
	memcpy(cv + 4, &row[1], sizeof(row[1]));
}

/* --- all widths there are --- */

static void hash_one(const u8 *in, const struct nymph_blake3_task *task,
		     u8 *out)
{
	u32 cv[8];
	size_t i;

	memcpy(cv, task->key, sizeof(cv));
	for (i = 0; i < task->blocks; i++)
		compress(cv, in + 64 * i, 64, task->counter,
			 nymph_blake3_flags(task, i));
	memcpy(out, cv, sizeof(cv));
}

/*
 * The narrowest that takes all @n inputs; lanes that are left over do the last
 * one's again.
 */
static void hash(const u8 *const *in, size_t n,
		 const struct nymph_blake3_task *task, u8 *out)
{
	const u8 *lanes[NYMPH_BLAKE3_MANY];
	size_t i;

	if (n == 1) {
		hash_one(in[0], task, out);
		return;
	}
	for (i = 0; i < NYMPH_BLAKE3_MANY; i++)
		lanes[i] = in[i < n ? i : n - 1];
#ifdef HAS_16
	if (n > 8) {
		hash_16(lanes, n, task, out);
		return;
	}
#endif
#ifdef HAS_8
	if (n > 4) {
		struct nymph_blake3_task rest = *task;

		hash_8(lanes, n < 8 ? n : 8, task, out);
		if (n > 8) {
			rest.counter += rest.counts ? 8 : 0;
			hash(in + 8, n - 8, &rest, out + 8 * 32);
		}
		return;
	}
#endif
	for (i = 0; i < n; i += 4) {
		struct nymph_blake3_task part = *task;

		part.counter += part.counts ? i : 0;
		hash_4(lanes + i, n - i < 4 ? n - i : 4, &part, out + 32 * i);
	}
}

const struct nymph_blake3_variant NAME = {
	.name = NAME_TEXT,
	.hash = hash,
	.compress = compress,
};

#endif /* __CHECKER__ */
