/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * pcie_nymph: how scattered memory is cut into what a DMA channel takes.
 */
#ifndef _NYMPH_RUNS_H
#define _NYMPH_RUNS_H

#include <linux/minmax.h>
#include <linux/mm.h>

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

#endif /* _NYMPH_RUNS_H */
