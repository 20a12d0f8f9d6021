/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * pcie_nymph: tracepoints, events/pcie_nymph in tracefs.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM pcie_nymph

#if !defined(_NYMPH_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _NYMPH_TRACE_H

#include <linux/tracepoint.h>

#include "nymph.h"

TRACE_EVENT(nymph_submit,
	    TP_PROTO(const struct nymph_ring *ring, const struct nymph_entry *e),
	    TP_ARGS(ring, e),
	    TP_STRUCT__entry(__field(unsigned int, ring)
			     __field(u64, cookie)
			     __field(u64, length)
			     __field(u32, opcode)
			     __field(u32, flags)
			     __field(u32, active)),
	    TP_fast_assign(__entry->ring = ring->id;
			   __entry->cookie = e->cookie;
			   __entry->length = e->length;
			   __entry->opcode = e->opcode;
			   __entry->flags = e->flags;
			   __entry->active = ring->active.count;),
	    TP_printk("ring=%u cookie=%#llx opcode=%u flags=%#x length=%llu active=%u",
		      __entry->ring, __entry->cookie, __entry->opcode,
		      __entry->flags, __entry->length, __entry->active));

TRACE_EVENT(nymph_start,
	    TP_PROTO(const struct nymph_ring *ring, const struct nymph_entry *e),
	    TP_ARGS(ring, e),
	    TP_STRUCT__entry(__field(unsigned int, ring)
			     __field(u64, cookie)
			     __field(u64, length)
			     __field(u32, engine)),
	    TP_fast_assign(__entry->ring = ring->id;
			   __entry->cookie = e->cookie;
			   __entry->length = e->length;
			   __entry->engine = ring->engine->id;),
	    TP_printk("ring=%u cookie=%#llx engine=%u length=%llu",
		      __entry->ring, __entry->cookie, __entry->engine,
		      __entry->length));

TRACE_EVENT(nymph_complete,
	    TP_PROTO(const struct nymph_ring *ring, const struct nymph_entry *e,
		     u64 bytes_done, int status),
	    TP_ARGS(ring, e, bytes_done, status),
	    TP_STRUCT__entry(__field(unsigned int, ring)
			     __field(u64, cookie)
			     __field(u64, bytes_done)
			     __field(int, status)),
	    TP_fast_assign(__entry->ring = ring->id;
			   __entry->cookie = e->cookie;
			   __entry->bytes_done = bytes_done;
			   __entry->status = status;),
	    TP_printk("ring=%u cookie=%#llx bytes_done=%llu status=%d",
		      __entry->ring, __entry->cookie, __entry->bytes_done,
		      __entry->status));

#endif /* _NYMPH_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
