// SPDX-License-Identifier: MIT
/* The kernels of pynymph/cuda_blake3.h as functions that ctypes can call. */
#include "cuda_host.h"

#include "cuda_blake3.h"

static const void *arguments;

#define LAUNCH(kernel, of, threads)                                                         \
	extern "C" void launch_##kernel(const struct of##_args *args, unsigned int blocks) \
	{                                                                               \
		arguments = args;                                                       \
		host::launch([] { kernel(*(const struct of##_args *)arguments); }, blocks, threads); \
	}

LAUNCH(leaf, leaf, THREADS)
LAUNCH(leaf_any, leaf, THREADS)
LAUNCH(middle, middle, THREADS)
LAUNCH(top, top, TOP_THREADS)
LAUNCH(many, many, THREADS)
LAUNCH(many_any, many, THREADS)
LAUNCH(small, small, SMALL_THREADS)
