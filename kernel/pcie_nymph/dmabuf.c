// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: dma-bufs of others, or our own again, as memory of a ring's.
 *
 * What is imported is mapped for a channel's device once, when the channel first
 * is to have it, and for the CPU at once. Before a piece, the executor waits for
 * the fences that others have put there: those of writers before it reads, all
 * of them before it writes. Nothing of ours is under way when an entry retires,
 * so there is no fence of ours.
 *
 * Locks, in this order: an engine's, nymph_dmabufs_lock, nymph_dmabuf.lock, the
 * dma-buf's reservation, nymph_export.lock. The last is all that the exporter's
 * side takes, so that a dma-buf of our own can be imported like any other.
 */
#include <linux/device.h>
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/iosys-map.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>

#include "compat.h"
#include "nymph.h"

NYMPH_IMPORT_NS(DMA_BUF);

/* How much goes by way of the stack where the CPU must not use memory as such. */
#define NYMPH_DMABUF_SOME	256

/* --- what a device has of it --- */

/**
 * struct nymph_dmabuf_run - bytes without a gap
 * @offset: where in the dma-buf they start
 * @dma: where the device has them
 */
struct nymph_dmabuf_run {
	u64 offset;
	dma_addr_t dma;
};

/**
 * struct nymph_dmabuf_map - a dma-buf as a device has it
 * @list: in the dma-buf's maps
 * @refs: the dma-buf's, and one for each operation that a channel may be at
 * @dev: what it is mapped for; held
 * @owner: the device whose driver's leaving ends it
 * @attachment: the kernel's
 * @sgt: the kernel's
 * @direction: of @sgt
 * @nr_runs: how many
 * @runs: where it is, in the order of their offsets
 */
struct nymph_dmabuf_map {
	struct list_head list;
	refcount_t refs;
	struct device *dev;
	struct device *owner;
	struct dma_buf_attachment *attachment;
	struct sg_table *sgt;
	enum dma_data_direction direction;
	unsigned int nr_runs;
	struct nymph_dmabuf_run *runs;
};

/**
 * struct nymph_dmabuf - a dma-buf that rings have
 * @list: in the list of all
 * @refs: how many handles it is behind; under nymph_dmabufs_lock
 * @buf: it
 * @length: bytes
 * @write: it may be written to
 * @reachable: the CPU has it, at @map
 * @map: where the CPU has it
 * @lock: serializes @maps
 * @maps: where devices have it
 */
struct nymph_dmabuf {
	struct list_head list;
	unsigned int refs;
	struct dma_buf *buf;
	u64 length;
	bool write;
	bool reachable;
	struct iosys_map map;
	struct mutex lock;	/* maps */
	struct list_head maps;
};

static DEFINE_MUTEX(nymph_dmabufs_lock);
static LIST_HEAD(nymph_dmabufs);

/**
 * nymph_dmabuf_map_put() - somebody is done with a mapping
 * @map: the mapping, or NULL; no device may still use it
 */
void nymph_dmabuf_map_put(struct nymph_dmabuf_map *map)
{
	struct dma_buf *buf;

	if (!map || !refcount_dec_and_test(&map->refs))
		return;
	buf = map->attachment->dmabuf;
	dma_buf_unmap_attachment_unlocked(map->attachment, map->sgt,
					  map->direction);
	dma_buf_detach(buf, map->attachment);
	put_device(map->dev);
	kvfree(map->runs);
	kfree(map);
}

/* Neighbours in the table that are neighbours for the device become one. */
static int nymph_dmabuf_map_fill(struct nymph_dmabuf_map *map, u64 length)
{
	struct scatterlist *sg;
	u64 offset = 0;
	dma_addr_t end = 0;
	unsigned int i;

	map->runs = kvmalloc_array(map->sgt->nents, sizeof(*map->runs),
				   GFP_KERNEL_ACCOUNT);
	if (!map->runs)
		return -ENOMEM;
	for_each_sgtable_dma_sg(map->sgt, sg, i) {
		if (!map->nr_runs || sg_dma_address(sg) != end)
			map->runs[map->nr_runs++] = (struct nymph_dmabuf_run) {
				.offset = offset,
				.dma = sg_dma_address(sg),
			};
		end = sg_dma_address(sg) + sg_dma_len(sg);
		offset += sg_dma_len(sg);
	}
	return offset < length ? -EXDEV : 0;
}

static struct nymph_dmabuf_map *nymph_dmabuf_map_create(struct nymph_dmabuf *d,
							struct device *dev,
							struct device *owner)
{
	struct nymph_dmabuf_map *map;
	int ret;

	map = kzalloc(sizeof(*map), GFP_KERNEL_ACCOUNT);
	if (!map)
		return ERR_PTR(-ENOMEM);
	refcount_set(&map->refs, 1);
	map->owner = owner;
	map->direction = d->write ? DMA_BIDIRECTIONAL : DMA_TO_DEVICE;
	map->attachment = dma_buf_attach(d->buf, dev);
	if (IS_ERR(map->attachment)) {
		ret = PTR_ERR(map->attachment);
		goto free;
	}
	map->sgt = dma_buf_map_attachment_unlocked(map->attachment,
						   map->direction);
	if (IS_ERR(map->sgt)) {
		ret = PTR_ERR(map->sgt);
		goto detach;
	}
	map->dev = get_device(dev);
	ret = nymph_dmabuf_map_fill(map, d->length);
	if (ret) {
		nymph_dmabuf_map_put(map);
		return ERR_PTR(ret);
	}
	return map;

detach:
	dma_buf_detach(d->buf, map->attachment);
free:
	kfree(map);
	return ERR_PTR(ret);
}

/**
 * nymph_dmabuf_map_get() - have a device have a dma-buf
 * @d: the dma-buf
 * @dev: what is to be mapped for
 * @owner: the device of the channel, whose driver can't be unbound meanwhile
 *
 * Return: the mapping, with a reference; -ENOMEM; -EXDEV if the exporter does
 * not give it to that device.
 */
struct nymph_dmabuf_map *nymph_dmabuf_map_get(struct nymph_dmabuf *d,
					      struct device *dev,
					      struct device *owner)
{
	struct nymph_dmabuf_map *map;

	mutex_lock(&d->lock);
	list_for_each_entry(map, &d->maps, list)
		if (map->dev == dev)
			goto found;
	map = nymph_dmabuf_map_create(d, dev, owner);
	if (IS_ERR(map)) {
		if (map != ERR_PTR(-ENOMEM))
			map = ERR_PTR(-EXDEV);
		goto unlock;
	}
	list_add(&map->list, &d->maps);
found:
	refcount_inc(&map->refs);
unlock:
	mutex_unlock(&d->lock);
	return map;
}

/**
 * nymph_dmabuf_map_at() - where a device has bytes of a dma-buf
 * @map: the mapping
 * @offset: which, inside the dma-buf
 * @len: how many; lowered to those that are neighbours
 *
 * Return: the address of the first.
 */
dma_addr_t nymph_dmabuf_map_at(const struct nymph_dmabuf_map *map, u64 offset,
			       size_t *len)
{
	unsigned int first = 0, end = map->nr_runs;

	/* the last that does not start behind it; the first starts at 0 */
	while (end - first > 1) {
		unsigned int middle = first + (end - first) / 2;

		if (map->runs[middle].offset <= offset)
			first = middle;
		else
			end = middle;
	}
	if (end < map->nr_runs)
		*len = min_t(u64, *len, map->runs[end].offset - offset);
	return map->runs[first].dma + (offset - map->runs[first].offset);
}

static void nymph_dmabuf_unmap(struct nymph_dmabuf *d,
			       const struct device *owner)
{
	struct nymph_dmabuf_map *map, *next;

	mutex_lock(&d->lock);
	list_for_each_entry_safe(map, next, &d->maps, list) {
		if (owner && map->owner != owner)
			continue;
		list_del(&map->list);
		nymph_dmabuf_map_put(map);
	}
	mutex_unlock(&d->lock);
}

/**
 * nymph_dmabufs_withdraw() - a device leaves
 * @dev: the device; no channel of it can be had any more
 *
 * A mapping that an operation in quarantine has stays until that ends.
 */
void nymph_dmabufs_withdraw(struct device *dev)
{
	struct nymph_dmabuf *d;

	mutex_lock(&nymph_dmabufs_lock);
	list_for_each_entry(d, &nymph_dmabufs, list)
		nymph_dmabuf_unmap(d, dev);
	mutex_unlock(&nymph_dmabufs_lock);
}

/* --- a ring's --- */

/*
 * A ring's memory is read back, hashed and compared, so it has to be readable
 * as well.
 */
static int nymph_dmabuf_check(const struct dma_buf *buf, bool write)
{
	fmode_t needed = write ? FMODE_READ | FMODE_WRITE : FMODE_READ;

	if ((buf->file->f_mode & needed) != needed)
		return -EACCES;
	return buf->size && buf->size <= NYMPH_MAX_LENGTH ? 0 : -EINVAL;
}

/*
 * The one that is imported already: a device is to have a dma-buf only once, or
 * the bounce buffers of two mappings would overwrite each other.
 */
static struct nymph_dmabuf *nymph_dmabuf_again(const struct dma_buf *buf,
					       bool write)
{
	struct nymph_dmabuf *d;

	mutex_lock(&nymph_dmabufs_lock);
	list_for_each_entry(d, &nymph_dmabufs, list) {
		if (d->buf == buf && d->write == write) {
			d->refs++;
			goto unlock;
		}
	}
	d = NULL;
unlock:
	mutex_unlock(&nymph_dmabufs_lock);
	return d;
}

/**
 * nymph_dmabuf_import() - take a dma-buf of current's
 * @fd: number of the file
 * @write: whether entries may write to it
 * @length: filled: how many bytes it has
 *
 * Return: it, to be given back with nymph_dmabuf_free(); -EBADF, -EINVAL if it is
 * no dma-buf or has no size that a buffer can have, -EACCES if the file is not
 * open for that; -ENOMEM, or what else its exporter says.
 */
struct nymph_dmabuf *nymph_dmabuf_import(int fd, bool write, u64 *length)
{
	struct nymph_dmabuf *d;
	struct dma_buf *buf;
	int ret;

	buf = dma_buf_get(fd);
	if (IS_ERR(buf))
		return ERR_CAST(buf);
	ret = nymph_dmabuf_check(buf, write);
	if (ret)
		goto put;
	d = nymph_dmabuf_again(buf, write);
	if (d) {
		dma_buf_put(buf);
		goto count;
	}
	ret = -ENOMEM;
	d = kzalloc(sizeof(*d), GFP_KERNEL_ACCOUNT);
	if (!d)
		goto put;
	d->refs = 1;
	d->buf = buf;
	d->length = buf->size;
	d->write = write;
	/* some are a device's alone; then a channel may still have it */
	if (buf->ops->vmap) {
		ret = dma_buf_vmap_unlocked(buf, &d->map);
		if (ret == -ENOMEM)
			goto free;
		d->reachable = !ret;
	}
	mutex_init(&d->lock);
	INIT_LIST_HEAD(&d->maps);
	mutex_lock(&nymph_dmabufs_lock);
	list_add_tail(&d->list, &nymph_dmabufs);
	mutex_unlock(&nymph_dmabufs_lock);
count:
	nymph_count(NYMPH_COUNT_IMPORTED_BYTES, d->length);
	*length = d->length;
	return d;

free:
	kfree(d);
put:
	dma_buf_put(buf);
	return ERR_PTR(ret);
}

/**
 * nymph_dmabuf_free() - give a dma-buf back
 * @d: the dma-buf; no engine may still use it
 */
void nymph_dmabuf_free(struct nymph_dmabuf *d)
{
	bool last;

	nymph_count(NYMPH_COUNT_IMPORTED_BYTES, -(long)d->length);
	mutex_lock(&nymph_dmabufs_lock);
	last = !--d->refs;
	if (last)
		list_del(&d->list);
	mutex_unlock(&nymph_dmabufs_lock);
	if (!last)
		return;
	nymph_dmabuf_unmap(d, NULL);
	if (d->reachable)
		dma_buf_vunmap_unlocked(d->buf, &d->map);
	dma_buf_put(d->buf);
	mutex_destroy(&d->lock);
	kfree(d);
}

/**
 * nymph_dmabuf_wait() - wait for what others do with a dma-buf
 * @d: the dma-buf
 * @write: whether it is to be written to
 * @timeout: for so many jiffies, not 0
 *
 * Not for a signal's sake less long: it is for short times.
 *
 * Return: whether all is done.
 */
bool nymph_dmabuf_wait(struct nymph_dmabuf *d, bool write,
		       unsigned long timeout)
{
	return dma_resv_wait_timeout(d->buf->resv, dma_resv_usage_rw(write),
				     false, timeout) > 0;
}

static enum dma_data_direction nymph_dmabuf_cpu_direction(bool write)
{
	/* what is not written stays as devices left it, so it is read as well */
	return write ? DMA_BIDIRECTIONAL : DMA_FROM_DEVICE;
}

/* Returns whether the CPU may be at it; it may then until nymph_dmabuf_end(). */
static bool nymph_dmabuf_begin(struct nymph_dmabuf *d, bool write)
{
	int ret, tries = 0;

	if (!d->reachable)
		return false;
	/* a signal that cuts short a wait for a fence is no reason to fail */
	do {
		ret = dma_buf_begin_cpu_access(d->buf,
					       nymph_dmabuf_cpu_direction(write));
	} while ((ret == -ERESTARTSYS || ret == -EINTR) && ++tries < 3 &&
		 nymph_dmabuf_wait(d, write, NYMPH_FENCE_SLICE));
	return !ret;
}

static bool nymph_dmabuf_end(struct nymph_dmabuf *d, bool write)
{
	return !dma_buf_end_cpu_access(d->buf,
				       nymph_dmabuf_cpu_direction(write));
}

/**
 * nymph_dmabuf_load() - have the CPU read
 * @d: the dma-buf
 * @offset: where in it to start
 * @to: kernel memory
 * @len: bytes
 *
 * Return: whether its exporter let it.
 */
bool nymph_dmabuf_load(struct nymph_dmabuf *d, u64 offset, void *to, size_t len)
{
	if (!nymph_dmabuf_begin(d, false))
		return false;
	iosys_map_memcpy_from(to, &d->map, offset, len);
	return nymph_dmabuf_end(d, false);
}

/**
 * nymph_dmabuf_store() - have the CPU write
 * @d: the dma-buf
 * @offset: where in it to start
 * @from: kernel memory
 * @len: bytes
 *
 * Return: whether its exporter let it.
 */
bool nymph_dmabuf_store(struct nymph_dmabuf *d, u64 offset, const void *from,
			size_t len)
{
	if (!nymph_dmabuf_begin(d, true))
		return false;
	iosys_map_memcpy_to(&d->map, offset, from, len);
	return nymph_dmabuf_end(d, true);
}

/**
 * nymph_dmabuf_hash() - have the CPU hash
 * @d: the dma-buf
 * @offset: where in it to start
 * @len: bytes
 * @hash: is updated
 *
 * Return: whether its exporter let it.
 */
bool nymph_dmabuf_hash(struct nymph_dmabuf *d, u64 offset, size_t len,
		       struct nymph_blake3 *hash)
{
	u8 some[NYMPH_DMABUF_SOME];
	size_t n;

	if (!nymph_dmabuf_begin(d, false))
		return false;
	if (!d->map.is_iomem) {
		nymph_blake3_update(hash, d->map.vaddr + offset, len);
		len = 0;
	}
	for (; len; len -= n, offset += n) {
		n = min(len, sizeof(some));
		iosys_map_memcpy_from(some, &d->map, offset, n);
		nymph_blake3_update(hash, some, n);
	}
	return nymph_dmabuf_end(d, false);
}

/**
 * nymph_dmabuf_copy() - have the CPU copy
 * @dst: where to
 * @dst_off: where in it
 * @src: where from; one of the two is a dma-buf
 * @src_off: where in it
 * @len: bytes
 *
 * Return: whether the memory is still there, and all exporters let it.
 */
bool nymph_dmabuf_copy(const struct nymph_pin *dst, u64 dst_off,
		       const struct nymph_pin *src, u64 src_off, size_t len)
{
	bool write = !src->dmabuf, there = true;
	struct nymph_dmabuf *d = write ? dst->dmabuf : src->dmabuf;
	u8 some[NYMPH_DMABUF_SOME];
	size_t n;

	if (!nymph_dmabuf_begin(d, write))
		return false;
	if (!d->map.is_iomem) {
		there = write ? nymph_pin_load(src, src_off,
					       d->map.vaddr + dst_off, len) :
				nymph_pin_store(dst, dst_off,
						d->map.vaddr + src_off, len);
		len = 0;
	}
	for (; there && len; len -= n, dst_off += n, src_off += n) {
		n = min(len, sizeof(some));
		if (write) {
			there = nymph_pin_load(src, src_off, some, n);
			if (there)
				iosys_map_memcpy_to(&d->map, dst_off, some, n);
		} else {
			iosys_map_memcpy_from(some, &d->map, src_off, n);
			there = nymph_pin_store(dst, dst_off, some, n);
		}
	}
	return nymph_dmabuf_end(d, write) && there;
}
