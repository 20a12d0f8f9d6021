// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: the CPU as an engine.
 */
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/uaccess.h>

#include "nymph.h"

static int nymph_cpu_store(struct nymph_engine *engine,
			   const struct nymph_operand *dst, u64 dst_off,
			   const void *src, size_t len, size_t *done)
{
	u64 at = dst->at + dst_off;

	if (dst->pin) {
		nymph_pin_store(dst->pin, at, src, len);
		*done = len;
		return 0;
	}
	*done = len - copy_to_user(u64_to_user_ptr(at), src, len);
	return *done == len ? 0 : -EFAULT;
}

static int nymph_cpu_copy(struct nymph_engine *engine,
			  const struct nymph_pin *dst, u64 dst_off,
			  const struct nymph_pin *src, u64 src_off,
			  size_t len, size_t *done)
{
	size_t left, n;

	dst_off += dst->offset;
	src_off += src->offset;

	for (left = len; left; left -= n, dst_off += n, src_off += n) {
		struct page *to = dst->pages[dst_off >> PAGE_SHIFT];
		struct page *from = src->pages[src_off >> PAGE_SHIFT];
		size_t to_off = offset_in_page(dst_off);
		size_t from_off = offset_in_page(src_off);

		n = min3(left, PAGE_SIZE - to_off, PAGE_SIZE - from_off);
		memcpy_page(to, to_off, from, from_off, n);
		flush_dcache_page(to);
	}
	*done = len;
	return 0;
}

static const struct nymph_engine_ops nymph_cpu_ops = {
	.store = nymph_cpu_store,
	.copy = nymph_cpu_copy,
};

struct nymph_engine nymph_engine_cpu = {
	.name = "cpu",
	.id = 1,
	.ops = &nymph_cpu_ops,
};
