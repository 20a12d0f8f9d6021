// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: teams: CPUs that share the work of a ring. The executor does the work,
 * and CPUs that come in time help it. The executor waits for no CPU that has not
 * begun a part, so no part may sleep or access user memory.
 *
 * The helpers are workers of the kernel, to which no limit of the ring's process
 * applies. So they help only a process without such limits.
 */
#include <linux/atomic.h>
#include <linux/cgroup.h>
#include <linux/cpumask.h>
#include <linux/minmax.h>
#include <linux/pid.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#include "compat.h"
#include "memory.h"

/* Parts of a large chunk, which is the most that is shared at a time. */
#define NYMPH_TEAM_PARTS	(NYMPH_LARGE_CHUNK / NYMPH_TEAM_PART)

/* The least that is worth waking a CPU for. */
#define NYMPH_TEAM_MIN		(4 * NYMPH_TEAM_PART)

/* Two parts for each CPU. */
#define NYMPH_TEAM_HELPERS	(NYMPH_TEAM_PARTS / 2 - 1)

/**
 * struct nymph_helper - a CPU other than the executor's
 * @work: its work item
 * @team: the team it helps
 */
struct nymph_helper {
	struct work_struct work;
	struct nymph_team *team;
};

/**
 * struct nymph_team - CPUs that share the work of a ring
 * @fn: callback that does a part
 * @arg: argument of @fn
 * @nr_parts: number of parts
 * @next: first part that nobody has begun
 * @helpers: all CPUs but the executor
 * @parts: what each part has of its own
 */
struct nymph_team {
	void (*fn)(void *arg, unsigned int part);
	void *arg;
	unsigned int nr_parts;
	atomic_t next;
	struct nymph_helper helpers[NYMPH_TEAM_HELPERS];
	struct nymph_part parts[NYMPH_TEAM_PARTS];
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
 * nymph_team_create() - Allocate what a ring needs to share its work among CPUs
 * @node: NUMA node, or NUMA_NO_NODE
 *
 * Return: the team, to be freed with nymph_team_free(); or NULL.
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
 * nymph_team_free() - Free what nymph_team_create() allocated
 * @team: what nymph_team_create() made, or NULL
 */
void nymph_team_free(struct nymph_team *team)
{
	kvfree(team);
}

/* Tells whether a cgroup limits the process's CPU time. Under RCU. */
static bool nymph_cpu_is_rationed(struct task_struct *task)
{
#ifdef CONFIG_CGROUP_SCHED
	return task_css_check(task, cpu_cgrp_id, true)->parent;
#else
	return false;
#endif
}

/**
 * nymph_team_is_allowed() - Tell whether other CPUs may help a process
 * @process: the process
 *
 * Return: true if nothing keeps that process from having all CPUs by itself.
 */
bool nymph_team_is_allowed(struct pid *process)
{
	struct task_struct *owner;
	bool allowed;

	rcu_read_lock();
	owner = pid_task(process, PIDTYPE_TGID);
	allowed = owner && task_nice(owner) <= 0 &&
		  owner->policy != SCHED_IDLE &&
		  cpumask_subset(cpu_online_mask, owner->cpus_ptr) &&
		  !nymph_cpu_is_rationed(owner);
	rcu_read_unlock();
	return allowed;
}

/**
 * nymph_team_share() - Compute how much of some work is worth sharing
 * @len: bytes of the work, at most NYMPH_LARGE_CHUNK
 *
 * Return: number of parts of NYMPH_TEAM_PART bytes, or 0.
 */
unsigned int nymph_team_share(size_t len)
{
	if (len < NYMPH_TEAM_MIN || num_online_cpus() < 2)
		return 0;
	return min_t(size_t, len / NYMPH_TEAM_PART, NYMPH_TEAM_PARTS);
}

/**
 * nymph_team_run() - Run the parts of some work on several CPUs
 * @team: the ring's team; current is the ring's executor
 * @fn: callback that does a part; one CPU does each part
 * @arg: argument of @fn
 * @nr_parts: number of parts
 */
void nymph_team_run(struct nymph_team *team,
		    void (*fn)(void *arg, unsigned int part), void *arg,
		    unsigned int nr_parts)
{
	unsigned int i, nr_helpers;

	nr_helpers = min3(nr_parts / 2, num_online_cpus(),
			  NYMPH_TEAM_HELPERS + 1U);
	nr_helpers -= nr_helpers > 0;
	team->fn = fn;
	team->arg = arg;
	team->nr_parts = nr_parts;
	atomic_set(&team->next, 0);
	for (i = 0; i < nr_helpers; i++)
		queue_work(NYMPH_UNBOUND_WQ, &team->helpers[i].work);
	nymph_team_work(team);
	/* all parts are begun: a helper that has not started has nothing to do */
	for (i = 0; i < nr_helpers; i++)
		cancel_work_sync(&team->helpers[i].work);
}

/**
 * nymph_team_part() - Get what a part has of its own
 * @team: the ring's team
 * @i: index of the part
 *
 * Return: the part.
 */
struct nymph_part *nymph_team_part(struct nymph_team *team, unsigned int i)
{
	return &team->parts[i];
}
