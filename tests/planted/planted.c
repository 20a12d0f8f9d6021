// SPDX-License-Identifier: GPL-2.0-only
/*
 * planted: bugs on request, so that it can be seen who catches them. Write a
 * bug's name to /sys/kernel/debug/planted.
 */
#include <linux/compiler.h>
#include <linux/cpumask.h>
#include <linux/debugfs.h>
#include <linux/errno.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/stop_machine.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#define NAME_SIZE	32
#define LEAKS		16

static struct dentry *planted_file;

/* Each gets what the caller wrote, the bug's name: not empty, and shorter than NAME_SIZE. */

static noinline int planted_use_after_free(const char __user *arg, size_t len)
{
	char *p = kmalloc(len, GFP_KERNEL);

	if (!p)
		return -ENOMEM;
	kfree(p);
	OPTIMIZER_HIDE_VAR(p);
	WRITE_ONCE(p[0], 1);
	return 0;
}

static noinline int planted_out_of_bounds(const char __user *arg, size_t len)
{
	char *p = kmalloc(len, GFP_KERNEL);

	if (!p)
		return -ENOMEM;
	OPTIMIZER_HIDE_VAR(len);
	WRITE_ONCE(p[len], 1);
	kfree(p);
	return 0;
}

/* Several: a copy of the pointer left on some stack hides one. */
static noinline int planted_leak(const char __user *arg, size_t len)
{
	unsigned int i;

	for (i = 0; i < LEAKS; i++) {
		char *p = kmalloc(len, GFP_KERNEL);

		if (!p)
			return -ENOMEM;
		OPTIMIZER_HIDE_VAR(p);
	}
	return 0;
}

static noinline int planted_lock_inversion(const char __user *arg, size_t len)
{
	static DEFINE_MUTEX(first);
	static DEFINE_MUTEX(second);

	mutex_lock(&first);
	mutex_lock(&second);
	mutex_unlock(&second);
	mutex_unlock(&first);

	mutex_lock(&second);
	mutex_lock(&first);
	mutex_unlock(&first);
	mutex_unlock(&second);
	return 0;
}

static noinline int planted_sleep_under_spinlock(const char __user *arg,
						 size_t len)
{
	static DEFINE_SPINLOCK(lock);

	spin_lock(&lock);
	kfree(kmalloc(len, GFP_KERNEL));
	spin_unlock(&lock);
	return 0;
}

/* The name was read once, to get here. */
static noinline int planted_double_fetch(const char __user *arg, size_t len)
{
	char again[NAME_SIZE];

	return copy_from_user(again, arg, len) ? -EFAULT : 0;
}

static noinline int planted_missing_unpin(const char __user *arg, size_t len)
{
	struct page *page;
	int pinned;

	pinned = pin_user_pages_fast((unsigned long)arg & PAGE_MASK, 1, 0,
				     &page);
	if (pinned < 0)
		return pinned;
	return pinned ? 0 : -EFAULT;
}

static int planted_hang_cpu(void *unused)
{
	while (!unused)
		cpu_relax();
	return 0;
}

/* All CPUs, with interrupts off: none is left to find the others stuck. */
static noinline int planted_hang(const char __user *arg, size_t len)
{
	return stop_machine(planted_hang_cpu, NULL, cpu_online_mask);
}

static noinline int planted_panic(const char __user *arg, size_t len)
{
	char *p = NULL;

	OPTIMIZER_HIDE_VAR(p);
	WRITE_ONCE(p[0], 1);
	return 0;
}

static const struct {
	const char *name;
	int (*commit)(const char __user *arg, size_t len);
} bugs[] = {
	{ "use_after_free", planted_use_after_free },
	{ "out_of_bounds", planted_out_of_bounds },
	{ "leak", planted_leak },
	{ "lock_inversion", planted_lock_inversion },
	{ "sleep_under_spinlock", planted_sleep_under_spinlock },
	{ "double_fetch", planted_double_fetch },
	{ "missing_unpin", planted_missing_unpin },
	{ "hang", planted_hang },
	{ "panic", planted_panic },
};

static ssize_t planted_write(struct file *file, const char __user *arg,
			     size_t len, loff_t *pos)
{
	char name[NAME_SIZE] = {};
	unsigned int i;

	if (!len || len >= sizeof(name))
		return -EINVAL;
	if (copy_from_user(name, arg, len))
		return -EFAULT;
	for (i = 0; i < ARRAY_SIZE(bugs); i++)
		if (!strcmp(name, bugs[i].name))
			return bugs[i].commit(arg, len) ?: len;
	return -EINVAL;
}

static const struct file_operations planted_fops = {
	.owner = THIS_MODULE,
	.write = planted_write,
	.llseek = noop_llseek,
};

static int __init planted_init(void)
{
	planted_file = debugfs_create_file("planted", 0200, NULL, NULL,
					   &planted_fops);
	return PTR_ERR_OR_ZERO(planted_file);
}
module_init(planted_init);

static void __exit planted_exit(void)
{
	debugfs_remove(planted_file);
}
module_exit(planted_exit);

MODULE_DESCRIPTION("Bugs on request, for tests of what catches them");
MODULE_LICENSE("GPL");
