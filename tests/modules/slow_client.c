// SPDX-License-Identifier: GPL-2.0-only
/*
 * slow_client: has a transaction of a DMA channel whose callback takes long, and is
 * made by a thread that asks for the transaction's status. It says so if the callback
 * is under way when the channel has been terminated and synchronized.
 */
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/dmaengine.h>
#include <linux/err.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/module.h>

static struct dma_chan *slow_chan;
static dma_cookie_t slow_cookie;
static DECLARE_COMPLETION(slow_called);
static DECLARE_COMPLETION(slow_ended);

/* In a thread: the endpoint raises no interrupt for it. */
static void slow_callback(void *unused)
{
	complete(&slow_called);
	msleep(1000);
	complete(&slow_ended);
}

static int slow_ask(void *unused)
{
	while (!kthread_should_stop()) {
		dmaengine_tx_status(slow_chan, slow_cookie, NULL);
		usleep_range(20, 50);
	}
	return 0;
}

static int slow_submit(void)
{
	struct dma_async_tx_descriptor *tx;

	tx = slow_chan->device->device_prep_dma_interrupt(slow_chan, 0);
	if (!tx)
		return -EBUSY;
	tx->callback = slow_callback;
	slow_cookie = dmaengine_submit(tx);
	dma_async_issue_pending(slow_chan);
	return 0;
}

static void slow_end(void)
{
	bool called = wait_for_completion_timeout(&slow_called, 10 * HZ);

	dmaengine_terminate_sync(slow_chan);
	if (!called)
		pr_err("slow_client: was not called\n");
	else if (!completion_done(&slow_ended))
		pr_err("slow_client: synchronize did not wait for the callback\n");
}

static int __init slow_init(void)
{
	struct task_struct *asks;
	dma_cap_mask_t mask;
	int ret;

	dma_cap_zero(mask);
	dma_cap_set(DMA_INTERRUPT, mask);
	slow_chan = dma_request_channel(mask, NULL, NULL);
	if (!slow_chan)
		return -ENODEV;
	asks = kthread_run(slow_ask, NULL, "slow_client");
	if (IS_ERR(asks)) {
		ret = PTR_ERR(asks);
		goto release;
	}
	ret = slow_submit();
	if (!ret)
		slow_end();
	/* it comes back from the callback, if that is under way still */
	kthread_stop(asks);
release:
	dma_release_channel(slow_chan);
	return ret;
}
module_init(slow_init);

static void __exit slow_exit(void)
{
}
module_exit(slow_exit);

MODULE_DESCRIPTION("A DMA client with a slow callback");
MODULE_LICENSE("GPL");
