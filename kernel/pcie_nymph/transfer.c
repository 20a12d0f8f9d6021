// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: one entry: the check whether it is well formed, and its chunks.
 *
 * The file is long because the operations share one table, and their chunks share
 * private functions that load, move, hash and compare bytes.
 */
#include <linux/err.h>
#include <linux/mm.h>
#include <linux/nospec.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "counters.h"
#include "ring.h"

/* Flags that every operation takes. */
#define NYMPH_FLAGS_ALWAYS						\
	(NYMPH_DMA_FLAG_COMPLETE_SYNC | NYMPH_DMA_FLAG_RECORD |		\
	 NYMPH_DMA_FLAG_LINK | NYMPH_DMA_FLAG_BARRIER)

/**
 * struct nymph_operation - properties of an opcode
 * @flags: flags that it takes
 * @src: it reads a source
 * @dst: it has a destination
 * @moves: it writes to the destination
 */
struct nymph_operation {
	u32 flags;
	bool src;
	bool dst;
	bool moves;
};

static const struct nymph_operation nymph_operations[] = {
	[NYMPH_OP_NOP] = {
		.flags = NYMPH_FLAGS_ALWAYS,
	},
	[NYMPH_OP_COPY] = {
		.flags = NYMPH_FLAGS_SERVED,
		.src = true, .dst = true, .moves = true,
	},
	[NYMPH_OP_HASH] = {
		.flags = NYMPH_FLAGS_ALWAYS | NYMPH_DMA_FLAG_ZERO_COPY,
		.src = true,
	},
	[NYMPH_OP_FILL] = {
		.flags = NYMPH_FLAGS_SERVED,
		.dst = true, .moves = true,
	},
	[NYMPH_OP_COMPARE] = {
		.flags = NYMPH_FLAGS_ALWAYS | NYMPH_DMA_FLAG_ZERO_COPY,
		.src = true, .dst = true,
	},
};

static const struct nymph_operation *
nymph_operation_of(const struct nymph_entry *e)
{
	return &nymph_operations[array_index_nospec(e->opcode,
					ARRAY_SIZE(nymph_operations))];
}

static bool nymph_entry_overlaps(const struct nymph_entry *e)
{
	u64 src = e->src, dst = e->dst;

	if (e->src_buffer != e->dst_buffer)
		return false;
	if (!e->src_buffer) {
		src = untagged_addr((unsigned long)src);
		dst = untagged_addr((unsigned long)dst);
	}
	return (src > dst ? src - dst : dst - src) < e->length;
}

/**
 * nymph_entry_check() - Check whether an entry is well formed
 * @e: a private copy of the user's entry
 *
 * Return: 0 or -EINVAL.
 */
int nymph_entry_check(const struct nymph_entry *e)
{
	const struct nymph_operation *op;

	if (e->size != sizeof(*e) || e->reserved[0] || e->reserved[1] ||
	    e->opcode >= ARRAY_SIZE(nymph_operations))
		return -EINVAL;
	op = nymph_operation_of(e);
	if (e->flags & ~op->flags)
		return -EINVAL;

	if (op->src || op->dst) {
		if (!e->length || e->length > NYMPH_MAX_LENGTH)
			return -EINVAL;
	} else if (e->length) {
		return -EINVAL;
	}
	/* a FILL has its pattern where others have the source */
	if (!op->src &&
	    (e->src_buffer || (e->src && e->opcode != NYMPH_OP_FILL)))
		return -EINVAL;
	if (!op->dst && (e->dst_buffer || e->dst))
		return -EINVAL;
	if (op->src && op->dst && nymph_entry_overlaps(e))
		return -EINVAL;

	/* nobody would see the digest */
	if (!(e->flags & NYMPH_DMA_FLAG_RECORD) &&
	    (e->flags & NYMPH_DMA_FLAG_DIGEST_ONLY ||
	     e->opcode == NYMPH_OP_HASH))
		return -EINVAL;
	if (e->flags & NYMPH_DMA_FLAG_DIGEST_ONLY &&
	    e->flags & NYMPH_DMA_FLAG_VERIFY_HASH)
		return -EINVAL;
	return 0;
}

/**
 * nymph_entry_moves() - Tell whether an entry writes the bytes that it counts as done
 * @e: a checked entry
 *
 * Return: true for COPY and FILL.
 */
bool nymph_entry_moves(const struct nymph_entry *e)
{
	return nymph_operation_of(e)->moves;
}

/* Looks up the region, if the operand has a handle. The caller holds the ring's lock. */
static int nymph_operand_find(struct nymph_ring *ring,
			      struct nymph_operand *o, u32 handle, u64 at)
{
	struct nymph_region *region;

	o->used = true;
	o->at = at;
	if (!handle)
		return 0;
	region = nymph_region_find(ring, handle);
	if (IS_ERR(region))
		return PTR_ERR(region);
	o->region = region;
	return 0;
}

static int nymph_operand_check(const struct nymph_operand *o, u64 len,
			       unsigned long vm_flags, bool long_term)
{
	if (!o->used)
		return 0;
	if (!o->region)
		return nymph_check_mapped(o->at, len, vm_flags, long_term);
	if (o->at > o->region->length || len > o->region->length - o->at ||
	    (vm_flags & VM_WRITE && !o->region->pin.write))
		return -EFAULT;
	return 0;
}

static int nymph_operand_pin(struct nymph_ring *ring, struct nymph_operand *o,
			     u64 len, bool write)
{
	struct nymph_region *region;

	if (!o->used || o->region)
		return 0;
	region = nymph_region_pin(ring->cred, o->at, len, write);
	if (IS_ERR(region))
		return PTR_ERR(region);
	atomic_long_add(region->pin.nr_pages, &ring->pinned_pages);
	o->region = region;
	o->own = true;
	o->at = 0;
	return 0;
}

static void nymph_operand_release(struct nymph_ring *ring,
				  struct nymph_operand *o)
{
	if (o->own)
		atomic_long_sub(o->region->pin.nr_pages, &ring->pinned_pages);
	nymph_region_put(o->region);
	memset(o, 0, sizeof(*o));
}

/**
 * nymph_entry_is_in_buffers() - Tell whether handles name all memory of an entry
 * @e: a checked entry
 *
 * Return: true if nothing has to be pinned, and no mapping looked up.
 */
bool nymph_entry_is_in_buffers(const struct nymph_entry *e)
{
	const struct nymph_operation *op = nymph_operation_of(e);

	return (!op->src || e->src_buffer) && (!op->dst || e->dst_buffer);
}

static int nymph_entry_find(struct nymph_ring *ring, struct nymph_slot *slot)
{
	const struct nymph_entry *e = &slot->entry;
	const struct nymph_operation *op = nymph_operation_of(e);
	int ret = 0;

	if (op->src)
		ret = nymph_operand_find(ring, &slot->src, e->src_buffer,
					 e->src);
	if (!ret && op->dst)
		ret = nymph_operand_find(ring, &slot->dst, e->dst_buffer,
					 e->dst);
	return ret;
}

/* Checks that the memory is there, and pins what has no handle. */
static int nymph_entry_reach(struct nymph_ring *ring, struct nymph_slot *slot)
{
	const struct nymph_entry *e = &slot->entry;
	const struct nymph_operation *op = nymph_operation_of(e);
	bool zero_copy = e->flags & NYMPH_DMA_FLAG_ZERO_COPY;
	unsigned long dst_flags = VM_READ;
	int ret;

	if (op->moves) {
		dst_flags = VM_WRITE;
		if (e->flags & NYMPH_FLAGS_HASHED)
			dst_flags |= VM_READ;
	}

	ret = nymph_operand_check(&slot->src, e->length, VM_READ, zero_copy);
	if (!ret)
		ret = nymph_operand_check(&slot->dst, e->length, dst_flags,
					  zero_copy);
	if (!ret && zero_copy)
		ret = nymph_operand_pin(ring, &slot->src, e->length, false);
	if (!ret && zero_copy)
		ret = nymph_operand_pin(ring, &slot->dst, e->length, op->moves);
	return ret;
}

/**
 * nymph_entry_prepare() - Check, look up and pin the memory that an entry names
 * @ring: a ring of current's memory
 * @slot: slot with the checked entry and nothing else; nymph_entry_release()
 *	undoes this
 *
 * Return: 0, or a negative errno, and nothing is kept then; -ESTALE if the ring
 * was reset or replaced.
 */
int nymph_entry_prepare(struct nymph_ring *ring, struct nymph_slot *slot)
{
	int ret;

	mutex_lock(&ring->lock);
	ret = nymph_entry_find(ring, slot);
	mutex_unlock(&ring->lock);
	if (!ret)
		ret = nymph_entry_reach(ring, slot);
	if (ret)
		nymph_entry_release(ring, slot);
	return ret;
}

/**
 * nymph_entry_prepare_locked() - Check and look up the buffers that an entry names
 * @ring: a ring of current's memory; the caller holds its lock
 * @slot: as for nymph_entry_prepare(); all memory of its entry is in buffers
 *
 * Return: as nymph_entry_prepare().
 */
int nymph_entry_prepare_locked(struct nymph_ring *ring, struct nymph_slot *slot)
{
	int ret = nymph_entry_find(ring, slot);

	if (!ret)
		ret = nymph_entry_reach(ring, slot);
	/* the handles keep the buffers, so the last reference is not dropped here */
	if (ret)
		nymph_entry_release(ring, slot);
	return ret;
}

/**
 * nymph_entry_release() - Release the memory that an entry names
 * @ring: the ring
 * @slot: slot that nymph_entry_prepare() prepared; no engine may still use it
 */
void nymph_entry_release(struct nymph_ring *ring, struct nymph_slot *slot)
{
	nymph_operand_release(ring, &slot->dst);
	nymph_operand_release(ring, &slot->src);
}

/**
 * nymph_transfer_start() - Prepare for the entry at tail
 * @t: the ring's
 * @entry: that entry
 * @now: CLOCK_MONOTONIC
 */
void nymph_transfer_start(struct nymph_transfer *t,
			  const struct nymph_entry *entry, u64 now)
{
	t->active = true;
	t->started_ns = now;
	t->done = 0;
	t->ahead = 0;
	t->checked = 0;
	t->blocked_ns = 0;
	t->engine = 0;
	t->record_flags = 0;
	if (entry->opcode == NYMPH_OP_HASH ||
	    entry->flags & NYMPH_FLAGS_HASHED) {
		nymph_blake3_init(&t->src_hash);
		nymph_blake3_init(&t->dst_hash);
	}
}

/*
 * A short user copy is a fault, unless the signal that kills this thread cut it
 * short: then another thread, if any is left, can do it.
 */
static int nymph_fault(void)
{
	return fatal_signal_pending(current) ? NYMPH_STEP_INTERRUPTED : -EFAULT;
}

static bool nymph_is_borrowed(const struct nymph_operand *o)
{
	return o->used && !o->region;
}

static bool nymph_has_pages(const struct nymph_operand *o)
{
	return o->region && o->region->pin.pages;
}

/* Memory of a device, which the CPU accesses slowly; or a dma-buf, which may be. */
static bool nymph_is_device_memory(const struct nymph_operand *o)
{
	return o->region && !o->region->pin.pages;
}

/*
 * Tells whether others are done with the memory, so that it can be read, or
 * written. Each call waits for a short time, so that the executor can check between
 * two calls whether it has to stop. Returns 0, NYMPH_STEP_MORE or -ETIMEDOUT.
 */
static int nymph_operand_await(struct nymph_transfer *t,
			       const struct nymph_operand *o, bool write)
{
	u64 now;

	if (!o->region || !o->region->pin.dmabuf ||
	    nymph_dmabuf_wait(o->region->pin.dmabuf, write, NYMPH_FENCE_SLICE))
		return 0;
	now = ktime_get_ns();
	if (!t->blocked_ns)
		t->blocked_ns = now;
	if (now - t->blocked_ns <
	    (u64)READ_ONCE(nymph_dma_timeout_ms) * NSEC_PER_MSEC)
		return NYMPH_STEP_MORE;
	return -ETIMEDOUT;
}

static int nymph_transfer_await(struct nymph_transfer *t,
				const struct nymph_slot *slot)
{
	bool write = t->done < slot->entry.length &&
		     nymph_operation_of(&slot->entry)->moves;
	int ret;

	ret = nymph_operand_await(t, &slot->src, false);
	if (!ret)
		ret = nymph_operand_await(t, &slot->dst, write);
	if (!ret)
		t->blocked_ns = 0;
	return ret;
}

/* Returns the number of bytes that could be loaded. */
static size_t nymph_load(const struct nymph_operand *o, u64 offset, void *to,
			 size_t len)
{
	if (o->region)
		return nymph_pin_load(&o->region->pin, o->at + offset, to,
				      len) ? len : 0;
	return len - copy_from_user(to, nymph_user_ptr(o->at + offset, len),
				    len);
}

/* Tells whether the CPU copies from page to page. */
static bool nymph_is_of_pages(const struct nymph_ring *ring,
			      const struct nymph_slot *slot)
{
	return slot->entry.opcode == NYMPH_OP_COPY && !ring->engine->offloads &&
	       nymph_has_pages(&slot->src) && nymph_has_pages(&slot->dst);
}

/*
 * Tells whether what is sent has to be read once: its digest is asked for, and the
 * entry does not say that the source may be read twice.
 */
static bool nymph_is_read_once(const struct nymph_entry *e)
{
	return (e->flags & (NYMPH_DMA_FLAG_VERIFY_HASH |
			    NYMPH_DMA_FLAG_ZERO_COPY)) ==
	       NYMPH_DMA_FLAG_VERIFY_HASH;
}

/* Tells whether the source does not go through the bounce buffer. */
static bool nymph_is_direct(const struct nymph_ring *ring,
			    const struct nymph_slot *slot)
{
	const struct nymph_entry *e = &slot->entry;

	return (e->opcode == NYMPH_OP_COPY &&
		e->flags & NYMPH_DMA_FLAG_ZERO_COPY) ||
	       (nymph_is_of_pages(ring, slot) && !nymph_is_read_once(e));
}

static void nymph_prepare_direct(struct nymph_slot *slot, u64 at, size_t len,
				 struct nymph_move *move)
{
	*move = (struct nymph_move) {
		.dst = &slot->dst,
		.dst_off = slot->dst.at + at,
		.src = &slot->src,
		.src_off = slot->src.at + at,
		.len = len,
	};
}

/**
 * nymph_transfer_prepare() - Prepare the next move of an entry
 * @ring: current is its executor
 * @slot: a COPY or FILL
 * @at: number of bytes that are moved already, a multiple of 8
 * @len: number of bytes to move next
 * @ahead: number of these that are in the bounce buffer already: all, or a multiple
 *	of 8
 * @bounce_off: offset of their room in the bounce buffer, which has up to 7 bytes
 *	more
 * @move: filled, for nymph_engine_move(); its len is less than @len if not all bytes
 *	could be read
 *
 * Return: 0; -EFAULT if not all could be read; NYMPH_STEP_INTERRUPTED.
 */
int nymph_transfer_prepare(struct nymph_ring *ring, struct nymph_slot *slot,
			   u64 at, size_t len, size_t ahead, size_t bounce_off,
			   struct nymph_move *move)
{
	const struct nymph_entry *e = &slot->entry;
	void *bounce;

	if (nymph_is_direct(ring, slot)) {
		nymph_prepare_direct(slot, at, len, move);
		return 0;
	}
	*move = (struct nymph_move) {
		.dst = &slot->dst,
		.dst_off = slot->dst.at + at,
		.bounce = ring->bounce,
		.bounce_off = bounce_off,
		.len = len,
	};
	bounce = nymph_move_bounce(move) + ahead;
	if (e->opcode == NYMPH_OP_FILL)
		memset64(bounce, (__force u64)cpu_to_le64(e->src),
			 DIV_ROUND_UP(len - ahead, sizeof(u64)));
	else
		move->len = ahead + nymph_load(&slot->src, at + ahead, bounce,
					       len - ahead);
	if (move->len == len)
		return 0;
	return nymph_is_borrowed(&slot->src) ? nymph_fault() : -EFAULT;
}

/* Returns the CPUs that share work of @len bytes; NULL if it is not worth it. */
static struct nymph_team *nymph_team_for(struct nymph_ring *ring, size_t len)
{
	if (!nymph_team_share(len) || !nymph_team_is_allowed(ring->owner))
		return NULL;
	if (!ring->team)
		ring->team = nymph_team_create(ring->engine->node);
	return ring->team;
}

/*
 * Hashes memory behind a handle; returns whether the memory is still there. The CPU
 * may access memory without pages slowly, and it cannot be preempted while it
 * hashes. So it first copies such memory into the bounce buffer, which is free.
 */
static bool nymph_hash_region(struct nymph_ring *ring,
			      const struct nymph_region *region, u64 at,
			      size_t len, struct nymph_blake3 *hash)
{
	void *bounce = ring->bounce->data;

	if (region->pin.pages) {
		nymph_pin_hash(&region->pin, at, len, hash,
			       nymph_team_for(ring, len));
		return true;
	}
	if (!nymph_pin_load(&region->pin, at, bounce, len))
		return false;
	nymph_blake3_update(hash, bounce, len);
	return true;
}

/**
 * struct nymph_sending - a chunk that an engine moves
 * @ring: the ring
 * @move: the chunk
 * @loaded: number of bytes in the bounce buffer
 * @ret: 0, or -EFAULT if the source is gone
 */
struct nymph_sending {
	struct nymph_ring *ring;
	const struct nymph_move *move;
	size_t loaded;
	int ret;
};

/*
 * Hashes what is being sent: all that was loaded, even if less is sent. The rest is
 * sent next, and neither loaded nor hashed again.
 */
static void nymph_hash_sent(void *arg)
{
	struct nymph_sending *s = arg;
	struct nymph_transfer *t = &s->ring->transfer;
	const struct nymph_move *move = s->move;

	if (move->src) {
		if (!nymph_hash_region(s->ring, move->src->region,
				       move->src_off, move->len, &t->src_hash))
			s->ret = -EFAULT;
		return;
	}
	nymph_blake3_update(&t->src_hash, nymph_move_bounce(move) + t->ahead,
			    s->loaded - t->ahead);
	t->ahead = s->loaded;
}

/* Drops the bytes that were sent from the bounce buffer. */
static void nymph_drop_sent(struct nymph_transfer *t,
			    const struct nymph_move *move)
{
	if (!t->ahead)
		return;
	t->ahead -= move->done;
	if (t->ahead)
		memmove(nymph_move_bounce(move),
			nymph_move_bounce(move) + move->done, t->ahead);
}

/*
 * Hashes what was sent, if that is a dma-buf: the CPU must not access it while an
 * engine does.
 */
static int nymph_hash_sent_dmabuf(struct nymph_ring *ring,
				  struct nymph_slot *slot,
				  const struct nymph_move *move)
{
	if (!(slot->entry.flags & NYMPH_DMA_FLAG_VERIFY_HASH) || !move->src ||
	    !move->src->region->pin.dmabuf)
		return 0;
	return nymph_hash_region(ring, move->src->region, move->src_off,
				 move->done, &ring->transfer.src_hash) ?
	       0 : -EFAULT;
}

/* Takes in what an engine did with the next chunk. */
static int nymph_copy_land(struct nymph_ring *ring, struct nymph_slot *slot,
			   const struct nymph_move *move)
{
	struct nymph_transfer *t = &ring->transfer;
	int ret = move->status, err;

	if (ret == -EFAULT && nymph_is_borrowed(&slot->dst))
		ret = nymph_fault();
	/* an executor that was killed did not wait for the engine's deadline */
	if (ret == -EINTR)
		ret = -ETIMEDOUT;
	/* the whole chunk is done again; the bounce buffer still has what was sent */
	if (ret == NYMPH_STEP_INTERRUPTED)
		return ret;
	/* of an entry that failed there is no digest */
	err = ret ? 0 : nymph_hash_sent_dmabuf(ring, slot, move);
	if (!ret)
		nymph_drop_sent(t, move);
	t->engine = move->engine;
	t->done += move->done;
	if (move->dst_hash)
		t->checked = t->done;
	return ret ?: err;
}

/*
 * Has the source hashed while an engine moves it. Between pages the CPU hashes both
 * sides as it copies.
 */
static void nymph_hash_sending(struct nymph_ring *ring, struct nymph_slot *slot,
			       struct nymph_move *move,
			       struct nymph_sending *sending)
{
	u32 flags = slot->entry.flags;

	*sending = (struct nymph_sending) {
		.ring = ring,
		.move = move,
		.loaded = move->len,
	};
	if (nymph_is_of_pages(ring, slot)) {
		if (nymph_is_read_once(&slot->entry))
			move->bounce = ring->bounce;
		else
			move->team = nymph_team_for(ring, move->len);
		if (flags & NYMPH_FLAGS_HASHED)
			move->dst_hash = &ring->transfer.dst_hash;
		if (flags & NYMPH_DMA_FLAG_VERIFY_HASH)
			move->src_hash = &ring->transfer.src_hash;
	} else if (flags & NYMPH_DMA_FLAG_VERIFY_HASH &&
		   !(move->src && move->src->region->pin.dmabuf)) {
		move->overlap = nymph_hash_sent;
		move->overlap_arg = sending;
	}
}

/* A COPY or a FILL. */
static int nymph_copy_chunk(struct nymph_ring *ring, struct nymph_slot *slot,
			    size_t len)
{
	struct nymph_move *move = ring->batch->moves;
	struct nymph_sending sending;
	int ret, err;

	if (nymph_is_of_pages(ring, slot)) {
		nymph_prepare_direct(slot, ring->transfer.done, len, move);
		ret = 0;
	} else {
		ret = nymph_transfer_prepare(ring, slot, ring->transfer.done,
					     len, ring->transfer.ahead, 0, move);
		if (ret == NYMPH_STEP_INTERRUPTED || !move->len)
			return ret;
	}
	nymph_hash_sending(ring, slot, move, &sending);
	nymph_engine_move(ring, move, 1);
	err = nymph_copy_land(ring, slot, move);
	return err ?: sending.ret ?: ret;
}

static int nymph_read_back(struct nymph_ring *ring, struct nymph_slot *slot,
			   size_t len)
{
	struct nymph_transfer *t = &ring->transfer;

	if (slot->dst.region) {
		if (!nymph_hash_region(ring, slot->dst.region,
				       slot->dst.at + t->checked, len,
				       &t->dst_hash))
			return -EFAULT;
	} else {
		void *bounce = ring->bounce->data;

		if (nymph_load(&slot->dst, t->checked, bounce, len) < len)
			return nymph_fault();
		nymph_blake3_update(&t->dst_hash, bounce, len);
	}
	t->checked += len;
	return 0;
}

static int nymph_hash_chunk(struct nymph_ring *ring, struct nymph_slot *slot,
			    size_t len)
{
	struct nymph_transfer *t = &ring->transfer;
	size_t loaded = len;
	int ret = 0;

	if (slot->entry.flags & NYMPH_DMA_FLAG_ZERO_COPY) {
		if (!nymph_hash_region(ring, slot->src.region,
				       slot->src.at + t->done, len,
				       &t->src_hash))
			return -EFAULT;
	} else {
		loaded = nymph_load(&slot->src, t->done, ring->bounce->data,
				    len);
		if (loaded < len) {
			ret = nymph_fault();
			if (ret == NYMPH_STEP_INTERRUPTED)
				return ret;
		}
		nymph_blake3_update(&t->src_hash, ring->bounce->data, loaded);
	}
	t->done += loaded;
	return ret;
}

static int nymph_compare_chunk(struct nymph_ring *ring, struct nymph_slot *slot,
			       size_t len)
{
	u8 *src = ring->bounce->data, *dst = src + NYMPH_CHUNK / 2;
	struct nymph_transfer *t = &ring->transfer;
	size_t n, equal = 0;
	int ret = 0;

	len = min_t(size_t, len, NYMPH_CHUNK / 2);
	n = nymph_load(&slot->src, t->done, src, len);
	n = min(n, nymph_load(&slot->dst, t->done, dst, len));
	if (n < len) {
		ret = nymph_fault();
		if (ret == NYMPH_STEP_INTERRUPTED)
			return ret;
	}
	if (!memcmp(src, dst, n)) {
		t->done += n;
		return ret;
	}
	while (src[equal] == dst[equal])
		equal++;
	t->done += equal;
	return -EBADMSG;
}

static int nymph_chunk(struct nymph_ring *ring, struct nymph_slot *slot,
		       size_t len)
{
	switch (slot->entry.opcode) {
	case NYMPH_OP_HASH:
		return nymph_hash_chunk(ring, slot, len);
	case NYMPH_OP_COMPARE:
		return nymph_compare_chunk(ring, slot, len);
	default:
		return nymph_copy_chunk(ring, slot, len);
	}
}

/* Returns the size of the next chunk that needs no bounce buffer. */
static size_t nymph_next_direct(const struct nymph_ring *ring,
				const struct nymph_slot *slot)
{
	const struct nymph_entry *e = &slot->entry;
	bool by_engine = e->opcode == NYMPH_OP_COPY && ring->engine->offloads &&
			 !(e->flags & NYMPH_FLAGS_HASHED);

	if (by_engine)
		return NYMPH_MAX_SPREAD * NYMPH_LARGE_CHUNK;
	return nymph_is_device_memory(&slot->src) || nymph_is_device_memory(&slot->dst) ?
	       NYMPH_CHUNK : NYMPH_LARGE_CHUNK;
}

/* Returns the size of an entry's next chunk. */
static size_t nymph_next_chunk(const struct nymph_ring *ring,
			       const struct nymph_slot *slot, u64 left)
{
	const struct nymph_entry *e = &slot->entry;
	size_t most = NYMPH_CHUNK;

	if (nymph_is_direct(ring, slot) || nymph_is_of_pages(ring, slot) ||
	    (e->flags & NYMPH_DMA_FLAG_ZERO_COPY && e->opcode == NYMPH_OP_HASH))
		most = nymph_next_direct(ring, slot);
	return min_t(u64, left, most);
}

/*
 * Tells whether the destination is read back next, not sent to. What the CPU wrote is
 * read back while it is in a cache. What a device wrote is read back, for VERIFY_HASH,
 * when the device is done with all of it: nothing that it does to the end is missed.
 */
static bool nymph_is_to_read_back(const struct nymph_ring *ring,
				  const struct nymph_entry *e)
{
	const struct nymph_transfer *t = &ring->transfer;

	if (!(e->flags & NYMPH_FLAGS_HASHED) || t->checked == t->done)
		return false;
	return t->done == e->length || !ring->engine->offloads ||
	       e->flags & NYMPH_DMA_FLAG_DIGEST_ONLY;
}

/* Returns how many bytes of the destination are read back next. */
static size_t nymph_next_read_back(const struct nymph_slot *slot, u64 left)
{
	size_t most = nymph_has_pages(&slot->dst) ? NYMPH_LARGE_CHUNK :
						    NYMPH_CHUNK;

	return min_t(u64, left, most);
}

/* Compares the digests, if there are two. */
static int nymph_transfer_judge(struct nymph_transfer *t)
{
	const u32 both = NYMPH_RECORD_SRC_DIGEST | NYMPH_RECORD_DST_DIGEST;

	if (t->record_flags != both)
		return 0;
	nymph_count(NYMPH_COUNT_VERIFIED, 1);
	if (!memcmp(t->src_digest, t->dst_digest, NYMPH_DIGEST_SIZE))
		return 0;
	nymph_count(NYMPH_COUNT_MISMATCHED, 1);
	return -EBADMSG;
}

static u32 nymph_digests_wanted(const struct nymph_entry *e)
{
	if (e->opcode == NYMPH_OP_HASH)
		return NYMPH_RECORD_SRC_DIGEST;
	if (e->flags & NYMPH_DMA_FLAG_VERIFY_HASH)
		return NYMPH_RECORD_SRC_DIGEST | NYMPH_RECORD_DST_DIGEST;
	return e->flags & NYMPH_DMA_FLAG_DIGEST_ONLY ? NYMPH_RECORD_DST_DIGEST :
						       0;
}

static int nymph_transfer_progress(struct nymph_transfer *t,
				   const struct nymph_entry *e)
{
	if (t->done < e->length ||
	    (e->flags & NYMPH_FLAGS_HASHED && t->checked < e->length))
		return NYMPH_STEP_MORE;
	t->record_flags = nymph_digests_wanted(e);
	if (t->record_flags & NYMPH_RECORD_SRC_DIGEST)
		nymph_blake3_final(&t->src_hash, t->src_digest);
	if (t->record_flags & NYMPH_RECORD_DST_DIGEST)
		nymph_blake3_final(&t->dst_hash, t->dst_digest);
	return nymph_transfer_judge(t);
}

/**
 * nymph_transfer_renew_bounce() - Make sure that the bounce buffer may be written
 * @ring: current is its executor
 *
 * A quarantined operation may read the present buffer for ever. Its entry has failed,
 * so nobody needs the bytes: the ring gets a new buffer.
 *
 * Return: 0 or -ENOMEM.
 */
int nymph_transfer_renew_bounce(struct nymph_ring *ring)
{
	struct nymph_bounce *bounce;

	if (refcount_read(&ring->bounce->refs) == 1)
		return 0;
	bounce = nymph_bounce_create(ring->engine->node);
	if (!bounce)
		return -ENOMEM;
	nymph_bounce_put(ring->bounce);
	ring->bounce = bounce;
	return 0;
}

/**
 * nymph_transfer_step() - Do the next chunk of the entry at tail
 * @ring: current is its executor
 * @slot: the slot at tail, started
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
	ret = nymph_transfer_renew_bounce(ring);
	if (ret)
		return ret;

	/* the process is gone, and its memory with it */
	if (current->mm != ring->mm &&
	    (nymph_is_borrowed(&slot->src) || nymph_is_borrowed(&slot->dst)))
		return -EFAULT;
	ret = nymph_transfer_await(t, slot);
	if (ret)
		return ret;

	if (nymph_is_to_read_back(ring, e))
		ret = nymph_read_back(ring, slot,
				      nymph_next_read_back(slot, t->done -
							   t->checked));
	else
		ret = nymph_chunk(ring, slot,
				  nymph_next_chunk(ring, slot,
						   e->length - t->done));
	return ret ?: nymph_transfer_progress(t, e);
}

/**
 * nymph_transfer_land() - Take in the result of a move of the whole entry at tail
 * @ring: current is its executor
 * @slot: the slot at tail, started
 * @move: the move of all its bytes
 * @src_digest: digest of what was sent, if the entry asks for it; NULL if there are
 *	no digests yet, and none of the bounce buffer is asked for
 * @dst_digest: digest of what was read back
 *
 * Return: as nymph_transfer_step(), which does the rest.
 */
int nymph_transfer_land(struct nymph_ring *ring, struct nymph_slot *slot,
			const struct nymph_move *move, const u8 *src_digest,
			const u8 *dst_digest)
{
	struct nymph_transfer *t = &ring->transfer;
	int ret;

	if (!src_digest) {
		ret = nymph_copy_land(ring, slot, move);
		return ret ?: nymph_transfer_progress(t, &slot->entry);
	}
	t->engine = move->engine;
	t->done = move->done;
	memcpy(t->src_digest, src_digest, NYMPH_DIGEST_SIZE);
	memcpy(t->dst_digest, dst_digest, NYMPH_DIGEST_SIZE);
	t->record_flags = nymph_digests_wanted(&slot->entry);
	return nymph_transfer_judge(t);
}
