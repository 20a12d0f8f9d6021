/* SPDX-License-Identifier: MIT */
/*
 * Nodes of BLAKE3's tree on the CPU: what the official package does not show. Sixteen
 * leaves or parents at a time, in the vectors that the compiler makes of them.
 */
#include <pthread.h>
#include <stdint.h>
#include <string.h>

struct nymph_arrival {
	const uint8_t *data;
	uint64_t nbytes;
	uint8_t *nodes;		/* of level, 32 bytes each */
	const uint32_t *arrived; /* how many chunks are there; a device can write it */
	uint64_t chunk;		/* bytes of a chunk */
	uint64_t next;		/* the node that the next thread makes */
	uint32_t key[8];
	uint32_t flags;
	uint32_t level;
	uint32_t stop;
};

#define MOST_THREADS 255

#define LANES 16
#define LEAF 1024
#define BATCH 256 /* leaves of a subtree that is made at once */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EACH_CPU __attribute__((target_clones("avx2", "default")))
#define HAS_AVX512
#else
#define EACH_CPU
#endif
#define INLINE static inline __attribute__((always_inline))

typedef uint32_t vec __attribute__((vector_size(4 * LANES)));

enum { CHUNK_START = 1, CHUNK_END = 2, PARENT = 4, ROOT = 8 };

static const uint32_t iv[4] = { 0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A };

static const uint8_t order[7][16] = {
	{ 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 },
	{ 2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8 },
	{ 3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1 },
	{ 10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6 },
	{ 12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4 },
	{ 9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7 },
	{ 11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13 },
};

#define ROTATE(x, n) ((x) >> (n) | (x) << (32 - (n)))
#define MIX(a, b, c, d, x, y)              \
	do {                               \
		a += b + (x);              \
		d = ROTATE(d ^ a, 16);     \
		c += d;                    \
		b = ROTATE(b ^ c, 12);     \
		a += b + (y);              \
		d = ROTATE(d ^ a, 8);      \
		c += d;                    \
		b = ROTATE(b ^ c, 7);      \
	} while (0)

/* What a lane compresses: chaining value, message, counter, length and flags. */
struct lanes {
	vec h[8], m[16], counter[2], length, flags;
};

INLINE void compress(struct lanes *l)
{
	vec v[16];

	for (int i = 0; i < 8; i++)
		v[i] = l->h[i];
	for (int i = 0; i < 4; i++)
		v[8 + i] = (vec){} + iv[i];
	v[12] = l->counter[0];
	v[13] = l->counter[1];
	v[14] = l->length;
	v[15] = l->flags;
#pragma GCC unroll 7
	for (int r = 0; r < 7; r++) {
		const uint8_t *o = order[r];

		MIX(v[0], v[4], v[8], v[12], l->m[o[0]], l->m[o[1]]);
		MIX(v[1], v[5], v[9], v[13], l->m[o[2]], l->m[o[3]]);
		MIX(v[2], v[6], v[10], v[14], l->m[o[4]], l->m[o[5]]);
		MIX(v[3], v[7], v[11], v[15], l->m[o[6]], l->m[o[7]]);
		MIX(v[0], v[5], v[10], v[15], l->m[o[8]], l->m[o[9]]);
		MIX(v[1], v[6], v[11], v[12], l->m[o[10]], l->m[o[11]]);
		MIX(v[2], v[7], v[8], v[13], l->m[o[12]], l->m[o[13]]);
		MIX(v[3], v[4], v[9], v[14], l->m[o[14]], l->m[o[15]]);
	}
	for (int i = 0; i < 8; i++)
		l->h[i] = v[i] ^ v[8 + i];
}

INLINE void start(struct lanes *l, const uint32_t key[8])
{
	for (int i = 0; i < 8; i++)
		l->h[i] = (vec){} + key[i];
}

#ifdef HAS_AVX512
/*
 * Exchange bit `step` of row and column of a matrix. With AVX-512 each shuffle is one
 * instruction; without it, the compiler takes them apart word by word.
 */
INLINE void exchange(vec m[LANES], int step)
{
	vec column = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 };
	vec high = (vec)((column & step) != 0), low = ~high;

	for (int i = 0; i < LANES; i++) {
		if (i & step)
			continue;
		vec a = m[i], b = m[i + step];

		m[i] = __builtin_shuffle(a, b, (column & low) | ((column + LANES - step) & high));
		m[i + step] = __builtin_shuffle(a, b, ((column + step) & low) | ((column + LANES) & high));
	}
}

/* As load(), in registers. */
INLINE void load_avx512(struct lanes *l, const uint8_t *p, size_t step)
{
	for (int lane = 0; lane < LANES; lane++)
		memcpy(&l->m[lane], p + lane * step, 64);
	exchange(l->m, 8);
	exchange(l->m, 4);
	exchange(l->m, 2);
	exchange(l->m, 1);
}
#endif

/* Word i of all lanes' messages, from p with `step` bytes between lanes. */
INLINE void load(struct lanes *l, const uint8_t *p, size_t step)
{
	uint32_t words[16][LANES];

	for (int lane = 0; lane < LANES; lane++) {
		uint32_t block[16];

		memcpy(block, p + lane * step, 64);
		for (int i = 0; i < 16; i++)
			words[i][lane] = block[i];
	}
	memcpy(l->m, words, sizeof(words));
}

INLINE void store(const struct lanes *l, uint8_t *out, unsigned int n)
{
	uint32_t words[8][LANES];

	memcpy(words, l->h, sizeof(words));
	for (unsigned int lane = 0; lane < n; lane++)
		for (int i = 0; i < 8; i++)
			memcpy(out + 32 * lane + 4 * i, &words[i][lane], 4);
}

typedef void load_fn(struct lanes *l, const uint8_t *p, size_t step);

INLINE void whole_leaves_by(load_fn *load, const uint8_t *p, uint64_t counter, const uint32_t key[8],
			    uint32_t flags, uint8_t *out)
{
	struct lanes l;

	for (int lane = 0; lane < LANES; lane++) {
		l.counter[0][lane] = (uint32_t)(counter + lane);
		l.counter[1][lane] = (uint32_t)((counter + lane) >> 32);
	}
	l.length = (vec){} + 64;
	start(&l, key);
	for (int j = 0; j < 16; j++) {
		/* Of the next leaves: a CPU does not see that 16 places of memory are read on. */
		for (int lane = 0; lane < LANES; lane++)
			__builtin_prefetch(p + 64 * j + (lane + LANES) * LEAF);
		load(&l, p + 64 * j, LEAF);
		l.flags = (vec){} + (flags | (j == 0 ? CHUNK_START : j == 15 ? CHUNK_END : 0));
		compress(&l);
	}
	store(&l, out, LANES);
}

INLINE void parents_by(load_fn *load, const uint8_t *nodes, const uint32_t key[8], uint32_t flags, uint8_t *out)
{
	struct lanes l;

	start(&l, key);
	load(&l, nodes, 64);
	l.counter[0] = l.counter[1] = (vec){};
	l.length = (vec){} + 64;
	l.flags = (vec){} + (flags | PARENT);
	compress(&l);
	store(&l, out, LANES);
}

#ifdef HAS_AVX512
__attribute__((target("avx512f"))) static void whole_leaves_avx512(const uint8_t *p, uint64_t counter,
								    const uint32_t key[8], uint32_t flags,
								    uint8_t *out)
{
	whole_leaves_by(load_avx512, p, counter, key, flags, out);
}

__attribute__((target("avx512f"))) static void parents_avx512(const uint8_t *nodes, const uint32_t key[8],
							       uint32_t flags, uint8_t *out)
{
	parents_by(load_avx512, nodes, key, flags, out);
}
#endif

/* Chaining values of LANES whole leaves. */
EACH_CPU static void whole_leaves(const uint8_t *p, uint64_t counter, const uint32_t key[8], uint32_t flags,
				  uint8_t *out)
{
#ifdef HAS_AVX512
	if (__builtin_cpu_supports("avx512f")) {
		whole_leaves_avx512(p, counter, key, flags, out);
		return;
	}
#endif
	whole_leaves_by(load, p, counter, key, flags, out);
}

/* Chaining values of the parents of 2 * LANES nodes. */
EACH_CPU static void parents(const uint8_t *nodes, const uint32_t key[8], uint32_t flags, uint8_t *out)
{
#ifdef HAS_AVX512
	if (__builtin_cpu_supports("avx512f")) {
		parents_avx512(nodes, key, flags, out);
		return;
	}
#endif
	parents_by(load, nodes, key, flags, out);
}

/* The chaining value of one leaf of up to LEAF bytes; only the first lane is of use. */
static void one_leaf(const uint8_t *p, size_t length, uint64_t counter, const uint32_t key[8], uint32_t flags,
		     uint8_t *out)
{
	size_t done = 0;
	struct lanes l;

	memset(&l, 0, sizeof(l));
	start(&l, key);
	l.counter[0] += (uint32_t)counter;
	l.counter[1] += (uint32_t)(counter >> 32);
	do {
		size_t n = length - done < 64 ? length - done : 64;
		uint8_t block[64] = {};

		memcpy(block, p + done, n);
		load(&l, block, 0);
		l.length = (vec){} + (uint32_t)n;
		l.flags = (vec){} +
			  (flags | (done ? 0 : CHUNK_START) | (done + n == length ? CHUNK_END : 0));
		compress(&l);
		done += n;
	} while (done < length);
	store(&l, out, 1);
}

/* Merge n nodes to one; with root, the last of them is the root. */
static void merge(uint8_t *nodes, size_t n, const uint32_t key[8], uint32_t flags, uint32_t root)
{
	while (n > 1) {
		for (size_t i = 0; i < n / 2; i += LANES) {
			uint8_t in[64 * LANES] = {}, out[32 * LANES];
			size_t some = n / 2 - i < LANES ? n / 2 - i : LANES;

			memcpy(in, nodes + 64 * i, 64 * some);
			parents(in, key, flags | (n == 2 ? root : 0), out);
			memcpy(nodes + 32 * i, out, 32 * some);
		}
		if (n & 1)
			memmove(nodes + 32 * (n / 2), nodes + 32 * (n - 1), 32);
		n = (n + 1) / 2;
	}
}

/* The chaining value of a subtree, whose first leaf is number counter. */
static void subtree(const uint8_t *p, uint64_t nbytes, uint64_t counter, const uint32_t key[8], uint32_t flags,
		    uint8_t out[32])
{
	uint64_t leaves = nbytes ? (nbytes + LEAF - 1) / LEAF : 1;

	if (leaves <= BATCH) {
		uint8_t nodes[32 * BATCH];
		uint64_t i = 0;

		for (; (i + LANES) * LEAF <= nbytes; i += LANES)
			whole_leaves(p + i * LEAF, counter + i, key, flags, nodes + 32 * i);
		for (; i < leaves; i++)
			one_leaf(p + i * LEAF, nbytes - i * LEAF < LEAF ? nbytes - i * LEAF : LEAF, counter + i, key,
				 flags, nodes + 32 * i);
		merge(nodes, leaves, key, flags, 0);
		memcpy(out, nodes, 32);
	} else {
		uint64_t left = (uint64_t)1 << (63 - __builtin_clzll(leaves - 1));
		uint8_t two[64];

		subtree(p, left * LEAF, counter, key, flags, two);
		subtree(p + left * LEAF, nbytes - left * LEAF, counter + left, key, flags, two + 32);
		merge(two, 2, key, flags, 0);
		memcpy(out, two, 32);
	}
}

/* Nodes of `level` of nbytes that begin with leaf number first, a multiple of 2^level. */
void nymph_tree_nodes(const uint8_t *p, uint64_t nbytes, uint64_t first, const uint32_t key[8], uint32_t flags,
		      unsigned int level, uint8_t *out)
{
	uint64_t span = (uint64_t)LEAF << level, done = 0;

	do {
		uint64_t n = nbytes - done < span ? nbytes - done : span;

		subtree(p + done, n, first + done / LEAF, key, flags, out);
		done += n;
		out += 32;
	} while (done < nbytes);
}

INLINE void relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

static void *arriving(void *arrival)
{
	struct nymph_arrival *a = arrival;
	uint64_t span = (uint64_t)LEAF << a->level, count = (a->nbytes + span - 1) / span, i;

	while (!__atomic_load_n(&a->stop, __ATOMIC_RELAXED) &&
	       (i = __atomic_fetch_add(&a->next, 1, __ATOMIC_RELAXED)) < count) {
		uint64_t begin = i * span, n = a->nbytes - begin < span ? a->nbytes - begin : span;
		uint64_t chunks = (begin + n + a->chunk - 1) / a->chunk;

		while (__atomic_load_n(a->arrived, __ATOMIC_ACQUIRE) < chunks) {
			if (__atomic_load_n(&a->stop, __ATOMIC_RELAXED))
				return NULL;
			relax();
		}
		subtree(a->data + begin, n, begin / LEAF, a->key, a->flags, a->nodes + 32 * i);
	}
	return NULL;
}

/*
 * Make nodes of bytes that arrive meanwhile, with up to `threads` threads. It returns
 * when all are made, or at a stop.
 */
void nymph_tree_arriving(struct nymph_arrival *a, unsigned int threads)
{
	pthread_t others[MOST_THREADS];
	unsigned int n = 0;

	/* Where there can be no more threads, those that there are make all nodes. */
	while (n + 1 < threads && n < MOST_THREADS && !pthread_create(&others[n], NULL, arriving, a))
		n++;
	arriving(a);
	while (n)
		pthread_join(others[--n], NULL);
}

/* The digest of two or more nodes of one level, which are overwritten. */
void nymph_tree_root(uint8_t *nodes, uint64_t n, const uint32_t key[8], uint32_t flags)
{
	merge(nodes, n, key, flags, ROOT);
}

/* The node above two or more nodes of one level, which are overwritten; it is not the digest. */
void nymph_tree_above(uint8_t *nodes, uint64_t n, const uint32_t key[8], uint32_t flags)
{
	merge(nodes, n, key, flags, 0);
}
