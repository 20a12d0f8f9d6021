/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * BLAKE3 in vectors of LANES words, one input in each lane. Included once for
 * every width that a variant has; WIDE(name) makes the names its own. Loops are
 * unrolled early, so that arrays of vectors become registers.
 */

#define vec	WIDE(vec)
#define bytes	WIDE(bytes)

typedef u32 vec __attribute__((vector_size(4 * LANES)));
typedef u8 bytes __attribute__((vector_size(4 * LANES)));

/* What the transposition takes of two vectors, in each 128 bits of them. */
#if LANES == 4
#define LO32(a, b)	__builtin_shufflevector(a, b, 0, 4, 1, 5)
#define HI32(a, b)	__builtin_shufflevector(a, b, 2, 6, 3, 7)
#define LO64(a, b)	__builtin_shufflevector(a, b, 0, 1, 4, 5)
#define HI64(a, b)	__builtin_shufflevector(a, b, 2, 3, 6, 7)
#elif LANES == 8
#define LO32(a, b)	\
	__builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13)
#define HI32(a, b)	\
	__builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15)
#define LO64(a, b)	\
	__builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13)
#define HI64(a, b)	\
	__builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15)
#elif LANES == 16
#define LO32(a, b)	\
	__builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, \
				25, 12, 28, 13, 29)
#define HI32(a, b)	\
	__builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, \
				27, 14, 30, 15, 31)
#define LO64(a, b)	\
	__builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, \
				25, 12, 13, 28, 29)
#define HI64(a, b)	\
	__builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, \
				27, 14, 15, 30, 31)
#endif

static __always_inline vec WIDE(splat)(u32 word)
{
	return word - (vec) {};
}

/* By whole bytes, a shuffle is fewer instructions than two shifts. */
static __always_inline vec WIDE(ror16)(vec v)
{
#if defined(HAS_ROTATE)
	return v >> 16 | v << 16;
#elif LANES == 4
	bytes b = (bytes)v;

	return (vec)__builtin_shufflevector(b, b, 2, 3, 0, 1, 6, 7, 4, 5, 10,
					    11, 8, 9, 14, 15, 12, 13);
#else
	bytes b = (bytes)v;

	return (vec)__builtin_shufflevector(b, b, 2, 3, 0, 1, 6, 7, 4, 5, 10,
					    11, 8, 9, 14, 15, 12, 13, 18, 19,
					    16, 17, 22, 23, 20, 21, 26, 27, 24,
					    25, 30, 31, 28, 29);
#endif
}

static __always_inline vec WIDE(ror8)(vec v)
{
#if defined(HAS_ROTATE)
	return v >> 8 | v << 24;
#elif LANES == 4
	bytes b = (bytes)v;

	return (vec)__builtin_shufflevector(b, b, 1, 2, 3, 0, 5, 6, 7, 4, 9,
					    10, 11, 8, 13, 14, 15, 12);
#else
	bytes b = (bytes)v;

	return (vec)__builtin_shufflevector(b, b, 1, 2, 3, 0, 5, 6, 7, 4, 9,
					    10, 11, 8, 13, 14, 15, 12, 17, 18,
					    19, 16, 21, 22, 23, 20, 25, 26, 27,
					    24, 29, 30, 31, 28);
#endif
}

/* 4 words of each of the inputs 0, 4, 8, ... from @in on. */
static __always_inline vec WIDE(load)(const u8 *const *in, size_t at)
{
#if LANES == 4
	return load_quad(in[0] + at);
#elif LANES == 8
	return join_quads(load_quad(in[0] + at), load_quad(in[4] + at));
#else
	return join_octs(join_quads(load_quad(in[0] + at),
				    load_quad(in[4] + at)),
			 join_quads(load_quad(in[8] + at),
				    load_quad(in[12] + at)));
#endif
}

/* Transposes the squares of 4 by 4 words that each 128 bits of @x have. */
static __always_inline void WIDE(transpose)(vec x[4])
{
	vec a = LO32(x[0], x[1]);
	vec b = HI32(x[0], x[1]);
	vec c = LO32(x[2], x[3]);
	vec d = HI32(x[2], x[3]);

	x[0] = LO64(a, c);
	x[1] = HI64(a, c);
	x[2] = LO64(b, d);
	x[3] = HI64(b, d);
}

/* The 16 words at @at of every input, lane by lane. */
static __always_inline void WIDE(load_16)(vec m[16], const u8 *const *in,
					  size_t at)
{
	int i, j;

#pragma GCC unroll 8
	for (i = 0; i < 4; i++) {
#pragma GCC unroll 8
		for (j = 0; j < 4; j++)
			m[4 * i + j] = WIDE(load)(in + j, at + 16 * i);
		WIDE(transpose)(m + 4 * i);
	}
}

/*
 * Half of the mixes of four columns, or, with @turn 1, of four diagonals: step by
 * step side by side, so that their latencies overlap.
 */
static __always_inline void WIDE(mix)(vec v[16], const vec m[16], const u8 *s,
				      int turn, bool second)
{
	vec *a = v, *b = v + 4, *c = v + 8, *d = v + 12;
	int i;

#define B	b[(i + turn) % 4]
#define C	c[(i + 2 * turn) % 4]
#define D	d[(i + 3 * turn) % 4]
#pragma GCC unroll 8
	for (i = 0; i < 4; i++)
		a[i] += m[s[2 * i + second]];
#pragma GCC unroll 8
	for (i = 0; i < 4; i++)
		a[i] += B;
#pragma GCC unroll 8
	for (i = 0; i < 4; i++)
		D = second ? WIDE(ror8)(D ^ a[i]) : WIDE(ror16)(D ^ a[i]);
#pragma GCC unroll 8
	for (i = 0; i < 4; i++)
		C += D;
#pragma GCC unroll 8
	for (i = 0; i < 4; i++)
		B ^= C;
#pragma GCC unroll 8
	for (i = 0; i < 4; i++)
		B = second ? B >> 7 | B << 25 : B >> 12 | B << 20;
#undef B
#undef C
#undef D
}

static __always_inline void WIDE(round)(vec v[16], const vec m[16],
					const u8 s[16])
{
	WIDE(mix)(v, m, s, 0, false);
	WIDE(mix)(v, m, s, 0, true);
	WIDE(mix)(v, m, s + 8, 1, false);
	WIDE(mix)(v, m, s + 8, 1, true);
}

/*
 * As nymph_blake3_variant.hash, but all lanes of @in are read, and the outputs of
 * the first @n are written.
 */
static void WIDE(hash)(const u8 *const in[LANES], size_t n,
		       const struct nymph_blake3_task *task, u8 *out)
{
	vec h[8], lo, hi;
	size_t block, i;

	for (i = 0; i < 8; i++)
		h[i] = WIDE(splat)(task->key[i]);
	for (i = 0; i < LANES; i++) {
		u64 counter = task->counter + (task->counts ? i : 0);

		lo[i] = (u32)counter;
		hi[i] = (u32)(counter >> 32);
	}
	for (block = 0; block < task->blocks; block++) {
		vec m[16], v[16];

		WIDE(load_16)(m, in, 64 * block);
#pragma GCC unroll 8
		for (i = 0; i < 8; i++)
			v[i] = h[i];
#pragma GCC unroll 8
		for (i = 0; i < 4; i++)
			v[8 + i] = WIDE(splat)(nymph_blake3_iv[i]);
		v[12] = lo;
		v[13] = hi;
		v[14] = WIDE(splat)(64);
		v[15] = WIDE(splat)(nymph_blake3_flags(task, block));
		WIDE(round)(v, m, nymph_blake3_schedule[0]);
		WIDE(round)(v, m, nymph_blake3_schedule[1]);
		WIDE(round)(v, m, nymph_blake3_schedule[2]);
		WIDE(round)(v, m, nymph_blake3_schedule[3]);
		WIDE(round)(v, m, nymph_blake3_schedule[4]);
		WIDE(round)(v, m, nymph_blake3_schedule[5]);
		WIDE(round)(v, m, nymph_blake3_schedule[6]);
#pragma GCC unroll 8
		for (i = 0; i < 8; i++)
			h[i] = v[i] ^ v[i + 8];
	}
	WIDE(transpose)(h);
	WIDE(transpose)(h + 4);
	for (i = 0; i < n; i++) {
		memcpy(out + 32 * i, (u32 *)&h[i % 4] + i / 4 * 4, 16);
		memcpy(out + 32 * i + 16, (u32 *)&h[4 + i % 4] + i / 4 * 4, 16);
	}
}

#undef vec
#undef bytes
#undef LO32
#undef HI32
#undef LO64
#undef HI64
