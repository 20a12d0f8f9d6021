// SPDX-License-Identifier: GPL-2.0-only
/*
 * BLAKE3: variant for CPUs with AVX2.
 */
#define HAS_8
#define FEW_REGISTERS
#define NAME		nymph_blake3_avx2
#define NAME_TEXT	"avx2"
#define KEEP(v)		asm("" : "+x" (v))
#define SHUFFLE_BYTES(v, by)	asm("vpshufb %1, %0, %0" : "+x" (v) : "m" (by))
#include "simd.h"
