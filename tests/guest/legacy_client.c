// SPDX-License-Identifier: MIT
/*
 * A program written for the first NYMPH driver: it knows the five requests by
 * number and by layout, from no header, and nothing of what came later. It
 * tells what each request answered; tests/vm/test_legacy_client.py judges.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#define SUBMIT_DMA 0xc0204e01u
#define GET_STATUS 0x80304e02u
#define SETUP_RING 0x40184e03u
#define GET_RING 0x80184e04u
#define RESET 0x00004e05u

#define ZERO_COPY 1u
#define VERIFY_HASH 2u
#define COMPLETE_SYNC 4u

struct desc {
	uint64_t src_addr, dst_addr;
	uint32_t length, flags;
	uint64_t cookie;
};

struct status {
	uint64_t dma_bytes;
	uint8_t ring_hash[32];
	uint32_t ring_size, active_descriptors;
};

struct ring {
	uint32_t ring_size, head, tail, reserved;
	uint64_t ring_addr;
};

static int fd;

static void request(const char *name, unsigned long number, void *argument)
{
	int ret = ioctl(fd, number, argument);

	printf("%s %d %d\n", name, ret, ret < 0 ? errno : 0);
}

static void tell_status(const char *name)
{
	struct status status;
	int i;

	memset(&status, 0xee, sizeof(status));
	request(name, GET_STATUS, &status);
	printf("%s.dma_bytes %llu\n", name, (unsigned long long)status.dma_bytes);
	printf("%s.ring_size %u\n", name, status.ring_size);
	printf("%s.active %u\n", name, status.active_descriptors);
	printf("%s.hash ", name);
	for (i = 0; i < 32; i++)
		printf("%02x", status.ring_hash[i]);
	printf("\n");
}

static void tell_ring(const char *name)
{
	struct ring ring;

	memset(&ring, 0xee, sizeof(ring));
	request(name, GET_RING, &ring);
	printf("%s.fields %u %u %u %u %#llx\n", name, ring.ring_size, ring.head, ring.tail, ring.reserved,
	       (unsigned long long)ring.ring_addr);
}

int main(void)
{
	static unsigned char src[10000], dst[10000];
	struct ring ring = { .ring_size = 256, .ring_addr = 0x1000000 };
	/* As the first driver's examples had it: addresses out of thin air */
	struct desc made_up = { .src_addr = 0x100000, .dst_addr = 0x200000, .length = 4096, .cookie = 42 };
	struct desc real = {
		.src_addr = (uintptr_t)src,
		.dst_addr = (uintptr_t)dst,
		.length = sizeof(src),
		.flags = VERIFY_HASH | COMPLETE_SYNC,
		.cookie = 0xfedcba9876543210ull,
	};
	struct desc sent = real;
	size_t i;

	fd = open("/dev/pcie_nymph", O_RDWR);
	if (fd < 0) {
		perror("/dev/pcie_nymph");
		return 1;
	}
	for (i = 0; i < sizeof(src); i++)
		src[i] = i * 7 + i / 256;

	tell_status("status_before");
	request("submit_before", SUBMIT_DMA, &made_up);
	request("setup", SETUP_RING, &ring);
	tell_ring("ring");
	tell_status("status");
	request("made_up", SUBMIT_DMA, &made_up);
	made_up.flags = COMPLETE_SYNC;
	request("made_up_sync", SUBMIT_DMA, &made_up);
	made_up.flags = ZERO_COPY;
	request("made_up_zero_copy", SUBMIT_DMA, &made_up);
	tell_status("status_unchanged");
	request("copy", SUBMIT_DMA, &real);
	printf("copy.same %d\n", !memcmp(src, dst, sizeof(src)));
	printf("copy.desc_unchanged %d\n", !memcmp(&real, &sent, sizeof(real)));
	tell_ring("ring_after");
	tell_status("status_after");
	request("reset", RESET, NULL);
	tell_status("status_reset");
	return 0;
}
