// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: what can be tested inside the kernel. Part of the module when it
 * is built with NYMPH_KUNIT=y; runs when that is loaded.
 */
#include <kunit/test.h>
#include <linux/delay.h>
#include <linux/dma-buf.h>
#include <linux/dma-fence.h>
#include <linux/dma-resv.h>
#include <linux/err.h>
#include <linux/fcntl.h>
#include <linux/fdtable.h>
#include <linux/highmem.h>
#include <linux/irq_work.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/sched/user.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/string.h>

#include <asm/simd.h>
#ifdef CONFIG_X86
#include <asm/fpu/api.h>
#endif

#include "nymph.h"
#include "runs.h"
#include "select.h"

/*
 * BLAKE3: inputs and digests of the official test vectors (BLAKE3 team, CC0);
 * byte i of an input is i % 251.
 */
#define VECTOR_MAX	102400

static const struct {
	size_t len;
	const char *hash;
} vectors[] = {
	{ 0,
	  "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262" },
	{ 1,
	  "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213" },
	{ 63,
	  "e9bc37a594daad83be9470df7f7b3798297c3d834ce80ba85d6e207627b7db7b" },
	{ 64,
	  "4eed7141ea4a5cd4b788606bd23f46e212af9cacebacdc7d1f4c6dc7f2511b98" },
	{ 65,
	  "de1e5fa0be70df6d2be8fffd0e99ceaa8eb6e8c93a63f2d8d1c30ecb6b263dee" },
	{ 1023,
	  "10108970eeda3eb932baac1428c7a2163b0e924c9a9e25b35bba72b28f70bd11" },
	{ 1024,
	  "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7" },
	{ 1025,
	  "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444" },
	{ 2048,
	  "e776b6028c7cd22a4d0ba182a8bf62205d2ef576467e838ed6f2529b85fba24a" },
	{ 2049,
	  "5f4d72f40d7a5f82b15ca2b2e44b1de3c2ef86c426c95c1af0b6879522563030" },
	{ 3072,
	  "b98cb0ff3623be03326b373de6b9095218513e64f1ee2edd2525c7ad1e5cffd2" },
	{ 4097,
	  "9b4052b38f1c5fc8b1f9ff7ac7b27cd242487b3d890d15c96a1c25b8aa0fb995" },
	{ 8193,
	  "bab6c09cb8ce8cf459261398d2e7aef35700bf488116ceb94a36d0f5f1b7bc3b" },
	{ 31744,
	  "62b6960e1a44bcc1eb1a611a8d6235b6b4b78f32e7abc4fb4c6cdcce94895c47" },
	{ 102400,
	  "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085" },
};

/* Of 8193 bytes. */
static const char keyed_hash[] =
	"954a2a75420c8d6547e3ba5b98d963e6fa6491addc8c023189cc519821b4a1f5";
static const char derived_key[] =
	"af1e0346e389b17c23200270a64aa4e1ead98c61695d917de7d5b00491c9b0f1";

static u8 *vector_input(struct kunit *test)
{
	u8 *input = kunit_kmalloc(test, VECTOR_MAX, GFP_KERNEL);
	size_t i;

	KUNIT_ASSERT_NOT_NULL(test, input);
	for (i = 0; i < VECTOR_MAX; i++)
		input[i] = i % 251;
	return input;
}

static void expect_hex(struct kunit *test, const u8 got[NYMPH_DIGEST_SIZE],
		       const char *hex, size_t len)
{
	char got_hex[2 * NYMPH_DIGEST_SIZE + 1];

	snprintf(got_hex, sizeof(got_hex), "%*phN", NYMPH_DIGEST_SIZE, got);
	KUNIT_EXPECT_STREQ_MSG(test, got_hex, hex, "length %zu", len);
}

static void expect_digest(struct kunit *test, const struct nymph_blake3 *b,
			  const char *hex, size_t len)
{
	u8 got[NYMPH_DIGEST_SIZE];

	nymph_blake3_final(b, got);
	expect_hex(test, got, hex, len);
}

static void blake3_vectors_test(struct kunit *test)
{
	struct nymph_blake3 *b = kunit_kmalloc(test, sizeof(*b), GFP_KERNEL);
	const u8 *input = vector_input(test);
	unsigned int i;

	KUNIT_ASSERT_NOT_NULL(test, b);
	for (i = 0; i < ARRAY_SIZE(vectors); i++) {
		nymph_blake3_init(b);
		nymph_blake3_update(b, input, vectors[i].len);
		expect_digest(test, b, vectors[i].hash, vectors[i].len);
	}
}

static void blake3_split_test(struct kunit *test)
{
	struct nymph_blake3 *b = kunit_kmalloc(test, sizeof(*b), GFP_KERNEL);
	const u8 *input = vector_input(test);
	size_t step, at, n;
	unsigned int i;

	KUNIT_ASSERT_NOT_NULL(test, b);
	for (i = 0; i < ARRAY_SIZE(vectors); i++) {
		for (step = 1; step < 5000; step = step * 3 + 1) {
			nymph_blake3_init(b);
			for (at = 0; at < vectors[i].len; at += n) {
				n = min(step, vectors[i].len - at);
				nymph_blake3_update(b, input + at, n);
			}
			expect_digest(test, b, vectors[i].hash, vectors[i].len);
		}
	}
}

static void blake3_modes_test(struct kunit *test)
{
	static const u8 key[] = "whats the Elvish word for friend";
	static const char context[] =
		"BLAKE3 2019-12-27 16:29:52 test vectors context";
	struct nymph_blake3 *b = kunit_kmalloc(test, sizeof(*b), GFP_KERNEL);
	const u8 *input = vector_input(test);

	KUNIT_ASSERT_NOT_NULL(test, b);
	nymph_blake3_init_keyed(b, key);
	nymph_blake3_update(b, input, 8193);
	expect_digest(test, b, keyed_hash, 8193);

	nymph_blake3_init_derive_key(b, context, sizeof(context) - 1);
	nymph_blake3_update(b, input, 8193);
	expect_digest(test, b, derived_key, 8193);
}

/* All vectors in one batch, over and over, so that lanes change hands. */
static void blake3_many_test(struct kunit *test)
{
	unsigned int i, n = 5 * ARRAY_SIZE(vectors);
	struct nymph_blake3_batch *batch;
	struct nymph_blake3_input *in;
	u8 (*out)[NYMPH_DIGEST_SIZE];
	const u8 *input = vector_input(test);

	batch = kunit_kmalloc(test, nymph_blake3_batch_size(), GFP_KERNEL);
	in = kunit_kmalloc_array(test, n, sizeof(*in), GFP_KERNEL);
	out = kunit_kmalloc_array(test, n, sizeof(*out), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, batch);
	KUNIT_ASSERT_NOT_NULL(test, in);
	KUNIT_ASSERT_NOT_NULL(test, out);
	for (i = 0; i < n; i++) {
		in[i].data = input;
		in[i].len = vectors[i * 7 % ARRAY_SIZE(vectors)].len;
	}
	nymph_blake3_hash_many(batch, in, n, out);
	for (i = 0; i < n; i++)
		expect_hex(test, out[i],
			   vectors[i * 7 % ARRAY_SIZE(vectors)].hash,
			   in[i].len);
}

static void blake3_copy_test(struct kunit *test)
{
	struct nymph_blake3 *b = kunit_kmalloc(test, sizeof(*b), GFP_KERNEL);
	u8 *copy = kunit_kmalloc(test, VECTOR_MAX, GFP_KERNEL);
	const u8 *input = vector_input(test);
	unsigned int i;

	KUNIT_ASSERT_NOT_NULL(test, b);
	KUNIT_ASSERT_NOT_NULL(test, copy);
	for (i = 0; i < ARRAY_SIZE(vectors); i++) {
		memset(copy, 0xa5, VECTOR_MAX);
		nymph_blake3_init(b);
		nymph_blake3_update_copy(b, copy, input, vectors[i].len);
		expect_digest(test, b, vectors[i].hash, vectors[i].len);
		KUNIT_EXPECT_EQ(test, memcmp(copy, input, vectors[i].len), 0);
	}
}

/* Of 1025, 8193 and 31744 bytes. */
#define SHORT_VECTOR	7
#define SOME_VECTOR	12
#define LONG_VECTOR	13

/* All that can be as parts, the last made first. */
static void blake3_parts_test(struct kunit *test)
{
	struct nymph_blake3 *b = kunit_kmalloc(test, sizeof(*b), GFP_KERNEL);
	const u8 *input = vector_input(test);
	struct nymph_blake3 *parts;
	size_t len = vectors[LONG_VECTOR].len, size, nr, i;

	parts = kunit_kmalloc_array(test, len / 2048, sizeof(*parts),
				    GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, b);
	KUNIT_ASSERT_NOT_NULL(test, parts);
	for (size = 2048; size <= len; size *= 2) {
		nymph_blake3_init(b);
		nr = len / size;
		for (i = nr; i--;) {
			nymph_blake3_fork(&parts[i], b, i * size);
			nymph_blake3_update(&parts[i], input + i * size, size);
		}
		for (i = 0; i < nr; i++)
			nymph_blake3_join(b, &parts[i]);
		nymph_blake3_update(b, input + nr * size, len - nr * size);
		KUNIT_EXPECT_EQ(test, nymph_blake3_len(b), (u64)len);
		expect_digest(test, b, vectors[LONG_VECTOR].hash, len);
	}
}

/**
 * struct hasher - who makes a digest somewhere
 * @irq: where it is made
 * @hash: to work with
 * @input: of the vectors
 * @is_simd: whether SIMD was allowed there
 * @nr: how many digests were made
 * @nr_wrong: how many of these were wrong
 */
struct hasher {
	struct irq_work irq;
	struct nymph_blake3 hash;
	const u8 *input;
	bool is_simd;
	unsigned int nr;
	unsigned int nr_wrong;
};

static struct hasher *hashers(struct kunit *test, unsigned int nr)
{
	struct hasher *all = kunit_kcalloc(test, nr, sizeof(*all), GFP_KERNEL);
	const u8 *input = vector_input(test);
	unsigned int i;

	KUNIT_ASSERT_NOT_NULL(test, all);
	for (i = 0; i < nr; i++)
		all[i].input = input;
	return all;
}

/* Makes the digest of vector @i, in pieces of @step bytes. */
static void hash_vector(struct hasher *h, unsigned int i, size_t step)
{
	char got_hex[2 * NYMPH_DIGEST_SIZE + 1];
	u8 got[NYMPH_DIGEST_SIZE];
	size_t at, n;

	nymph_blake3_init(&h->hash);
	for (at = 0; at < vectors[i].len; at += n) {
		n = min(step, vectors[i].len - at);
		nymph_blake3_update(&h->hash, h->input + at, n);
	}
	nymph_blake3_final(&h->hash, got);
	h->nr++;
	snprintf(got_hex, sizeof(got_hex), "%*phN", NYMPH_DIGEST_SIZE, got);
	h->nr_wrong += strcmp(got_hex, vectors[i].hash) != 0;
}

static void hash_in_interrupt(struct irq_work *work)
{
	struct hasher *h = container_of(work, struct hasher, irq);

	h->is_simd = may_use_simd();
	hash_vector(h, SOME_VECTOR, 5000);
}

/* Where SIMD is not allowed, and in an interrupt that comes there. */
static void blake3_without_simd_test(struct kunit *test)
{
	struct hasher *h = hashers(test, 2);
	unsigned int i;

	h[1].irq = IRQ_WORK_INIT_HARD(hash_in_interrupt);
#ifdef CONFIG_X86
	kernel_fpu_begin();
#else
	local_irq_disable();
#endif
	h[0].is_simd = may_use_simd();
	hash_vector(&h[0], SOME_VECTOR, 5000);
	irq_work_queue(&h[1].irq);
#ifdef CONFIG_X86
	for (i = 0; i < 1000000 && !READ_ONCE(h[1].nr); i++)
		cpu_relax();
	kernel_fpu_end();
#else
	local_irq_enable();
#endif
	irq_work_sync(&h[1].irq);
	for (i = 0; i < 2; i++) {
		KUNIT_EXPECT_FALSE(test, h[i].is_simd);
		KUNIT_EXPECT_EQ(test, h[i].nr, 1U);
		KUNIT_EXPECT_EQ(test, h[i].nr_wrong, 0U);
	}
}

static int keep_hashing(void *data)
{
	struct hasher *h = data;

	while (!kthread_should_stop()) {
		hash_vector(h, h->nr % LONG_VECTOR, h->nr * 397 % 9000 + 1);
		cond_resched();
	}
	return 0;
}

static void hash_on_this_cpu(void *data)
{
	struct hasher *h = data;

	h += smp_processor_id();
	hash_vector(h, h->nr % (SHORT_VECTOR + 1), 700);
}

/* More threads than CPUs, and interrupts that come at any moment of theirs. */
static void blake3_threads_test(struct kunit *test)
{
	unsigned int i, nr = 2 * num_online_cpus() + 1;
	struct hasher *threads = hashers(test, nr);
	struct hasher *interrupts = hashers(test, nr_cpu_ids);
	struct task_struct **tasks;

	tasks = kunit_kcalloc(test, nr, sizeof(*tasks), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, tasks);
	for (i = 0; i < nr; i++)
		tasks[i] = kthread_run(keep_hashing, &threads[i], "hash/%u", i);
	for (i = 0; i < 20; i++) {
		smp_call_function(hash_on_this_cpu, interrupts, 1);
		usleep_range(2000, 4000);
	}
	for (i = 0; i < nr; i++) {
		KUNIT_EXPECT_FALSE(test, IS_ERR(tasks[i]));
		if (!IS_ERR(tasks[i]))
			kthread_stop(tasks[i]);
		KUNIT_EXPECT_GT(test, threads[i].nr, 0U);
		KUNIT_EXPECT_EQ(test, threads[i].nr_wrong, 0U);
	}
	for (i = 0; i < nr_cpu_ids; i++)
		KUNIT_EXPECT_EQ(test, interrupts[i].nr_wrong, 0U);
}

/* The same of each variant that this CPU has. */
static void blake3_variants_test(struct kunit *test)
{
	static const char *const names[] = {
		"sse41", "avx2", "avx512", "neon", "portable",
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(names); i++) {
		if (strcmp(nymph_blake3_select(names[i]), names[i]))
			continue;
		kunit_info(test, "BLAKE3 with %s\n", names[i]);
		blake3_vectors_test(test);
		blake3_split_test(test);
		blake3_modes_test(test);
		blake3_many_test(test);
		blake3_copy_test(test);
		blake3_parts_test(test);
		blake3_without_simd_test(test);
		blake3_threads_test(test);
	}
	/* some kernels run this before the module's init, others behind it */
	nymph_blake3_select(nymph_blake3_chosen ?: "portable");
}

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

	/* whether there is such a buffer is not for this check */
	EXPECT_CHECK(0, e.src_buffer = 1);
	EXPECT_CHECK(0, e.dst_buffer = ~0U);
	EXPECT_CHECK(0, e.src_buffer = 1; e.dst = e.src);
	EXPECT_CHECK(0, e.src_buffer = 1; e.dst_buffer = 2; e.dst = e.src);
	EXPECT_CHECK(-EINVAL, e.src_buffer = 3; e.dst_buffer = 3;
			      e.dst = e.src + 4095);
	EXPECT_CHECK(0, e.src_buffer = 3; e.dst_buffer = 3;
			e.dst = e.src + 4096);
}

/* What each operation takes, beside what all take. */
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
		/* opcodes that take it, a bit each */
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

/* Every bucket begins where the one before it ends, up to the last time of all. */
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

	/* one that is far off is the 1001st of 1001 and shows nowhere else */
	nymph_latency_add(h, ~0ULL);
	KUNIT_EXPECT_EQ(test, nymph_latency_quantile(h, 1000), ~0ULL);
	KUNIT_EXPECT_LE(test, nymph_latency_quantile(h, 999), 1023ULL);
}

/* Memory of scattered pages, as a pin has it, and the same bytes in a row. */
#define SCATTER_PAGES	5

static void scatter(struct kunit *test, struct nymph_pin *pin,
		    unsigned int offset)
{
	unsigned int i;

	memset(pin, 0, sizeof(*pin));
	pin->offset = offset;
	pin->nr_pages = SCATTER_PAGES;
	pin->pages = kunit_kcalloc(test, SCATTER_PAGES, sizeof(*pin->pages),
				   GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, pin->pages);
	/* last first: neighbours in the pin are no neighbours in memory */
	for (i = SCATTER_PAGES; i--;) {
		void *page = kunit_kmalloc(test, PAGE_SIZE, GFP_KERNEL);

		KUNIT_ASSERT_NOT_NULL(test, page);
		pin->pages[i] = virt_to_page(page);
	}
}

static u8 *scatter_at(const struct nymph_pin *pin, size_t i)
{
	i += pin->offset;
	return (u8 *)page_address(pin->pages[i / PAGE_SIZE]) + i % PAGE_SIZE;
}

static void cpu_copy_scattered_test(struct kunit *test)
{
	static const unsigned int offsets[] = { 0, 1, 63, 64, 2048, 4095 };
	static const size_t lens[] = { 1, 64, 4095, 4096, 4097, 12289 };
	struct nymph_engine *cpu = &nymph_engine_cpu;
	struct nymph_region src = {}, dst = {};
	const struct nymph_operand from = { .region = &src };
	const struct nymph_operand to = { .region = &dst };
	unsigned int s, d, l;
	size_t i, all;

	all = (SCATTER_PAGES - 1) * PAGE_SIZE;
	for (s = 0; s < ARRAY_SIZE(offsets); s++) {
		scatter(test, &src.pin, offsets[s]);
		for (i = 0; i < all; i++)
			*scatter_at(&src.pin, i) = i % 251;
		for (d = 0; d < ARRAY_SIZE(offsets); d++) {
			scatter(test, &dst.pin, offsets[d]);
			for (l = 0; l < ARRAY_SIZE(lens); l++) {
				size_t len = lens[l], skip = offsets[l];
				struct nymph_move move = {
					.dst = &to,
					.dst_off = skip,
					.src = &from,
					.src_off = 7,
					.len = len,
				};
				size_t bad = 0;

				for (i = 0; i < all; i++)
					*scatter_at(&dst.pin, i) = 0xff;
				cpu->move(cpu, &move, 1);
				KUNIT_ASSERT_EQ(test, move.status, 0);
				KUNIT_ASSERT_EQ(test, move.done, len);
				for (i = 0; i < all; i++) {
					bool in = i >= skip && i < skip + len;
					u8 want = in ? (i - skip + 7) % 251 :
						       0xff;

					bad += *scatter_at(&dst.pin, i) != want;
				}
				KUNIT_EXPECT_EQ_MSG(test, bad, (size_t)0,
						    "offsets %u, %u, %zu bytes",
						    offsets[s], offsets[d],
						    len);
			}
		}
	}
}

static void hash_scattered_test(struct kunit *test)
{
	struct nymph_blake3 *b = kunit_kmalloc(test, sizeof(*b), GFP_KERNEL);
	struct nymph_pin pin;
	unsigned int i, n;
	size_t at;

	KUNIT_ASSERT_NOT_NULL(test, b);
	for (i = 0; i < ARRAY_SIZE(vectors); i++) {
		if (vectors[i].len > (SCATTER_PAGES - 1) * PAGE_SIZE)
			continue;
		scatter(test, &pin, 4000);
		for (at = 0; at < vectors[i].len; at++)
			*scatter_at(&pin, at) = at % 251;
		nymph_blake3_init(b);
		for (at = 0; at < vectors[i].len; at += n) {
			n = min_t(size_t, 5000, vectors[i].len - at);
			nymph_pin_hash(&pin, at, n, b, NULL);
		}
		expect_digest(test, b, vectors[i].hash, vectors[i].len);
	}
}

/* Bytes in the driver's own memory; the caller unpins it. */
static void pin_some(struct kunit *test, struct nymph_pin *pin, size_t len)
{
	size_t at, n;

	KUNIT_ASSERT_EQ(test, nymph_pin_alloc(pin, current_user(), len), 0);
	for (at = 0; at < len; at += n) {
		u8 some[251];

		n = min(len - at, sizeof(some));
		memset(some, at / sizeof(some) * 7, sizeof(some));
		nymph_pin_store(pin, at, some, n);
	}
}

static void hash_with(const struct nymph_pin *pin, u64 at, size_t len,
		      struct nymph_blake3 *b, struct nymph_team *team,
		      u8 digest[NYMPH_DIGEST_SIZE])
{
	nymph_blake3_init(b);
	/* whatever came before: where a part can begin, or not */
	nymph_pin_hash(pin, 0, at, b, NULL);
	nymph_pin_hash(pin, at, len, b, team);
	nymph_blake3_final(b, digest);
}

static void team_test(struct kunit *test)
{
	static const size_t lens[] = {
		NYMPH_PIECE, NYMPH_LARGE_PIECE / 2, NYMPH_LARGE_PIECE - 1,
	};
	static const u64 offsets[] = { 0, 77, NYMPH_TEAM_PART };
	struct nymph_blake3 *b = kunit_kmalloc(test, sizeof(*b), GFP_KERNEL);
	struct nymph_team *team = nymph_team_create(NUMA_NO_NODE);
	size_t len = NYMPH_LARGE_PIECE + NYMPH_TEAM_PART;
	u8 alone[NYMPH_DIGEST_SIZE], shared[NYMPH_DIGEST_SIZE];
	struct nymph_pin src, dst;
	unsigned int o, l;

	KUNIT_ASSERT_NOT_NULL(test, b);
	KUNIT_ASSERT_NOT_NULL(test, team);
	if (num_online_cpus() > 1)
		KUNIT_EXPECT_EQ(test, nymph_team_share(NYMPH_LARGE_PIECE), 8U);
	pin_some(test, &src, len);
	for (o = 0; o < ARRAY_SIZE(offsets); o++) {
		for (l = 0; l < ARRAY_SIZE(lens); l++) {
			hash_with(&src, offsets[o], lens[l], b, NULL, alone);
			hash_with(&src, offsets[o], lens[l], b, team, shared);
			KUNIT_EXPECT_EQ(test, memcmp(alone, shared,
						     sizeof(alone)), 0);
			KUNIT_ASSERT_EQ(test, nymph_pin_alloc(&dst,
							      current_user(),
							      len), 0);
			nymph_blake3_init(b);
			nymph_pin_hash(&src, 0, offsets[o], b, NULL);
			nymph_pin_copy(&dst, offsets[o], &src, offsets[o],
				       lens[l], b, team);
			nymph_blake3_final(b, shared);
			KUNIT_EXPECT_EQ(test, memcmp(alone, shared,
						     sizeof(alone)), 0);
			/* what arrived, where nothing was but zeros */
			nymph_pin_copy(&dst, 0, &src, 0, offsets[o], NULL,
				       team);
			hash_with(&dst, offsets[o], lens[l], b, team, shared);
			KUNIT_EXPECT_EQ(test, memcmp(alone, shared,
						     sizeof(alone)), 0);
			nymph_unpin(&dst, current_user());
		}
	}
	nymph_unpin(&src, current_user());
	nymph_team_free(team);
}

/* Pages of memory, each at its place in @pfns from some page on. */
static void lay_out(struct kunit *test, struct page **pages,
		    const unsigned int *pfns, unsigned int n, unsigned int room)
{
	void *memory = kunit_kmalloc(test, room * PAGE_SIZE, GFP_KERNEL);
	unsigned int i;

	KUNIT_ASSERT_NOT_NULL(test, memory);
	for (i = 0; i < n; i++)
		pages[i] = virt_to_page(memory + pfns[i] * PAGE_SIZE);
}

static void neighbours_test(struct kunit *test)
{
	/* two neighbours, one alone, two the wrong way round, three */
	static const unsigned int pfns[] = { 0, 1, 3, 6, 5, 9, 10, 11 };
	static const size_t ends[] = { 2, 2, 3, 4, 5, 8, 8, 8 };
	static const size_t offsets[] = { 0, 1, 2048, 4095 };
	struct page *pages[ARRAY_SIZE(pfns)];
	size_t all = ARRAY_SIZE(pfns) * PAGE_SIZE;
	unsigned int i, o;

	lay_out(test, pages, pfns, ARRAY_SIZE(pfns), 12);
	for (i = 0; i < ARRAY_SIZE(pfns); i++) {
		for (o = 0; o < ARRAY_SIZE(offsets); o++) {
			u64 at = i * PAGE_SIZE + offsets[o];
			size_t n = ends[i] * PAGE_SIZE - at;

			KUNIT_EXPECT_EQ(test, n,
					nymph_neighbours(pages, at, all - at));
			/* what is behind max is not looked at */
			KUNIT_EXPECT_EQ(test, n,
					nymph_neighbours(pages, at, n));
			KUNIT_EXPECT_EQ(test, (size_t)1,
					nymph_neighbours(pages, at, 1));
			if (n > 1)
				KUNIT_EXPECT_EQ(test, n - 1,
						nymph_neighbours(pages, at,
								 n - 1));
		}
	}
}

/* Whatever is asked for: all of it is done, and the channel's part is aligned. */
static void cut_test(struct kunit *test)
{
	size_t align, dst, src, len;
	unsigned int bad = 0;

	for (align = 1; align <= 16; align *= 4)
		for (dst = 0; dst < 2 * align; dst++)
			for (src = 0; src < 2 * align; src++)
				for (len = 1; len < 4 * align; len++) {
					struct nymph_cut cut =
						nymph_cut(dst, src, len, align);
					size_t at = cut.by_cpu;

					bad += !(at + cut.by_dma);
					bad += at + cut.by_dma > len;
					if (!cut.by_dma)
						continue;
					bad += (dst + at) % align != 0;
					bad += (src + at) % align != 0;
					bad += cut.by_dma % align != 0;
					/* and it is as long as can be */
					bad += at >= align;
					bad += len - at - cut.by_dma >= align;
				}
	KUNIT_EXPECT_EQ(test, bad, 0U);
}

static void cut_without_alignment_test(struct kunit *test)
{
	struct nymph_cut cut = nymph_cut(3, 4094, 7, 1);

	KUNIT_EXPECT_EQ(test, cut.by_cpu, (size_t)0);
	KUNIT_EXPECT_EQ(test, cut.by_dma, (size_t)7);
	/* neighbours that can't be aligned both */
	cut = nymph_cut(4, 8, 4096, 8);
	KUNIT_EXPECT_EQ(test, cut.by_cpu, (size_t)4096);
	KUNIT_EXPECT_EQ(test, cut.by_dma, (size_t)0);
}

/* A mapped table, of parts that are where @at says, @pages long. */
static void map_table(struct kunit *test, struct sg_table *table,
		      const unsigned int *at, const unsigned int *pages,
		      unsigned int n)
{
	struct scatterlist *sg;
	unsigned int i;

	table->sgl = kunit_kcalloc(test, n, sizeof(*sg), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, table->sgl);
	sg_init_table(table->sgl, n);
	table->nents = n;
	table->orig_nents = n;
	for_each_sgtable_dma_sg(table, sg, i) {
		sg_dma_address(sg) = (dma_addr_t)at[i] * PAGE_SIZE;
		sg_dma_len(sg) = pages[i] * PAGE_SIZE;
	}
}

static void runs_test(struct kunit *test)
{
	/* two neighbours, the wrong way round, one more; page 0 is no gap */
	static const unsigned int at[] = { 7, 9, 5, 0, 1 };
	static const unsigned int pages[] = { 2, 3, 2, 1, 4 };
	static const unsigned int ends[] = { 5, 7, 12 };
	static const unsigned int starts[] = { 0, 5, 7 };
	static const unsigned int first[] = { 7, 5, 0 };
	struct nymph_run runs[ARRAY_SIZE(at)];
	unsigned int r, nr_runs = 0;
	struct sg_table table = {};
	u64 offset = 0;

	map_table(test, &table, at, pages, ARRAY_SIZE(at));
	KUNIT_EXPECT_EQ(test, (u64)12 * PAGE_SIZE,
			nymph_runs_of(&table, runs, &nr_runs, true));
	KUNIT_ASSERT_EQ(test, nr_runs, 3U);
	for (r = 0; r < nr_runs; r++) {
		for (; offset < ends[r] * PAGE_SIZE; offset += 511) {
			u64 left = ends[r] * PAGE_SIZE - offset;
			size_t much = 100 * PAGE_SIZE, some = 1;
			dma_addr_t want = (dma_addr_t)first[r] * PAGE_SIZE +
					  offset - starts[r] * PAGE_SIZE;

			KUNIT_EXPECT_EQ(test, want,
					nymph_run_at(runs, nr_runs, offset,
						     &some));
			KUNIT_EXPECT_EQ(test, some, (size_t)1);
			KUNIT_EXPECT_EQ(test, want,
					nymph_run_at(runs, nr_runs, offset,
						     &much));
			/* the last goes on as far as its caller likes */
			KUNIT_EXPECT_EQ(test, much, r + 1 < nr_runs ?
					left : 100 * PAGE_SIZE);
		}
	}

	nr_runs = 0;
	nymph_runs_of(&table, runs, &nr_runs, false);
	KUNIT_ASSERT_EQ(test, nr_runs, (unsigned int)ARRAY_SIZE(at));
	for (r = 0, offset = 0; r < nr_runs; r++) {
		KUNIT_EXPECT_EQ(test, runs[r].offset, offset);
		KUNIT_EXPECT_EQ(test, runs[r].dma,
				(dma_addr_t)at[r] * PAGE_SIZE);
		offset += pages[r] * PAGE_SIZE;
	}
}

/* A region that is a dma-buf, of memory of our own; and the dma-buf. */
static struct nymph_region *import_some(struct kunit *test, size_t len,
					struct dma_buf **buf)
{
	struct user_struct *user = current_user();
	struct nymph_region *region[2];
	u64 length;
	int i, fd;

	for (i = 0; i < 2; i++) {
		region[i] = kzalloc(sizeof(*region[i]), GFP_KERNEL);
		KUNIT_ASSERT_NOT_NULL(test, region[i]);
		refcount_set(&region[i]->refs, 1);
		region[i]->user = get_uid(user);
		region[i]->length = len;
	}
	KUNIT_ASSERT_EQ(test, nymph_pin_alloc(&region[0]->pin, user, len), 0);
	*buf = nymph_dmabuf_export(region[0]);
	nymph_region_put(region[0]);
	KUNIT_ASSERT_FALSE(test, IS_ERR(*buf));
	fd = dma_buf_fd(*buf, O_CLOEXEC);
	KUNIT_ASSERT_GE(test, fd, 0);
	KUNIT_ASSERT_EQ(test, nymph_pin_dmabuf(&region[1]->pin, fd, true,
					       &length), 0);
	close_fd(fd);
	KUNIT_ASSERT_EQ(test, length, (u64)len);
	return region[1];
}

/* An engine that is not good at it: what it is given, and what becomes of that. */
static struct {
	size_t most;
	bool says_meanwhile;
	unsigned int fails_at;
	unsigned int nr;
} poor;

static void poor_move(struct nymph_engine *engine, struct nymph_move *moves,
		      unsigned int n)
{
	moves->len = min(moves->len, poor.most);
	if (poor.says_meanwhile)
		nymph_move_meanwhile(moves);
	if (++poor.nr == poor.fails_at)
		moves->status = -EIO;
	else
		nymph_engine_cpu.move(engine, moves, 1);
}

static bool poor_ready(struct nymph_engine *engine)
{
	return true;
}

static struct nymph_engine poor_engine = {
	.name = "poor",
	.offloads = true,
	.ready = poor_ready,
	.move = poor_move,
};

/* Returns how the entry ended, whose digests are in ring->transfer then. */
static int run_poorly(struct nymph_ring *ring, struct nymph_slot *slot)
{
	int ret;

	poor.nr = 0;
	nymph_transfer_start(&ring->transfer, &slot->entry, 0);
	do {
		ret = nymph_transfer_step(ring, slot);
	} while (ret == NYMPH_STEP_MORE);
	return ret;
}

/*
 * What is hashed meanwhile is what was sent: if less is taken than was given, if
 * the engine fails, and if the CPU does it then.
 */
static void meanwhile_test(struct kunit *test)
{
	static const size_t mosts[] = { 1000, 40000, NYMPH_LARGE_PIECE };
	size_t len = 2 * NYMPH_PIECE + 1001;
	struct nymph_region src = { .length = len }, dst = { .length = len };
	struct nymph_blake3 *b = kunit_kmalloc(test, sizeof(*b), GFP_KERNEL);
	struct nymph_slot slot = {
		.entry = { .opcode = NYMPH_OP_COPY, .length = len },
		.src = { .used = true, .region = &src },
		.dst = { .used = true, .region = &dst },
	};
	struct nymph_transfer *t;
	struct nymph_ring *ring;
	u8 want[NYMPH_DIGEST_SIZE];
	unsigned int i;

	ring = kunit_kzalloc(test, sizeof(*ring), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, ring);
	KUNIT_ASSERT_NOT_NULL(test, b);
	t = &ring->transfer;
	ring->engine = &poor_engine;
	ring->bounce = nymph_bounce_create(&poor_engine);
	ring->flight = nymph_flight_create(&poor_engine);
	KUNIT_ASSERT_NOT_NULL(test, ring->bounce);
	KUNIT_ASSERT_NOT_NULL(test, ring->flight);
	pin_some(test, &src.pin, len);
	hash_with(&src.pin, 0, len, b, NULL, want);
	KUNIT_ASSERT_EQ(test, nymph_pin_alloc(&dst.pin, current_user(), len),
			0);
	for (i = 0; i < 8 * ARRAY_SIZE(mosts); i++) {
		poor.most = mosts[i / 8];
		poor.says_meanwhile = i & 1;
		slot.entry.flags = NYMPH_DMA_FLAG_VERIFY_HASH |
				   (i & 2 ? NYMPH_DMA_FLAG_ZERO_COPY : 0);
		poor.fails_at = 0;
		if (i & 4) {
			poor.fails_at = i & 2 && i / 8 == 2 ? 1 : 2;
			ring->auto_engine = false;
			KUNIT_EXPECT_EQ(test, run_poorly(ring, &slot), -EIO);
			KUNIT_EXPECT_EQ(test, t->record_flags, 0U);
			KUNIT_EXPECT_EQ(test, poor.nr, poor.fails_at);
		}
		ring->auto_engine = true;
		KUNIT_EXPECT_EQ(test, run_poorly(ring, &slot), 0);
		KUNIT_EXPECT_EQ(test, t->done, (u64)len);
		KUNIT_EXPECT_EQ(test, memcmp(t->src_digest, want,
					     sizeof(want)), 0);
		KUNIT_EXPECT_EQ(test, memcmp(t->dst_digest, want,
					     sizeof(want)), 0);
	}
	nymph_unpin(&dst.pin, current_user());
	nymph_unpin(&src.pin, current_user());
	nymph_team_free(ring->team);
	nymph_flight_free(ring->flight);
	nymph_bounce_put(ring->bounce);
}

static const char *fence_name(struct dma_fence *fence)
{
	return "test";
}

static const struct dma_fence_ops fence_ops = {
	.get_driver_name = fence_name,
	.get_timeline_name = fence_name,
};

/* Somebody is at work on a dma-buf, until the fence is signaled. */
static struct dma_fence *add_fence(struct kunit *test, struct dma_buf *buf,
				   enum dma_resv_usage usage)
{
	static DEFINE_SPINLOCK(lock);
	struct dma_fence *fence = kzalloc(sizeof(*fence), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, fence);
	dma_fence_init(fence, &fence_ops, &lock, dma_fence_context_alloc(1), 1);
	dma_resv_lock(buf->resv, NULL);
	KUNIT_ASSERT_EQ(test, dma_resv_reserve_fences(buf->resv, 1), 0);
	dma_resv_add_fence(buf->resv, fence, usage);
	dma_resv_unlock(buf->resv);
	return fence;
}

static int step_until_done(struct nymph_ring *ring, struct nymph_slot *slot,
			   unsigned int *more)
{
	int ret;

	nymph_transfer_start(&ring->transfer, &slot->entry, 0);
	for (*more = 0;; (*more)++) {
		ret = nymph_transfer_step(ring, slot);
		if (ret != NYMPH_STEP_MORE)
			return ret;
	}
}

/* Readers wait for writers, writers for all, and neither for ever. */
static void fences_test(struct kunit *test)
{
	static const enum dma_resv_usage usages[] = {
		DMA_RESV_USAGE_WRITE, DMA_RESV_USAGE_READ,
	};
	static const u16 opcodes[] = { NYMPH_OP_HASH, NYMPH_OP_FILL };
	unsigned int timeout_ms = nymph_dma_timeout_ms, u, o, more;
	struct nymph_ring *ring;
	struct dma_buf *buf;
	struct nymph_region *region;

	ring = kunit_kzalloc(test, sizeof(*ring), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, ring);
	ring->engine = &nymph_engine_cpu;
	ring->bounce = nymph_bounce_create(&nymph_engine_cpu);
	ring->flight = nymph_flight_create(&nymph_engine_cpu);
	KUNIT_ASSERT_NOT_NULL(test, ring->bounce);
	KUNIT_ASSERT_NOT_NULL(test, ring->flight);
	region = import_some(test, PAGE_SIZE, &buf);
	nymph_dma_timeout_ms = 200;
	for (u = 0; u < ARRAY_SIZE(usages); u++) {
		struct dma_fence *fence = add_fence(test, buf, usages[u]);

		for (o = 0; o < ARRAY_SIZE(opcodes); o++) {
			bool writes = opcodes[o] == NYMPH_OP_FILL;
			bool waits = writes || usages[u] == DMA_RESV_USAGE_WRITE;
			struct nymph_operand it = {
				.used = true,
				.region = region,
			};
			struct nymph_slot slot = {
				.entry.opcode = opcodes[o],
				.entry.flags = NYMPH_DMA_FLAG_RECORD,
				.entry.length = PAGE_SIZE,
			};

			if (writes)
				slot.dst = it;
			else
				slot.src = it;
			KUNIT_EXPECT_EQ(test, step_until_done(ring, &slot, &more),
					waits ? -ETIMEDOUT : 0);
			KUNIT_EXPECT_EQ(test, more > 1, waits);
			KUNIT_EXPECT_EQ(test, ring->transfer.done,
					(u64)(waits ? 0 : PAGE_SIZE));
		}
		dma_fence_signal(fence);
		dma_fence_put(fence);
		for (o = 0; o < ARRAY_SIZE(opcodes); o++)
			KUNIT_EXPECT_TRUE(test, nymph_dmabuf_wait(region->pin.dmabuf,
								  o, 1));
	}
	nymph_dma_timeout_ms = timeout_ms;
	nymph_region_put(region);
	nymph_flight_free(ring->flight);
	nymph_bounce_put(ring->bounce);
}

static void dmabuf_cpu_test(struct kunit *test)
{
	u8 *some = kunit_kmalloc(test, 5000, GFP_KERNEL);
	u8 *back = kunit_kmalloc(test, 5000, GFP_KERNEL);
	struct nymph_region *region;
	struct dma_buf *buf;
	size_t i;

	KUNIT_ASSERT_NOT_NULL(test, some);
	KUNIT_ASSERT_NOT_NULL(test, back);
	for (i = 0; i < 5000; i++)
		some[i] = i % 251;
	region = import_some(test, 3 * PAGE_SIZE, &buf);
	KUNIT_EXPECT_TRUE(test, nymph_pin_store(&region->pin, 4000, some, 5000));
	KUNIT_EXPECT_TRUE(test, nymph_pin_load(&region->pin, 4000, back, 5000));
	KUNIT_EXPECT_EQ(test, memcmp(some, back, 5000), 0);
	nymph_region_put(region);
}

/* Some kernels want to be told. */
#ifndef KUNIT_CASE_SLOW
#define KUNIT_CASE_SLOW	KUNIT_CASE
#endif

static struct kunit_case nymph_cases[] = {
	KUNIT_CASE(blake3_vectors_test),
	KUNIT_CASE(blake3_split_test),
	KUNIT_CASE(blake3_modes_test),
	KUNIT_CASE(blake3_many_test),
	KUNIT_CASE(blake3_copy_test),
	KUNIT_CASE(blake3_parts_test),
	KUNIT_CASE(blake3_without_simd_test),
	KUNIT_CASE_SLOW(blake3_threads_test),
	KUNIT_CASE_SLOW(blake3_variants_test),
	KUNIT_CASE(fifo_wrap_test),
	KUNIT_CASE(fifo_push_pop_test),
	KUNIT_CASE(entry_check_test),
	KUNIT_CASE(operations_check_test),
	KUNIT_CASE(latency_buckets_test),
	KUNIT_CASE(latency_quantiles_test),
	KUNIT_CASE(cpu_copy_scattered_test),
	KUNIT_CASE(hash_scattered_test),
	KUNIT_CASE_SLOW(team_test),
	KUNIT_CASE_SLOW(meanwhile_test),
	KUNIT_CASE(neighbours_test),
	KUNIT_CASE(cut_test),
	KUNIT_CASE(cut_without_alignment_test),
	KUNIT_CASE(runs_test),
	KUNIT_CASE(dmabuf_cpu_test),
	KUNIT_CASE(fences_test),
	{}
};

static struct kunit_suite nymph_suite = {
	.name = "pcie_nymph",
	.test_cases = nymph_cases,
};

kunit_test_suite(nymph_suite);
