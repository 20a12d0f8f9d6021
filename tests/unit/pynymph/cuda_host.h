/* SPDX-License-Identifier: MIT */
/*
 * CUDA's threads on the host, for pynymph/cuda_blake3.h: those of a block are coroutines
 * that take turns, the blocks run one after the other.
 */
#pragma once
#include <algorithm>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <ucontext.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __constant__
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __grid_constant__
#define __builtin_assume(x)
#define __isGlobal(p) true

struct uint4 {
	unsigned int x, y, z, w;
};

static inline uint4 make_uint4(unsigned int x, unsigned int y, unsigned int z, unsigned int w)
{
	return { x, y, z, w };
}

using std::min;

struct index3 {
	unsigned int x;
};

static index3 threadIdx, blockIdx, blockDim;

namespace host
{
constexpr int MOST = 256, STACK = 1 << 16;

/* How often the threads that share it have all come to a barrier, and how many wait for that now. */
struct barrier {
	unsigned int times, waiting, of;
};

static jmp_buf threads[MOST], scheduler;
static ucontext_t context;
static char *stacks;
static bool done[MOST];
static barrier block, warps[MOST / 32];
static unsigned int slots[MOST];
static void (*body)();

static inline void yield()
{
	if (!_setjmp(threads[threadIdx.x]))
		_longjmp(scheduler, 1);
}

static inline void wait(barrier &b)
{
	unsigned int times = b.times, me = threadIdx.x;

	if (++b.waiting == b.of) {
		b.waiting = 0;
		b.times++;
		return;
	}
	while (b.times == times)
		yield();
	if (threadIdx.x != me)
		abort();
}

static void entry()
{
	if (!_setjmp(threads[threadIdx.x]))
		_longjmp(scheduler, 1);
	body();
	done[threadIdx.x] = true;
	_longjmp(scheduler, 1);
}

static inline barrier &warp()
{
	return warps[threadIdx.x / 32];
}

/* What each lane of this warp gives; valid until the lane's next exchange. */
static inline const unsigned int *exchange(unsigned int value)
{
	static thread_local unsigned int copy[MOST][32];
	unsigned int *mine = copy[threadIdx.x];

	slots[threadIdx.x] = value;
	wait(warp());
	std::memcpy(mine, slots + threadIdx.x / 32 * 32, sizeof(copy[0]));
	wait(warp());
	return mine;
}

/* Run a kernel of `blocks` blocks of `n` threads, a multiple of 32. */
static inline void launch(void (*kernel)(), unsigned int blocks, unsigned int n)
{
	static ucontext_t back;

	if (!stacks)
		stacks = (char *)mmap(nullptr, (size_t)MOST * STACK, PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	body = kernel;
	blockDim.x = n;
	for (unsigned int b = 0; b < blocks; b++) {
		volatile unsigned int left = n, t, before;

		blockIdx.x = b;
		block = { 0, 0, n };
		for (unsigned int w = 0; w < n / 32; w++)
			warps[w] = { 0, 0, 32 };
		for (t = 0; t < n; t++) {
			done[t] = false;
			threadIdx.x = t;
			getcontext(&context);
			context.uc_stack.ss_sp = stacks + (size_t)t * STACK;
			context.uc_stack.ss_size = STACK;
			context.uc_link = nullptr;
			makecontext(&context, entry, 0);
			if (!_setjmp(scheduler))
				swapcontext(&back, &context);
		}
		while (left) {
			before = left;
			for (t = 0; t < n; t++) {
				if (done[t])
					continue;
				threadIdx.x = t;
				if (!_setjmp(scheduler))
					_longjmp(threads[t], 1);
				if (done[t])
					left = left - 1;
			}
			(void)before;
		}
	}
}
}

static inline void __syncthreads()
{
	host::wait(host::block);
}

static inline void __syncwarp()
{
	host::wait(host::warp());
}

static inline unsigned int __ballot_sync(unsigned int, bool is)
{
	const unsigned int *all = host::exchange(is);
	unsigned int bits = 0;

	for (int i = 0; i < 32; i++)
		bits |= all[i] << i;
	return bits;
}

static inline bool __all_sync(unsigned int mask, bool is)
{
	return __ballot_sync(mask, is) == ~0u;
}

template <class T>
static inline T __shfl_sync(unsigned int, T value, unsigned int lane, unsigned int width = 32)
{
	unsigned int from = threadIdx.x % 32 / width * width + lane % width;
	uint64_t low = host::exchange((unsigned int)value)[from];

	if (sizeof(T) > 4)
		low |= (uint64_t)host::exchange((unsigned int)((uint64_t)value >> 32))[from] << 32;
	return (T)low;
}

static inline unsigned int __shfl_xor_sync(unsigned int mask, unsigned int value, unsigned int with, unsigned int width)
{
	return __shfl_sync(mask, value, (threadIdx.x % width) ^ with, width);
}

static inline unsigned int __funnelshift_r(unsigned int low, unsigned int high, unsigned int n)
{
	return (unsigned int)(((uint64_t)high << 32 | low) >> (n & 31));
}

static inline unsigned int __funnelshift_l(unsigned int low, unsigned int high, unsigned int n)
{
	return (unsigned int)(((uint64_t)high << 32 | low) << (n & 31) >> 32);
}

static inline unsigned int __byte_perm(unsigned int a, unsigned int b, unsigned int order)
{
	uint64_t bytes = (uint64_t)b << 32 | a;
	unsigned int x = 0;

	for (int i = 0; i < 4; i++)
		x |= (unsigned int)(bytes >> (order >> (4 * i) & 7) * 8 & 255) << (8 * i);
	return x;
}

static inline int __ffs(int x)
{
	return __builtin_ffs(x);
}

static inline int __clz(unsigned int x)
{
	return x ? __builtin_clz(x) : 32;
}
