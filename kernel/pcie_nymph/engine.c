// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: the engines there are, and which of them a ring gets.
 */
#include <linux/err.h>
#include <linux/kernel.h>
#include <linux/list.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "nymph.h"
#include "trace.h"

/*
 * Serializes the list, ids and the engines' rings. Engines stay in the list for
 * as long as the module does: one that went away may come back.
 */
static DEFINE_MUTEX(nymph_engines_lock);
static LIST_HEAD(nymph_engines);
static u32 nymph_last_engine_id = 1;

/**
 * nymph_bounce_create() - make a bounce buffer
 * @engine: what will read it
 *
 * Return: the buffer, with one reference; or NULL.
 */
struct nymph_bounce *nymph_bounce_create(const struct nymph_engine *engine)
{
	struct nymph_bounce *bounce;

	bounce = kvmalloc_node(struct_size(bounce, data, NYMPH_PIECE),
			       GFP_KERNEL_ACCOUNT, engine->node);
	if (bounce)
		refcount_set(&bounce->refs, 1);
	return bounce;
}

/**
 * nymph_bounce_put() - somebody is done with a bounce buffer
 * @bounce: the buffer, or NULL
 */
void nymph_bounce_put(struct nymph_bounce *bounce)
{
	if (bounce && refcount_dec_and_test(&bounce->refs))
		kvfree(bounce);
}

/**
 * nymph_engine_lookup() - the DMA engine of that name, whether it is there or not
 * @name: its name
 *
 * The engines' lock is held: for nymph_dma_scan().
 */
struct nymph_engine *nymph_engine_lookup(const char *name)
{
	struct nymph_engine *engine;

	lockdep_assert_held(&nymph_engines_lock);
	list_for_each_entry(engine, &nymph_engines, list)
		if (!strcmp(engine->name, name))
			return engine;
	return NULL;
}

/**
 * nymph_engine_add() - a DMA engine that nobody knew
 * @engine: with its name
 *
 * The engines' lock is held: for nymph_dma_scan().
 */
void nymph_engine_add(struct nymph_engine *engine)
{
	lockdep_assert_held(&nymph_engines_lock);
	engine->id = ++nymph_last_engine_id;
	list_add_tail(&engine->list, &nymph_engines);
}

/**
 * nymph_engines_each_locked() - do something with every DMA engine
 * @visit: what
 * @param: for it
 *
 * The engines' lock is held.
 */
void nymph_engines_each_locked(void (*visit)(struct nymph_engine *engine,
					     void *param), void *param)
{
	struct nymph_engine *engine;

	lockdep_assert_held(&nymph_engines_lock);
	list_for_each_entry(engine, &nymph_engines, list)
		visit(engine, param);
}

/**
 * nymph_engines_each() - do something with every DMA engine
 * @visit: what
 * @param: for it
 */
void nymph_engines_each(void (*visit)(struct nymph_engine *engine, void *param),
			void *param)
{
	mutex_lock(&nymph_engines_lock);
	nymph_engines_each_locked(visit, param);
	mutex_unlock(&nymph_engines_lock);
}

/* The DMA engine with the fewest rings that can be had, or else the CPU. */
static struct nymph_engine *nymph_engine_choose(void)
{
	struct nymph_engine *engine, *best = NULL;

	list_for_each_entry(engine, &nymph_engines, list) {
		if (!nymph_dma_is_there(engine) || !engine->ready(engine))
			continue;
		if (!best || engine->rings < best->rings)
			best = engine;
	}
	return best ?: &nymph_engine_cpu;
}

static int nymph_engine_start(struct nymph_engine *engine)
{
	int ret;

	if (engine->start) {
		ret = engine->start(engine);
		if (ret)
			return ret;
	}
	engine->rings++;
	return 0;
}

/**
 * nymph_engine_get() - an engine for a ring
 * @name: as user space gave it; "auto" or "" for the driver's choice
 * @is_auto: whether it is that
 *
 * Return: the engine, until nymph_engine_put(); -ENODEV if none of that name is
 * there, or somebody else has it; -EIO if it does not work; -ENOMEM.
 */
struct nymph_engine *nymph_engine_get(const char *name, bool *is_auto)
{
	struct nymph_engine *engine;
	int ret;

	*is_auto = !*name || !strcmp(name, "auto");
	mutex_lock(&nymph_engines_lock);
	ret = nymph_dma_scan();
	if (ret)
		goto unlock;
	if (*is_auto)
		engine = nymph_engine_choose();
	else if (!strcmp(name, nymph_engine_cpu.name))
		engine = &nymph_engine_cpu;
	else
		engine = nymph_engine_lookup(name);
	ret = -ENODEV;
	if (engine && (engine == &nymph_engine_cpu ||
		       nymph_dma_is_there(engine)))
		ret = nymph_engine_start(engine);
	if (ret && *is_auto) {
		engine = &nymph_engine_cpu;
		ret = nymph_engine_start(engine);
	}
unlock:
	mutex_unlock(&nymph_engines_lock);
	return ret ? ERR_PTR(ret) : engine;
}

static void nymph_engine_stop_unused(struct nymph_engine *engine)
{
	if (!engine->rings && !engine->helped && engine->stop)
		engine->stop(engine);
}

/**
 * nymph_engine_put() - a ring does not need engines any more
 * @ring: its engine is what nymph_engine_get() returned
 */
void nymph_engine_put(struct nymph_ring *ring)
{
	unsigned int i;

	mutex_lock(&nymph_engines_lock);
	for (i = 1; i < ring->nr_spread; i++) {
		ring->spread[i]->helped--;
		nymph_engine_stop_unused(ring->spread[i]);
	}
	ring->engine->rings--;
	nymph_engine_stop_unused(ring->engine);
	mutex_unlock(&nymph_engines_lock);
}

/* Takes engines that can help the ring's, and are of its device, or are not. */
static void nymph_engine_take_helpers(struct nymph_ring *ring, bool of_device)
{
	struct nymph_engine *engine;

	list_for_each_entry(engine, &nymph_engines, list) {
		bool is_of_device = engine->device == ring->engine->device;

		if (ring->nr_spread == NYMPH_MAX_SPREAD)
			return;
		if (engine == ring->engine || is_of_device != of_device ||
		    !nymph_dma_is_there(engine) || !engine->ready(engine))
			continue;
		/* one that does not start can take long to say so */
		if (engine->start(engine))
			return;
		engine->helped++;
		ring->spread[ring->nr_spread++] = engine;
	}
}

/* Those of its device first: what is mapped for it is mapped for them. */
static void nymph_engine_find_helpers(struct nymph_ring *ring)
{
	mutex_lock(&nymph_engines_lock);
	if (!nymph_dma_scan()) {
		ring->spread[ring->nr_spread++] = ring->engine;
		nymph_engine_take_helpers(ring, true);
		nymph_engine_take_helpers(ring, false);
	}
	mutex_unlock(&nymph_engines_lock);
}

static void nymph_engine_describe(const struct nymph_engine *engine,
				  struct nymph_engine_info *info)
{
	memset(info, 0, sizeof(*info));
	info->size = sizeof(*info);
	info->id = engine->id;
	strscpy(info->name, engine->name, sizeof(info->name));
}

/**
 * nymph_engine_infos() - what user space is told of the engines
 * @infos: filled
 * @max: elements in it, at least 1
 *
 * Return: how many there are, at most @max; or -ENOMEM.
 */
int nymph_engine_infos(struct nymph_engine_info *infos, unsigned int max)
{
	struct nymph_engine *engine;
	int ret, n = 0;

	nymph_engine_describe(&nymph_engine_cpu, &infos[n++]);
	mutex_lock(&nymph_engines_lock);
	ret = nymph_dma_scan();
	list_for_each_entry(engine, &nymph_engines, list)
		if (n < max && nymph_dma_is_there(engine))
			nymph_engine_describe(engine, &infos[n++]);
	mutex_unlock(&nymph_engines_lock);
	return ret ?: n;
}

static bool nymph_move_is_of_pages(const struct nymph_move *move)
{
	return move->src && move->src->region->pin.pages &&
	       move->dst->region->pin.pages;
}

/* How an engine has failed, which the CPU may make up for. */
static void nymph_engine_fall_back(struct nymph_move *move, bool tried,
				   bool may_fall_back)
{
	if (!move->status || move->status == -EFAULT)
		return;
	if (tried)
		nymph_count(NYMPH_COUNT_ENGINE_FAILURES, 1);
	if (!may_fall_back || move->adrift)
		return;
	nymph_count(NYMPH_COUNT_FALLBACKS, 1);
	move->done = 0;
	move->engine = nymph_engine_cpu.id;
	nymph_engine_cpu.move(&nymph_engine_cpu, move, 1);
}

/*
 * Has several engines move what is more than a piece, all at once. Returns whether
 * one was there for it.
 */
static bool nymph_engine_spread(struct nymph_ring *ring,
				struct nymph_move *move)
{
	struct nymph_move parts[NYMPH_MAX_SPREAD];
	unsigned int i, n;

	if (!ring->nr_spread)
		nymph_engine_find_helpers(ring);
	n = nymph_dma_move_parts(ring->spread, ring->nr_spread, move, parts);
	if (!n)
		return false;
	move->done = 0;
	move->status = 0;
	for (i = 0; i < n; i++) {
		nymph_engine_fall_back(&parts[i], true, true);
		if (!move->status) {
			move->done += parts[i].done;
			move->status = parts[i].status;
		}
		/* worse than any error */
		if (parts[i].adrift)
			move->status = parts[i].status;
		move->adrift |= parts[i].adrift;
		move->engine = parts[i].engine;
	}
	return true;
}

/**
 * nymph_engine_move() - have a ring's engine move bytes
 * @ring: current is its executor
 * @moves: what is to be moved; filled: done, status, engine and adrift
 * @n: how many, at most NYMPH_MAX_MOVES
 *
 * What is to be done meanwhile is done once, whatever becomes of the engine.
 *
 * If the driver chose the engine, others share what is large, and the CPU does
 * what the engine could not, unless the engine may be at it still: then it would
 * write later what nobody expects. A status is 0, -EFAULT, or how the engine
 * failed: -EIO, -ETIMEDOUT, -ENODEV.
 */
void nymph_engine_move(struct nymph_ring *ring, struct nymph_move *moves,
		       unsigned int n)
{
	struct nymph_engine *engine = ring->engine;
	bool may_fall_back = ring->auto_engine && engine != &nymph_engine_cpu;
	struct nymph_move *move;
	bool tried;

	for (move = moves; move < moves + n; move++) {
		move->done = 0;
		move->status = -EIO;
		move->engine = engine->id;
		move->adrift = false;
	}
	trace_nymph_move(ring, moves, n);
	if (moves->len > NYMPH_LARGE_PIECE && may_fall_back &&
	    nymph_move_is_of_pages(moves)) {
		size_t len = moves->len;

		if (nymph_engine_spread(ring, moves)) {
			trace_nymph_moved(ring, moves, n);
			return;
		}
		moves->len = len;
	}
	moves->len = min_t(size_t, moves->len, NYMPH_LARGE_PIECE);
	tried = !may_fall_back || engine->ready(engine);
	if (!tried || !engine->offloads)
		nymph_move_meanwhile(moves);
	if (tried)
		engine->move(engine, moves, n);
	/* it failed before it got so far */
	nymph_move_meanwhile(moves);
	for (move = moves; move < moves + n; move++)
		nymph_engine_fall_back(move, tried, may_fall_back);
	trace_nymph_moved(ring, moves, n);
}

/**
 * nymph_engines_exit() - forget all DMA engines
 *
 * No ring is left.
 */
void nymph_engines_exit(void)
{
	struct nymph_engine *engine, *next;

	list_for_each_entry_safe(engine, next, &nymph_engines, list)
		nymph_dma_forget(engine);
	INIT_LIST_HEAD(&nymph_engines);
}
