// SPDX-License-Identifier: GPL-2.0-only
/*
 * BLAKE3 of many small inputs side by side. What one of them has too few chunks
 * or parents for, all of them together have enough of: the lanes of a variant
 * are filled with those of any input.
 */
#ifdef __KERNEL__
#include <linux/string.h>
#else
#include <string.h>
#endif

#include "variant.h"

#define BLOCK		NYMPH_BLAKE3_BLOCK_SIZE
#define CHUNK		NYMPH_BLAKE3_CHUNK_SIZE
#define CV		NYMPH_BLAKE3_OUT_SIZE
#define MANY		NYMPH_BLAKE3_MANY

/* Inputs of more chunks have enough of their own. */
#define CHUNKS_EACH	16

/* Chunks of all inputs that are looked at together. */
#define CHUNKS		128

/**
 * struct nymph_blake3_batch - what nymph_blake3_hash_many() works with
 * @alone: for an input that is large
 * @jobs: what the lanes are to do
 * @outs: where the chaining values of @jobs are to go
 * @nr_jobs: how many
 * @made: the chaining values of @jobs
 * @ends: last blocks of @jobs that are not whole, with zeros
 * @cvs: of each chunk, then of each parent, those of an input side by side
 * @first: which of @cvs are the first of each input
 * @nodes: how many each input has, until there is one
 * @short_chunks: last chunks of few blocks, by input, fewest last
 */
struct nymph_blake3_batch {
	struct nymph_blake3 alone;
	struct nymph_blake3_job jobs[MANY];
	u8 *outs[MANY];
	size_t nr_jobs;
	u8 made[MANY * CV];
	u8 ends[MANY][BLOCK];
	u8 cvs[CHUNKS][CV];
	u8 first[CHUNKS];
	u8 nodes[CHUNKS];
	u8 short_chunks[CHUNKS];
};

static void flush(struct nymph_blake3_batch *batch)
{
	const struct nymph_blake3_variant *variant;
	size_t i;

	if (!batch->nr_jobs)
		return;
	variant = nymph_blake3_simd_begin(batch->nr_jobs * CHUNK);
	variant->many(batch->jobs, batch->nr_jobs, batch->made);
	nymph_blake3_simd_end(variant);
	for (i = 0; i < batch->nr_jobs; i++)
		memcpy(batch->outs[i], batch->made + CV * i, CV);
	batch->nr_jobs = 0;
}

/* A job, whose fields but for in and end are zeros. */
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

static size_t nr_chunks(size_t len)
{
	return len ? (len - 1) / CHUNK + 1 : 1;
}

/* Blocks of the last chunk. */
static size_t blocks_at_end(size_t len)
{
	return len ? ((len - 1) % CHUNK) / BLOCK + 1 : 1;
}

static void add_chunk(struct nymph_blake3_batch *batch,
		      const struct nymph_blake3_input *in, size_t counter,
		      u8 *out)
{
	struct nymph_blake3_job *job = add_job(batch, out);
	size_t len = in->len - counter * CHUNK;

	if (len > CHUNK)
		len = CHUNK;
	job->in = in->data;
	if (counter)
		job->in += counter * CHUNK;
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
	job->last = CHUNK_END | (in->len <= CHUNK ? ROOT : 0);
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

/* Those of whole chunks first, and then those of less, by their length. */
static void hash_chunks(struct nymph_blake3_batch *batch,
			const struct nymph_blake3_input *in, size_t n,
			u8 out[][CV])
{
	size_t begin[CHUNK / BLOCK + 1] = {};
	size_t blocks, i, k, used = 0;

	for (i = 0; i < n; i++) {
		size_t last = nr_chunks(in[i].len) - 1;

		batch->first[i] = used;
		batch->nodes[i] = last + 1;
		used += last + 1;
		blocks = blocks_at_end(in[i].len);
		begin[CHUNK / BLOCK - blocks + 1]++;
		for (k = 0; k < last + (blocks == CHUNK / BLOCK); k++)
			add_chunk(batch, &in[i], k, last ?
				  batch->cvs[batch->first[i] + k] : out[i]);
	}
	/* what is left to do, sorted by counting */
	begin[1] = 0;
	for (i = 2; i <= CHUNK / BLOCK; i++)
		begin[i] += begin[i - 1];
	used = begin[CHUNK / BLOCK];
	for (i = 0; i < n; i++) {
		blocks = blocks_at_end(in[i].len);
		if (blocks < CHUNK / BLOCK) {
			k = begin[CHUNK / BLOCK - blocks]++;
			batch->short_chunks[k] = i;
		}
	}
	for (k = 0; k < used; k++) {
		size_t last;

		i = batch->short_chunks[k];
		last = batch->nodes[i] - 1;
		add_chunk(batch, &in[i], last, last ?
			  batch->cvs[batch->first[i] + last] : out[i]);
	}
	flush(batch);
}

/* Those of all inputs, from the leaves on, level by level. */
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

			/* one that has no sibling goes up as it is */
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
 * nymph_blake3_batch_size() - size of what nymph_blake3_hash_many() works with
 *
 * Return: how much memory to allocate for a struct nymph_blake3_batch, of any
 * content and of the alignment that kmalloc() and malloc() give.
 */
size_t nymph_blake3_batch_size(void)
{
	return sizeof(struct nymph_blake3_batch);
}

/**
 * nymph_blake3_hash_many() - hashes of many inputs
 * @batch: to work with
 * @in: the inputs, each of any length
 * @n: how many
 * @out: where their hashes go; not among the inputs
 *
 * The same hashes as one by one, without a key, but with inputs of less than
 * 16 KiB side by side. No input may fault.
 */
void nymph_blake3_hash_many(struct nymph_blake3_batch *batch,
			    const struct nymph_blake3_input *in, size_t n,
			    u8 out[][NYMPH_BLAKE3_OUT_SIZE])
{
	batch->nr_jobs = 0;
	while (n) {
		size_t i, chunks = 0;

		if (in->len > CHUNKS_EACH * CHUNK) {
			nymph_blake3_init(&batch->alone);
			nymph_blake3_update(&batch->alone, in->data, in->len);
			nymph_blake3_final(&batch->alone, *out);
			i = 1;
		} else {
			for (i = 0; i < n; i++) {
				if (in[i].len > CHUNKS_EACH * CHUNK)
					break;
				chunks += nr_chunks(in[i].len);
				if (chunks > CHUNKS)
					break;
			}
			hash_chunks(batch, in, i, out);
			hash_parents(batch, i, out);
		}
		in += i;
		out += i;
		n -= i;
	}
}
