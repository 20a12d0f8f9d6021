// SPDX-License-Identifier: MIT
/*
 * How many copies per second C gets out of a ring, for bench/rate.py:
 *
 *	rate ENGINE BYTES DEPTH PATH SECONDS
 *
 * PATH is "submit": a request of the first driver for each copy; "enter-1": an
 * ENTER for each; "enter": one ENTER for DEPTH of them, which collects their
 * records too. Prints the copies made and the nanoseconds they took.
 */
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#include "pcie_nymph.h"

static struct nymph_entry entries[NYMPH_MAX_ENTRIES];
static struct nymph_record records[NYMPH_MAX_ENTRIES];

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

static uint32_t allocate(int fd, uint64_t length)
{
	struct nymph_buffer buffer = {
		.size = sizeof(buffer),
		.op = NYMPH_BUFFER_ALLOC,
		.length = length,
	};

	if (ioctl(fd, NYMPH_IOC_BUFFER, &buffer))
		err(1, "BUFFER");
	return buffer.handle;
}

static void enter(int fd, unsigned int depth)
{
	struct nymph_enter arg = {
		.size = sizeof(arg),
		.entries = (uintptr_t)entries,
		.records = (uintptr_t)records,
		.to_submit = depth,
		.max_records = depth,
		.min_records = depth,
		.deadline_ns = NYMPH_NO_DEADLINE,
	};

	if (ioctl(fd, NYMPH_IOC_ENTER, &arg) != (int)depth || arg.reaped != depth)
		err(1, "ENTER of %u", depth);
	for (unsigned int i = 0; i < depth; i++)
		if (records[i].status)
			errx(1, "copy ended with %d", records[i].status);
}

static void submit(int fd, void *src, void *dst, uint32_t length)
{
	struct nymph_dma_desc desc = {
		.src_addr = (uintptr_t)src,
		.dst_addr = (uintptr_t)dst,
		.length = length,
		.flags = NYMPH_DMA_FLAG_COMPLETE_SYNC,
	};

	if (ioctl(fd, NYMPH_IOC_SUBMIT_DMA, &desc))
		err(1, "SUBMIT_DMA");
}

int main(int argc, char **argv)
{
	struct nymph_setup2 setup = { .size = sizeof(setup) };
	uint64_t bytes, copies = 0, begun, end, now;
	unsigned int depth;
	uint32_t src, dst;
	char *memory;
	int fd;

	if (argc != 6)
		errx(2, "usage: rate ENGINE BYTES DEPTH PATH SECONDS");
	bytes = strtoull(argv[2], NULL, 0);
	depth = strtoul(argv[3], NULL, 0);
	fd = open("/dev/pcie_nymph", O_RDWR);
	if (fd < 0)
		err(1, "/dev/pcie_nymph");
	setup.entries = depth;
	strncpy(setup.engine, argv[1], sizeof(setup.engine) - 1);
	if (ioctl(fd, NYMPH_IOC_SETUP2, &setup))
		err(1, "SETUP2");

	src = allocate(fd, depth * bytes);
	dst = allocate(fd, depth * bytes);
	for (unsigned int i = 0; i < depth; i++)
		entries[i] = (struct nymph_entry){
			.size = sizeof(*entries),
			.opcode = NYMPH_OP_COPY,
			.flags = NYMPH_DMA_FLAG_RECORD,
			.length = bytes,
			.src = i * bytes,
			.dst = i * bytes,
			.src_buffer = src,
			.dst_buffer = dst,
		};
	memory = mmap(NULL, 2 * depth * bytes, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (memory == MAP_FAILED)
		err(1, "mmap");

	begun = now_ns();
	end = begun + (uint64_t)(atof(argv[5]) * 1e9);
	do {
		/* as many on every path between two looks at the clock, and as much memory */
		if (!strcmp(argv[4], "enter"))
			enter(fd, depth);
		else if (!strcmp(argv[4], "enter-1"))
			for (unsigned int i = 0; i < depth; i++)
				enter(fd, 1);
		else if (!strcmp(argv[4], "submit"))
			for (unsigned int i = 0; i < depth; i++)
				submit(fd, memory + i * bytes, memory + (depth + i) * bytes, bytes);
		else
			errx(2, "no path %s", argv[4]);
		copies += depth;
		now = now_ns();
	} while (now < end);
	printf("%llu %llu\n", (unsigned long long)copies, (unsigned long long)(now - begun));
	return 0;
}
