// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: driver memory as a dma-buf, for other drivers and other rings. The
 * exporter takes only nymph_export.lock; dmabuf.c says why.
 */
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/iosys-map.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "compat.h"
#include "counters.h"
#include "memory.h"

/**
 * struct nymph_export - driver memory as a dma-buf
 * @region: the memory, with a reference
 * @lock: serializes @mappings
 * @mappings: list of struct nymph_export_mapping, any number for each device
 */
struct nymph_export {
	struct nymph_region *region;
	struct mutex lock;	/* mappings */
	struct list_head mappings;
};

/**
 * struct nymph_export_mapping - a mapping of the memory for a device
 * @list: entry in nymph_export.mappings
 * @dev: the device
 * @table: the mapped table that the importer has
 * @direction: direction that the importer asked for
 */
struct nymph_export_mapping {
	struct list_head list;
	struct device *dev;
	struct sg_table table;
	enum dma_data_direction direction;
};

/* Returns the longest part, in bytes, of a table that is mapped for a device. */
static size_t nymph_export_longest(struct device *dev)
{
	size_t longest = min_t(size_t, dma_get_max_seg_size(dev),
			       dma_max_mapping_size(dev));

	return max_t(size_t, PAGE_SIZE, longest & PAGE_MASK);
}

/*
 * An importer may map an attachment more than once, so each mapping has its own
 * table. To the DMA API a mapping owns its memory, but here several mappings share
 * it: so this function syncs, as nymph_dma_map() does, and the DMA API does not.
 */
static struct sg_table *
nymph_export_map(struct dma_buf_attachment *attachment,
		 enum dma_data_direction direction)
{
	struct nymph_export *export = attachment->dmabuf->priv;
	struct nymph_pin *pin = &export->region->pin;
	struct nymph_export_mapping *map;
	int ret;

	map = kzalloc(sizeof(*map), GFP_KERNEL_ACCOUNT);
	if (!map)
		return ERR_PTR(-ENOMEM);
	map->dev = attachment->dev;
	map->direction = direction;
	ret = sg_alloc_table_from_pages_segment(&map->table, pin->pages,
						pin->nr_pages, 0,
						attachment->dmabuf->size,
						nymph_export_longest(map->dev),
						NYMPH_GFP_SIZED);
	if (ret)
		goto free;
	ret = dma_map_sgtable(map->dev, &map->table, direction,
			      NYMPH_DMA_ATTRS);
	if (ret)
		goto table;
	dma_sync_sgtable_for_device(map->dev, &map->table, direction);
	mutex_lock(&export->lock);
	list_add_tail(&map->list, &export->mappings);
	mutex_unlock(&export->lock);
	return &map->table;

table:
	sg_free_table(&map->table);
free:
	kfree(map);
	return ERR_PTR(ret);
}

static void nymph_export_unmap(struct dma_buf_attachment *attachment,
			       struct sg_table *table,
			       enum dma_data_direction direction)
{
	struct nymph_export *export = attachment->dmabuf->priv;
	struct nymph_export_mapping *map;

	map = container_of(table, struct nymph_export_mapping, table);
	mutex_lock(&export->lock);
	list_del(&map->list);
	mutex_unlock(&export->lock);
	dma_sync_sgtable_for_cpu(map->dev, table, direction);
	dma_unmap_sgtable(map->dev, table, direction, NYMPH_DMA_ATTRS);
	sg_free_table(table);
	kfree(map);
}

/* Uses the direction of each mapping, and not that of the CPU's access. */
static int nymph_export_begin_cpu_access(struct dma_buf *buf,
					 enum dma_data_direction direction)
{
	struct nymph_export *export = buf->priv;
	struct nymph_export_mapping *map;

	mutex_lock(&export->lock);
	invalidate_kernel_vmap_range(export->region->pin.vaddr, buf->size);
	list_for_each_entry(map, &export->mappings, list)
		if (map->direction != DMA_TO_DEVICE)
			dma_sync_sgtable_for_cpu(map->dev, &map->table,
						 map->direction);
	mutex_unlock(&export->lock);
	return 0;
}

static int nymph_export_end_cpu_access(struct dma_buf *buf,
				       enum dma_data_direction direction)
{
	struct nymph_export *export = buf->priv;
	struct nymph_export_mapping *map;

	mutex_lock(&export->lock);
	flush_kernel_vmap_range(export->region->pin.vaddr, buf->size);
	list_for_each_entry(map, &export->mappings, list)
		dma_sync_sgtable_for_device(map->dev, &map->table,
					    map->direction);
	mutex_unlock(&export->lock);
	return 0;
}

/* dma_buf_mmap() has checked that the range is inside the memory. */
static int nymph_export_mmap(struct dma_buf *buf, struct vm_area_struct *vma)
{
	struct nymph_export *export = buf->priv;

	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	return nymph_region_fill(export->region, vma);
}

/* Cannot fail: the kernel warns about exporters whose vmap fails. */
static int nymph_export_vmap(struct dma_buf *buf, struct iosys_map *map)
{
	struct nymph_export *export = buf->priv;

	iosys_map_set_vaddr(map, export->region->pin.vaddr);
	return 0;
}

static void nymph_export_free(struct nymph_export *export)
{
	nymph_region_put(export->region);
	mutex_destroy(&export->lock);
	kfree(export);
	nymph_count(NYMPH_COUNT_EXPORTS, -1);
}

static void nymph_export_release(struct dma_buf *buf)
{
	nymph_export_free(buf->priv);
}

static const struct dma_buf_ops nymph_export_ops = {
	.map_dma_buf = nymph_export_map,
	.unmap_dma_buf = nymph_export_unmap,
	.begin_cpu_access = nymph_export_begin_cpu_access,
	.end_cpu_access = nymph_export_end_cpu_access,
	.mmap = nymph_export_mmap,
	.vmap = nymph_export_vmap,
	.release = nymph_export_release,
};

/* Maps the region for the CPU, once for all its dma-bufs, until the region is freed. */
static bool nymph_export_vmap_region(struct nymph_pin *pin)
{
	void *vaddr;

	if (READ_ONCE(pin->vaddr))
		return true;
	vaddr = vmap(pin->pages, pin->nr_pages, VM_MAP, PAGE_KERNEL);
	if (!vaddr)
		return false;
	if (cmpxchg(&pin->vaddr, NULL, vaddr))
		vunmap(vaddr);
	return true;
}

/**
 * nymph_dmabuf_export() - Export memory of the driver as a dma-buf
 * @region: the memory; the caller has a reference
 *
 * The dma-buf has references to the region and the module.
 *
 * Return: the dma-buf, a whole number of pages; -EINVAL if the memory is not the
 * driver's; or -ENOMEM.
 */
struct dma_buf *nymph_dmabuf_export(struct nymph_region *region)
{
	DEFINE_DMA_BUF_EXPORT_INFO(info);
	struct nymph_export *export;
	struct dma_buf *buf;

	if (!region->pin.ours)
		return ERR_PTR(-EINVAL);
	if (!nymph_export_vmap_region(&region->pin))
		return ERR_PTR(-ENOMEM);
	export = kzalloc(sizeof(*export), GFP_KERNEL_ACCOUNT);
	if (!export)
		return ERR_PTR(-ENOMEM);
	refcount_inc(&region->refs);
	export->region = region;
	mutex_init(&export->lock);
	INIT_LIST_HEAD(&export->mappings);
	nymph_count(NYMPH_COUNT_EXPORTS, 1);

	info.ops = &nymph_export_ops;
	info.size = region->pin.nr_pages << PAGE_SHIFT;
	info.flags = O_RDWR;
	info.priv = export;
	buf = dma_buf_export(&info);
	if (IS_ERR(buf))
		nymph_export_free(export);
	return buf;
}
