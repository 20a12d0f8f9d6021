// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: who has rings, and how many anybody may have.
 */
#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/err.h>
#include <linux/list.h>
#include <linux/sched/user.h>
#include <linux/slab.h>

#include "nymph.h"

/* Serializes everything below. */
static DEFINE_MUTEX(nymph_users_lock);
static LIST_HEAD(nymph_users);
static unsigned int nymph_nr_rings;

static struct nymph_user *nymph_user_find(struct user_struct *account)
{
	struct nymph_user *user;

	list_for_each_entry(user, &nymph_users, list)
		if (user->account == account)
			return user;

	user = kzalloc(sizeof(*user), GFP_KERNEL_ACCOUNT);
	if (!user)
		return NULL;
	user->account = get_uid(account);
	list_add(&user->list, &nymph_users);
	return user;
}

static void nymph_user_forget_idle(struct nymph_user *user)
{
	if (user->rings)
		return;
	list_del(&user->list);
	free_uid(user->account);
	kfree(user);
}

/**
 * nymph_user_add_ring() - count a new ring against current's user
 * @old: the ring whose place it takes, which does not count; or NULL
 *
 * Return: the user, until nymph_user_drop_ring(); -ENFILE if there are as many
 * rings as there can be, -EMFILE if the user has as many as one may have,
 * -ENOMEM.
 */
struct nymph_user *nymph_user_add_ring(const struct nymph_ring *old)
{
	struct nymph_user *user;
	u64 max;

	mutex_lock(&nymph_users_lock);
	if (nymph_nr_rings >= (u64)READ_ONCE(nymph_max_rings) + !!old) {
		user = ERR_PTR(-ENFILE);
		goto unlock;
	}
	user = nymph_user_find(current_user());
	if (!user) {
		user = ERR_PTR(-ENOMEM);
		goto unlock;
	}
	max = (u64)READ_ONCE(nymph_max_user_rings) +
	      (old && old->user == user);
	if (user->rings >= max && !capable(CAP_SYS_RESOURCE)) {
		nymph_user_forget_idle(user);
		user = ERR_PTR(-EMFILE);
		goto unlock;
	}
	user->rings++;
	nymph_nr_rings++;
unlock:
	mutex_unlock(&nymph_users_lock);
	return user;
}

/**
 * nymph_user_drop_ring() - the ring is no more
 * @user: what nymph_user_add_ring() returned for it
 */
void nymph_user_drop_ring(struct nymph_user *user)
{
	mutex_lock(&nymph_users_lock);
	user->rings--;
	nymph_nr_rings--;
	nymph_user_forget_idle(user);
	mutex_unlock(&nymph_users_lock);
}
