/* SPDX-License-Identifier: MIT */
/*
 * BLAKE3 digests of a GPU's memory, made by the GPU. The header is long because NVRTC compiles one text, whose
 * name in the cache is its hash.
 *
 * NVRTC compiles this for the device (pynymph/cuda.py); any C++17 compiler
 * compiles it for the host behind tests/unit/pynymph/cuda_host.h, which runs the threads
 * of a block as coroutines, so that the same tree logic meets the test vectors
 * where there is no GPU.
 *
 * The kernels:
 *
 *   small	one input of up to some MiB, in one launch: four lanes a leaf
 *   leaf	jobs of any number of leaves, a thread a leaf; it leaves the nodes of the
 *		tree at some level in memory
 *   leaf_any	the same at any address, and for jobs of any number of segments
 *   top	the rest of each job's tree
 *   many	many inputs of up to THREADS leaves each
 *   many_any	the same at any address
 *
 * No kernel reads a byte outside of its input, not even of the same 16 bytes: a
 * leaf that lies where the aligned loads around it would do so is copied byte by
 * byte first.
 */

#define THREADS 256		/* of a block of leaf and many, at most: as many leaves */
/* Of blocks on a multiprocessor, at least: it is the registers that matter. */
#define BLOCKS 2
#define MIDDLE_BLOCKS 5
#define TOP_BLOCKS 2

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE static __device__ __forceinline__
/* What is rare keeps its registers to itself. */
#define OUT_OF_LINE static __device__ __noinline__

enum { CHUNK_START = 1, CHUNK_END = 2, PARENT = 4, ROOT = 8 };

/* What all kernels are told. */
struct mode {
	u32 key[8];		/* what each chaining value starts from */
	u32 flags;		/* of each compression */
	u32 one;		/* 1, which ptxas must not know */
};

/* One digest among those that leaf and top make. */
struct job {
	u64 length;		/* bytes */
	u64 first_node;		/* its nodes, among those of all jobs */
	u64 first_pair;		/* where its blocks of top hand over their nodes */
	u32 first_block;	/* of leaf */
	u32 first_top;		/* of top */
	u32 first_segment;
	u32 segments;
};

struct leaf_args {
	struct mode mode;
	struct job only;	/* the job, if it is one */
	u64 start, address;	/* 0, and of its segment, if it is one: starts is NULL then */
	const struct job *jobs;
	const u64 *starts;	/* where in its job each segment starts */
	const u64 *addresses;
	const u32 *slots;	/* in scratch, the first for each segment */
	u8 *scratch;		/* 1 KiB a slot */
	u32 *nodes;
	u32 *epoch;		/* incremented, unless NULL */
	u32 njobs;
	u32 first;		/* blocks that other launches do */
	u32 slot0;		/* slots of theirs */
	u32 levels;		/* of the tree that are made here */
};

struct middle_args {
	struct mode mode;
	const u32 *nodes;
	u32 *out;
	u64 total;
};

struct top_args {
	struct mode mode;
	struct job only;
	const struct job *jobs;
	const u32 *nodes;
	u64 *pairs;
	const u32 *epoch;
	u32 *out;		/* a digest a job */
	u64 *mailbox;		/* 8 pairs (word, epoch) in host memory, or NULL */
	u32 njobs;
	u32 level;		/* of nodes */
	u32 levels;		/* to rise, to nodes in out; 0: to the root */
};

/* Inputs of as many leaves, or of one less: they lie in shared memory alike. */
struct kind {
	u32 first_block;
	u32 first;		/* of its inputs */
	u32 inputs;
	u32 pitch;		/* leaves */
};

struct many_args {
	struct mode mode;
	const struct kind *kinds;
	const u64 *addresses;
	const u32 *lengths;
	const u32 *slots;
	const u32 *places;	/* of their digests in out */
	u8 *scratch;
	u32 *out;
	u32 nkinds;
	u32 first;
	u32 slot0;
};

struct small_args {
	struct mode mode;
	u64 address;
	u64 length;
	u64 *pairs;
	u32 *epoch;		/* of the launch before; the last block increments it */
	u32 *out;
	u64 *mailbox;
	u32 blocks;
};

/* ---- compression ---- */

__host__ __device__ constexpr u32 iv(int i)
{
	constexpr u32 words[4] = { 0x6A09E667u, 0xBB67AE85u, 0x3C6EF372u, 0xA54FF53Au };

	return words[i];
}

/* Which word of the message is the i-th of a round. */
__host__ __device__ constexpr int word(int round, int i)
{
	constexpr int permuted[16] = { 2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8 };

	for (int r = 0; r < round; r++)
		i = permuted[i];
	return i;
}

/*
 * a + b by a multiply-add: ptxas can't see that one is 1, so this half of an
 * addition of three runs on the FMA pipe beside the full ALU pipe.
 */
DEVICE u32 add_fma(u32 a, u32 one, u32 b)
{
#ifdef __CUDA_ARCH__
	u32 sum;

	asm("mad.lo.u32 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(one), "r"(b));
	return sum;
#else
	return a * one + b;
#endif
}

DEVICE u32 rotr(u32 x, int n)
{
	return __funnelshift_r(x, x, n);
}

/* The g-th of the eight G of a round. */
template <int round, int g>
DEVICE void mix(u32 (&v)[16], const u32 (&m)[16], u32 one)
{
	constexpr int half = g >> 2, a = g & 3, b = 4 + (a + half) % 4, c = 8 + (a + 2 * half) % 4,
		      d = 12 + (a + 3 * half) % 4, x = word(round, 2 * g), y = word(round, 2 * g + 1);

	v[a] = add_fma(m[x], one, v[a]) + v[b];
	v[d] = rotr(v[d] ^ v[a], 16);
	v[c] += v[d];
	v[b] = rotr(v[b] ^ v[c], 12);
	v[a] = add_fma(m[y], one, v[a]) + v[b];
	v[d] = rotr(v[d] ^ v[a], 8);
	v[c] += v[d];
	v[b] = rotr(v[b] ^ v[c], 7);
}

template <int round>
DEVICE void rounds(u32 (&v)[16], const u32 (&m)[16], u32 one)
{
	/* Their order is of no matter but to the allocation of registers: this one was the best of 190. */
	mix<round, 0>(v, m, one);
	mix<round, 3>(v, m, one);
	mix<round, 2>(v, m, one);
	mix<round, 1>(v, m, one);
	mix<round, 6>(v, m, one);
	mix<round, 4>(v, m, one);
	mix<round, 7>(v, m, one);
	mix<round, 5>(v, m, one);
	if constexpr (round < 6)
		rounds<round + 1>(v, m, one);
}

DEVICE void compress(u32 (&h)[8], const u32 (&m)[16], u64 counter, u32 length, u32 flags, u32 one)
{
	u32 v[16];

#pragma unroll
	for (int i = 0; i < 8; i++)
		v[i] = h[i];
#pragma unroll
	for (int i = 0; i < 4; i++)
		v[8 + i] = iv(i);
	v[12] = (u32)counter;
	v[13] = (u32)(counter >> 32);
	v[14] = length;
	v[15] = flags;
	rounds<0>(v, m, one);
#pragma unroll
	for (int i = 0; i < 8; i++)
		h[i] = v[i] ^ v[8 + i];
}

DEVICE void start(u32 (&h)[8], const struct mode &mode)
{
#pragma unroll
	for (int i = 0; i < 8; i++)
		h[i] = mode.key[i];
}

DEVICE void put(u32 *m, uint4 x)
{
	m[0] = x.x;
	m[1] = x.y;
	m[2] = x.z;
	m[3] = x.w;
}

/*
 * A compression by four lanes: lane l has column l. Its message words, 4 bits a
 * round: k[0] and k[1] of the columns, k[2] and k[3] of the diagonals. A word that
 * is added before a value moves to another lane is the sender's.
 */
struct quad {
	u32 lane;
	u32 k[4];
	u32 iv;
};

struct quads {
	u32 k[4][4];
};

__host__ __device__ constexpr struct quads make_quads()
{
	struct quads q = {};

	for (int l = 0; l < 4; l++)
		for (int r = 0; r < 7; r++) {
			int from = (l + 3) & 3;

			q.k[l][0] |= (u32)word(r, r ? 2 * from : 2 * l) << (4 * r);
			q.k[l][1] |= (u32)word(r, 2 * l + 1) << (4 * r);
			q.k[l][2] |= (u32)word(r, 8 + 2 * l) << (4 * r);
			q.k[l][3] |= (u32)word(r, 9 + 2 * from) << (4 * r);
		}
	return q;
}

static __constant__ struct quads quad_words = make_quads();
static __constant__ u32 quad_iv[4] = { iv(0), iv(1), iv(2), iv(3) };

DEVICE struct quad make_quad()
{
	struct quad q;

	q.lane = threadIdx.x & 3;
	for (int i = 0; i < 4; i++)
		q.k[i] = quad_words.k[q.lane][i];
	q.iv = quad_iv[q.lane];
	return q;
}

DEVICE u32 from_lane(u32 value, u32 lane)
{
	return __shfl_sync(~0u, value, lane, 4);
}

/*
 * low and high: this lane's words of the chaining value; last: its word of counter,
 * length and flags; zero: 0, which ptxas must not know; words(r, i): the word of
 * k[i] in round r; next: the first word, and on return words(7, 0).
 *
 * The chain is XOR and LEA.HI, which rotates and adds at once. ptxas makes it of a
 * sum with a funnel shift that has no other use, so each rotated value that stays is
 * made beside the chain by another instruction: a byte permutation, a shift to the left.
 */
template <class words_t>
DEVICE void compress_quad(u32 &low, u32 &high, u32 last, const struct quad &q, u32 zero, u32 &next,
			  words_t words)
{
	u32 a = low + next + high, b = high, c = q.iv, d = last, x, y, moved;
	u32 before = (q.lane + 3) & 3, behind = (q.lane + 1) & 3;

#pragma unroll
	for (int r = 0; r < 7; r++) {
		u32 m1 = words(r, 1), m2 = words(r, 2), m3 = words(r, 3);

		next = words(r + 1, 0);
		/* The columns. b stays, a moves to the lane behind, c one before, d two. */
		x = d ^ a;
		c += rotr(x, 16);
		d = __byte_perm(x, x, 0x1032);
		y = b ^ c;
		a = a + m1 + rotr(y, 12);
		b = __funnelshift_l(y, y, 20);
		moved = from_lane(a + m2, before);
		x = d ^ a;
		c += rotr(x, 8);
		d = zero + rotr(x, 8);
		y = b ^ c;
		d = __shfl_xor_sync(~0u, d, 2, 4);
		b = __funnelshift_l(y, y, 25);
		c = from_lane(c, behind);
		a = moved + rotr(y, 7);
		/* The diagonals, and back. */
		x = d ^ a;
		c += rotr(x, 16);
		d = __byte_perm(x, x, 0x1032);
		y = b ^ c;
		a = a + m3 + rotr(y, 12);
		b = __funnelshift_l(y, y, 20);
		moved = from_lane(r < 6 ? a + next : a, behind);
		x = d ^ a;
		c += rotr(x, 8);
		d = zero + rotr(x, 8);
		y = b ^ c;
		d = __shfl_xor_sync(~0u, d, 2, 4);
		b = __funnelshift_l(y, y, 25);
		c = from_lane(c, before);
		a = r < 6 ? moved + rotr(y, 7) : moved;
	}
	low = a ^ c;
	high = b ^ d;
}

/* ---- the tree, in shared memory ---- */

/*
 * Where node n is: two siblings are the 16 words of their parent's message, and pairs
 * are 20 words apart, so that neither way to read them has bank conflicts.
 */
#define NODES(n) ((n) / 2 * 20)

DEVICE u32 at(u32 n)
{
	return NODES(n) + (n & 1) * 8;
}

/* This thread's node of the next level: a parent, or the last child alone. */
DEVICE void rise(u32 (&h)[8], const u32 *s, u32 parent, bool both, u32 flags, const struct mode &mode)
{
	u32 m[16];

#pragma unroll
	for (int i = 0; i < 4; i++)
		put(m + 4 * i, *(const uint4 *)(s + NODES(2 * parent) + 4 * i));
	if (both) {
		start(h, mode);
		compress(h, m, 0, 64, flags, mode.one);
	} else {
#pragma unroll
		for (int i = 0; i < 8; i++)
			h[i] = m[i];
	}
}

DEVICE void store(u32 *s, u32 n, const u32 (&h)[8])
{
	*(uint4 *)(s + at(n)) = make_uint4(h[0], h[1], h[2], h[3]);
	*(uint4 *)(s + at(n) + 4) = make_uint4(h[4], h[5], h[6], h[7]);
}

/* Raise the n nodes in s by levels, none of which has the root. All threads call it, as reduce(). */
DEVICE void raise_below_root(u32 *s, u32 &n, u32 levels, const struct mode &mode)
{
	u32 t = threadIdx.x, h[8];

#pragma unroll 1
	for (; levels; levels--) {
		u32 parents = (n + 1) >> 1;

		if (t < parents)
			rise(h, s, t, 2 * t + 1 < n, PARENT | mode.flags, mode);
		__syncthreads();
		if (t < parents)
			store(s, t, h);
		__syncthreads();
		n = parents;
	}
}

/*
 * Raise the n nodes in s by up to levels; the whole level has total. Levels of more
 * than dense parents take a thread each, others four lanes each. All threads call it,
 * behind a barrier; nodes can be read behind the barrier at its end.
 */
DEVICE void reduce(u32 *s, u32 &n, u64 total, u32 levels, u32 dense, const struct mode &mode)
{
	u32 t = threadIdx.x;
	struct quad q = make_quad();

#pragma unroll 1
	for (; levels && n > 1; levels--, total = (total + 1) >> 1) {
		u32 parents = (n + 1) >> 1, flags = PARENT | mode.flags | (total == 2 ? ROOT : 0);

		if (parents > dense) {
			u32 h[8];

			if (t < parents)
				rise(h, s, t, 2 * t + 1 < n, flags, mode);
			__syncthreads();
			if (t < parents)
				store(s, t, h);
			__syncthreads();
		} else if (parents > 8 || t < 32) {
			/* Eight parents and less are the first warp's, without barriers of the block. */
			u32 parent = t >> 2, low = 0, high = 0;
			const u32 *m = s + NODES(2 * parent);

			if ((t >> 5) * 8 < parents) {
				u32 next = m[q.k[0] & 15];

				low = mode.key[q.lane];
				high = mode.key[4 + q.lane];
				compress_quad(low, high, q.lane == 2 ? 64 : q.lane == 3 ? flags : 0, q, mode.one - 1,
					      next, [&](int r, int i) { return r > 6 ? 0u : m[q.k[i] >> (4 * r) & 15]; });
				if (2 * parent + 1 >= n && parent < parents) {
					low = m[q.lane];
					high = m[4 + q.lane];
				}
			}
			if (parents > 8)
				__syncthreads();
			else
				__syncwarp();
			if (parent < parents) {
				s[at(parent) + q.lane] = low;
				s[at(parent) + 4 + q.lane] = high;
			}
			if (parents > 8)
				__syncthreads();
			else
				__syncwarp();
		}
		n = parents;
	}
	__syncthreads();
}

/*
 * Node idx of count is in s: hand it to the last block of its group, which does the
 * same one level of groups higher. Nodes are handed over in pairs (word, epoch) of 8
 * bytes, which are written and read as one, so nothing has to be fenced, counted or
 * cleared. The last block is the one that waits, as all others were started before it.
 */
DEVICE void hand_over(u32 *s, u32 idx, u32 count, u64 *pairs, u32 epoch, u32 dense, u32 *out, u64 *mailbox,
		      const struct mode &mode)
{
	u32 t = threadIdx.x;

#pragma unroll 1
	while (count > 1) {
		u32 group = count > 64 ? 32 : 64, n = idx % group + 1, before = count;

		if (t < 8)
			*(volatile u64 *)&pairs[idx * 8ull + t] = (u64)epoch << 32 | s[t];
		if (n < group && idx + 1 < count)
			return;
		__syncthreads();
		for (u32 i = t; i < n * 8; i += blockDim.x) {
			u64 pair;

			do
				pair = *(volatile u64 *)&pairs[(idx + 1 - n) * 8ull + i];
			while ((u32)(pair >> 32) != epoch);
			s[at(i >> 3) + (i & 7)] = (u32)pair;
		}
		__syncthreads();
		pairs += count * 8ull;
		idx /= group;
		count = (count + group - 1) / group;
		reduce(s, n, before, 32, dense, mode);
	}
	if (t < 8) {
		out[t] = s[t];
		if (mailbox)
			*(volatile u64 *)&mailbox[t] = (u64)epoch << 32 | s[t];
	}
}

/* ---- leaves, a thread each ---- */

DEVICE u64 leaves_of(u64 length)
{
	return length ? (length + 1023) >> 10 : 1;
}

/* Whether a leaf is of 1 KiB, and not the only one. */
DEVICE bool is_whole(u32 blocks, u32 last, u32 root)
{
	return blocks == 16 && last == 64 && !root;
}

/*
 * A leaf at p, a multiple of 16. Unless it is padded with zeros, the bytes of a block
 * that ends early are first copied to tail, 64 bytes at a multiple of 16. Loads are a
 * block ahead, so that few warps hide them.
 */
template <bool padded>
DEVICE void hash_aligned(u32 (&h)[8], const u8 *p, u32 blocks, u32 last, u64 counter, u32 root, u8 *tail,
			 const struct mode &mode)
{
	u32 j = 0, stop = padded ? blocks : blocks - (last < 64);

#pragma unroll 1
	for (;;) {
		uint4 next[4] = {};

		__builtin_assume(__isGlobal(p));
		if (j < stop) {
#pragma unroll
			for (int i = 0; i < 4; i++)
				next[i] = ((const uint4 *)(p + 64 * j))[i];
		}
#pragma unroll 1
		for (; j < stop; j++) {
			bool end = j + 1 == blocks;
			u32 m[16];

#pragma unroll
			for (int i = 0; i < 4; i++)
				put(m + 4 * i, next[i]);
			if (j + 1 < stop) {
#pragma unroll
				for (int i = 0; i < 4; i++)
					next[i] = ((const uint4 *)(p + 64 * j))[4 + i];
			}
			compress(h, m, counter, end ? last : 64,
				 (j ? 0 : CHUNK_START) | (end ? CHUNK_END | root : 0) | mode.flags, mode.one);
		}
		if constexpr (padded)
			break;
		if (stop == blocks)
			break;
#pragma unroll 1
		for (u32 i = 0; i < 64; i++)
			tail[i] = i < last ? p[64 * j + i] : 0;
		p = tail - 64 * j;
		stop = blocks;
	}
}

/* 16 words from byte 4 * words + bits / 8 on. The FMA pipe moves those that are not shifted. */
template <int words>
DEVICE void shift(u32 (&m)[16], const u32 (&w)[20], u32 bits, u32 one)
{
	if (bits) {
#pragma unroll
		for (int i = 0; i < 16; i++)
			m[i] = __funnelshift_r(w[i + words], w[i + words + 1], bits);
	} else {
#pragma unroll
		for (int i = 0; i < 16; i++)
			m[i] = add_fma(w[i + words], one, 0);
	}
}

DEVICE void shift(u32 (&m)[16], const u32 (&w)[20], u32 words, u32 bits, u32 one)
{
	if (words == 0)
		shift<0>(m, w, bits, one);
	else if (words == 1)
		shift<1>(m, w, bits, one);
	else if (words == 2)
		shift<2>(m, w, bits, one);
	else
		shift<3>(m, w, bits, one);
}

/*
 * A whole leaf at any address, and not the only one: five aligned loads for the first block, then four. Of a
 * lane whose leaf is at a multiple of 16, the fifth would be outside. The ALU pipe is the limit, so the loop
 * does little beside compressions.
 */
DEVICE void hash_whole_unaligned(u32 (&h)[8], const u8 *p, u64 counter, const struct mode &mode)
{
	u32 off = (u32)(u64)p & 15, words = off >> 2, bits = (off & 3) * 8;
	u32 flags = mode.flags | CHUNK_START, left = 15;
	const uint4 *q = (const uint4 *)(p - off);
	uint4 ahead[5] = {};

	__builtin_assume(__isGlobal(q));
#pragma unroll
	for (int i = 0; i < 4; i++)
		ahead[i] = q[i];
	if (off)
		ahead[4] = q[4];
#pragma unroll 1
	for (;;) {
		bool more = left;
		u32 m[16], w[20];

#pragma unroll
		for (int i = 0; i < 5; i++)
			put(w + 4 * i, ahead[i]);
		if (more) {
			q += 4;
			__builtin_assume(__isGlobal(q));
			ahead[0] = off ? ahead[4] : q[0];
#pragma unroll
			for (int i = 1; i < 4; i++)
				ahead[i] = q[i];
			if (off)
				ahead[4] = q[4];
		}
		shift(m, w, words, bits, mode.one);
		compress(h, m, counter, 64, more ? flags : flags + CHUNK_END, mode.one);
		if (!more)
			break;
		flags = mode.flags;
		left--;
	}
}

/*
 * As hash_aligned() at any address: five aligned loads a block. The shift by words is the
 * same in most warps.
 */
DEVICE void hash_unaligned(u32 (&h)[8], const u8 *p, u32 blocks, u32 last, u64 counter, u32 root,
			   const struct mode &mode)
{
	u32 off = (u32)(u64)p & 15, words = off >> 2, bits = (off & 3) * 8;
	const uint4 *q = (const uint4 *)(p - off);

	__builtin_assume(__isGlobal(q));
#pragma unroll 1
	for (u32 j = 0; j < blocks; j++) {
		bool end = j + 1 == blocks;
		u32 m[16], w[20] = {};

#pragma unroll
		for (int i = 0; i < 4; i++)
			put(w + 4 * i, q[4 * j + i]);
		if (off)
			put(w + 16, q[4 * j + 4]);
		shift(m, w, words, bits, mode.one);
		compress(h, m, counter, end ? last : 64,
			 (j ? 0 : CHUNK_START) | (end ? CHUNK_END | root : 0) | mode.flags, mode.one);
	}
}

/* This warp's leaves, one a lane, padded with zeros; those without blocks are none. */
DEVICE void hash_any(u32 (&h)[8], const u8 *p, u32 blocks, u32 last, u64 counter, u32 root,
		     const struct mode &mode)
{
	if (__all_sync(~0u, !((u64)p & 15)))
		hash_aligned<true>(h, p, blocks, last, counter, root, nullptr, mode);
	else if (__builtin_expect(__all_sync(~0u, is_whole(blocks, last, root)), 1))
		hash_whole_unaligned(h, p, counter, mode);
	else
		hash_unaligned(h, p, blocks, last, counter, root, mode);
}

/* The last i with keys(i) <= x, by all lanes of a warp; keys(0) is. */
template <class keys_t>
DEVICE u32 search(u32 n, u64 x, keys_t keys)
{
	u32 low = 0, lane = threadIdx.x & 31;

	while (n > 1) {
		u32 step = (n + 31) >> 5;
		bool is = lane * step < n && keys(low + lane * step) <= x;
		u32 k = 31 - __clz(__ballot_sync(~0u, is));

		low += k * step;
		n = min(step, n - k * step);
	}
	return low;
}

/* The segments of a job. */
struct segments {
	const u64 *starts;
	const u64 *addresses;
	u32 n;
	u64 length;
};

/*
 * The warp copies up to 1 KiB from byte offset of a job on, which is in segment k, to to,
 * with zeros behind. Words are made of aligned words as far as those are inside of the segment.
 */
OUT_OF_LINE void gather(u8 *to, u64 offset, u32 length, u32 k, const struct segments &of)
{
	u32 lane = threadIdx.x & 31;
	u64 begin = of.starts[k], end = k + 1 < of.n ? of.starts[k + 1] : of.length, address = of.addresses[k];
	u64 from[8];
	u32 value[8], bytewise = 0;

#pragma unroll
	for (int i = 0; i < 8; i++) {
		u32 at = 4 * (lane + 32 * i);
		u64 x = offset + at;

		from[i] = 0;
		value[i] = 0;
		if (at >= length)
			continue;
		while (x >= end) {
			k++;
			begin = end;
			end = k + 1 < of.n ? of.starts[k + 1] : of.length;
			address = of.addresses[k];
		}
		u64 p = address + (x - begin);
		u32 off = (u32)p & 3;

		/* One aligned word, or two. */
		if (x - begin >= off && end - x >= (off ? 8 - off : 4) && at + 4 <= length) {
			from[i] = p;
		} else {
			u64 b = begin, e = end, a = address;
			u32 j = k;

			bytewise |= 1u << i;
			for (u32 byte = 0; byte < 4 && at + byte < length; byte++) {
				while (x + byte >= e) {
					j++;
					b = e;
					e = j + 1 < of.n ? of.starts[j + 1] : of.length;
					a = of.addresses[j];
				}
				value[i] |= (u32)*(const u8 *)(a + (x + byte - b)) << (8 * byte);
			}
		}
	}
#pragma unroll
	for (int i = 0; i < 8; i++)
		if (from[i]) {
			const u32 *p = (const u32 *)(from[i] & ~3ull);
			u32 bits = ((u32)from[i] & 3) * 8;

			value[i] = bits ? __funnelshift_r(p[0], p[1], bits) : p[0];
		}
#pragma unroll
	for (int i = 0; i < 8; i++)
		((u32 *)to)[lane + 32 * i] = value[i];
}

/*
 * Whether the aligned loads of a leaf at p would leave its segment, of which there are
 * before bytes in front of it, and behind bytes from p on.
 */
DEVICE bool is_outside(const u8 *p, u64 before, u64 behind)
{
	u32 off = (u32)(u64)p & 15;

	return behind < 1024 || (off && (before < off || behind < 1040 - off));
}

/* Where leaf idx of the leaves that start in a segment is copied: there is room for the first, and the last two. */
DEVICE u32 slot_of(u64 idx, u64 leaves)
{
	return (u32)(leaves <= 3 ? idx : idx ? 3 - (leaves - idx) : 0);
}

DEVICE void gather(u8 *to, u64 offset, u32 length, u32 which, const struct many_args &of)
{
	const u64 zero = 0;
	struct segments segments = { &zero, of.addresses + which, 1, of.lengths[which] };

	gather(to, offset, length, 0, segments);
}

/* What of a leaf is copied: see gather(). */
struct mark {
	u64 offset;
	u32 length, k, slot;
};

/*
 * Copy the leaves that lanes mark, and point p to the copies. What a lane marks lies
 * where its warp's nodes will.
 */
template <class of_t>
DEVICE void gather_marked(bool marked, const u8 *&p, u8 *scratch, const struct mark &mark, u32 *s,
			  const of_t &of)
{
	struct mark *marks = (struct mark *)(s + NODES(threadIdx.x & ~31u));
	u32 lane = threadIdx.x & 31, todo = __ballot_sync(~0u, marked);

	if (marked) {
		marks[lane] = mark;
		p = scratch + mark.slot * 1024ull;
	}
	__syncwarp();
#pragma unroll 1
	for (; todo; todo &= todo - 1) {
		const struct mark &it = marks[__ffs(todo) - 1];

		gather(scratch + it.slot * 1024ull, it.offset, it.length, it.k, of);
	}
	__syncwarp();
}

struct found {
	const u8 *p;
	u32 blocks, last, root;
	u64 counter;
};

DEVICE struct found find_leaf(const struct leaf_args &args, const struct job &job, u32 block, u32 *s)
{
	u64 leaves = leaves_of(job.length), idx = (u64)block * blockDim.x + threadIdx.x, offset = idx << 10;
	bool single = !args.starts, outside = false;
	struct segments of = { single ? &args.start : args.starts + job.first_segment,
			     single ? &args.address : args.addresses + job.first_segment, job.segments, job.length };
	struct found leaf = { nullptr, 0, 64, leaves == 1 ? (u32)ROOT : 0, idx };
	u32 length = 0, slot = 0, k = search(of.n, (u64)block * blockDim.x * 1024, [&](u32 i) { return of.starts[i]; });

	if (idx < leaves) {
		u64 begin = single ? 0 : of.starts[k], end = k + 1 < of.n ? of.starts[k + 1] : job.length;

		if (offset >= end && job.length) {
			u32 high = of.n - 1;

			k++;
			while (k < high) {
				u32 middle = (k + high + 1) >> 1;

				if (of.starts[middle] <= offset)
					k = middle;
				else
					high = middle - 1;
			}
			begin = of.starts[k];
			end = k + 1 < of.n ? of.starts[k + 1] : job.length;
		}
		length = (u32)min((u64)1024, job.length - offset);
		leaf.blocks = length ? (length + 63) >> 6 : 1;
		leaf.last = length - (leaf.blocks - 1) * 64;
		leaf.p = (const u8 *)((single ? args.address : of.addresses[k]) + (offset - begin));
		outside = is_outside(leaf.p, offset - begin, end - offset);
		if (outside) {
			u64 first = (begin + 1023) >> 10;

			slot = slot_of(idx - first, ((end + 1023) >> 10) - first) +
			       (single ? 0 : args.slots[job.first_segment + k] - args.slot0);
		}
	}
	gather_marked(outside, leaf.p, args.scratch, { offset, length, k, slot }, s, of);
	return leaf;
}

/* The same for jobs of one segment at a multiple of 16 each. */
DEVICE struct found find_aligned(const struct leaf_args &args, const struct job &job, u32 block)
{
	u64 leaves = leaves_of(job.length), idx = (u64)block * blockDim.x + threadIdx.x;
	struct found leaf = { nullptr, 0, 64, leaves == 1 ? (u32)ROOT : 0, idx };

	if (idx < leaves) {
		u32 length = (u32)min((u64)1024, job.length - (idx << 10));

		leaf.p = (const u8 *)((args.starts ? args.addresses[job.first_segment] : args.address) + (idx << 10));
		leaf.blocks = length ? (length + 63) >> 6 : 1;
		leaf.last = length - (leaf.blocks - 1) * 64;
	}
	return leaf;
}

/* Other blocks of this launch may start now, and those of the next wait for its end. */
DEVICE void start_next()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
	asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

DEVICE void wait_previous()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
	asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

template <bool any>
DEVICE void make_leaves(const struct leaf_args &args)
{
	__shared__ __align__(16) u32 s[NODES(THREADS)];
	__shared__ u32 job_of_block;
	u32 t = threadIdx.x, block = args.first + blockIdx.x, j = 0;
	u32 h[8];

	start_next();
	if (args.epoch && block == 0 && t == 0)
		*args.epoch += 1;
	if (args.njobs > 1)
		j = search(args.njobs, block, [&](u32 i) { return (u64)args.jobs[i].first_block; });
	if (t == 0)
		job_of_block = j; /* what stays in a register over the loop costs bank conflicts there */
	{
		const struct job &job = args.njobs > 1 ? args.jobs[j] : args.only;
		struct found leaf = any ? find_leaf(args, job, block - job.first_block, s) :
					  find_aligned(args, job, block - job.first_block);

		start(h, args.mode);
		if (any)
			hash_any(h, leaf.p, leaf.blocks, leaf.last, leaf.counter, leaf.root, args.mode);
		else
			hash_aligned<false>(h, leaf.p, leaf.blocks, leaf.last, leaf.counter, leaf.root,
					    args.scratch + 64 * j, args.mode);
		if (leaf.blocks)
			store(s, t, h);
	}
	__syncthreads();

	const struct job &job = args.njobs > 1 ? args.jobs[job_of_block] : args.only;
	u32 local = args.first + blockIdx.x - job.first_block;
	u32 n = (u32)min((u64)blockDim.x, leaves_of(job.length) - (u64)local * blockDim.x);

	raise_below_root(s, n, args.levels, args.mode);
	u32 *to = args.nodes + (job.first_node + (u64)local * (blockDim.x >> args.levels)) * 8;

	for (u32 i = t; i < n * 8; i += blockDim.x)
		to[i] = s[at(i >> 3) + (i & 7)];
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) leaf(const __grid_constant__ struct leaf_args args)
{
	make_leaves<false>(args);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
	leaf_any(const __grid_constant__ struct leaf_args args)
{
	make_leaves<true>(args);
}

/* Many nodes of one job, MIDDLE levels up. */
#define MIDDLE 4

extern "C" __global__ void __launch_bounds__(THREADS, MIDDLE_BLOCKS) middle(const __grid_constant__ struct middle_args args)
{
	__shared__ __align__(16) u32 s[NODES(THREADS)];
	u64 first = (u64)blockIdx.x * (2 * THREADS);
	u32 t = threadIdx.x, n = (u32)min((u64)2 * THREADS, args.total - first);
	const uint4 *from = (const uint4 *)(args.nodes + first * 8) + 4 * t;
	u32 h[8];

	start_next();
	wait_previous();
	if (2 * t + 1 < n) {
		u32 m[16];

#pragma unroll
		for (int i = 0; i < 4; i++)
			put(m + 4 * i, from[i]);
		start(h, args.mode);
		compress(h, m, 0, 64, PARENT | args.mode.flags, args.mode.one);
		store(s, t, h);
	} else if (2 * t < n) {
		*(uint4 *)(s + at(t)) = from[0];
		*(uint4 *)(s + at(t) + 4) = from[1];
	}
	__syncthreads();
	n = (n + 1) >> 1;
	raise_below_root(s, n, MIDDLE - 1, args.mode);
	u32 *to = args.out + (first >> MIDDLE) * 8;

	for (u32 i = t; i < n * 8; i += THREADS)
		to[i] = s[at(i >> 3) + (i & 7)];
}

#define TOP_THREADS 256
#define TOP_NODES 512		/* of a block */

extern "C" __global__ void __launch_bounds__(TOP_THREADS, TOP_BLOCKS) top(const __grid_constant__ struct top_args args)
{
	__shared__ __align__(16) u32 s[NODES(TOP_NODES)];
	u32 t = threadIdx.x, block = blockIdx.x, j = 0;

	if (args.njobs > 1)
		j = search(args.njobs, block, [&](u32 i) { return (u64)args.jobs[i].first_top; });
	const struct job &job = args.njobs > 1 ? args.jobs[j] : args.only;
	u64 leaves = leaves_of(job.length), total = (leaves + (1ull << args.level) - 1) >> args.level;
	u32 idx = block - job.first_top, count = (u32)((total + TOP_NODES - 1) / TOP_NODES);
	u64 first = (u64)idx * TOP_NODES;
	u32 n = (u32)min((u64)TOP_NODES, total - first);
	const u32 *from = args.nodes + (job.first_node + first) * 8;

	wait_previous();
	for (u32 i = t; i < n * 2; i += TOP_THREADS)
		*(uint4 *)(s + at(i >> 1) + (i & 1) * 4) = ((const uint4 *)from)[i];
	__syncthreads();
	if (args.levels) {
		u32 *to = args.out + (first >> args.levels) * 8;

		/* All have as many levels to rise, so an only child rises, too. */
		reduce(s, n, total, args.levels, TOP_THREADS / 4, args.mode);
		for (u32 i = t; i < n * 8; i += TOP_THREADS)
			to[i] = s[at(i >> 3) + (i & 7)];
	} else {
		u32 epoch = *(const volatile u32 *)args.epoch;

		reduce(s, n, total, 32, TOP_THREADS / 4, args.mode);
		hand_over(s, idx, count, args.pairs + job.first_pair, epoch, TOP_THREADS / 4, args.out + j * 8ull,
			  args.mailbox, args.mode);
	}
}

/* ---- many inputs of up to THREADS leaves ---- */

template <bool any>
DEVICE void make_digests(const struct many_args &args)
{
	__shared__ __align__(16) u32 s[NODES(THREADS)];
	__shared__ struct kind kind_of_block;
	u32 t = threadIdx.x;
	u32 h[8];

	{
		u32 block = args.first + blockIdx.x;
		struct kind kind = args.kinds[search(args.nkinds, block,
						     [&](u32 i) { return (u64)args.kinds[i].first_block; })];
		u32 inputs = THREADS / kind.pitch, input = t / kind.pitch, i = t - input * kind.pitch;
		u32 nth = (block - kind.first_block) * inputs, which = kind.first + nth + input, leaves = 0;
		bool outside = false;
		struct mark mark = { i * 1024, 0, which, 0 };
		struct found leaf = { nullptr, 0, 64, 0, i };

		/* From here on: this block's inputs. */
		kind.first += nth;
		kind.inputs = min(inputs, kind.inputs - nth);
		if (t == 0)
			kind_of_block = kind;
		if (input < kind.inputs) {
			u32 length = args.lengths[which];

			leaves = (u32)leaves_of(length);
			if (i < leaves) {
				mark.length = min(1024u, length - i * 1024);
				leaf.p = (const u8 *)args.addresses[which] + i * 1024;
				leaf.blocks = mark.length ? (mark.length + 63) >> 6 : 1;
				leaf.last = mark.length - (leaf.blocks - 1) * 64;
				leaf.root = leaves == 1 ? ROOT : 0;
				outside = any && is_outside(leaf.p, i * 1024, length - i * 1024);
				if (outside)
					mark.slot = args.slots[which] - args.slot0 + slot_of(i, leaves);
			}
		}
		if (any)
			gather_marked(outside, leaf.p, args.scratch, mark, s, args);
		start(h, args.mode);
		if (any)
			hash_any(h, leaf.p, leaf.blocks, leaf.last, leaf.counter, leaf.root, args.mode);
		else
			hash_aligned<false>(h, leaf.p, leaf.blocks, leaf.last, leaf.counter, leaf.root,
					    args.scratch + 64 * which, args.mode);
		if (leaf.blocks)
			store(s, t, h);
	}
	__syncthreads();
	struct kind kind = kind_of_block;

	/* Level by level, each input's nodes from an even place on, so that siblings are one message. */
#pragma unroll 1
	for (u32 level = 0, width = kind.pitch, next; width > 1; level++, width = next) {
		next = width > 2 ? (width / 2 + 1) & ~1u : 1;
		u32 input = t / next, i = t - input * next, n = 0;

		if (input < kind.inputs)
			n = (u32)(leaves_of(args.lengths[kind.first + input]) + (1u << level) - 1) >> level;
		if (2 * i < n)
			rise(h, s, input * width / 2 + i, 2 * i + 1 < n,
			     PARENT | args.mode.flags | (n == 2 ? ROOT : 0), args.mode);
		__syncthreads();
		if (2 * i < n)
			store(s, t, h);
		__syncthreads();
	}
	for (u32 i = t; i < kind.inputs * 8; i += THREADS)
		args.out[args.places[kind.first + (i >> 3)] * 8ull + (i & 7)] = s[at(i >> 3) + (i & 7)];
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) many(const __grid_constant__ struct many_args args)
{
	make_digests<false>(args);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
	many_any(const __grid_constant__ struct many_args args)
{
	make_digests<true>(args);
}

/* ---- one small input, four lanes a leaf ---- */

#define SMALL_THREADS 128
#define SMALL_LEAVES (SMALL_THREADS / 4)	/* of a block */
#define ROW 68				/* words: four blocks of a leaf, and room against bank conflicts */

/* 16 bytes at p: two aligned loads, or as many bytes as lie before end. */
struct quarter {
	uint4 low, high;
	u32 off;
};

DEVICE void load(struct quarter &x, const u8 *p, const u8 *begin, const u8 *end)
{
	u32 off = (u32)(u64)p & 15;
	const u8 *q = p - off;

	x.off = 0;
	if (q >= begin && q + (off ? 32 : 16) <= end) {
		x.off = off;
		x.low = *(const uint4 *)q;
		if (off)
			x.high = *(const uint4 *)(q + 16);
	} else {
		u32 w[4] = {};

#pragma unroll
		for (int i = 0; i < 16; i++)
			if (p + i < end)
				w[i >> 2] |= (u32)p[i] << (8 * (i & 3));
		x.low = make_uint4(w[0], w[1], w[2], w[3]);
	}
}

DEVICE uint4 joined(const struct quarter &x)
{
	u32 w[8], bits = (x.off & 3) * 8;

	if (!x.off)
		return x.low;
	put(w, x.low);
	put(w + 4, x.high);
	if (x.off & 8) {
#pragma unroll
		for (int i = 0; i < 6; i++)
			w[i] = w[i + 2];
	}
	if (x.off & 4) {
#pragma unroll
		for (int i = 0; i < 5; i++)
			w[i] = w[i + 1];
	}
	return make_uint4(__funnelshift_r(w[0], w[1], bits), __funnelshift_r(w[1], w[2], bits),
			  __funnelshift_r(w[2], w[3], bits), __funnelshift_r(w[3], w[4], bits));
}

extern "C" __global__ void __launch_bounds__(SMALL_THREADS) small(const __grid_constant__ struct small_args args)
{
	__shared__ __align__(16) u32 rows[SMALL_THREADS / 32][8 * ROW + 16];
	__shared__ __align__(16) u32 s[NODES(SMALL_LEAVES > 64 ? SMALL_LEAVES : 64)];
	u32 epoch = *(const volatile u32 *)args.epoch + 1;
	u32 t = threadIdx.x, warp = t >> 5, lane = t & 31, row = lane >> 2;
	struct quad q = make_quad();
	u64 leaves = leaves_of(args.length), first = (u64)blockIdx.x * SMALL_LEAVES + warp * 8;
	u32 low = args.mode.key[q.lane], high = args.mode.key[4 + q.lane];

	if (first < leaves) {
		const u8 *begin = (const u8 *)args.address, *end = begin + args.length, *base = begin + first * 1024;
		u64 left = args.length - first * 1024;
		u32 length = left > row * 1024 ? (u32)min((u64)1024, left - row * 1024) : 0;
		u32 blocks = length ? (length + 63) >> 6 : 1, last = length - (blocks - 1) * 64;
		u32 most = left >= 1024 ? 16 : left ? (u32)(left + 63) >> 6 : 1;
		u32 root = leaves == 1 ? ROOT : 0;
		bool full = __all_sync(~0u, blocks == 16);
		struct quarter x[4];
		u32 places[28];

#pragma unroll
		for (int r = 0; r < 7; r++) {
#pragma unroll
			for (int i = 0; i < 4; i++)
				places[4 * r + i] = (q.k[i] >> (4 * r) & 15) * 4;
		}
#pragma unroll
		for (int i = 0; i < 4; i++) {
			u32 k = lane + 32 * i;

			load(x[i], base + (k >> 4) * 1024 + (k & 15) * 16, begin, end);
		}
		/* Four blocks of each leaf at a time, while the next four are loaded. */
#pragma unroll 1
		for (u32 four = 0; four * 4 < most; four++) {
			const char *m = (const char *)&rows[warp][row * ROW];

			__syncwarp();
#pragma unroll
			for (int i = 0; i < 4; i++) {
				u32 k = lane + 32 * i;

				*(uint4 *)&rows[warp][(k >> 4) * ROW + (k & 15) * 4] = joined(x[i]);
			}
			__syncwarp();
			if (four < 3) {
#pragma unroll
				for (int i = 0; i < 4; i++) {
					u32 k = lane + 32 * i;

					load(x[i], base + (k >> 4) * 1024 + (four + 1) * 256 + (k & 15) * 16, begin, end);
				}
			}
			u32 next = *(const u32 *)(m + places[0]);

#pragma unroll 1
			for (u32 j = four * 4; j < four * 4 + 4; j++, m += 64) {
				bool is_end = j + 1 == blocks;
				u32 flags = (j ? 0 : CHUNK_START) | (is_end ? CHUNK_END | root : 0) | args.mode.flags;
				u32 d = q.lane == 0 ? (u32)(first + row) :
					q.lane == 1 ? 0 :
					q.lane == 2 ? (is_end ? last : 64) :
						      flags;
				u32 a = low, b = high;

				compress_quad(a, b, d, q, args.mode.one - 1, next, [&](int r, int i) {
					return *(const u32 *)(r < 7 ? m + places[4 * (r < 7 ? r : 0) + i] :
								      m + 64 + places[0]);
				});
				if (full || j < blocks) {
					low = a;
					high = b;
				}
			}
		}
	}
	s[at(warp * 8 + row) + q.lane] = low;
	s[at(warp * 8 + row) + 4 + q.lane] = high;
	__syncthreads();
	u32 n = (u32)min((u64)SMALL_LEAVES, leaves - (u64)blockIdx.x * SMALL_LEAVES);

	reduce(s, n, leaves, 32, SMALL_LEAVES, args.mode);
	hand_over(s, blockIdx.x, args.blocks, args.pairs, epoch, SMALL_LEAVES, args.out, args.mailbox, args.mode);
	/* The last block gets here when all others have read the epoch. */
	if (blockIdx.x + 1 == args.blocks && t == 0)
		*args.epoch = epoch;
}
