// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: memory of the driver's as a dma-buf, for other drivers and other
 * rings. Of locks this side takes nymph_export.lock alone: see dmabuf.c.
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
#include "nymph.h"

/**
 * struct nymph_export - memory of the driver's as a dma-buf
 * @region: the memory, held
 * @lock: serializes what follows
 * @attachments: struct nymph_export_attachment, one for each device
 */
struct nymph_export {
	struct nymph_region *region;
	struct mutex lock;	/* attachments */
	struct list_head attachments;
};

/**
 * struct nymph_export_attachment - a device that is to have the memory
 * @list: in the export's attachments
 * @dev: the device
 * @table: the memory
 * @mapped: the device has it, in @direction
 * @direction: the importer's
 */
struct nymph_export_attachment {
	struct list_head list;
	struct device *dev;
	struct sg_table table;
	bool mapped;
	enum dma_data_direction direction;
};

static int nymph_export_attach(struct dma_buf *buf,
			       struct dma_buf_attachment *attachment)
{
	struct nymph_export *export = buf->priv;
	struct nymph_pin *pin = &export->region->pin;
	struct nymph_export_attachment *a;
	size_t longest;
	int ret;

	a = kzalloc(sizeof(*a), GFP_KERNEL_ACCOUNT);
	if (!a)
		return -ENOMEM;
	longest = min_t(size_t, dma_get_max_seg_size(attachment->dev),
			dma_max_mapping_size(attachment->dev));
	longest = max_t(size_t, PAGE_SIZE, longest & PAGE_MASK);
	ret = sg_alloc_table_from_pages_segment(&a->table, pin->pages,
						pin->nr_pages, 0, buf->size,
						longest, GFP_KERNEL_ACCOUNT);
	if (ret) {
		kfree(a);
		return ret;
	}
	a->dev = attachment->dev;
	attachment->priv = a;
	mutex_lock(&export->lock);
	list_add_tail(&a->list, &export->attachments);
	mutex_unlock(&export->lock);
	return 0;
}

static void nymph_export_detach(struct dma_buf *buf,
				struct dma_buf_attachment *attachment)
{
	struct nymph_export *export = buf->priv;
	struct nymph_export_attachment *a = attachment->priv;

	mutex_lock(&export->lock);
	list_del(&a->list);
	mutex_unlock(&export->lock);
	sg_free_table(&a->table);
	kfree(a);
}

/*
 * As nymph_dma_map(): to the DMA API a mapping owns its memory, and here many
 * can have it, unless who maps does the syncing.
 */
static struct sg_table *
nymph_export_map(struct dma_buf_attachment *attachment,
		 enum dma_data_direction direction)
{
	struct nymph_export *export = attachment->dmabuf->priv;
	struct nymph_export_attachment *a = attachment->priv;
	int ret;

	ret = dma_map_sgtable(a->dev, &a->table, direction,
			      DMA_ATTR_SKIP_CPU_SYNC);
	if (ret)
		return ERR_PTR(ret);
	dma_sync_sgtable_for_device(a->dev, &a->table, direction);
	mutex_lock(&export->lock);
	a->mapped = true;
	a->direction = direction;
	mutex_unlock(&export->lock);
	return &a->table;
}

static void nymph_export_unmap(struct dma_buf_attachment *attachment,
			       struct sg_table *table,
			       enum dma_data_direction direction)
{
	struct nymph_export *export = attachment->dmabuf->priv;
	struct nymph_export_attachment *a = attachment->priv;

	mutex_lock(&export->lock);
	a->mapped = false;
	mutex_unlock(&export->lock);
	dma_sync_sgtable_for_cpu(a->dev, table, direction);
	dma_unmap_sgtable(a->dev, table, direction, DMA_ATTR_SKIP_CPU_SYNC);
}

/* Each mapping has a direction of its own, whatever the CPU is about to do. */
static int nymph_export_begin_cpu_access(struct dma_buf *buf,
					 enum dma_data_direction direction)
{
	struct nymph_export *export = buf->priv;
	struct nymph_export_attachment *a;

	mutex_lock(&export->lock);
	invalidate_kernel_vmap_range(export->region->pin.vaddr, buf->size);
	list_for_each_entry(a, &export->attachments, list)
		if (a->mapped && a->direction != DMA_TO_DEVICE)
			dma_sync_sgtable_for_cpu(a->dev, &a->table,
						 a->direction);
	mutex_unlock(&export->lock);
	return 0;
}

static int nymph_export_end_cpu_access(struct dma_buf *buf,
				       enum dma_data_direction direction)
{
	struct nymph_export *export = buf->priv;
	struct nymph_export_attachment *a;

	mutex_lock(&export->lock);
	flush_kernel_vmap_range(export->region->pin.vaddr, buf->size);
	list_for_each_entry(a, &export->attachments, list)
		if (a->mapped)
			dma_sync_sgtable_for_device(a->dev, &a->table,
						    a->direction);
	mutex_unlock(&export->lock);
	return 0;
}

/* The kernel has seen to it that this is inside the memory. */
static int nymph_export_mmap(struct dma_buf *buf, struct vm_area_struct *vma)
{
	struct nymph_export *export = buf->priv;
	unsigned long left = vma_pages(vma);

	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	vm_flags_set(vma, VM_DONTEXPAND | VM_DONTDUMP);
	return vm_insert_pages(vma, vma->vm_start,
			       export->region->pin.pages + vma->vm_pgoff,
			       &left);
}

/* Cannot fail: the kernel warns of exporters whose vmap does. */
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
	.attach = nymph_export_attach,
	.detach = nymph_export_detach,
	.map_dma_buf = nymph_export_map,
	.unmap_dma_buf = nymph_export_unmap,
	.begin_cpu_access = nymph_export_begin_cpu_access,
	.end_cpu_access = nymph_export_end_cpu_access,
	.mmap = nymph_export_mmap,
	.vmap = nymph_export_vmap,
	.release = nymph_export_release,
};

/* Once for all dma-bufs of the region, for as long as it lives. */
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
 * nymph_dmabuf_export() - make a dma-buf of memory of the driver's
 * @region: the memory; current has a reference
 *
 * Return: the dma-buf, whole pages, which holds the region and the module;
 * -EINVAL if the memory is not the driver's; -ENOMEM.
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
	INIT_LIST_HEAD(&export->attachments);
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
