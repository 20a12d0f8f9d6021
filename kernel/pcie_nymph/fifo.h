/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * pcie_nymph: indices of a queue in an array of any size. The ring's slots and
 * its completion records are both such a queue.
 */
#ifndef _NYMPH_FIFO_H
#define _NYMPH_FIFO_H

#include <asm/barrier.h>
#include <linux/compiler.h>
#include <linux/minmax.h>
#include <linux/types.h>

/**
 * struct nymph_fifo - which elements of an array are in use
 * @size: elements in the array
 * @tail: index of the oldest element in use
 * @count: elements in use; may be read without the lock that serializes them,
 *	and who does that with smp_load_acquire() sees them filled
 */
struct nymph_fifo {
	u32 size;
	u32 tail;
	u32 count;
};

/* Index of the @i-th element in use, or, from @count on, to be used next. */
static inline u32 nymph_fifo_at(const struct nymph_fifo *f, u32 i)
{
	/* no sum, which could wrap; both are less than 2 * size */
	return i < f->size - f->tail ? f->tail + i : i - (f->size - f->tail);
}

/* Where the next element goes; equal to the tail if the queue is full or empty. */
static inline u32 nymph_fifo_head(const struct nymph_fifo *f)
{
	return nymph_fifo_at(f, f->count);
}

/* How many elements in use stand side by side, from the tail on. */
static inline u32 nymph_fifo_run(const struct nymph_fifo *f)
{
	return min(f->count, f->size - f->tail);
}

static inline void nymph_fifo_push(struct nymph_fifo *f)
{
	/* for who looks without the lock, by smp_load_acquire() */
	smp_store_release(&f->count, f->count + 1);
}

static inline void nymph_fifo_pop(struct nymph_fifo *f, u32 n)
{
	f->tail = nymph_fifo_at(f, n);
	WRITE_ONCE(f->count, f->count - n);
}

#endif /* _NYMPH_FIFO_H */
