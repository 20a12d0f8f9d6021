/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nymph_endpoint: declarations that the driver's files share.
 *
 * main.c registers a PCI function as a dmaengine provider, channel.c runs one of its
 * channels, and ivshmem.c maps registers and rings doorbells.
 */
#ifndef _NYMPH_EP_H
#define _NYMPH_EP_H

#include <linux/dmaengine.h>
#include <linux/interrupt.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "regs.h"

/* Descriptors that can be outstanding on a channel. */
#define NYMPH_EP_RING_SIZE	256

struct nymph_ep;

/* Counters in sysfs. */
enum nymph_ep_counter {
	NYMPH_EP_RESETS,		/* acknowledged resets of channels */
	NYMPH_EP_UNANSWERED,		/* resets not acknowledged in time */
	NYMPH_EP_STALLS,		/* channels found without progress */
	NYMPH_EP_ERRORS,		/* channels found in their error state */
	NYMPH_EP_VIOLATIONS,		/* impossible completions */
	NYMPH_EP_MISSED_INTERRUPTS,	/* completions without their interrupt */
	NYMPH_EP_NR_COUNTERS
};

/**
 * struct nymph_ep_tx - a transaction
 * @async: the client's view of it
 * @node: entry in one of the channel's lists; in none from prep to submit
 * @hw: its descriptor, without the id
 */
struct nymph_ep_tx {
	struct dma_async_tx_descriptor async;
	struct list_head node;
	struct nymph_ep_desc hw;
};

/**
 * enum nymph_ep_state - state of a channel
 * @NYMPH_EP_STOPPED: no client has the channel, or the machine is suspended
 * @NYMPH_EP_WORKING: the device takes descriptors
 * @NYMPH_EP_RECOVERING: a reset is due or under way; the device may still access the
 *	memory of transactions that it has
 * @NYMPH_EP_GONE: the driver was unbound: everything fails
 */
enum nymph_ep_state {
	NYMPH_EP_STOPPED,
	NYMPH_EP_WORKING,
	NYMPH_EP_RECOVERING,
	NYMPH_EP_GONE,
};

/**
 * struct nymph_ep_chan - one channel
 * @chan: dmaengine's view of it
 * @ep: the device
 * @index: number of the channel
 * @regs: its registers
 * @ring: the descriptor ring
 * @ring_dma: bus address of @ring
 * @done_ring: the completion ring
 * @done_dma: bus address of @done_ring
 * @txs: all transactions, NYMPH_EP_RING_SIZE
 * @tasklet: completes transactions that the device has done
 * @work: watches the device while it works, and recovers it
 * @settled: woken when @state is no longer NYMPH_EP_RECOVERING, and when @calling
 *	is 0
 * @reset_lock: serializes resets; taken before @lock
 * @last_reset: last value of the reset register; under @reset_lock
 * @lock: serializes everything below
 * @state: state of the channel
 * @in_use: whether a client has the channel
 * @calling: number of threads and tasklets that are about to call clients back
 * @free: unused transactions
 * @submitted: transactions between tx_submit and issue_pending
 * @queued: issued transactions that the device does not have yet
 * @running: transactions that the device has, oldest first
 * @zombies: terminated transactions that the device may still run
 * @tail: number of descriptors handed over
 * @done: number of completions read
 * @progress: time of the last completion in jiffies
 * @beat: last value of the beat register
 * @beat_changed: time of its last change in jiffies
 * @failed: cookies of failed transactions, each at its value modulo the size
 */
struct nymph_ep_chan {
	struct dma_chan chan;
	struct nymph_ep *ep;
	unsigned int index;
	struct nymph_ep_chan_regs __iomem *regs;
	struct nymph_ep_desc *ring;
	dma_addr_t ring_dma;
	struct nymph_ep_done *done_ring;
	dma_addr_t done_dma;
	struct nymph_ep_tx *txs;
	struct tasklet_struct tasklet;
	struct delayed_work work;
	wait_queue_head_t settled;

	struct mutex reset_lock;	/* resets, and last_reset */
	u32 last_reset;

	spinlock_t lock;		/* everything below */
	enum nymph_ep_state state;
	bool in_use;
	unsigned int calling;
	struct list_head free;
	struct list_head submitted;
	struct list_head queued;
	struct list_head running;
	struct list_head zombies;
	u32 tail;
	u32 done;
	unsigned long progress;
	u32 beat;
	unsigned long beat_changed;
	dma_cookie_t failed[NYMPH_EP_RING_SIZE];
};

/**
 * struct nymph_ep - the device
 * @dma: dmaengine's view of it; its release frees this struct
 * @pdev: the PCI function, with a reference
 * @regs: BAR 2
 * @doorbells: BAR 0, with the doorbell register
 * @peer: number of the device in the doorbell register
 * @max_length: longest copy of one descriptor in bytes
 * @card_base: bus address of the card's memory, or 0 if there is none
 * @wq: workqueue of the channels
 * @counters: values by enum nymph_ep_counter
 * @nr_channels: number of channels
 * @channels: the channels
 */
struct nymph_ep {
	struct dma_device dma;
	struct pci_dev *pdev;
	struct nymph_ep_regs __iomem *regs;
	void __iomem *doorbells;
	u32 peer;
	u32 max_length;
	u64 card_base;
	struct workqueue_struct *wq;
	atomic_long_t counters[NYMPH_EP_NR_COUNTERS];
	unsigned int nr_channels;
	struct nymph_ep_chan channels[];
};

static inline void nymph_ep_count(struct nymph_ep *ep,
				  enum nymph_ep_counter counter)
{
	atomic_long_inc(&ep->counters[counter]);
}

/* ivshmem.c */

/**
 * struct nymph_ep_bars - mapped BARs of the function
 * @regs: registers of the device and of its channels
 * @doorbells: BAR with the doorbell register
 * @size: bytes of the BAR that @regs is the start of
 * @cpu_address: physical address of that BAR for the CPU
 * @bus_address: address of that BAR for the device
 */
struct nymph_ep_bars {
	void __iomem *regs;
	void __iomem *doorbells;
	u64 size;
	phys_addr_t cpu_address;
	u64 bus_address;
};

extern const struct pci_device_id nymph_ep_ids[];

int nymph_ep_map(struct pci_dev *pdev, struct nymph_ep_bars *bars);
void nymph_ep_ring_doorbell(struct nymph_ep *ep, unsigned int n);

/* channel.c */

int nymph_ep_chan_init(struct nymph_ep *ep, unsigned int index);
void nymph_ep_chan_free(struct nymph_ep_chan *ch);
int nymph_ep_chan_reset(struct nymph_ep_chan *ch);
void nymph_ep_chan_stop(struct nymph_ep_chan *ch, enum nymph_ep_state state);
void nymph_ep_chan_resume(struct nymph_ep_chan *ch);
void nymph_ep_chan_set_ops(struct dma_device *dma);
irqreturn_t nymph_ep_chan_irq(int irq, void *data);

#endif /* _NYMPH_EP_H */
