// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: dma-bufs of others, or our own again, as memory of a ring's.
 *
 * What is imported is mapped for the CPU at once. Before a piece, the executor waits
 * for the fences that others have put there: those of writers before it reads, all of
 * them before it writes. Nothing of ours is under way when an entry retires, so there
 * is no fence of ours.
 *
 * Locks, in this order: an engine's, nymph_dmabufs_lock, nymph_mappables_lock,
 * nymph_mappable.lock, the dma-buf's reservation, nymph_export.lock. The last is all
 * that the exporter's side takes, so that a dma-buf of our own can be imported like
 * any other.
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
#include "nymph.h"

NYMPH_IMPORT_NS(DMA_BUF);

/* How much goes by way of the stack where the CPU must not use memory as such. */
#define NYMPH_DMABUF_SOME	256

/**
 * struct nymph_dmabuf - a dma-buf that rings have
 * @list: in the list of all
 * @refs: how many handles it is behind; under nymph_dmabufs_lock
 * @buf: it
 * @length: bytes
 * @write: it may be written to
 * @reachable: the CPU has it, at @map
 * @map: where the CPU has it
 * @mappable: where devices have it
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
	d->mappable.buf = buf;
	d->mappable.length = buf->size;
	d->mappable.write = write;
	nymph_mappable_add(&d->mappable);
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
	nymph_mappable_remove(&d->mappable);
	if (d->reachable)
		dma_buf_vunmap_unlocked(d->buf, &d->map);
	dma_buf_put(d->buf);
	kfree(d);
}

/**
 * nymph_dmabuf_mappable() - a dma-buf, for devices to have
 * @d: the dma-buf
 */
struct nymph_mappable *nymph_dmabuf_mappable(struct nymph_dmabuf *d)
{
	return &d->mappable;
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
