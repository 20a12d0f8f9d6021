// SPDX-License-Identifier: MIT
/*
 * What has to be fast of a PCI function served to user-mode Linux (pci.py has
 * the rest): the queues of its virtio PCI device, the configuration space,
 * MSI-X, and BARs that are memory, or registers that only keep what is written.
 * The rest of the BARs is Python's.
 *
 * The guest can write all of the queues, so each index and length is read once
 * and checked. One thread is in vhost_serve(); any may call the rest.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { CFG_READ = 1, CFG_WRITE, MMIO_READ, MMIO_WRITE, MMIO_MEMSET, OP_INT, OP_MSI };
enum { NEXT = 1, WRITABLE = 2 };	/* flags of descriptors */

#define CONFIG_SIZE	4096
#define MAX_REGIONS	8
#define MAX_BARS	6
#define MAX_KEPT	32
#define MAX_VECTORS	64
#define MAX_SEGMENTS	16
#define TABLE_SIZE	0x800	/* the pending bits are behind the table */

struct desc { uint64_t addr; uint32_t len; uint16_t flags, next; };
struct used_elem { uint32_t id, len; };
struct message { uint8_t op, bar; uint16_t reserved; uint32_t size; uint64_t addr; };
struct segment { uint8_t *at; uint32_t len; };

struct queue {
	uint16_t num, last;
	struct desc *desc;
	volatile uint16_t *avail, *used;	/* flags, index, then the ring */
	int kick, call;
};

typedef uint64_t (*read_fn)(uint32_t bar, uint64_t offset, uint32_t size);
typedef void (*write_fn)(uint32_t bar, uint64_t offset, uint32_t size, uint64_t value);

struct function {
	struct queue queues[2];		/* commands, and interrupts */
	struct { uint64_t guest, size; uint8_t *at; } regions[MAX_REGIONS];
	struct { uint64_t size; uint8_t *memory; } bars[MAX_BARS];
	struct { uint32_t bar; uint64_t offset, size; uint8_t *memory; } kept[MAX_KEPT];
	uint8_t config[CONFIG_SIZE], writable[CONFIG_SIZE];
	int nr_regions, nr_kept, nr_vectors, msix_bar, msix_cap;
	uint32_t msix[2 * TABLE_SIZE / 4];
	int files[MAX_VECTORS];		/* an eventfd for each vector, or -1 */
	bool intx_pending;
	bool gone;			/* as out of its slot: all reads are ones */
	uint32_t lose;			/* so many interrupts */
	uint32_t late_us;		/* each answer */
	uint64_t interrupts;
	pthread_mutex_t lock;		/* of interrupts */
	read_fn read;
	write_fn write;
};

static void *at(struct function *f, uint64_t guest, uint64_t len)
{
	for (int i = 0; i < f->nr_regions; i++) {
		uint64_t off = guest - f->regions[i].guest;

		if (guest >= f->regions[i].guest && off < f->regions[i].size && len <= f->regions[i].size - off)
			return f->regions[i].at + off;
	}
	return NULL;
}

static int take(struct queue *q)
{
	if (!q->avail || q->avail[1] == q->last)
		return -1;
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	return q->avail[2 + q->last++ % q->num] % q->num;
}

static void give(struct queue *q, int head, uint32_t len)
{
	struct used_elem *ring = (void *)(q->used + 2);

	ring[q->used[1] % q->num] = (struct used_elem){ head, len };
	__atomic_thread_fence(__ATOMIC_RELEASE);
	q->used[1]++;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* Call with the lock held. Returns whether it could be: the guest lends 10 buffers. */
static bool send_interrupt(struct function *f, uint8_t op, uint64_t addr, uint32_t data)
{
	struct { struct message head; uint32_t data; } said = {
		{ .op = op, .size = op == OP_MSI ? 4 : 0, .addr = addr }, data };
	struct queue *q = &f->queues[1];
	struct desc desc;
	uint64_t one = 1;
	void *to;
	int head;

	if (f->gone)
		return true;
	if (f->lose) {
		f->lose--;
		return true;
	}
	head = take(q);
	if (head < 0)
		return false;
	desc = q->desc[head];
	to = desc.len >= 20 ? at(f, desc.addr, 20) : NULL;
	if (to)
		memcpy(to, &said, 20);
	give(q, head, to ? 20 : 0);
	f->interrupts++;
	if (!(*q->avail & 1) && write(q->call, &one, 8) != 8)
		return true;		/* the guest is gone */
	return true;
}

static uint16_t word(const uint8_t *config, int offset)
{
	uint16_t value;

	memcpy(&value, config + offset, 2);
	return value;
}

static void raise_locked(struct function *f, uint32_t vector)
{
	volatile uint32_t *entry = f->msix + 4 * vector, *bits = f->msix + TABLE_SIZE / 4;
	uint16_t control;

	if (!f->nr_vectors || !((control = word(f->config, f->msix_cap + 2)) & 0x8000)) {
		if (word(f->config, 4) & 0x400 || !f->config[0x3d])
			return;		/* it is lost, as on a bus */
		f->intx_pending = !send_interrupt(f, OP_INT, f->config[0x3d], 0);
	} else if (vector < (uint32_t)f->nr_vectors) {
		if (!(control & 0x4000) && !(entry[3] & 1) &&
		    send_interrupt(f, OP_MSI, entry[0] | (uint64_t)entry[1] << 32, entry[2]))
			bits[vector / 32] &= ~(1u << vector % 32);
		else
			bits[vector / 32] |= 1u << vector % 32;
	}
}

void vhost_interrupt(struct function *f, uint32_t vector)
{
	pthread_mutex_lock(&f->lock);
	raise_locked(f, vector);
	pthread_mutex_unlock(&f->lock);
}

/* Interrupts that were masked, or found no buffer, and may go now. */
static void flush(struct function *f)
{
	pthread_mutex_lock(&f->lock);
	for (int i = 0; i < f->nr_vectors; i++)
		if (f->msix[(TABLE_SIZE / 4) + i / 32] & 1u << i % 32)
			raise_locked(f, i);
	if (f->intx_pending)
		raise_locked(f, 0);
	pthread_mutex_unlock(&f->lock);
}

/* Of the width the driver asked for, as a bus does it. */
static void move(void *to, const void *from, uint64_t size)
{
	switch (size) {
	case 1: *(volatile uint8_t *)to = *(const volatile uint8_t *)from; break;
	case 2: *(volatile uint16_t *)to = *(const volatile uint16_t *)from; break;
	case 4: *(volatile uint32_t *)to = *(const volatile uint32_t *)from; break;
	case 8: *(volatile uint64_t *)to = *(const volatile uint64_t *)from; break;
	default: memcpy(to, from, size);
	}
}

/* The largest power of two, up to 8, that goes into the rest and keeps to its alignment. */
static uint32_t width(uint64_t offset, uint64_t left)
{
	uint32_t size = 8;

	while (size > left || offset % size)
		size /= 2;
	return size;
}

/* Where bytes of a BAR are, if they are memory. */
static uint8_t *memory_at(struct function *f, uint32_t bar, uint64_t addr, uint64_t len)
{
	if (f->bars[bar].memory)
		return f->bars[bar].memory + addr;
	for (int i = 0; i < f->nr_kept; i++) {
		uint64_t off = addr - f->kept[i].offset;

		if (f->kept[i].bar == bar && addr >= f->kept[i].offset && off < f->kept[i].size &&
		    len <= f->kept[i].size - off)
			return f->kept[i].memory + off;
	}
	return NULL;
}

static void read_bar(struct function *f, struct message *m, uint8_t *out, uint32_t len)
{
	uint32_t size, done;
	uint64_t value;
	uint8_t *memory;

	if (f->gone || m->bar >= MAX_BARS || m->addr > f->bars[m->bar].size || len > f->bars[m->bar].size - m->addr) {
		memset(out, 0xff, len);
		return;
	}
	memory = memory_at(f, m->bar, m->addr, len);
	if (memory) {
		move(out, memory, len);
		return;
	}
	for (done = 0; done < len; done += size) {
		size = width(m->addr + done, len - done);
		value = f->read(m->bar, m->addr + done, size);
		memcpy(out + done, &value, size);
	}
}

static void write_bar(struct function *f, uint32_t bar, uint64_t addr, const uint8_t *in, uint64_t len)
{
	uint64_t value, done;
	uint32_t size;
	uint8_t *memory;

	if (f->gone || bar >= MAX_BARS || addr > f->bars[bar].size || len > f->bars[bar].size - addr)
		return;
	memory = memory_at(f, bar, addr, len);
	if (memory) {
		move(memory, in, len);
		return;
	}
	for (done = 0; done < len; done += size) {
		size = width(addr + done, len - done);
		value = 0;
		memcpy(&value, in + done, size);
		f->write(bar, addr + done, size, value);
	}
}

static void set_bar(struct function *f, uint32_t bar, uint64_t addr, uint8_t byte, uint64_t len)
{
	uint8_t block[4096];
	uint64_t now;

	memset(block, byte, sizeof(block));
	for (; len; len -= now, addr += now) {
		now = len < sizeof(block) ? len : sizeof(block);
		write_bar(f, bar, addr, block, now);
	}
}

static void write_config(struct function *f, struct message *m, const uint8_t *data, uint32_t len)
{
	for (uint32_t i = 0; i < len && i < m->size && m->addr + i < CONFIG_SIZE; i++) {
		uint8_t mask = f->writable[m->addr + i];

		f->config[m->addr + i] = (f->config[m->addr + i] & ~mask) | (data[i] & mask);
	}
}

/* One command: readable parts hold the message and its data, a writable one takes the answer. */
static void command(struct function *f, struct queue *q, int head)
{
	struct segment in[MAX_SEGMENTS], out = { NULL, 0 };
	struct message m = { .op = 0 };
	uint8_t few[8] = { 0 };
	uint32_t skip = sizeof(m), nr = 0, i, got = 0;
	struct desc desc;
	uint64_t to;

	for (i = 0, desc = q->desc[head]; ; desc = q->desc[desc.next % q->num]) {
		uint8_t *memory = at(f, desc.addr, desc.len);

		if (memory && desc.flags & WRITABLE)
			out = (struct segment){ memory, desc.len };
		else if (memory)
			in[nr++] = (struct segment){ memory, desc.len };
		if (++i == MAX_SEGMENTS || !(desc.flags & NEXT))
			break;
	}
	if (!nr || in[0].len < sizeof(m))
		goto done;
	memcpy(&m, in[0].at, sizeof(m));
	if (out.len > m.size)
		out.len = m.size;
	for (i = 0; i < nr && got < sizeof(few); i++, skip = 0) {
		uint32_t now = in[i].len - skip;

		if (now > sizeof(few) - got)
			now = sizeof(few) - got;
		memcpy(few + got, in[i].at + skip, now);
		got += now;
	}
	switch (m.op) {
	case CFG_READ:
		if (f->gone)
			memset(out.at, 0xff, out.len);
		else if (m.addr <= CONFIG_SIZE && out.len <= CONFIG_SIZE - m.addr)
			memcpy(out.at, f->config + m.addr, out.len);
		break;
	case CFG_WRITE:
		write_config(f, &m, few, got);
		flush(f);
		break;
	case MMIO_READ:
		if (f->late_us)
			usleep(f->late_us);
		read_bar(f, &m, out.at, out.len);
		break;
	case MMIO_WRITE:
		if (m.size <= sizeof(few)) {
			write_bar(f, m.bar, m.addr, few, got < m.size ? got : m.size);
		} else {
			for (i = 0, to = m.addr, skip = sizeof(m); i < nr; to += in[i++].len - skip, skip = 0)
				write_bar(f, m.bar, to, in[i].at + skip, in[i].len - skip);
		}
		break;
	case MMIO_MEMSET:
		if (m.bar < MAX_BARS && m.size <= f->bars[m.bar].size)
			set_bar(f, m.bar, m.addr, few[0], m.size);
		break;
	}
	if (m.op >= MMIO_WRITE && m.bar == f->msix_bar)
		flush(f);
done:
	give(q, head, out.len);
}

struct function *vhost_new(read_fn read, write_fn write)
{
	struct function *f = calloc(1, sizeof(*f));

	if (!f)
		return NULL;
	pthread_mutex_init(&f->lock, NULL);
	for (int i = 0; i < MAX_VECTORS; i++)
		f->files[i] = -1;
	for (int i = 0; i < 2; i++)
		f->queues[i].kick = f->queues[i].call = -1;
	f->msix_bar = -1;
	f->read = read;
	f->write = write;
	return f;
}

/* A part of the configuration space, and which bits of it the guest can write. */
void vhost_config(struct function *f, uint32_t offset, uint32_t size, uint64_t value, uint64_t writable)
{
	memcpy(f->config + offset, &value, size);
	memcpy(f->writable + offset, &writable, size);
}

/* The configuration space as it is, for reading. */
const uint8_t *vhost_configuration(struct function *f)
{
	return f->config;
}

void vhost_bar(struct function *f, uint32_t bar, uint64_t size, void *memory)
{
	f->bars[bar].size = size;
	f->bars[bar].memory = memory;
}

/* Registers of a BAR that only keep what is written. Returns -1 if there are too many. */
int vhost_keep(struct function *f, uint32_t bar, uint64_t offset, uint64_t size, void *memory)
{
	if (f->nr_kept == MAX_KEPT)
		return -1;
	f->kept[f->nr_kept].bar = bar;
	f->kept[f->nr_kept].offset = offset;
	f->kept[f->nr_kept].size = size;
	f->kept[f->nr_kept++].memory = memory;
	return 0;
}

/* A BAR of its own for MSI-X; `capability`: where that is in the configuration space. */
void vhost_msix(struct function *f, uint32_t bar, uint32_t vectors, uint32_t capability)
{
	f->nr_vectors = vectors;
	f->msix_cap = capability;
	f->msix_bar = bar;
	for (uint32_t i = 0; i < vectors; i++)
		f->msix[4 * i + 3] = 1;
	vhost_bar(f, bar, sizeof(f->msix), f->msix);
}

/* Let an eventfd raise a vector. */
void vhost_file(struct function *f, uint32_t vector, int file)
{
	f->files[vector] = file;
}

int vhost_region(struct function *f, uint64_t guest, uint64_t size, void *memory)
{
	if (f->nr_regions == MAX_REGIONS)
		return -1;
	f->regions[f->nr_regions].guest = guest;
	f->regions[f->nr_regions].size = size;
	f->regions[f->nr_regions++].at = memory;
	return 0;
}

/* Where a queue is in the guest's memory; -1 if it is not there. */
int vhost_ring(struct function *f, uint32_t index, uint32_t num, uint32_t first, uint64_t desc, uint64_t avail,
	       uint64_t used)
{
	struct queue *q = &f->queues[index];

	if (!num || num > 1024 || !at(f, desc, 16 * num) || !at(f, avail, 6 + 2 * num) || !at(f, used, 6 + 8 * num))
		return -1;
	pthread_mutex_lock(&f->lock);
	q->num = num;
	q->last = first;
	q->desc = at(f, desc, 16 * num);
	q->used = at(f, used, 6 + 8 * num);
	q->avail = at(f, avail, 6 + 2 * num);
	pthread_mutex_unlock(&f->lock);
	return 0;
}

void vhost_notify(struct function *f, uint32_t index, int kick, int call)
{
	pthread_mutex_lock(&f->lock);
	if (kick >= 0)
		f->queues[index].kick = kick;
	if (call >= 0)
		f->queues[index].call = call;
	pthread_mutex_unlock(&f->lock);
}

void vhost_fault(struct function *f, uint32_t late_us, uint32_t lose, bool gone)
{
	pthread_mutex_lock(&f->lock);
	f->late_us = late_us;
	f->lose = lose;
	f->gone = gone;
	pthread_mutex_unlock(&f->lock);
}

/* Serve until there is something to read from the guest's socket: then 0. */
int vhost_serve(struct function *f, int guest)
{
	struct pollfd polled[3 + MAX_VECTORS] = { { guest, POLLIN, 0 } };
	int vectors[MAX_VECTORS], n = 3, head;
	uint64_t count;

	for (int i = 0; i < f->nr_vectors; i++) {
		if (f->files[i] < 0)
			continue;
		vectors[n - 3] = i;
		polled[n++] = (struct pollfd){ f->files[i], POLLIN, 0 };
	}
	for (;;) {
		for (int i = 0; i < 2; i++)
			polled[1 + i] = (struct pollfd){ f->queues[i].kick, POLLIN, 0 };
		if (poll(polled, n, -1) < 0 && errno != EINTR)
			return -1;
		if (polled[1].revents & POLLIN && read(polled[1].fd, &count, 8) == 8)
			while ((head = take(&f->queues[0])) >= 0)
				command(f, &f->queues[0], head);
		if (polled[2].revents & POLLIN && read(polled[2].fd, &count, 8) == 8)
			flush(f);
		for (int i = 3; i < n; i++)
			if (polled[i].revents & POLLIN && read(polled[i].fd, &count, 8) == 8)
				vhost_interrupt(f, vectors[i - 3]);
		if (polled[0].revents)
			return 0;
	}
}
