// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: tests of a ring's queues, entries and times inside the kernel.
 */
#include <kunit/test.h>
#include <linux/minmax.h>

#include "kunit.h"
#include "ring.h"

static void fifo_wrap_test(struct kunit *test)
{
	static const u32 sizes[] = { 1, 2, 3, 4, 5, 7, 8, 63, 64, 65 };
	struct nymph_fifo f;
	unsigned int s;
	u32 tail, count, i;

	for (s = 0; s < ARRAY_SIZE(sizes); s++) {
		u32 size = sizes[s];

		for (tail = 0; tail < size; tail++) {
			for (count = 0; count <= size; count++) {
				f = (struct nymph_fifo){ size, tail, count };
				KUNIT_ASSERT_EQ(test, nymph_fifo_head(&f),
						(tail + count) % size);
				KUNIT_ASSERT_EQ(test, nymph_fifo_run(&f),
						min(count, size - tail));
				for (i = 0; i < count; i++)
					KUNIT_ASSERT_EQ(test,
							nymph_fifo_at(&f, i),
							(tail + i) % size);
			}
		}
	}
}

static void fifo_push_pop_test(struct kunit *test)
{
	static const u32 sizes[] = { 1, 2, 3, 255, NYMPH_MAX_ENTRIES };
	unsigned int s;
	u32 round, n;

	for (s = 0; s < ARRAY_SIZE(sizes); s++) {
		struct nymph_fifo f = { .size = sizes[s] };
		u64 pushed = 0, popped = 0;

		for (round = 0; round < 3 * sizes[s] + 3; round++) {
			for (n = round % (sizes[s] - f.count + 1); n; n--) {
				KUNIT_ASSERT_EQ(test, nymph_fifo_head(&f),
						(u32)(pushed++ % f.size));
				nymph_fifo_push(&f);
			}
			n = min(nymph_fifo_run(&f), round % 7 + 1);
			nymph_fifo_pop(&f, n);
			popped += n;
			KUNIT_ASSERT_EQ(test, f.tail, (u32)(popped % f.size));
			KUNIT_ASSERT_EQ(test, f.count, (u32)(pushed - popped));
		}
	}
}

static const struct nymph_entry good_copy = {
	.size = sizeof(struct nymph_entry),
	.opcode = NYMPH_OP_COPY,
	.length = 4096,
	.src = 0x10000,
	.dst = 0x20000,
	.cookie = ~0ULL,
};

#define EXPECT_CHECK(_want, ...) do {					\
	struct nymph_entry e = good_copy;				\
									\
	__VA_ARGS__;							\
	KUNIT_EXPECT_EQ_MSG(test, nymph_entry_check(&e), _want,		\
			    "%s", #__VA_ARGS__);			\
} while (0)

static void entry_check_test(struct kunit *test)
{
	u32 bit;

	EXPECT_CHECK(0, (void)e);
	EXPECT_CHECK(0, e.length = 1);
	EXPECT_CHECK(0, e.length = NYMPH_MAX_LENGTH; e.dst = 1ULL << 40);
	EXPECT_CHECK(0, e.dst = e.src + 4096);
	EXPECT_CHECK(0, e.src = e.dst + 4096);
	EXPECT_CHECK(0, e.flags = NYMPH_DMA_FLAG_VERIFY_HASH);
	EXPECT_CHECK(0, e.flags = NYMPH_DMA_FLAG_DIGEST_ONLY |
				  NYMPH_DMA_FLAG_RECORD);

	EXPECT_CHECK(-EINVAL, e.size = 0);
	EXPECT_CHECK(-EINVAL, e.size = 63);
	EXPECT_CHECK(-EINVAL, e.size = 65);
	EXPECT_CHECK(-EINVAL, e.length = 0);
	EXPECT_CHECK(-EINVAL, e.length = NYMPH_MAX_LENGTH + 1;
			      e.dst = 1ULL << 40);
	EXPECT_CHECK(-EINVAL, e.length = ~0ULL);
	EXPECT_CHECK(-EINVAL, e.dst = e.src);
	EXPECT_CHECK(-EINVAL, e.dst = e.src + 4095);
	EXPECT_CHECK(-EINVAL, e.src = e.dst + 4095);
	EXPECT_CHECK(-EINVAL, e.reserved[0] = 1);
	EXPECT_CHECK(-EINVAL, e.reserved[1] = 1ULL << 63);
	EXPECT_CHECK(-EINVAL, e.opcode = NYMPH_OP_COMPARE + 1);
	EXPECT_CHECK(-EINVAL, e.opcode = 0xffff);
	EXPECT_CHECK(-EINVAL, e.opcode = NYMPH_OP_NOP);
	EXPECT_CHECK(-EINVAL, e.flags = NYMPH_DMA_FLAG_DIGEST_ONLY);
	EXPECT_CHECK(-EINVAL, e.flags = NYMPH_DMA_FLAG_DIGEST_ONLY |
					NYMPH_DMA_FLAG_VERIFY_HASH |
					NYMPH_DMA_FLAG_RECORD);
	for (bit = 7; bit < 32; bit++)
		EXPECT_CHECK(-EINVAL, e.flags = BIT(bit));

	/* this check does not look up buffers */
	EXPECT_CHECK(0, e.src_buffer = 1);
	EXPECT_CHECK(0, e.dst_buffer = ~0U);
	EXPECT_CHECK(0, e.src_buffer = 1; e.dst = e.src);
	EXPECT_CHECK(0, e.src_buffer = 1; e.dst_buffer = 2; e.dst = e.src);
	EXPECT_CHECK(-EINVAL, e.src_buffer = 3; e.dst_buffer = 3;
			      e.dst = e.src + 4095);
	EXPECT_CHECK(0, e.src_buffer = 3; e.dst_buffer = 3;
			e.dst = e.src + 4096);
}

/* Checks the flags and operands that each opcode takes. */
static void operations_check_test(struct kunit *test)
{
	static const struct nymph_entry good[] = {
		{ .opcode = NYMPH_OP_NOP },
		{ .opcode = NYMPH_OP_COPY, .length = 64, .src = 4096,
		  .dst = 8192 },
		{ .opcode = NYMPH_OP_HASH, .length = 64, .src = 4096 },
		{ .opcode = NYMPH_OP_FILL, .length = 64, .src = ~0ULL,
		  .dst = 8192 },
		{ .opcode = NYMPH_OP_COMPARE, .length = 64, .src = 4096,
		  .dst = 8192 },
	};
	static const struct {
		u32 flag;
		/* opcodes that take it, one bit each */
		unsigned long taken;
	} flags[] = {
		{ NYMPH_DMA_FLAG_ZERO_COPY, 0x1e },
		{ NYMPH_DMA_FLAG_VERIFY_HASH, 0x0a },
		{ NYMPH_DMA_FLAG_COMPLETE_SYNC, 0x1f },
		{ NYMPH_DMA_FLAG_DIGEST_ONLY, 0x0a },
		{ NYMPH_DMA_FLAG_LINK, 0x1f },
		{ NYMPH_DMA_FLAG_BARRIER, 0x1f },
	};
	unsigned int op, f;

	for (op = 0; op < ARRAY_SIZE(good); op++) {
		struct nymph_entry e = good[op];
		bool src = op != NYMPH_OP_NOP && op != NYMPH_OP_FILL;
		bool dst = op != NYMPH_OP_NOP && op != NYMPH_OP_HASH;

		e.size = sizeof(e);
		KUNIT_EXPECT_EQ(test, nymph_entry_check(&e),
				op == NYMPH_OP_HASH ? -EINVAL : 0);
		for (f = 0; f < ARRAY_SIZE(flags); f++) {
			e.flags = NYMPH_DMA_FLAG_RECORD | flags[f].flag;
			KUNIT_EXPECT_EQ_MSG(test, nymph_entry_check(&e),
					    flags[f].taken & BIT(op) ? 0 :
								       -EINVAL,
					    "opcode %u, flag %#x", op,
					    flags[f].flag);
		}
		e.flags = NYMPH_DMA_FLAG_RECORD;
		KUNIT_EXPECT_EQ(test, nymph_entry_check(&e), 0);
		e.src_buffer = 1;
		KUNIT_EXPECT_EQ(test, nymph_entry_check(&e), src ? 0 : -EINVAL);
		e.src_buffer = 0;
		e.dst_buffer = 1;
		KUNIT_EXPECT_EQ(test, nymph_entry_check(&e), dst ? 0 : -EINVAL);
		e.dst_buffer = 0;
		if (!dst) {
			e.dst = 1;
			KUNIT_EXPECT_EQ(test, nymph_entry_check(&e), -EINVAL);
			e.dst = 0;
		}
		if (src && dst) {
			e.dst = e.src + 63;
			KUNIT_EXPECT_EQ(test, nymph_entry_check(&e), -EINVAL);
			e.dst = good[op].dst;
		}
		e.length = good[op].length ? 0 : 1;
		KUNIT_EXPECT_EQ(test, nymph_entry_check(&e), -EINVAL);
	}
}

/* Checks that each bucket starts where the one before it ends, up to the longest time. */
static void latency_buckets_test(struct kunit *test)
{
	unsigned int i;
	u64 ns = 0;

	for (i = 0; i < NYMPH_LATENCY_BUCKETS; i++) {
		u64 ceiling = nymph_latency_ceiling(i);

		KUNIT_ASSERT_GE(test, ceiling, ns);
		KUNIT_ASSERT_EQ(test, nymph_latency_bucket(ns), i);
		KUNIT_ASSERT_EQ(test, nymph_latency_bucket(ceiling), i);
		/* at most an eighth too long */
		KUNIT_ASSERT_LE(test, ceiling - ns, ns / 8);
		ns = ceiling + 1;
	}
	KUNIT_EXPECT_EQ(test, ns, 0ULL);
}

static void latency_quantiles_test(struct kunit *test)
{
	struct nymph_histogram *h = kunit_kzalloc(test, sizeof(*h), GFP_KERNEL);
	u64 ns;

	KUNIT_ASSERT_NOT_NULL(test, h);
	KUNIT_EXPECT_EQ(test, nymph_latency_quantile(h, 500), 0ULL);

	/* 1 to 1000: a quantile is its own rank, rounded up by its bucket */
	for (ns = 1; ns <= 1000; ns++)
		nymph_latency_add(h, ns);
	KUNIT_EXPECT_EQ(test, h->count, 1000ULL);
	KUNIT_EXPECT_EQ(test, h->sum_ns, 500500ULL);
	KUNIT_EXPECT_EQ(test, h->max_ns, 1000ULL);
	for (ns = 1; ns <= 1000; ns++) {
		u64 got = nymph_latency_quantile(h, ns);

		KUNIT_EXPECT_GE(test, got, ns);
		KUNIT_EXPECT_LE(test, got, ns + ns / 8);
	}
	KUNIT_EXPECT_EQ(test, nymph_latency_quantile(h, 1000), 1000ULL);

	/* an outlier is the 1001st of 1001, and changes no other quantile */
	nymph_latency_add(h, ~0ULL);
	KUNIT_EXPECT_EQ(test, nymph_latency_quantile(h, 1000), ~0ULL);
	KUNIT_EXPECT_LE(test, nymph_latency_quantile(h, 999), 1023ULL);
}

static struct kunit_case ring_cases[] = {
	KUNIT_CASE(fifo_wrap_test),
	KUNIT_CASE(fifo_push_pop_test),
	KUNIT_CASE(entry_check_test),
	KUNIT_CASE(operations_check_test),
	KUNIT_CASE(latency_buckets_test),
	KUNIT_CASE(latency_quantiles_test),
	{}
};

static struct kunit_suite ring_suite = {
	.name = "pcie_nymph_ring",
	.test_cases = ring_cases,
};

kunit_test_suite(ring_suite);
