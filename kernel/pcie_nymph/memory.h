/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * pcie_nymph: memory that a transfer reads or writes: pinned, allocated, on a
 * device, or a dma-buf; how devices have it mapped; and who is charged for it.
 */
#ifndef _NYMPH_MEMORY_H
#define _NYMPH_MEMORY_H

#include <linux/cache.h>
#include <linux/dma-mapping.h>
#include <linux/err.h>
#include <linux/gfp.h>
#include <linux/jiffies.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/refcount.h>
#include <linux/types.h>
#include <linux/uaccess.h>

#include "blake3.h"
#include "pcie_nymph.h"

/*
 * A transfer moves at most this many bytes between two checks for signals,
 * deadlines and RESET. A bounce buffer has this size.
 */
#define NYMPH_CHUNK		(64 * 1024U)

/* The chunk of memory that is pinned. */
#define NYMPH_LARGE_CHUNK	(1024 * 1024U)

/*
 * GFP flags for memory whose size user space chooses. The memory is charged. An
 * allocation beyond the limit of a cgroup fails and leaves no trace in the log;
 * plain GFP_KERNEL_ACCOUNT would have the OOM killer end a process.
 */
#define NYMPH_GFP_SIZED		(GFP_KERNEL_ACCOUNT | __GFP_RETRY_MAYFAIL | \
				 __GFP_NOWARN)

struct cred;
struct device;
struct dma_buf;
struct dma_fence;
struct dma_resv;
struct iosys_map;
struct nymph_card;
struct nymph_dmabuf;
struct nymph_engine;
struct nymph_mapping;
struct nymph_ring;
struct nymph_team;
struct page;
struct pid;
struct user_struct;
struct vm_area_struct;

/* card.c: memory of a device */

struct nymph_card *nymph_card_alloc(struct device *dev, u64 length);
void nymph_card_free(struct nymph_card *card);
void nymph_cards_revoke(struct device *dev);
int nymph_card_dma(const struct nymph_card *card, const struct device *dev,
		   dma_addr_t *dma);
bool nymph_card_load(const struct nymph_card *card, u64 offset, void *to,
		     size_t len);
bool nymph_card_store(const struct nymph_card *card, u64 offset,
		      const void *from, size_t len);
bool nymph_card_clear(const struct nymph_card *card);

/* mapping.c: memory as devices have it */

/*
 * Several mappings of the same memory can exist at a time, in any direction. The
 * code that maps also syncs, and only the bytes of its transfer.
 */
#define NYMPH_DMA_ATTRS							\
	(DMA_ATTR_SKIP_CPU_SYNC | DMA_ATTR_DEBUGGING_IGNORE_CACHELINES)

/**
 * struct nymph_mappable - memory that stays mapped for devices
 * @list: entry in the list of all such memory
 * @buf: the memory, if it is a dma-buf
 * @pages: the memory, if it is pages
 * @nr_pages: number of @pages
 * @length: bytes
 * @write: devices may write to the memory
 * @lock: serializes @mappings
 * @mappings: one struct nymph_mapping for each device that has the memory
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
void nymph_mappables_revoke(struct device *dev);
struct nymph_mapping *nymph_mapping_get(struct nymph_mappable *m,
					struct device *dev,
					struct device *owner);
struct nymph_mapping *nymph_mapping_again(struct nymph_mapping *map);
void nymph_mapping_put(struct nymph_mapping *map);
dma_addr_t nymph_mapping_at(const struct nymph_mapping *map, u64 offset,
			    size_t *len);
bool nymph_mapping_needs_sync(const struct nymph_mapping *map);

/* dmabuf.c: dma-bufs as memory of a ring */

/* A wait for fences of others lasts at most this long between two checks. */
#define NYMPH_FENCE_SLICE	(HZ / 50)

#ifdef CONFIG_DMA_SHARED_BUFFER
struct nymph_dmabuf *nymph_dmabuf_import(int fd, bool write, u64 *length);
void nymph_dmabuf_free(struct nymph_dmabuf *d);
bool nymph_dmabuf_wait(struct nymph_dmabuf *d, bool write,
		       unsigned long timeout);
struct dma_resv *nymph_dmabuf_resv(struct nymph_dmabuf *d);
const struct iosys_map *nymph_dmabuf_begin(struct nymph_dmabuf *d, bool write);
bool nymph_dmabuf_end(struct nymph_dmabuf *d, bool write);
bool nymph_dmabuf_load(struct nymph_dmabuf *d, u64 offset, void *to,
		       size_t len);
bool nymph_dmabuf_store(struct nymph_dmabuf *d, u64 offset, const void *from,
			size_t len);
struct nymph_mappable *nymph_dmabuf_mappable(struct nymph_dmabuf *d);

/* fence.c: fences that tell others that a channel uses a dma-buf */

void nymph_fences_init(void);
bool nymph_fences_wait(struct dma_resv *resv, bool write,
		       unsigned long timeout);
struct dma_fence *nymph_fence_begin(const char *name, struct dma_resv *dst,
				    struct dma_resv *src);
void nymph_fence_end(struct dma_fence *fence, struct dma_resv *dst,
		     struct dma_resv *src);
#else
static inline struct nymph_dmabuf *nymph_dmabuf_import(int fd, bool write,
						       u64 *length)
{
	return ERR_PTR(-EOPNOTSUPP);
}

static inline void nymph_dmabuf_free(struct nymph_dmabuf *d)
{
}

static inline bool nymph_dmabuf_wait(struct nymph_dmabuf *d, bool write,
				     unsigned long timeout)
{
	return true;
}

static inline struct dma_resv *nymph_dmabuf_resv(struct nymph_dmabuf *d)
{
	return NULL;
}

static inline const struct iosys_map *
nymph_dmabuf_begin(struct nymph_dmabuf *d, bool write)
{
	return NULL;
}

static inline bool nymph_dmabuf_end(struct nymph_dmabuf *d, bool write)
{
	return false;
}

static inline bool nymph_dmabuf_load(struct nymph_dmabuf *d, u64 offset,
				     void *to, size_t len)
{
	return false;
}

static inline bool nymph_dmabuf_store(struct nymph_dmabuf *d, u64 offset,
				      const void *from, size_t len)
{
	return false;
}

static inline struct nymph_mappable *
nymph_dmabuf_mappable(struct nymph_dmabuf *d)
{
	return NULL;
}

static inline void nymph_fences_init(void)
{
}

static inline struct dma_fence *nymph_fence_begin(const char *name,
						  struct dma_resv *dst,
						  struct dma_resv *src)
{
	return ERR_PTR(-EOPNOTSUPP);
}

static inline void nymph_fence_end(struct dma_fence *fence,
				   struct dma_resv *dst, struct dma_resv *src)
{
}
#endif

/* pin.c: memory that stays where it is, and bounce buffers */

/**
 * struct nymph_bounce - a buffer that a ring copies through
 * @refs: one for the ring, and one for each operation that a channel may still run
 * @data: NYMPH_CHUNK bytes
 */
struct nymph_bounce {
	refcount_t refs;
	u8 data[] __aligned(SMP_CACHE_BYTES);
};

struct nymph_bounce *nymph_bounce_create(int node);
void nymph_bounce_put(struct nymph_bounce *bounce);

/**
 * struct nymph_pin - memory that stays where it is
 * @card: the memory, if it is on a device; @pages is NULL then
 * @dmabuf: the memory, if it is a dma-buf; @pages is NULL then
 * @mappable: keeps the memory mapped for devices; NULL if each transfer maps it
 * @pages: the memory, if it is pages
 * @nr_pages: number of @pages
 * @offset: offset of the first byte into the first page
 * @vaddr: kernel address of all pages, since their export; or NULL
 * @charged: pages charged to the user's locked memory, whole folios
 * @write: engines write to the memory
 * @ours: the driver allocated the pages
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

/**
 * nymph_user_ptr() - Make a user pointer of an address of the ring's process
 * @addr: the address as the entry has it, with its tag
 * @len: bytes
 *
 * With MTE the tag counts where memory has one. copy_from_user() refuses tags in
 * a thread that has not asked for them, and a thread other than the submitter can
 * run the entry: the tag is dropped in that case.
 *
 * Return: the pointer, for current to use.
 */
static inline void __user *nymph_user_ptr(u64 addr, size_t len)
{
	void __user *at = u64_to_user_ptr(addr);

	return access_ok(at, len) ? at :
	       (void __user *)untagged_addr((unsigned long)at);
}

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
const void *nymph_pin_in_place(const struct nymph_pin *pin, u64 offset,
			       size_t len);
void nymph_pin_hash(const struct nymph_pin *pin, u64 offset, size_t len,
		    struct nymph_blake3 *hash, struct nymph_team *team);
void nymph_pin_copy(const struct nymph_pin *dst, u64 dst_off,
		    const struct nymph_pin *src, u64 src_off, size_t len,
		    struct nymph_blake3 *src_hash,
		    struct nymph_blake3 *dst_hash, struct nymph_bounce *bounce,
		    struct nymph_team *team);
bool nymph_pin_copy_dmabuf(const struct nymph_pin *dst, u64 dst_off,
			   const struct nymph_pin *src, u64 src_off,
			   size_t len);

/* team.c: work that several CPUs share */

/* One part of the work: the smallest input that BLAKE3 hashes at full speed. */
#define NYMPH_TEAM_PART		(NYMPH_BLAKE3_SUBTREE * 1024U)

/**
 * struct nymph_part - what a part of the work has of its own
 * @src_hash: hash of what the part read
 * @dst_hash: hash of what the part wrote
 */
struct nymph_part {
	struct nymph_blake3 src_hash;
	struct nymph_blake3 dst_hash;
};

struct nymph_team *nymph_team_create(int node);
void nymph_team_free(struct nymph_team *team);
bool nymph_team_is_allowed(struct pid *process);
unsigned int nymph_team_share(size_t len);
void nymph_team_run(struct nymph_team *team,
		    void (*fn)(void *arg, unsigned int part), void *arg,
		    unsigned int nr_parts);
struct nymph_part *nymph_team_part(struct nymph_team *team, unsigned int i);

/* region.c: memory behind a handle */

/* Handles are below this number. Each has this much room in the device's file. */
#define NYMPH_MAX_REGIONS	4096
#define NYMPH_REGION_SHIFT	30
#define NYMPH_REGION_PAGES	(1UL << (NYMPH_REGION_SHIFT - PAGE_SHIFT))

/**
 * struct nymph_region - memory that entries name by a handle
 * @refs: one for the handle, and one for each active entry and each mapping
 * @cred: of the user who is charged
 * @pin: the memory
 * @mappable: the pages of @pin, if a handle names them
 * @length: bytes
 */
struct nymph_region {
	refcount_t refs;
	const struct cred *cred;
	struct nymph_pin pin;
	struct nymph_mappable mappable;
	u64 length;
};

/**
 * struct nymph_operand - one side of an entry
 * @used: the entry has this side
 * @own: @region is pinned for this entry alone
 * @region: the memory; NULL if it is user memory of the ring's process
 * @at: offset into @region, or user address
 */
struct nymph_operand {
	bool used;
	bool own;
	struct nymph_region *region;
	u64 at;
};

struct nymph_region *nymph_region_create(const struct cred *cred,
					 struct nymph_engine *engine,
					 struct nymph_buffer *arg);
struct nymph_region *nymph_region_pin(const struct cred *cred, u64 addr,
				      u64 length, bool write);
void nymph_region_put(struct nymph_region *region);
int nymph_region_map(struct nymph_region *region, struct vm_area_struct *vma);
int nymph_region_fill(struct nymph_region *region, struct vm_area_struct *vma);

int nymph_region_add(struct nymph_ring *ring, struct nymph_region *region,
		     u32 *handle);
struct nymph_region *nymph_region_remove(struct nymph_ring *ring, u32 handle);
struct nymph_region *nymph_region_find(struct nymph_ring *ring, u32 handle);
struct nymph_region *nymph_region_get(struct nymph_ring *ring, u32 handle);

/* export.c: memory of the driver as a dma-buf */

#ifdef CONFIG_DMA_SHARED_BUFFER
struct dma_buf *nymph_dmabuf_export(struct nymph_region *region);
#else
static inline struct dma_buf *nymph_dmabuf_export(struct nymph_region *region)
{
	return ERR_PTR(-EOPNOTSUPP);
}
#endif

/* user.c: what counts against a user */

#define NYMPH_MAX_RINGS_DEFAULT	1024
#define NYMPH_MAX_USER_RINGS_DEFAULT	256

extern unsigned int nymph_max_rings;
extern unsigned int nymph_max_user_rings;
extern unsigned int nymph_max_user_card_percent;

const struct cred *nymph_user_add_ring(const struct cred *old);
void nymph_user_drop_ring(const struct cred *cred);
const struct cred *nymph_user_add_card(const struct device *dev, u64 bytes,
				       u64 size);
void nymph_user_drop_card(const struct cred *cred, const struct device *dev,
			  u64 bytes);
int nymph_charge(struct user_struct *user, unsigned long nr_pages,
		 unsigned long credit);
void nymph_uncharge(struct user_struct *user, unsigned long nr_pages);

#endif /* _NYMPH_MEMORY_H */
