// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: a histogram of times. Every power of two has 8 buckets, so a quantile
 * is at most an eighth too long.
 */
#include <linux/kernel.h>
#include <linux/log2.h>
#include <linux/math64.h>

#include "ring.h"

/**
 * nymph_latency_bucket() - Find the bucket of a time
 * @ns: any time in ns
 *
 * Return: index of the bucket, from 0 to NYMPH_LATENCY_BUCKETS - 1.
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
 * nymph_latency_ceiling() - Get the longest time of a bucket
 * @bucket: index of the bucket
 *
 * Return: the time in ns.
 */
u64 nymph_latency_ceiling(unsigned int bucket)
{
	unsigned int e = bucket / 8 + 2;

	if (bucket < 8)
		return bucket;
	/* for the last bucket the sum wraps to the right result */
	return ((8 + bucket % 8 + 1ULL) << (e - 3)) - 1;
}

/**
 * nymph_latency_add() - Count a time
 * @h: the histogram
 * @ns: the time in ns
 */
void nymph_latency_add(struct nymph_histogram *h, u64 ns)
{
	h->count++;
	h->sum_ns += ns;
	h->max_ns = max(h->max_ns, ns);
	h->buckets[nymph_latency_bucket(ns)]++;
}

/**
 * nymph_latency_quantile() - Get the time that a share of all times did not exceed
 * @h: the histogram
 * @permille: the share in thousandths, 1 to 1000
 *
 * Return: the time in ns, rounded up to the end of its bucket but not above the
 * longest time; 0 if nothing was counted.
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
