/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * pcie_nymph: tests inside the kernel. They are part of the module when it is built
 * with NYMPH_KUNIT=y, and run when that module is loaded.
 */
#ifndef _NYMPH_KUNIT_H
#define _NYMPH_KUNIT_H

#include <kunit/test.h>
#include <linux/types.h>

/* Older kernels do not mark slow tests. */
#ifndef KUNIT_CASE_SLOW
#define KUNIT_CASE_SLOW	KUNIT_CASE
#endif

struct nymph_pin;

/* kunit_memory.c */

#define NYMPH_KUNIT_PAGES	5

void nymph_kunit_scatter(struct kunit *test, struct nymph_pin *pin,
			 unsigned int offset);
u8 *nymph_kunit_byte(const struct nymph_pin *pin, size_t i);

#endif /* _NYMPH_KUNIT_H */
