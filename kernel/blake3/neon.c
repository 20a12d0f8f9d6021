// SPDX-License-Identifier: GPL-2.0-only
/*
 * BLAKE3 for CPUs with NEON.
 */
#define NAME		nymph_blake3_neon
#define NAME_TEXT	"neon"
#include "simd.h"
