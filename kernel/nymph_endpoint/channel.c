// SPDX-License-Identifier: GPL-2.0-only
/*
 * nymph_endpoint: one channel, from a client's transaction to the device's
 * completion, and its recovery if the device fails.
 *
 * The driver does not trust what the device writes. A device that breaks the rules
 * causes a reset of its channel. The transactions that it has then end with
 * DMA_TRANS_ABORTED once the device has acknowledged the reset: until then it may
 * write to their memory.
 *
 * The file is long because every part of it is serialized by nymph_ep_chan.lock.
 */
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/io-64-nonatomic-lo-hi.h>
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/random.h>
#include <linux/slab.h>

#include "endpoint.h"

/* Interval between checks of a working channel; longest time without a beat. */
#define NYMPH_EP_TICK		(HZ / 20)
#define NYMPH_EP_BEAT_TIMEOUT	(HZ / 2)

/* Longest time of a reset, and interval between attempts. */
#define NYMPH_EP_RESET_MS	1000
#define NYMPH_EP_RETRY		HZ

static unsigned int nymph_ep_timeout_ms = 1000;
module_param_named(timeout_ms, nymph_ep_timeout_ms, uint, 0644);
MODULE_PARM_DESC(timeout_ms, "a channel that completes nothing for so many ms is reset");

static struct nymph_ep_chan *to_nymph_ep_chan(struct dma_chan *chan)
{
	return container_of(chan, struct nymph_ep_chan, chan);
}

static struct nymph_ep_tx *nymph_ep_first(struct list_head *list)
{
	return list_first_entry_or_null(list, struct nymph_ep_tx, node);
}

/* --- the device --- */

/*
 * Ends everything that the channel does. Returns 0 if no transaction handed over
 * before can access memory any more, or -EIO if one still can.
 */
static int nymph_ep_reset_locked(struct nymph_ep_chan *ch)
{
	unsigned long deadline;
	u32 number;

	lockdep_assert_held(&ch->reset_lock);
	number = ++ch->last_reset;
	writel(number, &ch->regs->reset);
	nymph_ep_ring_doorbell(ch->ep, ch->ep->nr_channels);

	deadline = jiffies + msecs_to_jiffies(NYMPH_EP_RESET_MS);
	while (readl(&ch->regs->reset_ack) != number) {
		if (time_after(jiffies, deadline)) {
			nymph_ep_count(ch->ep, NYMPH_EP_UNANSWERED);
			return -EIO;
		}
		usleep_range(500, 1000);
	}
	nymph_ep_count(ch->ep, NYMPH_EP_RESETS);
	return 0;
}

/**
 * nymph_ep_chan_reset() - Reset a channel
 * @ch: a stopped channel
 *
 * Return: 0, or -EIO if the device does not acknowledge the reset in time.
 */
int nymph_ep_chan_reset(struct nymph_ep_chan *ch)
{
	int ret;

	mutex_lock(&ch->reset_lock);
	ret = nymph_ep_reset_locked(ch);
	mutex_unlock(&ch->reset_lock);
	return ret;
}

/* Starts the channel at its first descriptor. Returns 0 if the device takes them. */
static int nymph_ep_enable_locked(struct nymph_ep_chan *ch)
{
	unsigned long deadline;
	u32 state;

	memset(ch->ring, 0, NYMPH_EP_RING_SIZE * sizeof(*ch->ring));
	memset(ch->done_ring, 0, NYMPH_EP_RING_SIZE * sizeof(*ch->done_ring));
	/* a register of the device, which may have lost its power since */
	lo_hi_writeq(ch->ep->card_base, &ch->ep->regs->card_base);
	lo_hi_writeq(ch->ring_dma, &ch->regs->ring_base);
	lo_hi_writeq(ch->done_dma, &ch->regs->done_base);
	writel(NYMPH_EP_RING_SIZE, &ch->regs->ring_size);
	writel(0, &ch->regs->tail);
	writel(NYMPH_EP_ENABLE, &ch->regs->control);
	nymph_ep_ring_doorbell(ch->ep, ch->index);

	deadline = jiffies + msecs_to_jiffies(NYMPH_EP_RESET_MS);
	while ((state = readl(&ch->regs->state)) != NYMPH_EP_RUNNING) {
		if (state == NYMPH_EP_ERROR || time_after(jiffies, deadline))
			return -EIO;
		usleep_range(100, 500);
	}
	return 0;
}

/* --- completions --- */

static void nymph_ep_note_failure(struct nymph_ep_chan *ch, dma_cookie_t cookie)
{
	ch->failed[cookie % NYMPH_EP_RING_SIZE] = cookie;
}

static void nymph_ep_start_recovery(struct nymph_ep_chan *ch)
{
	lockdep_assert_held(&ch->lock);
	ch->state = NYMPH_EP_RECOVERING;
	mod_delayed_work(ch->ep->wq, &ch->work, 0);
}

/* Reads the next completion once. Returns whether the device has written it. */
static bool nymph_ep_next_done(struct nymph_ep_chan *ch,
			       struct nymph_ep_done *done)
{
	const struct nymph_ep_done *slot;

	slot = &ch->done_ring[ch->done % NYMPH_EP_RING_SIZE];
	if (le32_to_cpu(READ_ONCE(slot->sequence)) != ch->done + 1)
		return false;
	/* the device writes the sequence number last */
	dma_rmb();
	done->id = READ_ONCE(slot->id);
	done->status = READ_ONCE(slot->status);
	done->bytes = READ_ONCE(slot->bytes);
	return true;
}

/*
 * Moves completed transactions to @ended. Returns false at the first completion that
 * cannot be right.
 */
static bool nymph_ep_drain(struct nymph_ep_chan *ch, struct list_head *ended)
{
	struct nymph_ep_done done;
	struct nymph_ep_tx *tx;

	lockdep_assert_held(&ch->lock);
	while (nymph_ep_next_done(ch, &done)) {
		u32 status = le32_to_cpu(done.status);
		u32 bytes = le32_to_cpu(done.bytes);

		tx = nymph_ep_first(&ch->running);
		if (!tx || le32_to_cpu(done.id) != (u32)tx->async.cookie ||
		    status > NYMPH_EP_BAD_DST ||
		    bytes != (status ? 0 : le32_to_cpu(tx->hw.length)))
			return false;
		ch->done++;
		ch->progress = jiffies;
		if (status)
			nymph_ep_note_failure(ch, tx->async.cookie);
		ch->chan.completed_cookie = tx->async.cookie;
		list_move_tail(&tx->node, ended);
	}
	return true;
}

/*
 * Calls the clients back, oldest transaction first, and frees the transactions.
 * @outcome is the result of those that did not fail. The caller holds no lock, and
 * raised ch->calling under the lock under which it filled @ended.
 */
static void nymph_ep_finish(struct nymph_ep_chan *ch, struct list_head *ended,
			    enum dmaengine_tx_result outcome)
{
	struct dmaengine_result result = {};
	struct nymph_ep_tx *tx;
	unsigned long flags;

	list_for_each_entry(tx, ended, node) {
		struct dma_async_tx_descriptor *async = &tx->async;
		bool failed;

		failed = READ_ONCE(ch->failed[async->cookie %
					      NYMPH_EP_RING_SIZE]) ==
			 async->cookie;
		result.result = outcome;
		if (failed && result.result == DMA_TRANS_NOERROR)
			result.result = DMA_TRANS_WRITE_FAILED;
		result.residue = result.result ? le32_to_cpu(tx->hw.length) : 0;
		dma_descriptor_unmap(async);
		if (async->callback_result)
			async->callback_result(async->callback_param, &result);
		else if (async->callback)
			async->callback(async->callback_param);
	}
	spin_lock_irqsave(&ch->lock, flags);
	list_splice_tail_init(ended, &ch->free);
	if (!--ch->calling)
		wake_up_all(&ch->settled);
	spin_unlock_irqrestore(&ch->lock, flags);
}

/* Moves transactions that the device does not complete. */
static void nymph_ep_abort(struct nymph_ep_chan *ch, struct list_head *from,
			   struct list_head *to)
{
	struct nymph_ep_tx *tx;

	lockdep_assert_held(&ch->lock);
	list_for_each_entry(tx, from, node) {
		nymph_ep_note_failure(ch, tx->async.cookie);
		ch->chan.completed_cookie = tx->async.cookie;
	}
	list_splice_tail_init(from, to);
}

/*
 * Completes the transactions that the device has done. Returns whether one of them
 * asked for an interrupt.
 */
static bool nymph_ep_poll(struct nymph_ep_chan *ch)
{
	enum dmaengine_tx_result outcome = DMA_TRANS_NOERROR;
	struct nymph_ep_tx *tx;
	unsigned long flags;
	bool raises = false;
	LIST_HEAD(ended);

	spin_lock_irqsave(&ch->lock, flags);
	if (ch->state == NYMPH_EP_GONE) {
		nymph_ep_abort(ch, &ch->queued, &ended);
		outcome = DMA_TRANS_ABORTED;
	} else if (ch->state == NYMPH_EP_WORKING &&
		   !nymph_ep_drain(ch, &ended)) {
		nymph_ep_count(ch->ep, NYMPH_EP_VIOLATIONS);
		nymph_ep_start_recovery(ch);
	}
	list_for_each_entry(tx, &ended, node)
		raises |= !!(tx->async.flags & DMA_PREP_INTERRUPT);
	if (!list_empty(&ended))
		ch->calling++;
	spin_unlock_irqrestore(&ch->lock, flags);
	if (!list_empty(&ended))
		nymph_ep_finish(ch, &ended, outcome);
	return raises;
}

static void nymph_ep_tasklet(struct tasklet_struct *t)
{
	struct nymph_ep_chan *ch = container_of(t, struct nymph_ep_chan, tasklet);

	nymph_ep_poll(ch);
}

/**
 * nymph_ep_chan_irq() - Handle an interrupt of a channel
 * @irq: number of the interrupt
 * @data: the channel
 *
 * Return: IRQ_HANDLED.
 */
irqreturn_t nymph_ep_chan_irq(int irq, void *data)
{
	struct nymph_ep_chan *ch = data;

	tasklet_schedule(&ch->tasklet);
	return IRQ_HANDLED;
}

/* --- watching and recovering the device --- */

/* Hands queued transactions over. They fit: there are as many slots as txs. */
static void nymph_ep_push(struct nymph_ep_chan *ch)
{
	struct nymph_ep_tx *tx;

	lockdep_assert_held(&ch->lock);
	if (ch->state != NYMPH_EP_WORKING || list_empty(&ch->queued))
		return;
	if (list_empty(&ch->running)) {
		/* the device may have died while it had nothing to do */
		if (readl(&ch->regs->state) != NYMPH_EP_RUNNING) {
			nymph_ep_count(ch->ep, NYMPH_EP_ERRORS);
			nymph_ep_start_recovery(ch);
			return;
		}
		ch->progress = jiffies;
		ch->beat_changed = jiffies;
		queue_delayed_work(ch->ep->wq, &ch->work, NYMPH_EP_TICK);
	}
	while ((tx = nymph_ep_first(&ch->queued))) {
		struct nymph_ep_desc *slot;

		slot = &ch->ring[ch->tail % NYMPH_EP_RING_SIZE];
		*slot = tx->hw;
		slot->id = cpu_to_le32(tx->async.cookie);
		list_move_tail(&tx->node, &ch->running);
		ch->tail++;
	}
	/* writel() orders the descriptors before the tail */
	writel(ch->tail, &ch->regs->tail);
	nymph_ep_ring_doorbell(ch->ep, ch->index);
}

/* Tells whether the channel makes progress. The lock is held. */
static bool nymph_ep_is_healthy(struct nymph_ep_chan *ch)
{
	unsigned long timeout = msecs_to_jiffies(READ_ONCE(nymph_ep_timeout_ms));
	u32 beat = readl(&ch->regs->beat);

	if (readl(&ch->regs->state) != NYMPH_EP_RUNNING) {
		nymph_ep_count(ch->ep, NYMPH_EP_ERRORS);
		return false;
	}
	if (ch->beat != beat) {
		ch->beat = beat;
		ch->beat_changed = jiffies;
	}
	if (time_after(jiffies, ch->progress + timeout) ||
	    time_after(jiffies, ch->beat_changed + NYMPH_EP_BEAT_TIMEOUT)) {
		nymph_ep_count(ch->ep, NYMPH_EP_STALLS);
		return false;
	}
	return true;
}

static void nymph_ep_watch(struct nymph_ep_chan *ch)
{
	/* the interrupt is late, or lost */
	if (nymph_ep_poll(ch))
		nymph_ep_count(ch->ep, NYMPH_EP_MISSED_INTERRUPTS);

	spin_lock_irq(&ch->lock);
	if (ch->state == NYMPH_EP_WORKING && !list_empty(&ch->running)) {
		if (nymph_ep_is_healthy(ch))
			queue_delayed_work(ch->ep->wq, &ch->work,
					   NYMPH_EP_TICK);
		else
			nymph_ep_start_recovery(ch);
	}
	spin_unlock_irq(&ch->lock);
}

/* Ends everything that was handed over; the device has acknowledged a reset. */
static void nymph_ep_end_running(struct nymph_ep_chan *ch)
{
	LIST_HEAD(ended);
	LIST_HEAD(aborted);

	spin_lock_irq(&ch->lock);
	/* the device may have completed some just before the reset */
	if (list_empty(&ch->zombies) && ch->state != NYMPH_EP_GONE)
		nymph_ep_drain(ch, &ended);
	nymph_ep_abort(ch, &ch->running, &aborted);
	nymph_ep_abort(ch, &ch->zombies, &ch->free);
	ch->tail = 0;
	ch->done = 0;
	ch->calling += 2;
	spin_unlock_irq(&ch->lock);

	/* clients expect calls in this context */
	local_bh_disable();
	nymph_ep_finish(ch, &ended, DMA_TRANS_NOERROR);
	nymph_ep_finish(ch, &aborted, DMA_TRANS_ABORTED);
	local_bh_enable();
}

static void nymph_ep_recover(struct nymph_ep_chan *ch)
{
	int ret;

	mutex_lock(&ch->reset_lock);
	/* nymph_ep_chan_stop() may have stopped it since */
	if (READ_ONCE(ch->state) != NYMPH_EP_RECOVERING)
		goto unlock;
	ret = nymph_ep_reset_locked(ch);
	if (!ret)
		nymph_ep_end_running(ch);
	if (!ret && READ_ONCE(ch->in_use))
		ret = nymph_ep_enable_locked(ch);

	spin_lock_irq(&ch->lock);
	if (ret) {
		queue_delayed_work(ch->ep->wq, &ch->work, NYMPH_EP_RETRY);
	} else {
		ch->state = ch->in_use ? NYMPH_EP_WORKING : NYMPH_EP_STOPPED;
		nymph_ep_push(ch);
	}
	spin_unlock_irq(&ch->lock);
unlock:
	mutex_unlock(&ch->reset_lock);
	wake_up_all(&ch->settled);
}

static void nymph_ep_work(struct work_struct *work)
{
	struct nymph_ep_chan *ch;

	ch = container_of(to_delayed_work(work), struct nymph_ep_chan, work);
	switch (READ_ONCE(ch->state)) {
	case NYMPH_EP_WORKING:
		nymph_ep_watch(ch);
		break;
	case NYMPH_EP_RECOVERING:
		nymph_ep_recover(ch);
		break;
	default:
		break;
	}
}

/**
 * nymph_ep_chan_stop() - Stop the device on a channel
 * @ch: the channel
 * @state: NYMPH_EP_STOPPED: queued transactions wait for nymph_ep_chan_resume().
 *	NYMPH_EP_GONE: all transactions end, now and from now on
 *
 * If the device does not acknowledge the reset in time, the channel stops later, as
 * soon as the device does.
 *
 * Context: Process context; waits at most 2 s.
 */
void nymph_ep_chan_stop(struct nymph_ep_chan *ch, enum nymph_ep_state state)
{
	unsigned long deadline = jiffies + msecs_to_jiffies(NYMPH_EP_RESET_MS);
	bool active, gone;
	int ret = 0;

	/* running transactions get the chance to complete */
	while (READ_ONCE(ch->state) == NYMPH_EP_WORKING &&
	       !list_empty(&ch->running) && time_before(jiffies, deadline))
		usleep_range(500, 1000);

	cancel_delayed_work_sync(&ch->work);
	mutex_lock(&ch->reset_lock);
	spin_lock_irq(&ch->lock);
	active = ch->state == NYMPH_EP_WORKING ||
		 ch->state == NYMPH_EP_RECOVERING;
	if (active)
		ch->state = NYMPH_EP_RECOVERING;
	gone = ch->state == NYMPH_EP_GONE;
	spin_unlock_irq(&ch->lock);
	if (gone)
		goto unlock;

	if (active)
		ret = nymph_ep_reset_locked(ch);
	if (ret && state == NYMPH_EP_GONE) {
		/* a device that is not bus master cannot write */
		pci_clear_master(ch->ep->pdev);
		ret = 0;
	}
	if (!ret)
		nymph_ep_end_running(ch);

	spin_lock_irq(&ch->lock);
	if (ret) {
		queue_delayed_work(ch->ep->wq, &ch->work, NYMPH_EP_RETRY);
	} else {
		ch->state = state;
		if (state == NYMPH_EP_GONE)
			list_splice_tail_init(&ch->submitted, &ch->queued);
	}
	spin_unlock_irq(&ch->lock);
unlock:
	mutex_unlock(&ch->reset_lock);
	wake_up_all(&ch->settled);
	if (state == NYMPH_EP_GONE) {
		/* the work finds nothing to do any more */
		cancel_delayed_work_sync(&ch->work);
		nymph_ep_poll(ch);
	}
}

/**
 * nymph_ep_chan_resume() - Start a channel if a client has it
 * @ch: a stopped channel
 */
void nymph_ep_chan_resume(struct nymph_ep_chan *ch)
{
	spin_lock_irq(&ch->lock);
	if (ch->in_use && ch->state == NYMPH_EP_STOPPED)
		nymph_ep_start_recovery(ch);
	spin_unlock_irq(&ch->lock);
}

/* --- operations of dmaengine --- */

static struct dma_async_tx_descriptor *
nymph_ep_prep(struct dma_chan *chan, dma_addr_t dst, dma_addr_t src,
	      size_t len, u32 hw_flags, unsigned long flags)
{
	struct nymph_ep_chan *ch = to_nymph_ep_chan(chan);
	struct nymph_ep_tx *tx = NULL;
	unsigned long irq_flags;

	spin_lock_irqsave(&ch->lock, irq_flags);
	if (ch->state != NYMPH_EP_GONE)
		tx = nymph_ep_first(&ch->free);
	if (tx)
		list_del_init(&tx->node);
	spin_unlock_irqrestore(&ch->lock, irq_flags);
	if (!tx)
		return NULL;

	if (flags & DMA_PREP_INTERRUPT)
		hw_flags |= NYMPH_EP_INTERRUPT;
	tx->hw.src = cpu_to_le64(src);
	tx->hw.dst = cpu_to_le64(dst);
	tx->hw.length = cpu_to_le32(len);
	tx->hw.flags = cpu_to_le32(hw_flags);
	tx->async.flags = flags;
	tx->async.callback = NULL;
	tx->async.callback_result = NULL;
	return &tx->async;
}

static struct dma_async_tx_descriptor *
nymph_ep_prep_memcpy(struct dma_chan *chan, dma_addr_t dst, dma_addr_t src,
		     size_t len, unsigned long flags)
{
	if (!len || len > to_nymph_ep_chan(chan)->ep->max_length)
		return NULL;
	return nymph_ep_prep(chan, dst, src, len, 0, flags);
}

static struct dma_async_tx_descriptor *
nymph_ep_prep_interrupt(struct dma_chan *chan, unsigned long flags)
{
	return nymph_ep_prep(chan, 0, 0, 0, NYMPH_EP_NOP, flags);
}

static dma_cookie_t nymph_ep_submit(struct dma_async_tx_descriptor *async)
{
	struct nymph_ep_tx *tx = container_of(async, struct nymph_ep_tx, async);
	struct nymph_ep_chan *ch = to_nymph_ep_chan(async->chan);
	dma_cookie_t cookie;
	unsigned long flags;

	spin_lock_irqsave(&ch->lock, flags);
	cookie = ch->chan.cookie + 1;
	if (cookie < DMA_MIN_COOKIE)
		cookie = DMA_MIN_COOKIE;
	ch->chan.cookie = cookie;
	async->cookie = cookie;
	list_add_tail(&tx->node, &ch->submitted);
	spin_unlock_irqrestore(&ch->lock, flags);
	return cookie;
}

static void nymph_ep_issue_pending(struct dma_chan *chan)
{
	struct nymph_ep_chan *ch = to_nymph_ep_chan(chan);
	unsigned long flags;

	spin_lock_irqsave(&ch->lock, flags);
	list_splice_tail_init(&ch->submitted, &ch->queued);
	nymph_ep_push(ch);
	/* this context may not call clients back */
	if (ch->state == NYMPH_EP_GONE && !list_empty(&ch->queued))
		tasklet_schedule(&ch->tasklet);
	spin_unlock_irqrestore(&ch->lock, flags);
}

static enum dma_status nymph_ep_tx_status(struct dma_chan *chan,
					  dma_cookie_t cookie,
					  struct dma_tx_state *state)
{
	struct nymph_ep_chan *ch = to_nymph_ep_chan(chan);
	enum dma_status status;
	struct nymph_ep_tx *tx;
	unsigned long flags;
	u32 residue = 0;

	nymph_ep_poll(ch);

	spin_lock_irqsave(&ch->lock, flags);
	status = dma_async_is_complete(cookie, chan->completed_cookie,
				       chan->cookie);
	if (status == DMA_COMPLETE) {
		if (ch->failed[cookie % NYMPH_EP_RING_SIZE] == cookie)
			status = DMA_ERROR;
	} else {
		/* the device reports no progress within a transaction */
		list_for_each_entry(tx, &ch->running, node)
			if (tx->async.cookie == cookie)
				residue = le32_to_cpu(tx->hw.length);
	}
	dma_set_tx_state(state, chan->completed_cookie, chan->cookie, residue);
	spin_unlock_irqrestore(&ch->lock, flags);
	return status;
}

/*
 * Ends all transactions without a callback, once the device has acknowledged a
 * reset. Until then tx_status reports them as in progress. A second call returns
 * -EBUSY if synchronize waited and the device did not answer.
 */
static int nymph_ep_terminate_all(struct dma_chan *chan)
{
	struct nymph_ep_chan *ch = to_nymph_ep_chan(chan);
	unsigned long flags;
	int ret = 0;

	spin_lock_irqsave(&ch->lock, flags);
	if (!list_empty(&ch->zombies))
		ret = -EBUSY;
	list_splice_tail_init(&ch->running, &ch->zombies);
	list_splice_tail_init(&ch->queued, &ch->zombies);
	list_splice_tail_init(&ch->submitted, &ch->zombies);
	if (!list_empty(&ch->zombies)) {
		if (ch->state == NYMPH_EP_WORKING)
			nymph_ep_start_recovery(ch);
		else if (ch->state != NYMPH_EP_RECOVERING)
			nymph_ep_abort(ch, &ch->zombies, &ch->free);
	}
	spin_unlock_irqrestore(&ch->lock, flags);
	return ret;
}

static bool nymph_ep_is_settled(struct nymph_ep_chan *ch)
{
	return READ_ONCE(ch->state) != NYMPH_EP_RECOVERING;
}

static bool nymph_ep_is_quiet(struct nymph_ep_chan *ch)
{
	unsigned long flags;
	bool quiet;

	spin_lock_irqsave(&ch->lock, flags);
	quiet = !ch->calling;
	spin_unlock_irqrestore(&ch->lock, flags);
	return quiet;
}

/*
 * Waits until the reset that terminate_all started has ended, at most 2 s: if the
 * device does not answer, transactions stay in progress. Then waits for running
 * callbacks. Their caller can be the tasklet, the worker, a thread that asked for a
 * status, or a thread that stops the channel for an error of the bus, a reset or an
 * unbind.
 */
static void nymph_ep_synchronize(struct dma_chan *chan)
{
	struct nymph_ep_chan *ch = to_nymph_ep_chan(chan);

	wait_event_timeout(ch->settled, nymph_ep_is_settled(ch),
			   2 * msecs_to_jiffies(NYMPH_EP_RESET_MS));
	wait_event(ch->settled, nymph_ep_is_quiet(ch));
}

static int nymph_ep_alloc_chan_resources(struct dma_chan *chan)
{
	struct nymph_ep_chan *ch = to_nymph_ep_chan(chan);
	int ret;

	spin_lock_irq(&ch->lock);
	if (ch->state != NYMPH_EP_STOPPED) {
		/* transactions of the last client may still run */
		spin_unlock_irq(&ch->lock);
		return -EBUSY;
	}
	ch->in_use = true;
	ch->chan.cookie = DMA_MIN_COOKIE;
	ch->chan.completed_cookie = DMA_MIN_COOKIE;
	memset(ch->failed, 0, sizeof(ch->failed));
	spin_unlock_irq(&ch->lock);

	nymph_ep_chan_resume(ch);
	wait_event_timeout(ch->settled, nymph_ep_is_settled(ch),
			   2 * msecs_to_jiffies(NYMPH_EP_RESET_MS));
	spin_lock_irq(&ch->lock);
	ret = ch->state == NYMPH_EP_WORKING ? NYMPH_EP_RING_SIZE : -EIO;
	if (ret < 0)
		ch->in_use = false;
	spin_unlock_irq(&ch->lock);
	return ret;
}

static void nymph_ep_free_chan_resources(struct dma_chan *chan)
{
	struct nymph_ep_chan *ch = to_nymph_ep_chan(chan);

	spin_lock_irq(&ch->lock);
	ch->in_use = false;
	spin_unlock_irq(&ch->lock);
	nymph_ep_terminate_all(chan);
	nymph_ep_chan_stop(ch, NYMPH_EP_STOPPED);
}

/**
 * nymph_ep_chan_set_ops() - Set the operations that clients call
 * @dma: filled
 */
void nymph_ep_chan_set_ops(struct dma_device *dma)
{
	dma->device_alloc_chan_resources = nymph_ep_alloc_chan_resources;
	dma->device_free_chan_resources = nymph_ep_free_chan_resources;
	dma->device_prep_dma_memcpy = nymph_ep_prep_memcpy;
	dma->device_prep_dma_interrupt = nymph_ep_prep_interrupt;
	dma->device_issue_pending = nymph_ep_issue_pending;
	dma->device_tx_status = nymph_ep_tx_status;
	dma->device_terminate_all = nymph_ep_terminate_all;
	dma->device_synchronize = nymph_ep_synchronize;
}

/**
 * nymph_ep_chan_init() - Prepare a channel for registration
 * @ep: the device, with its registers mapped
 * @index: number of the channel
 *
 * The caller calls nymph_ep_chan_free() in the end, after an error too.
 *
 * Return: 0 or -ENOMEM.
 */
int nymph_ep_chan_init(struct nymph_ep *ep, unsigned int index)
{
	struct nymph_ep_chan *ch = &ep->channels[index];
	struct device *dev = &ep->pdev->dev;
	unsigned int i;

	ch->ep = ep;
	ch->index = index;
	ch->regs = (void __iomem *)ep->regs + NYMPH_EP_CHANNEL_BASE +
		   index * NYMPH_EP_CHANNEL_STRIDE;
	/* unlike any number of an earlier driver that the device remembers */
	ch->last_reset = get_random_u32();
	spin_lock_init(&ch->lock);
	mutex_init(&ch->reset_lock);
	init_waitqueue_head(&ch->settled);
	tasklet_setup(&ch->tasklet, nymph_ep_tasklet);
	INIT_DELAYED_WORK(&ch->work, nymph_ep_work);
	INIT_LIST_HEAD(&ch->free);
	INIT_LIST_HEAD(&ch->submitted);
	INIT_LIST_HEAD(&ch->queued);
	INIT_LIST_HEAD(&ch->running);
	INIT_LIST_HEAD(&ch->zombies);

	ch->chan.device = &ep->dma;
	list_add_tail(&ch->chan.device_node, &ep->dma.channels);

	ch->ring = dmam_alloc_coherent(dev, NYMPH_EP_RING_SIZE *
				       sizeof(*ch->ring), &ch->ring_dma,
				       GFP_KERNEL);
	ch->done_ring = dmam_alloc_coherent(dev, NYMPH_EP_RING_SIZE *
					    sizeof(*ch->done_ring),
					    &ch->done_dma, GFP_KERNEL);
	ch->txs = kcalloc(NYMPH_EP_RING_SIZE, sizeof(*ch->txs), GFP_KERNEL);
	if (!ch->ring || !ch->done_ring || !ch->txs)
		return -ENOMEM;
	for (i = 0; i < NYMPH_EP_RING_SIZE; i++) {
		dma_async_tx_descriptor_init(&ch->txs[i].async, &ch->chan);
		ch->txs[i].async.tx_submit = nymph_ep_submit;
		list_add_tail(&ch->txs[i].node, &ch->free);
	}
	return 0;
}

/**
 * nymph_ep_chan_free() - Free what nymph_ep_chan_init() allocated
 * @ch: a channel in state NYMPH_EP_GONE, or one that was never registered
 */
void nymph_ep_chan_free(struct nymph_ep_chan *ch)
{
	tasklet_kill(&ch->tasklet);
	mutex_destroy(&ch->reset_lock);
	kfree(ch->txs);
}
