// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: the CPU as an engine.
 */
#include <linux/mm.h>
#include <linux/uaccess.h>

#include "engine.h"

/* With a device's memory on at least one side. */
static bool nymph_cpu_copy_card(const struct nymph_pin *dst, u64 dst_off,
				const struct nymph_pin *src, u64 src_off,
				size_t len)
{
	bool there = true;
	u8 some[256];
	size_t n;

	for (; there && len; len -= n, dst_off += n, src_off += n) {
		n = min(len, sizeof(some));
		there = nymph_pin_load(src, src_off, some, n) &&
			nymph_pin_store(dst, dst_off, some, n);
	}
	return there;
}

static int nymph_cpu_move_one(struct nymph_move *move)
{
	struct nymph_region *to = move->dst->region;
	struct nymph_region *from = move->src ? move->src->region : NULL;

	if (from && (from->pin.dmabuf || to->pin.dmabuf)) {
		if (!nymph_pin_copy_dmabuf(&to->pin, move->dst_off, &from->pin,
					   move->src_off, move->len))
			return -EFAULT;
	} else if (from && (from->pin.card || to->pin.card)) {
		if (!nymph_cpu_copy_card(&to->pin, move->dst_off, &from->pin,
					 move->src_off, move->len))
			return -EFAULT;
	} else if (from) {
		nymph_pin_copy(&to->pin, move->dst_off, &from->pin,
			       move->src_off, move->len, move->src_hash,
			       move->dst_hash, move->bounce, move->team);
	} else if (to) {
		if (!nymph_pin_store(&to->pin, move->dst_off,
				     nymph_move_bounce(move), move->len))
			return -EFAULT;
	} else {
		size_t left = copy_to_user(nymph_user_ptr(move->dst_off,
							  move->len),
					   nymph_move_bounce(move), move->len);

		move->done = move->len - left;
		return left ? -EFAULT : 0;
	}
	move->done = move->len;
	return 0;
}

static void nymph_cpu_move(struct nymph_engine *engine,
			   struct nymph_move *moves, unsigned int n)
{
	struct nymph_move *move;

	for (move = moves; move < moves + n; move++)
		move->status = nymph_cpu_move_one(move);
}

struct nymph_engine nymph_engine_cpu = {
	.name = "cpu",
	.id = 1,
	.node = NUMA_NO_NODE,
	.move = nymph_cpu_move,
};
