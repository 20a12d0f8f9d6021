// SPDX-License-Identifier: MIT
/* The kernels of pynymph/cuda_blake3.h as functions that ctypes can call. */
#include "cuda_host.h"

#include "cuda_blake3.h"

static const void *arguments;

#define LAUNCH(kernel, of)                                                                               \
	extern "C" void launch_##kernel(const struct of##_args *args, unsigned int blocks, int threads) \
	{                                                                                               \
		arguments = args;                                                       \
		host::launch([] { kernel(*(const struct of##_args *)arguments); }, blocks, threads); \
	}

LAUNCH(leaf, leaf)
LAUNCH(leaf_any, leaf)
LAUNCH(middle, middle)
LAUNCH(top, top)
LAUNCH(many, many)
LAUNCH(many_any, many)
LAUNCH(small, small)
