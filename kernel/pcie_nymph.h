/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * pcie_nymph: DMA rings for user space, with BLAKE3 digests of what they did.
 *
 * This header is the contract between the kernel module and user space.
 * docs/reference/requests.md describes every request in every state.
 *
 * All integers have the byte order of the machine, except __le ones; the ring hash
 * takes them as little-endian. All reserved fields are zero. Times are in ns of the
 * caller's CLOCK_MONOTONIC, also in a time namespace.
 */
#ifndef _UAPI_PCIE_NYMPH_H
#define _UAPI_PCIE_NYMPH_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define NYMPH_VERSION		"0.1.0"	/* the release of header and module */
#define NYMPH_ABI_VERSION	1
#define NYMPH_MAX_ENTRIES	4096
#define NYMPH_MAX_LENGTH	0x40000000ULL	/* 1 GiB */
#define NYMPH_DIGEST_SIZE	32
#define NYMPH_ENGINE_NAME_SIZE	32

/*
 * A deadline that never comes. C, Go and Zig see the macro. bindgen ignores casts
 * and would make -1 of the macro; it sees the enumerator.
 */
__extension__ enum { NYMPH_NO_DEADLINE = ~0ULL };
#define NYMPH_NO_DEADLINE	((__u64)-1)

/* nymph_entry.opcode: what the driver does with the memory of an entry. */
#define NYMPH_OP_NOP		0
#define NYMPH_OP_COPY		1
#define NYMPH_OP_HASH		2	/* digest of the source in the record */
#define NYMPH_OP_FILL		3	/* repeat 8 bytes in the destination */
#define NYMPH_OP_COMPARE	4	/* -EBADMSG if source and destination differ */

/* nymph_entry.flags. The first three are flags of nymph_dma_desc, too. */
#define NYMPH_DMA_FLAG_ZERO_COPY	0x1U	/* pin the memory; use no bounce buffer */
#define NYMPH_DMA_FLAG_VERIFY_HASH	0x2U	/* hash both sides; -EBADMSG if they differ */
#define NYMPH_DMA_FLAG_COMPLETE_SYNC	0x4U	/* the request returns when the entry has ended */
#define NYMPH_DMA_FLAG_DIGEST_ONLY	0x8U	/* hash the destination; compare nothing */
#define NYMPH_DMA_FLAG_RECORD		0x10U	/* leave a completion record */
#define NYMPH_DMA_FLAG_LINK		0x20U	/* if this entry fails, the next is canceled */
#define NYMPH_DMA_FLAG_BARRIER		0x40U	/* run after all before it, before all behind it */

/**
 * struct nymph_dma_desc - descriptor of one copy, as the first driver took it
 * @src_addr: source: user virtual address in the calling process
 * @dst_addr: destination: user virtual address in the calling process
 * @length: number of bytes to copy, 1 to NYMPH_MAX_LENGTH
 * @flags: NYMPH_DMA_FLAG_*
 * @cookie: any value of the caller's, reported unchanged
 */
struct nymph_dma_desc {
	__u64 src_addr;
	__u64 dst_addr;
	__u32 length;
	__u32 flags;
	__u64 cookie;
};

/**
 * struct nymph_fabric_status - totals and hash of a ring
 * @dma_bytes: bytes moved by all retired transfers since open or RESET
 * @ring_hash: BLAKE3-256 of the ring, see NYMPH_IOC_SNAPSHOT
 * @ring_size: highest number of entries of the ring, 0 before SETUP
 * @active_descriptors: number of entries accepted and not yet retired
 */
struct nymph_fabric_status {
	__u64 dma_bytes;
	__u8 ring_hash[NYMPH_DIGEST_SIZE];
	__u32 ring_size;
	__u32 active_descriptors;
};

/**
 * struct nymph_dma_ring - size and indices of a ring
 * @ring_size: highest number of entries of the ring, 1 to NYMPH_MAX_ENTRIES
 * @head: producer index, modulo @ring_size; 0 in SETUP_RING
 * @tail: consumer index, modulo @ring_size; 0 in SETUP_RING
 * @reserved: 0
 * @ring_addr: a label of the caller's, hashed and reported; never used as an address
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
 *	the 8 bytes to repeat, the lowest byte first
 * @dst: user virtual address, or offset into @dst_buffer; 0 for NYMPH_OP_HASH
 * @src_buffer: buffer handle, 0 for none
 * @dst_buffer: buffer handle, 0 for none
 * @cookie: any value of the caller's, reported unchanged
 * @reserved: 0
 *
 * The driver stores a nymph_dma_desc as such an entry, and hashes it as one.
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

/* nymph_record.flags: digests that the record has. */
#define NYMPH_RECORD_SRC_DIGEST		0x1U
#define NYMPH_RECORD_DST_DIGEST		0x2U

/**
 * struct nymph_record - completion record
 * @cookie: cookie of the entry
 * @size: 128
 * @status: 0, or the negative errno that the entry failed with
 * @bytes_done: bytes that reached the destination, from its start on; for
 *	NYMPH_OP_HASH bytes hashed; for NYMPH_OP_COMPARE equal bytes, so with
 *	-EBADMSG the offset of the first byte that differs
 * @engine: id of the engine that worked on the entry last, 0 if none did
 * @flags: NYMPH_RECORD_*
 * @queued_ns: time at which the ring accepted the entry
 * @started_ns: time at which the entry was started, 0 if it was not
 * @completed_ns: time at which the entry retired
 * @src_digest: BLAKE3-256 of the bytes sent, if NYMPH_RECORD_SRC_DIGEST
 * @dst_digest: BLAKE3-256 of the bytes read back, if NYMPH_RECORD_DST_DIGEST
 * @reserved: 0
 *
 * On the default path the source digest is of exactly the bytes that were
 * sent. With ZERO_COPY it is advisory: another thread may change the source
 * between the copy and the hash. On either path a thread that writes the
 * destination before it is read back causes -EBADMSG.
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
 * struct nymph_engine_info - an engine that a ring can have
 * @size: 40
 * @id: number in nymph_record.engine, from 1 up
 * @name: name for nymph_setup2.engine, ends with a NUL
 */
struct nymph_engine_info {
	__u32 size;
	__u32 id;
	char name[NYMPH_ENGINE_NAME_SIZE];
};

/* nymph_query.features */
#define NYMPH_FEATURE_POLL	0x1ULL	/* poll(): EPOLLIN: unread records; EPOLLOUT: room */
#define NYMPH_FEATURE_READ	0x2ULL	/* read(): completion records */
#define NYMPH_FEATURE_ALLOC	0x4ULL	/* NYMPH_BUFFER_ALLOC, mmap() */
#define NYMPH_FEATURE_REGISTER	0x8ULL	/* NYMPH_BUFFER_REGISTER */
#define NYMPH_FEATURE_CARD	0x10ULL	/* NYMPH_BUFFER_CARD */
#define NYMPH_FEATURE_DMABUF	0x20ULL	/* NYMPH_BUFFER_IMPORT, NYMPH_BUFFER_EXPORT */

/**
 * struct nymph_query - version, features and limits of the driver
 * @size: in: bytes of this struct
 * @version: out: NYMPH_ABI_VERSION of the driver
 * @features: out: NYMPH_FEATURE_*
 * @requests: out: bit n is set if the driver serves request number n
 * @opcodes: out: bit n is set if the driver serves opcode n
 * @entry_flags: out: the NYMPH_DMA_FLAG_* that the driver serves
 * @max_length: out: longest transfer in bytes
 * @max_entries: out: highest number of entries of a ring
 * @setup_flags: out: the NYMPH_SETUP_* that the driver serves
 * @engines: in: address of an array of struct nymph_engine_info, or 0
 * @max_engines: in: number of elements of that array
 * @num_engines: out: number of engines; the first @max_engines are written
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
 * @records: out: highest number of reserved and unread records, twice @entries
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
 * struct nymph_enter - submission of entries, and collection of records
 * @size: bytes of this struct
 * @flags: 0
 * @entries: address of an array of struct nymph_entry
 * @records: address of an array of struct nymph_record
 * @to_submit: number of elements of @entries
 * @max_records: number of elements of @records
 * @min_records: number of records to wait for, at most @max_records
 * @submitted: out: number of entries accepted, the first ones; ioctl() returns it
 * @reaped: out: number of records written
 * @error: out: 0 if all was done; else the negative errno of the first entry that
 *	was refused, or of the wait
 * @deadline_ns: time at which the wait ends; 0 does not wait, NYMPH_NO_DEADLINE
 *	waits without a limit
 *
 * ioctl() fails with @error only if no entry was accepted and no record written.
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
 * struct nymph_snapshot - state of a ring at one moment
 * @size: bytes of this struct
 * @flags: 0
 * @ring: out: as in GET_RING; zeros before SETUP
 * @dma_bytes: out: as in GET_STATUS
 * @ring_hash: out: as in GET_STATUS
 * @active_descriptors: out: number of entries accepted and not yet retired
 * @unread_records: out: number of completion records not yet collected
 * @entries: in: address of an array of struct nymph_entry, or 0: active
 *	entries are written here from tail on
 * @max_entries: in: number of elements of that array; -ENOSPC if more entries are
 *	active
 * @first_error: out: status of the first failure that left no record, or 0
 * @errors: out: number of failures that left no record
 * @state: out: NYMPH_STATE_*
 * @engine: out: id of the ring's engine, 0 before SETUP
 * @transcript: out: digest of all entries that retired, see struct
 *	nymph_transcript_record; that of none before SETUP
 * @transcript_count: out: number of these entries
 * @transcript_id: out: number of the transcript since the module was loaded, from 1
 *	up; 0 before SETUP
 *
 * @ring_hash is BLAKE3-256 over the 24 bytes of @ring, then the active
 * entries from tail on, 64 bytes each, then @dma_bytes as u64, all of them
 * little-endian. All fields are of the same moment, so the caller can compute the
 * hash again. A struct that ends before @transcript is valid, too.
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
	__u8 transcript[NYMPH_DIGEST_SIZE];
	__u64 transcript_count;
	__u64 transcript_id;
};

#define NYMPH_TRANSCRIPT_CONTEXT "pcie_nymph 2026-12 transcript v1"

/**
 * struct nymph_transcript_record - what the transcript has of a retired entry
 * @status: nymph_record.status, as two's complement
 * @flags: nymph_entry.flags
 * @opcode: nymph_entry.opcode
 * @digests: nymph_record.flags: the digests that the record has
 * @engine: nymph_record.engine
 * @length: nymph_entry.length
 * @src: nymph_entry.src
 * @dst: nymph_entry.dst
 * @src_buffer: nymph_entry.src_buffer
 * @dst_buffer: nymph_entry.dst_buffer
 * @cookie: nymph_entry.cookie
 * @bytes_done: nymph_record.bytes_done
 * @src_digest: nymph_record.src_digest
 * @dst_digest: nymph_record.dst_digest
 *
 * The transcript begins with the first SETUP after open() or RESET. Every entry that
 * retires adds one such record, in the order of retirement: also an entry that was
 * canceled, or that leaves no completion record. The transcript's digest is BLAKE3-256
 * of all these records, in the mode that derives a key with the context
 * NYMPH_TRANSCRIPT_CONTEXT. Who has the entries and their completion records can
 * compute the digest again.
 */
struct nymph_transcript_record {
	__le32 status;
	__le32 flags;
	__le16 opcode;
	__le16 digests;
	__le32 engine;
	__le64 length;
	__le64 src;
	__le64 dst;
	__le32 src_buffer;
	__le32 dst_buffer;
	__le64 cookie;
	__le64 bytes_done;
	__u8 src_digest[NYMPH_DIGEST_SIZE];
	__u8 dst_digest[NYMPH_DIGEST_SIZE];
};

/**
 * struct nymph_cancel - cancellation of entries
 * @size: bytes of this struct
 * @flags: 0
 * @cookie: cookie of the entries to cancel
 * @canceled: out: number of active entries with this cookie. Each ends with
 *	-ECANCELED in its turn, unless it ends before
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
#define NYMPH_BUFFER_ALLOC	1	/* allocate zeroed driver memory for mmap() */
#define NYMPH_BUFFER_REGISTER	2	/* pin memory of the caller */
#define NYMPH_BUFFER_IMPORT	3	/* import a dma-buf */
#define NYMPH_BUFFER_FREE	4	/* free a handle */
#define NYMPH_BUFFER_CARD	5	/* allocate zeroed memory of the engine's device */
#define NYMPH_BUFFER_EXPORT	6	/* export memory of an ALLOC as a dma-buf */

/* nymph_buffer.flags */
#define NYMPH_BUFFER_READ_ONLY	0x1U	/* REGISTER, IMPORT: never a destination */

/**
 * struct nymph_buffer - memory that entries name by a handle
 * @size: bytes of this struct; at least 40, and all for IMPORT and EXPORT
 * @op: NYMPH_BUFFER_*
 * @flags: NYMPH_BUFFER_READ_ONLY
 * @handle: in for FREE and EXPORT, else out: from 1 up
 * @addr: REGISTER: user virtual address; else 0
 * @length: bytes, 1 to NYMPH_MAX_LENGTH; 0 for FREE and EXPORT; IMPORT: in 0, out
 *	bytes of the dma-buf
 * @mmap_offset: ALLOC: out: offset of the memory for mmap() of the file
 * @fd: IMPORT: in: file descriptor of a dma-buf; EXPORT: out: a new file descriptor,
 *	which the caller closes; else 0
 * @reserved: 0
 *
 * Memory of a CARD has no addresses in user space: only entries move its bytes. If
 * the device is removed, entries with such memory end with -EFAULT.
 *
 * The memory belongs to the ring: RESET and close() free all handles. Entries
 * accepted before a handle is freed keep its memory. The driver frees or unpins the
 * memory when the last of these entries has retired and no process maps it.
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
 * struct nymph_eventfd - eventfd that announces completion records
 * @size: bytes of this struct
 * @flags: 0
 * @fd: eventfd that the driver raises by 1 for every record; -1 removes it
 * @reserved: 0
 */
struct nymph_eventfd {
	__u32 size;
	__u32 flags;
	__s32 fd;
	__u32 reserved;
};

/*
 * Every power of two has 8 buckets. A time of t ns is in bucket t if t < 8; else in
 * bucket 8 * (e - 2) + b, where e is floor(log2(t)) and b the 3 bits of t behind its
 * first.
 */
#define NYMPH_LATENCY_BUCKETS	496

/**
 * struct nymph_latency - times of entries, from submission to retirement
 * @size: bytes of this struct
 * @flags: 0
 * @count: out: number of entries that were started and not canceled
 * @sum_ns: out: sum of their times
 * @max_ns: out: longest of their times
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

#define NYMPH_ATTEST_KEYRING	".pcie_nymph"
#define NYMPH_ATTEST_KEY	"pcie_nymph:attest"	/* a logon or asymmetric key */
#define NYMPH_ATTEST_KEY_SIZE	32
#define NYMPH_ATTEST_SIGN	0x1U	/* sign the statement, with the asymmetric key */
#define NYMPH_SIGNATURE_MIN	256	/* of RSA with 2048 bits */
#define NYMPH_SIGNATURE_MAX	512	/* of RSA with 4096 bits */
#define NYMPH_NONCE_SIZE	32
#define NYMPH_STATEMENT_MAGIC	"nymph attest v1"	/* and a NUL */
#define NYMPH_STATEMENT_MAX	16384

/**
 * struct nymph_statement - what ATTEST authenticates
 * @magic: NYMPH_STATEMENT_MAGIC
 * @nonce: nonce of the request
 * @size: bytes of the statement, with its text
 * @text_offset: offset of the text, which ends the statement
 * @realtime_ns: CLOCK_REALTIME, ns since 1970
 * @transcript: as in SNAPSHOT, like the fields below
 * @transcript_count: number of entries in the transcript
 * @transcript_id: number of the transcript
 * @dma_bytes: bytes moved
 * @ring_hash: hash of the ring
 * @ring_size: highest number of entries; with the next four, struct nymph_dma_ring
 * @head: producer index
 * @tail: consumer index
 * @reserved: 0
 * @ring_addr: label
 * @active_descriptors: number of entries accepted and not yet retired
 * @unread_records: number of completion records not yet collected
 * @errors: number of failures that left no record
 * @first_error: status of the first of them, as two's complement
 * @state: NYMPH_STATE_*
 * @engine: id of the ring's engine
 * @uid: user who set the ring up, in the initial user namespace
 *
 * The text has one line "name=value" for each of: version, srcversion and build_id of
 * the module, kernel, kernel_version and machine of uname(), blake3, engine.ID for
 * each engine, and parameter.NAME for each parameter of the module. A kernel that
 * does not keep the build id leaves out that line.
 */
struct nymph_statement {
	__u8 magic[16];
	__u8 nonce[NYMPH_NONCE_SIZE];
	__le32 size;
	__le32 text_offset;
	__le64 realtime_ns;
	__u8 transcript[NYMPH_DIGEST_SIZE];
	__le64 transcript_count;
	__le64 transcript_id;
	__le64 dma_bytes;
	__u8 ring_hash[NYMPH_DIGEST_SIZE];
	__le32 ring_size;
	__le32 head;
	__le32 tail;
	__le32 reserved;
	__le64 ring_addr;
	__le32 active_descriptors;
	__le32 unread_records;
	__le64 errors;
	__le32 first_error;
	__le32 state;
	__le32 engine;
	__le32 uid;
};

/**
 * struct nymph_attest - authenticated statement about a ring
 * @size: bytes of this struct
 * @flags: 0, or NYMPH_ATTEST_SIGN
 * @nonce: in: any bytes of the caller's, which the statement repeats
 * @statement: in: address that the statement is written to
 * @max_statement: in: number of bytes there; -ENOSPC if the statement has more.
 *	NYMPH_STATEMENT_MAX is enough
 * @statement_size: out: number of bytes written
 * @digest: out: BLAKE3-256 of the statement, keyed with the logon key of the
 *	administrator; zeros with NYMPH_ATTEST_SIGN
 * @signature: in: address that the signature is written to, with NYMPH_ATTEST_SIGN;
 *	else 0
 * @max_signature: in: number of bytes there; -ENOSPC if the signature has more.
 *	NYMPH_SIGNATURE_MAX is enough. 0 without NYMPH_ATTEST_SIGN
 * @signature_size: out: number of bytes written there; 0 without NYMPH_ATTEST_SIGN
 *
 * The keys have the description NYMPH_ATTEST_KEY, in the module's keyring
 * NYMPH_ATTEST_KEYRING. Only root adds keys there. The logon key has
 * NYMPH_ATTEST_KEY_SIZE bytes. The asymmetric key is a private RSA key of 2048 to 4096
 * bits; with it, the statement is signed by RSASSA-PKCS1-v1_5 with SHA-256. A request
 * needs the key that it asks for, and does not look for the other one. A struct that
 * ends before @signature is taken, without NYMPH_ATTEST_SIGN.
 */
struct nymph_attest {
	__u32 size;
	__u32 flags;
	__u8 nonce[NYMPH_NONCE_SIZE];
	__u64 statement;
	__u32 max_statement;
	__u32 statement_size;
	__u8 digest[NYMPH_DIGEST_SIZE];
	__u64 signature;
	__u32 max_signature;
	__u32 signature_size;
};

#define NYMPH_IOC_MAGIC		'N'

/* The five requests of the first driver; these never change. */
#define NYMPH_IOC_SUBMIT_DMA	_IOWR(NYMPH_IOC_MAGIC, 1, struct nymph_dma_desc)
#define NYMPH_IOC_GET_STATUS	_IOR(NYMPH_IOC_MAGIC, 2, struct nymph_fabric_status)
#define NYMPH_IOC_SETUP_RING	_IOW(NYMPH_IOC_MAGIC, 3, struct nymph_dma_ring)
#define NYMPH_IOC_GET_RING	_IOR(NYMPH_IOC_MAGIC, 4, struct nymph_dma_ring)
#define NYMPH_IOC_RESET		_IO(NYMPH_IOC_MAGIC, 5)

/*
 * Later requests, whose structs may grow. The first member tells the driver the
 * caller's size. The driver accepts a longer struct if the bytes it does not know
 * are zero (else -E2BIG), and writes no more bytes than the caller's struct has.
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
#define NYMPH_IOC_ATTEST	_IOWR(NYMPH_IOC_MAGIC, 15, struct nymph_attest)

/*
 * The same numbers for generators of bindings that do not expand macros with
 * arguments, such as bindgen.
 */
__extension__ enum nymph_request {
	NYMPH_REQUEST_SUBMIT_DMA = NYMPH_IOC_SUBMIT_DMA,
	NYMPH_REQUEST_GET_STATUS = NYMPH_IOC_GET_STATUS,
	NYMPH_REQUEST_SETUP_RING = NYMPH_IOC_SETUP_RING,
	NYMPH_REQUEST_GET_RING = NYMPH_IOC_GET_RING,
	NYMPH_REQUEST_RESET = NYMPH_IOC_RESET,
	NYMPH_REQUEST_QUERY = NYMPH_IOC_QUERY,
	NYMPH_REQUEST_SETUP2 = NYMPH_IOC_SETUP2,
	NYMPH_REQUEST_ENABLE = NYMPH_IOC_ENABLE,
	NYMPH_REQUEST_ENTER = NYMPH_IOC_ENTER,
	NYMPH_REQUEST_SNAPSHOT = NYMPH_IOC_SNAPSHOT,
	NYMPH_REQUEST_CANCEL = NYMPH_IOC_CANCEL,
	NYMPH_REQUEST_BUFFER = NYMPH_IOC_BUFFER,
	NYMPH_REQUEST_EVENTFD = NYMPH_IOC_EVENTFD,
	NYMPH_REQUEST_LATENCY = NYMPH_IOC_LATENCY,
	NYMPH_REQUEST_ATTEST = NYMPH_IOC_ATTEST,
};

#endif /* _UAPI_PCIE_NYMPH_H */
