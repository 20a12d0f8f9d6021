/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * BLAKE3: choice of the variant that this CPU runs.
 */
#ifndef _NYMPH_BLAKE3_SELECT_H
#define _NYMPH_BLAKE3_SELECT_H

const char *nymph_blake3_select(const char *wanted);

#endif /* _NYMPH_BLAKE3_SELECT_H */
