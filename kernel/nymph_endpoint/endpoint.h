/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nymph_endpoint: what the driver's files share.
 *
 * main.c makes a PCI function into a dmaengine provider, channel.c is one
 * channel of it, ivshmem.c is how registers and doorbells are reached.
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

/* What became of things that can go wrong, in sysfs. */
enum nymph_ep_counter {
	NYMPH_EP_RESETS,		/* of channels, acknowledged */
	NYMPH_EP_UNANSWERED,		/* resets that were not, in time */
	NYMPH_EP_STALLS,		/* channels without progress */
	NYMPH_EP_ERRORS,		/* channels that said they are in error */
	NYMPH_EP_VIOLATIONS,		/* completions that could not be */
	NYMPH_EP_MISSED_INTERRUPTS,	/* completions found without one */
	NYMPH_EP_NR_COUNTERS
};

/**
 * struct nymph_ep_tx - a transaction
 * @async: as the client has it
 * @node: in one of the channel's lists; in none from prep to submit
 * @hw: its descriptor, but for the id
 */
struct nymph_ep_tx {
	struct dma_async_tx_descriptor async;
	struct list_head node;
	struct nymph_ep_desc hw;
};

/**
 * enum nymph_ep_state - what a channel is up to
 * @NYMPH_EP_STOPPED: no client has it, or the machine is suspended
 * @NYMPH_EP_WORKING: the device takes descriptors
 * @NYMPH_EP_RECOVERING: it is to be reset, and what was handed over may still
 *	be moving
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
 * @chan: as dmaengine has it
 * @ep: the device
 * @index: which
 * @regs: its registers
 * @ring: the descriptor ring
 * @ring_dma: its bus address
 * @done_ring: the completion ring
 * @done_dma: its bus address
 * @txs: all transactions there are
 * @tasklet: completes what the device has done
 * @work: watches over the device while it works, and recovers it
 * @settled: woken when the state is not NYMPH_EP_RECOVERING any more
 * @reset_lock: one reset at a time; taken before @lock
 * @last_reset: what was written to the reset register last; under @reset_lock
 * @lock: everything below
 * @state: what it is up to
 * @in_use: a client has it
 * @free: transactions nobody uses
 * @submitted: behind tx_submit, but not issue_pending
 * @queued: issued, and not handed over yet
 * @running: handed over, the oldest first
 * @zombies: terminated, but maybe still moving
 * @tail: descriptors handed over
 * @done: completions read
 * @progress: when the last one was, in jiffies
 * @beat: what the beat register said last
 * @beat_changed: when that changed last, in jiffies
 * @failed: cookies that ended badly, each at its place modulo the size
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
 * @dma: as dmaengine has it; its release frees all of this
 * @pdev: the function, held
 * @regs: BAR 2
 * @doorbells: the doorbell register
 * @peer: whom doorbells are for
 * @max_length: the longest copy of one descriptor
 * @wq: for the channels' work
 * @counters: enum nymph_ep_counter
 * @nr_channels: how many
 * @channels: the channels
 */
struct nymph_ep {
	struct dma_device dma;
	struct pci_dev *pdev;
	struct nymph_ep_regs __iomem *regs;
	void __iomem *doorbells;
	u32 peer;
	u32 max_length;
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
 * struct nymph_ep_bars - where things are in the function
 * @regs: registers of device and channels
 * @doorbells: the doorbell register
 * @size: bytes of the BAR that @regs begins
 * @cpu_address: where the CPU has that BAR
 * @bus_address: where the device has it
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
