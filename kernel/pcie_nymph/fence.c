// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: fences that tell others that a channel uses a dma-buf. An operation
 * has a fence from the first transaction that the channel is given to the last
 * callback, or to its deadline. During that time the driver waits only for the
 * channel.
 *
 * An access of the CPU has no fence: it lies between the exporter's begin and end
 * of a CPU access.
 *
 * Fence contexts tell fences of the module from those of others. A ring does not wait
 * for fences of another ring: overlapping transfers leave undefined data, as in any
 * buffer.
 */
#include <linux/atomic.h>
#include <linux/dma-buf.h>
#include <linux/dma-fence.h>
#include <linux/dma-resv.h>
#include <linux/limits.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/workqueue.h>

#include "dma.h"

/**
 * struct nymph_fence - fence of an operation
 * @fence: the fence; the first member, because RCU frees the struct by its address
 * @lock: lock of @fence
 * @put_work: drops the reference to the module, which has the fence's code
 * @name: name of the channel
 */
struct nymph_fence {
	struct dma_fence fence;
	spinlock_t lock;	/* the fence's own */
	struct work_struct put_work;
	char name[NYMPH_ENGINE_NAME_SIZE];
};

/* Operations have no order, so each has its own fence context. */
static u64 nymph_fence_contexts;
static atomic_t nymph_fence_last;

/* Returns false before nymph_fences_init(): Linux 6.1 runs KUnit tests that early. */
static bool nymph_fence_is_ours(const struct dma_fence *fence)
{
	return nymph_fence_contexts &&
	       fence->context - nymph_fence_contexts < UINT_MAX;
}

static struct nymph_fence *to_nymph_fence(struct dma_fence *fence)
{
	return container_of(fence, struct nymph_fence, fence);
}

static const char *nymph_fence_driver_name(struct dma_fence *fence)
{
	return "pcie_nymph";
}

static const char *nymph_fence_timeline_name(struct dma_fence *fence)
{
	return to_nymph_fence(fence)->name;
}

static void nymph_fence_put_work(struct work_struct *work)
{
	struct nymph_fence *f = container_of(work, struct nymph_fence, put_work);

	dma_fence_free(&f->fence);
	/* the unloading of the module waits for the workqueue */
	module_put(THIS_MODULE);
}

static void nymph_fence_release(struct dma_fence *fence)
{
	queue_work(nymph_dma_wq, &to_nymph_fence(fence)->put_work);
}

static const struct dma_fence_ops nymph_fence_ops = {
	.get_driver_name = nymph_fence_driver_name,
	.get_timeline_name = nymph_fence_timeline_name,
	.release = nymph_fence_release,
};

static struct dma_fence *nymph_fence_create(const char *name)
{
	struct nymph_fence *f = kzalloc(sizeof(*f), GFP_KERNEL);
	u32 number = (u32)atomic_inc_return(&nymph_fence_last) % UINT_MAX;

	if (!f)
		return NULL;
	__module_get(THIS_MODULE);
	spin_lock_init(&f->lock);
	INIT_WORK(&f->put_work, nymph_fence_put_work);
	strscpy(f->name, name, sizeof(f->name));
	dma_fence_init(&f->fence, &nymph_fence_ops, &f->lock,
		       nymph_fence_contexts + number, 1);
	return &f->fence;
}

/**
 * nymph_fences_init() - Reserve the fence contexts of the module
 */
void nymph_fences_init(void)
{
	nymph_fence_contexts = dma_fence_context_alloc(UINT_MAX);
}

/**
 * nymph_fences_wait() - Wait until others have finished with a dma-buf
 * @resv: reservation object of the dma-buf
 * @write: the caller will write to it
 * @timeout: longest wait in jiffies, not 0
 *
 * No signal interrupts the wait, which is short.
 *
 * Return: whether others have finished.
 */
bool nymph_fences_wait(struct dma_resv *resv, bool write, unsigned long timeout)
{
	struct dma_resv_iter cursor;
	struct dma_fence *fence;
	long left = timeout;

	dma_resv_iter_begin(&cursor, resv, dma_resv_usage_rw(write));
	dma_resv_for_each_fence_unlocked(&cursor, fence) {
		if (nymph_fence_is_ours(fence))
			continue;
		left = dma_fence_wait_timeout(fence, false, left);
		if (left <= 0)
			break;
	}
	dma_resv_iter_end(&cursor);
	return left > 0;
}

/*
 * Adds a fence. Returns -EBUSY if somebody else uses the dma-buf or is about to.
 */
static int nymph_fence_add(struct dma_resv *resv, struct dma_fence *fence,
			   bool write)
{
	struct dma_resv_iter cursor;
	struct dma_fence *other;
	int ret;

	if (!dma_resv_trylock(resv))
		return -EBUSY;
	ret = dma_resv_reserve_fences(resv, 1);
	if (ret)
		goto unlock;
	dma_resv_for_each_fence(&cursor, resv, dma_resv_usage_rw(write), other) {
		if (!nymph_fence_is_ours(other) &&
		    !dma_fence_is_signaled(other)) {
			ret = -EBUSY;
			break;
		}
	}
	if (!ret)
		dma_resv_add_fence(resv, fence, write ? DMA_RESV_USAGE_WRITE :
							DMA_RESV_USAGE_READ);
unlock:
	dma_resv_unlock(resv);
	return ret;
}

/* A fence that stays in a dma-buf would keep the module loaded. */
static void nymph_fence_remove(struct dma_resv *resv, struct dma_fence *fence)
{
	struct dma_fence *stub = dma_fence_get_stub();

	dma_resv_lock(resv, NULL);
	dma_resv_replace_fences(resv, fence->context, stub,
				DMA_RESV_USAGE_BOOKKEEP);
	dma_resv_unlock(resv);
	dma_fence_put(stub);
}

/**
 * nymph_fence_begin() - Tell others that a channel is about to use dma-bufs
 * @name: name of the channel
 * @dst: reservation object of the dma-buf that it writes to, or NULL
 * @src: reservation object of the dma-buf that it reads, or NULL; not both are NULL
 *
 * Return: the fence, until nymph_fence_end(); -EBUSY if others use one of the
 * dma-bufs, or have it locked; -ENOMEM.
 */
struct dma_fence *nymph_fence_begin(const char *name, struct dma_resv *dst,
				    struct dma_resv *src)
{
	struct dma_fence *fence = nymph_fence_create(name);
	int ret = 0;

	if (!fence)
		return ERR_PTR(-ENOMEM);
	if (dst)
		ret = nymph_fence_add(dst, fence, true);
	if (!ret && src && src != dst) {
		ret = nymph_fence_add(src, fence, false);
		if (ret && dst) {
			dma_fence_signal(fence);
			nymph_fence_remove(dst, fence);
		}
	}
	if (!ret)
		return fence;
	dma_fence_put(fence);
	return ERR_PTR(ret);
}

/**
 * nymph_fence_end() - Remove a fence from its dma-bufs
 * @fence: return value of nymph_fence_begin(), signaled
 * @dst: argument of nymph_fence_begin()
 * @src: argument of nymph_fence_begin()
 */
void nymph_fence_end(struct dma_fence *fence, struct dma_resv *dst,
		     struct dma_resv *src)
{
	if (dst)
		nymph_fence_remove(dst, fence);
	if (src && src != dst)
		nymph_fence_remove(src, fence);
	dma_fence_put(fence);
}
