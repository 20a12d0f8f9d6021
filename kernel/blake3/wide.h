/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * BLAKE3 in vectors of LANES words. simd.h includes this file once for every width
 * that a variant has; WIDE(name) makes a name of that width. The code hashes
 *
 * - with one input in each lane, which is the fastest if there are enough inputs;
 * - with four words of an input's state in each 128 bits, for few inputs.
 *
 * Loops are unrolled early, so that arrays of vectors become registers.
 */

#define vec	WIDE(vec)
#define longs	WIDE(longs)
#define bytes	WIDE(bytes)

typedef u32 vec __attribute__((vector_size(4 * LANES)));
typedef u64 longs __attribute__((vector_size(4 * LANES)));
typedef u8 bytes __attribute__((vector_size(4 * LANES)));

/*
 * PICK() shuffles the words of every 128 bits of two vectors; words 4 and up are
 * those of @b. PICK64() does so with 64-bit words; 2 and up are those of @b.
 * PICK_2_2() is PICK() with two words of each. gcc 12 sees that words move in pairs
 * only if they are 64-bit words, and that two come from each vector only if they are
 * floats.
 */
#if LANES == 4
#define PICK(a, b, i, j, k, l) \
	__builtin_shufflevector(a, b, WORD_##i, WORD_##j, WORD_##k, WORD_##l)
#define PICK64(a, b, i, j) \
	((vec)__builtin_shufflevector((longs)(a), (longs)(b), LONG_##i, \
				      LONG_##j))
#define PICK_2_2	PICK
#elif LANES == 8
#define PICK(a, b, i, j, k, l) \
	__builtin_shufflevector(a, b, WORD_##i, WORD_##j, WORD_##k, WORD_##l, \
				4 + WORD_##i, 4 + WORD_##j, 4 + WORD_##k, \
				4 + WORD_##l)
#define PICK64(a, b, i, j) \
	((vec)__builtin_shufflevector((longs)(a), (longs)(b), LONG_##i, \
				      LONG_##j, 2 + LONG_##i, 2 + LONG_##j))
#else
#define PICK(a, b, i, j, k, l) \
	__builtin_shufflevector(a, b, WORD_##i, WORD_##j, WORD_##k, WORD_##l, \
				4 + WORD_##i, 4 + WORD_##j, 4 + WORD_##k, \
				4 + WORD_##l, 8 + WORD_##i, 8 + WORD_##j, \
				8 + WORD_##k, 8 + WORD_##l, 12 + WORD_##i, \
				12 + WORD_##j, 12 + WORD_##k, 12 + WORD_##l)
#define PICK64(a, b, i, j) \
	((vec)__builtin_shufflevector((longs)(a), (longs)(b), LONG_##i, \
				      LONG_##j, 2 + LONG_##i, 2 + LONG_##j, \
				      4 + LONG_##i, 4 + LONG_##j, \
				      6 + LONG_##i, 6 + LONG_##j))
#endif
#if LANES > 4
typedef float WIDE(floats) __attribute__((vector_size(4 * LANES)));
#define PICK_2_2(a, b, i, j, k, l) \
	((vec)PICK((WIDE(floats))(a), (WIDE(floats))(b), i, j, k, l))
#endif

static __always_inline vec WIDE(splat)(u32 word)
{
	return word - (vec) {};
}

static __always_inline vec WIDE(ror16)(vec v)
{
#ifdef HAS_ROTATE
	return v >> 16 | v << 16;
#else
	SHUFFLE_BYTES(v, *(const bytes *)ror16_bytes);
	return v;
#endif
}

static __always_inline vec WIDE(ror8)(vec v)
{
#ifdef HAS_ROTATE
	return v >> 8 | v << 24;
#else
	SHUFFLE_BYTES(v, *(const bytes *)ror8_bytes);
	return v;
#endif
}

/* 0, 1, 2, ... */
static __always_inline vec WIDE(count)(void)
{
#if LANES == 4
	return (vec){ 0, 1, 2, 3 };
#elif LANES == 8
	return (vec){ 0, 1, 2, 3, 4, 5, 6, 7 };
#else
	return (vec){ 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 };
#endif
}

/* Returns @q in every 128 bits. */
static __always_inline vec WIDE(repeat)(quad q)
{
#if LANES == 4
	return q;
#elif LANES == 8
	return join_quads(q, q);
#else
	return join_octs(join_quads(q, q), join_quads(q, q));
#endif
}

/* Loads 16 bytes at @at from each of LANES / 4 inputs, @step apart in @in. */
static __always_inline vec WIDE(load)(const u8 *const *in, size_t step,
				      size_t at)
{
#if LANES == 4
	(void)step;
	return load_quad(in[0] + at);
#elif LANES == 8
	return load_quads_2(in[0] + at, in[step] + at);
#else
	return load_quads_4(in[0] + at, in[step] + at, in[2 * step] + at,
			    in[3 * step] + at);
#endif
}

/* --- one input in each lane --- */

#ifndef ROWS_ONLY

/* Transposes the squares of 4 by 4 words in each 128 bits of @x. */
static __always_inline void WIDE(transpose)(vec x[4])
{
	vec a = PICK(x[0], x[1], 0, 4, 1, 5);
	vec b = PICK(x[0], x[1], 2, 6, 3, 7);
	vec c = PICK(x[2], x[3], 0, 4, 1, 5);
	vec d = PICK(x[2], x[3], 2, 6, 3, 7);

	x[0] = PICK64(a, c, 0, 2);
	x[1] = PICK64(a, c, 1, 3);
	x[2] = PICK64(b, d, 0, 2);
	x[3] = PICK64(b, d, 1, 3);
}

/* Loads 8 words at @at from every input, one input in each lane. */
static __always_inline void WIDE(load_8)(vec m[8], const u8 *const *in,
					 size_t at)
{
	int i;

#if LANES == 16
	vec x[8];

#pragma GCC unroll 8
	for (i = 0; i < 4; i++) {
		x[i] = load_octs_2(in[i] + at, in[i + 4] + at);
		x[i + 4] = load_octs_2(in[i + 8] + at, in[i + 12] + at);
	}
	WIDE(transpose)(x);
	WIDE(transpose)(x + 4);
#pragma GCC unroll 8
	for (i = 0; i < 4; i++) {
		longs a = (longs)x[i], b = (longs)x[i + 4];

		/* the even 128 bits of each, and the odd ones */
		m[i] = (vec)__builtin_shufflevector(a, b, 0, 1, 4, 5, 8, 9, 12,
						    13);
		m[i + 4] = (vec)__builtin_shufflevector(a, b, 2, 3, 6, 7, 10,
							11, 14, 15);
	}
#else
#pragma GCC unroll 8
	for (i = 0; i < 4; i++)
		m[i] = WIDE(load)(in + i, 4, at);
	WIDE(transpose)(m);
#pragma GCC unroll 8
	for (i = 0; i < 4; i++)
		m[4 + i] = WIDE(load)(in + i, 4, at + 16);
	WIDE(transpose)(m + 4);
#endif
}

/*
 * Does half a mix of the four columns, or of the four diagonals if @turn is 1. The
 * four run side by side, step by step, so that their latencies overlap.
 */
static __always_inline void WIDE(mix)(vec v[16], const vec m[16], const u8 *s,
				      int turn, bool second)
{
	vec *a = v, *b = v + 4, *c = v + 8, *d = v + 12;
	int i;
#ifdef FEW_REGISTERS
	vec spare;
#endif

#define B	b[(i + turn) % 4]
#define C	c[(i + 2 * turn) % 4]
#define D	d[(i + 3 * turn) % 4]
#pragma GCC unroll 8
	for (i = 0; i < 4; i++)
		a[i] += m[s[2 * i + second]];
	/* b was computed last, so it is added last; gcc would reorder this */
#pragma GCC unroll 8
	for (i = 0; i < 4; i++) {
		KEEP(a[i]);
		a[i] += B;
	}
#pragma GCC unroll 8
	for (i = 0; i < 4; i++)
		D ^= a[i];
#pragma GCC unroll 8
	for (i = 0; i < 4; i++)
		D = second ? WIDE(ror8)(D) : WIDE(ror16)(D);
#pragma GCC unroll 8
	for (i = 0; i < 4; i++)
		C += D;
#pragma GCC unroll 8
	for (i = 0; i < 4; i++)
		B ^= C;
#ifdef FEW_REGISTERS
	/* the rotations need one more register than the CPU has: spill this one */
	i = 0;
	spare = C;
	asm volatile("" : "+m" (spare));
	C = spare;
#endif
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

static __always_inline void WIDE(prefetch)(const u8 *const *in, size_t ahead,
					   size_t at)
{
	int i;

	if (!ahead)
		return;
#pragma GCC unroll 16
	for (i = 0; i < LANES; i++)
		__builtin_prefetch(in[i] + at + ahead);
}

/* Compresses the block at @at of every input into @h; @last has rows 12 to 15. */
static __always_inline void WIDE(block)(vec h[8], const u8 *const *in,
					size_t at, const vec last[4])
{
	vec m[16], v[16];
	int i;

	WIDE(load_8)(m, in, at);
#pragma GCC unroll 8
	for (i = 0; i < 8; i++)
		v[i] = h[i];
#pragma GCC unroll 8
	for (i = 0; i < 4; i++) {
		v[8 + i] = WIDE(splat)(nymph_blake3_iv[i]);
		v[12 + i] = last[i];
	}
	/* half a round needs only half the block */
	WIDE(mix)(v, m, nymph_blake3_schedule[0], 0, false);
	WIDE(mix)(v, m, nymph_blake3_schedule[0], 0, true);
	WIDE(load_8)(m + 8, in, at + 32);
	WIDE(mix)(v, m, nymph_blake3_schedule[0] + 8, 1, false);
	WIDE(mix)(v, m, nymph_blake3_schedule[0] + 8, 1, true);
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

/* Writes the chaining values of the first @n lanes; destroys @h. */
static __always_inline void WIDE(store)(vec h[8], size_t n, u8 *out)
{
	size_t i;

	WIDE(transpose)(h);
	WIDE(transpose)(h + 4);
	for (i = 0; i < n; i++) {
		memcpy(out + 32 * i, (u32 *)&h[i % 4] + i / 4 * 4, 16);
		memcpy(out + 32 * i + 16, (u32 *)&h[4 + i % 4] + i / 4 * 4, 16);
	}
}

/*
 * Works as nymph_blake3_variant.hash, but reads all lanes of @in and writes the
 * outputs of the first @n.
 */
static void WIDE(hash)(const u8 *const in[LANES], size_t n,
		       const struct nymph_blake3_task *task, u8 *out)
{
	const vec first = WIDE(splat)((u32)task->counter);
	vec h[8], cvs[8], last[4] = { first };
	size_t block;
	int i;

	if (task->counts)
		last[0] += WIDE(count)();
	/* a true comparison gives -1 */
	last[1] = WIDE(splat)((u32)(task->counter >> 32)) -
		  (vec)(last[0] < first);
	last[2] = WIDE(splat)(NYMPH_BLAKE3_BLOCK_SIZE);
#pragma GCC unroll 8
	for (i = 0; i < 8; i++)
		h[i] = WIDE(splat)(task->key[i]);
	for (block = 0; block < task->blocks; block++) {
		WIDE(prefetch)(in, task->ahead[0], 64 * block);
		WIDE(prefetch)(in, task->ahead[1], 64 * block);
		last[3] = WIDE(splat)(nymph_blake3_flags(task, block));
		WIDE(block)(h, in, 64 * block, last);
	}
	/* no variable indexes @h, so it stays in registers; WIDE(store) indexes */
#pragma GCC unroll 8
	for (i = 0; i < 8; i++)
		cvs[i] = h[i];
	WIDE(store)(cvs, n, out);
}

/*
 * Works as WIDE(block), but leaves the lanes that are all ones in @over unchanged.
 * The function is not inlined: it is large, and a call costs little beside it.
 */
static noinline void WIDE(step)(vec h[8], const u8 *const *in, size_t at,
				const vec last[4], const vec *over)
{
	vec new[8];
	int i;

#pragma GCC unroll 8
	for (i = 0; i < 8; i++)
		new[i] = h[i];
	WIDE(block)(new, in, at, last);
#pragma GCC unroll 8
	for (i = 0; i < 8; i++)
		h[i] = (new[i] & ~*over) | (h[i] & *over);
}

/*
 * Works as nymph_blake3_variant.many. Lanes that are left over run the last job
 * again.
 */
static void WIDE(many)(const struct nymph_blake3_job *jobs, size_t n, u8 *out)
{
	/* the last rows of a block, and the values that they are computed from */
	enum { LO, HI, SIZE, FLAGS, ROWS, END = ROWS, LEN, LAST, NR };
	union {
		u32 words[NR][LANES];
		vec all[NR];
	} of;
	u32 block, min = U32_MAX, max = 0;
	const u8 *in[LANES];
	vec h[8], over = {};
	size_t i;

	for (i = 0; i < LANES; i++) {
		const struct nymph_blake3_job *job = jobs + (i < n ? i : n - 1);

		of.words[LO][i] = (u32)job->counter;
		of.words[HI][i] = (u32)(job->counter >> 32);
		of.words[SIZE][i] = NYMPH_BLAKE3_BLOCK_SIZE;
		of.words[FLAGS][i] = job->first;
		of.words[END][i] = job->blocks - 1;
		of.words[LEN][i] = job->len;
		of.words[LAST][i] = job->last;
		in[i] = job->in;
		if (max < job->blocks)
			max = job->blocks;
		if (min > job->blocks)
			min = job->blocks;
	}
	for (i = 0; i < 8; i++)
		h[i] = WIDE(splat)(nymph_blake3_iv[i]);

	/* until the first lane is at its end, then until the last lane is */
	for (block = 0; block < min - 1; block++) {
		WIDE(step)(h, in, 64 * block, of.all, &over);
		of.all[FLAGS] = WIDE(splat)(0);
	}
	for (; block < max; block++) {
		const vec now = WIDE(splat)(block);
		const vec at_end = (vec)(now == of.all[END]);

		for (i = 0; i < LANES; i++) {
			const struct nymph_blake3_job *job =
				jobs + (i < n ? i : n - 1);

			in[i] = block + 1 < job->blocks ?
				job->in + 64 * block : job->end;
		}
		of.all[SIZE] = (of.all[LEN] & at_end) |
			       (WIDE(splat)(NYMPH_BLAKE3_BLOCK_SIZE) & ~at_end);
		if (block)
			of.all[FLAGS] = WIDE(splat)(0);
		of.all[FLAGS] |= of.all[LAST] & at_end;
		over = (vec)(now > of.all[END]);
		WIDE(step)(h, in, 0, of.all, &over);
	}
	WIDE(store)(h, n, out);
}

#endif /* ROWS_ONLY */

/* --- one row of an input's state in each 128 bits --- */

static __always_inline void WIDE(mix_rows)(vec row[4], vec m, bool second)
{
	/* row 1 was computed last, so it is added last */
	row[0] += m;
	KEEP(row[0]);
	row[0] += row[1];
	row[3] ^= row[0];
	row[3] = second ? WIDE(ror8)(row[3]) : WIDE(ror16)(row[3]);
	row[2] += row[3];
	row[1] ^= row[2];
	row[1] = second ? row[1] >> 7 | row[1] << 25 :
			  row[1] >> 12 | row[1] << 20;
}

/*
 * Turns diagonals into columns, or back. Row 1 stays and the others turn, so that
 * the diagonal of row 0's last word comes first.
 */
static __always_inline void WIDE(turn_rows)(vec row[4], bool back)
{
	row[2] = back ? PICK(row[2], row[2], 3, 0, 1, 2) :
			PICK(row[2], row[2], 1, 2, 3, 0);
	row[3] = PICK(row[3], row[3], 2, 3, 0, 1);
	row[0] = back ? PICK(row[0], row[0], 1, 2, 3, 0) :
			PICK(row[0], row[0], 3, 0, 1, 2);
}

/* Brings the words of a block into the order in which mix_rows() takes them. */
static __always_inline void WIDE(arrange)(vec m[4])
{
	vec x = PICK_2_2(m[0], m[1], 0, 2, 4, 6);
	vec y = PICK_2_2(m[0], m[1], 1, 3, 5, 7);
	vec p = PICK_2_2(m[2], m[3], 0, 2, 4, 6);
	vec q = PICK_2_2(m[2], m[3], 1, 3, 5, 7);

	m[0] = x;
	m[1] = y;
	m[2] = PICK(p, p, 3, 0, 1, 2);
	m[3] = PICK(q, q, 3, 0, 1, 2);
}

/*
 * Brings the words from one round's order into the next round's, by shuffles that
 * are one instruction on any x86.
 */
static __always_inline void WIDE(permute)(vec m[4])
{
	vec x = m[0], y = m[1], p = m[2], q = m[3];
	vec a = PICK_2_2(x, y, 1, 2, 5, 7);
	vec b = PICK_2_2(p, q, 2, 2, 7, 7);
	vec c = PICK_2_2(y, p, 0, 0, 7, 7);
	vec d = PICK_2_2(q, y, 2, 2, 6, 6);

	x = PICK(x, x, 3, 3, 0, 0);
	q = PICK(q, q, 0, 0, 1, 1);
	p = PICK(p, p, 1, 1, 0, 0);
	m[0] = PICK(a, a, 0, 2, 3, 1);
	m[1] = PICK(x, b, 0, 5, 2, 7);
	m[2] = PICK(q, c, 0, 5, 6, 3);
	m[3] = PICK(p, d, 0, 5, 6, 3);
}

/* Returns the last rows, without flags, of inputs from number @first on. */
static __always_inline vec WIDE(counters)(const struct nymph_blake3_task *task,
					  u32 first)
{
	quad q = { (u32)task->counter, (u32)(task->counter >> 32),
		   NYMPH_BLAKE3_BLOCK_SIZE, 0 };
	const vec base = WIDE(repeat)(q);
	vec sum = base;

	if (task->counts) {
		sum += PICK(WIDE(count)() / 4 + first, (vec){}, 0, 4, 4, 4);
		/* a true comparison gives -1 */
		sum -= PICK((vec)(sum < base), (vec){}, 4, 0, 4, 4);
	}
	return sum;
}

/*
 * Works as nymph_blake3_variant.hash, for @sets sets of LANES / 4 inputs, whose
 * latencies overlap. Reads all of @in, and writes the outputs of the first @n.
 */
static __always_inline void
WIDE(hash_rows)(const u8 *const *in, size_t n,
		const struct nymph_blake3_task *task, u8 *out, const int sets)
{
	const vec iv = WIDE(repeat)(load_quad((const u8 *)nymph_blake3_iv));
	vec h[2][2], last[2], cvs[2][2];
	size_t block;
	int i, s;

#pragma GCC unroll 2
	for (s = 0; s < sets; s++) {
		last[s] = WIDE(counters)(task, s * (LANES / 4));
		h[s][0] = WIDE(repeat)(load_quad((const u8 *)task->key));
		h[s][1] = WIDE(repeat)(load_quad((const u8 *)(task->key + 4)));
	}
	for (block = 0; block < task->blocks; block++) {
		quad q = { 0, 0, 0, nymph_blake3_flags(task, block) };
		const vec flags = WIDE(repeat)(q);
		vec row[2][4], m[2][4];

#pragma GCC unroll 2
		for (s = 0; s < sets; s++) {
#pragma GCC unroll 8
			for (i = 0; i < 4; i++)
				m[s][i] = WIDE(load)(in + LANES / 4 * s, 1,
						     64 * block + 16 * i);
			WIDE(arrange)(m[s]);
			row[s][0] = h[s][0];
			row[s][1] = h[s][1];
			row[s][2] = iv;
			row[s][3] = last[s] | flags;
		}
		for (i = 0; i < 7; i++) {
#pragma GCC unroll 2
			for (s = 0; s < sets; s++)
				WIDE(mix_rows)(row[s], m[s][0], false);
#pragma GCC unroll 2
			for (s = 0; s < sets; s++)
				WIDE(mix_rows)(row[s], m[s][1], true);
#pragma GCC unroll 2
			for (s = 0; s < sets; s++) {
				WIDE(turn_rows)(row[s], false);
				WIDE(mix_rows)(row[s], m[s][2], false);
			}
#pragma GCC unroll 2
			for (s = 0; s < sets; s++) {
				WIDE(mix_rows)(row[s], m[s][3], true);
				WIDE(turn_rows)(row[s], true);
				WIDE(permute)(m[s]);
			}
		}
#pragma GCC unroll 2
		for (s = 0; s < sets; s++) {
			h[s][0] = row[s][0] ^ row[s][2];
			h[s][1] = row[s][1] ^ row[s][3];
		}
	}
#pragma GCC unroll 2
	for (s = 0; s < sets; s++) {
		cvs[s][0] = h[s][0];
		cvs[s][1] = h[s][1];
	}
	for (i = 0; i < (int)n; i++) {
		s = i / (LANES / 4);
		memcpy(out + 32 * i, (u32 *)&cvs[s][0] + 4 * i % LANES, 16);
		memcpy(out + 32 * i + 16, (u32 *)&cvs[s][1] + 4 * i % LANES, 16);
	}
}

#undef vec
#undef longs
#undef bytes
#undef PICK
#undef PICK64
#undef PICK_2_2
