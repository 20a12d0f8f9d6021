/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * pcie_nymph: open files and their rings.
 *
 * A context (one open file) has at most one ring. Requests put entries into
 * the ring's slots. One executor at a time, the ring's worker or a caller that
 * waits anyway, takes the entries in order, moves them chunk by chunk with the
 * ring's engine, and retires them.
 */
#ifndef _NYMPH_RING_H
#define _NYMPH_RING_H

#include <linux/atomic.h>
#include <linux/fs.h>
#include <linux/mutex.h>
#include <linux/refcount.h>
#include <linux/types.h>
#include <linux/wait.h>
#include <linux/xarray.h>

#include "blake3.h"
#include "engine.h"
#include "fifo.h"
#include "memory.h"
#include "pcie_nymph.h"

struct attribute_group;
struct cred;
struct eventfd_ctx;
struct iov_iter;
struct mm_struct;
struct pid;
struct seq_file;

struct nymph_worker;

/* sysfs.c: counters and limits in sysfs, rings in fdinfo */

extern const char *nymph_blake3_chosen;
extern const struct attribute_group *nymph_attr_groups[];

void nymph_ring_show_fdinfo(struct nymph_ring *ring, struct seq_file *m);

/* latency.c: how long entries take */

/**
 * struct nymph_histogram - times from submission to retirement
 * @count: number of times
 * @sum_ns: sum of the times
 * @max_ns: the longest time
 * @buckets: number of times in each bucket, see struct nymph_latency
 */
struct nymph_histogram {
	u64 count;
	u64 sum_ns;
	u64 max_ns;
	u64 buckets[NYMPH_LATENCY_BUCKETS];
};

unsigned int nymph_latency_bucket(u64 ns);
u64 nymph_latency_ceiling(unsigned int bucket);
void nymph_latency_add(struct nymph_histogram *h, u64 ns);
u64 nymph_latency_quantile(const struct nymph_histogram *h,
			   unsigned int permille);

/* ring.c: slots, records, and executors */

/**
 * struct nymph_waiter - a caller that waits for its COMPLETE_SYNC entries
 * @pending: number of these entries that have not retired
 * @status: status of the entry that retired last
 *
 * A waiter lives on the caller's stack. The ring's lock serializes it.
 */
struct nymph_waiter {
	unsigned int pending;
	int status;
};

/**
 * struct nymph_slot - an active entry
 * @entry: the entry as it was accepted
 * @src: memory that the entry reads
 * @dst: memory that the entry writes, or compares with
 * @waiter: the caller that waits for the entry, or NULL
 * @access: memory that the submitter could reach, see nymph_access_get()
 * @queued_ns: time at which the entry was accepted
 * @canceled: CANCEL named the entry
 */
struct nymph_slot {
	struct nymph_entry entry;
	struct nymph_operand src;
	struct nymph_operand dst;
	struct nymph_waiter *waiter;
	u32 access;
	u64 queued_ns;
	bool canceled;
};

/**
 * struct nymph_transfer - the entry at tail, while it runs
 * @active: the entry was started
 * @started_ns: time at which the entry was started
 * @done: bytes that reached the destination, or were hashed or found equal
 * @ahead: bytes behind @done that are in the bounce buffer and in @src_hash
 * @checked: bytes of the destination that were read back, if the entry asks for it
 * @blocked_ns: time since when the entry waits for fences of others, or 0
 * @engine: id of the engine that moved the last of the bytes
 * @record_flags: NYMPH_RECORD_*, the digests that are complete
 * @src_hash: hash of the source
 * @dst_hash: hash of the destination
 * @src_digest: digest of the source
 * @dst_digest: digest of the destination
 *
 * The transfer belongs to the executor. An executor that has to stop between two
 * chunks leaves the transfer to the next executor.
 */
struct nymph_transfer {
	bool active;
	u64 started_ns;
	u64 done;
	size_t ahead;
	u64 checked;
	u64 blocked_ns;
	u32 engine;
	u32 record_flags;
	struct nymph_blake3 src_hash;
	struct nymph_blake3 dst_hash;
	u8 src_digest[NYMPH_DIGEST_SIZE];
	u8 dst_digest[NYMPH_DIGEST_SIZE];
};

/* transcript.c: the digest of all entries that retired */

/**
 * struct nymph_transcript - transcript of a context
 * @id: its number, see struct nymph_snapshot
 * @count: number of entries that retired
 * @pending: number of @records that @hash does not have yet
 * @hash: hash of all records before these
 * @records: records of the latest entries: as many as fill the lanes of the hash
 *
 * The ring's lock serializes it.
 */
struct nymph_transcript {
	u64 id;
	u64 count;
	unsigned int pending;
	struct nymph_blake3 hash;
	struct nymph_transcript_record records[128];
};

void nymph_transcript_start_hash(struct nymph_blake3 *hash);
void nymph_transcript_begin(struct nymph_transcript *transcript);
void nymph_transcript_add(struct nymph_transcript *transcript,
			  const struct nymph_entry *entry, int status,
			  u32 engine, const struct nymph_transfer *transfer);
void nymph_transcript_read(struct nymph_transcript *transcript,
			   u8 digest[NYMPH_DIGEST_SIZE]);

/* Bits of nymph_ring.state. */
#define NYMPH_RING_EXECUTING	0	/* the ring has an executor */
#define NYMPH_RING_ENDED	1	/* the engine and the user's charge are released */

/**
 * struct nymph_carried - state that a ring carries over to the ring that SETUP
 * puts in its place
 * @dma_bytes: bytes moved by retired entries
 * @errors: number of failures that left no record
 * @first_error: status of the first of these failures
 * @eventfd: eventfd raised for every record, or NULL
 * @regions: struct nymph_region by handle
 * @latency: times of retired entries
 * @transcript: retired entries
 */
struct nymph_carried {
	u64 dma_bytes;
	u64 errors;
	int first_error;
	struct eventfd_ctx *eventfd;
	struct xarray regions;
	struct nymph_histogram latency;
	struct nymph_transcript transcript;
};

/**
 * struct nymph_ring - a ring, from SETUP to RESET or close
 * @refs: one for the context, one for the worker, one for each request under way
 * @ctx: the context, held until the ring is freed
 * @mm: memory of the process that set up the ring (mm_count held)
 * @owner: that process
 * @cred: credentials of the user charged for pinned memory, and for the ring until
 *	it has ended
 * @charged: pages charged for the ring itself
 * @engine: engine that moves the bytes, until the ring has ended
 * @auto_engine: the driver chose @engine, and other engines may do its work
 * @spread: engines that share large chunks: @engine and its helpers; the executor's
 * @nr_spread: number of @spread; 0 before the first search for helpers
 * @id: number of the ring in traces and fdinfo
 * @worker: runs entries that no caller waits for, and ends the ring if nobody else
 *	does
 * @state: NYMPH_RING_EXECUTING, taken with nymph_ring_claim(); NYMPH_RING_ENDED
 * @transfer: the entry under way; the executor's
 * @batch: scratch for entries that run together; the executor's
 * @bounce: bounce buffer; the executor's
 * @team: CPUs that share the work; the executor's; NULL until there is work to share
 * @reap_lock: one reader of records at a time; taken before @lock
 * @lock: serializes everything below; never held over user memory
 * @dead: RESET or close came: nothing is accepted, queued entries are canceled
 * @paused: entries queue up until ENABLE
 * @orphan: the process has ended, and the worker with it; @dead is set, too
 * @chain_broken: the entry that retired last had LINK, and failed
 * @label: nymph_dma_ring.ring_addr
 * @carried: state that outlives the ring; NULL once a successor has it
 * @pinned_pages: pages pinned by active entries themselves; not serialized
 * @active: entries accepted and not yet retired, in @slots
 * @slots: array of slots
 * @unread: records not yet collected, in @records
 * @records: array of records
 * @reserved: number of active entries that will leave a record
 */
struct nymph_ring {
	refcount_t refs;
	struct nymph_context *ctx;
	struct mm_struct *mm;
	struct pid *owner;
	const struct cred *cred;
	unsigned long charged;
	struct nymph_engine *engine;
	bool auto_engine;
	struct nymph_engine *spread[NYMPH_MAX_SPREAD];
	unsigned int nr_spread;
	unsigned int id;
	struct nymph_worker *worker;
	unsigned long state;
	struct nymph_transfer transfer;
	struct nymph_batch *batch;
	struct nymph_bounce *bounce;
	struct nymph_team *team;

	struct mutex reap_lock;	/* one reader of records at a time */
	struct mutex lock;	/* everything below */
	bool dead;
	bool paused;
	bool orphan;
	bool chain_broken;
	u64 label;
	struct nymph_carried *carried;
	atomic_long_t pinned_pages;
	struct nymph_fifo active;
	struct nymph_slot *slots;
	struct nymph_fifo unread;
	struct nymph_record *records;
	u32 reserved;
};

/**
 * struct nymph_context - one open file
 * @refs: one for the file, and one for its ring
 * @wait: woken when an entry retires, the executor stops, or the ring goes
 * @setup: one SETUP at a time; taken before @lock
 * @lock: serializes @ring; taken before the ring's lock. mmap() takes it under
 *	mmap_lock, so it covers @ring and the ring's lock alone: never the creation
 *	or the end of a ring, nor user memory
 * @ring: NULL before SETUP; dead while RESET waits for it
 */
struct nymph_context {
	refcount_t refs;
	wait_queue_head_t wait;
	struct mutex setup;	/* one at a time */
	struct mutex lock;	/* ring */
	struct nymph_ring *ring;
};

/**
 * struct nymph_limits - when an executor stops although entries are left
 * @waiter: stop when its entries have retired; or NULL
 * @records: stop when this many records are unread; or 0
 * @deadline_ns: stop at this CLOCK_MONOTONIC time
 * @interruptible: stop for any signal, not only for one that kills
 * @is_worker: the executor is the ring's worker, which stops for its process alone
 */
struct nymph_limits {
	const struct nymph_waiter *waiter;
	u32 records;
	u64 deadline_ns;
	bool interruptible;
	bool is_worker;
};

struct nymph_ring *nymph_ring_create(struct nymph_context *ctx,
				     const struct nymph_setup2 *setup,
				     const struct nymph_ring *old);
void nymph_ring_put(struct nymph_ring *ring);
void nymph_context_put(struct nymph_context *ctx);
bool nymph_ring_retire_idle(struct nymph_ring *ring,
			    struct nymph_ring *successor);
bool nymph_ring_has_ended(struct nymph_ring *ring);
void nymph_ring_kill(struct nymph_ring *ring);
void nymph_ring_orphan(struct nymph_ring *ring);
void nymph_ring_destroy(struct nymph_ring *ring);
void nymph_ring_release(struct nymph_ring *ring);
void nymph_ring_enable(struct nymph_ring *ring);
int nymph_ring_submit(struct nymph_ring *ring,
		      const struct nymph_entry *entries, u32 n,
		      struct nymph_waiter *waiter, u32 *accepted);
void nymph_ring_kick(struct nymph_ring *ring);
bool nymph_ring_claim(struct nymph_ring *ring);
bool nymph_ring_claimable(struct nymph_ring *ring);
bool nymph_ring_has_room(struct nymph_ring *ring);
void nymph_ring_execute(struct nymph_ring *ring,
			const struct nymph_limits *limits);
int nymph_ring_wait(struct nymph_ring *ring, struct nymph_waiter *waiter);
int nymph_ring_reap(struct nymph_ring *ring, struct iov_iter *to, u32 max,
		    u32 *reaped, u32 __user *count);
s64 nymph_clock_offset(void);
u32 nymph_ring_cancel(struct nymph_ring *ring, u64 cookie);
struct eventfd_ctx *nymph_ring_set_eventfd(struct nymph_ring *ring,
					   struct eventfd_ctx *eventfd);
void nymph_ring_latency(struct nymph_ring *ring, struct nymph_histogram *to);

void nymph_rings_pause(bool pause);

/* snapshot.c: the state of a ring at one moment, and its hash */

void nymph_ring_indices(struct nymph_ring *ring, struct nymph_dma_ring *out);
int nymph_ring_snapshot(struct nymph_ring *ring, struct nymph_snapshot *snap,
			struct nymph_entry __user *to);

/* worker.c: a thread for entries that no caller waits for */

int nymph_worker_start(struct nymph_ring *ring);
void nymph_worker_wake(struct nymph_ring *ring);
void nymph_worker_interrupt(struct nymph_ring *ring);
bool nymph_worker_may_run(struct nymph_ring *ring);
void nymph_worker_free(struct nymph_ring *ring);
int nymph_workers_init(void);
void nymph_workers_exit(void);

/* transfer.c: one entry */

/* Flags that the driver supports; QUERY reports them. */
#define NYMPH_FLAGS_SERVED						\
	(NYMPH_DMA_FLAG_ZERO_COPY | NYMPH_DMA_FLAG_VERIFY_HASH |	\
	 NYMPH_DMA_FLAG_COMPLETE_SYNC | NYMPH_DMA_FLAG_DIGEST_ONLY |	\
	 NYMPH_DMA_FLAG_RECORD | NYMPH_DMA_FLAG_LINK |			\
	 NYMPH_DMA_FLAG_BARRIER)

/* Flags for which the destination of a COPY or FILL is read back and hashed. */
#define NYMPH_FLAGS_HASHED						\
	(NYMPH_DMA_FLAG_VERIFY_HASH | NYMPH_DMA_FLAG_DIGEST_ONLY)

/* Results of nymph_transfer_step() beside 0 and a negative errno. */
#define NYMPH_STEP_MORE		1	/* there is more to do */
#define NYMPH_STEP_INTERRUPTED	2	/* the executor is being killed; nothing was done */

int nymph_entry_check(const struct nymph_entry *entry);
bool nymph_entry_moves(const struct nymph_entry *entry);
bool nymph_entry_is_in_buffers(const struct nymph_entry *entry);
int nymph_entry_prepare(struct nymph_ring *ring, struct nymph_slot *slot);
int nymph_entry_prepare_locked(struct nymph_ring *ring,
			       struct nymph_slot *slot);
void nymph_entry_release(struct nymph_ring *ring, struct nymph_slot *slot);
void nymph_transfer_start(struct nymph_transfer *transfer,
			  const struct nymph_entry *entry, u64 now);
int nymph_transfer_step(struct nymph_ring *ring, struct nymph_slot *slot);
int nymph_transfer_renew_bounce(struct nymph_ring *ring);
int nymph_transfer_prepare(struct nymph_ring *ring, struct nymph_slot *slot,
			   u64 at, size_t len, size_t ahead, size_t bounce_off,
			   struct nymph_move *move);
int nymph_transfer_land(struct nymph_ring *ring, struct nymph_slot *slot,
			const struct nymph_move *move, const u8 *src_digest,
			const u8 *dst_digest);

/* batch.c: entries that are moved, and hashed, together */

/**
 * struct nymph_batch - entries that run together, from tail on
 * @started_ns: time at which the engine was given the entries
 * @nr: number of entries
 * @moves: one move for each entry
 * @room: offset of each entry's room in the bounce buffer
 * @hashed: whether the digests of each entry are in @src and @dst
 * @src: digests of what was sent, for entries with VERIFY_HASH
 * @dst: digests of what was read back
 * @inputs: scratch: inputs to hash
 * @which: scratch: the entry of each input
 * @digests: scratch: the digest of each input
 * @hasher: scratch of nymph_blake3_hash_many()
 */
struct nymph_batch {
	u64 started_ns;
	unsigned int nr;
	struct nymph_move moves[NYMPH_MAX_MOVES];
	u32 room[NYMPH_MAX_MOVES];
	bool hashed[NYMPH_MAX_MOVES];
	u8 src[NYMPH_MAX_MOVES][NYMPH_DIGEST_SIZE];
	u8 dst[NYMPH_MAX_MOVES][NYMPH_DIGEST_SIZE];
	struct nymph_blake3_input inputs[NYMPH_MAX_MOVES];
	u8 which[NYMPH_MAX_MOVES];
	u8 digests[NYMPH_MAX_MOVES][NYMPH_DIGEST_SIZE];
	struct nymph_blake3_batch *hasher;
};

struct nymph_batch *nymph_batch_create(const struct nymph_engine *engine);
void nymph_batch_free(struct nymph_batch *batch);
unsigned int nymph_batch_run(struct nymph_ring *ring);
bool nymph_batch_has_ended(const struct nymph_batch *batch,
			   const struct nymph_entry *entry, unsigned int i);
int nymph_batch_land(struct nymph_ring *ring, struct nymph_slot *slot,
		     unsigned int i);

/* attest.c: statements about a ring, keyed or signed with a key of the administrator */

void nymph_statement_fill(struct nymph_statement *statement,
			  const struct nymph_snapshot *snap, const u8 *nonce,
			  u32 uid, u32 text_len);
int nymph_attest(struct nymph_ring *ring, struct nymph_attest *arg);
int nymph_attest_init(void);
void nymph_attest_exit(void);

/* context.c: requests */

extern const struct file_operations nymph_fops;

#endif /* _NYMPH_RING_H */
