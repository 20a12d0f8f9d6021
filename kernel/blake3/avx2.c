// SPDX-License-Identifier: GPL-2.0-only
/*
 * BLAKE3 for CPUs with AVX2.
 */
#define HAS_8
#define FEW_REGISTERS
#define NAME		nymph_blake3_avx2
#define NAME_TEXT	"avx2"
#define KEEP(v)		asm("" : "+x" (v))
#include "simd.h"
