// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: a dmaengine channel that can copy, as an engine.
 *
 * A caller waits for an operation until a deadline. Then the driver tells the
 * channel to stop. Until the channel is known to have stopped, the operation is
 * quarantined: its memory is neither unmapped nor released, and the channel is not
 * used.
 *
 * Providers differ in what works on a channel that was stopped or reported an error:
 * some stay paused, some do not call back any more. So such a channel is given back,
 * and taken anew.
 *
 * The file is long because start, stop and quarantine of a channel share the state
 * that nymph_dma_engine.lock and ops_lock serialize.
 */
#define pr_fmt(fmt) "pcie_nymph: " fmt

#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/device.h>
#include <linux/dmaengine.h>
#include <linux/err.h>
#include <linux/jiffies.h>
#include <linux/list.h>
#include <linux/minmax.h>
#include <linux/module.h>
#include <linux/printk.h>
#include <linux/ratelimit.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/workqueue.h>

#include "counters.h"
#include "dma.h"
#include "trace.h"

/* Time between two attempts to stop a channel that does not stop. */
#define NYMPH_DMA_RETRY		HZ
/* Longest wait for one attempt. */
#define NYMPH_DMA_STOP_TIMEOUT	(5 * HZ)
/*
 * Time that a channel has left to end the operation of a killed task, or to go on
 * behind an error.
 */
#define NYMPH_DMA_GRACE		(HZ / 2)
/* Time after which the provider is asked for completions that no interrupt told of. */
#define NYMPH_DMA_POLL		(HZ / 10)
/* Back-off: time for which rings that can do without avoid a failed channel. */
#define NYMPH_DMA_BACKOFF	HZ
/* At most this many notices about a channel are logged in NYMPH_DMA_LOG_TIME. */
#define NYMPH_DMA_LOG_BURST	20
#define NYMPH_DMA_LOG_TIME	(5 * HZ)

unsigned int nymph_dma_timeout_ms = 3000;
module_param_named(dma_timeout_ms, nymph_dma_timeout_ms, uint, 0644);
MODULE_PARM_DESC(dma_timeout_ms, "how long a DMA channel may take for what it is given at once, 1 MiB at most");

/*
 * Tells operators what happens to a channel. The kernel reports suppressed lines of
 * most rate limits as warnings; the flag of this one keeps it silent.
 */
static __printf(2, 3) void nymph_dma_notice(struct nymph_dma_engine *dma,
					    const char *fmt, ...)
{
	struct va_format vaf = { .fmt = fmt };
	va_list args;

	if (!__ratelimit(&dma->log))
		return;
	va_start(args, fmt);
	vaf.va = &args;
	pr_notice("channel %s %pV\n", dma->engine.name, &vaf);
	va_end(args);
}

static int nymph_dma_status(const struct dmaengine_result *result)
{
	switch (result ? result->result : DMA_TRANS_NOERROR) {
	case DMA_TRANS_NOERROR:
		return 0;
	case DMA_TRANS_ABORTED:
		return -ETIMEDOUT;
	default:
		return -EIO;
	}
}

/* The channel is done with all of the operation. */
static void nymph_dma_op_ended(struct nymph_dma_op *op)
{
	lockdep_assert_held(&op->dma->ops_lock);
	if (op->whole)
		nymph_dma_op_signal(op, 0);
	complete(&op->ended);
}

/*
 * Notes how a run ended. The provider may hold its lock and call from an interrupt,
 * so this does nothing else.
 */
static void nymph_dma_callback(void *param,
			       const struct dmaengine_result *result)
{
	struct nymph_dma_run *run = param;
	struct nymph_dma_op *op = run->op;
	unsigned long flags;

	spin_lock_irqsave(&op->dma->ops_lock, flags);
	run->status = nymph_dma_status(result);
	op->dma->ended++;
	if (run->status == -EIO)
		op->dma->erred = true;
	/* once unlocked the waiter may free it; a quarantined one has no waiter */
	if (!--op->pending) {
		nymph_dma_op_ended(op);
		if (op->quarantined)
			mod_delayed_work(nymph_dma_wq, &op->dma->stop_work, 0);
	}
	spin_unlock_irqrestore(&op->dma->ops_lock, flags);
}

/*
 * Hands over as many of the remaining runs as the channel has room for. Returns 0
 * or a negative errno.
 */
static int nymph_dma_submit(struct nymph_dma_op *op)
{
	struct nymph_dma_engine *dma = op->dma;
	struct dma_chan *chan = dma->chan;
	unsigned int i, first = op->handed_over;
	int ret;

	lockdep_assert_held(&dma->lock);
	if (!chan || dmaengine_get_dma_device(chan) != op->dev)
		return -ENODEV;
	if (dma->stopping)
		return -EIO;
	ret = nymph_dma_op_fence(op);
	if (ret)
		return ret;

	/* one more, so that it can't end before all runs are handed over */
	spin_lock_irq(&dma->ops_lock);
	op->pending = op->nr_runs - first + 1;
	list_add_tail(&op->list, &dma->ops);
	spin_unlock_irq(&dma->ops_lock);

	for (i = first; i < op->nr_runs; i++) {
		struct nymph_dma_run *run = &op->runs[i];
		struct dma_async_tx_descriptor *tx;

		/* until it is submitted, the provider may hold a spinlock */
		tx = dmaengine_prep_dma_memcpy(chan, run->dst.at, run->src.at,
					       run->len,
					       DMA_PREP_INTERRUPT |
					       DMA_CTRL_ACK);
		if (!tx)
			break;
		tx->callback_result = nymph_dma_callback;
		tx->callback_param = run;
		op->cookie = dmaengine_submit(tx);
	}

	dma_async_issue_pending(chan);
	spin_lock_irq(&dma->ops_lock);
	op->handed_over = i;
	op->whole = i == op->nr_runs;
	op->pending -= op->nr_runs - i + 1;
	if (!op->pending)
		nymph_dma_op_ended(op);
	spin_unlock_irq(&dma->ops_lock);
	return 0;
}

/*
 * Ends operations: those that the channel completed, and all operations mapped for
 * @stopped, a device that is known to have stopped and not to call back; or NULL.
 */
static void nymph_dma_end_ops(struct nymph_dma_engine *dma,
			      const struct device *stopped)
{
	struct nymph_dma_op *op, *next;
	LIST_HEAD(quarantined);

	spin_lock_irq(&dma->ops_lock);
	list_for_each_entry_safe(op, next, &dma->ops, list) {
		if (op->pending && op->dev != stopped) {
			/* others must not wait for it for ever */
			if (time_after_eq(jiffies, op->deadline))
				nymph_dma_op_signal(op, -ETIMEDOUT);
			continue;
		}
		if (op->pending) {
			op->pending = 0;
			op->whole = true;
			nymph_dma_op_ended(op);
		}
		if (op->quarantined)
			list_move_tail(&op->list, &quarantined);
		else
			list_del_init(&op->list);
	}
	spin_unlock_irq(&dma->ops_lock);

	list_for_each_entry_safe(op, next, &quarantined, list)
		nymph_dma_op_free(op);
}

/* Tells whether the channel missed the deadline of an operation. */
static bool nymph_dma_is_overdue(struct nymph_dma_engine *dma)
{
	const struct nymph_dma_op *op;
	bool overdue = false;

	spin_lock_irq(&dma->ops_lock);
	list_for_each_entry(op, &dma->ops, list)
		overdue |= op->pending &&
			   time_after_eq(jiffies, op->deadline);
	spin_unlock_irq(&dma->ops_lock);
	return overdue;
}

/* Tells whether the channel has no operation. */
static bool nymph_dma_is_idle(struct nymph_dma_engine *dma)
{
	bool idle;

	spin_lock_irq(&dma->ops_lock);
	idle = list_empty(&dma->ops);
	spin_unlock_irq(&dma->ops_lock);
	return idle;
}

static void nymph_dma_release(struct nymph_dma_engine *dma)
{
	dma_release_channel(dma->chan);
	/* before it is released, so that every scan finds it */
	nymph_dma_scan_again();
	WRITE_ONCE(dma->chan, NULL);
	dma->stopping = false;
	spin_lock_irq(&dma->ops_lock);
	dma->erred = false;
	spin_unlock_irq(&dma->ops_lock);
}

/*
 * Tells the channel to stop. Returns the device if it is known to have stopped and
 * not to call back, else NULL. A provider that can't stop a channel does so when the
 * channel is released, and calls back for what it had.
 */
static struct device *nymph_dma_terminate(struct nymph_dma_engine *dma)
{
	struct dma_chan *chan = dma->chan;

	if (!chan->device->device_terminate_all) {
		nymph_dma_release(dma);
		return NULL;
	}
	dmaengine_terminate_async(chan);
	dmaengine_synchronize(chan);
	/* one that could not make sure of the stop fails the second call */
	return dmaengine_terminate_async(chan) ? NULL :
	       dmaengine_get_dma_device(chan);
}

/*
 * Stops the channel, ends the operations that it is known to be done with, and takes
 * it anew for the rings that have it. dmaengine stops all operations of a channel,
 * those of other rings, too.
 */
static void nymph_dma_stop_locked(struct nymph_dma_engine *dma)
{
	bool idle;

	lockdep_assert_held(&dma->lock);
	/* without a channel BUS_NOTIFY_UNBOUND_DRIVER ends what is left */
	if (!dma->chan)
		return;
	nymph_dma_end_ops(dma, nymph_dma_terminate(dma));

	idle = nymph_dma_is_idle(dma);
	dma->stops++;
	if (!idle && dma->chan) {
		if (!dma->stopping)
			nymph_dma_notice(dma, "does not stop: the driver tries again every %u ms",
					 jiffies_to_msecs(NYMPH_DMA_RETRY));
		dma->stopping = true;
		queue_delayed_work(nymph_dma_wq, &dma->stop_work,
				   NYMPH_DMA_RETRY);
		return;
	}
	if (dma->stopping)
		nymph_dma_notice(dma, "has recovered: it has stopped, and quarantined memory is released");
	if (dma->chan)
		nymph_dma_release(dma);
	if (atomic_read(&dma->users))
		WRITE_ONCE(dma->chan, nymph_dma_request(dma));
	else
		nymph_dma_drop_spare(dma);
}

/*
 * Ends operations that nobody waits for. Stops a channel that missed a deadline,
 * that did not stop before, or that no ring has.
 */
static void nymph_dma_stop_work(struct work_struct *work)
{
	struct nymph_dma_engine *dma;
	bool overdue;

	dma = container_of(to_delayed_work(work), struct nymph_dma_engine,
			   stop_work);
	mutex_lock(&dma->lock);
	nymph_dma_end_ops(dma, NULL);
	overdue = nymph_dma_is_overdue(dma);
	if (overdue && dma->chan && !dma->stopping && !dma->erred)
		nymph_dma_notice(dma, "is stopped: it missed its deadline of %u ms",
				 READ_ONCE(nymph_dma_timeout_ms));
	else if (overdue && dma->chan && !dma->stopping)
		nymph_dma_notice(dma, "is stopped: it did nothing for %u ms behind an error",
				 jiffies_to_msecs(NYMPH_DMA_GRACE));
	if (dma->stopping || overdue || !atomic_read(&dma->users))
		nymph_dma_stop_locked(dma);
	else if (!nymph_dma_is_idle(dma))
		queue_delayed_work(nymph_dma_wq, &dma->stop_work,
				   NYMPH_DMA_RETRY);
	mutex_unlock(&dma->lock);
	wake_up_all(&dma->stopped);
}

/*
 * Sets the status of each move by how the first @nr_runs runs ended. A run that has
 * not ended is quarantined, and its move's status is @why.
 */
static void nymph_dma_collect(struct nymph_dma_op *op, struct nymph_move *moves,
			      unsigned int nr_runs, int why)
{
	const struct nymph_dma_run *run;

	lockdep_assert_held(&op->dma->ops_lock);
	for (run = op->runs; run < op->runs + nr_runs; run++) {
		struct nymph_move *move = &moves[run->move];

		if (run->status == -EINPROGRESS && op->pending) {
			/* worse than any error: the channel may still write */
			move->quarantined = true;
			move->status = why;
		} else if (run->status && !move->status) {
			move->status = run->status == -EINPROGRESS ?
				       -ETIMEDOUT : run->status;
		}
	}
}

/*
 * Takes the engine's lock. Returns -EINTR if current was killed. A kernel thread is
 * not killed: its signals are about page faults, and no process waits for its end.
 */
static int nymph_dma_lock(struct nymph_dma_engine *dma)
{
	if (!(current->flags & PF_KTHREAD))
		return mutex_lock_killable(&dma->lock);
	mutex_lock(&dma->lock);
	return 0;
}

/* Tells whether the channel was told to stop, or has just ended the operation. */
static bool nymph_dma_was_stopped(struct nymph_dma_op *op, unsigned int stops)
{
	return READ_ONCE(op->dma->stops) != stops ||
	       completion_done(&op->ended);
}

/*
 * Has the provider look for completions whose interrupt was lost. With softirqs off,
 * because some take a lock there that their tasklet takes, too. Once in a while for
 * all waiters: it can cost a read of a register.
 */
static void nymph_dma_poll(struct nymph_dma_op *op)
{
	struct nymph_dma_engine *dma = op->dma;

	/* whoever has the lock is at the channel */
	if (!mutex_trylock(&dma->lock))
		return;
	if (dma->chan && !dma->stopping &&
	    time_after_eq(jiffies, dma->polled_at + NYMPH_DMA_POLL)) {
		dma->polled_at = jiffies;
		local_bh_disable();
		dmaengine_tx_status(dma->chan, op->cookie, NULL);
		local_bh_enable();
	}
	mutex_unlock(&dma->lock);
}

/*
 * Makes an operation overdue if the channel reported an error and ended nothing since
 * @seen was the number of its ended runs.
 */
static void nymph_dma_expect_no_more(struct nymph_dma_op *op, unsigned int seen)
{
	spin_lock_irq(&op->dma->ops_lock);
	if (op->dma->erred && op->dma->ended == seen)
		WRITE_ONCE(op->deadline, jiffies);
	spin_unlock_irq(&op->dma->ops_lock);
}

/*
 * Waits until the channel ends an operation or misses its deadline. Returns a value as
 * wait_for_completion_killable_timeout() does.
 */
static long nymph_dma_await_deadline(struct nymph_dma_op *op, bool killable)
{
	unsigned long since = jiffies;
	unsigned int seen = READ_ONCE(op->dma->ended);
	long left, ret;

	do {
		left = clamp((long)(READ_ONCE(op->deadline) - jiffies), 1L,
			     (long)NYMPH_DMA_POLL);
		ret = killable ?
		      wait_for_completion_killable_timeout(&op->ended, left) :
		      wait_for_completion_timeout(&op->ended, left);
		if (ret)
			return ret;
		nymph_dma_poll(op);
		if (READ_ONCE(op->dma->ended) != seen) {
			seen = READ_ONCE(op->dma->ended);
			since = jiffies;
		} else if (time_after(jiffies, since + NYMPH_DMA_GRACE)) {
			nymph_dma_expect_no_more(op, seen);
		}
	} while (time_before(jiffies, READ_ONCE(op->deadline)));
	/* by the last poll, maybe */
	return try_wait_for_completion(&op->ended);
}

/*
 * Waits until the channel ends an operation, or misses its deadline and is told to
 * stop. Returns whether current was killed first and the channel did not end the
 * operation soon after: the death of an executor alone fails no entry.
 */
static bool nymph_dma_await_end(struct nymph_dma_op *op)
{
	struct nymph_dma_engine *dma = op->dma;
	bool killable = !(current->flags & PF_KTHREAD);
	unsigned int stops;
	long ret;

	ret = nymph_dma_await_deadline(op, killable);
	if (ret < 0)
		return !wait_for_completion_timeout(&op->ended, NYMPH_DMA_GRACE);
	if (ret)
		return false;

	/* if only this operation is late, those of other rings go on */
	stops = READ_ONCE(dma->stops);
	mod_delayed_work(nymph_dma_wq, &dma->stop_work, 0);
	if (killable)
		ret = wait_event_killable_timeout(dma->stopped,
						  nymph_dma_was_stopped(op, stops),
						  NYMPH_DMA_STOP_TIMEOUT);
	else
		wait_event_timeout(dma->stopped,
				   nymph_dma_was_stopped(op, stops),
				   NYMPH_DMA_STOP_TIMEOUT);
	return ret < 0;
}

/*
 * Does the work that overlaps with the moves, then waits for the runs that were
 * handed over. Returns whether the channel ended them, well or not. Else the
 * operation is quarantined, and the caller must not touch it any more.
 */
static bool nymph_dma_wait(struct nymph_dma_op *op, struct nymph_move *moves)
{
	struct nymph_dma_engine *dma = op->dma;
	bool done, killed;
	unsigned int i;

	nymph_move_overlap(moves);
	killed = nymph_dma_await_end(op);

	spin_lock_irq(&dma->ops_lock);
	done = !op->pending;
	nymph_dma_collect(op, moves, done ? op->handed_over : op->nr_runs,
			  killed ? -EINTR : -ETIMEDOUT);
	if (done) {
		list_del_init(&op->list);
	} else {
		/* the bytes of ended runs have to be there, and stay as they are */
		for (i = 0; i < op->nr_runs; i++)
			if (op->runs[i].status != -EINPROGRESS)
				nymph_dma_run_end(op, &op->runs[i]);
		if (!killed)
			nymph_dma_op_signal(op, -ETIMEDOUT);
		/* from now on nymph_dma_end_ops() frees it */
		op->quarantined = true;
		nymph_count(NYMPH_COUNT_QUARANTINED, 1);
		__module_get(THIS_MODULE);
		queue_delayed_work(nymph_dma_wq, &dma->stop_work,
				   NYMPH_DMA_RETRY);
	}
	spin_unlock_irq(&dma->ops_lock);
	if (!done)
		nymph_dma_notice(dma, "may still write: the memory of a copy is quarantined until it stops");
	return done;
}

/* Takes the channel; anew if it may be paused, and nobody uses it. */
static int nymph_dma_acquire(struct nymph_dma_engine *dma)
{
	lockdep_assert_held(&dma->lock);
	if (READ_ONCE(dma->erred) && !dma->stopping && nymph_dma_is_idle(dma))
		nymph_dma_stop_locked(dma);
	if (dma->chan)
		return dma->stopping ? -EIO : 0;
	WRITE_ONCE(dma->chan, nymph_dma_request(dma));
	return dma->chan ? 0 : -ENODEV;
}

static int nymph_dma_start(struct nymph_engine *engine)
{
	struct nymph_dma_engine *dma = to_nymph_dma(engine);
	int ret;

	if (nymph_dma_lock(dma))
		return -EINTR;
	ret = nymph_dma_acquire(dma);
	if (!ret) {
		atomic_inc(&dma->users);
	} else {
		WRITE_ONCE(dma->failed_at, jiffies);
		WRITE_ONCE(dma->failed, true);
	}
	mutex_unlock(&dma->lock);
	return ret;
}

static void nymph_dma_stop(struct nymph_engine *engine)
{
	struct nymph_dma_engine *dma = to_nymph_dma(engine);
	bool idle;

	if (!atomic_dec_and_test(&dma->users))
		return;
	/* it is being stopped, or taken again; nobody must wait for that */
	if (!mutex_trylock(&dma->lock)) {
		mod_delayed_work(nymph_dma_wq, &dma->stop_work, 0);
		return;
	}
	if (atomic_read(&dma->users))
		goto unlock;
	nymph_dma_drop_spare(dma);
	idle = nymph_dma_is_idle(dma);
	/*
	 * The release of a failed channel can take long, and nobody must wait for
	 * it. A channel with an operation is released when that has ended.
	 */
	if (dma->chan && idle && dma->failed)
		mod_delayed_work(nymph_dma_wq, &dma->stop_work, 0);
	else if (dma->chan && idle)
		nymph_dma_release(dma);
unlock:
	mutex_unlock(&dma->lock);
}

static bool nymph_dma_ready(struct nymph_engine *engine)
{
	struct nymph_dma_engine *dma = to_nymph_dma(engine);

	if (READ_ONCE(dma->stopping))
		return false;
	return !READ_ONCE(dma->failed) ||
	       time_after(jiffies, READ_ONCE(dma->failed_at) +
			  NYMPH_DMA_BACKOFF);
}

/* Maps the operation, and hands over the runs that the channel has room for. */
static void nymph_dma_begin(struct nymph_dma_op *op, struct nymph_move *moves)
{
	struct nymph_dma_engine *dma = op->dma;
	int ret;

	reinit_completion(&op->ended);
	if (nymph_dma_lock(dma)) {
		op->error = -EINTR;
		return;
	}
	/* its device may have come back */
	ret = nymph_dma_acquire(dma);
	if (!ret && !op->dev) {
		nymph_dma_op_map(op, moves);
		trace_nymph_mapped(dma->engine.id, op->nr_moves, op->nr_runs);
	}
	op->deadline = jiffies +
		       msecs_to_jiffies(READ_ONCE(nymph_dma_timeout_ms));
	if (!ret && op->handed_over < op->nr_runs)
		ret = nymph_dma_submit(op);
	op->blocked = ret == -EBUSY;
	if (op->blocked) {
		complete(&op->ended);
		ret = 0;
	}
	op->error = ret;
	mutex_unlock(&dma->lock);
}

/*
 * Waits for all of an operation that was begun. Returns false if the operation is
 * quarantined, see nymph_dma_wait().
 */
static bool nymph_dma_carry_out(struct nymph_dma_op *op,
				struct nymph_move *moves)
{
	unsigned int i, n = op->nr_moves;
	/* the parts of other channels, and hashing, may have used up the time */
	unsigned long deadline = jiffies +
		msecs_to_jiffies(READ_ONCE(nymph_dma_timeout_ms));

	while (!op->error && op->nr_runs) {
		if (!nymph_dma_wait(op, moves))
			return false;
		if (op->handed_over == op->nr_runs)
			break;
		/* others have filled the channel, or came first to a dma-buf */
		if (time_after(jiffies, deadline)) {
			op->error = op->blocked ? -EBUSY : -ETIMEDOUT;
			break;
		}
		/* a lock that is free takes no notice of a kill */
		if (fatal_signal_pending(current)) {
			op->error = -EINTR;
			break;
		}
		usleep_range(50, 200);
		nymph_dma_begin(op, moves);
	}
	if (op->error) {
		for (i = 0; i < n && !op->dev; i++)
			moves[i].status = op->error;
		for (i = op->handed_over; i < op->nr_runs; i++)
			if (!moves[op->runs[i].move].status)
				moves[op->runs[i].move].status = op->error;
	}
	return true;
}

/* Judges the channel by its moves: one failure starts its back-off. */
static void nymph_dma_judge(struct nymph_dma_engine *dma,
			    const struct nymph_move *moves, unsigned int n)
{
	const struct nymph_move *move;
	bool good = false;

	for (move = moves; move < moves + n; move++) {
		if (!move->status) {
			good |= move->done;
		} else if (move->status != -EFAULT && move->status != -EXDEV &&
			   move->status != -ENOMEM && move->status != -EBUSY &&
			   move->status != -EINTR) {
			if (!READ_ONCE(dma->failed))
				nymph_dma_notice(dma, "failed: error %d",
						 move->status);
			WRITE_ONCE(dma->failed_at, jiffies);
			WRITE_ONCE(dma->failed, true);
			return;
		}
	}
	if (good && READ_ONCE(dma->failed)) {
		WRITE_ONCE(dma->failed, false);
		nymph_dma_notice(dma, "works again");
	}
}

/*
 * Has the channel begin with the first of @n moves, and sets @n to their number.
 * Returns the operation, for nymph_dma_finish(), or NULL.
 */
static struct nymph_dma_op *nymph_dma_launch(struct nymph_dma_engine *dma,
					     struct nymph_move *moves,
					     unsigned int *n)
{
	struct nymph_dma_op *op = nymph_dma_op_create(dma, moves, *n);
	struct nymph_move *move;

	for (move = moves; move < moves + *n; move++) {
		move->status = op ? 0 : -ENOMEM;
		move->done = op ? move->len : 0;
	}
	if (!op)
		return NULL;
	if (!moves->dst->region)
		moves->done = nymph_dma_op_pin(op, moves->dst_off, moves->len);
	if (moves->done)
		nymph_dma_begin(op, moves);
	*n = op->nr_moves;
	return op;
}

/* Waits for a launched operation, and sets the results of its moves. */
static void nymph_dma_finish(struct nymph_dma_engine *dma,
			     struct nymph_dma_op *op, struct nymph_move *moves,
			     unsigned int n)
{
	struct nymph_move *move;

	if (op && (!moves->done || nymph_dma_carry_out(op, moves)))
		nymph_dma_op_free(op);
	nymph_dma_judge(dma, moves, n);
	for (move = moves; move < moves + n; move++) {
		/* not the channel's fault, but the same to the entry */
		if (move->status == -EBUSY)
			move->status = -ETIMEDOUT;
		if (move->status)
			move->done = 0;
		else if (move->done < move->len)
			move->status = -EFAULT;
	}
}

static void nymph_dma_move(struct nymph_engine *engine,
			   struct nymph_move *moves, unsigned int n)
{
	struct nymph_dma_engine *dma = to_nymph_dma(engine);
	struct nymph_dma_op *op;
	unsigned int made;

	for (; n; moves += made, n -= made) {
		made = n;
		op = nymph_dma_launch(dma, moves, &made);
		nymph_dma_finish(dma, op, moves, made);
	}
}

/**
 * nymph_dma_move_parts() - Split one move over several channels
 * @engines: the ring's engine, and helpers, which take a part only if they are idle
 * @nr_engines: number of @engines
 * @move: a move between pages of regions; its len becomes the number of bytes that
 *	the channels took, 0 if none was ready
 * @parts: room for @nr_engines parts, filled as nymph_engine.move does
 *
 * A part has at most NYMPH_LARGE_CHUNK bytes and starts where the one before ends.
 *
 * Return: number of parts.
 */
unsigned int nymph_dma_move_parts(struct nymph_engine *const *engines,
				  unsigned int nr_engines,
				  struct nymph_move *move,
				  struct nymph_move *parts)
{
	struct nymph_dma_op *ops[NYMPH_MAX_SPREAD];
	struct nymph_dma_engine *channels[NYMPH_MAX_SPREAD];
	unsigned int i, one, n = 0;
	size_t len = move->len, at = 0;

	for (i = 0; i < nr_engines && at < len; i++) {
		struct nymph_dma_engine *dma = to_nymph_dma(engines[i]);
		struct nymph_move *part = &parts[n];

		if (!nymph_dma_ready(engines[i]) ||
		    (i && (!READ_ONCE(dma->chan) || !nymph_dma_is_idle(dma))))
			continue;
		*part = *move;
		part->dst_off += at;
		part->src_off += at;
		part->len = min_t(size_t, len - at, NYMPH_LARGE_CHUNK);
		part->engine = engines[i]->id;
		one = 1;
		channels[n] = dma;
		ops[n++] = nymph_dma_launch(dma, part, &one);
		at += part->len;
	}
	move->len = at;
	for (i = 0; i < n; i++)
		nymph_dma_finish(channels[i], ops[i], &parts[i], 1);
	return n;
}

static struct nymph_card *nymph_dma_card(struct nymph_engine *engine,
					 u64 length)
{
	struct nymph_dma_engine *dma = to_nymph_dma(engine);
	struct nymph_card *card;
	int ret;

	/* the lock keeps the device's driver from being unbound */
	if (nymph_dma_lock(dma))
		return ERR_PTR(-EINTR);
	ret = nymph_dma_acquire(dma);
	card = dma->chan ? nymph_card_alloc(dma->chan->device->dev, length) :
			   ERR_PTR(ret);
	/* the ring may have ended: then nobody else releases the channel */
	if (!atomic_read(&dma->users))
		mod_delayed_work(nymph_dma_wq, &dma->stop_work, 0);
	mutex_unlock(&dma->lock);
	return card;
}

/**
 * nymph_dma_create() - Make an engine of a channel
 * @chan: a channel that nymph_dma_is_usable() accepts
 *
 * Return: the engine, or NULL.
 */
struct nymph_engine *nymph_dma_create(struct dma_chan *chan)
{
	struct nymph_dma_engine *dma = kzalloc(sizeof(*dma), GFP_KERNEL_ACCOUNT);
	struct nymph_engine *engine;

	if (!dma)
		return NULL;
	mutex_init(&dma->lock);
	spin_lock_init(&dma->ops_lock);
	INIT_LIST_HEAD(&dma->ops);
	INIT_LIST_HEAD(&dma->spare);
	init_waitqueue_head(&dma->stopped);
	INIT_DELAYED_WORK(&dma->stop_work, nymph_dma_stop_work);
	ratelimit_state_init(&dma->log, NYMPH_DMA_LOG_TIME,
			     NYMPH_DMA_LOG_BURST);
	ratelimit_set_flags(&dma->log, RATELIMIT_MSG_ON_RELEASE);
	engine = &dma->engine;
	strscpy(engine->name, dma_chan_name(chan), sizeof(engine->name));
	engine->offloads = true;
	engine->start = nymph_dma_start;
	engine->stop = nymph_dma_stop;
	engine->ready = nymph_dma_ready;
	engine->card = nymph_dma_card;
	engine->move = nymph_dma_move;
	return engine;
}

/**
 * nymph_dma_destroy() - Destroy an engine when the module is unloaded
 * @engine: an engine that no ring has
 */
void nymph_dma_destroy(struct nymph_engine *engine)
{
	struct nymph_dma_engine *dma = to_nymph_dma(engine);

	cancel_delayed_work_sync(&dma->stop_work);
	if (dma->chan)
		nymph_dma_release(dma);
	nymph_dma_drop_spare(dma);
	mutex_destroy(&dma->lock);
	kfree(dma);
}

/* Tells whether only operations that the channel may still run are mapped. */
static bool nymph_dma_is_unmapped(struct nymph_dma_engine *dma)
{
	struct list_head *at;
	unsigned int n = 0;
	bool unmapped;

	spin_lock_irq(&dma->ops_lock);
	list_for_each(at, &dma->ops)
		n++;
	unmapped = dma->held == n;
	spin_unlock_irq(&dma->ops_lock);
	return unmapped;
}

/* Waits until executors, which may wait for other channels, unmap what has ended. */
static void nymph_dma_await_unmapped(struct nymph_dma_engine *dma)
{
	wait_event_timeout(dma->stopped, nymph_dma_is_unmapped(dma),
			   msecs_to_jiffies(READ_ONCE(nymph_dma_timeout_ms)) +
			   2 * NYMPH_DMA_STOP_TIMEOUT);
}

/**
 * nymph_dma_unbind_begin() - Take the channel from an engine whose device leaves
 * @engine: any engine
 * @dev: the device; nothing happens if the channel is on another one
 *
 * Operations that are not known to have ended stay: the device's driver may call
 * back for them while it is unbound.
 */
void nymph_dma_unbind_begin(struct nymph_engine *engine, struct device *dev)
{
	struct nymph_dma_engine *dma = to_nymph_dma(engine);
	bool is_its;

	mutex_lock(&dma->lock);
	is_its = dma->chan && dma->chan->device->dev == dev;
	if (is_its) {
		nymph_dma_stop_locked(dma);
		if (dma->chan)
			nymph_dma_release(dma);
		nymph_dma_notice(dma, "is removed: its device is being unbound from its driver");
	}
	mutex_unlock(&dma->lock);
	wake_up_all(&dma->stopped);
	if (is_its)
		nymph_dma_await_unmapped(dma);
}

/**
 * nymph_dma_unbind_end() - Release what a device that has left may have been using
 * @engine: any engine
 * @dev: the device, whose driver has stopped it and does not call back any more
 */
void nymph_dma_unbind_end(struct nymph_engine *engine, struct device *dev)
{
	struct nymph_dma_engine *dma = to_nymph_dma(engine);

	mutex_lock(&dma->lock);
	nymph_dma_end_ops(dma, dev);
	/* whatever is bound next deserves a try */
	dma->refusals = 0;
	mutex_unlock(&dma->lock);
}
