// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: dma-bufs, exported by others or by this module, as memory of a ring.
 *
 * An import maps the dma-buf for the CPU. Before each chunk the executor waits for
 * the fences of others: those of writers before it reads, all of them before it
 * writes. While a channel uses the dma-buf, it has a fence of this module, see
 * fence.c.
 *
 * Locks, in this order: an engine's, nymph_dmabufs_lock, nymph_mappables_lock,
 * nymph_mappable.lock, the dma-buf's reservation, nymph_export.lock. The exporter
 * takes only the last one, so that an export of this module can be imported like any
 * other dma-buf.
 */
#include <linux/dma-buf.h>
#include <linux/dma-resv.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/iosys-map.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>

#include "compat.h"
#include "counters.h"
#include "memory.h"

NYMPH_IMPORT_NS(DMA_BUF);

/**
 * struct nymph_dmabuf - a dma-buf that rings have imported
 * @list: entry in the list of all
 * @refs: number of handles; under nymph_dmabufs_lock
 * @buf: the dma-buf
 * @length: bytes
 * @write: entries may write to it
 * @reachable: the CPU can access it, at @map
 * @map: address for the CPU
 * @mappable: mappings for devices
 */
struct nymph_dmabuf {
	struct list_head list;
	unsigned int refs;
	struct dma_buf *buf;
	u64 length;
	bool write;
	bool reachable;
	struct iosys_map map;
	struct nymph_mappable mappable;
};

static DEFINE_MUTEX(nymph_dmabufs_lock);
static LIST_HEAD(nymph_dmabufs);

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

static struct nymph_dmabuf *nymph_dmabuf_find(const struct dma_buf *buf,
					      bool write)
{
	struct nymph_dmabuf *d;

	list_for_each_entry(d, &nymph_dmabufs, list)
		if (d->buf == buf && d->write == write)
			return d;
	return NULL;
}

static struct nymph_dmabuf *nymph_dmabuf_create(struct dma_buf *buf, bool write)
{
	struct nymph_dmabuf *d;
	int ret;

	d = kzalloc(sizeof(*d), GFP_KERNEL_ACCOUNT);
	if (!d)
		return ERR_PTR(-ENOMEM);
	/* a dma-buf without vmap is for devices only: a channel may still use it */
	if (buf->ops->vmap) {
		ret = dma_buf_vmap_unlocked(buf, &d->map);
		if (ret == -ENOMEM) {
			kfree(d);
			return ERR_PTR(ret);
		}
		d->reachable = !ret;
	}
	get_dma_buf(buf);
	d->buf = buf;
	d->length = buf->size;
	d->write = write;
	d->mappable.buf = buf;
	d->mappable.length = buf->size;
	d->mappable.write = write;
	nymph_mappable_add(&d->mappable);
	list_add_tail(&d->list, &nymph_dmabufs);
	return d;
}

/**
 * nymph_dmabuf_import() - Import a dma-buf of current
 * @fd: number of the file
 * @write: whether entries may write to it
 * @length: filled: number of bytes
 *
 * A device must have a dma-buf only once, or the bounce buffers of two mappings
 * overwrite each other. So an import takes an existing one again, and the lock is
 * held until the first import is complete, and until the last one is gone.
 *
 * Return: the import, to be released with nymph_dmabuf_free(); -EBADF; -EINVAL if
 * the file is no dma-buf or has a size that no buffer can have; -EACCES if the file
 * is not open for that; -EINTR if current was killed; -ENOMEM; or an error of the
 * exporter.
 */
struct nymph_dmabuf *nymph_dmabuf_import(int fd, bool write, u64 *length)
{
	struct nymph_dmabuf *d;
	struct dma_buf *buf;
	int ret;

	buf = dma_buf_get(fd);
	if (IS_ERR(buf))
		return ERR_CAST(buf);
	ret = nymph_dmabuf_check(buf, write) ?:
	      mutex_lock_killable(&nymph_dmabufs_lock);
	if (ret) {
		dma_buf_put(buf);
		return ERR_PTR(ret);
	}
	d = nymph_dmabuf_find(buf, write) ?: nymph_dmabuf_create(buf, write);
	if (!IS_ERR(d)) {
		d->refs++;
		*length = d->length;
		nymph_count(NYMPH_COUNT_IMPORTED_BYTES, d->length);
	}
	mutex_unlock(&nymph_dmabufs_lock);
	dma_buf_put(buf);
	return d;
}

/**
 * nymph_dmabuf_free() - Release one import of a dma-buf
 * @d: the dma-buf; no engine may still use it
 */
void nymph_dmabuf_free(struct nymph_dmabuf *d)
{
	nymph_count(NYMPH_COUNT_IMPORTED_BYTES, -(long)d->length);
	mutex_lock(&nymph_dmabufs_lock);
	if (--d->refs) {
		mutex_unlock(&nymph_dmabufs_lock);
		return;
	}
	nymph_mappable_remove(&d->mappable);
	if (d->reachable)
		dma_buf_vunmap_unlocked(d->buf, &d->map);
	list_del(&d->list);
	mutex_unlock(&nymph_dmabufs_lock);
	dma_buf_put(d->buf);
	kfree(d);
}

/**
 * nymph_dmabuf_mappable() - Get a dma-buf as memory that stays mapped for devices
 * @d: the dma-buf
 *
 * Return: the memory, for nymph_mapping_get().
 */
struct nymph_mappable *nymph_dmabuf_mappable(struct nymph_dmabuf *d)
{
	return &d->mappable;
}

/**
 * nymph_dmabuf_wait() - Wait for what others do with a dma-buf
 * @d: the dma-buf
 * @write: the caller will write to it
 * @timeout: longest wait in jiffies, not 0
 *
 * No signal interrupts the wait, which is short.
 *
 * Return: whether others are done.
 */
bool nymph_dmabuf_wait(struct nymph_dmabuf *d, bool write,
		       unsigned long timeout)
{
	return nymph_fences_wait(d->buf->resv, write, timeout);
}

/**
 * nymph_dmabuf_resv() - Get the reservation object of a dma-buf
 * @d: the dma-buf
 *
 * Return: the reservation object, which holds its fences.
 */
struct dma_resv *nymph_dmabuf_resv(struct nymph_dmabuf *d)
{
	return d->buf->resv;
}

static enum dma_data_direction nymph_dmabuf_cpu_direction(bool write)
{
	/* bytes that the CPU does not write stay as devices left them: read, too */
	return write ? DMA_BIDIRECTIONAL : DMA_FROM_DEVICE;
}

/**
 * nymph_dmabuf_begin() - Begin an access of the CPU to a dma-buf
 * @d: the dma-buf
 * @write: the CPU writes
 *
 * Return: where the CPU has the dma-buf, until nymph_dmabuf_end(); NULL if the
 * exporter refuses.
 */
const struct iosys_map *nymph_dmabuf_begin(struct nymph_dmabuf *d, bool write)
{
	int ret, tries = 0;

	if (!d->reachable)
		return NULL;
	/* retry if a signal interrupts the exporter's wait for a fence */
	do {
		ret = dma_buf_begin_cpu_access(d->buf,
					       nymph_dmabuf_cpu_direction(write));
	} while ((ret == -ERESTARTSYS || ret == -EINTR) && ++tries < 3 &&
		 nymph_dmabuf_wait(d, write, NYMPH_FENCE_SLICE));
	return ret ? NULL : &d->map;
}

/**
 * nymph_dmabuf_end() - End an access of the CPU to a dma-buf
 * @d: the dma-buf
 * @write: as nymph_dmabuf_begin() was told
 *
 * Return: whether the exporter agreed.
 */
bool nymph_dmabuf_end(struct nymph_dmabuf *d, bool write)
{
	return !dma_buf_end_cpu_access(d->buf,
				       nymph_dmabuf_cpu_direction(write));
}

/**
 * nymph_dmabuf_load() - Have the CPU read a dma-buf
 * @d: the dma-buf
 * @offset: where in it to start
 * @to: kernel memory
 * @len: bytes
 *
 * Return: whether the exporter agreed.
 */
bool nymph_dmabuf_load(struct nymph_dmabuf *d, u64 offset, void *to, size_t len)
{
	if (!nymph_dmabuf_begin(d, false))
		return false;
	iosys_map_memcpy_from(to, &d->map, offset, len);
	return nymph_dmabuf_end(d, false);
}

/**
 * nymph_dmabuf_store() - Have the CPU write a dma-buf
 * @d: the dma-buf
 * @offset: where in it to start
 * @from: kernel memory
 * @len: bytes
 *
 * Return: whether the exporter agreed.
 */
bool nymph_dmabuf_store(struct nymph_dmabuf *d, u64 offset, const void *from,
			size_t len)
{
	if (!nymph_dmabuf_begin(d, true))
		return false;
	iosys_map_memcpy_to(&d->map, offset, from, len);
	return nymph_dmabuf_end(d, true);
}
