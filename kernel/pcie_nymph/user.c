// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: rings, locked memory and memory of cards, counted against users.
 *
 * Rings and card memory count against their user and against the owner of each
 * enclosing user namespace, so that subordinate users give nobody more. Locked memory
 * counts by user, as everywhere in the kernel.
 */
#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/err.h>
#include <linux/list.h>
#include <linux/math64.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/sched/signal.h>
#include <linux/sched/user.h>
#include <linux/slab.h>
#include <linux/user_namespace.h>

#include "memory.h"

unsigned int nymph_max_rings = NYMPH_MAX_RINGS_DEFAULT;
module_param_named(max_rings, nymph_max_rings, uint, 0444);
MODULE_PARM_DESC(max_rings, "rings there can be in all, each has a thread of its own; change it in sysfs, limits/max_rings");

unsigned int nymph_max_user_rings = NYMPH_MAX_USER_RINGS_DEFAULT;
module_param_named(max_user_rings, nymph_max_user_rings, uint, 0444);
MODULE_PARM_DESC(max_user_rings, "rings one user can have; change it in sysfs, limits/max_user_rings");

unsigned int nymph_max_user_card_percent = 50;
module_param_named(max_user_card_percent, nymph_max_user_card_percent, uint, 0444);
MODULE_PARM_DESC(max_user_card_percent, "how much of a card's memory one user can have; change it in sysfs, limits/max_user_card_percent");

/* One of this many rings is reserved for CAP_SYS_ADMIN. */
#define NYMPH_RESERVE	32

/**
 * struct nymph_use - what a user has of a shared resource
 * @list: entry in the list of all
 * @uid: the user
 * @of: the resource: memory of this device, not to be dereferenced; rings if NULL
 * @amount: bytes, or number of rings
 */
struct nymph_use {
	struct list_head list;
	kuid_t uid;
	const struct device *of;
	u64 amount;
};

/* Serializes everything below. */
static DEFINE_MUTEX(nymph_uses_lock);
static LIST_HEAD(nymph_uses);
static unsigned int nymph_nr_rings;

/* A user, and with nymph_counted_next() the owners of the namespaces around. */
struct nymph_counted {
	const struct user_namespace *ns;
	kuid_t uid;
};

static struct nymph_counted nymph_counted_first(const struct cred *cred)
{
	return (struct nymph_counted){ cred->user_ns, cred->uid };
}

/* Goes to the next owner who is another user; returns whether there is one. */
static bool nymph_counted_next(struct nymph_counted *who)
{
	kuid_t uid = who->uid;

	while (who->ns->parent) {
		who->uid = who->ns->owner;
		who->ns = who->ns->parent;
		if (!uid_eq(who->uid, uid))
			return true;
	}
	return false;
}

static struct nymph_use *nymph_use_find(kuid_t uid, const struct device *of)
{
	struct nymph_use *use;

	list_for_each_entry(use, &nymph_uses, list)
		if (uid_eq(use->uid, uid) && use->of == of)
			return use;
	return NULL;
}

static void nymph_use_lower(kuid_t uid, const struct device *of, u64 amount)
{
	struct nymph_use *use = nymph_use_find(uid, of);

	use->amount -= amount;
	if (use->amount)
		return;
	list_del(&use->list);
	kfree(use);
}

static int nymph_use_raise(kuid_t uid, const struct device *of, u64 amount,
			   u64 max)
{
	struct nymph_use *use = nymph_use_find(uid, of);
	u64 before = use ? use->amount : 0;

	if ((amount > max || before > max - amount) &&
	    !capable(CAP_SYS_RESOURCE))
		return -EDQUOT;
	if (!use) {
		use = kzalloc(sizeof(*use), GFP_KERNEL_ACCOUNT);
		if (!use)
			return -ENOMEM;
		use->uid = uid;
		use->of = of;
		list_add(&use->list, &nymph_uses);
	}
	use->amount += amount;
	return 0;
}

static void nymph_uses_drop(const struct cred *cred, const struct device *of,
			    u64 amount)
{
	struct nymph_counted who = nymph_counted_first(cred);

	do {
		nymph_use_lower(who.uid, of, amount);
	} while (nymph_counted_next(&who));
}

static int nymph_uses_add(const struct cred *cred, const struct device *of,
			  u64 amount, u64 max)
{
	struct nymph_counted who = nymph_counted_first(cred), done;
	unsigned int n = 0;
	int ret;

	do {
		ret = nymph_use_raise(who.uid, of, amount, max);
		if (ret)
			break;
		n++;
	} while (nymph_counted_next(&who));

	for (done = nymph_counted_first(cred); ret && n;
	     n--, nymph_counted_next(&done))
		nymph_use_lower(done.uid, of, amount);
	return ret;
}

/**
 * nymph_user_add_ring() - Count a new ring against current's user
 * @old: credentials of the ring whose place it takes, which does not count; or NULL
 *
 * Return: the credentials it counts against, for nymph_user_drop_ring(); -ENFILE
 * if there are as many rings as there can be, the last few only by CAP_SYS_ADMIN;
 * -EMFILE if the user, or the owner of a user namespace around, has as many as
 * one may have; -ENOMEM.
 */
const struct cred *nymph_user_add_ring(const struct cred *old)
{
	const struct cred *cred = current_cred();
	bool same = old && old->user == cred->user &&
		    old->user_ns == cred->user_ns;
	u64 all = (u64)READ_ONCE(nymph_max_rings) + !!old;
	u64 reserve = READ_ONCE(nymph_max_rings) / NYMPH_RESERVE;
	int ret;

	mutex_lock(&nymph_uses_lock);
	if (nymph_nr_rings >= all ||
	    (nymph_nr_rings + reserve >= all && !capable(CAP_SYS_ADMIN))) {
		ret = -ENFILE;
		goto unlock;
	}
	ret = nymph_uses_add(cred, NULL, 1,
			     (u64)READ_ONCE(nymph_max_user_rings) + same);
	if (!ret)
		nymph_nr_rings++;
unlock:
	mutex_unlock(&nymph_uses_lock);
	if (ret)
		return ERR_PTR(ret == -EDQUOT ? -EMFILE : ret);
	return get_cred(cred);
}

/**
 * nymph_user_drop_ring() - Undo nymph_user_add_ring()
 * @cred: what nymph_user_add_ring() returned for it
 */
void nymph_user_drop_ring(const struct cred *cred)
{
	mutex_lock(&nymph_uses_lock);
	nymph_uses_drop(cred, NULL, 1);
	nymph_nr_rings--;
	mutex_unlock(&nymph_uses_lock);
	put_cred(cred);
}

/**
 * nymph_user_add_card() - Count memory of a device against current's user
 * @dev: the device
 * @bytes: bytes to count
 * @size: bytes of the device
 *
 * Return: the credentials it counts against, for nymph_user_drop_card(); -EDQUOT
 * if the user, or the owner of a user namespace around, would have more than one
 * may have; -ENOMEM.
 */
const struct cred *nymph_user_add_card(const struct device *dev, u64 bytes,
				       u64 size)
{
	unsigned int percent = READ_ONCE(nymph_max_user_card_percent);
	u64 max = mul_u64_u32_div(size, min(percent, 100U), 100);
	int ret;

	mutex_lock(&nymph_uses_lock);
	ret = nymph_uses_add(current_cred(), dev, bytes, max);
	mutex_unlock(&nymph_uses_lock);
	return ret ? ERR_PTR(ret) : get_current_cred();
}

/**
 * nymph_user_drop_card() - Undo nymph_user_add_card()
 * @cred: what nymph_user_add_card() returned for it
 * @dev: the device; not to be dereferenced
 * @bytes: bytes to stop counting
 */
void nymph_user_drop_card(const struct cred *cred, const struct device *dev,
			  u64 bytes)
{
	mutex_lock(&nymph_uses_lock);
	nymph_uses_drop(cred, dev, bytes);
	mutex_unlock(&nymph_uses_lock);
	put_cred(cred);
}

/**
 * nymph_charge() - Charge pages to a user's locked memory
 * @user: the user
 * @nr_pages: number of pages
 * @credit: pages of what it replaces, which do not count
 *
 * As mlock() does, this charges everybody. It checks for CAP_IPC_LOCK only at the
 * limit, because the check can appear in the audit log.
 *
 * Return: 0, or -ENOMEM if RLIMIT_MEMLOCK does not allow it.
 */
int nymph_charge(struct user_struct *user, unsigned long nr_pages,
		 unsigned long credit)
{
	unsigned long limit = rlimit(RLIMIT_MEMLOCK) >> PAGE_SHIFT;
	long old = atomic_long_read(&user->locked_vm);

	do {
		if (old + nr_pages > limit + credit && !capable(CAP_IPC_LOCK))
			return -ENOMEM;
	} while (!atomic_long_try_cmpxchg(&user->locked_vm, &old,
					  old + nr_pages));
	return 0;
}

/**
 * nymph_uncharge() - Undo nymph_charge()
 * @user: the user who was charged
 * @nr_pages: number of pages
 */
void nymph_uncharge(struct user_struct *user, unsigned long nr_pages)
{
	atomic_long_sub(nr_pages, &user->locked_vm);
}
