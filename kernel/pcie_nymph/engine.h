/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * pcie_nymph: engines, which move bytes: the CPU, or a DMA channel.
 */
#ifndef _NYMPH_ENGINE_H
#define _NYMPH_ENGINE_H

#include <linux/list.h>
#include <linux/types.h>

#include "memory.h"
#include "pcie_nymph.h"

/* At most this many channels share a large copy, if the driver chose the engine. */
#define NYMPH_MAX_SPREAD	4

/* At most this many moves are given to an engine at a time. */
#define NYMPH_MAX_MOVES		64

/* More engines than any machine has. */
#define NYMPH_MAX_ENGINES	128

struct nymph_blake3;
struct nymph_card;
struct nymph_ring;
struct nymph_team;

/**
 * struct nymph_move - bytes to be moved
 * @dst: the destination
 * @dst_off: offset into @dst
 * @src: the source, a region; @dst has a region then, too. Or NULL
 * @src_off: offset into @src
 * @bounce: the source, if @src is NULL; else a buffer that the CPU copies pages
 *	through, or NULL
 * @bounce_off: offset into @bounce
 * @len: bytes: at most NYMPH_CHUNK; between regions NYMPH_LARGE_CHUNK, times the
 *	number of engines that share the move if it is not hashed. An engine that
 *	moves less lowers it
 * @done: bytes that arrived, from the start on
 * @status: 0 or a negative errno
 * @engine: id of the engine that worked on the move last
 * @quarantined: the engine failed and may still write; it keeps references to the
 *	regions or the bounce buffer until it is known to have stopped
 * @src_hash: hash that takes in what is sent, only for the CPU between pages; or NULL
 * @dst_hash: hash that takes in what arrives, only for the CPU between pages; or NULL
 * @team: CPUs that share the work, only for the CPU between pages; or NULL
 * @overlap: of the first of several moves: work to do while an engine moves bytes,
 *	see nymph_move_overlap(); or NULL
 * @overlap_arg: argument of @overlap
 */
struct nymph_move {
	const struct nymph_operand *dst;
	u64 dst_off;
	const struct nymph_operand *src;
	u64 src_off;
	struct nymph_bounce *bounce;
	size_t bounce_off;
	size_t len;
	size_t done;
	int status;
	u32 engine;
	bool quarantined;
	struct nymph_blake3 *src_hash;
	struct nymph_blake3 *dst_hash;
	struct nymph_team *team;
	void (*overlap)(void *arg);
	void *overlap_arg;
};

static inline void *nymph_move_bounce(const struct nymph_move *move)
{
	return move->bounce->data + move->bounce_off;
}

/**
 * nymph_move_overlap() - Do the work that overlaps with an engine's moves
 * @moves: the moves that the engine was given; their len is final
 *
 * An engine that offloads calls this before it waits. The work is done once.
 */
static inline void nymph_move_overlap(struct nymph_move *moves)
{
	void (*overlap)(void *arg) = moves->overlap;

	moves->overlap = NULL;
	if (overlap)
		overlap(moves->overlap_arg);
}

/**
 * struct nymph_engine - something that moves bytes
 * @list: entry in the list of all engines
 * @name: name that SETUP2 takes
 * @id: number that records give
 * @node: NUMA node next to the engine, or NUMA_NO_NODE
 * @offloads: the engine works without the CPU, so several moves are given to it at
 *	a time
 * @device: device of the engine; not to be dereferenced
 * @rings: number of rings that have the engine; under the engines' lock
 * @helped: number of rings that have another engine, which this one helps; under
 *	the engines' lock
 * @start: prepares the engine for one more ring. Returns 0 or a negative errno,
 *	-EINTR if current was killed
 * @stop: undoes one @start; does not wait for a device
 * @ready: tells whether the engine is worth trying; NULL if it always is
 * @card: allocates memory of the engine's device; NULL if there can't be any
 * @move: moves bytes and sets the status of each move: -EFAULT is the memory's
 *	fault, any other error is the engine's. Several moves are given only if all
 *	are between regions, or from the same bounce buffer to a region, and none
 *	is a dma-buf. The callback sleeps at most for the engine's own deadline and
 *	the time it takes to stop a channel that missed it: of each channel, if
 *	several share a move. Each ring calls it once at a time; several rings can
 *	call it at once
 */
struct nymph_engine {
	struct list_head list;
	char name[NYMPH_ENGINE_NAME_SIZE];
	u32 id;
	int node;
	bool offloads;
	const void *device;
	unsigned int rings;
	unsigned int helped;
	int (*start)(struct nymph_engine *engine);
	void (*stop)(struct nymph_engine *engine);
	bool (*ready)(struct nymph_engine *engine);
	struct nymph_card *(*card)(struct nymph_engine *engine, u64 length);
	void (*move)(struct nymph_engine *engine, struct nymph_move *moves,
		     unsigned int n);
};

/* engine_cpu.c: the CPU */

extern struct nymph_engine nymph_engine_cpu;

/* engines.c: the list of engines, and a ring's share of them */

struct nymph_engine *nymph_engine_get(const char *name, bool *is_auto);
bool nymph_engine_put(struct nymph_ring *ring, bool may_wait);
int nymph_engine_infos(struct nymph_engine_info *infos, unsigned int max);
void nymph_engine_move(struct nymph_ring *ring, struct nymph_move *moves,
		       unsigned int n);
int nymph_engines_init(void);
void nymph_engines_exit(void);

/* engine_dma.c: a DMA channel */

extern unsigned int nymph_dma_timeout_ms;

#endif /* _NYMPH_ENGINE_H */
