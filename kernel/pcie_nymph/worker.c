// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: the worker of a ring, which runs what no caller waits for.
 *
 * Where the kernel has vhost tasks that see SIGKILL (6.10), the worker is a thread of
 * the process that set up the ring: the kernel applies cgroups, CPUs, priority,
 * limits, freezer, stop signals and exit to it. Before 6.10 the worker is a kernel
 * thread that borrows the process's memory and copies what it can;
 * docs/reference/requests.md has a table. Either way the worker has references
 * to the ring and to the module, and ends once the ring has ended.
 */
#include <linux/err.h>
#include <linux/module.h>
#include <linux/sched/signal.h>

#include "compat.h"
#include "ring.h"

#ifdef NYMPH_HAS_VHOST_TASK

#include <linux/sched/vhost_task.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/workqueue.h>

/**
 * struct nymph_worker - a ring's worker: a thread of the process
 * @ring: the ring, held until the thread is reaped
 * @lock: serializes @task
 * @task: the thread; NULL once it is being reaped
 * @reap: waits for the thread's last steps
 * @reaping: @reap is queued; the thread's own
 */
struct nymph_worker {
	struct nymph_ring *ring;
	spinlock_t lock;	/* task */
	struct vhost_task *task;
	struct work_struct reap;
	bool reaping;
};

static struct workqueue_struct *nymph_worker_wq;

static void nymph_worker_reap(struct work_struct *work)
{
	struct nymph_worker *worker;
	struct nymph_ring *ring;
	struct vhost_task *task;

	worker = container_of(work, struct nymph_worker, reap);
	ring = worker->ring;
	spin_lock(&worker->lock);
	task = worker->task;
	worker->task = NULL;
	spin_unlock(&worker->lock);
	vhost_task_stop(task);
	nymph_ring_put(ring);
	/* nymph_workers_exit() waits for the end of this function */
	module_put(THIS_MODULE);
}

/* Queues the work that reaps the thread, which cannot wait for its own end. */
static void nymph_worker_end(struct nymph_worker *worker)
{
	if (worker->reaping)
		return;
	worker->reaping = true;
	queue_work(nymph_worker_wq, &worker->reap);
}

/* Called until nymph_worker_reap() stops the thread, which sleeps after a false. */
static bool nymph_worker_run(void *data)
{
	const struct nymph_limits limits = { .is_worker = true };
	struct nymph_ring *ring = data;

	if (nymph_ring_has_ended(ring)) {
		nymph_worker_end(ring->worker);
		return false;
	}
	if (!nymph_ring_claimable(ring))
		return false;
	__set_current_state(TASK_RUNNING);
	if (nymph_ring_claim(ring))
		nymph_ring_execute(ring, &limits);
	return true;
}

/* The process ends, or becomes another program. */
static void nymph_worker_killed(void *data)
{
	struct nymph_ring *ring = data;

	nymph_ring_orphan(ring);
	nymph_worker_end(ring->worker);
}

/**
 * nymph_worker_start() - Start the worker of a ring
 * @ring: a new ring of current's memory
 *
 * Return: 0; -ENOMEM; -EAGAIN if the process may have no more threads;
 * -ERESTARTNOINTR if a signal came first.
 */
int nymph_worker_start(struct nymph_ring *ring)
{
	struct nymph_worker *worker;
	struct vhost_task *task;
	char name[TASK_COMM_LEN];

	worker = kzalloc(sizeof(*worker), GFP_KERNEL_ACCOUNT);
	if (!worker)
		return -ENOMEM;
	worker->ring = ring;
	spin_lock_init(&worker->lock);
	INIT_WORK(&worker->reap, nymph_worker_reap);
	snprintf(name, sizeof(name), "nymph/%u", ring->id);
	task = vhost_task_create(nymph_worker_run, nymph_worker_killed, ring,
				 name);
	/* 6.10 to 6.13 do not say why */
	if (!task)
		task = ERR_PTR(signal_pending(current) ? -ERESTARTNOINTR :
							 -EAGAIN);
	if (IS_ERR(task)) {
		kfree(worker);
		return PTR_ERR(task);
	}
	worker->task = task;
	ring->worker = worker;
	refcount_inc(&ring->refs);
	__module_get(THIS_MODULE);
	vhost_task_start(task);
	return 0;
}

/**
 * nymph_worker_wake() - Wake a ring's worker to look for work
 * @ring: the ring
 */
void nymph_worker_wake(struct nymph_ring *ring)
{
	struct nymph_worker *worker = ring->worker;

	spin_lock(&worker->lock);
	if (worker->task)
		vhost_task_wake(worker->task);
	spin_unlock(&worker->lock);
}

/**
 * nymph_worker_interrupt() - Interrupt a page fault of a ring's worker
 * @ring: the ring
 *
 * The worker is a thread of the process, and nothing but the end of the process
 * interrupts it: the function does nothing.
 */
void nymph_worker_interrupt(struct nymph_ring *ring)
{
}

/**
 * nymph_worker_may_run() - Tell whether a ring's worker may run more entries
 * @ring: the ring; current is its worker
 *
 * Return: false if the process stops, is frozen or ends.
 */
bool nymph_worker_may_run(struct nymph_ring *ring)
{
	return !signal_pending(current);
}

/**
 * nymph_worker_free() - Free what is left of a worker
 * @ring: the ring, to which nobody has a reference
 */
void nymph_worker_free(struct nymph_ring *ring)
{
	kfree(ring->worker);
}

/**
 * nymph_workers_init() - Prepare for workers when the module is loaded
 *
 * Return: 0 or -ENOMEM.
 */
int nymph_workers_init(void)
{
	nymph_worker_wq = alloc_workqueue("nymph_worker", WQ_UNBOUND, 0);
	return nymph_worker_wq ? 0 : -ENOMEM;
}

/**
 * nymph_workers_exit() - Clean up after all workers when the module is unloaded
 *
 * No worker is left, but the work that reaped the last one may not have returned.
 */
void nymph_workers_exit(void)
{
	destroy_workqueue(nymph_worker_wq);
}

#else /* !NYMPH_HAS_VHOST_TASK */

#include <linux/cgroup.h>
#include <linux/cpumask.h>
#include <linux/freezer.h>
#include <linux/init_task.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/memcontrol.h>
#include <linux/pid.h>
#include <linux/rcupdate.h>
#include <linux/sched/jobctl.h>
#include <linux/sched/mm.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/wait.h>

/* Time between two checks whether a frozen process may go on. */
#define NYMPH_WORKER_PAUSE	(HZ / 20)

/* Time that the worker runs before it joins its process's cgroups. */
#define NYMPH_WORKER_ALONE	(HZ / 50)

/* Time between two checks of an idle worker whether its process has ended. */
#define NYMPH_WORKER_LOOK	HZ

/**
 * struct nymph_worker - a ring's worker: a kernel thread
 * @task: the thread, held
 * @wait: where it sleeps
 * @started: when it began to work, in jiffies; the thread's own
 * @joined: it is in the process's cgroups; the thread's own
 */
struct nymph_worker {
	struct task_struct *task;
	wait_queue_head_t wait;
	unsigned long started;
	bool joined;
};

/*
 * Tells whether the process that set the ring up has ended, or runs another program.
 * Its memory does not tell: workers of other rings may have references to that.
 */
static bool nymph_owner_is_gone(struct nymph_ring *ring)
{
	struct task_struct *owner;
	struct mm_struct *mm;
	bool gone = true;

	rcu_read_lock();
	owner = pid_task(ring->owner, PIDTYPE_TGID);
	if (owner) {
		mm = READ_ONCE(owner->mm);
		gone = !atomic_read(&owner->signal->live) ||
		       READ_ONCE(owner->signal->flags) & SIGNAL_GROUP_EXIT ||
		       (mm && mm != ring->mm);
	}
	rcu_read_unlock();
	return gone;
}

static bool nymph_owner_is_frozen(struct nymph_ring *ring)
{
	struct task_struct *owner, *thread;
	bool frozen = false;

	rcu_read_lock();
	owner = pid_task(ring->owner, PIDTYPE_TGID);
	if (owner) {
		for_each_thread(owner, thread)
			frozen |= freezing(thread) ||
				  READ_ONCE(thread->jobctl) & JOBCTL_TRAP_FREEZE;
	}
	rcu_read_unlock();
	return frozen;
}

static void nymph_worker_join(struct nymph_worker *worker,
			      struct task_struct *task)
{
#ifdef CONFIG_CGROUPS
	/* often they are the same, and then nobody has to wait */
	bool same = rcu_access_pointer(task->cgroups) ==
		    rcu_access_pointer(current->cgroups);

	worker->joined = !same && !cgroup_attach_task_all(task, current) &&
			 task != &init_task;
#endif
}

/*
 * Tells whether a kernel thread may join the cgroup of the process. A cgroup of
 * version 2 that ever had a kernel thread does not report that it is frozen.
 */
static bool nymph_worker_may_join(void)
{
#ifdef CONFIG_CGROUP_FREEZER
	return !cgroup_subsys_on_dfl(freezer_cgrp_subsys);
#else
	return false;
#endif
}

/* Joins the process's cgroups after a while of work, because joining takes time. */
static void nymph_worker_join_owner(struct nymph_ring *ring)
{
	struct nymph_worker *worker = ring->worker;
	struct task_struct *owner;

	if (worker->joined || !nymph_worker_may_join() ||
	    time_before(jiffies, worker->started + NYMPH_WORKER_ALONE))
		return;
	owner = get_pid_task(ring->owner, PIDTYPE_TGID);
	if (!owner)
		return;
	nymph_worker_join(worker, owner);
	put_task_struct(owner);
	/* if that failed, it tries again later */
	worker->started = jiffies;
}

/* Copies the present priority and CPUs of the process. */
static void nymph_worker_follow(struct nymph_ring *ring)
{
	struct task_struct *owner;
	cpumask_var_t cpus;
	int nice;

	if (!zalloc_cpumask_var(&cpus, GFP_KERNEL))
		return;
	rcu_read_lock();
	owner = pid_task(ring->owner, PIDTYPE_TGID);
	nice = task_nice(owner ?: current);
	cpumask_copy(cpus, (owner ?: current)->cpus_ptr);
	rcu_read_unlock();
	if (nice != task_nice(current))
		set_user_nice(current, nice);
	if (!cpumask_equal(cpus, current->cpus_ptr))
		set_cpus_allowed_ptr(current, cpus);
	free_cpumask_var(cpus);
}

static void nymph_worker_execute(struct nymph_ring *ring)
{
	const struct nymph_limits limits = { .is_worker = true };
	struct mem_cgroup *memcg, *old;

	nymph_worker_follow(ring);
	ring->worker->started = jiffies;
	if (!nymph_ring_claim(ring))
		return;
	/* without the memory the entries fail one by one */
	if (READ_ONCE(ring->dead) || !mmget_not_zero(ring->mm)) {
		nymph_ring_execute(ring, NULL);
		return;
	}
	kthread_use_mm(ring->mm);
	/* allocations are charged to the process */
	memcg = get_mem_cgroup_from_mm(ring->mm);
	old = set_active_memcg(memcg);
	nymph_ring_execute(ring, &limits);
	set_active_memcg(old);
	mem_cgroup_put(memcg);
	if (ring->worker->joined)
		nymph_worker_join(ring->worker, &init_task);
	kthread_unuse_mm(ring->mm);
	mmput(ring->mm);
}

static int nymph_worker_thread(void *data)
{
	struct nymph_ring *ring = data;
	struct nymph_worker *worker = ring->worker;

	allow_kernel_signal(SIGKILL);
	set_freezable();
	while (!nymph_ring_has_ended(ring)) {
		/* nothing tells that the process of an idle ring ends */
		wait_event_freezable_timeout(worker->wait,
					     nymph_ring_has_ended(ring) ||
					     nymph_ring_claimable(ring),
					     round_jiffies_relative(NYMPH_WORKER_LOOK));
		if (signal_pending(current))
			flush_signals(current);
		if (try_to_freeze() || nymph_ring_has_ended(ring))
			continue;
		if (nymph_owner_is_gone(ring))
			nymph_ring_orphan(ring);
		else if (!nymph_ring_claimable(ring))
			continue;
		else if (nymph_owner_is_frozen(ring) && !READ_ONCE(ring->dead))
			schedule_timeout_interruptible(NYMPH_WORKER_PAUSE);
		else
			nymph_worker_execute(ring);
	}
	nymph_ring_put(ring);
	module_put_and_kthread_exit(0);
}

/**
 * nymph_worker_start() - Start the worker of a ring
 * @ring: a new ring of current's memory
 *
 * Return: 0; -ENOMEM; -EINTR if current was killed.
 */
int nymph_worker_start(struct nymph_ring *ring)
{
	struct nymph_worker *worker;
	struct task_struct *task;

	worker = kzalloc(sizeof(*worker), GFP_KERNEL_ACCOUNT);
	if (!worker)
		return -ENOMEM;
	init_waitqueue_head(&worker->wait);
	ring->worker = worker;
	task = kthread_create(nymph_worker_thread, ring, "nymph/%u", ring->id);
	if (IS_ERR(task))
		return PTR_ERR(task);
	worker->task = get_task_struct(task);
	refcount_inc(&ring->refs);
	__module_get(THIS_MODULE);
	wake_up_process(task);
	return 0;
}

/**
 * nymph_worker_wake() - Wake a ring's worker to look for work
 * @ring: the ring
 */
void nymph_worker_wake(struct nymph_ring *ring)
{
	wake_up(&ring->worker->wait);
}

/**
 * nymph_worker_interrupt() - Interrupt a page fault of a ring's worker
 * @ring: the ring
 *
 * A signal interrupts it.
 */
void nymph_worker_interrupt(struct nymph_ring *ring)
{
	send_sig(SIGKILL, ring->worker->task, 1);
}

/**
 * nymph_worker_may_run() - Tell whether a ring's worker may run more entries
 * @ring: the ring; current is its worker
 *
 * Return: false if the process stops, is frozen or ends.
 */
bool nymph_worker_may_run(struct nymph_ring *ring)
{
	if (nymph_owner_is_gone(ring) || nymph_owner_is_frozen(ring) ||
	    freezing(current))
		return false;
	nymph_worker_join_owner(ring);
	return true;
}

/**
 * nymph_worker_free() - Free what is left of a worker
 * @ring: the ring, to which nobody has a reference
 */
void nymph_worker_free(struct nymph_ring *ring)
{
	struct nymph_worker *worker = ring->worker;

	if (worker && worker->task)
		put_task_struct(worker->task);
	kfree(worker);
}

/**
 * nymph_workers_init() - Prepare for workers when the module is loaded
 *
 * Return: 0.
 */
int nymph_workers_init(void)
{
	return 0;
}

/**
 * nymph_workers_exit() - Clean up after all workers when the module is unloaded
 */
void nymph_workers_exit(void)
{
}

#endif /* !NYMPH_HAS_VHOST_TASK */
