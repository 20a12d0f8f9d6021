// SPDX-License-Identifier: GPL-2.0-only
/*
 * register_access: reaches the BARs of a function as drivers may, in every way that
 * user-mode Linux must carry over to a device that is another process: one register
 * from all CPUs at once and from interrupts, and memory in long pieces. It binds if
 * each read is what the function or the last write made of it.
 *
 * BAR 0 has registers, of which each reads as its offset, inverted. BAR 2 is memory.
 */
#include <linux/atomic.h>
#include <linux/cpu.h>
#include <linux/hrtimer.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/percpu.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#define REGISTERS	0
#define MEMORY		2
#define BAR_SIZE	SZ_64K
#define READS		2000	/* of each CPU */
#define PIECE		1000	/* of a long write: no power of two */

static void __iomem *registers;
static atomic_t ticks, wrong;

static void access_read(u32 offset)
{
	if (readl(registers + offset) != ~offset)
		atomic_inc(&wrong);
}

/* Whatever it interrupts: a read, too. */
static enum hrtimer_restart access_tick(struct hrtimer *timer)
{
	access_read(4 * (atomic_inc_return(&ticks) % (BAR_SIZE / 4)));
	hrtimer_forward_now(timer, ms_to_ktime(1));
	return HRTIMER_RESTART;
}

static void access_on_this_cpu(struct work_struct *unused)
{
	u32 first = 64 * raw_smp_processor_id();
	int i;

	for (i = 0; i < READS; i++)
		access_read(first + 4 * (i % 16));
}

static int access_from_everywhere(struct pci_dev *pdev)
{
	struct work_struct __percpu *works = alloc_percpu(struct work_struct);
	struct workqueue_struct *wq;
	int cpu, ret = -ENOMEM;
	struct hrtimer timer;

	wq = alloc_workqueue("register_access", WQ_PERCPU | WQ_CPU_INTENSIVE, 0);
	if (!works || !wq)
		goto out;
	hrtimer_setup_on_stack(&timer, access_tick, CLOCK_MONOTONIC, HRTIMER_MODE_REL_HARD);
	hrtimer_start(&timer, 0, HRTIMER_MODE_REL_HARD);
	cpus_read_lock();
	for_each_online_cpu(cpu) {
		INIT_WORK(per_cpu_ptr(works, cpu), access_on_this_cpu);
		queue_work_on(cpu, wq, per_cpu_ptr(works, cpu));
	}
	for_each_online_cpu(cpu)
		flush_work(per_cpu_ptr(works, cpu));
	cpus_read_unlock();
	hrtimer_cancel(&timer);
	destroy_hrtimer_on_stack(&timer);
	ret = 0;
	if (atomic_read(&wrong)) {
		pci_err(pdev, "%d reads of registers were wrong\n", atomic_read(&wrong));
		ret = -EIO;
	}
out:
	if (wq)
		destroy_workqueue(wq);
	free_percpu(works);
	return ret;
}

static int access_memory(struct pci_dev *pdev, void __iomem *memory)
{
	u8 *written = kmalloc(BAR_SIZE, GFP_KERNEL), *read = kmalloc(BAR_SIZE, GFP_KERNEL);
	int at, ret = -ENOMEM;
	u16 command, now;

	if (!written || !read)
		goto out;
	pci_read_config_word(pdev, PCI_COMMAND, &command);
	memset_io(memory, 0xa5, BAR_SIZE);
	memset(written, 0xa5, BAR_SIZE);
	memcpy_fromio(read, memory, BAR_SIZE);
	pci_read_config_word(pdev, PCI_COMMAND, &now);
	ret = -EIO;
	if (memcmp(written, read, BAR_SIZE) || command != now) {
		pci_err(pdev, "memset_io() did not set the memory, or changed the command register\n");
		goto out;
	}
	for (at = 0; at + PIECE <= BAR_SIZE; at += PIECE) {
		memset(written + at, at / PIECE, PIECE);
		memcpy_toio(memory + at, written + at, PIECE);
	}
	memcpy_fromio(read, memory, BAR_SIZE);
	if (memcmp(written, read, BAR_SIZE))
		pci_err(pdev, "memcpy_toio() did not write what it was given\n");
	else
		ret = 0;
out:
	kfree(read);
	kfree(written);
	return ret;
}

static int access_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	void __iomem *memory;
	int ret;

	ret = pcim_enable_device(pdev);
	if (ret)
		return ret;
	registers = pcim_iomap(pdev, REGISTERS, BAR_SIZE);
	memory = pcim_iomap(pdev, MEMORY, BAR_SIZE);
	if (!registers || !memory)
		return -ENOMEM;
	ret = access_from_everywhere(pdev);
	return ret ?: access_memory(pdev, memory);
}

static const struct pci_device_id access_ids[] = {
	{ PCI_DEVICE(0x1234, 0x5679) },
	{ }
};
MODULE_DEVICE_TABLE(pci, access_ids);

static struct pci_driver access_driver = {
	.name = "register_access",
	.id_table = access_ids,
	.probe = access_probe,
};
module_pci_driver(access_driver);

MODULE_DESCRIPTION("Ways in which drivers reach registers");
MODULE_LICENSE("GPL");
