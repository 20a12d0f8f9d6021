// SPDX-License-Identifier: GPL-2.0-only
/*
 * BLAKE3: choice of the variant that this CPU runs.
 */
#include <linux/kernel.h>
#include <linux/ktime.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/printk.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/string.h>

#ifdef CONFIG_X86_64
#include <asm/cpufeature.h>
#ifndef CONFIG_UML
#include <asm/fpu/api.h>
#include <asm/fpu/xcr.h>
#endif
#endif
#ifdef NYMPH_BLAKE3_NEON
#include <asm/cpufeature.h>
#endif

#include "select.h"
#include "variant.h"

struct nymph_blake3_candidate {
	const struct nymph_blake3_variant *variant;
	bool (*is_usable)(void);
};

#ifdef CONFIG_X86_64
#ifdef CONFIG_UML
/* the CPU's flags are the host's, and a program of the host can use all it has */
#define HAS_YMM	true
#define HAS_ZMM	true
#else
#define HAS_YMM	cpu_has_xfeatures(XFEATURE_MASK_SSE | XFEATURE_MASK_YMM, NULL)
#define HAS_ZMM	cpu_has_xfeatures(XFEATURE_MASK_AVX512, NULL)
#endif

static bool has_sse41(void)
{
	return boot_cpu_has(X86_FEATURE_XMM4_1);
}

static bool has_avx2(void)
{
	return boot_cpu_has(X86_FEATURE_AVX2) && boot_cpu_has(X86_FEATURE_AVX) &&
	       HAS_YMM;
}

static bool has_avx512(void)
{
	return has_avx2() && boot_cpu_has(X86_FEATURE_AVX512F) &&
	       boot_cpu_has(X86_FEATURE_AVX512VL) && HAS_ZMM;
}
#endif

#ifdef NYMPH_BLAKE3_NEON
static bool has_neon(void)
{
	return cpu_have_named_feature(ASIMD);
}
#endif

static const struct nymph_blake3_candidate candidates[] = {
#ifdef CONFIG_X86_64
	{ &nymph_blake3_avx512, has_avx512 },
	{ &nymph_blake3_avx2, has_avx2 },
	{ &nymph_blake3_sse41, has_sse41 },
#endif
#ifdef NYMPH_BLAKE3_NEON
	{ &nymph_blake3_neon, has_neon },
#endif
	{}
};

#define TEST_MAX	66560

/* Lengths at the edges of blocks, leaves, subtrees and the widths of vectors. */
static const size_t test_lens[] = {
	0, 1, 64, 65, 128, 192, 1023, 1024, 1025, 2048, 2049, 3072, 4096, 4097,
	5120, 7168, 8192, 8193, 12288, 15360, 16384, 16385, 31744, TEST_MAX,
};

/* Memory of the self-test. */
struct nymph_blake3_bench {
	struct nymph_blake3 hash;
	struct nymph_blake3_input inputs[ARRAY_SIZE(test_lens)];
	u8 right[ARRAY_SIZE(test_lens)][NYMPH_BLAKE3_OUT_SIZE];
	u8 made[ARRAY_SIZE(test_lens)][NYMPH_BLAKE3_OUT_SIZE];
	u8 input[TEST_MAX + 1];
	u8 copy[TEST_MAX + 1];
	/* the last member: nymph_blake3_batch_size() bytes */
	u8 batch[] __aligned(sizeof(u64));
};

/* Fills the inputs, and computes their digests with portable C. */
static void prepare(struct nymph_blake3_bench *bench)
{
	size_t i;

	for (i = 0; i < sizeof(bench->input); i++)
		bench->input[i] = i % 251;
	nymph_blake3_use(NULL);
	for (i = 0; i < ARRAY_SIZE(test_lens); i++) {
		bench->inputs[i].data = bench->input + 1;
		bench->inputs[i].len = test_lens[i];
		nymph_blake3_init(&bench->hash);
		nymph_blake3_update(&bench->hash, bench->input + 1,
				    test_lens[i]);
		nymph_blake3_final(&bench->hash, bench->right[i]);
	}
}

/* Tells whether the variant computes the same digests as portable C. */
static bool is_right(struct nymph_blake3_bench *bench,
		     const struct nymph_blake3_variant *variant)
{
	size_t i, n = ARRAY_SIZE(test_lens);

	nymph_blake3_use(variant);
	for (i = 0; i < n; i++) {
		memset(bench->copy, 0, test_lens[i]);
		nymph_blake3_init(&bench->hash);
		nymph_blake3_update_copy(&bench->hash, bench->copy,
					 bench->input + 1, test_lens[i]);
		nymph_blake3_final(&bench->hash, bench->made[i]);
		if (memcmp(bench->copy, bench->input + 1, test_lens[i]))
			return false;
	}
	if (memcmp(bench->made, bench->right, sizeof(bench->right)))
		return false;
	memset(bench->made, 0, sizeof(bench->made));
	nymph_blake3_hash_many((struct nymph_blake3_batch *)bench->batch,
			       bench->inputs, n, bench->made);
	return !memcmp(bench->made, bench->right, sizeof(bench->right));
}

/* Returns the shortest time in ns that the variant took for 16 KiB. */
static u64 measure(struct nymph_blake3_bench *bench,
		   const struct nymph_blake3_variant *variant)
{
	u64 best = U64_MAX;
	unsigned int i;

	nymph_blake3_use(variant);
	for (i = 0; i < 5; i++) {
		u64 begun = ktime_get_ns();

		nymph_blake3_init(&bench->hash);
		nymph_blake3_update(&bench->hash, bench->input, SZ_16K);
		best = min(best, ktime_get_ns() - begun);
	}
	return best;
}

static const char *choose(struct nymph_blake3_bench *bench, const char *wanted)
{
	const struct nymph_blake3_variant *best = NULL;
	const struct nymph_blake3_candidate *each;
	u64 best_ns = *wanted ? U64_MAX : measure(bench, NULL);

	for (each = candidates; each->variant; each++) {
		const char *name = each->variant->name;
		u64 ns;

		if ((*wanted && strcmp(wanted, name)) || !each->is_usable())
			continue;
		if (!is_right(bench, each->variant)) {
			pr_err("pcie_nymph: BLAKE3 with %s fails its self-test and is not used\n",
			       name);
			continue;
		}
		ns = measure(bench, each->variant);
		if (ns < best_ns) {
			best_ns = ns;
			best = each->variant;
		}
	}
	nymph_blake3_use(best);
	if (best)
		return best->name;
	if (*wanted && strcmp(wanted, "portable"))
		pr_notice("pcie_nymph: no BLAKE3 with %s here: portable C is used\n",
			  wanted);
	return "portable";
}

/**
 * nymph_blake3_select() - Choose the variant that hashes from now on
 * @wanted: name of a variant, "portable", or "" for the variant that is measured
 *	as the fastest; on an emulated CPU the widest vectors can be slow
 *
 * Context: Before any hash is started.
 *
 * The function never chooses a variant that this CPU does not have, or that fails
 * the self-test.
 *
 * Return: name of the variant.
 */
const char *nymph_blake3_select(const char *wanted)
{
	struct nymph_blake3_bench *bench;
	const char *name = "portable";

	bench = kvmalloc(sizeof(*bench) + nymph_blake3_batch_size(), GFP_KERNEL);
	if (bench) {
		prepare(bench);
		name = choose(bench, wanted);
	}
	kvfree(bench);
	return name;
}
