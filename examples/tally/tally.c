// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/tally counts the bytes that are written to it, and reads as their number.
 */
#include <linux/atomic.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>

static atomic64_t tally;

static ssize_t tally_read(struct file *file, char __user *to, size_t len,
			  loff_t *at)
{
	char text[24];
	int n = scnprintf(text, sizeof(text), "%lld\n", atomic64_read(&tally));

	return simple_read_from_buffer(to, len, at, text, n);
}

static ssize_t tally_write(struct file *file, const char __user *from,
			   size_t len, loff_t *at)
{
	atomic64_add(len, &tally);
	return len;
}

static const struct file_operations tally_fops = {
	.owner = THIS_MODULE,
	.read = tally_read,
	.write = tally_write,
};

static struct miscdevice tally_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "tally",
	.fops = &tally_fops,
};
module_misc_device(tally_device);

MODULE_DESCRIPTION("Counts the bytes that are written to it");
MODULE_LICENSE("GPL");
