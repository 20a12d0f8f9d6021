// SPDX-License-Identifier: GPL-2.0-only
/*
 * BLAKE3 of many small inputs side by side. One small input has too few leaves and
 * parents for the lanes of a variant; leaves and parents of several inputs fill
 * them.
 */
#ifdef __KERNEL__
#include <linux/string.h>
#else
#include <string.h>
#endif

#include "variant.h"

#define BLOCK		NYMPH_BLAKE3_BLOCK_SIZE
#define LEAF		NYMPH_BLAKE3_LEAF_SIZE
#define CV		NYMPH_BLAKE3_OUT_SIZE
#define MANY		NYMPH_BLAKE3_MANY

/* An input of more leaves fills the lanes alone. */
#define LEAVES_EACH	16

/* Highest number of leaves of all inputs that are hashed together. */
#define LEAVES		128

/**
 * struct nymph_blake3_batch - working memory of nymph_blake3_hash_many()
 * @alone: state for an input that is large
 * @jobs: jobs that the lanes run next
 * @outs: destinations of the chaining values of @jobs
 * @nr_jobs: number of @jobs
 * @made: chaining values of @jobs
 * @ends: last blocks of @jobs that are not whole, filled up with zeros
 * @cvs: chaining values of leaves, later of parents; those of an input are
 *	neighbours
 * @first: index in @cvs of the first chaining value of each input
 * @nodes: number of chaining values that each input has; 1 in the end
 * @short_leaves: inputs whose last leaf is not whole, fewest blocks last
 */
struct nymph_blake3_batch {
	struct nymph_blake3 alone;
	struct nymph_blake3_job jobs[MANY];
	u8 *outs[MANY];
	size_t nr_jobs;
	u8 made[MANY * CV];
	u8 ends[MANY][BLOCK];
	u8 cvs[LEAVES][CV];
	u8 first[LEAVES];
	u8 nodes[LEAVES];
	u8 short_leaves[LEAVES];
};

/* Runs the jobs. */
static void flush(struct nymph_blake3_batch *batch)
{
	const struct nymph_blake3_variant *variant;
	struct nymph_blake3_simd simd;
	size_t i;

	if (!batch->nr_jobs)
		return;
	variant = nymph_blake3_simd_begin(&simd, batch->nr_jobs * LEAF);
	variant->many(batch->jobs, batch->nr_jobs, batch->made);
	nymph_blake3_simd_end(&simd);
	for (i = 0; i < batch->nr_jobs; i++)
		memcpy(batch->outs[i], batch->made + CV * i, CV);
	batch->nr_jobs = 0;
}

/* Returns a new job; the caller sets in, end, blocks and len. The rest is zeros. */
static struct nymph_blake3_job *add_job(struct nymph_blake3_batch *batch,
					u8 *out)
{
	struct nymph_blake3_job *job;

	if (batch->nr_jobs == MANY)
		flush(batch);
	batch->outs[batch->nr_jobs] = out;
	job = &batch->jobs[batch->nr_jobs++];
	job->counter = 0;
	job->first = 0;
	job->last = 0;
	return job;
}

static size_t nr_leaves(size_t len)
{
	return len ? (len - 1) / LEAF + 1 : 1;
}

/* Returns the number of blocks of the last leaf. */
static size_t blocks_at_end(size_t len)
{
	return len ? ((len - 1) % LEAF) / BLOCK + 1 : 1;
}

static void add_leaf(struct nymph_blake3_batch *batch,
		     const struct nymph_blake3_input *in, size_t counter,
		     u8 *out)
{
	struct nymph_blake3_job *job = add_job(batch, out);
	size_t len = in->len - counter * LEAF;

	if (len > LEAF)
		len = LEAF;
	job->in = in->data;
	if (counter)
		job->in += counter * LEAF;
	job->blocks = blocks_at_end(len);
	job->len = len - BLOCK * (job->blocks - 1);
	if (job->len < BLOCK) {
		u8 *end = batch->ends[batch->nr_jobs - 1];

		if (job->len)
			memcpy(end, job->in + BLOCK * (job->blocks - 1),
			       job->len);
		memset(end + job->len, 0, BLOCK - job->len);
		job->end = end;
	} else {
		job->end = job->in + BLOCK * (job->blocks - 1);
	}
	job->counter = counter;
	job->first = CHUNK_START;
	job->last = CHUNK_END | (in->len <= LEAF ? ROOT : 0);
}

static void add_parent(struct nymph_blake3_batch *batch, const u8 *pair,
		       bool is_root, u8 *out)
{
	struct nymph_blake3_job *job = add_job(batch, out);

	job->in = pair;
	job->end = pair;
	job->blocks = 1;
	job->len = BLOCK;
	job->last = PARENT | (is_root ? ROOT : 0);
}

/* Hashes whole leaves first, then the others from many blocks to few. */
static void hash_leaves(struct nymph_blake3_batch *batch,
			const struct nymph_blake3_input *in, size_t n,
			u8 out[][CV])
{
	size_t begin[LEAF / BLOCK + 1] = {};
	size_t blocks, i, k, used = 0;

	for (i = 0; i < n; i++) {
		size_t last = nr_leaves(in[i].len) - 1;

		batch->first[i] = used;
		batch->nodes[i] = last + 1;
		used += last + 1;
		blocks = blocks_at_end(in[i].len);
		begin[LEAF / BLOCK - blocks + 1]++;
		for (k = 0; k < last + (blocks == LEAF / BLOCK); k++)
			add_leaf(batch, &in[i], k, last ?
				  batch->cvs[batch->first[i] + k] : out[i]);
	}
	/* leaves that are not whole, sorted by counting */
	begin[1] = 0;
	for (i = 2; i <= LEAF / BLOCK; i++)
		begin[i] += begin[i - 1];
	used = begin[LEAF / BLOCK];
	for (i = 0; i < n; i++) {
		blocks = blocks_at_end(in[i].len);
		if (blocks < LEAF / BLOCK) {
			k = begin[LEAF / BLOCK - blocks]++;
			batch->short_leaves[k] = i;
		}
	}
	for (k = 0; k < used; k++) {
		size_t last;

		i = batch->short_leaves[k];
		last = batch->nodes[i] - 1;
		add_leaf(batch, &in[i], last, last ?
			  batch->cvs[batch->first[i] + last] : out[i]);
	}
	flush(batch);
}

/* Hashes the parents of all inputs, level by level from the leaves up. */
static void hash_parents(struct nymph_blake3_batch *batch, size_t n,
			 u8 out[][CV])
{
	size_t i, k, todo;

	do {
		todo = 0;
		for (i = 0; i < n; i++) {
			u8 (*cvs)[CV] = batch->cvs + batch->first[i];
			bool is_root = batch->nodes[i] == 2;

			for (k = 0; k < batch->nodes[i] / 2; k++)
				add_parent(batch, cvs[2 * k], is_root,
					   is_root ? out[i] : cvs[k]);
		}
		flush(batch);
		for (i = 0; i < n; i++) {
			u8 (*cvs)[CV] = batch->cvs + batch->first[i];
			size_t pairs = batch->nodes[i] / 2;

			/* a node without a sibling moves up unchanged */
			if (pairs && batch->nodes[i] % 2) {
				memcpy(cvs[pairs], cvs[2 * pairs], CV);
				batch->nodes[i] = pairs + 1;
			} else if (pairs) {
				batch->nodes[i] = pairs;
			}
			todo |= batch->nodes[i] > 1;
		}
	} while (todo);
}

/**
 * nymph_blake3_batch_size() - Get the size of a struct nymph_blake3_batch
 *
 * Its memory may have any content, and needs the alignment that kmalloc() and
 * malloc() give.
 *
 * Return: number of bytes.
 */
size_t nymph_blake3_batch_size(void)
{
	return sizeof(struct nymph_blake3_batch);
}

/**
 * nymph_blake3_hash_many() - Hash many inputs without a key
 * @batch: working memory, nymph_blake3_batch_size() bytes
 * @in: inputs, each of any length
 * @n: number of inputs
 * @out: destination of the digests, 32 bytes each; does not overlap an input
 *
 * Inputs of at most 16 KiB are hashed side by side. Reading an input must not fault.
 */
void nymph_blake3_hash_many(struct nymph_blake3_batch *batch,
			    const struct nymph_blake3_input *in, size_t n,
			    u8 out[][NYMPH_BLAKE3_OUT_SIZE])
{
	batch->nr_jobs = 0;
	while (n) {
		size_t i, leaves = 0;

		if (in->len > LEAVES_EACH * LEAF) {
			nymph_blake3_init(&batch->alone);
			nymph_blake3_update(&batch->alone, in->data, in->len);
			nymph_blake3_final(&batch->alone, *out);
			i = 1;
		} else {
			for (i = 0; i < n; i++) {
				if (in[i].len > LEAVES_EACH * LEAF)
					break;
				leaves += nr_leaves(in[i].len);
				if (leaves > LEAVES)
					break;
			}
			hash_leaves(batch, in, i, out);
			hash_parents(batch, i, out);
		}
		in += i;
		out += i;
		n -= i;
	}
}
