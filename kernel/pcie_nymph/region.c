// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: regions: memory behind a handle, and the handles of a ring. The memory
 * is the driver's own, which user space maps; pinned user memory; memory of the
 * engine's device; or a dma-buf.
 */
#include <linux/anon_inodes.h>
#include <linux/cred.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "compat.h"
#include "ring.h"

static struct nymph_region *nymph_region_new(const struct cred *cred,
					     u64 length)
{
	struct nymph_region *region;

	region = kzalloc(sizeof(*region), GFP_KERNEL_ACCOUNT);
	if (!region)
		return NULL;
	refcount_set(&region->refs, 1);
	region->cred = get_cred(cred);
	region->length = length;
	return region;
}

/* Returns the region, or frees it and returns the error. */
static struct nymph_region *nymph_region_filled(struct nymph_region *region,
						int error)
{
	if (!error)
		return region;
	put_cred(region->cred);
	kfree(region);
	return ERR_PTR(error);
}

/* Keeps the memory mapped for devices: entries may name it again and again. */
static struct nymph_region *nymph_region_keep_mapped(struct nymph_region *region)
{
	struct nymph_pin *pin = &region->pin;

	region->mappable.pages = pin->pages;
	region->mappable.nr_pages = pin->nr_pages;
	region->mappable.length = (u64)pin->nr_pages << PAGE_SHIFT;
	region->mappable.write = pin->write;
	nymph_mappable_add(&region->mappable);
	pin->mappable = &region->mappable;
	return region;
}

/**
 * nymph_region_create() - Allocate, pin or import memory for a handle
 * @cred: of the user who is charged
 * @engine: the ring's engine, whose device has the memory that CARD takes
 * @arg: op ALLOC, REGISTER, CARD or IMPORT, flags, addr, length and fd, checked;
 *	IMPORT fills its length
 *
 * Return: the region, with one reference; -ENOMEM, -EFAULT, -EOPNOTSUPP, -ENODEV,
 * -EINTR if current was killed, or what nymph_dmabuf_import() says.
 */
struct nymph_region *nymph_region_create(const struct cred *cred,
					 struct nymph_engine *engine,
					 struct nymph_buffer *arg)
{
	bool write = !(arg->flags & NYMPH_BUFFER_READ_ONLY);
	struct nymph_region *region;
	int ret;

	if (arg->op == NYMPH_BUFFER_REGISTER) {
		ret = nymph_check_mapped(arg->addr, arg->length,
					 write ? VM_READ | VM_WRITE : VM_READ,
					 true);
		if (ret)
			return ERR_PTR(ret);
		region = nymph_region_pin(cred, arg->addr, arg->length, write);
		return IS_ERR(region) ? region :
					nymph_region_keep_mapped(region);
	}

	region = nymph_region_new(cred, arg->length);
	if (!region)
		return ERR_PTR(-ENOMEM);
	if (arg->op == NYMPH_BUFFER_CARD)
		ret = nymph_pin_card(&region->pin, engine, arg->length);
	else if (arg->op == NYMPH_BUFFER_IMPORT)
		ret = nymph_pin_dmabuf(&region->pin, arg->fd, write,
				       &arg->length);
	else
		ret = nymph_pin_alloc(&region->pin, cred->user, arg->length);
	region->length = arg->length;
	region = nymph_region_filled(region, ret);
	if (!IS_ERR(region) && region->pin.pages)
		nymph_region_keep_mapped(region);
	return region;
}

/**
 * nymph_region_pin() - Pin current's memory
 * @cred: of the user who is charged
 * @addr: start, checked with nymph_check_mapped()
 * @length: bytes, not 0
 * @write: whether an engine will write to it
 *
 * Return: the region, with one reference; or what nymph_pin_user() says.
 */
struct nymph_region *nymph_region_pin(const struct cred *cred, u64 addr,
				      u64 length, bool write)
{
	struct nymph_region *region = nymph_region_new(cred, length);

	if (!region)
		return ERR_PTR(-ENOMEM);
	return nymph_region_filled(region,
				   nymph_pin_user(&region->pin, cred->user,
						  addr, length, write));
}

/**
 * nymph_region_put() - Drop a reference to a region
 * @region: the region, or NULL
 */
void nymph_region_put(struct nymph_region *region)
{
	if (!region || !refcount_dec_and_test(&region->refs))
		return;
	if (region->pin.mappable == &region->mappable)
		nymph_mappable_remove(&region->mappable);
	nymph_unpin(&region->pin, region->cred->user);
	put_cred(region->cred);
	kfree(region);
}

static int nymph_region_release(struct inode *inode, struct file *file)
{
	nymph_region_put(file->private_data);
	return 0;
}

static const struct file_operations nymph_region_fops = {
	.owner = THIS_MODULE,
	.release = nymph_region_release,
};

/* Pages come back after MADV_DONTNEED, as those of a file do. */
static vm_fault_t nymph_region_fault(struct vm_fault *vmf)
{
	const struct nymph_pin *pin =
		&((struct nymph_region *)vmf->vma->vm_private_data)->pin;
	unsigned long i = vmf->pgoff & (NYMPH_REGION_PAGES - 1);

	if (i >= pin->nr_pages)
		return VM_FAULT_SIGBUS;
	vmf->page = pin->pages[i];
	get_page(vmf->page);
	return 0;
}

static const struct vm_operations_struct nymph_region_vm_ops = {
	.fault = nymph_region_fault,
};

/**
 * nymph_region_fill() - Fill a mapping with the memory of a region
 * @region: memory of the driver; the mapping's file holds the region
 * @vma: the mapping, inside the region; the lower bits of its offset are those
 *	into the region
 *
 * Return: 0 or -ENOMEM.
 */
int nymph_region_fill(struct nymph_region *region, struct vm_area_struct *vma)
{
	unsigned long first = vma->vm_pgoff & (NYMPH_REGION_PAGES - 1);
	unsigned long left = vma_pages(vma);

	vma->vm_private_data = region;
	vma->vm_ops = &nymph_region_vm_ops;
	/* no core dump needs it */
	vm_flags_set(vma, VM_DONTEXPAND | VM_DONTDUMP);
	return vm_insert_pages(vma, vma->vm_start, region->pin.pages + first,
			       &left);
}

/**
 * nymph_region_map() - Map memory of the driver into a process
 * @region: current has a reference
 * @vma: what mmap() of the device is about to map
 *
 * Return: 0, -EINVAL if that is not inside the region, or not shared; -ENOMEM.
 */
int nymph_region_map(struct nymph_region *region, struct vm_area_struct *vma)
{
	unsigned long first = vma->vm_pgoff & (NYMPH_REGION_PAGES - 1);
	unsigned long nr_pages = vma_pages(vma);
	struct file *file;

	if (!region->pin.ours || !(vma->vm_flags & VM_SHARED) ||
	    first > region->pin.nr_pages ||
	    nr_pages > region->pin.nr_pages - first)
		return -EINVAL;

	/* a mapping of the device itself would keep that open after close() */
	file = anon_inode_getfile("[pcie_nymph buffer]", &nymph_region_fops,
				  region, O_RDWR);
	if (IS_ERR(file))
		return PTR_ERR(file);
	refcount_inc(&region->refs);
	vma_set_file(vma, file);
	fput(file);

	/* one process's, as the ring is */
	vm_flags_set(vma, VM_DONTCOPY);
	return nymph_region_fill(region, vma);
}

/**
 * nymph_region_add() - Give a region a handle
 * @ring: a live ring; the caller holds the context's lock, so it stays alive
 * @region: the region, whose reference the ring owns from now on
 * @handle: filled
 *
 * Return: 0; -EMFILE if all handles are in use; -ENOMEM.
 */
int nymph_region_add(struct nymph_ring *ring, struct nymph_region *region,
		     u32 *handle)
{
	int ret;

	mutex_lock(&ring->lock);
	ret = xa_alloc(&ring->carried->regions, handle, region,
		       XA_LIMIT(1, NYMPH_MAX_REGIONS - 1), GFP_KERNEL_ACCOUNT);
	mutex_unlock(&ring->lock);
	return ret == -EBUSY ? -EMFILE : ret;
}

/**
 * nymph_region_remove() - Take a handle from its region
 * @ring: a live ring; the caller holds the context's lock, so it stays alive
 * @handle: the handle
 *
 * Return: the region, whose reference the caller owns now; or NULL.
 */
struct nymph_region *nymph_region_remove(struct nymph_ring *ring, u32 handle)
{
	struct nymph_region *region;

	mutex_lock(&ring->lock);
	region = xa_erase(&ring->carried->regions, handle);
	mutex_unlock(&ring->lock);
	return region;
}

/**
 * nymph_region_find() - Look up the region that a handle names
 * @ring: the ring; the caller holds its lock
 * @handle: the handle
 *
 * Return: the region, with a reference; -ENOENT, or -ESTALE if the ring was
 * reset or replaced.
 */
struct nymph_region *nymph_region_find(struct nymph_ring *ring, u32 handle)
{
	struct nymph_region *region;

	lockdep_assert_held(&ring->lock);
	if (ring->dead)
		return ERR_PTR(-ESTALE);
	region = xa_load(&ring->carried->regions, handle);
	if (!region)
		return ERR_PTR(-ENOENT);
	refcount_inc(&region->refs);
	return region;
}

/**
 * nymph_region_get() - Look up the region that a handle names
 * @ring: the ring
 * @handle: the handle
 *
 * Return: as nymph_region_find().
 */
struct nymph_region *nymph_region_get(struct nymph_ring *ring, u32 handle)
{
	struct nymph_region *region;

	mutex_lock(&ring->lock);
	region = nymph_region_find(ring, handle);
	mutex_unlock(&ring->lock);
	return region;
}
