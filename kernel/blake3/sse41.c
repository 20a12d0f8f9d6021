// SPDX-License-Identifier: GPL-2.0-only
/*
 * BLAKE3: variant for CPUs with SSE4.1.
 */
#define FEW_REGISTERS
#define NAME		nymph_blake3_sse41
#define NAME_TEXT	"sse41"
#define KEEP(v)		asm("" : "+x" (v))
#define SHUFFLE_BYTES(v, by)	asm("pshufb %1, %0" : "+x" (v) : "m" (by))
#include "simd.h"
