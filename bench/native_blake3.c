// SPDX-License-Identifier: GPL-2.0-only
/*
 * What bench/native_blake3.py measures, as a library: loops over kernel/blake3 and over the official C. Each
 * returns nanoseconds of this thread's CPU time.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "variant.h"

/* The official implementation, built for one instruction set. */
struct official {
	void (*init)(void *state);
	void (*update)(void *state, const void *data, size_t len);
	void (*finalize)(const void *state, u8 *out, size_t len);
};

static struct nymph_blake3 hash;
static _Alignas(64) u8 official_hash[8192];

static u64 now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

void bench_digest(const void *data, size_t len, u8 *out)
{
	nymph_blake3_init(&hash);
	nymph_blake3_update(&hash, data, len);
	nymph_blake3_final(&hash, out);
}

static void official_digest(const struct official *o, const void *data, size_t len, u8 *out)
{
	o->init(official_hash);
	o->update(official_hash, data, len);
	o->finalize(official_hash, out, NYMPH_BLAKE3_OUT_SIZE);
}

u64 bench_ours(const void *data, size_t len, size_t times, u8 *out)
{
	u64 begun = now();

	while (times--)
		bench_digest(data, len, out);
	return now() - begun;
}

u64 bench_official(const struct official *o, const void *data, size_t len, size_t times, u8 *out)
{
	u64 begun = now();

	while (times--)
		official_digest(o, data, len, out);
	return now() - begun;
}

/* @n inputs side by side, of which @lens are the lengths and @step is the distance. */
u64 bench_batch(const u8 *data, size_t step, const size_t *lens, size_t n, size_t times, u8 (*out)[32])
{
	struct nymph_blake3_input *in = calloc(n, sizeof(*in));
	struct nymph_blake3_batch *batch = malloc(nymph_blake3_batch_size());
	u64 begun, taken = 0;
	size_t i;

	if (in && batch) {
		for (i = 0; i < n; i++) {
			in[i].data = data + step * i;
			in[i].len = lens[i];
		}
		begun = now();
		while (times--)
			nymph_blake3_hash_many(batch, in, n, out);
		taken = now() - begun;
	}
	free(batch);
	free(in);
	return taken;
}

/* The same inputs one by one; of the official implementation if @o is one. */
u64 bench_one_by_one(const struct official *o, const u8 *data, size_t step, const size_t *lens, size_t n,
		     size_t times, u8 (*out)[32])
{
	u64 begun = now();
	size_t i;

	while (times--) {
		for (i = 0; i < n; i++) {
			if (o)
				official_digest(o, data + step * i, lens[i], out[i]);
			else
				bench_digest(data + step * i, lens[i], out[i]);
		}
	}
	return now() - begun;
}

u64 bench_copy(void *dst, const void *src, size_t len, u8 *out)
{
	u64 begun = now();

	nymph_blake3_init(&hash);
	nymph_blake3_update_copy(&hash, dst, src, len);
	nymph_blake3_final(&hash, out);
	return now() - begun;
}

/* What the driver does with memory that it borrows: by way of a bounce buffer, and hashed in there. */
u64 bench_bounce(u8 *dst, const u8 *src, size_t len, u8 *out)
{
	static _Alignas(64) u8 bounce[16384];
	u64 begun = now();
	size_t n;

	nymph_blake3_init(&hash);
	for (; len; len -= n, src += n, dst += n) {
		n = len < sizeof(bounce) ? len : sizeof(bounce);
		memcpy(bounce, src, n);
		nymph_blake3_update(&hash, bounce, n);
		memcpy(dst, bounce, n);
	}
	nymph_blake3_final(&hash, out);
	return now() - begun;
}

/* What people do without: copy, then hash the copy. */
u64 bench_copy_official(const struct official *o, void *dst, const void *src, size_t len, u8 *out)
{
	u64 begun = now();

	memmove(dst, src, len);
	official_digest(o, dst, len, out);
	return now() - begun;
}

/* What two threads share, as the driver's team does: a chunk of eight parts at a time. */
#define PART (NYMPH_BLAKE3_SUBTREE * 1024UL)
#define PARTS 8

struct shared {
	pthread_barrier_t begin, end;
	const u8 *chunk; /* NULL when all is done */
	u64 at;
	atomic_uint next;
	struct nymph_blake3 parts[PARTS];
};

static void do_parts(struct shared *s)
{
	unsigned int i;

	while ((i = atomic_fetch_add(&s->next, 1)) < PARTS) {
		nymph_blake3_fork(&s->parts[i], &hash, s->at + PART * i);
		nymph_blake3_update(&s->parts[i], s->chunk + PART * i, PART);
	}
}

static void *help(void *argument)
{
	struct shared *s = argument;

	for (;;) {
		pthread_barrier_wait(&s->begin);
		if (!s->chunk)
			return NULL;
		do_parts(s);
		pthread_barrier_wait(&s->end);
	}
}

/* Returns whether there was a second thread. */
int bench_two_threads(const u8 *data, size_t len, u8 *out)
{
	static struct shared s;
	pthread_t helper;
	int i;

	pthread_barrier_init(&s.begin, NULL, 2);
	pthread_barrier_init(&s.end, NULL, 2);
	if (pthread_create(&helper, NULL, help, &s))
		return 0;
	nymph_blake3_init(&hash);
	for (s.at = 0; len - s.at >= PARTS * PART; s.at += PARTS * PART) {
		s.chunk = data + s.at;
		atomic_store(&s.next, 0);
		pthread_barrier_wait(&s.begin);
		do_parts(&s);
		pthread_barrier_wait(&s.end);
		for (i = 0; i < PARTS; i++)
			nymph_blake3_join(&hash, &s.parts[i]);
	}
	s.chunk = NULL;
	pthread_barrier_wait(&s.begin);
	pthread_join(helper, NULL);
	nymph_blake3_update(&hash, data + s.at, len - s.at);
	nymph_blake3_final(&hash, out);
	return 1;
}
