/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * pcie_nymph: how scattered memory is cut into what a DMA channel takes.
 */
#ifndef _NYMPH_RUNS_H
#define _NYMPH_RUNS_H

#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/scatterlist.h>

/**
 * nymph_neighbours() - how far memory goes on without a gap
 * @pages: the memory
 * @offset: where in it to start
 * @max: no need to look further
 *
 * Return: bytes, from 1 to @max.
 */
static inline size_t nymph_neighbours(struct page *const *pages, u64 offset,
				      size_t max)
{
	unsigned long i = offset >> PAGE_SHIFT;
	size_t n = PAGE_SIZE - offset_in_page(offset);

	for (; n < max; n += PAGE_SIZE, i++)
		if (page_to_pfn(pages[i + 1]) != page_to_pfn(pages[i]) + 1)
			break;
	return min(n, max);
}

/**
 * struct nymph_cut - who moves the next bytes
 * @by_cpu: so many are the CPU's
 * @by_dma: and so many behind them the channel's
 */
struct nymph_cut {
	size_t by_cpu;
	size_t by_dma;
};

/**
 * nymph_cut() - leave to the CPU what a channel can't, or must not, move
 * @dst: where to: address, or offset into a page
 * @src: where from
 * @len: bytes, not 0
 * @align: what the channel's addresses and lengths are multiples of, a power of
 *	two
 *
 * Return: at least one of the two numbers is not 0; together at most @len.
 */
static inline struct nymph_cut nymph_cut(u64 dst, u64 src, size_t len,
					 size_t align)
{
	size_t head = -dst & (align - 1);
	struct nymph_cut cut = {};

	if (!((dst ^ src) & (align - 1)) && head < len)
		cut.by_dma = (len - head) & ~(align - 1);
	cut.by_cpu = cut.by_dma ? head : len;
	return cut;
}

/**
 * struct nymph_run - mapped bytes without a gap
 * @offset: where in the memory they start
 * @dma: where the device has them
 */
struct nymph_run {
	u64 offset;
	dma_addr_t dma;
};

/**
 * nymph_runs_of() - where a device has memory
 * @table: mapped
 * @runs: filled, as many as the table has parts at most
 * @nr_runs: how many there are, at first none
 * @merge: whether parts that are neighbours for the device become one run
 *
 * Return: bytes in all.
 */
static inline u64 nymph_runs_of(const struct sg_table *table,
				struct nymph_run *runs, unsigned int *nr_runs,
				bool merge)
{
	struct scatterlist *sg;
	u64 offset = 0;
	dma_addr_t end = 0;
	unsigned int i;

	for_each_sgtable_dma_sg(table, sg, i) {
		if (!*nr_runs || !merge || sg_dma_address(sg) != end)
			runs[(*nr_runs)++] = (struct nymph_run) {
				.offset = offset,
				.dma = sg_dma_address(sg),
			};
		end = sg_dma_address(sg) + sg_dma_len(sg);
		offset += sg_dma_len(sg);
	}
	return offset;
}

/**
 * nymph_run_at() - where a device has bytes of memory
 * @runs: in the order of their offsets; the first starts at 0
 * @nr_runs: how many
 * @offset: which bytes
 * @len: how many; lowered to those that are neighbours
 *
 * Return: the address of the first.
 */
static inline dma_addr_t nymph_run_at(const struct nymph_run *runs,
				      unsigned int nr_runs, u64 offset,
				      size_t *len)
{
	unsigned int first = 0, end = nr_runs;

	/* the last that does not start behind it */
	while (end - first > 1) {
		unsigned int middle = first + (end - first) / 2;

		if (runs[middle].offset <= offset)
			first = middle;
		else
			end = middle;
	}
	if (end < nr_runs)
		*len = min_t(u64, *len, runs[end].offset - offset);
	return runs[first].dma + (offset - runs[first].offset);
}

#endif /* _NYMPH_RUNS_H */
