// SPDX-License-Identifier: GPL-2.0-only
/*
 * BLAKE3: variant for little-endian 64-bit ARM.
 */
#define NAME		nymph_blake3_neon
#define NAME_TEXT	"neon"
#define KEEP(v)		asm("" : "+w" (v))
#define SHUFFLE_BYTES(v, by) \
	asm("tbl %0.16b, { %0.16b }, %1.16b" : "+w" (v) : "w" (by))
#include "simd.h"
