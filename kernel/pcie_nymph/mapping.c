// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: memory behind a handle, as devices have it.
 *
 * Memory is mapped for a device once, when a channel first needs it, and stays mapped
 * until the handle is gone or the device leaves. Each transfer only syncs its bytes;
 * the exporter of a dma-buf does that itself.
 */
#include <linux/device.h>
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/err.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/xarray.h>

#include "compat.h"
#include "counters.h"
#include "memory.h"
#include "runs.h"

/**
 * struct nymph_mapping - memory as a device has it
 * @list: entry in the memory's mappings
 * @refs: one for the memory, and one for each operation that has the mapping
 * @dev: device that the memory is mapped for; held
 * @owner: device whose driver ends the mapping when it is unbound
 * @attachment: attachment to the dma-buf, if it is one
 * @sgt: @own, or the table of the exporter
 * @own: table of the memory, if it is pages
 * @direction: direction of @sgt
 * @needs_sync: transfers have to sync their bytes
 * @nr_runs: number of @runs
 * @runs: contiguous addresses, in the order of their offsets
 */
struct nymph_mapping {
	struct list_head list;
	refcount_t refs;
	struct device *dev;
	struct device *owner;
	struct dma_buf_attachment *attachment;
	struct sg_table *sgt;
	struct sg_table own;
	enum dma_data_direction direction;
	bool needs_sync;
	unsigned int nr_runs;
	struct nymph_run *runs;
};

/* Serializes the list; taken before the lock of what is in it. */
static DEFINE_MUTEX(nymph_mappables_lock);
static LIST_HEAD(nymph_mappables);

/* --- pages that are mapped more than once --- */

#ifdef NYMPH_OVERLAPS_COUNT
/*
 * Kernels without DMA_ATTR_DEBUGGING_IGNORE_CACHELINES, and with DMA_API_DEBUG, take
 * it for a leak if the start of what is mapped is in more than eight mappings that
 * devices write to. Here it can be registered as often as the user likes, and there
 * can be many devices: what would be too much is mapped for each transfer there.
 */
#define NYMPH_MAX_OVERLAP	4

static DEFINE_MUTEX(nymph_overlaps_lock);
static DEFINE_XARRAY(nymph_overlaps);	/* by page frame number: mappings */

static bool nymph_mapping_is_counted(const struct nymph_mapping *map)
{
	return !map->attachment && map->direction != DMA_TO_DEVICE;
}

/* Stops counting the first @n starts of the table. */
static void nymph_overlaps_drop(struct sg_table *table, unsigned int n)
{
	struct scatterlist *sg;
	unsigned int i;

	lockdep_assert_held(&nymph_overlaps_lock);
	for_each_sg(table->sgl, sg, n, i) {
		unsigned long pfn = page_to_pfn(sg_page(sg));
		unsigned long count = xa_to_value(xa_load(&nymph_overlaps, pfn));

		/* storing over an existing entry allocates no memory */
		if (count > 1)
			xa_store(&nymph_overlaps, pfn, xa_mk_value(count - 1),
				 GFP_KERNEL);
		else
			xa_erase(&nymph_overlaps, pfn);
	}
}

static int nymph_mapping_count(struct nymph_mapping *map)
{
	struct scatterlist *sg;
	unsigned int i;
	int ret = 0;

	if (!nymph_mapping_is_counted(map))
		return 0;
	mutex_lock(&nymph_overlaps_lock);
	for_each_sgtable_sg(&map->own, sg, i) {
		unsigned long pfn = page_to_pfn(sg_page(sg));
		unsigned long count = xa_to_value(xa_load(&nymph_overlaps, pfn));

		ret = count < NYMPH_MAX_OVERLAP ?
		      xa_err(xa_store(&nymph_overlaps, pfn,
				      xa_mk_value(count + 1), GFP_KERNEL)) :
		      -EBUSY;
		if (ret) {
			nymph_overlaps_drop(&map->own, i);
			break;
		}
	}
	mutex_unlock(&nymph_overlaps_lock);
	return ret;
}

static void nymph_mapping_uncount(struct nymph_mapping *map)
{
	if (!nymph_mapping_is_counted(map))
		return;
	mutex_lock(&nymph_overlaps_lock);
	nymph_overlaps_drop(&map->own, map->own.orig_nents);
	mutex_unlock(&nymph_overlaps_lock);
}
#else
static int nymph_mapping_count(struct nymph_mapping *map)
{
	return 0;
}

static void nymph_mapping_uncount(struct nymph_mapping *map)
{
}
#endif

/* --- one mapping --- */

/*
 * As in nymph_dma_map(): to the DMA API a mapping owns its memory, unless the code
 * that maps also syncs. Here several mappings can have the same memory.
 */
static int nymph_mapping_map_pages(struct nymph_mapping *map,
				   const struct nymph_mappable *m)
{
	size_t longest = dma_get_max_seg_size(map->dev) & PAGE_MASK;
	int ret;

	/*
	 * Then there may be bounce buffers in between, which are few, and those
	 * of two mappings of the same memory would overwrite each other.
	 */
	if (dma_max_mapping_size(map->dev) < SIZE_MAX || !longest)
		return -EOPNOTSUPP;
	ret = sg_alloc_table_from_pages_segment(&map->own, m->pages,
						m->nr_pages, 0,
						m->nr_pages << PAGE_SHIFT,
						longest, NYMPH_GFP_SIZED);
	if (ret)
		return ret;
	ret = nymph_mapping_count(map);
	if (ret)
		goto table;
	ret = dma_map_sgtable(map->dev, &map->own, map->direction,
			      NYMPH_DMA_ATTRS);
	if (ret)
		goto count;
	map->sgt = &map->own;
	return 0;

count:
	nymph_mapping_uncount(map);
table:
	sg_free_table(&map->own);
	return ret;
}

static int nymph_mapping_map_dmabuf(struct nymph_mapping *map,
				    struct dma_buf *buf)
{
	map->attachment = dma_buf_attach(buf, map->dev);
	if (IS_ERR(map->attachment))
		return PTR_ERR(map->attachment);
	map->sgt = dma_buf_map_attachment_unlocked(map->attachment,
						   map->direction);
	if (!IS_ERR(map->sgt))
		return 0;
	dma_buf_detach(buf, map->attachment);
	return PTR_ERR(map->sgt);
}

static void nymph_mapping_unmap(struct nymph_mapping *map)
{
	struct dma_buf_attachment *attachment = map->attachment;
	struct dma_buf *buf;

	if (IS_ENABLED(CONFIG_DMA_SHARED_BUFFER) && attachment) {
		buf = attachment->dmabuf;
		dma_buf_unmap_attachment_unlocked(attachment, map->sgt,
						  map->direction);
		dma_buf_detach(buf, attachment);
		return;
	}
	dma_unmap_sgtable(map->dev, map->sgt, map->direction,
			  NYMPH_DMA_ATTRS);
	nymph_mapping_uncount(map);
	sg_free_table(map->sgt);
}

/**
 * nymph_mapping_put() - Drop a reference to a mapping
 * @map: the mapping, or NULL; no device may use it through this reference
 */
void nymph_mapping_put(struct nymph_mapping *map)
{
	if (!map || !refcount_dec_and_test(&map->refs))
		return;
	nymph_mapping_unmap(map);
	nymph_count(NYMPH_COUNT_MAPPINGS, -1);
	put_device(map->dev);
	kvfree(map->runs);
	kfree(map);
}

static bool nymph_mapping_is_synced(const struct nymph_mapping *map)
{
	struct scatterlist *sg;
	unsigned int i;

	if (map->attachment)
		return false;
	for_each_sgtable_dma_sg(map->sgt, sg, i)
		if (dma_need_sync(map->dev, sg_dma_address(sg)))
			return true;
	return false;
}

static int nymph_mapping_fill(struct nymph_mapping *map, u64 length)
{
	u64 mapped;

	map->runs = kvmalloc_array(map->sgt->nents, sizeof(*map->runs),
				   NYMPH_GFP_SIZED);
	if (!map->runs)
		return -ENOMEM;
	map->needs_sync = nymph_mapping_is_synced(map);
	mapped = nymph_runs_of(map->sgt, map->runs, &map->nr_runs,
			       !map->needs_sync);
	return mapped < length ? -EXDEV : 0;
}

static struct nymph_mapping *nymph_mapping_create(struct nymph_mappable *m,
						  struct device *dev,
						  struct device *owner)
{
	struct nymph_mapping *map;
	int ret;

	map = kzalloc(sizeof(*map), GFP_KERNEL_ACCOUNT);
	if (!map)
		return ERR_PTR(-ENOMEM);
	refcount_set(&map->refs, 1);
	map->dev = get_device(dev);
	map->owner = owner;
	map->direction = m->write ? DMA_BIDIRECTIONAL : DMA_TO_DEVICE;
	ret = IS_ENABLED(CONFIG_DMA_SHARED_BUFFER) && m->buf ?
	      nymph_mapping_map_dmabuf(map, m->buf) :
	      nymph_mapping_map_pages(map, m);
	if (ret) {
		put_device(map->dev);
		kfree(map);
		return ERR_PTR(ret);
	}
	nymph_count(NYMPH_COUNT_MAPPINGS, 1);
	ret = nymph_mapping_fill(map, m->length);
	if (ret) {
		nymph_mapping_put(map);
		return ERR_PTR(ret);
	}
	return map;
}

/**
 * nymph_mapping_get() - Map memory for a device, or find its mapping
 * @m: the memory
 * @dev: device that the memory is mapped for
 * @owner: the device of the channel, whose driver the caller keeps from being unbound
 *
 * Return: the mapping, with a reference; -ENOMEM; -EXDEV if the exporter of a dma-buf
 * refuses the device. For pages any error means that each transfer has to map them.
 */
struct nymph_mapping *nymph_mapping_get(struct nymph_mappable *m,
					struct device *dev,
					struct device *owner)
{
	struct nymph_mapping *map;

	mutex_lock(&m->lock);
	list_for_each_entry(map, &m->mappings, list)
		if (map->dev == dev)
			goto found;
	map = nymph_mapping_create(m, dev, owner);
	if (IS_ERR(map)) {
		if (map != ERR_PTR(-ENOMEM))
			map = ERR_PTR(-EXDEV);
		goto unlock;
	}
	list_add(&map->list, &m->mappings);
found:
	refcount_inc(&map->refs);
unlock:
	mutex_unlock(&m->lock);
	return map;
}

/**
 * nymph_mapping_again() - Take another reference to a mapping
 * @map: the mapping, to which the caller has a reference
 *
 * Return: @map.
 */
struct nymph_mapping *nymph_mapping_again(struct nymph_mapping *map)
{
	refcount_inc(&map->refs);
	return map;
}

/**
 * nymph_mapping_at() - Get the address that a device has for bytes of a mapping
 * @map: the mapping
 * @offset: offset from the start of the first page, or of the dma-buf
 * @len: number of bytes; lowered to those that are contiguous
 *
 * Return: address of the first byte.
 */
dma_addr_t nymph_mapping_at(const struct nymph_mapping *map, u64 offset,
			    size_t *len)
{
	return nymph_run_at(map->runs, map->nr_runs, offset, len);
}

/**
 * nymph_mapping_needs_sync() - Tell whether transfers have to sync their bytes
 * @map: the mapping
 *
 * Return: whether a transfer has to sync its bytes, and only as far as pages are
 * neighbours in memory, too. Not so for a dma-buf.
 */
bool nymph_mapping_needs_sync(const struct nymph_mapping *map)
{
	return map->needs_sync;
}

/* --- memory that can be mapped --- */

/**
 * nymph_mappable_add() - Announce memory that devices can have mapped
 * @m: memory; buf or pages, length and write are filled in
 */
void nymph_mappable_add(struct nymph_mappable *m)
{
	mutex_init(&m->lock);
	INIT_LIST_HEAD(&m->mappings);
	mutex_lock(&nymph_mappables_lock);
	list_add_tail(&m->list, &nymph_mappables);
	mutex_unlock(&nymph_mappables_lock);
}

static void nymph_mappable_unmap(struct nymph_mappable *m,
				 const struct device *owner)
{
	struct nymph_mapping *map, *next;

	mutex_lock(&m->lock);
	list_for_each_entry_safe(map, next, &m->mappings, list) {
		if (owner && map->owner != owner)
			continue;
		list_del(&map->list);
		nymph_mapping_put(map);
	}
	mutex_unlock(&m->lock);
}

/**
 * nymph_mappable_remove() - Unmap memory from all devices for good
 * @m: memory that no operation has
 */
void nymph_mappable_remove(struct nymph_mappable *m)
{
	mutex_lock(&nymph_mappables_lock);
	list_del(&m->list);
	mutex_unlock(&nymph_mappables_lock);
	nymph_mappable_unmap(m, NULL);
	mutex_destroy(&m->lock);
}

/**
 * nymph_mappables_revoke() - Unmap all memory from a device that leaves
 * @dev: the device, whose channels cannot be taken any more
 *
 * A mapping of a quarantined operation stays until that ends.
 */
void nymph_mappables_revoke(struct device *dev)
{
	struct nymph_mappable *m;

	mutex_lock(&nymph_mappables_lock);
	list_for_each_entry(m, &nymph_mappables, list)
		nymph_mappable_unmap(m, dev);
	mutex_unlock(&nymph_mappables_lock);
}
