// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: memory behind a handle: the driver's own, which user space maps,
 * user memory that stays pinned, memory of the device that copies, or a dma-buf.
 */
#include <linux/anon_inodes.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched/user.h>
#include <linux/slab.h>

#include "compat.h"
#include "nymph.h"

static struct nymph_region *nymph_region_new(struct user_struct *user,
					     u64 length)
{
	struct nymph_region *region;

	region = kzalloc(sizeof(*region), GFP_KERNEL_ACCOUNT);
	if (!region)
		return NULL;
	refcount_set(&region->refs, 1);
	region->user = get_uid(user);
	region->length = length;
	return region;
}

/* A region is one if it got its memory. */
static struct nymph_region *nymph_region_filled(struct nymph_region *region,
						int error)
{
	if (!error)
		return region;
	free_uid(region->user);
	kfree(region);
	return ERR_PTR(error);
}

/* Entries may name it time and again: a device that has it keeps it. */
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
 * nymph_region_create() - allocate or pin memory
 * @ring: whose user is charged
 * @arg: op ALLOC, REGISTER, CARD or IMPORT, flags, addr, length and fd, checked;
 *	IMPORT fills its length
 *
 * Return: the region, with one reference; -ENOMEM, -EFAULT, -EOPNOTSUPP, -ENODEV,
 * -EINTR if current was killed, or what nymph_dmabuf_import() says.
 */
struct nymph_region *nymph_region_create(struct nymph_ring *ring,
					 struct nymph_buffer *arg)
{
	bool write = !(arg->flags & NYMPH_BUFFER_READ_ONLY);
	struct user_struct *user = ring->user->account;
	struct nymph_region *region;
	int ret;

	if (arg->op == NYMPH_BUFFER_REGISTER) {
		ret = nymph_check_mapped(arg->addr, arg->length,
					 write ? VM_READ | VM_WRITE : VM_READ,
					 true);
		if (ret)
			return ERR_PTR(ret);
		region = nymph_region_pin(user, arg->addr, arg->length, write);
		return IS_ERR(region) ? region :
					nymph_region_keep_mapped(region);
	}

	region = nymph_region_new(user, arg->length);
	if (!region)
		return ERR_PTR(-ENOMEM);
	if (arg->op == NYMPH_BUFFER_CARD)
		ret = nymph_pin_card(&region->pin, ring->engine, arg->length);
	else if (arg->op == NYMPH_BUFFER_IMPORT)
		ret = nymph_pin_dmabuf(&region->pin, arg->fd, write,
				       &arg->length);
	else
		ret = nymph_pin_alloc(&region->pin, user, arg->length);
	region->length = arg->length;
	region = nymph_region_filled(region, ret);
	if (!IS_ERR(region) && region->pin.pages)
		nymph_region_keep_mapped(region);
	return region;
}

/**
 * nymph_region_pin() - pin current's memory
 * @user: who is charged
 * @addr: start, checked with nymph_check_mapped()
 * @length: bytes, not 0
 * @write: whether an engine will write to it
 *
 * Return: the region, with one reference; or what nymph_pin_user() says.
 */
struct nymph_region *nymph_region_pin(struct user_struct *user, u64 addr,
				      u64 length, bool write)
{
	struct nymph_region *region = nymph_region_new(user, length);

	if (!region)
		return ERR_PTR(-ENOMEM);
	return nymph_region_filled(region, nymph_pin_user(&region->pin, user,
							  addr, length, write));
}

/**
 * nymph_region_put() - a handle, an entry or a mapping is done with the memory
 * @region: the region, or NULL
 */
void nymph_region_put(struct nymph_region *region)
{
	if (!region || !refcount_dec_and_test(&region->refs))
		return;
	if (region->pin.mappable == &region->mappable)
		nymph_mappable_remove(&region->mappable);
	nymph_unpin(&region->pin, region->user);
	free_uid(region->user);
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

/**
 * nymph_region_map() - map memory of the driver's
 * @region: current has a reference
 * @vma: what mmap() of the device is about to map
 *
 * Return: 0, -EINVAL if that is not inside the region, or not shared; -ENOMEM.
 */
int nymph_region_map(struct nymph_region *region, struct vm_area_struct *vma)
{
	unsigned long first = vma->vm_pgoff &
			      ((1UL << (NYMPH_REGION_SHIFT - PAGE_SHIFT)) - 1);
	unsigned long nr_pages = vma_pages(vma), left = nr_pages;
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

	/* one process's, as the ring is; and no core dump needs it */
	vm_flags_set(vma, VM_DONTCOPY | VM_DONTEXPAND | VM_DONTDUMP);
	return vm_insert_pages(vma, vma->vm_start, region->pin.pages + first,
			       &left);
}
