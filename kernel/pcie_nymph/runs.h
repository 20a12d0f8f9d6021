/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * pcie_nymph: cutting scattered memory into parts that a DMA channel takes.
 */
#ifndef _NYMPH_RUNS_H
#define _NYMPH_RUNS_H

#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/scatterlist.h>

/**
 * nymph_neighbours() - Count the contiguous bytes from an offset on
 * @pages: pages of the memory
 * @offset: offset into the memory in bytes
 * @max: highest number of bytes to look at
 *
 * Return: number of bytes, from 1 to @max.
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
 * struct nymph_cut - the next bytes, split between the CPU and a channel
 * @by_cpu: number of bytes that the CPU moves first
 * @by_dma: number of bytes behind them that the channel moves
 */
struct nymph_cut {
	size_t by_cpu;
	size_t by_dma;
};

/**
 * nymph_cut() - Split bytes between the CPU and a channel
 * @dst: destination: address, or offset into a page
 * @src: source: address, or offset into a page
 * @len: number of bytes, not 0
 * @align: alignment of the channel's addresses and lengths, a power of two
 *
 * Return: the two numbers of bytes; at least one is not 0, their sum is at most @len.
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
 * struct nymph_run - mapped bytes that are contiguous for a device
 * @offset: offset of the first byte in the memory
 * @dma: address of the first byte for the device
 */
struct nymph_run {
	u64 offset;
	dma_addr_t dma;
};

/**
 * nymph_runs_of() - List the runs of a mapped table
 * @table: a mapped table
 * @runs: filled; has room for as many runs as the table has parts
 * @nr_runs: number of runs; 0 before the call
 * @merge: whether parts that are contiguous for the device become one run
 *
 * Return: number of bytes of all runs.
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
 * nymph_run_at() - Get the address of bytes for a device
 * @runs: runs in the order of their offsets; the first starts at 0
 * @nr_runs: number of runs
 * @offset: offset of the first byte in the memory
 * @len: number of bytes; lowered to the number in the same run
 *
 * Return: address of the first byte for the device.
 */
static inline dma_addr_t nymph_run_at(const struct nymph_run *runs,
				      unsigned int nr_runs, u64 offset,
				      size_t *len)
{
	unsigned int first = 0, end = nr_runs;

	/* the last run that does not start behind the offset */
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
