/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * nymph_endpoint: registers and rings of the device, as in the tables of
 * docs/reference/endpoint.md. A test compares them.
 */
#ifndef _NYMPH_EP_REGS_H
#define _NYMPH_EP_REGS_H

#include <linux/types.h>

#define NYMPH_EP_ID		0x48504d4e	/* "NMPH" */
#define NYMPH_EP_VERSION	1
#define NYMPH_EP_MAX_CHANNELS	16

/* Offset of the first channel's registers, and distance to the next channel's. */
#define NYMPH_EP_CHANNEL_BASE	0x1000
#define NYMPH_EP_CHANNEL_STRIDE	0x1000

/* nymph_ep_chan_regs.control */
#define NYMPH_EP_ENABLE		0x1

/* nymph_ep_chan_regs.state */
#define NYMPH_EP_DISABLED	0
#define NYMPH_EP_RUNNING	1
#define NYMPH_EP_ERROR		2

/* nymph_ep_desc.flags */
#define NYMPH_EP_INTERRUPT	0x1
#define NYMPH_EP_NOP		0x2

/* nymph_ep_done.status */
#define NYMPH_EP_OK		0
#define NYMPH_EP_BAD_DESC	1
#define NYMPH_EP_BAD_SRC	2
#define NYMPH_EP_BAD_DST	3

struct nymph_ep_regs {
	__le32 id;
	__le32 version;
	__le32 channels;
	__le32 peer;
	__le64 card_offset;
	__le64 card_size;
	__le64 card_base;
	__le32 max_length;
	__le32 beat;
};

struct nymph_ep_chan_regs {
	__le32 control;
	__le32 state;
	__le32 error;
	__le32 beat;
	__le64 ring_base;
	__le64 done_base;
	__le32 ring_size;
	__le32 tail;
	__le32 head;
	__le32 reserved;
	__le32 reset;
	__le32 reset_ack;
};

struct nymph_ep_desc {
	__le64 src;
	__le64 dst;
	__le32 length;
	__le32 flags;
	__le32 id;
	__le32 reserved;
};

struct nymph_ep_done {
	__le32 id;
	__le32 status;
	__le32 bytes;
	__le32 sequence;
};

#endif /* _NYMPH_EP_REGS_H */
