// SPDX-License-Identifier: GPL-2.0-only
/*
 * pcie_nymph: the transcript, a digest of all entries that a context retired, in order.
 *
 * A chain of digests takes several compressions for each entry. The digest of a stream
 * of records commits to the same, and many records fill the lanes of the hash.
 */
#include <linux/atomic.h>
#include <linux/kernel.h>
#include <linux/string.h>

#include "ring.h"

static atomic64_t nymph_last_transcript_id = ATOMIC64_INIT(0);

/**
 * nymph_transcript_start_hash() - Start the hash of a transcript's records
 * @hash: state
 */
void nymph_transcript_start_hash(struct nymph_blake3 *hash)
{
	nymph_blake3_init_derive_key(hash, NYMPH_TRANSCRIPT_CONTEXT,
				     sizeof(NYMPH_TRANSCRIPT_CONTEXT) - 1);
}

/**
 * nymph_transcript_begin() - Begin a context's transcript
 * @transcript: zeros, of a ring that nobody can look up yet
 */
void nymph_transcript_begin(struct nymph_transcript *transcript)
{
	transcript->id = atomic64_inc_return(&nymph_last_transcript_id);
	nymph_transcript_start_hash(&transcript->hash);
}

static void nymph_transcript_flush(struct nymph_transcript *transcript)
{
	nymph_blake3_update(&transcript->hash, transcript->records,
			    transcript->pending * sizeof(*transcript->records));
	transcript->pending = 0;
}

static void nymph_transcript_copy(u8 *to, const u8 *digest, bool has_it)
{
	if (has_it)
		memcpy(to, digest, NYMPH_DIGEST_SIZE);
	else
		memset(to, 0, NYMPH_DIGEST_SIZE);
}

/**
 * nymph_transcript_add() - Add an entry that retires
 * @transcript: the context's
 * @entry: the entry as it was accepted
 * @status: how it ended
 * @engine: id of the engine that worked on the entry last, 0 if none did
 * @transfer: what was done, or NULL if the entry was not started
 *
 * Context: The ring's lock is held. Hashes at most 16 KiB.
 */
void nymph_transcript_add(struct nymph_transcript *transcript,
			  const struct nymph_entry *entry, int status,
			  u32 engine, const struct nymph_transfer *transfer)
{
	struct nymph_transcript_record *r;
	u32 digests = transfer ? transfer->record_flags : 0;

	r = &transcript->records[transcript->pending++];
	r->status = cpu_to_le32(status);
	r->flags = cpu_to_le32(entry->flags);
	r->opcode = cpu_to_le16(entry->opcode);
	r->digests = cpu_to_le16(digests);
	r->engine = cpu_to_le32(engine);
	r->length = cpu_to_le64(entry->length);
	r->src = cpu_to_le64(entry->src);
	r->dst = cpu_to_le64(entry->dst);
	r->src_buffer = cpu_to_le32(entry->src_buffer);
	r->dst_buffer = cpu_to_le32(entry->dst_buffer);
	r->cookie = cpu_to_le64(entry->cookie);
	r->bytes_done = cpu_to_le64(transfer ? transfer->done : 0);
	nymph_transcript_copy(r->src_digest, transfer ? transfer->src_digest : NULL,
			      digests & NYMPH_RECORD_SRC_DIGEST);
	nymph_transcript_copy(r->dst_digest, transfer ? transfer->dst_digest : NULL,
			      digests & NYMPH_RECORD_DST_DIGEST);
	transcript->count++;
	if (transcript->pending == ARRAY_SIZE(transcript->records))
		nymph_transcript_flush(transcript);
}

/**
 * nymph_transcript_read() - Read the digest of all entries so far
 * @transcript: the context's
 * @digest: filled
 *
 * Context: The ring's lock is held. Hashes at most 16 KiB.
 */
void nymph_transcript_read(struct nymph_transcript *transcript,
			   u8 digest[NYMPH_DIGEST_SIZE])
{
	nymph_transcript_flush(transcript);
	nymph_blake3_final(&transcript->hash, digest);
}
