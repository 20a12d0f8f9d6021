// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: the engines there are.
 */
#include <linux/kernel.h>
#include <linux/string.h>

#include "nymph.h"

static struct nymph_engine *const nymph_engines[] = {
	&nymph_engine_cpu,
};

/**
 * nymph_engine_find() - the engine of that name
 * @name: as user space gave it; "auto" or "" for the driver's choice
 *
 * Return: the engine, or NULL.
 */
struct nymph_engine *nymph_engine_find(const char *name)
{
	unsigned int i;

	if (!*name || !strcmp(name, "auto"))
		return &nymph_engine_cpu;

	for (i = 0; i < ARRAY_SIZE(nymph_engines); i++)
		if (!strcmp(name, nymph_engines[i]->name))
			return nymph_engines[i];
	return NULL;
}

unsigned int nymph_engine_count(void)
{
	return ARRAY_SIZE(nymph_engines);
}

/**
 * nymph_engine_info() - what user space is told of an engine
 * @i: which, less than nymph_engine_count()
 * @info: filled
 */
void nymph_engine_info(unsigned int i, struct nymph_engine_info *info)
{
	memset(info, 0, sizeof(*info));
	info->size = sizeof(*info);
	info->id = nymph_engines[i]->id;
	strscpy(info->name, nymph_engines[i]->name, sizeof(info->name));
}
