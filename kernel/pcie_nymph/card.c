// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: memory of the device that a ring's engine is part of, a "card".
 *
 * The device's driver keeps the memory in a gen_pool, see nymph_card.h. The pool
 * goes when the driver is unbound. The module then revokes all parts of it: every
 * access to a revoked part fails.
 */
#include <linux/cred.h>
#include <linux/device.h>
#include <linux/err.h>
#include <linux/genalloc.h>
#include <linux/list.h>
#include <linux/rwsem.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "counters.h"
#include "memory.h"
#include "nymph_card.h"

/**
 * struct nymph_card - a part of a device's memory
 * @list: entry in the list of all parts that are not revoked
 * @dev: the device; not to be dereferenced
 * @pool: pool of the device; NULL once the part is revoked
 * @at: address for the CPU
 * @dma: address for the device
 * @length: bytes
 * @cred: credentials of the user it counts against, until it is revoked
 */
struct nymph_card {
	struct list_head list;
	struct device *dev;
	struct gen_pool *pool;
	void *at;
	dma_addr_t dma;
	u64 length;
	const struct cred *cred;
};

/*
 * Held for reading while the CPU accesses the memory, so for one chunk at most.
 * Held for writing to allocate, free and revoke memory.
 */
static DECLARE_RWSEM(nymph_cards_lock);
static LIST_HEAD(nymph_cards);

/**
 * nymph_card_alloc() - Allocate memory of a device
 * @dev: the device, whose driver the caller keeps from being unbound
 * @length: bytes, not 0
 *
 * The memory has the bytes of its last user: see nymph_card_clear().
 *
 * Return: the memory; -EOPNOTSUPP if the device has none, -ENOMEM if not enough
 * is left of it, -EDQUOT if current's user would have too much of it.
 */
struct nymph_card *nymph_card_alloc(struct device *dev, u64 length)
{
	struct gen_pool *pool = NULL;
	struct nymph_card *card;
	int ret;

	if (IS_ENABLED(CONFIG_GENERIC_ALLOCATOR))
		pool = gen_pool_get(dev, NYMPH_CARD_POOL);
	if (!pool)
		return ERR_PTR(-EOPNOTSUPP);
	card = kzalloc(sizeof(*card), GFP_KERNEL_ACCOUNT);
	if (!card)
		return ERR_PTR(-ENOMEM);
	card->cred = nymph_user_add_card(dev, length, gen_pool_size(pool));
	if (IS_ERR(card->cred)) {
		ret = PTR_ERR(card->cred);
		kfree(card);
		return ERR_PTR(ret);
	}
	card->dev = dev;
	card->pool = pool;
	card->length = length;
	down_write(&nymph_cards_lock);
	card->at = gen_pool_dma_alloc(pool, length, &card->dma);
	if (card->at)
		list_add_tail(&card->list, &nymph_cards);
	up_write(&nymph_cards_lock);
	if (!card->at) {
		nymph_user_drop_card(card->cred, dev, length);
		kfree(card);
		return ERR_PTR(-ENOMEM);
	}
	nymph_count(NYMPH_COUNT_CARD_BYTES, length);
	return card;
}

/* nymph_cards_lock is held for writing. */
static void nymph_card_take_back(struct nymph_card *card)
{
	if (IS_ENABLED(CONFIG_GENERIC_ALLOCATOR))
		gen_pool_free(card->pool, (unsigned long)card->at,
			      card->length);
	nymph_user_drop_card(card->cred, card->dev, card->length);
	card->pool = NULL;
	list_del(&card->list);
}

/**
 * nymph_card_free() - Free memory of a device
 * @card: the memory; no engine may still use it
 */
void nymph_card_free(struct nymph_card *card)
{
	down_write(&nymph_cards_lock);
	if (card->pool)
		nymph_card_take_back(card);
	up_write(&nymph_cards_lock);
	nymph_count(NYMPH_COUNT_CARD_BYTES, -(long)card->length);
	kfree(card);
}

/**
 * nymph_cards_revoke() - Revoke all memory of a device that leaves
 * @dev: the device; nobody can take memory of it any more
 */
void nymph_cards_revoke(struct device *dev)
{
	struct nymph_card *card, *next;

	down_write(&nymph_cards_lock);
	list_for_each_entry_safe(card, next, &nymph_cards, list)
		if (card->dev == dev)
			nymph_card_take_back(card);
	up_write(&nymph_cards_lock);
}

/* Returns whether the memory is still there; it is then, until nymph_card_end(). */
static bool nymph_card_begin(const struct nymph_card *card)
{
	down_read(&nymph_cards_lock);
	if (card->pool)
		return true;
	up_read(&nymph_cards_lock);
	return false;
}

static void nymph_card_end(void)
{
	up_read(&nymph_cards_lock);
}

/**
 * nymph_card_dma() - Get the address that a device has for its memory
 * @card: the memory
 * @dev: the device, whose driver the caller keeps from being unbound
 * @dma: filled
 *
 * Return: 0; -EFAULT if it is gone; -EXDEV if it is another device's.
 */
int nymph_card_dma(const struct nymph_card *card, const struct device *dev,
		   dma_addr_t *dma)
{
	bool is_its;

	if (!nymph_card_begin(card))
		return -EFAULT;
	is_its = card->dev == dev;
	*dma = card->dma;
	nymph_card_end();
	return is_its ? 0 : -EXDEV;
}

/**
 * nymph_card_load() - Have the CPU read memory of a device
 * @card: the memory
 * @offset: where in it to start
 * @to: kernel memory
 * @len: bytes
 *
 * Return: whether the memory is still there.
 */
bool nymph_card_load(const struct nymph_card *card, u64 offset, void *to,
		     size_t len)
{
	if (!nymph_card_begin(card))
		return false;
	memcpy(to, card->at + offset, len);
	nymph_card_end();
	return true;
}

/**
 * nymph_card_store() - Have the CPU write memory of a device
 * @card: the memory
 * @offset: where in it to start
 * @from: kernel memory
 * @len: bytes
 *
 * Return: whether the memory is still there.
 */
bool nymph_card_store(const struct nymph_card *card, u64 offset,
		      const void *from, size_t len)
{
	if (!nymph_card_begin(card))
		return false;
	memcpy(card->at + offset, from, len);
	nymph_card_end();
	return true;
}

/**
 * nymph_card_clear() - Overwrite memory of a device with zeros
 * @card: the memory
 *
 * Return: whether it is still there.
 */
bool nymph_card_clear(const struct nymph_card *card)
{
	u64 at, n;

	for (at = 0; at < card->length; at += n) {
		n = min_t(u64, card->length - at, NYMPH_CHUNK);
		if (!nymph_card_begin(card))
			return false;
		memset(card->at + at, 0, n);
		nymph_card_end();
		cond_resched();
	}
	return true;
}
