// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: tests of memory, and of engines that move it, inside the kernel.
 */
#include <kunit/test.h>
#include <linux/cred.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/scatterlist.h>
#include <linux/sched/user.h>
#include <linux/string.h>

#include "kunit.h"
#include "memory.h"
#include "ring.h"
#include "runs.h"

/**
 * nymph_kunit_scatter() - Make a pin of pages that are no neighbours in memory
 * @test: the test, which frees the pages
 * @pin: filled: NYMPH_KUNIT_PAGES pages
 * @offset: offset of the first byte into the first page
 */
void nymph_kunit_scatter(struct kunit *test, struct nymph_pin *pin,
			 unsigned int offset)
{
	unsigned int i;

	memset(pin, 0, sizeof(*pin));
	pin->offset = offset;
	pin->nr_pages = NYMPH_KUNIT_PAGES;
	pin->pages = kunit_kcalloc(test, NYMPH_KUNIT_PAGES,
				   sizeof(*pin->pages), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, pin->pages);
	/* last first: neighbours in the pin are no neighbours in memory */
	for (i = NYMPH_KUNIT_PAGES; i--;) {
		void *page = kunit_kmalloc(test, PAGE_SIZE, GFP_KERNEL);

		KUNIT_ASSERT_NOT_NULL(test, page);
		pin->pages[i] = virt_to_page(page);
	}
}

/**
 * nymph_kunit_byte() - Find a byte of scattered memory
 * @pin: the memory
 * @i: offset of the byte
 *
 * Return: address of the byte.
 */
u8 *nymph_kunit_byte(const struct nymph_pin *pin, size_t i)
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

	all = (NYMPH_KUNIT_PAGES - 1) * PAGE_SIZE;
	for (s = 0; s < ARRAY_SIZE(offsets); s++) {
		nymph_kunit_scatter(test, &src.pin, offsets[s]);
		for (i = 0; i < all; i++)
			*nymph_kunit_byte(&src.pin, i) = i % 251;
		for (d = 0; d < ARRAY_SIZE(offsets); d++) {
			nymph_kunit_scatter(test, &dst.pin, offsets[d]);
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
					*nymph_kunit_byte(&dst.pin, i) = 0xff;
				cpu->move(cpu, &move, 1);
				KUNIT_ASSERT_EQ(test, move.status, 0);
				KUNIT_ASSERT_EQ(test, move.done, len);
				for (i = 0; i < all; i++) {
					bool in = i >= skip && i < skip + len;
					u8 want = in ? (i - skip + 7) % 251 :
						       0xff;

					bad += *nymph_kunit_byte(&dst.pin, i) != want;
				}
				KUNIT_EXPECT_EQ_MSG(test, bad, (size_t)0,
						    "offsets %u, %u, %zu bytes",
						    offsets[s], offsets[d],
						    len);
			}
		}
	}
}

/* Fills driver memory with bytes; the caller unpins it. */
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
	/* the bytes before @at decide whether a part of the hash can start there */
	nymph_pin_hash(pin, 0, at, b, NULL);
	nymph_pin_hash(pin, at, len, b, team);
	nymph_blake3_final(b, digest);
}

static void team_test(struct kunit *test)
{
	static const size_t lens[] = {
		NYMPH_CHUNK, NYMPH_LARGE_CHUNK / 2, NYMPH_LARGE_CHUNK - 1,
	};
	static const u64 offsets[] = { 0, 77, NYMPH_TEAM_PART };
	struct nymph_blake3 *b = kunit_kmalloc(test, sizeof(*b), GFP_KERNEL);
	struct nymph_blake3 *sent = kunit_kmalloc(test, sizeof(*b), GFP_KERNEL);
	struct nymph_team *team = nymph_team_create(NUMA_NO_NODE);
	size_t len = NYMPH_LARGE_CHUNK + NYMPH_TEAM_PART;
	u8 alone[NYMPH_DIGEST_SIZE], shared[NYMPH_DIGEST_SIZE];
	struct nymph_pin src, dst;
	unsigned int o, l;

	KUNIT_ASSERT_NOT_NULL(test, b);
	KUNIT_ASSERT_NOT_NULL(test, sent);
	KUNIT_ASSERT_NOT_NULL(test, team);
	if (num_online_cpus() > 1)
		KUNIT_EXPECT_EQ(test, nymph_team_share(NYMPH_LARGE_CHUNK), 8U);
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
			nymph_blake3_init(sent);
			nymph_pin_hash(&src, 0, offsets[o], b, NULL);
			nymph_pin_hash(&src, 0, offsets[o], sent, NULL);
			nymph_pin_copy(&dst, offsets[o], &src, offsets[o],
				       lens[l], l ? sent : NULL, b,
				       NULL, team);
			nymph_blake3_final(b, shared);
			KUNIT_EXPECT_EQ(test, memcmp(alone, shared,
						     sizeof(alone)), 0);
			if (l)
				nymph_blake3_final(sent, shared);
			KUNIT_EXPECT_EQ(test, memcmp(alone, shared,
						     sizeof(alone)), 0);
			/* what arrived in memory that had only zeros */
			nymph_pin_copy(&dst, 0, &src, 0, offsets[o], NULL, NULL,
				       NULL, team);
			hash_with(&dst, offsets[o], lens[l], b, team, shared);
			KUNIT_EXPECT_EQ(test, memcmp(alone, shared,
						     sizeof(alone)), 0);
			nymph_unpin(&dst, current_user());
		}
	}
	nymph_unpin(&src, current_user());
	nymph_team_free(team);
}

/* Fills @pages with @n pages of new memory; @pfns has their positions in it. */
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
	/* two neighbours, a single page, two in reverse order, three neighbours */
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
			/* the function does not look behind max */
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

/* Checks that all bytes are moved, and that the channel's part is aligned. */
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
					/* the part is as long as possible */
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
	/* source and destination cannot both be aligned */
	cut = nymph_cut(4, 8, 4096, 8);
	KUNIT_EXPECT_EQ(test, cut.by_cpu, (size_t)4096);
	KUNIT_EXPECT_EQ(test, cut.by_dma, (size_t)0);
}

/* Makes a mapped table of @n parts, of @pages pages each, at pages @at. */
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
	/* neighbours, reverse order, neighbours; page 0 is an address like any */
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
			/* the last run does not limit the length */
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

/* An engine that moves little at a time and fails. */
static struct {
	size_t most;
	bool says_overlap;
	unsigned int fails_at;
	unsigned int nr;
} poor;

static void poor_move(struct nymph_engine *engine, struct nymph_move *moves,
		      unsigned int n)
{
	moves->len = min(moves->len, poor.most);
	if (poor.says_overlap)
		nymph_move_overlap(moves);
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

/* Runs an entry; returns its status. Its digests are in ring->transfer. */
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
 * Checks that the overlapping hash is of the bytes that were sent: also if the engine
 * takes less than it was given, if it fails, and if the CPU does the move then.
 */
static void overlap_test(struct kunit *test)
{
	static const size_t mosts[] = { 1000, 40000, NYMPH_LARGE_CHUNK };
	size_t len = 2 * NYMPH_CHUNK + 1001;
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
	ring->bounce = nymph_bounce_create(poor_engine.node);
	ring->batch = nymph_batch_create(&poor_engine);
	KUNIT_ASSERT_NOT_NULL(test, ring->bounce);
	KUNIT_ASSERT_NOT_NULL(test, ring->batch);
	pin_some(test, &src.pin, len);
	hash_with(&src.pin, 0, len, b, NULL, want);
	KUNIT_ASSERT_EQ(test, nymph_pin_alloc(&dst.pin, current_user(), len),
			0);
	for (i = 0; i < 8 * ARRAY_SIZE(mosts); i++) {
		poor.most = mosts[i / 8];
		poor.says_overlap = i & 1;
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
	nymph_batch_free(ring->batch);
	nymph_bounce_put(ring->bounce);
}

static struct kunit_case memory_cases[] = {
	KUNIT_CASE(cpu_copy_scattered_test),
	KUNIT_CASE_SLOW(team_test),
	KUNIT_CASE(neighbours_test),
	KUNIT_CASE(cut_test),
	KUNIT_CASE(cut_without_alignment_test),
	KUNIT_CASE(runs_test),
	KUNIT_CASE_SLOW(overlap_test),
	{}
};

static struct kunit_suite memory_suite = {
	.name = "pcie_nymph_memory",
	.test_cases = memory_cases,
};

kunit_test_suite(memory_suite);
