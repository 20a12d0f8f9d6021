// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: a histogram of times, 8 buckets for every power of two, so that
 * what is read off it is at most an eighth too long.
 */
#include <linux/kernel.h>
#include <linux/log2.h>
#include <linux/math64.h>

#include "nymph.h"

/**
 * nymph_latency_bucket() - the bucket a time belongs to
 * @ns: any time
 */
unsigned int nymph_latency_bucket(u64 ns)
{
	unsigned int e;

	if (ns < 8)
		return ns;
	e = ilog2(ns);
	return 8 * (e - 2) + ((ns >> (e - 3)) & 7);
}

/**
 * nymph_latency_ceiling() - the longest time that belongs to a bucket
 * @bucket: which
 */
u64 nymph_latency_ceiling(unsigned int bucket)
{
	unsigned int e = bucket / 8 + 2;

	if (bucket < 8)
		return bucket;
	/* for the last one of all, the sum wraps to the right result */
	return ((8 + bucket % 8 + 1ULL) << (e - 3)) - 1;
}

/**
 * nymph_latency_add() - count a time
 * @h: the histogram
 * @ns: the time
 */
void nymph_latency_add(struct nymph_histogram *h, u64 ns)
{
	h->count++;
	h->sum_ns += ns;
	h->max_ns = max(h->max_ns, ns);
	h->buckets[nymph_latency_bucket(ns)]++;
}

/**
 * nymph_latency_quantile() - a time that so many of all did not exceed
 * @h: the histogram
 * @permille: how many of 1000, 1 to 1000
 *
 * Return: the time in ns, rounded up to the end of its bucket or to the longest
 * time of all; 0 if nothing was counted.
 */
u64 nymph_latency_quantile(const struct nymph_histogram *h,
			   unsigned int permille)
{
	u64 rank = DIV_ROUND_UP_ULL(h->count * permille, 1000);
	u64 seen = 0;
	unsigned int i;

	if (!rank)
		return 0;
	for (i = 0; i < NYMPH_LATENCY_BUCKETS - 1; i++) {
		seen += h->buckets[i];
		if (seen >= rank)
			break;
	}
	return min(nymph_latency_ceiling(i), h->max_ns);
}
