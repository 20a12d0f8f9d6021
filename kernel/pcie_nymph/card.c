// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: memory of the device that a ring's engine is part of, a "card".
 *
 * The device's driver keeps it in a gen_pool named "card", whose virtual
 * addresses are the CPU's and whose physical ones the device's own. When the
 * driver is unbound the pool goes, and what was taken of it is withdrawn: whoever
 * has a part still finds that there is nothing any more.
 */
#include <linux/device.h>
#include <linux/genalloc.h>
#include <linux/list.h>
#include <linux/rwsem.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "nymph.h"

/**
 * struct nymph_card - a part of a device's memory
 * @list: in the list of all that are not withdrawn
 * @dev: the device; not to be touched
 * @pool: what it is of; NULL when it is withdrawn
 * @at: where the CPU has it
 * @dma: where the device has it
 * @length: bytes
 */
struct nymph_card {
	struct list_head list;
	struct device *dev;
	struct gen_pool *pool;
	void *at;
	dma_addr_t dma;
	u64 length;
};

/*
 * Held for reading while the CPU is at the memory, so for one piece at most, and
 * for writing to take, give back and withdraw it.
 */
static DECLARE_RWSEM(nymph_cards_lock);
static LIST_HEAD(nymph_cards);

/**
 * nymph_card_alloc() - take memory of a device
 * @dev: the device, whose driver can't be unbound meanwhile
 * @length: bytes, not 0
 *
 * Who had the memory before has left his bytes: see nymph_card_clear().
 *
 * Return: the memory; -EOPNOTSUPP if the device has none, -ENOMEM if not enough
 * is left of it.
 */
struct nymph_card *nymph_card_alloc(struct device *dev, u64 length)
{
	struct gen_pool *pool = gen_pool_get(dev, "card");
	struct nymph_card *card;

	if (!pool)
		return ERR_PTR(-EOPNOTSUPP);
	card = kzalloc(sizeof(*card), GFP_KERNEL_ACCOUNT);
	if (!card)
		return ERR_PTR(-ENOMEM);
	card->dev = dev;
	card->pool = pool;
	card->length = length;
	down_write(&nymph_cards_lock);
	card->at = gen_pool_dma_alloc(pool, length, &card->dma);
	if (card->at)
		list_add_tail(&card->list, &nymph_cards);
	up_write(&nymph_cards_lock);
	if (!card->at) {
		kfree(card);
		return ERR_PTR(-ENOMEM);
	}
	nymph_count(NYMPH_COUNT_CARD_BYTES, length);
	return card;
}

/* nymph_cards_lock is held for writing. */
static void nymph_card_take_back(struct nymph_card *card)
{
	gen_pool_free(card->pool, (unsigned long)card->at, card->length);
	card->pool = NULL;
	list_del(&card->list);
}

/**
 * nymph_card_free() - give memory back
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
 * nymph_cards_withdraw() - a device leaves, and its memory with it
 * @dev: the device; nobody can take memory of it any more
 */
void nymph_cards_withdraw(struct device *dev)
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
 * nymph_card_dma() - where a device has the memory
 * @card: the memory
 * @dev: the device, whose driver can't be unbound meanwhile
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
 * nymph_card_load() - have the CPU read
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
 * nymph_card_store() - have the CPU write
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
 * nymph_card_hash() - have the CPU hash
 * @card: the memory
 * @offset: where in it to start
 * @len: bytes
 * @hash: is updated
 *
 * Return: whether the memory is still there.
 */
bool nymph_card_hash(const struct nymph_card *card, u64 offset, size_t len,
		     struct nymph_blake3 *hash)
{
	if (!nymph_card_begin(card))
		return false;
	nymph_blake3_update(hash, card->at + offset, len);
	nymph_card_end();
	return true;
}

/**
 * nymph_card_clear() - overwrite memory with zeros
 * @card: the memory
 *
 * Return: whether it is still there.
 */
bool nymph_card_clear(const struct nymph_card *card)
{
	u64 at, n;

	for (at = 0; at < card->length; at += n) {
		n = min_t(u64, card->length - at, NYMPH_PIECE);
		if (!nymph_card_begin(card))
			return false;
		memset(card->at + at, 0, n);
		nymph_card_end();
		cond_resched();
	}
	return true;
}
