// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: any dmaengine channel that can copy, as an engine.
 *
 * Whoever waits for an operation does so until a deadline. Then the channel is told
 * to stop; as long as it is not known to have, the operation is in quarantine: what
 * it holds is neither unmapped nor given back, and the channel is not used.
 */
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/device.h>
#include <linux/dmaengine.h>
#include <linux/err.h>
#include <linux/jiffies.h>
#include <linux/list.h>
#include <linux/minmax.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/workqueue.h>

#include "dma.h"
#include "trace.h"

/* When a channel that did not stop is told to again. */
#define NYMPH_DMA_RETRY		HZ
/* How long it may take to be told. */
#define NYMPH_DMA_STOP_TIMEOUT	(5 * HZ)
/* How long one that failed is spared by rings that can do without. */
#define NYMPH_DMA_PENANCE	HZ

unsigned int nymph_dma_timeout_ms = 3000;
module_param_named(dma_timeout_ms, nymph_dma_timeout_ms, uint, 0644);
MODULE_PARM_DESC(dma_timeout_ms, "how long a DMA channel may take for what it is given at once, 1 MiB at most");

struct workqueue_struct *nymph_dma_wq;

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

/*
 * The provider may hold its lock, and call from an interrupt: nothing is done
 * here but to say so.
 */
static void nymph_dma_callback(void *param,
			       const struct dmaengine_result *result)
{
	struct nymph_dma_run *run = param;
	struct nymph_dma_op *op = run->op;
	unsigned long flags;

	spin_lock_irqsave(&op->dma->ops_lock, flags);
	run->status = nymph_dma_status(result);
	/* the waiter may free it as soon as the lock is gone */
	if (!--op->pending)
		complete(&op->ended);
	spin_unlock_irqrestore(&op->dma->ops_lock, flags);
}

/*
 * Hands over as many runs from @first on as the channel has room for. Returns
 * how many, or why it can't be.
 */
static int nymph_dma_submit(struct nymph_dma_op *op, unsigned int first)
{
	struct nymph_dma_engine *dma = op->dma;
	struct dma_chan *chan = dma->chan;
	unsigned int i;

	lockdep_assert_held(&dma->lock);
	if (!chan || dmaengine_get_dma_device(chan) != op->dev)
		return -ENODEV;
	if (dma->stopping)
		return -EIO;

	/* one more, so that it can't end before all of it is handed over */
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
		dmaengine_submit(tx);
	}

	dma_async_issue_pending(chan);
	spin_lock_irq(&dma->ops_lock);
	op->pending -= op->nr_runs - i + 1;
	if (!op->pending)
		complete(&op->ended);
	spin_unlock_irq(&dma->ops_lock);
	return i - first;
}

/*
 * Ends operations: those that the channel was done with by itself, and all those
 * of @stopped, if that is not NULL: it is known not to be at them, and not to
 * call back.
 */
static void nymph_dma_end_ops(struct nymph_dma_engine *dma,
			      const struct device *stopped)
{
	struct nymph_dma_op *op, *next;
	LIST_HEAD(abandoned);

	spin_lock_irq(&dma->ops_lock);
	list_for_each_entry_safe(op, next, &dma->ops, list) {
		if (op->pending && op->dev != stopped)
			continue;
		if (op->pending) {
			op->pending = 0;
			complete(&op->ended);
		}
		if (op->abandoned)
			list_move_tail(&op->list, &abandoned);
		else
			list_del_init(&op->list);
	}
	spin_unlock_irq(&dma->ops_lock);

	list_for_each_entry_safe(op, next, &abandoned, list)
		nymph_dma_op_free(op);
}

/* Whether it is at nothing. */
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
	dma->chan = NULL;
	dma->stopping = false;
}

/*
 * Has the channel stop, and ends what it is known to be done with. All rings'
 * operations are: it can't be told to stop only some.
 */
static void nymph_dma_stop_locked(struct nymph_dma_engine *dma)
{
	struct device *stopped = NULL;
	bool idle;

	lockdep_assert_held(&dma->lock);
	/* then BUS_NOTIFY_UNBOUND_DRIVER ends what is left */
	if (!dma->chan)
		return;
	dmaengine_terminate_async(dma->chan);
	dmaengine_synchronize(dma->chan);
	/*
	 * A provider that could not make sure says so the second time; and one
	 * that can't stop at all, each time.
	 */
	if (!dmaengine_terminate_async(dma->chan))
		stopped = dmaengine_get_dma_device(dma->chan);
	nymph_dma_end_ops(dma, stopped);

	idle = nymph_dma_is_idle(dma);
	dma->stops++;
	dma->stopping = !idle;
	if (!idle)
		queue_delayed_work(nymph_dma_wq, &dma->stop_work,
				   NYMPH_DMA_RETRY);
	else if (!dma->wanted) {
		nymph_dma_release(dma);
		nymph_dma_drop_spare(dma);
	}
}

static void nymph_dma_stop_work(struct work_struct *work)
{
	struct nymph_dma_engine *dma;

	dma = container_of(to_delayed_work(work), struct nymph_dma_engine,
			   stop_work);
	mutex_lock(&dma->lock);
	nymph_dma_stop_locked(dma);
	mutex_unlock(&dma->lock);
	wake_up_all(&dma->stopped);
}

/* Says of each move how the first @nr_runs runs ended; or did not, in time. */
static void nymph_dma_collect(struct nymph_dma_op *op, struct nymph_move *moves,
			      unsigned int nr_runs)
{
	const struct nymph_dma_run *run;

	lockdep_assert_held(&op->dma->ops_lock);
	for (run = op->runs; run < op->runs + nr_runs; run++) {
		struct nymph_move *move = &moves[run->move];

		if (run->status == -EINPROGRESS && op->pending) {
			/* worse than any error: it may still be written to */
			move->adrift = true;
			move->status = -ETIMEDOUT;
		} else if (run->status && !move->status) {
			move->status = run->status == -EINPROGRESS ?
				       -ETIMEDOUT : run->status;
		}
	}
}

/*
 * Waits for what was handed over. Returns whether the channel is done with it,
 * well or not; else the operation is in quarantine, and not to be touched any more.
 * What is to be done meanwhile is done before.
 */
static bool nymph_dma_wait(struct nymph_dma_op *op, struct nymph_move *moves)
{
	struct nymph_dma_engine *dma = op->dma;
	unsigned int i, stops;
	bool done;
	long left;

	nymph_move_meanwhile(moves);
	left = max(1L, (long)(op->deadline - jiffies));
	if (!wait_for_completion_timeout(&op->ended, left)) {
		/* other rings' operations go on with it, if it is not so bad */
		stops = READ_ONCE(dma->stops);
		mod_delayed_work(nymph_dma_wq, &dma->stop_work, 0);
		wait_event_timeout(dma->stopped,
				   READ_ONCE(dma->stops) != stops,
				   NYMPH_DMA_STOP_TIMEOUT);
	}

	spin_lock_irq(&dma->ops_lock);
	done = !op->pending;
	nymph_dma_collect(op, moves, done ? op->handed_over : op->nr_runs);
	if (done) {
		list_del_init(&op->list);
	} else {
		/* what is said to have ended has to be there, and stay as it is */
		for (i = 0; i < op->nr_runs; i++)
			if (op->runs[i].status != -EINPROGRESS)
				nymph_dma_run_end(op, &op->runs[i]);
		/* from now on it is end_ops()'s to free */
		op->abandoned = true;
		nymph_count(NYMPH_COUNT_QUARANTINED, 1);
		__module_get(THIS_MODULE);
	}
	spin_unlock_irq(&dma->ops_lock);
	return done;
}

/* Makes the channel ours. The engine's lock is held. */
static int nymph_dma_acquire(struct nymph_dma_engine *dma)
{
	lockdep_assert_held(&dma->lock);
	if (dma->chan)
		return dma->stopping ? -EIO : 0;
	dma->chan = nymph_dma_request(dma);
	return dma->chan ? 0 : -ENODEV;
}

static int nymph_dma_start(struct nymph_engine *engine)
{
	struct nymph_dma_engine *dma = to_nymph_dma(engine);
	int ret;

	mutex_lock(&dma->lock);
	ret = nymph_dma_acquire(dma);
	if (!ret) {
		dma->wanted = true;
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

	mutex_lock(&dma->lock);
	dma->wanted = false;
	nymph_dma_drop_spare(dma);
	idle = nymph_dma_is_idle(dma);
	/*
	 * A channel that failed may take long to be given back, and nobody is to
	 * wait for it; one that is at an operation still is given back behind
	 * that.
	 */
	if (dma->chan && idle && dma->failed)
		mod_delayed_work(nymph_dma_wq, &dma->stop_work, 0);
	else if (dma->chan && idle)
		nymph_dma_release(dma);
	mutex_unlock(&dma->lock);
}

static bool nymph_dma_ready(struct nymph_engine *engine)
{
	struct nymph_dma_engine *dma = to_nymph_dma(engine);

	if (READ_ONCE(dma->stopping))
		return false;
	return !READ_ONCE(dma->failed) ||
	       time_after(jiffies, READ_ONCE(dma->failed_at) +
			  NYMPH_DMA_PENANCE);
}

/* Maps the operation, and hands over what the channel has room for. */
static void nymph_dma_begin(struct nymph_dma_op *op, struct nymph_move *moves)
{
	struct nymph_dma_engine *dma = op->dma;
	int ret;

	reinit_completion(&op->ended);
	mutex_lock(&dma->lock);
	/* its device may have come back */
	ret = nymph_dma_acquire(dma);
	if (!ret && !op->dev) {
		nymph_dma_op_map(op, moves);
		trace_nymph_mapped(dma->engine.id, op->nr_moves, op->nr_runs);
	}
	op->deadline = jiffies +
		       msecs_to_jiffies(READ_ONCE(nymph_dma_timeout_ms));
	if (!ret && op->handed_over < op->nr_runs) {
		ret = nymph_dma_submit(op, op->handed_over);
		if (ret > 0)
			op->handed_over += ret;
	}
	op->error = min(ret, 0);
	mutex_unlock(&dma->lock);
}

/*
 * Waits for all of an operation that was begun. Returns whether it is ours still,
 * see nymph_dma_wait().
 */
static bool nymph_dma_carry_out(struct nymph_dma_op *op,
				struct nymph_move *moves)
{
	unsigned int i, n = op->nr_moves;
	/* others' parts, and hashing, may have taken what there was */
	unsigned long deadline = jiffies +
		msecs_to_jiffies(READ_ONCE(nymph_dma_timeout_ms));

	while (!op->error && op->nr_runs) {
		if (!nymph_dma_wait(op, moves))
			return false;
		if (op->handed_over == op->nr_runs)
			break;
		/* others have it full */
		if (time_after(jiffies, deadline)) {
			op->error = -ETIMEDOUT;
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

/* What moves say of the channel, if they say anything: one failure is enough. */
static void nymph_dma_judge(struct nymph_dma_engine *dma,
			    const struct nymph_move *moves, unsigned int n)
{
	const struct nymph_move *move;
	bool good = false;

	for (move = moves; move < moves + n; move++) {
		if (!move->status) {
			good |= move->done;
		} else if (move->status != -EFAULT && move->status != -EXDEV &&
			   move->status != -ENOMEM) {
			WRITE_ONCE(dma->failed_at, jiffies);
			WRITE_ONCE(dma->failed, true);
			return;
		}
	}
	if (good && READ_ONCE(dma->failed))
		WRITE_ONCE(dma->failed, false);
}

/*
 * Has the channel begin with the first moves of @n, which becomes how many. What
 * is returned is for nymph_dma_finish().
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

/* Waits for what was launched, and says how it ended. */
static void nymph_dma_finish(struct nymph_dma_engine *dma,
			     struct nymph_dma_op *op, struct nymph_move *moves,
			     unsigned int n)
{
	struct nymph_move *move;

	if (op && (!moves->done || nymph_dma_carry_out(op, moves)))
		nymph_dma_op_free(op);
	nymph_dma_judge(dma, moves, n);
	for (move = moves; move < moves + n; move++) {
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
 * nymph_dma_move_parts() - have several channels make one move
 * @engines: the ring's own, and others that have to be idle to take a part
 * @nr_engines: how many
 * @move: between pages of regions; its len becomes what was given to them, which
 *	is 0 if none was ready
 * @parts: as many, filled as nymph_engine.move does
 *
 * Each part is NYMPH_LARGE_PIECE at most, and starts where that before it ends.
 *
 * Return: how many parts there are.
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
		part->len = min_t(size_t, len - at, NYMPH_LARGE_PIECE);
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

	/* the device's driver is not unbound while that is held */
	mutex_lock(&dma->lock);
	ret = nymph_dma_acquire(dma);
	card = dma->chan ? nymph_card_alloc(dma->chan->device->dev, length) :
			   ERR_PTR(ret);
	mutex_unlock(&dma->lock);
	return card;
}

/**
 * nymph_dma_create() - make an engine of a channel
 * @chan: the channel, whose name is short enough
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
 * nymph_dma_forget() - the module goes
 * @engine: no ring has it
 */
void nymph_dma_forget(struct nymph_engine *engine)
{
	struct nymph_dma_engine *dma = to_nymph_dma(engine);

	cancel_delayed_work_sync(&dma->stop_work);
	if (dma->chan)
		nymph_dma_release(dma);
	nymph_dma_drop_spare(dma);
	mutex_destroy(&dma->lock);
	kfree(dma);
}

/* Whether nothing is mapped but what the channel may be at. */
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

/* Executors unmap what has ended once they are done with other channels. */
static void nymph_dma_await_unmapped(struct nymph_dma_engine *dma)
{
	wait_event_timeout(dma->stopped, nymph_dma_is_unmapped(dma),
			   msecs_to_jiffies(READ_ONCE(nymph_dma_timeout_ms)) +
			   2 * NYMPH_DMA_STOP_TIMEOUT);
}

/**
 * nymph_dma_give_up() - a device leaves
 * @engine: loses its channel, if that is of the device
 * @param: the device
 *
 * What is not known to have ended stays: the driver may call back for it on its
 * way out.
 */
void nymph_dma_give_up(struct nymph_engine *engine, void *param)
{
	struct nymph_dma_engine *dma = to_nymph_dma(engine);
	struct device *dev = param;
	bool is_its;

	mutex_lock(&dma->lock);
	is_its = dma->chan && dma->chan->device->dev == dev;
	if (is_its) {
		nymph_dma_stop_locked(dma);
		if (dma->chan)
			nymph_dma_release(dma);
	}
	mutex_unlock(&dma->lock);
	wake_up_all(&dma->stopped);
	if (is_its)
		nymph_dma_await_unmapped(dma);
}

/**
 * nymph_dma_let_go() - a device has left
 * @engine: lets go of what that may have been at
 * @param: the device, whose driver has stopped it and calls nobody any more
 */
void nymph_dma_let_go(struct nymph_engine *engine, void *param)
{
	struct nymph_dma_engine *dma = to_nymph_dma(engine);

	mutex_lock(&dma->lock);
	nymph_dma_end_ops(dma, param);
	mutex_unlock(&dma->lock);
}
