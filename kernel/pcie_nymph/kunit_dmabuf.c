// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: tests of dma-bufs inside the kernel.
 */
#include <kunit/test.h>
#include <linux/cred.h>
#include <linux/dma-buf.h>
#include <linux/dma-fence.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/err.h>
#include <linux/fcntl.h>
#include <linux/fdtable.h>
#include <linux/platform_device.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "compat.h"
#include "kunit.h"
#include "memory.h"
#include "ring.h"

/* Exports new driver memory, and imports that dma-buf as a region. */
static struct nymph_region *import_some(struct kunit *test, size_t len,
					struct dma_buf **buf)
{
	struct nymph_region *region[2];
	u64 length;
	int i, fd;

	for (i = 0; i < 2; i++) {
		region[i] = kzalloc(sizeof(*region[i]), GFP_KERNEL);
		KUNIT_ASSERT_NOT_NULL(test, region[i]);
		refcount_set(&region[i]->refs, 1);
		region[i]->cred = get_current_cred();
		region[i]->length = len;
	}
	KUNIT_ASSERT_EQ(test, nymph_pin_alloc(&region[0]->pin, current_user(),
					      len), 0);
	*buf = nymph_dmabuf_export(region[0]);
	nymph_region_put(region[0]);
	KUNIT_ASSERT_FALSE(test, IS_ERR(*buf));
	fd = dma_buf_fd(*buf, O_CLOEXEC);
	KUNIT_ASSERT_GE(test, fd, 0);
	KUNIT_ASSERT_EQ(test, nymph_pin_dmabuf(&region[1]->pin, fd, true,
					       &length), 0);
	close_fd(fd);
	KUNIT_ASSERT_EQ(test, length, (u64)len);
	return region[1];
}

static const char *fence_name(struct dma_fence *fence)
{
	return "test";
}

static const struct dma_fence_ops fence_ops = {
	.get_driver_name = fence_name,
	.get_timeline_name = fence_name,
};

/* Adds a fence of another user to a dma-buf. */
static struct dma_fence *add_fence(struct kunit *test, struct dma_buf *buf,
				   enum dma_resv_usage usage)
{
	static DEFINE_SPINLOCK(lock);
	struct dma_fence *fence = kzalloc(sizeof(*fence), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, fence);
	dma_fence_init(fence, &fence_ops, &lock, dma_fence_context_alloc(1), 1);
	dma_resv_lock(buf->resv, NULL);
	KUNIT_ASSERT_EQ(test, dma_resv_reserve_fences(buf->resv, 1), 0);
	dma_resv_add_fence(buf->resv, fence, usage);
	dma_resv_unlock(buf->resv);
	return fence;
}

static int step_until_done(struct nymph_ring *ring, struct nymph_slot *slot,
			   unsigned int *more)
{
	int ret;

	nymph_transfer_start(&ring->transfer, &slot->entry, 0);
	for (*more = 0;; (*more)++) {
		ret = nymph_transfer_step(ring, slot);
		if (ret != NYMPH_STEP_MORE)
			return ret;
	}
}

/* Checks that readers wait for writers, and writers for all, for a limited time. */
static void fences_test(struct kunit *test)
{
	static const enum dma_resv_usage usages[] = {
		DMA_RESV_USAGE_WRITE, DMA_RESV_USAGE_READ,
	};
	static const u16 opcodes[] = { NYMPH_OP_HASH, NYMPH_OP_FILL };
	unsigned int timeout_ms = nymph_dma_timeout_ms, u, o, more;
	struct nymph_ring *ring;
	struct dma_buf *buf;
	struct nymph_region *region;

	ring = kunit_kzalloc(test, sizeof(*ring), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, ring);
	ring->engine = &nymph_engine_cpu;
	ring->bounce = nymph_bounce_create(NUMA_NO_NODE);
	ring->batch = nymph_batch_create(&nymph_engine_cpu);
	KUNIT_ASSERT_NOT_NULL(test, ring->bounce);
	KUNIT_ASSERT_NOT_NULL(test, ring->batch);
	region = import_some(test, PAGE_SIZE, &buf);
	nymph_dma_timeout_ms = 200;
	for (u = 0; u < ARRAY_SIZE(usages); u++) {
		struct dma_fence *fence = add_fence(test, buf, usages[u]);

		for (o = 0; o < ARRAY_SIZE(opcodes); o++) {
			bool writes = opcodes[o] == NYMPH_OP_FILL;
			bool waits = writes || usages[u] == DMA_RESV_USAGE_WRITE;
			struct nymph_operand it = {
				.used = true,
				.region = region,
			};
			struct nymph_slot slot = {
				.entry.opcode = opcodes[o],
				.entry.flags = NYMPH_DMA_FLAG_RECORD,
				.entry.length = PAGE_SIZE,
			};

			if (writes)
				slot.dst = it;
			else
				slot.src = it;
			KUNIT_EXPECT_EQ(test, step_until_done(ring, &slot, &more),
					waits ? -ETIMEDOUT : 0);
			KUNIT_EXPECT_EQ(test, more > 1, waits);
			KUNIT_EXPECT_EQ(test, ring->transfer.done,
					(u64)(waits ? 0 : PAGE_SIZE));
		}
		dma_fence_signal(fence);
		dma_fence_put(fence);
		for (o = 0; o < ARRAY_SIZE(opcodes); o++)
			KUNIT_EXPECT_TRUE(test, nymph_dmabuf_wait(region->pin.dmabuf,
								  o, 1));
	}
	nymph_dma_timeout_ms = timeout_ms;
	nymph_region_put(region);
	nymph_batch_free(ring->batch);
	nymph_bounce_put(ring->bounce);
}

static void dmabuf_cpu_test(struct kunit *test)
{
	u8 *some = kunit_kmalloc(test, 5000, GFP_KERNEL);
	u8 *back = kunit_kmalloc(test, 5000, GFP_KERNEL);
	struct nymph_region *region;
	struct dma_buf *buf;
	size_t i;

	KUNIT_ASSERT_NOT_NULL(test, some);
	KUNIT_ASSERT_NOT_NULL(test, back);
	for (i = 0; i < 5000; i++)
		some[i] = i % 251;
	region = import_some(test, 3 * PAGE_SIZE, &buf);
	KUNIT_EXPECT_TRUE(test, nymph_pin_store(&region->pin, 4000, some, 5000));
	KUNIT_EXPECT_TRUE(test, nymph_pin_load(&region->pin, 4000, back, 5000));
	KUNIT_EXPECT_EQ(test, memcmp(some, back, 5000), 0);
	nymph_region_put(region);
}

/* Maps an attachment twice, in different directions. */
static void export_mappings_test(struct kunit *test)
{
	static const enum dma_data_direction ways[] = {
		DMA_TO_DEVICE, DMA_BIDIRECTIONAL,
	};
	struct platform_device *pdev;
	struct dma_buf_attachment *a;
	struct nymph_region *region;
	struct sg_table *tables[2];
	struct dma_buf *buf;
	int i;

	pdev = platform_device_register_simple("nymph_kunit",
					       PLATFORM_DEVID_NONE, NULL, 0);
	KUNIT_ASSERT_FALSE(test, IS_ERR(pdev));
	KUNIT_EXPECT_EQ(test, dma_coerce_mask_and_coherent(&pdev->dev,
							   DMA_BIT_MASK(64)), 0);
	region = import_some(test, 3 * PAGE_SIZE, &buf);
	a = dma_buf_attach(buf, &pdev->dev);
	KUNIT_ASSERT_FALSE(test, IS_ERR(a));
	for (i = 0; i < 2; i++) {
		tables[i] = dma_buf_map_attachment_unlocked(a, ways[i]);
		KUNIT_ASSERT_FALSE(test, IS_ERR(tables[i]));
	}
	KUNIT_EXPECT_PTR_NE(test, tables[0], tables[1]);
	KUNIT_EXPECT_EQ(test, dma_buf_begin_cpu_access(buf, DMA_FROM_DEVICE),
			0);
	KUNIT_EXPECT_EQ(test, dma_buf_end_cpu_access(buf, DMA_FROM_DEVICE), 0);
	for (i = 0; i < 2; i++)
		dma_buf_unmap_attachment_unlocked(a, tables[i], ways[i]);
	dma_buf_detach(buf, a);
	nymph_region_put(region);
	platform_device_unregister(pdev);
}

static struct kunit_case dmabuf_cases[] = {
	KUNIT_CASE(fences_test),
	KUNIT_CASE(dmabuf_cpu_test),
	KUNIT_CASE(export_mappings_test),
	{}
};

static struct kunit_suite dmabuf_suite = {
	.name = "pcie_nymph_dmabuf",
	.test_cases = dmabuf_cases,
};

kunit_test_suite(dmabuf_suite);
