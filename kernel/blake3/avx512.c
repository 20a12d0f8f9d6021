// SPDX-License-Identifier: GPL-2.0-only
/*
 * BLAKE3: variant for CPUs with AVX-512 F and VL.
 */
#define HAS_8
#define HAS_16
#define HAS_ROTATE
#define NAME		nymph_blake3_avx512
#define NAME_TEXT	"avx512"
#define KEEP(v)		asm("" : "+v" (v))
#include "simd.h"
