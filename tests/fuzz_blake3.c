// SPDX-License-Identifier: GPL-2.0-only
/*
 * For libFuzzer, by make fuzz-blake3: every variant that this CPU has against portable C, which the unit
 * tests hold against the official package. What the fuzzer makes is spans of an input, how each is added,
 * and in which mode; the same spans are a batch as well.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "variant.h"

#define MOST 64 /* spans */
#define LONGEST 70000
#define OUT 200

struct span {
	u32 len;
	bool is_copied;
	bool is_read_after;
	bool is_forked;
};

static struct nymph_blake3_input inputs[MOST];
static u8 bytes[LONGEST + 64];

static void require(bool is_right, const char *what, const char *variant)
{
	if (is_right)
		return;
	fprintf(stderr, "%s: %s is not portable C's\n", variant ? variant : "portable", what);
	abort();
}

/* Adds what can be as two parts, which are made the second first, and the rest as it is. */
static void add_forked(struct nymph_blake3 *b, u8 *to, const u8 *from, size_t len)
{
	struct nymph_blake3 *parts = malloc(2 * sizeof(*parts));

	memset(parts, 0xa5, 2 * sizeof(*parts));
	while (len) {
		u64 at = nymph_blake3_len(b);
		size_t n, size = 2048;

		while (4 * size <= len && at % (2 * size) == 0)
			size *= 2;
		n = 2 * size;
		if (at % size == 0 && n <= len) {
			nymph_blake3_fork(&parts[1], b, at + size);
			nymph_blake3_update_copy(&parts[1], to + size, from + size, size);
			nymph_blake3_fork(&parts[0], b, at);
			nymph_blake3_update_copy(&parts[0], to, from, size);
			nymph_blake3_join(b, &parts[0]);
			nymph_blake3_join(b, &parts[1]);
		} else {
			n = len < size - at % size ? len : size - at % size;
			nymph_blake3_update_copy(b, to, from, n);
		}
		to += n;
		from += n;
		len -= n;
	}
	free(parts);
}

/* Each span in an allocation of its own, so that what is read or written beside it is found. */
static void hash_spans(u8 mode, const struct span *spans, size_t n, u8 out[OUT])
{
	struct nymph_blake3 *b = malloc(sizeof(*b));
	size_t i;

	memset(b, 0xa5, sizeof(*b));
	switch (mode % 3) {
	case 0:
		nymph_blake3_init(b);
		break;
	case 1:
		nymph_blake3_init_keyed(b, bytes);
		break;
	default:
		nymph_blake3_init_derive_key(b, bytes, mode);
	}
	for (i = 0; i < n; i++) {
		size_t len = spans[i].len;
		u8 *from = malloc(len), *to = malloc(len);

		memcpy(from, inputs[i].data, len);
		if (spans[i].is_forked) {
			add_forked(b, to, from, len);
			require(!memcmp(to, from, len), "copy in parts", NULL);
		} else if (spans[i].is_copied) {
			nymph_blake3_update_copy(b, to, from, len);
			require(!memcmp(to, from, len), "copy", NULL);
		} else {
			nymph_blake3_update(b, from, len);
		}
		if (spans[i].is_read_after)
			nymph_blake3_final(b, out);
		free(from);
		free(to);
	}
	nymph_blake3_final_xof(b, mode, out, OUT);
	free(b);
}

static void hash_one_by_one(size_t n, u8 out[][NYMPH_BLAKE3_OUT_SIZE])
{
	static struct nymph_blake3 b;
	size_t i;

	for (i = 0; i < n; i++) {
		nymph_blake3_init(&b);
		nymph_blake3_update(&b, inputs[i].data, inputs[i].len);
		nymph_blake3_final(&b, out[i]);
	}
}

static void compare(const struct nymph_blake3_variant *variant, u8 mode, const struct span *spans, size_t n)
{
	static u8 many[2][MOST][NYMPH_BLAKE3_OUT_SIZE];
	const char *name = variant ? variant->name : NULL;
	struct nymph_blake3_batch *batch;
	struct span whole[MOST];
	u8 out[2][OUT];
	size_t i;

	for (i = 0; i < n; i++) {
		whole[i] = spans[i];
		whole[i].is_forked = false;
	}
	nymph_blake3_use(NULL);
	hash_spans(mode, whole, n, out[0]);
	hash_one_by_one(n, many[0]);

	nymph_blake3_use(variant);
	hash_spans(mode, spans, n, out[1]);
	require(!memcmp(out[0], out[1], OUT), "hash", name);
	batch = malloc(nymph_blake3_batch_size());
	memset(batch, 0xa5, nymph_blake3_batch_size());
	nymph_blake3_hash_many(batch, inputs, n, many[1]);
	free(batch);
	require(!memcmp(many[0], many[1], n * sizeof(many[0][0])), "batch", name);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	struct span spans[MOST];
	u8 mode = size ? *data : 0;
	size_t n, i, room = LONGEST;

	if (!bytes[1]) {
		for (i = 0; i < sizeof(bytes); i++)
			bytes[i] = i * 2654435761U >> 13;
		bytes[1] |= 1;
	}
	/* three bytes each: how, and a length, or so many blocks */
	for (n = 0; n < MOST && 3 * n + 3 < size; n++) {
		const u8 *p = data + 1 + 3 * n;
		u32 len = p[1] | p[2] << 8;

		len = p[0] & 4 ? len % 400 * 64 : len % 20000;
		len += p[0] >> 4 & 1;
		if (len > room)
			len = room;
		room -= len;
		spans[n] = (struct span){ len, p[0] & 1, p[0] & 2, p[0] & 8 };
		inputs[n].data = bytes + (p[0] >> 5) + (LONGEST - room - len);
		inputs[n].len = len;
	}
	compare(NULL, mode, spans, n);
#ifdef __x86_64__
	if (__builtin_cpu_supports("sse4.1"))
		compare(&nymph_blake3_sse41, mode, spans, n);
	if (__builtin_cpu_supports("avx2"))
		compare(&nymph_blake3_avx2, mode, spans, n);
	if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl"))
		compare(&nymph_blake3_avx512, mode, spans, n);
#elif defined(__aarch64__)
	compare(&nymph_blake3_neon, mode, spans, n);
#endif
	return 0;
}
