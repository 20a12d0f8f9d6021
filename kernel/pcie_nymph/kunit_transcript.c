// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: tests of transcripts and statements inside the kernel.
 */
#include <kunit/test.h>
#include <linux/string.h>

#include "kunit.h"
#include "ring.h"

#define RECORD		128
#define ENTRIES		300

/* Working memory of a test. */
struct transcripts {
	struct nymph_transcript one;
	struct nymph_transcript other;
	struct nymph_transfer transfer;
	struct nymph_blake3 hash;
	u8 stream[ENTRIES][RECORD];
};

static struct transcripts *begin(struct kunit *test)
{
	struct transcripts *t = kunit_kzalloc(test, sizeof(*t), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, t);
	nymph_transcript_begin(&t->one);
	nymph_transcript_begin(&t->other);
	return t;
}

/* Writes a number of @n bytes, little-endian. */
static void put(u8 *to, u64 value, unsigned int n)
{
	for (; n; n--, value >>= 8)
		*to++ = value;
}

/* Reads a number of @n bytes, little-endian. */
static u64 get(const u8 *from, unsigned int n)
{
	u64 value = 0;

	while (n--)
		value = value << 8 | from[n];
	return value;
}

/* Entry number @i: every field differs from that of the entry before. */
static struct nymph_entry entry_of(u32 i)
{
	return (struct nymph_entry){
		.size = sizeof(struct nymph_entry),
		.opcode = i % 5,
		.flags = i * 3 & 0x7f,
		.length = 0x0102030405060708ULL + i,
		.src = 0x1112131415161718ULL + i,
		.dst = 0x2122232425262728ULL + i,
		.src_buffer = 0x31323334 + i,
		.dst_buffer = 0x41424344 + i,
		.cookie = 0x5152535455565758ULL + i,
	};
}

/* Adds entry @i; writes what is expected of it to @to, by hand. */
static void add(struct nymph_transcript *transcript,
		struct nymph_transfer *transfer, u32 i, u8 *to)
{
	const struct nymph_entry e = entry_of(i);
	bool started = i % 7;
	int status = i % 3 ? 0 : -ECANCELED;

	memset(to, 0, RECORD);
	put(to, status, 4);
	put(to + 4, e.flags, 4);
	put(to + 8, e.opcode, 2);
	put(to + 16, e.length, 8);
	put(to + 24, e.src, 8);
	put(to + 32, e.dst, 8);
	put(to + 40, e.src_buffer, 4);
	put(to + 44, e.dst_buffer, 4);
	put(to + 48, e.cookie, 8);
	transfer->done = e.length - 1;
	transfer->record_flags = i % 4;
	memset(transfer->src_digest, i, NYMPH_DIGEST_SIZE);
	memset(transfer->dst_digest, ~i, NYMPH_DIGEST_SIZE);
	if (started) {
		put(to + 10, i % 4, 2);
		put(to + 12, i + 1, 4);
		put(to + 56, e.length - 1, 8);
		if (i % 4 & NYMPH_RECORD_SRC_DIGEST)
			memset(to + 64, i, NYMPH_DIGEST_SIZE);
		if (i % 4 & NYMPH_RECORD_DST_DIGEST)
			memset(to + 96, ~i, NYMPH_DIGEST_SIZE);
	}
	nymph_transcript_add(transcript, &e, status, started ? i + 1 : 0,
			     started ? transfer : NULL);
}

static void layout_test(struct kunit *test)
{
	KUNIT_EXPECT_EQ(test, sizeof(struct nymph_transcript_record),
			(size_t)RECORD);
	KUNIT_EXPECT_EQ(test, sizeof(struct nymph_statement), (size_t)208);
	KUNIT_EXPECT_EQ(test, offsetof(struct nymph_statement, ring_size),
			(size_t)152);
	KUNIT_EXPECT_EQ(test, sizeof(struct nymph_attest), (size_t)104);
	KUNIT_EXPECT_EQ(test, offsetof(struct nymph_attest, signature),
			(size_t)88);
	KUNIT_EXPECT_EQ(test, offsetof(struct nymph_snapshot, transcript),
			(size_t)112);
}

/* Checks each digest against that of the bytes, read once or after every entry. */
static void transcript_is_of_the_stream_test(struct kunit *test)
{
	struct transcripts *t = begin(test);
	u8 want[NYMPH_DIGEST_SIZE], got[NYMPH_DIGEST_SIZE];
	u32 i;

	KUNIT_EXPECT_EQ(test, t->other.id, t->one.id + 1);
	for (i = 0; i <= ENTRIES; i++) {
		nymph_blake3_init_derive_key(&t->hash,
					     "pcie_nymph 2026-12 transcript v1", 32);
		nymph_blake3_update(&t->hash, t->stream, i * RECORD);
		nymph_blake3_final(&t->hash, want);
		nymph_transcript_read(&t->one, got);
		KUNIT_ASSERT_EQ(test, memcmp(got, want, sizeof(want)), 0);
		KUNIT_ASSERT_EQ(test, t->one.count, (u64)i);
		if (i == ENTRIES)
			break;
		add(&t->one, &t->transfer, i, t->stream[i]);
		add(&t->other, &t->transfer, i, t->stream[i]);
	}
	nymph_transcript_read(&t->other, got);
	KUNIT_EXPECT_EQ(test, memcmp(got, want, sizeof(want)), 0);
}

/* Checks that the digest of two entries tells their order, and whether one is missing. */
static void transcript_has_an_order_test(struct kunit *test)
{
	struct transcripts *t = begin(test);
	u8 one[NYMPH_DIGEST_SIZE], other[NYMPH_DIGEST_SIZE];

	add(&t->one, &t->transfer, 1, t->stream[0]);
	nymph_transcript_read(&t->one, one);
	add(&t->one, &t->transfer, 2, t->stream[0]);
	add(&t->other, &t->transfer, 2, t->stream[0]);
	nymph_transcript_read(&t->other, other);
	KUNIT_EXPECT_NE(test, memcmp(one, other, sizeof(one)), 0);
	add(&t->other, &t->transfer, 1, t->stream[0]);
	nymph_transcript_read(&t->one, one);
	nymph_transcript_read(&t->other, other);
	KUNIT_EXPECT_NE(test, memcmp(one, other, sizeof(one)), 0);
}

static void statement_is_little_endian_test(struct kunit *test)
{
	struct nymph_snapshot *snap;
	struct nymph_statement *s;
	u8 nonce[NYMPH_NONCE_SIZE];
	const u8 *b;

	snap = kunit_kzalloc(test, sizeof(*snap), GFP_KERNEL);
	s = kunit_kzalloc(test, sizeof(*s), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, snap);
	KUNIT_ASSERT_NOT_NULL(test, s);
	memset(nonce, 0x11, sizeof(nonce));
	memset(snap->transcript, 0x22, sizeof(snap->transcript));
	memset(snap->ring_hash, 0x33, sizeof(snap->ring_hash));
	snap->transcript_count = 0x0102030405060708ULL;
	snap->transcript_id = 9;
	snap->dma_bytes = 10;
	snap->ring = (struct nymph_dma_ring){ 11, 12, 13, 0, 14 };
	snap->active_descriptors = 15;
	snap->unread_records = 16;
	snap->errors = 17;
	snap->first_error = -EIO;
	snap->state = 18;
	snap->engine = 19;
	nymph_statement_fill(s, snap, nonce, 20, 5);

	b = (const u8 *)s;
	KUNIT_EXPECT_EQ(test, memcmp(b, "nymph attest v1", 16), 0);
	KUNIT_EXPECT_EQ(test, memcmp(b + 16, nonce, 32), 0);
	KUNIT_EXPECT_EQ(test, get(b + 48, 4), 213ULL);
	KUNIT_EXPECT_EQ(test, get(b + 52, 4), 208ULL);
	KUNIT_EXPECT_NE(test, get(b + 56, 8), 0ULL);
	KUNIT_EXPECT_EQ(test, memcmp(b + 64, snap->transcript, 32), 0);
	KUNIT_EXPECT_EQ(test, b[96], 8);
	KUNIT_EXPECT_EQ(test, b[103], 1);
	KUNIT_EXPECT_EQ(test, get(b + 104, 8), 9ULL);
	KUNIT_EXPECT_EQ(test, get(b + 112, 8), 10ULL);
	KUNIT_EXPECT_EQ(test, memcmp(b + 120, snap->ring_hash, 32), 0);
	KUNIT_EXPECT_EQ(test, get(b + 152, 4), 11ULL);
	KUNIT_EXPECT_EQ(test, get(b + 156, 4), 12ULL);
	KUNIT_EXPECT_EQ(test, get(b + 160, 4), 13ULL);
	KUNIT_EXPECT_EQ(test, get(b + 168, 8), 14ULL);
	KUNIT_EXPECT_EQ(test, get(b + 176, 4), 15ULL);
	KUNIT_EXPECT_EQ(test, get(b + 180, 4), 16ULL);
	KUNIT_EXPECT_EQ(test, get(b + 184, 8), 17ULL);
	KUNIT_EXPECT_EQ(test, (int)get(b + 192, 4), -EIO);
	KUNIT_EXPECT_EQ(test, get(b + 196, 4), 18ULL);
	KUNIT_EXPECT_EQ(test, get(b + 200, 4), 19ULL);
	KUNIT_EXPECT_EQ(test, get(b + 204, 4), 20ULL);
}

static struct kunit_case transcript_cases[] = {
	KUNIT_CASE(layout_test),
	KUNIT_CASE_SLOW(transcript_is_of_the_stream_test),
	KUNIT_CASE(transcript_has_an_order_test),
	KUNIT_CASE(statement_is_little_endian_test),
	{}
};

static struct kunit_suite transcript_suite = {
	.name = "pcie_nymph_transcript",
	.test_cases = transcript_cases,
};

kunit_test_suite(transcript_suite);
