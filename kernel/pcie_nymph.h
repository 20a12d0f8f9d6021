/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * pcie_nymph: DMA rings for user space, with BLAKE3 digests of what they did.
 *
 * This header is the whole contract between the kernel module and user space.
 * docs/abi.md says in prose what every request does in every state.
 *
 * All integers have the byte order of the machine, except where they are
 * hashed: there they are little-endian. All reserved fields are zero.
 */
#ifndef _UAPI_PCIE_NYMPH_H
#define _UAPI_PCIE_NYMPH_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define NYMPH_ABI_VERSION	1
#define NYMPH_MAX_ENTRIES	4096
#define NYMPH_MAX_LENGTH	0x40000000ULL	/* 1 GiB */
#define NYMPH_DIGEST_SIZE	32
#define NYMPH_ENGINE_NAME_SIZE	32

/* The deadline that never comes. */
#define NYMPH_NO_DEADLINE	(~0ULL)

/* What an entry asks to be done. */
#define NYMPH_OP_NOP		0
#define NYMPH_OP_COPY		1
#define NYMPH_OP_HASH		2	/* the source, into a record */
#define NYMPH_OP_FILL		3	/* the destination, with 8 bytes over and over */
#define NYMPH_OP_COMPARE	4	/* both, differing: -EBADMSG */

/* How it is done. The first three are the ones the first driver had. */
#define NYMPH_DMA_FLAG_ZERO_COPY	0x1U	/* pin the memory, no bounce buffer */
#define NYMPH_DMA_FLAG_VERIFY_HASH	0x2U	/* hash both sides, differing: -EBADMSG */
#define NYMPH_DMA_FLAG_COMPLETE_SYNC	0x4U	/* the request returns when it is done */
#define NYMPH_DMA_FLAG_DIGEST_ONLY	0x8U	/* hash the destination, compare nothing */
#define NYMPH_DMA_FLAG_RECORD		0x10U	/* leave a completion record */
#define NYMPH_DMA_FLAG_LINK		0x20U	/* if this fails, the next is canceled */
#define NYMPH_DMA_FLAG_BARRIER		0x40U	/* after all before it, before all behind it */

/**
 * struct nymph_dma_desc - one copy, as the first driver took it
 * @src_addr: where to read: user virtual address in the calling process
 * @dst_addr: where to write: user virtual address in the calling process
 * @length: bytes to copy, 1 to NYMPH_MAX_LENGTH
 * @flags: NYMPH_DMA_FLAG_*
 * @cookie: the caller's own, reported back unchanged
 */
struct nymph_dma_desc {
	__u64 src_addr;
	__u64 dst_addr;
	__u32 length;
	__u32 flags;
	__u64 cookie;
};

/**
 * struct nymph_fabric_status - what the ring did so far
 * @dma_bytes: bytes moved by all retired transfers since open or RESET
 * @ring_hash: BLAKE3-256 of the ring, see NYMPH_IOC_SNAPSHOT
 * @ring_size: entries the ring holds, 0 before SETUP
 * @active_descriptors: entries accepted and not yet retired
 */
struct nymph_fabric_status {
	__u64 dma_bytes;
	__u8 ring_hash[NYMPH_DIGEST_SIZE];
	__u32 ring_size;
	__u32 active_descriptors;
};

/**
 * struct nymph_dma_ring - the ring's size and indices
 * @ring_size: entries the ring holds, 1 to NYMPH_MAX_ENTRIES, any number
 * @head: producer index, modulo @ring_size; 0 in SETUP_RING
 * @tail: consumer index, modulo @ring_size; 0 in SETUP_RING
 * @reserved: 0
 * @ring_addr: a label of the caller's: hashed and reported, never used as an address
 */
struct nymph_dma_ring {
	__u32 ring_size;
	__u32 head;
	__u32 tail;
	__u32 reserved;
	__u64 ring_addr;
};

/**
 * struct nymph_entry - submission entry
 * @size: 64
 * @opcode: NYMPH_OP_*
 * @flags: NYMPH_DMA_FLAG_*
 * @length: bytes, 1 to NYMPH_MAX_LENGTH; 0 for NYMPH_OP_NOP
 * @src: user virtual address, or offset into @src_buffer; for NYMPH_OP_FILL
 *	the 8 bytes that fill, the lowest first
 * @dst: user virtual address, or offset into @dst_buffer; 0 for NYMPH_OP_HASH
 * @src_buffer: buffer handle, 0 for none
 * @dst_buffer: buffer handle, 0 for none
 * @cookie: the caller's own, reported back unchanged
 * @reserved: 0
 *
 * A nymph_dma_desc is kept as such an entry, so it is hashed as one too.
 */
struct nymph_entry {
	__u16 size;
	__u16 opcode;
	__u32 flags;
	__u64 length;
	__u64 src;
	__u64 dst;
	__u32 src_buffer;
	__u32 dst_buffer;
	__u64 cookie;
	__u64 reserved[2];
};

/* Which digests a record carries. */
#define NYMPH_RECORD_SRC_DIGEST		0x1U
#define NYMPH_RECORD_DST_DIGEST		0x2U

/**
 * struct nymph_record - completion record
 * @cookie: the entry's
 * @size: 128
 * @status: 0, or why it failed as a negative errno
 * @bytes_done: bytes that reached the destination, from its start on; for
 *	NYMPH_OP_HASH bytes hashed; for NYMPH_OP_COMPARE bytes found equal, so
 *	with -EBADMSG the offset of the first that differs
 * @engine: id of the engine that was last at it, 0 if none was
 * @flags: NYMPH_RECORD_*
 * @queued_ns: when the ring accepted it, CLOCK_MONOTONIC
 * @started_ns: when the engine took it, 0 if none did
 * @completed_ns: when it retired
 * @src_digest: BLAKE3-256 of the bytes sent, if NYMPH_RECORD_SRC_DIGEST
 * @dst_digest: BLAKE3-256 of the bytes read back, if NYMPH_RECORD_DST_DIGEST
 * @reserved: 0
 *
 * On the default path the source digest is of exactly the bytes that were
 * sent. With ZERO_COPY it is advisory: another thread may change the source
 * between the copy and the hash. Another thread that writes the destination
 * before it is read back causes -EBADMSG on either path.
 */
struct nymph_record {
	__u64 cookie;
	__u32 size;
	__s32 status;
	__u64 bytes_done;
	__u32 engine;
	__u32 flags;
	__u64 queued_ns;
	__u64 started_ns;
	__u64 completed_ns;
	__u8 src_digest[NYMPH_DIGEST_SIZE];
	__u8 dst_digest[NYMPH_DIGEST_SIZE];
	__u64 reserved;
};

/**
 * struct nymph_engine_info - an engine there is
 * @size: 40
 * @id: what nymph_record.engine says, from 1 up
 * @name: what nymph_setup2.engine takes, ends with a NUL
 */
struct nymph_engine_info {
	__u32 size;
	__u32 id;
	char name[NYMPH_ENGINE_NAME_SIZE];
};

/* nymph_query.features */
#define NYMPH_FEATURE_POLL	0x1ULL	/* poll(): EPOLLIN unread records, EPOLLOUT room */
#define NYMPH_FEATURE_READ	0x2ULL	/* read(): completion records */
#define NYMPH_FEATURE_ALLOC	0x4ULL	/* NYMPH_BUFFER_ALLOC, and mmap() of them */
#define NYMPH_FEATURE_REGISTER	0x8ULL	/* NYMPH_BUFFER_REGISTER */
#define NYMPH_FEATURE_CARD	0x10ULL	/* NYMPH_BUFFER_CARD */
#define NYMPH_FEATURE_DMABUF	0x20ULL	/* NYMPH_BUFFER_IMPORT, NYMPH_BUFFER_EXPORT */

/**
 * struct nymph_query - what this driver can do
 * @size: in: bytes of this struct
 * @version: out: NYMPH_ABI_VERSION of the driver
 * @features: out: NYMPH_FEATURE_*
 * @requests: out: bit n is set if request number n is served
 * @opcodes: out: bit n is set if opcode n is served
 * @entry_flags: out: the NYMPH_DMA_FLAG_* that are served
 * @max_length: out: the longest transfer in bytes
 * @max_entries: out: the largest ring
 * @setup_flags: out: the NYMPH_SETUP_* that are served
 * @engines: in: address of an array of struct nymph_engine_info, or 0
 * @max_engines: in: elements in that array
 * @num_engines: out: engines there are; the first @max_engines are written
 */
struct nymph_query {
	__u32 size;
	__u32 version;
	__u64 features;
	__u64 requests;
	__u64 opcodes;
	__u64 entry_flags;
	__u64 max_length;
	__u32 max_entries;
	__u32 setup_flags;
	__u64 engines;
	__u32 max_engines;
	__u32 num_engines;
};

/* nymph_setup2.flags */
#define NYMPH_SETUP_PAUSED	0x1U	/* entries queue up until ENABLE */

/**
 * struct nymph_setup2 - set up a ring
 * @size: bytes of this struct
 * @flags: NYMPH_SETUP_*
 * @entries: 1 to NYMPH_MAX_ENTRIES
 * @records: out: how many records can be reserved or unread, twice @entries
 * @ring_addr: label, as in struct nymph_dma_ring
 * @engine: name of an engine; "auto" or "" lets the driver choose
 */
struct nymph_setup2 {
	__u32 size;
	__u32 flags;
	__u32 entries;
	__u32 records;
	__u64 ring_addr;
	char engine[NYMPH_ENGINE_NAME_SIZE];
};

/**
 * struct nymph_enter - submit entries, wait, collect records
 * @size: bytes of this struct
 * @flags: 0
 * @entries: address of an array of struct nymph_entry
 * @records: address of an array of struct nymph_record
 * @to_submit: elements in @entries
 * @max_records: elements in @records
 * @min_records: wait until this many records are written, at most @max_records
 * @submitted: out: entries accepted, always a prefix; also what ioctl() returns
 * @reaped: out: records written
 * @error: out: why less was done than asked: the negative errno of the first
 *	entry refused, else of the wait; 0 if all was done
 * @deadline_ns: when to stop waiting, CLOCK_MONOTONIC; 0 never waits,
 *	NYMPH_NO_DEADLINE waits for ever
 *
 * ioctl() fails with @error only if nothing was accepted and nothing reaped.
 */
struct nymph_enter {
	__u32 size;
	__u32 flags;
	__u64 entries;
	__u64 records;
	__u32 to_submit;
	__u32 max_records;
	__u32 min_records;
	__u32 submitted;
	__u32 reaped;
	__s32 error;
	__u64 deadline_ns;
};

/* nymph_snapshot.state */
#define NYMPH_STATE_PAUSED	0x1U

/**
 * struct nymph_snapshot - the ring at one moment
 * @size: bytes of this struct
 * @flags: 0
 * @ring: out: as GET_RING gives it, zeros before SETUP
 * @dma_bytes: out: as GET_STATUS gives it
 * @ring_hash: out: as GET_STATUS gives it
 * @active_descriptors: out: entries accepted and not yet retired
 * @unread_records: out: completion records nobody has collected
 * @entries: in: address of an array of struct nymph_entry, or 0: active
 *	entries are written here from tail on
 * @max_entries: in: elements in that array; -ENOSPC if more are active
 * @first_error: out: status of the first failure that left no record, or 0
 * @errors: out: how many failures left no record
 * @state: out: NYMPH_STATE_*
 * @engine: out: id of the ring's engine, 0 before SETUP
 *
 * @ring_hash is BLAKE3-256 over the 24 bytes of @ring, then the active
 * entries from tail on, 64 bytes each, then @dma_bytes as u64, all of them
 * little-endian. Everything here is of one and the same moment, so it can be
 * computed again.
 */
struct nymph_snapshot {
	__u32 size;
	__u32 flags;
	struct nymph_dma_ring ring;
	__u64 dma_bytes;
	__u8 ring_hash[NYMPH_DIGEST_SIZE];
	__u32 active_descriptors;
	__u32 unread_records;
	__u64 entries;
	__u32 max_entries;
	__s32 first_error;
	__u64 errors;
	__u32 state;
	__u32 engine;
};

/**
 * struct nymph_cancel - end entries early
 * @size: bytes of this struct
 * @flags: 0
 * @cookie: which: every active entry with this cookie
 * @canceled: out: how many there were; they end with -ECANCELED in their turn,
 *	unless they are done before
 * @reserved: 0
 */
struct nymph_cancel {
	__u32 size;
	__u32 flags;
	__u64 cookie;
	__u32 canceled;
	__u32 reserved;
};

/* nymph_buffer.op */
#define NYMPH_BUFFER_ALLOC	1	/* zeroed memory of the driver's, to mmap() */
#define NYMPH_BUFFER_REGISTER	2	/* memory of the caller's, pinned */
#define NYMPH_BUFFER_IMPORT	3	/* a dma-buf, of whoever exports one */
#define NYMPH_BUFFER_FREE	4	/* give up a handle */
#define NYMPH_BUFFER_CARD	5	/* zeroed memory of the ring's engine's device */
#define NYMPH_BUFFER_EXPORT	6	/* memory of an ALLOC as a dma-buf */

/* nymph_buffer.flags */
#define NYMPH_BUFFER_READ_ONLY	0x1U	/* REGISTER, IMPORT: never a destination */

/**
 * struct nymph_buffer - memory that entries name by a handle
 * @size: bytes of this struct; 40 will do but for IMPORT and EXPORT
 * @op: NYMPH_BUFFER_*
 * @flags: NYMPH_BUFFER_READ_ONLY
 * @handle: in for FREE and EXPORT, else out: from 1 up
 * @addr: REGISTER: user virtual address; else 0
 * @length: bytes, 1 to NYMPH_MAX_LENGTH; 0 for FREE and EXPORT; IMPORT: 0, out: all
 *	the dma-buf has
 * @mmap_offset: ALLOC, out: where mmap() of the file finds the memory
 * @fd: IMPORT: a file descriptor of a dma-buf; EXPORT, out: one, the caller's to
 *	close; else 0
 * @reserved: 0
 *
 * Memory of a CARD has no addresses in user space: bytes come and go by entries.
 * It goes when the device does; then its entries end with -EFAULT.
 *
 * The memory is the ring's: RESET and close() give up all handles. Entries
 * accepted before a handle is given up go on with its memory, which is freed,
 * or unpinned, when the last of them has retired and nobody maps it.
 */
struct nymph_buffer {
	__u32 size;
	__u32 op;
	__u32 flags;
	__u32 handle;
	__u64 addr;
	__u64 length;
	__u64 mmap_offset;
	__s32 fd;
	__u32 reserved;
};

/**
 * struct nymph_eventfd - be told of completion records
 * @size: bytes of this struct
 * @flags: 0
 * @fd: an eventfd, raised by 1 for every record; -1 for none any more
 * @reserved: 0
 */
struct nymph_eventfd {
	__u32 size;
	__u32 flags;
	__s32 fd;
	__u32 reserved;
};

/*
 * Times are counted in buckets, 8 for every power of two: time t in ns is in
 * bucket t if t < 8, else, with e = floor(log2(t)), in 8 * (e - 2) + the 3 bits
 * behind the first of t.
 */
#define NYMPH_LATENCY_BUCKETS	496

/**
 * struct nymph_latency - how long entries took, from submit to retirement
 * @size: bytes of this struct
 * @flags: 0
 * @count: out: entries counted: all that some engine ran to its end
 * @sum_ns: out: their times together
 * @max_ns: out: the longest
 * @buckets: in: address of NYMPH_LATENCY_BUCKETS times __u64, or 0: the number
 *	of entries in each bucket is written here
 */
struct nymph_latency {
	__u32 size;
	__u32 flags;
	__u64 count;
	__u64 sum_ns;
	__u64 max_ns;
	__u64 buckets;
};

#define NYMPH_IOC_MAGIC		'N'

/* The five requests of the first driver: fixed, bit for bit. */
#define NYMPH_IOC_SUBMIT_DMA	_IOWR(NYMPH_IOC_MAGIC, 1, struct nymph_dma_desc)
#define NYMPH_IOC_GET_STATUS	_IOR(NYMPH_IOC_MAGIC, 2, struct nymph_fabric_status)
#define NYMPH_IOC_SETUP_RING	_IOW(NYMPH_IOC_MAGIC, 3, struct nymph_dma_ring)
#define NYMPH_IOC_GET_RING	_IOR(NYMPH_IOC_MAGIC, 4, struct nymph_dma_ring)
#define NYMPH_IOC_RESET		_IO(NYMPH_IOC_MAGIC, 5)

/*
 * The requests since. Their structs may grow: the driver goes by the struct's
 * own size, takes a longer one if what it does not know is zero (else
 * -E2BIG), and fills no more than it was given.
 */
#define NYMPH_IOC_QUERY		_IOWR(NYMPH_IOC_MAGIC, 6, struct nymph_query)
#define NYMPH_IOC_SETUP2	_IOWR(NYMPH_IOC_MAGIC, 7, struct nymph_setup2)
#define NYMPH_IOC_ENABLE	_IO(NYMPH_IOC_MAGIC, 8)
#define NYMPH_IOC_ENTER		_IOWR(NYMPH_IOC_MAGIC, 9, struct nymph_enter)
#define NYMPH_IOC_SNAPSHOT	_IOWR(NYMPH_IOC_MAGIC, 10, struct nymph_snapshot)
#define NYMPH_IOC_CANCEL	_IOWR(NYMPH_IOC_MAGIC, 11, struct nymph_cancel)
#define NYMPH_IOC_BUFFER	_IOWR(NYMPH_IOC_MAGIC, 12, struct nymph_buffer)
#define NYMPH_IOC_EVENTFD	_IOW(NYMPH_IOC_MAGIC, 13, struct nymph_eventfd)
#define NYMPH_IOC_LATENCY	_IOWR(NYMPH_IOC_MAGIC, 14, struct nymph_latency)

#endif /* _UAPI_PCIE_NYMPH_H */
