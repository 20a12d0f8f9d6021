// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: the list of engines, and which of them a ring gets.
 */
#include <linux/device.h>
#include <linux/dmaengine.h>
#include <linux/err.h>
#include <linux/kernel.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "counters.h"
#include "dma.h"
#include "ring.h"
#include "trace.h"

/*
 * Serializes the list, the ids, and the engines' rings and helped. Engines stay in
 * the list as long as the module is loaded, because a device that left may come
 * back. Nobody holds it to start or stop a channel: a dead channel takes its time.
 */
static DEFINE_MUTEX(nymph_engines_lock);
static LIST_HEAD(nymph_engines);
static u32 nymph_last_engine_id = 1;

/* Returns the DMA engine of that name, present or not. The lock is held. */
static struct nymph_engine *nymph_engine_lookup(const char *name)
{
	struct nymph_engine *engine;

	lockdep_assert_held(&nymph_engines_lock);
	list_for_each_entry(engine, &nymph_engines, list)
		if (!strcmp(engine->name, name))
			return engine;
	return NULL;
}

/* Takes no channel, but makes an engine of each that is shown. */
static bool nymph_engine_see(struct dma_chan *chan, void *param)
{
	struct nymph_engine *engine;
	int *error = param;

	if (!nymph_dma_is_usable(chan))
		return false;
	engine = nymph_engine_lookup(dma_chan_name(chan));
	if (!engine) {
		engine = nymph_dma_create(chan);
		if (!engine) {
			*error = -ENOMEM;
			return false;
		}
		engine->id = ++nymph_last_engine_id;
		list_add_tail(&engine->list, &nymph_engines);
	}
	engine->node = dev_to_node(chan->device->dev);
	engine->device = chan->device->dev;
	to_nymph_dma(engine)->seen = true;
	return false;
}

/*
 * Looks which channels can be had, and adds engines for new ones. @again: as
 * nymph_dma_scan_due(). The lock is held. Returns 0 or -ENOMEM.
 */
static int nymph_engines_scan(bool again)
{
	struct nymph_engine *engine;
	int error = 0;

	lockdep_assert_held(&nymph_engines_lock);
	if (!nymph_dma_scan_due(again))
		return 0;
	list_for_each_entry(engine, &nymph_engines, list)
		to_nymph_dma(engine)->seen = false;
	nymph_dma_show_channels(nymph_engine_see, &error);
	if (error)
		nymph_dma_scan_again();
	return error;
}

/* Tells whether a ring can have a DMA engine, after a scan. The lock is held. */
static bool nymph_engine_is_there(struct nymph_engine *engine)
{
	struct nymph_dma_engine *dma = to_nymph_dma(engine);

	return dma->seen || READ_ONCE(dma->chan);
}

/* Returns the engine behind @engine, or the first; NULL if there is none. */
static struct nymph_engine *nymph_engine_next(struct nymph_engine *engine)
{
	struct list_head *next;

	mutex_lock(&nymph_engines_lock);
	next = engine ? engine->list.next : nymph_engines.next;
	mutex_unlock(&nymph_engines_lock);
	return next == &nymph_engines ? NULL :
					list_entry(next, struct nymph_engine,
						   list);
}

/* Calls @visit, which may sleep for long, for every DMA engine. */
static void nymph_engines_each(void (*visit)(struct nymph_engine *engine,
					     struct device *dev),
			       struct device *dev)
{
	struct nymph_engine *engine = NULL;

	while ((engine = nymph_engine_next(engine)))
		visit(engine, dev);
}

/* Returns the DMA engine with the fewest rings that can be had, or else the CPU. */
static struct nymph_engine *nymph_engine_choose(void)
{
	struct nymph_engine *engine, *best = NULL;

	list_for_each_entry(engine, &nymph_engines, list) {
		if (!nymph_engine_is_there(engine) || !engine->ready(engine))
			continue;
		if (!best || engine->rings < best->rings)
			best = engine;
	}
	return best ?: &nymph_engine_cpu;
}

/* Returns the engine that a ring asks for, if it can be had. */
static struct nymph_engine *nymph_engine_find(const char *name, bool is_auto)
{
	struct nymph_engine *engine;

	if (is_auto)
		return nymph_engine_choose();
	if (!strcmp(name, nymph_engine_cpu.name))
		return &nymph_engine_cpu;
	engine = nymph_engine_lookup(name);
	return engine && nymph_engine_is_there(engine) ? engine : NULL;
}

/**
 * nymph_engine_get() - Get an engine for a ring
 * @name: name that user space gave; "auto" or "" for the driver's choice
 * @is_auto: filled: the driver chooses
 *
 * Return: the engine, until nymph_engine_put(); -ENODEV if none of that name is
 * there, or somebody else has it; -EIO if it does not work; -ENOMEM; -EINTR if
 * current was killed.
 */
struct nymph_engine *nymph_engine_get(const char *name, bool *is_auto)
{
	struct nymph_engine *engine = NULL;
	int ret;

	*is_auto = !*name || !strcmp(name, "auto");
	if (mutex_lock_killable(&nymph_engines_lock))
		return ERR_PTR(-EINTR);
	ret = nymph_engines_scan(true);
	if (!ret)
		engine = nymph_engine_find(name, *is_auto);
	/* so that the next caller chooses another engine */
	if (engine)
		engine->rings++;
	mutex_unlock(&nymph_engines_lock);
	if (ret)
		return ERR_PTR(ret);
	if (!engine)
		return ERR_PTR(-ENODEV);

	ret = engine->start ? engine->start(engine) : 0;
	if (!ret)
		return engine;
	mutex_lock(&nymph_engines_lock);
	engine->rings--;
	if (*is_auto && ret != -EINTR) {
		engine = &nymph_engine_cpu;
		engine->rings++;
		ret = 0;
	}
	mutex_unlock(&nymph_engines_lock);
	return ret ? ERR_PTR(ret) : engine;
}

/**
 * nymph_engine_put() - Release the engines of a ring
 * @ring: a ring whose engine nymph_engine_get() returned
 * @may_wait: the caller may wait for a scan
 *
 * Return: whether the engines are released; false only if @may_wait is false.
 */
bool nymph_engine_put(struct nymph_ring *ring, bool may_wait)
{
	unsigned int i;

	if (may_wait)
		mutex_lock(&nymph_engines_lock);
	else if (!mutex_trylock(&nymph_engines_lock))
		return false;
	for (i = 1; i < ring->nr_spread; i++)
		ring->spread[i]->helped--;
	ring->engine->rings--;
	mutex_unlock(&nymph_engines_lock);

	for (i = 1; i < ring->nr_spread; i++)
		ring->spread[i]->stop(ring->spread[i]);
	if (ring->engine->stop)
		ring->engine->stop(ring->engine);
	return true;
}

/* Chooses helpers of the ring's engine: of its device, or of all others. */
static void nymph_engine_choose_helpers(struct nymph_ring *ring, bool of_device)
{
	struct nymph_engine *engine;

	list_for_each_entry(engine, &nymph_engines, list) {
		bool is_of_device = engine->device == ring->engine->device;

		if (ring->nr_spread == NYMPH_MAX_SPREAD)
			return;
		if (engine == ring->engine || is_of_device != of_device ||
		    !nymph_engine_is_there(engine) || !engine->ready(engine))
			continue;
		engine->helped++;
		ring->spread[ring->nr_spread++] = engine;
	}
}

/* Prefers engines of the same device: they share its mappings. */
static void nymph_engine_find_helpers(struct nymph_ring *ring)
{
	unsigned int i, n = 1;

	mutex_lock(&nymph_engines_lock);
	if (!nymph_engines_scan(false)) {
		ring->spread[ring->nr_spread++] = ring->engine;
		nymph_engine_choose_helpers(ring, true);
		nymph_engine_choose_helpers(ring, false);
	}
	mutex_unlock(&nymph_engines_lock);

	/* a start that fails can take long, so the first failure ends the search */
	while (n < ring->nr_spread && !ring->spread[n]->start(ring->spread[n]))
		n++;
	mutex_lock(&nymph_engines_lock);
	for (i = n; i < ring->nr_spread; i++)
		ring->spread[i]->helped--;
	ring->nr_spread = min(ring->nr_spread, n);
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
 * nymph_engine_infos() - Describe the engines for user space
 * @infos: filled
 * @max: size of @infos, at least 1
 *
 * Return: number of engines, at most @max; -ENOMEM, or -EINTR if current was
 * killed.
 */
int nymph_engine_infos(struct nymph_engine_info *infos, unsigned int max)
{
	struct nymph_engine *engine;
	int ret, n = 0;

	nymph_engine_describe(&nymph_engine_cpu, &infos[n++]);
	if (mutex_lock_killable(&nymph_engines_lock))
		return -EINTR;
	ret = nymph_engines_scan(false);
	list_for_each_entry(engine, &nymph_engines, list)
		if (n < max && nymph_engine_is_there(engine))
			nymph_engine_describe(engine, &infos[n++]);
	mutex_unlock(&nymph_engines_lock);
	return ret ?: n;
}

static bool nymph_move_is_of_pages(const struct nymph_move *move)
{
	return move->src && move->src->region->pin.pages &&
	       move->dst->region->pin.pages;
}

/* Counts an engine's failure, and has the CPU do the move, if it may. */
static void nymph_engine_fall_back(struct nymph_move *move, bool tried,
				   bool may_fall_back)
{
	if (!move->status || move->status == -EFAULT || move->status == -EINTR)
		return;
	if (tried)
		nymph_count(NYMPH_COUNT_ENGINE_FAILURES, 1);
	if (!may_fall_back || move->quarantined)
		return;
	nymph_count(NYMPH_COUNT_FALLBACKS, 1);
	move->done = 0;
	move->engine = nymph_engine_cpu.id;
	nymph_engine_cpu.move(&nymph_engine_cpu, move, 1);
}

/*
 * Spreads a move of more than one chunk over several engines. Returns whether at
 * least one was ready.
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
		if (parts[i].quarantined)
			move->status = parts[i].status;
		move->quarantined |= parts[i].quarantined;
		move->engine = parts[i].engine;
	}
	return true;
}

/**
 * nymph_engine_move() - Have a ring's engine move bytes
 * @ring: current is its executor
 * @moves: the moves; done, status, engine and quarantined are filled
 * @n: number of moves, at most NYMPH_MAX_MOVES
 *
 * The work that overlaps with the moves is done once, even if the engine fails.
 *
 * If the driver chose the engine, other engines share a large move, and the CPU does
 * a move that the engine failed. The CPU does no quarantined move: the engine could
 * overwrite the result later. A status is 0, -EFAULT, or the engine's error: -EIO,
 * -ETIMEDOUT, -ENODEV; -EINTR if current was killed before that.
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
		move->quarantined = false;
	}
	trace_nymph_move(ring, moves, n);
	if (moves->len > NYMPH_LARGE_CHUNK && may_fall_back &&
	    nymph_move_is_of_pages(moves)) {
		size_t len = moves->len;

		if (nymph_engine_spread(ring, moves)) {
			trace_nymph_moved(ring, moves, n);
			return;
		}
		moves->len = len;
	}
	moves->len = min_t(size_t, moves->len, NYMPH_LARGE_CHUNK);
	tried = !may_fall_back || engine->ready(engine);
	if (!tried || !engine->offloads)
		nymph_move_overlap(moves);
	if (tried)
		engine->move(engine, moves, n);
	/* the engine failed before it did the overlapping work */
	nymph_move_overlap(moves);
	for (move = moves; move < moves + n; move++)
		nymph_engine_fall_back(move, tried, may_fall_back);
	trace_nymph_moved(ring, moves, n);
}

static int nymph_engines_bus_event(struct notifier_block *nb,
				   unsigned long event, void *data)
{
	struct device *dev = data;

	switch (event) {
	case BUS_NOTIFY_BOUND_DRIVER:
		nymph_dma_scan_again();
		break;
	case BUS_NOTIFY_UNBIND_DRIVER:
		nymph_dma_unbinding_begin(dev);
		nymph_engines_each(nymph_dma_unbind_begin, dev);
		nymph_cards_revoke(dev);
		nymph_mappables_revoke(dev);
		break;
	case BUS_NOTIFY_UNBOUND_DRIVER:
		nymph_engines_each(nymph_dma_unbind_end, dev);
		nymph_dma_unbinding_end(dev);
		break;
	}
	return NOTIFY_DONE;
}

/**
 * nymph_engines_init() - Prepare for engines when the module is loaded
 *
 * Return: 0 or a negative errno.
 */
int nymph_engines_init(void)
{
	nymph_fences_init();
	return nymph_dma_listen(nymph_engines_bus_event);
}

/**
 * nymph_engines_exit() - Destroy all DMA engines when the module is unloaded
 *
 * No ring is left, and no operation: a quarantined one keeps the module loaded.
 */
void nymph_engines_exit(void)
{
	struct nymph_engine *engine, *next;

	nymph_dma_stop_listening();
	list_for_each_entry_safe(engine, next, &nymph_engines, list)
		nymph_dma_destroy(engine);
	INIT_LIST_HEAD(&nymph_engines);
	nymph_dma_exit();
}
