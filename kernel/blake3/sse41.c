// SPDX-License-Identifier: GPL-2.0-only
/*
 * BLAKE3 for CPUs with SSE4.1.
 */
#define NAME		nymph_blake3_sse41
#define NAME_TEXT	"sse41"
#include "simd.h"
