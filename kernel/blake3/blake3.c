// SPDX-License-Identifier: GPL-2.0-only
/*
 * BLAKE3 for the kernel and for user space.
 *
 * The input is cut into the leaves of a binary tree, 1 KiB each. BLAKE3's
 * specification calls a leaf a chunk. Portable C, or a variant for the CPU's SIMD
 * instructions, hashes many leaves or parents at a time.
 *
 * The file is long because the tree, the parts of it and the portable variant share
 * private functions that the compiler has to inline.
 */
#ifdef __KERNEL__
#include <linux/bitops.h>
#include <linux/string.h>
#include <asm/byteorder.h>
#include <asm/simd.h>
#ifdef CONFIG_X86_64
#include <asm/fpu/api.h>
#endif
#ifdef NYMPH_BLAKE3_NEON
#include <asm/neon.h>
#endif
#else
#include <endian.h>
#include <string.h>
#endif

#include "constants.h"
#include "variant.h"

#ifdef NYMPH_NEON_TAKES_STATE
#define neon_begin(simd)	kernel_neon_begin(&(simd)->state)
#define neon_end(simd)		kernel_neon_end(&(simd)->state)
#else
#define neon_begin(simd)	kernel_neon_begin()
#define neon_end(simd)		kernel_neon_end()
#endif

#ifndef __KERNEL__
#define le32_to_cpu	le32toh
#define cpu_to_le32	htole32
#define hweight64	__builtin_popcountll

static inline u32 ror32(u32 word, unsigned int shift)
{
	return word >> shift | word << (32 - shift);
}
#endif

#define BLOCK		NYMPH_BLAKE3_BLOCK_SIZE
#define CV		NYMPH_BLAKE3_OUT_SIZE
#define LEAF		NYMPH_BLAKE3_LEAF_SIZE
#define LEAF_BLOCKS	(LEAF / BLOCK)

#define MANY		NYMPH_BLAKE3_MANY
#define LOG2_MANY	4

/* For fewer bytes a section in which SIMD may be used costs more than it saves. */
#ifdef __KERNEL__
#define SIMD_MIN	(2 * BLOCK)
#else
#define SIMD_MIN	1
#endif

static const struct nymph_blake3_variant *nymph_blake3_variant;

static __always_inline void load_words(u32 *words, const u8 *bytes, size_t n)
{
	size_t i;

#pragma GCC unroll 16
	for (i = 0; i < n; i++) {
		__le32 word;

		memcpy(&word, bytes + 4 * i, sizeof(word));
		words[i] = le32_to_cpu(word);
	}
}

static __always_inline void store_words(u8 *bytes, const u32 *words, size_t n)
{
	size_t i;

#pragma GCC unroll 16
	for (i = 0; i < n; i++) {
		__le32 word = cpu_to_le32(words[i]);

		memcpy(bytes + 4 * i, &word, sizeof(word));
	}
}

static __always_inline void mix(u32 v[16], int a, int b, int c, int d,
				u32 x, u32 y)
{
	v[a] += v[b] + x;
	v[d] = ror32(v[d] ^ v[a], 16);
	v[c] += v[d];
	v[b] = ror32(v[b] ^ v[c], 12);
	v[a] += v[b] + y;
	v[d] = ror32(v[d] ^ v[a], 8);
	v[c] += v[d];
	v[b] = ror32(v[b] ^ v[c], 7);
}

/* Always inlined with a constant @s: no index is computed at run time. */
static __always_inline void mix_round(u32 v[16], const u32 m[16],
				      const u8 s[16])
{
	mix(v, 0, 4, 8, 12, m[s[0]], m[s[1]]);
	mix(v, 1, 5, 9, 13, m[s[2]], m[s[3]]);
	mix(v, 2, 6, 10, 14, m[s[4]], m[s[5]]);
	mix(v, 3, 7, 11, 15, m[s[6]], m[s[7]]);
	mix(v, 0, 5, 10, 15, m[s[8]], m[s[9]]);
	mix(v, 1, 6, 11, 12, m[s[10]], m[s[11]]);
	mix(v, 2, 7, 8, 13, m[s[12]], m[s[13]]);
	mix(v, 3, 4, 9, 14, m[s[14]], m[s[15]]);
}

static __always_inline void mix_all(u32 v[16], const u32 cv[8],
				    const u8 block[BLOCK], u32 len,
				    u64 counter, u32 flags)
{
	u32 m[16];

	load_words(m, block, 16);
	memcpy(v, cv, 8 * sizeof(u32));
	memcpy(v + 8, nymph_blake3_iv, 4 * sizeof(u32));
	v[12] = (u32)counter;
	v[13] = (u32)(counter >> 32);
	v[14] = len;
	v[15] = flags;

	mix_round(v, m, nymph_blake3_schedule[0]);
	mix_round(v, m, nymph_blake3_schedule[1]);
	mix_round(v, m, nymph_blake3_schedule[2]);
	mix_round(v, m, nymph_blake3_schedule[3]);
	mix_round(v, m, nymph_blake3_schedule[4]);
	mix_round(v, m, nymph_blake3_schedule[5]);
	mix_round(v, m, nymph_blake3_schedule[6]);
}

static void compress(const u32 cv[8], const u8 block[BLOCK], u32 len,
		     u64 counter, u32 flags, u32 out[16])
{
	u32 v[16];
	int i;

	mix_all(v, cv, block, len, counter, flags);
#pragma GCC unroll 8
	for (i = 0; i < 8; i++) {
		out[i + 8] = v[i + 8] ^ cv[i];
		out[i] = v[i] ^ v[i + 8];
	}
}

static void hash(const u8 *const *in, size_t n,
		 const struct nymph_blake3_task *task, u8 *out)
{
	size_t i, j, k;

	for (i = 0; i < n; i++) {
		u32 cv[8];

		memcpy(cv, task->key, sizeof(cv));
		for (j = 0; j < task->blocks; j++) {
			u32 v[16];

			mix_all(v, cv, in[i] + BLOCK * j, BLOCK,
				task->counter + (task->counts ? i : 0),
				nymph_blake3_flags(task, j));
#pragma GCC unroll 8
			for (k = 0; k < 8; k++)
				cv[k] = v[k] ^ v[k + 8];
		}
		store_words(out + CV * i, cv, 8);
	}
}

static void many(const struct nymph_blake3_job *jobs, size_t n, u8 *out)
{
	const struct nymph_blake3_job *job;

	for (job = jobs; job < jobs + n; job++, out += CV) {
		u32 cv[16];
		size_t i;

		memcpy(cv, nymph_blake3_iv, CV);
		for (i = 1; i <= job->blocks; i++) {
			bool is_last = i == job->blocks;

			compress(cv, is_last ? job->end :
				 job->in + BLOCK * (i - 1),
				 is_last ? job->len : BLOCK, job->counter,
				 (i == 1 ? job->first : 0) |
				 (is_last ? job->last : 0), cv);
		}
		store_words(out, cv, 8);
	}
}

static const struct nymph_blake3_variant nymph_blake3_portable = {
	.name = "portable",
	.hash = hash,
	.compress = compress,
	.many = many,
};

/**
 * nymph_blake3_use() - Set the variant that hashes from now on
 * @variant: the variant, or NULL for portable C
 */
void nymph_blake3_use(const struct nymph_blake3_variant *variant)
{
	WRITE_ONCE(nymph_blake3_variant, variant);
}

/**
 * nymph_blake3_simd_begin() - Begin a section that hashes, with SIMD if possible
 * @simd: the section; valid until nymph_blake3_simd_end()
 * @len: bytes to hash in the section, at most 16 KiB
 *
 * Until nymph_blake3_simd_end() the caller neither sleeps nor faults.
 *
 * Return: the variant to hash with.
 */
const struct nymph_blake3_variant *
nymph_blake3_simd_begin(struct nymph_blake3_simd *simd, size_t len)
{
	const struct nymph_blake3_variant *variant;

	simd->variant = &nymph_blake3_portable;
	variant = READ_ONCE(nymph_blake3_variant);
	if (!variant || len < SIMD_MIN)
		return simd->variant;
#ifdef __KERNEL__
	if (!may_use_simd())
		return simd->variant;
#if defined(CONFIG_X86_64)
	kernel_fpu_begin();
#elif defined(NYMPH_BLAKE3_NEON)
	neon_begin(simd);
#endif
#endif
	simd->variant = variant;
	return variant;
}

/**
 * nymph_blake3_simd_end() - End a section that hashes
 * @simd: the section that nymph_blake3_simd_begin() began
 */
void nymph_blake3_simd_end(struct nymph_blake3_simd *simd)
{
	if (simd->variant == &nymph_blake3_portable)
		return;
#if defined(__KERNEL__) && defined(CONFIG_X86_64)
	kernel_fpu_end();
#elif defined(__KERNEL__) && defined(NYMPH_BLAKE3_NEON)
	neon_end(simd);
#endif
}

static void start(struct nymph_blake3 *b, const u32 key[8], u32 flags)
{
	memcpy(b->key, key, sizeof(b->key));
	memcpy(b->cv, key, sizeof(b->cv));
	b->counter = 0;
	b->flags = flags;
	b->blocks = 0;
	b->block_len = 0;
	b->depth = 0;
}

/**
 * nymph_blake3_init() - Start a hash
 * @b: state
 */
void nymph_blake3_init(struct nymph_blake3 *b)
{
	start(b, nymph_blake3_iv, 0);
}

/**
 * nymph_blake3_init_keyed() - Start a keyed hash (MAC)
 * @b: state
 * @key: 32 bytes
 */
void nymph_blake3_init_keyed(struct nymph_blake3 *b,
			     const u8 key[NYMPH_BLAKE3_KEY_SIZE])
{
	u32 words[8];

	load_words(words, key, 8);
	start(b, words, KEYED_HASH);
}

/**
 * nymph_blake3_init_derive_key() - Start to derive a key
 * @b: state; nymph_blake3_update() adds the key material
 * @context: purpose of the key: a constant, globally unique string
 * @len: bytes of @context
 */
void nymph_blake3_init_derive_key(struct nymph_blake3 *b, const void *context,
				  size_t len)
{
	u8 key[NYMPH_BLAKE3_KEY_SIZE];
	u32 words[8];

	start(b, nymph_blake3_iv, DERIVE_KEY_CONTEXT);
	nymph_blake3_update(b, context, len);
	nymph_blake3_final(b, key);
	load_words(words, key, 8);
	start(b, words, DERIVE_KEY_MATERIAL);
}

static u32 leaf_start_flag(const struct nymph_blake3 *b)
{
	return b->blocks ? 0 : CHUNK_START;
}

/* Adds @n whole blocks, not the last of the leaf, to the leaf being filled. */
static void leaf_blocks(const struct nymph_blake3_variant *variant,
			struct nymph_blake3 *b, const u8 *in, size_t n)
{
	struct nymph_blake3_task task = {
		.counter = b->counter,
		.blocks = n,
		.flags = b->flags,
		.first = leaf_start_flag(b),
	};
	u8 cv[CV];

	memcpy(task.key, b->cv, sizeof(task.key));
	variant->hash(&in, 1, &task, cv);
	load_words(b->cv, cv, 8);
	b->blocks += n;
}

/* Adds bytes to a leaf. The last block stays in @b, because it may end the leaf. */
static void leaf_update(struct nymph_blake3 *b, const u8 *in, size_t len)
{
	const struct nymph_blake3_variant *variant;
	struct nymph_blake3_simd simd;
	size_t n = 0;

	if (b->block_len) {
		n = BLOCK - b->block_len;
		if (n > len)
			n = len;
		memcpy(b->block + b->block_len, in, n);
		b->block_len += n;
		in += n;
		len -= n;
		if (!len)
			return;
		n = 1;
	}
	if (n || len > BLOCK) {
		variant = nymph_blake3_simd_begin(&simd, n * BLOCK + len);
		if (n)
			leaf_blocks(variant, b, b->block, 1);
		n = (len - 1) / BLOCK;
		if (n)
			leaf_blocks(variant, b, in, n);
		nymph_blake3_simd_end(&simd);
		in += n * BLOCK;
		len -= n * BLOCK;
	}
	memcpy(b->block, in, len);
	b->block_len = len;
}

/* Replaces @n pairs of chaining values with the chaining values of their parents. */
static void hash_parents(const struct nymph_blake3_variant *variant,
			 const struct nymph_blake3 *b, u8 *cvs, size_t n)
{
	struct nymph_blake3_task task = {
		.blocks = 1,
		.flags = b->flags | PARENT,
	};
	const u8 *pairs[MANY];
	size_t i;

	memcpy(task.key, b->key, sizeof(task.key));
	for (i = 0; i < n; i++)
		pairs[i] = cvs + 2 * CV * i;
	variant->hash(pairs, n, &task, cvs);
}

static void hash_leaves(const struct nymph_blake3_variant *variant,
			const struct nymph_blake3 *b, u64 first, const u8 *in,
			size_t n, const size_t ahead[2], u8 *cvs)
{
	struct nymph_blake3_task task = {
		.counter = first,
		.counts = true,
		.blocks = LEAF_BLOCKS,
		.flags = b->flags,
		.first = CHUNK_START,
		.last = CHUNK_END,
		.ahead = { ahead[0], ahead[1] },
	};
	const u8 *leaves[MANY];
	size_t i;

	memcpy(task.key, b->key, sizeof(task.key));
	for (i = 0; i < n; i++)
		leaves[i] = in + LEAF * i;
	variant->hash(leaves, n, &task, cvs);
}

/*
 * Merges subtrees of equal size. The caller knows that more input follows the first
 * @leaves leaves: the last merge of a tree makes the root, and only
 * nymph_blake3_final_xof() makes that.
 */
static void merge(struct nymph_blake3 *b, u64 leaves)
{
	const struct nymph_blake3_variant *variant;
	struct nymph_blake3_simd simd;
	unsigned int left = hweight64(leaves);

	if (b->depth <= left)
		return;
	variant = nymph_blake3_simd_begin(&simd, (b->depth - left) * BLOCK);
	for (; b->depth > left; b->depth--)
		hash_parents(variant, b, b->stack[b->depth - 2], 1);
	nymph_blake3_simd_end(&simd);
}

/* Adds the subtree that starts with leaf number @leaves. */
static void push(struct nymph_blake3 *b, const u8 cv[CV], u64 leaves)
{
	merge(b, leaves);
	memmove(b->stack[b->depth++], cv, CV);
}

/* Adds the leaf that was being filled: it is whole, and more input follows. */
static void push_leaf(struct nymph_blake3 *b)
{
	u32 out[16];
	u8 cv[CV];

	compress(b->cv, b->block, BLOCK, b->counter, b->flags | CHUNK_END, out);
	store_words(cv, out, 8);
	push(b, cv, b->counter);
	b->counter++;
	memcpy(b->cv, b->key, sizeof(b->cv));
	b->blocks = 0;
	b->block_len = 0;
}

/* Copies @n bytes to @dst, if that is not NULL. Returns where to hash them. */
static const u8 *copied(const u8 *in, u8 *dst, size_t n)
{
	return dst ? memcpy(dst, in, n) : in;
}

/*
 * Computes the chaining values of MANY subtrees of @size leaves each, a power of 2,
 * so that parents use all lanes too. @in has @len bytes: the next ones are
 * prefetched while some are hashed.
 */
static void hash_subtrees(const struct nymph_blake3 *b, const u8 *in,
			  size_t len, u8 *dst, size_t size, u8 *cvs)
{
	const struct nymph_blake3_variant *variant;
	struct nymph_blake3_simd simd;
	size_t done, pairs;

	for (done = 1; done <= size; done++) {
		const u8 *at = copied(in, dst, MANY * LEAF);

		size_t ahead[2] = {};

		if (len >= 2 * MANY * LEAF) {
			ahead[0] = MANY * LEAF;
			if (dst)
				ahead[1] = in - at + MANY * LEAF;
		}
		variant = nymph_blake3_simd_begin(&simd, MANY * LEAF);
		hash_leaves(variant, b, b->counter + MANY * (done - 1), at,
			    MANY, ahead, cvs);
		nymph_blake3_simd_end(&simd);
		in += MANY * LEAF;
		if (dst)
			dst += MANY * LEAF;
		len -= MANY * LEAF;
		cvs += MANY * CV;
		/* each carry of done, as a binary counter, completes parents */
		for (pairs = done; !(pairs & 1); pairs /= 2) {
			cvs -= MANY * CV;
			variant = nymph_blake3_simd_begin(&simd, MANY * BLOCK);
			hash_parents(variant, b, cvs - MANY * CV, MANY);
			nymph_blake3_simd_end(&simd);
		}
	}
}

/*
 * Adds as many whole leaves as can be hashed side by side, and returns their bytes.
 * The first leaf of all is added alone only if more input follows. Several leaves
 * are added as at least two subtrees, because the parent of the last two may be the
 * root.
 */
static size_t push_leaves(struct nymph_blake3 *b, const u8 *in, size_t len,
			  u8 *dst)
{
	const struct nymph_blake3_variant *variant;
	struct nymph_blake3_simd simd;
	size_t max = len / LEAF, size = 1, left[LOG2_MANY], nr_left = 0;
	const size_t none[2] = {};
	size_t n, last, i;
	u8 *cvs;

	/* the stack has room for everything that is computed here */
	merge(b, b->counter);
	cvs = b->stack[b->depth];

	/* a subtree starts at a multiple of its size */
	if (b->counter && max > (b->counter & -b->counter))
		max = b->counter & -b->counter;
	n = max < MANY ? max : MANY;
	while (n == MANY && size < NYMPH_BLAKE3_SUBTREE / MANY && 2 * size * MANY <= max)
		size *= 2;
	if (n == MANY) {
		hash_subtrees(b, in, len, dst, size, cvs);
	} else {
		in = copied(in, dst, n * LEAF);
		variant = nymph_blake3_simd_begin(&simd, n * LEAF);
		hash_leaves(variant, b, b->counter, in, n, none, cvs);
		nymph_blake3_simd_end(&simd);
	}
	len = n * size * LEAF;

	last = n & (n - 1) ? 1 : 2;
	for (; n > last; n /= 2, size *= 2) {
		left[nr_left] = n & 1 ? n - 1 : 0;
		nr_left++;
		variant = nymph_blake3_simd_begin(&simd, n / 2 * BLOCK);
		hash_parents(variant, b, cvs, n / 2);
		nymph_blake3_simd_end(&simd);
	}
	for (i = 0; i < n; i++) {
		push(b, cvs + CV * i, b->counter);
		b->counter += size;
	}
	/* subtrees without a sibling, the largest first */
	while (nr_left--) {
		size /= 2;
		if (left[nr_left]) {
			push(b, cvs + CV * left[nr_left], b->counter);
			b->counter += size;
		}
	}
	return len;
}

static void update(struct nymph_blake3 *b, const u8 *in, size_t len, u8 *dst)
{
	size_t n;

	if (!len)
		return;
	if (b->block_len) {
		n = LEAF - b->blocks * BLOCK - b->block_len;
		if (n > len)
			n = len;
		leaf_update(b, copied(in, dst, n), n);
		in += n;
		if (dst)
			dst += n;
		len -= n;
		if (!len)
			return;
		push_leaf(b);
	}
	while (len > LEAF || (len == LEAF && b->counter)) {
		n = push_leaves(b, in, len, dst);
		in += n;
		if (dst)
			dst += n;
		len -= n;
	}
	if (len) {
		merge(b, b->counter);
		leaf_update(b, copied(in, dst, len), len);
	}
}

/**
 * nymph_blake3_update() - Add bytes to a hash
 * @b: state
 * @data: bytes, at any alignment
 * @len: number of bytes, possibly 0
 *
 * Calls with 128 KiB or more are the fastest, and with 16 KiB or more almost as
 * fast. Calls with less than 1 KiB are the slowest: the bytes go through a buffer.
 */
void nymph_blake3_update(struct nymph_blake3 *b, const void *data, size_t len)
{
	update(b, data, len, NULL);
}

/**
 * nymph_blake3_update_copy() - Copy bytes and add them to a hash
 * @b: state
 * @dst: destination; does not overlap @src
 * @src: bytes, at any alignment
 * @len: number of bytes, possibly 0
 *
 * The function loads each byte of @src once and hashes the copy. The hash is of the
 * bytes at @dst, even if @src changes during the call.
 */
void nymph_blake3_update_copy(struct nymph_blake3 *b, void *dst,
			      const void *src, size_t len)
{
	update(b, src, len, dst);
}

/**
 * nymph_blake3_len() - Get the number of bytes that were added to a hash
 * @b: state
 *
 * Return: number of bytes.
 */
u64 nymph_blake3_len(const struct nymph_blake3 *b)
{
	return b->counter * LEAF + b->blocks * BLOCK + b->block_len;
}

/**
 * nymph_blake3_fork() - Start a part of a hash, which can be hashed beside others
 * @part: state of the part. nymph_blake3_update() or nymph_blake3_update_copy() adds
 *	all bytes of the part; nymph_blake3_join() adds the part to the hash
 * @b: state of the whole hash; only read, so many parts can be hashed at once
 * @at: number of bytes before the part, a multiple of its size
 *
 * The size of a part is a power of two, and at least 2 KiB.
 */
void nymph_blake3_fork(struct nymph_blake3 *part, const struct nymph_blake3 *b,
		       u64 at)
{
	start(part, b->key, b->flags);
	part->counter = at / LEAF;
	/* subtrees before the part are not known here, but take their place */
	part->depth = hweight64(part->counter);
}

/**
 * nymph_blake3_join() - Add a part to a hash
 * @b: state, to which all bytes before the part were added
 * @part: state, to which all bytes of the part were added
 */
void nymph_blake3_join(struct nymph_blake3 *b, struct nymph_blake3 *part)
{
	const struct nymph_blake3_variant *variant;
	struct nymph_blake3_simd simd;
	unsigned int below;
	u64 half;

	/* more input follows the last block of each */
	if (b->block_len)
		push_leaf(b);
	if (part->block_len)
		push_leaf(part);

	/* added as two subtrees, because their parent may be the root */
	below = hweight64(b->counter);
	variant = nymph_blake3_simd_begin(&simd, (part->depth - below) * BLOCK);
	for (; part->depth > below + 2; part->depth--)
		hash_parents(variant, part, part->stack[part->depth - 2], 1);
	nymph_blake3_simd_end(&simd);
	half = (part->counter - b->counter) / 2;
	push(b, part->stack[below], b->counter);
	b->counter += half;
	push(b, part->stack[below + 1], b->counter);
	b->counter += half;
}

/**
 * nymph_blake3_final_xof() - Read any part of a hash's output
 * @b: state; not changed, so more input can be added
 * @seek: offset into the output, which has no end, in bytes
 * @out: destination, @len bytes
 * @len: number of bytes to read
 */
void nymph_blake3_final_xof(const struct nymph_blake3 *b, u64 seek, void *out,
			    size_t len)
{
	const struct nymph_blake3_variant *variant;
	struct nymph_blake3_simd simd;
	unsigned int depth = b->depth;
	u8 block[BLOCK] = { };
	u32 block_len, flags;
	u64 counter;
	u32 cv[8];
	u32 v[16];

	/* the right edge of the tree: the leaf being filled, or the last parent */
	if (b->block_len || !depth) {
		memcpy(cv, b->cv, sizeof(cv));
		memcpy(block, b->block, b->block_len);
		block_len = b->block_len;
		counter = b->counter;
		flags = b->flags | leaf_start_flag(b) | CHUNK_END;
	} else {
		depth -= 2;
		memcpy(cv, b->key, sizeof(cv));
		memcpy(block, b->stack[depth], BLOCK);
		block_len = BLOCK;
		counter = 0;
		flags = b->flags | PARENT;
	}
	variant = nymph_blake3_simd_begin(&simd, (depth + 1) * BLOCK);
	/* from there up to the root */
	while (depth) {
		variant->compress(cv, block, block_len, counter, flags, v);
		memcpy(block, b->stack[--depth], CV);
		store_words(block + CV, v, 8);
		memcpy(cv, b->key, sizeof(cv));
		block_len = BLOCK;
		counter = 0;
		flags = b->flags | PARENT;
	}
	counter = seek / BLOCK;
	variant->compress(cv, block, block_len, counter, flags | ROOT, v);
	nymph_blake3_simd_end(&simd);

	for (seek %= BLOCK; len; seek = 0) {
		u8 bytes[BLOCK];
		size_t n = BLOCK - seek;

		store_words(bytes, v, 16);
		if (n > len)
			n = len;
		memcpy(out, bytes + seek, n);
		out += n;
		len -= n;
		if (!len)
			break;
		variant = nymph_blake3_simd_begin(&simd, BLOCK);
		variant->compress(cv, block, block_len, ++counter,
				  flags | ROOT, v);
		nymph_blake3_simd_end(&simd);
	}
}

/**
 * nymph_blake3_final() - Read the 32 bytes of a digest
 * @b: state; not changed, so more input can be added
 * @out: destination, 32 bytes
 */
void nymph_blake3_final(const struct nymph_blake3 *b,
			u8 out[NYMPH_BLAKE3_OUT_SIZE])
{
	nymph_blake3_final_xof(b, 0, out, NYMPH_BLAKE3_OUT_SIZE);
}
