// SPDX-License-Identifier: GPL-2.0-only
/*
 * nymph_kcov: coverage of one module, for kernels without KCOV: the code that a task
 * of user space runs. Its file is where KCOV has it, and takes the same requests.
 */
#include <linux/debugfs.h>
#include <linux/fs.h>
#include <linux/kcov.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/preempt.h>
#include <linux/sched.h>
#include <linux/sizes.h>
#include <linux/vmalloc.h>

#define AREAS	32

/**
 * struct nymph_kcov_area - where the code addresses of a task go
 * @task: the task, not to be dereferenced; or NULL
 * @words: the number of addresses, and the addresses
 * @size: number of @words
 * @used: a file has it
 */
struct nymph_kcov_area {
	struct task_struct *task;
	unsigned long *words;
	unsigned long size;
	bool used;
};

static struct nymph_kcov_area areas[AREAS];
static DEFINE_MUTEX(areas_lock);	/* used */
static struct dentry *file;

void __sanitizer_cov_trace_pc(void);

/* Called at the start of each basic block of the module. */
void notrace __sanitizer_cov_trace_pc(void)
{
	const struct task_struct *task = current;
	unsigned long *words, at;
	unsigned int i;

	if (!in_task())
		return;
	for (i = 0; i < AREAS; i++)
		if (READ_ONCE(areas[i].task) == task)
			break;
	if (i == AREAS)
		return;
	words = READ_ONCE(areas[i].words);
	at = READ_ONCE(words[0]) + 1;
	if (at < areas[i].size) {
		WRITE_ONCE(words[0], at);
		words[at] = _RET_IP_;
	}
}
EXPORT_SYMBOL_GPL(__sanitizer_cov_trace_pc);

static int nymph_kcov_open(struct inode *inode, struct file *filp)
{
	int ret = -EBUSY;
	unsigned int i;

	mutex_lock(&areas_lock);
	for (i = 0; i < AREAS && ret; i++) {
		if (areas[i].used)
			continue;
		areas[i].used = true;
		filp->private_data = &areas[i];
		ret = 0;
	}
	mutex_unlock(&areas_lock);
	return ret;
}

/* Its memory stays for the next file: a task may be at it. */
static int nymph_kcov_release(struct inode *inode, struct file *filp)
{
	struct nymph_kcov_area *area = filp->private_data;

	WRITE_ONCE(area->task, NULL);
	mutex_lock(&areas_lock);
	area->used = false;
	mutex_unlock(&areas_lock);
	return 0;
}

static long nymph_kcov_ioctl(struct file *filp, unsigned int cmd,
			     unsigned long arg)
{
	struct nymph_kcov_area *area = filp->private_data;
	unsigned int i;

	switch (cmd) {
	case KCOV_INIT_TRACE:
		if (area->words)
			return area->size == arg ? 0 : -EBUSY;
		if (arg < 2 || arg > SZ_16M)
			return -EINVAL;
		area->words = vmalloc_user(arg * sizeof(*area->words));
		area->size = arg;
		return area->words ? 0 : -ENOMEM;
	case KCOV_ENABLE:
		if (!area->words)
			return -EINVAL;
		for (i = 0; i < AREAS; i++)
			cmpxchg(&areas[i].task, current, NULL);
		WRITE_ONCE(area->task, current);
		return 0;
	case KCOV_DISABLE:
		WRITE_ONCE(area->task, NULL);
		return 0;
	default:
		return -ENOTTY;
	}
}

static int nymph_kcov_mmap(struct file *filp, struct vm_area_struct *vma)
{
	struct nymph_kcov_area *area = filp->private_data;

	return area->words ? remap_vmalloc_range(vma, area->words, 0) : -EINVAL;
}

static const struct file_operations nymph_kcov_fops = {
	.owner = THIS_MODULE,
	.open = nymph_kcov_open,
	.release = nymph_kcov_release,
	.unlocked_ioctl = nymph_kcov_ioctl,
	.mmap = nymph_kcov_mmap,
};

static int __init nymph_kcov_init(void)
{
	file = debugfs_create_file_unsafe("kcov", 0600, NULL, NULL,
					  &nymph_kcov_fops);
	return PTR_ERR_OR_ZERO(file);
}
module_init(nymph_kcov_init);

static void __exit nymph_kcov_exit(void)
{
	unsigned int i;

	debugfs_remove(file);
	for (i = 0; i < AREAS; i++)
		vfree(areas[i].words);
}
module_exit(nymph_kcov_exit);

MODULE_DESCRIPTION("Coverage of pcie_nymph for kernels without KCOV");
MODULE_LICENSE("GPL");
