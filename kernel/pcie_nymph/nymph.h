/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * pcie_nymph: what the module's files share.
 *
 * A context (one open file) has at most one ring. Requests put entries into
 * the ring's slots; one executor at a time, the ring's worker or a caller that
 * waits anyway, takes them in order, moves them piece by piece with the ring's
 * engine, and retires them.
 */
#ifndef _NYMPH_H
#define _NYMPH_H

#include <linux/cache.h>
#include <linux/fs.h>
#include <linux/kobject.h>
#include <linux/mutex.h>
#include <linux/refcount.h>
#include <linux/types.h>
#include <linux/wait.h>
#include <linux/xarray.h>

#include "blake3.h"
#include "fifo.h"
#include "pcie_nymph.h"

/*
 * How much is moved between two looks at signals, deadlines and RESET; the
 * size of the bounce buffer.
 */
#define NYMPH_PIECE		(64 * 1024U)

/*
 * The same where the CPU does all of it, so that what is in the bounce buffer is
 * in its L1 cache.
 */
#define NYMPH_SMALL_PIECE	(16 * 1024U)

/* The same of memory that is pinned. */
#define NYMPH_LARGE_PIECE	(1024 * 1024U)

/* How many channels are given such pieces at once, if the driver chooses them. */
#define NYMPH_MAX_SPREAD	4

#define NYMPH_MAX_RINGS_DEFAULT	1024
#define NYMPH_MAX_USER_RINGS_DEFAULT	256

struct attribute_group;
struct device;
struct dma_buf;
struct eventfd_ctx;
struct mm_struct;
struct nymph_flight;
struct nymph_ring;
struct nymph_team;
struct page;
struct pid;
struct seq_file;
struct task_struct;
struct user_struct;
struct vm_area_struct;

/* main.c */

extern const char *nymph_blake3_chosen;
extern unsigned int nymph_max_rings;
extern unsigned int nymph_max_user_rings;

struct kobject *nymph_device_kobject(void);

/* sysfs.c: counters, limits, and who holds what */

enum nymph_counter {
	NYMPH_COUNT_SUBMITTED,
	NYMPH_COUNT_COMPLETED,
	NYMPH_COUNT_FAILED,
	NYMPH_COUNT_BYTES,
	NYMPH_COUNT_VERIFIED,
	NYMPH_COUNT_MISMATCHED,
	NYMPH_COUNT_CONTEXTS,
	NYMPH_COUNT_RINGS,
	NYMPH_COUNT_PINNED_PAGES,
	NYMPH_COUNT_ALLOCATED_PAGES,
	NYMPH_COUNT_CARD_BYTES,
	NYMPH_COUNT_IMPORTED_BYTES,
	NYMPH_COUNT_EXPORTS,
	NYMPH_COUNT_MAPPINGS,
	NYMPH_COUNT_ENGINE_FAILURES,
	NYMPH_COUNT_FALLBACKS,
	NYMPH_COUNT_QUARANTINED,
	NYMPH_NR_COUNTERS
};

extern const struct attribute_group *nymph_attr_groups[];

void nymph_count(enum nymph_counter counter, long n);
int nymph_ring_publish(struct nymph_ring *ring);
void nymph_ring_withdraw(struct nymph_ring *ring);
void nymph_ring_show_fdinfo(struct nymph_ring *ring, struct seq_file *m);

/* latency.c: how long entries take */

/**
 * struct nymph_histogram - times from submit to retirement
 * @count: how many
 * @sum_ns: all of them together
 * @max_ns: the longest
 * @buckets: how many of them each bucket has, see struct nymph_latency
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

/* engine.c, engine_*.c: what moves the bytes */

struct nymph_engine;
struct nymph_operand;

/**
 * struct nymph_bounce - what a ring moves by way of
 * @refs: the ring's, and one for each transfer an engine may still be at
 * @data: NYMPH_PIECE bytes
 */
struct nymph_bounce {
	refcount_t refs;
	u8 data[] __aligned(SMP_CACHE_BYTES);
};

struct nymph_bounce *nymph_bounce_create(const struct nymph_engine *engine);
void nymph_bounce_put(struct nymph_bounce *bounce);

/**
 * struct nymph_move - bytes to be moved
 * @dst: where to
 * @dst_off: where in it
 * @src: where from, which has a pin, and @dst then too; or NULL
 * @src_off: where in it
 * @bounce: where from, if @src is NULL
 * @bounce_off: where in it
 * @len: how many, at most NYMPH_PIECE, or between regions NYMPH_LARGE_PIECE, or
 *	one for each that shares it if they are not hashed; lowered by an engine
 *	that does less
 * @done: how many arrived, from the start on
 * @status: 0 or a negative errno
 * @engine: id of the engine that was last at it
 * @adrift: the engine failed, and may be at it still: until it is known not to
 *	be, it keeps a reference to the regions, or the bounce buffer
 * @hash: only for the CPU, and between pages: what arrives is added to this; or
 *	NULL
 * @team: with which the CPU can share the work, if it is between pages; or NULL
 * @meanwhile: of the first of several: to be done while an engine is at them, see
 *	nymph_move_meanwhile(); or NULL
 * @meanwhile_arg: for @meanwhile
 */
struct nymph_move {
	const struct nymph_operand *dst;
	u64 dst_off;
	const struct nymph_operand *src;
	u64 src_off;
	struct nymph_bounce *bounce;
	size_t bounce_off;
	size_t len;
	size_t done;
	int status;
	u32 engine;
	bool adrift;
	struct nymph_blake3 *hash;
	struct nymph_team *team;
	void (*meanwhile)(void *arg);
	void *meanwhile_arg;
};

/* The most moves that an engine is given at a time. */
#define NYMPH_MAX_MOVES		64

static inline void *nymph_move_bounce(const struct nymph_move *move)
{
	return move->bounce->data + move->bounce_off;
}

/**
 * nymph_move_meanwhile() - do what there is to do while an engine moves bytes
 * @moves: what it was given, and is at; their len is what it will be
 *
 * For an engine that offloads, before it waits; once or not at all.
 */
static inline void nymph_move_meanwhile(struct nymph_move *moves)
{
	void (*meanwhile)(void *arg) = moves->meanwhile;

	moves->meanwhile = NULL;
	if (meanwhile)
		meanwhile(moves->meanwhile_arg);
}

/**
 * struct nymph_engine - something that moves bytes
 * @list: in the list of all
 * @name: what SETUP2 takes
 * @id: what records say
 * @node: of the machine's memory that is next to it, or NUMA_NO_NODE
 * @offloads: it moves by itself, so it is better given several moves at a time
 * @device: what it is part of; not to be touched
 * @rings: rings that have it; under the engines' lock
 * @helped: rings that have another, which it helps; under the engines' lock
 * @start: a ring is to have it; returns 0 or a negative errno
 * @stop: the last one is gone
 * @ready: whether it is worth trying; NULL if always
 * @card: takes memory of the device it is part of; NULL if there can't be any
 * @move: sets the status of all: -EFAULT is the memory's fault, all others are
 *	the engine's. More than one only if all are between regions, or a bounce
 *	buffer that is the same for all and a region, and none is a dma-buf.
 *	Sleeps, for no longer than the engine's own deadline and what it takes to
 *	stop what did not keep it: of each channel, if several share a move.
 *	Called for one ring at a time of each, but for many rings.
 */
struct nymph_engine {
	struct list_head list;
	char name[NYMPH_ENGINE_NAME_SIZE];
	u32 id;
	int node;
	bool offloads;
	const void *device;
	unsigned int rings;
	unsigned int helped;
	int (*start)(struct nymph_engine *engine);
	void (*stop)(struct nymph_engine *engine);
	bool (*ready)(struct nymph_engine *engine);
	struct nymph_card *(*card)(struct nymph_engine *engine, u64 length);
	void (*move)(struct nymph_engine *engine, struct nymph_move *moves,
		     unsigned int n);
};

extern struct nymph_engine nymph_engine_cpu;

/* More than any machine has. */
#define NYMPH_MAX_ENGINES	128

struct nymph_engine *nymph_engine_get(const char *name, bool *is_auto);
void nymph_engine_put(struct nymph_ring *ring);
int nymph_engine_infos(struct nymph_engine_info *infos, unsigned int max);
void nymph_engine_move(struct nymph_ring *ring, struct nymph_move *moves,
		       unsigned int n);
struct nymph_engine *nymph_engine_lookup(const char *name);
void nymph_engine_add(struct nymph_engine *engine);
void nymph_engines_each(void (*visit)(struct nymph_engine *engine, void *param),
			void *param);
void nymph_engines_each_locked(void (*visit)(struct nymph_engine *engine,
					     void *param), void *param);
void nymph_engines_exit(void);

extern unsigned int nymph_dma_timeout_ms;

int nymph_dma_scan(void);
bool nymph_dma_is_there(struct nymph_engine *engine);
void nymph_dma_forget(struct nymph_engine *engine);
unsigned int nymph_dma_move_parts(struct nymph_engine *const *engines,
				  unsigned int nr_engines,
				  struct nymph_move *move,
				  struct nymph_move *parts);
int nymph_dma_init(void);
void nymph_dma_exit(void);

/* card.c: memory of a device */

struct nymph_card;

struct nymph_card *nymph_card_alloc(struct device *dev, u64 length);
void nymph_card_free(struct nymph_card *card);
void nymph_cards_withdraw(struct device *dev);
int nymph_card_dma(const struct nymph_card *card, const struct device *dev,
		   dma_addr_t *dma);
bool nymph_card_load(const struct nymph_card *card, u64 offset, void *to,
		     size_t len);
bool nymph_card_store(const struct nymph_card *card, u64 offset,
		      const void *from, size_t len);
bool nymph_card_hash(const struct nymph_card *card, u64 offset, size_t len,
		     struct nymph_blake3 *hash);
bool nymph_card_clear(const struct nymph_card *card);

/* mapping.c: memory as devices have it */

struct nymph_mapping;

/**
 * struct nymph_mappable - memory that devices have for as long as it is there
 * @list: in the list of all
 * @buf: it is this dma-buf
 * @pages: or it is these
 * @nr_pages: how many
 * @length: bytes
 * @write: devices may write to it
 * @lock: serializes @mappings
 * @mappings: one for each device that has it
 */
struct nymph_mappable {
	struct list_head list;
	struct dma_buf *buf;
	struct page **pages;
	unsigned long nr_pages;
	u64 length;
	bool write;
	struct mutex lock;	/* mappings */
	struct list_head mappings;
};

void nymph_mappable_add(struct nymph_mappable *m);
void nymph_mappable_remove(struct nymph_mappable *m);
void nymph_mappables_withdraw(struct device *dev);
struct nymph_mapping *nymph_mapping_get(struct nymph_mappable *m,
					struct device *dev,
					struct device *owner);
struct nymph_mapping *nymph_mapping_again(struct nymph_mapping *map);
void nymph_mapping_put(struct nymph_mapping *map);
dma_addr_t nymph_mapping_at(const struct nymph_mapping *map, u64 offset,
			    size_t *len);
bool nymph_mapping_needs_sync(const struct nymph_mapping *map);

/* dmabuf.c: dma-bufs as memory of a ring's */

struct nymph_dmabuf;

/* How long others' fences are waited for between two looks at all else. */
#define NYMPH_FENCE_SLICE	(HZ / 50)
struct nymph_pin;
struct nymph_region;

struct nymph_dmabuf *nymph_dmabuf_import(int fd, bool write, u64 *length);
void nymph_dmabuf_free(struct nymph_dmabuf *d);
bool nymph_dmabuf_wait(struct nymph_dmabuf *d, bool write,
		       unsigned long timeout);
bool nymph_dmabuf_load(struct nymph_dmabuf *d, u64 offset, void *to,
		       size_t len);
bool nymph_dmabuf_store(struct nymph_dmabuf *d, u64 offset, const void *from,
			size_t len);
bool nymph_dmabuf_hash(struct nymph_dmabuf *d, u64 offset, size_t len,
		       struct nymph_blake3 *hash);
bool nymph_dmabuf_copy(const struct nymph_pin *dst, u64 dst_off,
		       const struct nymph_pin *src, u64 src_off, size_t len);
struct nymph_mappable *nymph_dmabuf_mappable(struct nymph_dmabuf *d);

/* export.c: memory of the driver's as a dma-buf */

struct dma_buf *nymph_dmabuf_export(struct nymph_region *region);

/* pin.c: memory that stays where it is */

/**
 * struct nymph_pin - memory that stays where it is
 * @card: it is this memory of a device; there are no pages then
 * @dmabuf: it is this dma-buf; there are no pages then
 * @mappable: it stays mapped for devices; NULL if it is for each transfer
 * @pages: the pages
 * @nr_pages: how many
 * @offset: where the memory starts in the first of them
 * @vaddr: where the kernel has all of them, since they were exported; or NULL
 * @charged: pages charged to the user's locked memory, whole folios
 * @write: an engine writes to them
 * @ours: they are the driver's, not a user's
 */
struct nymph_pin {
	struct nymph_card *card;
	struct nymph_dmabuf *dmabuf;
	struct nymph_mappable *mappable;
	struct page **pages;
	unsigned long nr_pages;
	unsigned int offset;
	void *vaddr;
	unsigned long charged;
	bool write;
	bool ours;
};

int nymph_check_mapped(u64 addr, u64 len, unsigned long vm_flags,
		       bool long_term);
int nymph_pin_user(struct nymph_pin *pin, struct user_struct *user, u64 addr,
		   u64 len, bool write);
int nymph_pin_alloc(struct nymph_pin *pin, struct user_struct *user, u64 len);
int nymph_pin_card(struct nymph_pin *pin, struct nymph_engine *engine, u64 len);
int nymph_pin_dmabuf(struct nymph_pin *pin, int fd, bool write, u64 *len);
void nymph_unpin(struct nymph_pin *pin, struct user_struct *user);
bool nymph_pin_load(const struct nymph_pin *pin, u64 offset, void *to,
		    size_t len);
bool nymph_pin_store(const struct nymph_pin *pin, u64 offset, const void *from,
		     size_t len);
bool nymph_pin_hash(const struct nymph_pin *pin, u64 offset, size_t len,
		    struct nymph_blake3 *hash, struct nymph_team *team);
void nymph_pin_copy(const struct nymph_pin *dst, u64 dst_off,
		    const struct nymph_pin *src, u64 src_off, size_t len,
		    struct nymph_blake3 *hash, struct nymph_team *team);

/* team.c: work that several CPUs share */

/* What one of them does at a time: the least that is hashed as fast as can be. */
#define NYMPH_TEAM_PART		(NYMPH_BLAKE3_SUBTREE * 1024U)

struct nymph_team *nymph_team_create(int node);
void nymph_team_free(struct nymph_team *team);
unsigned int nymph_team_share(size_t len);
void nymph_team_run(struct nymph_team *team,
		    void (*fn)(void *arg, unsigned int part), void *arg,
		    unsigned int nr_parts);
struct nymph_blake3 *nymph_team_hash(struct nymph_team *team,
				     unsigned int part);

/* region.c: memory behind a handle */

/* Handles are less than that, and each has so much room in the file. */
#define NYMPH_MAX_REGIONS	4096
#define NYMPH_REGION_SHIFT	30

/**
 * struct nymph_region - memory that entries name by a handle
 * @refs: the handle's, and one for each active entry and each mapping
 * @user: who is charged
 * @pin: the memory
 * @mappable: its pages, if there is a handle for them
 * @length: bytes
 */
struct nymph_region {
	refcount_t refs;
	struct user_struct *user;
	struct nymph_pin pin;
	struct nymph_mappable mappable;
	u64 length;
};

struct nymph_region *nymph_region_create(struct nymph_ring *ring,
					 struct nymph_buffer *arg);
struct nymph_region *nymph_region_pin(struct user_struct *user, u64 addr,
				      u64 length, bool write);
void nymph_region_put(struct nymph_region *region);
int nymph_region_map(struct nymph_region *region, struct vm_area_struct *vma);

/* user.c: what counts against a user */

/**
 * struct nymph_user - a user who has rings
 * @list: in the list of all
 * @account: who is charged for locked memory
 * @rings: how many
 */
struct nymph_user {
	struct list_head list;
	struct user_struct *account;
	unsigned int rings;
};

struct nymph_user *nymph_user_add_ring(const struct nymph_ring *old);
void nymph_user_drop_ring(struct nymph_user *user);

/* ring.c: slots, records, and who runs them */

/**
 * struct nymph_waiter - a caller that waits for its COMPLETE_SYNC entries
 * @pending: how many have not retired
 * @status: status of the one that retired last
 *
 * Lives on the caller's stack; under the ring's lock.
 */
struct nymph_waiter {
	unsigned int pending;
	int status;
};

/**
 * struct nymph_operand - one side of an entry
 * @used: the entry has such a side
 * @own: @region is this entry's alone, pinned for it
 * @region: the memory; NULL if it is borrowed of ring->mm
 * @at: offset into @region, or user address
 */
struct nymph_operand {
	bool used;
	bool own;
	struct nymph_region *region;
	u64 at;
};

/**
 * struct nymph_slot - an active entry
 * @entry: as it was accepted
 * @src: what it reads
 * @dst: what it writes, or compares with
 * @waiter: the caller that waits for it, or NULL
 * @queued_ns: when it was accepted
 * @canceled: CANCEL named it
 */
struct nymph_slot {
	struct nymph_entry entry;
	struct nymph_operand src;
	struct nymph_operand dst;
	struct nymph_waiter *waiter;
	u64 queued_ns;
	bool canceled;
};

/**
 * struct nymph_transfer - the entry at tail, while it runs
 * @active: it was started
 * @done: bytes that reached the destination, or were hashed or found equal
 * @ahead: bytes behind them that are in the bounce buffer, and in @src_hash
 * @checked: bytes of the destination read back by VERIFY_HASH
 * @blocked_ns: since when it waits for others' fences, or 0
 * @engine: id of the engine that moved the last of them
 * @record_flags: NYMPH_RECORD_*, which of the digests are whole
 *
 * It belongs to the executor. An executor that has to stop between two
 * pieces leaves it for the next to go on with.
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

/* nymph_ring.state, a bit each */
#define NYMPH_RING_EXECUTING	0	/* somebody is the executor */

/**
 * struct nymph_estate - what a ring leaves to the one SETUP puts in its place
 * @dma_bytes: bytes moved by retired entries
 * @errors: failures that left no record
 * @first_error: status of the first of them
 * @eventfd: raised for every record, or NULL
 * @regions: struct nymph_region by handle
 * @latency: times of retired entries
 */
struct nymph_estate {
	u64 dma_bytes;
	u64 errors;
	int first_error;
	struct eventfd_ctx *eventfd;
	struct xarray regions;
	struct nymph_histogram latency;
};

/**
 * struct nymph_ring - a ring, from SETUP to RESET or close
 * @refs: the context's, and one for each request under way
 * @ctx: the context, held until the ring is freed
 * @mm: memory of the process that set it up (mm_count held)
 * @owner: that process
 * @user: who is charged for pinned memory, and for the ring
 * @engine: moves the bytes
 * @auto_engine: the driver chose it, and may let others do its work
 * @spread: engines that share large pieces: @engine, and who helps it; the
 *	executor's
 * @nr_spread: how many; 0 until they are looked for
 * @id: number of the ring in traces and sysfs
 * @dir: its directory in sysfs
 * @worker: runs what no caller waits for; stopped by nymph_ring_destroy()
 * @work_wait: where @worker sleeps
 * @state: NYMPH_RING_EXECUTING, taken with nymph_ring_claim()
 * @transfer: the executor's
 * @flight: the executor's
 * @bounce: the executor's
 * @team: the executor's; NULL as long as there is nothing to share
 * @reap_lock: one reader of records at a time; taken before @lock
 * @lock: serializes everything below; never held over user memory
 * @dead: RESET or close came: nothing is accepted, what is queued is canceled
 * @paused: entries queue up until ENABLE
 * @orphan: close gave up waiting for the worker, which frees the ring itself
 * @chain_broken: the entry that retired last had LINK, and failed
 * @label: nymph_dma_ring.ring_addr
 * @estate: what outlives the ring; NULL once an heir has it
 * @pinned_pages: by active entries themselves; not serialized
 * @active: entries accepted and not yet retired, in @slots
 * @slots: an array
 * @unread: records nobody has collected, in @records
 * @records: an array
 * @reserved: active entries that will leave a record
 */
struct nymph_ring {
	refcount_t refs;
	struct nymph_context *ctx;
	struct mm_struct *mm;
	struct pid *owner;
	struct nymph_user *user;
	struct nymph_engine *engine;
	bool auto_engine;
	struct nymph_engine *spread[NYMPH_MAX_SPREAD];
	unsigned int nr_spread;
	unsigned int id;
	struct nymph_ring_dir *dir;
	struct task_struct *worker;
	wait_queue_head_t work_wait;
	unsigned long state;
	struct nymph_transfer transfer;
	struct nymph_flight *flight;
	struct nymph_bounce *bounce;
	struct nymph_team *team;

	struct mutex reap_lock;	/* one reader of records at a time */
	struct mutex lock;	/* everything below */
	bool dead;
	bool paused;
	bool orphan;
	bool chain_broken;
	u64 label;
	struct nymph_estate *estate;
	atomic_long_t pinned_pages;
	struct nymph_fifo active;
	struct nymph_slot *slots;
	struct nymph_fifo unread;
	struct nymph_record *records;
	u32 reserved;
};

/**
 * struct nymph_limits - when an executor stops although entries are left
 * @waiter: its entries have retired, or NULL
 * @records: that many records are unread (if not 0)
 * @deadline_ns: CLOCK_MONOTONIC time has come
 * @interruptible: any signal stops it, not only one that kills
 */
struct nymph_limits {
	const struct nymph_waiter *waiter;
	u32 records;
	u64 deadline_ns;
	bool interruptible;
};

struct nymph_ring *nymph_ring_create(struct nymph_context *ctx,
				     const struct nymph_setup2 *setup,
				     const struct nymph_ring *old);
void nymph_ring_put(struct nymph_ring *ring);
bool nymph_ring_retire_idle(struct nymph_ring *ring, struct nymph_ring *heir);
void nymph_ring_kill(struct nymph_ring *ring);
void nymph_ring_destroy(struct nymph_ring *ring);
void nymph_ring_release(struct nymph_ring *ring);
void nymph_ring_enable(struct nymph_ring *ring);
int nymph_ring_submit(struct nymph_ring *ring, const struct nymph_entry *entry,
		      struct nymph_waiter *waiter);
void nymph_ring_kick(struct nymph_ring *ring);
bool nymph_ring_claim(struct nymph_ring *ring);
bool nymph_ring_claimable(struct nymph_ring *ring);
bool nymph_ring_has_room(struct nymph_ring *ring);
void nymph_ring_execute(struct nymph_ring *ring,
			const struct nymph_limits *limits);
int nymph_ring_wait(struct nymph_ring *ring, struct nymph_waiter *waiter);
int nymph_ring_reap(struct nymph_ring *ring, struct nymph_record __user *to,
		    u32 max, u32 *reaped, u32 __user *count);
void nymph_ring_indices(struct nymph_ring *ring, struct nymph_dma_ring *out);
int nymph_ring_snapshot(struct nymph_ring *ring, struct nymph_snapshot *snap,
			struct nymph_entry __user *to);
u32 nymph_ring_cancel(struct nymph_ring *ring, u64 cookie);
struct eventfd_ctx *nymph_ring_set_eventfd(struct nymph_ring *ring,
					   struct eventfd_ctx *eventfd);
void nymph_ring_latency(struct nymph_ring *ring, struct nymph_histogram *to);
int nymph_ring_add_region(struct nymph_ring *ring, struct nymph_region *region,
			  u32 *handle);
struct nymph_region *nymph_ring_remove_region(struct nymph_ring *ring,
					      u32 handle);
struct nymph_region *nymph_ring_get_region(struct nymph_ring *ring, u32 handle);

void nymph_rings_pause(bool pause);

/* transfer.c: one entry */

/* The flags there is code for; QUERY tells them. */
#define NYMPH_FLAGS_SERVED						\
	(NYMPH_DMA_FLAG_ZERO_COPY | NYMPH_DMA_FLAG_VERIFY_HASH |	\
	 NYMPH_DMA_FLAG_COMPLETE_SYNC | NYMPH_DMA_FLAG_DIGEST_ONLY |	\
	 NYMPH_DMA_FLAG_RECORD | NYMPH_DMA_FLAG_LINK |			\
	 NYMPH_DMA_FLAG_BARRIER)

/* With which a COPY or FILL has its destination read back and hashed. */
#define NYMPH_FLAGS_HASHED						\
	(NYMPH_DMA_FLAG_VERIFY_HASH | NYMPH_DMA_FLAG_DIGEST_ONLY)

/* What nymph_transfer_step() says beside 0 and a negative errno. */
#define NYMPH_STEP_MORE		1	/* there is more to do */
#define NYMPH_STEP_INTERRUPTED	2	/* the executor is being killed; nothing was done */

int nymph_entry_check(const struct nymph_entry *entry);
bool nymph_entry_moves(const struct nymph_entry *entry);
int nymph_entry_prepare(struct nymph_ring *ring, struct nymph_slot *slot);
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

/* flight.c: entries that are moved, and hashed, side by side */

/**
 * struct nymph_flight - entries that are, from tail on
 * @started_ns: when the engine was given them
 * @nr: how many
 * @moves: one for each
 * @room: where each has room in the bounce buffer
 * @hashed: whether its digests are here
 * @src: digests of what was sent, of those with VERIFY_HASH
 * @dst: digests of what was read back
 * @inputs: to work with
 * @which: to work with
 * @digests: to work with
 * @batch: to work with
 */
struct nymph_flight {
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
	struct nymph_blake3_batch *batch;
};

struct nymph_flight *nymph_flight_create(const struct nymph_engine *engine);
void nymph_flight_free(struct nymph_flight *flight);
unsigned int nymph_flight_run(struct nymph_ring *ring);
int nymph_flight_land(struct nymph_ring *ring, struct nymph_slot *slot,
		      unsigned int i);

/* digest.c: the ring's hash */

void nymph_ring_digest(const struct nymph_dma_ring *ring,
		       const struct nymph_entry *entries, u32 nr_entries,
		       u64 dma_bytes, u8 digest[NYMPH_DIGEST_SIZE],
		       struct nymph_blake3 *hash);

/* context.c: one open file */

/**
 * struct nymph_context - one open file
 * @refs: the file's, and its ring's
 * @wait: woken when an entry retires, the executor stops, or the ring goes
 * @lock: serializes @ring; taken before the ring's lock
 * @ring: NULL before SETUP; dead while RESET waits for it
 */
struct nymph_context {
	refcount_t refs;
	wait_queue_head_t wait;
	struct mutex lock;	/* ring */
	struct nymph_ring *ring;
};

extern const struct file_operations nymph_fops;

void nymph_context_put(struct nymph_context *ctx);

#endif /* _NYMPH_H */
