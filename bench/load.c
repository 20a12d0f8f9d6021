// SPDX-License-Identifier: MIT
/*
 * What C clients do to a ring, and what they would do without one, turn by turn,
 * for suite.py:
 *
 *	load PATH ENGINE OPCODE FLAGS MEMORY BYTES DEPTH ENTRIES RINGS DATA
 *
 * PATH: see paths[]. ENGINE: a name, or auto. OPCODE, FLAGS: numbers of
 * pcie_nymph.h. MEMORY: "buffer", of the driver's, or "user". BYTES of each of
 * DEPTH operations; ENTRIES of each of RINGS rings. DATA: a file with the bytes
 * of all operations' sources.
 *
 * A line on stdin, "NANOSECONDS", is one turn: all DEPTH operations over and over
 * until that long has passed. What comes back on stdout is a struct answer, the
 * time of every operation in ns, as many as fit, and the source digests of the
 * last DEPTH. Before that all destinations are compared with their sources, and
 * digests with each other. Whatever is wrong ends the program with a message.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "pcie_nymph.h"

#define MAX_TIMES (1 << 16)
#define MAX_RINGS 256
#define URING_DEPTH 32
#define URING_PIECE (128 << 10)

struct answer {
	uint64_t operations;
	uint64_t ns;
	uint64_t client_cpu_ns;
	uint64_t tasks_ns;  /* that all of the machine's tasks ran */
	uint64_t waited_ns; /* for a CPU, all of them */
	uint64_t engine_ns; /* that the engine was at work, if records tell */
	uint64_t times;
	uint64_t digests;
};

struct ring {
	int fd;
	uint32_t src_buffer;
	uint32_t dst_buffer;
	char *src;
	char *dst;
	struct nymph_entry entries[NYMPH_MAX_ENTRIES];
	struct nymph_record records[NYMPH_MAX_ENTRIES];
};

static const char *engine;
static uint16_t opcode;
static uint32_t flags;
static int in_buffer;
static size_t bytes;
static unsigned int depth, nr_entries, nr_rings;
static char *data;
static struct ring *rings[MAX_RINGS];
static uint64_t times[MAX_TIMES];
static uint64_t first_started, last_completed;
static struct answer answer;

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

static uint64_t cpu_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

/* So long all tasks ran on the CPUs, or waited for one. */
static void cpus(uint64_t *ran, uint64_t *waited)
{
	unsigned long long run, delay;
	char line[4096];
	FILE *file;

	usleep(500); /* a CPU only counts what it has changed over from: now also this task */
	file = fopen("/proc/schedstat", "r");
	if (!file)
		err(1, "/proc/schedstat, which CONFIG_SCHEDSTATS makes");
	*ran = *waited = 0;
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "cpu%*u %*u %*u %*u %*u %*u %*u %llu %llu", &run, &delay) == 2) {
			*ran += run;
			*waited += delay;
		}
	fclose(file);
}

static void took(uint64_t ns)
{
	if (answer.times < MAX_TIMES)
		times[answer.times++] = ns;
}

static char *memory(size_t length)
{
	char *at =
		mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (at == MAP_FAILED)
		err(1, "mmap of %zu bytes", length);
	return at;
}

/* --- set-up --- */

static int open_ring(void)
{
	struct nymph_setup2 setup = { .size = sizeof(setup), .entries = nr_entries };
	int fd = open("/dev/pcie_nymph", O_RDWR);

	if (fd < 0)
		err(1, "/dev/pcie_nymph");
	strncpy(setup.engine, engine, sizeof(setup.engine) - 1);
	if (ioctl(fd, NYMPH_IOC_SETUP2, &setup))
		err(1, "SETUP2 of %u entries on %s", nr_entries, engine);
	return fd;
}

static struct nymph_buffer buffer_request(int fd, uint32_t op, void *addr, size_t length)
{
	struct nymph_buffer buffer = {
		.size = sizeof(buffer),
		.op = op,
		.addr = (uintptr_t)addr,
		.length = length,
	};

	if (ioctl(fd, NYMPH_IOC_BUFFER, &buffer))
		err(1, "BUFFER, op %u, of %zu bytes", op, length);
	return buffer;
}

static void free_buffer(int fd, uint32_t handle)
{
	struct nymph_buffer buffer = {
		.size = sizeof(buffer),
		.op = NYMPH_BUFFER_FREE,
		.handle = handle,
	};

	if (ioctl(fd, NYMPH_IOC_BUFFER, &buffer))
		err(1, "BUFFER, FREE");
}

static char *allocate(int fd, size_t length, uint32_t *handle)
{
	struct nymph_buffer buffer = buffer_request(fd, NYMPH_BUFFER_ALLOC, NULL, length);
	char *at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, buffer.mmap_offset);

	if (at == MAP_FAILED)
		err(1, "mmap of a buffer of %zu bytes", length);
	*handle = buffer.handle;
	return at;
}

static struct ring *make_ring(void)
{
	struct ring *ring = calloc(1, sizeof(*ring));
	size_t all = depth * bytes;
	unsigned int i;

	if (!ring)
		err(1, "a ring");
	ring->fd = open_ring();
	if (in_buffer) {
		ring->src = allocate(ring->fd, all, &ring->src_buffer);
		ring->dst = allocate(ring->fd, all, &ring->dst_buffer);
	} else {
		ring->src = memory(all);
		ring->dst = memory(all);
	}
	memcpy(ring->src, data, all);
	for (i = 0; i < depth; i++) {
		struct nymph_entry *e = &ring->entries[i];
		char *none = NULL;

		*e = (struct nymph_entry){
			.size = sizeof(*e),
			.opcode = opcode,
			.flags = flags | NYMPH_DMA_FLAG_RECORD,
			.length = bytes,
			.src = (uintptr_t)((in_buffer ? none : ring->src) + i * bytes),
			.src_buffer = ring->src_buffer,
			.cookie = i,
		};
		if (opcode != NYMPH_OP_HASH) {
			e->dst = (uintptr_t)((in_buffer ? none : ring->dst) + i * bytes);
			e->dst_buffer = ring->dst_buffer;
		}
	}
	return ring;
}

/* --- what is right --- */

static void check_record(const struct nymph_record *r)
{
	const uint32_t both = NYMPH_RECORD_SRC_DIGEST | NYMPH_RECORD_DST_DIGEST;

	if (r->status || r->bytes_done != bytes)
		errx(1, "an operation ended with %d after %llu bytes", r->status,
		     (unsigned long long)r->bytes_done);
	if ((r->flags & both) == both && memcmp(r->src_digest, r->dst_digest, NYMPH_DIGEST_SIZE))
		errx(1, "the driver let digests pass that differ");
}

static void check_memory(const char *what, const char *found)
{
	size_t i, all = depth * bytes;

	if (!memcmp(found, data, all))
		return;
	for (i = 0; found[i] == data[i]; i++)
		;
	errx(1, "%s: byte %zu of %zu is wrong", what, i, all);
}

/* --- the ways: each makes DEPTH operations on every ring --- */

static int enter(struct ring *ring, struct nymph_entry *entries, unsigned int n, unsigned int records)
{
	struct nymph_enter arg = {
		.size = sizeof(arg),
		.entries = (uintptr_t)entries,
		.records = (uintptr_t)ring->records,
		.to_submit = n,
		.max_records = records,
		.min_records = records,
		.deadline_ns = NYMPH_NO_DEADLINE,
	};
	int submitted = ioctl(ring->fd, NYMPH_IOC_ENTER, &arg);

	if (submitted != (int)n || arg.reaped != records)
		errx(1, "ENTER took %d of %u entries and gave %u of %u records: %s", submitted, n, arg.reaped,
		     records, strerror(submitted < 0 ? errno : -arg.error));
	return submitted;
}

static void took_as_recorded(const struct ring *ring, unsigned int n)
{
	unsigned int i;

	for (i = 0; i < n; i++) {
		const struct nymph_record *r = &ring->records[i];

		check_record(r);
		took(r->completed_ns - r->queued_ns);
		if (r->started_ns < first_started)
			first_started = r->started_ns;
		if (r->completed_ns > last_completed)
			last_completed = r->completed_ns;
	}
}

static void by_enter(void)
{
	unsigned int i;

	first_started = UINT64_MAX;
	last_completed = 0;
	if (nr_rings == 1) {
		enter(rings[0], rings[0]->entries, depth, depth);
		took_as_recorded(rings[0], depth);
	} else {
		/* all rings run at once */
		for (i = 0; i < nr_rings; i++)
			enter(rings[i], rings[i]->entries, depth, 0);
		for (i = 0; i < nr_rings; i++) {
			enter(rings[i], NULL, 0, depth);
			took_as_recorded(rings[i], depth);
		}
	}
	answer.engine_ns += last_completed - first_started;
}

static void by_enter_1(void)
{
	struct ring *ring = rings[0];
	unsigned int i;

	for (i = 0; i < depth; i++) {
		uint64_t begun = now_ns();

		enter(ring, &ring->entries[i], 1, 1);
		took(now_ns() - begun);
		check_record(ring->records);
	}
}

static void by_read(void)
{
	struct ring *ring = rings[0];
	unsigned int got = 0;

	enter(ring, ring->entries, depth, 0);
	while (got < depth) {
		ssize_t n = read(ring->fd, &ring->records[got], (depth - got) * sizeof(*ring->records));

		if (n <= 0)
			err(1, "read");
		got += n / sizeof(*ring->records);
	}
	took_as_recorded(ring, depth);
}

static void submit(struct ring *ring, unsigned int i, uint32_t more)
{
	struct nymph_dma_desc desc = {
		.src_addr = (uintptr_t)(ring->src + i * bytes),
		.dst_addr = (uintptr_t)(ring->dst + i * bytes),
		.length = bytes,
		.flags = flags | more,
		.cookie = i,
	};

	if (ioctl(ring->fd, NYMPH_IOC_SUBMIT_DMA, &desc))
		err(1, "SUBMIT_DMA");
}

static void by_submit(void)
{
	unsigned int i;

	for (i = 0; i < depth; i++) {
		uint64_t begun = now_ns();

		submit(rings[0], i, NYMPH_DMA_FLAG_COMPLETE_SYNC);
		took(now_ns() - begun);
	}
}

/* The first driver's clients queue, and look at GET_STATUS until nothing is active. */
static void by_submit_poll(void)
{
	struct nymph_fabric_status status;
	struct ring *ring = rings[0];
	uint64_t begun = now_ns();
	unsigned int i;

	for (i = 0; i < depth; i++)
		submit(ring, i, 0);
	do {
		if (ioctl(ring->fd, NYMPH_IOC_GET_STATUS, &status))
			err(1, "GET_STATUS");
	} while (status.active_descriptors);
	took((now_ns() - begun) / depth);
}

static void by_setup(void)
{
	uint64_t begun = now_ns();

	close(open_ring());
	took(now_ns() - begun);
}

static void by_allocate(void)
{
	struct ring *ring = rings[0];
	uint64_t begun = now_ns();

	free_buffer(ring->fd, buffer_request(ring->fd, NYMPH_BUFFER_ALLOC, NULL, bytes).handle);
	took(now_ns() - begun);
}

static void by_register(void)
{
	struct ring *ring = rings[0];
	uint64_t begun = now_ns();

	free_buffer(ring->fd, buffer_request(ring->fd, NYMPH_BUFFER_REGISTER, ring->src, bytes).handle);
	took(now_ns() - begun);
}

/* --- io_uring: a file into another, in chunks, each a read and a write linked to it --- */

static struct io_uring uring;
static int file_from, file_to;
static char *uring_memory, *copied;

static void uring_setup(const char *path)
{
	int ret = io_uring_queue_init(2 * URING_DEPTH, &uring, 0);

	if (ret)
		errx(1, "io_uring: %s", strerror(-ret));
	file_from = open(path, O_RDONLY);
	file_to = memfd_create("copy", 0);
	if (file_from < 0 || file_to < 0 || ftruncate(file_to, depth * bytes))
		err(1, "the files for io_uring");
	uring_memory = memory(URING_DEPTH * URING_PIECE);
	copied = mmap(NULL, depth * bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file_to, 0);
	if (copied == MAP_FAILED)
		err(1, "mmap");
}

static void uring_copy(size_t from, size_t length)
{
	size_t end = from + length, most = URING_PIECE;

	while (from < end) {
		unsigned int slot, n = 0;
		struct io_uring_cqe *cqe;

		for (slot = 0; slot < URING_DEPTH && from < end; slot++) {
			unsigned int chunk = end - from < most ? end - from : most;
			char *at = uring_memory + slot * URING_PIECE;
			struct io_uring_sqe *sqe = io_uring_get_sqe(&uring);

			io_uring_prep_read(sqe, file_from, at, chunk, from);
			sqe->flags |= IOSQE_IO_LINK;
			io_uring_sqe_set_data64(sqe, chunk);
			sqe = io_uring_get_sqe(&uring);
			io_uring_prep_write(sqe, file_to, at, chunk, from);
			io_uring_sqe_set_data64(sqe, chunk);
			from += chunk;
			n += 2;
		}
		if (io_uring_submit_and_wait(&uring, n) < 0)
			errx(1, "io_uring_submit_and_wait");
		for (; n; n--) {
			if (io_uring_wait_cqe(&uring, &cqe) || (uint64_t)cqe->res != cqe->user_data)
				errx(1, "io_uring: a chunk is not whole");
			io_uring_cqe_seen(&uring, cqe);
		}
	}
}

static void by_uring(void)
{
	unsigned int i;

	for (i = 0; i < depth; i++) {
		uint64_t begun = now_ns();

		uring_copy(i * bytes, bytes);
		took(now_ns() - begun);
	}
}

static void by_memmove(void)
{
	unsigned int i;

	for (i = 0; i < depth; i++) {
		uint64_t begun = now_ns();

		memmove(copied + i * bytes, data + i * bytes, bytes);
		took(now_ns() - begun);
	}
}

/* --- turns --- */

static const struct path {
	const char *name;
	void (*run)(void);
	int moves; /* bytes of all operations, so that they can be checked */
	int records;
} paths[] = {
	{ "enter", by_enter, 1, 1 },
	{ "enter-1", by_enter_1, 1, 0 },
	{ "read", by_read, 1, 1 },
	{ "submit", by_submit, 1, 0 },
	{ "submit-poll", by_submit_poll, 1, 0 },
	{ "setup", by_setup, 0, 0 },
	{ "allocate", by_allocate, 0, 0 },
	{ "register", by_register, 0, 0 },
	{ "uring", by_uring, 1, 0 },
	{ "memmove", by_memmove, 1, 0 },
};

static void say(const void *what, size_t length)
{
	if (fwrite(what, 1, length, stdout) != length)
		err(1, "stdout");
}

static void turn(const struct path *path, uint64_t ns)
{
	int copies = path->moves && (copied || opcode == NYMPH_OP_COPY);
	uint64_t begun, cpu, ran, waited, now, end;
	unsigned int i;

	if (copied)
		memset(copied, 0x5a, depth * bytes);
	for (i = 0; copies && i < nr_rings && rings[i]; i++)
		memset(rings[i]->dst, 0x5a, depth * bytes);
	answer = (struct answer){ 0 };
	cpus(&ran, &waited);
	cpu = cpu_ns();
	begun = now_ns();
	end = begun + ns;
	do {
		path->run();
		answer.operations += path->moves ? depth * nr_rings : 1;
		now = now_ns();
	} while (now < end);
	answer.ns = now - begun;
	answer.client_cpu_ns = cpu_ns() - cpu;
	cpus(&answer.tasks_ns, &answer.waited_ns);
	answer.tasks_ns -= ran;
	answer.waited_ns -= waited;
	if (copied)
		check_memory(path->name, copied);
	for (i = 0; copies && i < nr_rings && rings[i]; i++)
		check_memory(path->name, rings[i]->dst);
	if (path->records && rings[0]->records[0].flags & NYMPH_RECORD_SRC_DIGEST)
		answer.digests = depth;
	say(&answer, sizeof(answer));
	say(times, answer.times * sizeof(*times));
	for (i = 0; i < answer.digests; i++)
		say(rings[0]->records[i].src_digest, NYMPH_DIGEST_SIZE);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	const struct path *path = paths;
	char line[32];
	unsigned int i;
	int fd;

	if (argc != 11)
		errx(2, "usage: load PATH ENGINE OPCODE FLAGS MEMORY BYTES DEPTH ENTRIES RINGS DATA");
	while (strcmp(path->name, argv[1]))
		if (++path == paths + sizeof(paths) / sizeof(*paths))
			errx(2, "no path %s", argv[1]);
	engine = argv[2];
	opcode = strtoul(argv[3], NULL, 0);
	flags = strtoul(argv[4], NULL, 0);
	in_buffer = !strcmp(argv[5], "buffer");
	bytes = strtoull(argv[6], NULL, 0);
	depth = strtoul(argv[7], NULL, 0);
	nr_entries = strtoul(argv[8], NULL, 0);
	nr_rings = strtoul(argv[9], NULL, 0);
	if (!bytes || !depth || depth > NYMPH_MAX_ENTRIES || !nr_rings || nr_rings > MAX_RINGS)
		errx(2, "BYTES, DEPTH and RINGS are 1 and more, up to 4096 and 256");
	fd = open(argv[10], O_RDONLY);
	if (fd < 0)
		err(1, "%s", argv[10]);
	data = mmap(NULL, depth * bytes, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
	if (data == MAP_FAILED)
		err(1, "%s", argv[10]);
	if (path->run == by_uring || path->run == by_memmove)
		uring_setup(argv[10]);
	else
		for (i = 0; i < nr_rings; i++)
			rings[i] = make_ring();

	while (fgets(line, sizeof(line), stdin))
		turn(path, strtoull(line, NULL, 0));
	return 0;
}
