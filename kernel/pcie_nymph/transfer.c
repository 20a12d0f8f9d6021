// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: one entry: is it well formed, and moving it piece by piece.
 */
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "nymph.h"

#define NYMPH_FLAGS_KNOWN						\
	(NYMPH_FLAGS_SERVED | NYMPH_DMA_FLAG_LINK | NYMPH_DMA_FLAG_BARRIER)
#define NYMPH_FLAGS_NOP	(NYMPH_DMA_FLAG_COMPLETE_SYNC | NYMPH_DMA_FLAG_RECORD)

static int nymph_entry_check_nop(const struct nymph_entry *e)
{
	if (e->flags & ~NYMPH_FLAGS_NOP || e->length || e->src || e->dst ||
	    e->src_buffer || e->dst_buffer)
		return -EINVAL;
	return 0;
}

static int nymph_entry_check_copy(const struct nymph_entry *e)
{
	u64 src = untagged_addr((unsigned long)e->src);
	u64 dst = untagged_addr((unsigned long)e->dst);

	if (!e->length || e->length > NYMPH_MAX_LENGTH)
		return -EINVAL;
	/* of buffers, the offsets would say nothing */
	if (!e->src_buffer && !e->dst_buffer &&
	    (src > dst ? src - dst : dst - src) < e->length)
		return -EINVAL;
	if (e->flags & NYMPH_DMA_FLAG_DIGEST_ONLY &&
	    (e->flags & NYMPH_DMA_FLAG_VERIFY_HASH ||
	     !(e->flags & NYMPH_DMA_FLAG_RECORD)))
		return -EINVAL;
	return 0;
}

/**
 * nymph_entry_check() - whether an entry is well formed and served
 * @e: a private copy of what user space gave
 *
 * Return: 0, -EINVAL, or -EOPNOTSUPP for what has its place in the interface
 * but no code behind it.
 */
int nymph_entry_check(const struct nymph_entry *e)
{
	int ret = 0;

	if (e->size != sizeof(*e) || e->flags & ~NYMPH_FLAGS_KNOWN ||
	    e->reserved[0] || e->reserved[1])
		return -EINVAL;

	switch (e->opcode) {
	case NYMPH_OP_NOP:
		ret = nymph_entry_check_nop(e);
		break;
	case NYMPH_OP_COPY:
		ret = nymph_entry_check_copy(e);
		break;
	case NYMPH_OP_HASH:
	case NYMPH_OP_FILL:
	case NYMPH_OP_COMPARE:
		if (!e->length || e->length > NYMPH_MAX_LENGTH)
			return -EINVAL;
		return -EOPNOTSUPP;
	default:
		return -EINVAL;
	}
	if (ret)
		return ret;

	if (e->src_buffer || e->dst_buffer || e->flags & ~NYMPH_FLAGS_SERVED)
		return -EOPNOTSUPP;
	return 0;
}

static bool nymph_reads_back(const struct nymph_entry *e)
{
	return e->flags & (NYMPH_DMA_FLAG_VERIFY_HASH |
			   NYMPH_DMA_FLAG_DIGEST_ONLY);
}

/**
 * nymph_entry_prepare() - make sure of the memory that an entry names
 * @slot: holds the checked entry; nymph_entry_release() undoes what this does
 * @user: who is charged for what is pinned
 *
 * Called by a thread that has the memory. Return: 0 or a negative errno,
 * nothing is kept then.
 */
int nymph_entry_prepare(struct nymph_slot *slot, struct user_struct *user)
{
	const struct nymph_entry *e = &slot->entry;
	bool zero_copy = e->flags & NYMPH_DMA_FLAG_ZERO_COPY;
	struct nymph_pins *pins;
	int ret;

	if (e->opcode != NYMPH_OP_COPY)
		return 0;

	ret = nymph_check_mapped(e->src, e->length, VM_READ, zero_copy);
	if (ret)
		return ret;
	ret = nymph_check_mapped(e->dst, e->length,
				 nymph_reads_back(e) ? VM_WRITE | VM_READ :
						       VM_WRITE, zero_copy);
	if (ret || !zero_copy)
		return ret;

	pins = kmalloc(sizeof(*pins), GFP_KERNEL_ACCOUNT);
	if (!pins)
		return -ENOMEM;
	ret = nymph_pin_user(&pins->src, user, e->src, e->length, false);
	if (ret)
		goto err_free;
	ret = nymph_pin_user(&pins->dst, user, e->dst, e->length, true);
	if (ret)
		goto err_unpin;
	slot->pins = pins;
	return 0;

err_unpin:
	nymph_unpin_user(&pins->src, user);
err_free:
	kfree(pins);
	return ret;
}

/**
 * nymph_entry_release() - let go of the memory that an entry names
 * @slot: what nymph_entry_prepare() prepared; no engine may still use it
 * @user: who was charged
 */
void nymph_entry_release(struct nymph_slot *slot, struct user_struct *user)
{
	if (!slot->pins)
		return;
	nymph_unpin_user(&slot->pins->dst, user);
	nymph_unpin_user(&slot->pins->src, user);
	kfree(slot->pins);
	slot->pins = NULL;
}

/**
 * nymph_transfer_start() - get ready for the entry at tail
 * @t: the ring's
 */
void nymph_transfer_start(struct nymph_transfer *t)
{
	t->active = true;
	t->started_ns = ktime_get_ns();
	t->done = 0;
	t->checked = 0;
	t->record_flags = 0;
	nymph_blake3_init(&t->src_hash);
	nymph_blake3_init(&t->dst_hash);
}

/*
 * A short user copy is a fault, unless it was cut short by the signal that
 * kills this thread: then another one, if any is left, can do it.
 */
static int nymph_fault(void)
{
	return fatal_signal_pending(current) ? NYMPH_STEP_INTERRUPTED : -EFAULT;
}

static int nymph_copy_pinned(struct nymph_ring *ring, struct nymph_slot *slot,
			     size_t len)
{
	struct nymph_transfer *t = &ring->transfer;
	const struct nymph_pins *pins = slot->pins;
	u32 flags = slot->entry.flags;
	size_t moved = 0;
	int ret;

	ret = ring->engine->ops->copy(ring->engine, &pins->dst, t->done,
				      &pins->src, t->done, len, &moved);
	if (flags & NYMPH_DMA_FLAG_VERIFY_HASH)
		nymph_pin_hash(&pins->src, t->done, moved, &t->src_hash);
	if (flags & NYMPH_DMA_FLAG_DIGEST_ONLY)
		nymph_pin_hash(&pins->dst, t->done, moved, &t->dst_hash);
	t->done += moved;
	return ret;
}

static int nymph_copy_bounced(struct nymph_ring *ring, struct nymph_slot *slot,
			      size_t len)
{
	const struct nymph_entry *e = &slot->entry;
	struct nymph_transfer *t = &ring->transfer;
	u64 dst = e->dst + t->done;
	size_t loaded, moved = 0;
	int ret = 0;

	loaded = len - copy_from_user(ring->bounce,
				      u64_to_user_ptr(e->src + t->done), len);
	if (loaded < len) {
		ret = nymph_fault();
		if (ret == NYMPH_STEP_INTERRUPTED)
			return ret;
	}

	if (loaded) {
		int err = ring->engine->ops->store(ring->engine, dst,
						   ring->bounce, loaded,
						   &moved);

		if (err == -EFAULT)
			err = nymph_fault();
		/* the whole piece is done again, so nothing of it is hashed */
		if (err == NYMPH_STEP_INTERRUPTED)
			return err;
		if (err)
			ret = err;
	}

	if (e->flags & NYMPH_DMA_FLAG_VERIFY_HASH)
		nymph_blake3_update(&t->src_hash, ring->bounce, moved);
	if (e->flags & NYMPH_DMA_FLAG_DIGEST_ONLY) {
		if (copy_from_user(ring->bounce, u64_to_user_ptr(dst), moved)) {
			ret = nymph_fault();
			if (ret == NYMPH_STEP_INTERRUPTED)
				return ret;
		}
		nymph_blake3_update(&t->dst_hash, ring->bounce, moved);
	}
	t->done += moved;
	return ret;
}

static int nymph_read_back(struct nymph_ring *ring, struct nymph_slot *slot,
			   size_t len)
{
	struct nymph_transfer *t = &ring->transfer;

	if (slot->pins) {
		nymph_pin_hash(&slot->pins->dst, t->checked, len, &t->dst_hash);
	} else {
		if (copy_from_user(ring->bounce,
				   u64_to_user_ptr(slot->entry.dst + t->checked),
				   len))
			return nymph_fault();
		nymph_blake3_update(&t->dst_hash, ring->bounce, len);
	}
	t->checked += len;
	return 0;
}

static int nymph_transfer_finish(struct nymph_transfer *t, u32 flags)
{
	if (flags & NYMPH_DMA_FLAG_VERIFY_HASH) {
		nymph_blake3_final(&t->src_hash, t->src_digest);
		nymph_blake3_final(&t->dst_hash, t->dst_digest);
		t->record_flags = NYMPH_RECORD_SRC_DIGEST |
				  NYMPH_RECORD_DST_DIGEST;
		nymph_count(NYMPH_COUNT_VERIFIED, 1);
		if (memcmp(t->src_digest, t->dst_digest, NYMPH_DIGEST_SIZE)) {
			nymph_count(NYMPH_COUNT_MISMATCHED, 1);
			return -EBADMSG;
		}
	} else if (flags & NYMPH_DMA_FLAG_DIGEST_ONLY) {
		nymph_blake3_final(&t->dst_hash, t->dst_digest);
		t->record_flags = NYMPH_RECORD_DST_DIGEST;
	}
	return 0;
}

/**
 * nymph_transfer_step() - do the next piece of the entry at tail
 * @ring: current is its executor
 * @slot: the one at tail, started
 *
 * Return: 0 when all is done; NYMPH_STEP_MORE; NYMPH_STEP_INTERRUPTED; or the
 * negative errno that the entry ends with.
 */
int nymph_transfer_step(struct nymph_ring *ring, struct nymph_slot *slot)
{
	const struct nymph_entry *e = &slot->entry;
	struct nymph_transfer *t = &ring->transfer;
	int ret;

	if (e->opcode == NYMPH_OP_NOP)
		return 0;

	/* the process is gone, and its memory with it */
	if (!slot->pins && current->mm != ring->mm)
		return -EFAULT;

	if (t->done < e->length) {
		size_t len = min_t(u64, e->length - t->done, NYMPH_PIECE);

		ret = slot->pins ? nymph_copy_pinned(ring, slot, len) :
				   nymph_copy_bounced(ring, slot, len);
	} else {
		size_t len = min_t(u64, e->length - t->checked, NYMPH_PIECE);

		ret = nymph_read_back(ring, slot, len);
	}
	if (ret)
		return ret;

	if (t->done < e->length ||
	    (e->flags & NYMPH_DMA_FLAG_VERIFY_HASH && t->checked < e->length))
		return NYMPH_STEP_MORE;
	return nymph_transfer_finish(t, e->flags);
}
