// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: work of a ring that several CPUs share. Its executor does it, and who
 * of the others comes in time helps. Nobody waits for one that does not, nor for
 * anything but work that a CPU is at: no part may sleep, or touch user memory.
 */
#include <linux/atomic.h>
#include <linux/cpumask.h>
#include <linux/minmax.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#include "compat.h"
#include "nymph.h"

/* What a large piece has, which is the most that is shared at a time. */
#define NYMPH_TEAM_PARTS	(NYMPH_LARGE_PIECE / NYMPH_TEAM_PART)

/* The least that is worth waking a CPU for. */
#define NYMPH_TEAM_MIN		(4 * NYMPH_TEAM_PART)

/* So that two parts are each one's. */
#define NYMPH_TEAM_HELPERS	(NYMPH_TEAM_PARTS / 2 - 1)

/**
 * struct nymph_helper - a CPU other than the executor's
 * @work: what it is given
 * @team: whom it helps
 */
struct nymph_helper {
	struct work_struct work;
	struct nymph_team *team;
};

/**
 * struct nymph_team - CPUs that share the work of a ring
 * @fn: does a part
 * @arg: for @fn
 * @nr_parts: how many there are
 * @next: the first that nobody has begun
 * @helpers: all but the executor
 * @hashes: for each part
 */
struct nymph_team {
	void (*fn)(void *arg, unsigned int part);
	void *arg;
	unsigned int nr_parts;
	atomic_t next;
	struct nymph_helper helpers[NYMPH_TEAM_HELPERS];
	struct nymph_blake3 hashes[NYMPH_TEAM_PARTS];
};

static void nymph_team_work(struct nymph_team *team)
{
	unsigned int part;

	for (;;) {
		part = atomic_fetch_inc(&team->next);
		if (part >= team->nr_parts)
			break;
		team->fn(team->arg, part);
		cond_resched();
	}
}

static void nymph_team_help(struct work_struct *work)
{
	nymph_team_work(container_of(work, struct nymph_helper, work)->team);
}

/**
 * nymph_team_create() - make what a ring needs to share its work
 * @node: where, or NUMA_NO_NODE
 *
 * Return: it, to be freed with nymph_team_free(); or NULL.
 */
struct nymph_team *nymph_team_create(int node)
{
	struct nymph_team *team;
	unsigned int i;

	team = kvmalloc_node(sizeof(*team), GFP_KERNEL_ACCOUNT, node);
	if (!team)
		return NULL;
	for (i = 0; i < NYMPH_TEAM_HELPERS; i++) {
		INIT_WORK(&team->helpers[i].work, nymph_team_help);
		team->helpers[i].team = team;
	}
	return team;
}

/**
 * nymph_team_free() - the ring goes
 * @team: what nymph_team_create() made, or NULL
 */
void nymph_team_free(struct nymph_team *team)
{
	kvfree(team);
}

/**
 * nymph_team_share() - how much of something is worth being shared
 * @len: bytes of it, at most NYMPH_LARGE_PIECE
 *
 * Return: how many parts of NYMPH_TEAM_PART bytes, or 0.
 */
unsigned int nymph_team_share(size_t len)
{
	if (len < NYMPH_TEAM_MIN || num_online_cpus() < 2)
		return 0;
	return min_t(size_t, len / NYMPH_TEAM_PART, NYMPH_TEAM_PARTS);
}

/**
 * nymph_team_run() - do something in parts
 * @team: the ring's; current is its executor
 * @fn: does a part; no two CPUs do the same
 * @arg: for @fn
 * @nr_parts: how many there are
 */
void nymph_team_run(struct nymph_team *team,
		    void (*fn)(void *arg, unsigned int part), void *arg,
		    unsigned int nr_parts)
{
	unsigned int i, nr_helpers;

	nr_helpers = min3(nr_parts / 2, num_online_cpus(),
			  NYMPH_TEAM_HELPERS + 1U) - 1;
	team->fn = fn;
	team->arg = arg;
	team->nr_parts = nr_parts;
	atomic_set(&team->next, 0);
	for (i = 0; i < nr_helpers; i++)
		queue_work(NYMPH_UNBOUND_WQ, &team->helpers[i].work);
	nymph_team_work(team);
	/* all parts are begun: one that did not come yet has nothing to do */
	for (i = 0; i < nr_helpers; i++)
		cancel_work_sync(&team->helpers[i].work);
}

/**
 * nymph_team_hash() - a hash to make a part's with
 * @team: the ring's
 * @part: which part
 */
struct nymph_blake3 *nymph_team_hash(struct nymph_team *team, unsigned int part)
{
	return &team->hashes[part];
}
