// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: tests of BLAKE3 inside the kernel.
 */
#include <kunit/test.h>
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/irq_work.h>
#include <linux/kthread.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/smp.h>
#include <linux/string.h>

#include <asm/simd.h>
#ifdef CONFIG_X86
#include <asm/fpu/api.h>
#endif

#include "kunit.h"
#include "ring.h"
#include "select.h"

/*
 * Lengths and digests of BLAKE3's official test vectors (BLAKE3 team, CC0). Byte i
 * of an input is i % 251.
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

/* Results for the input of 8193 bytes. */
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

/* Hashes all vectors several times in one batch, so that lanes change inputs. */
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

/* Indices of the vectors with 1025, 8193 and 31744 bytes. */
#define SHORT_VECTOR	7
#define SOME_VECTOR	12
#define LONG_VECTOR	13

/* Hashes as much as possible in parts, and the last part first. */
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

static void hash_scattered_test(struct kunit *test)
{
	struct nymph_blake3 *b = kunit_kmalloc(test, sizeof(*b), GFP_KERNEL);
	struct nymph_pin pin;
	unsigned int i, n;
	size_t at;

	KUNIT_ASSERT_NOT_NULL(test, b);
	for (i = 0; i < ARRAY_SIZE(vectors); i++) {
		if (vectors[i].len > (NYMPH_KUNIT_PAGES - 1) * PAGE_SIZE)
			continue;
		nymph_kunit_scatter(test, &pin, 4000);
		for (at = 0; at < vectors[i].len; at++)
			*nymph_kunit_byte(&pin, at) = at % 251;
		nymph_blake3_init(b);
		for (at = 0; at < vectors[i].len; at += n) {
			n = min_t(size_t, 5000, vectors[i].len - at);
			nymph_pin_hash(&pin, at, n, b, NULL);
		}
		expect_digest(test, b, vectors[i].hash, vectors[i].len);
	}
}

/**
 * struct hasher - a thread or an interrupt that computes digests
 * @irq: work that runs in an interrupt
 * @hash: state of the hash
 * @input: input of the vectors
 * @is_simd: whether that context may use SIMD
 * @nr: number of digests computed
 * @nr_wrong: number of wrong digests
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

/* Computes the digest of vector @i, @step bytes at a time. */
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

/* Hashes where SIMD is not allowed, and in an interrupt of such a context. */
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
		/* user-mode Linux allows SIMD everywhere: signals save all registers */
		KUNIT_EXPECT_EQ(test, h[i].is_simd, IS_ENABLED(CONFIG_UML));
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

/* Hashes in more threads than CPUs, and in interrupts of these threads. */
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

/* Runs the tests above with each variant that this CPU has. */
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
	/* some kernels run this before the module's init, others after it */
	nymph_blake3_select(nymph_blake3_chosen ?: "portable");
}

static struct kunit_case blake3_cases[] = {
	KUNIT_CASE(blake3_vectors_test),
	KUNIT_CASE(blake3_split_test),
	KUNIT_CASE(blake3_modes_test),
	KUNIT_CASE(blake3_many_test),
	KUNIT_CASE(blake3_copy_test),
	KUNIT_CASE(blake3_parts_test),
	KUNIT_CASE(hash_scattered_test),
	KUNIT_CASE(blake3_without_simd_test),
	KUNIT_CASE_SLOW(blake3_threads_test),
	KUNIT_CASE_SLOW(blake3_variants_test),
	{}
};

static struct kunit_suite blake3_suite = {
	.name = "pcie_nymph_blake3",
	.test_cases = blake3_cases,
};

kunit_test_suite(blake3_suite);
