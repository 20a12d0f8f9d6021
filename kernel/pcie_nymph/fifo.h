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
 * struct nymph_fifo - elements of an array that are in use
 * @size: number of elements of the array
 * @tail: index of the oldest element in use
 * @count: number of elements in use; smp_load_acquire() reads it without the lock
 *	that serializes the queue, and then sees these elements filled
 */
struct nymph_fifo {
	u32 size;
	u32 tail;
	u32 count;
};

/* Returns the index of element @i in use; from @count on, of elements used next. */
static inline u32 nymph_fifo_at(const struct nymph_fifo *f, u32 i)
{
	/* no sum, which could wrap; both are less than 2 * size */
	return i < f->size - f->tail ? f->tail + i : i - (f->size - f->tail);
}

/* Returns the index of the next element; the tail if the queue is full or empty. */
static inline u32 nymph_fifo_head(const struct nymph_fifo *f)
{
	return nymph_fifo_at(f, f->count);
}

/* Returns the number of elements in use from the tail to the array's end. */
static inline u32 nymph_fifo_run(const struct nymph_fifo *f)
{
	return min(f->count, f->size - f->tail);
}

static inline void nymph_fifo_push(struct nymph_fifo *f)
{
	/* pairs with smp_load_acquire() of readers without the lock */
	smp_store_release(&f->count, f->count + 1);
}

static inline void nymph_fifo_pop(struct nymph_fifo *f, u32 n)
{
	f->tail = nymph_fifo_at(f, n);
	WRITE_ONCE(f->count, f->count - n);
}

#endif /* _NYMPH_FIFO_H */
