/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * pcie_nymph: tracepoints, events/pcie_nymph in tracefs.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM pcie_nymph

#if !defined(_NYMPH_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _NYMPH_TRACE_H

#include <linux/ktime.h>
#include <linux/tracepoint.h>

#include "ring.h"

/*
 * Every event has its time in ns of CLOCK_MONOTONIC, as records have them outside of
 * time namespaces. An event without a cookie is about the entries that the ring has
 * started and not yet completed. nymph_mapped comes from the thread that runs them.
 */

/* Before and after an entry's memory is looked up, and pinned if it is ZERO_COPY. */
DECLARE_EVENT_CLASS(nymph_entry_class,
		    TP_PROTO(const struct nymph_ring *ring,
			     const struct nymph_entry *e),
		    TP_ARGS(ring, e),
		    TP_STRUCT__entry(__field(unsigned int, ring)
				     __field(u64, cookie)
				     __field(u64, ns)),
		    TP_fast_assign(__entry->ring = ring->id;
				   __entry->cookie = e->cookie;
				   __entry->ns = ktime_get_ns();),
		    TP_printk("ring=%u cookie=%#llx ns=%llu", __entry->ring,
			      __entry->cookie, __entry->ns));

DEFINE_EVENT(nymph_entry_class, nymph_pin,
	     TP_PROTO(const struct nymph_ring *ring,
		      const struct nymph_entry *e),
	     TP_ARGS(ring, e));

DEFINE_EVENT(nymph_entry_class, nymph_pinned,
	     TP_PROTO(const struct nymph_ring *ring,
		      const struct nymph_entry *e),
	     TP_ARGS(ring, e));

TRACE_EVENT(nymph_submit,
	    TP_PROTO(const struct nymph_ring *ring, const struct nymph_entry *e,
		     u64 ns),
	    TP_ARGS(ring, e, ns),
	    TP_STRUCT__entry(__field(unsigned int, ring)
			     __field(u64, cookie)
			     __field(u64, length)
			     __field(u32, opcode)
			     __field(u32, flags)
			     __field(u32, active)
			     __field(u64, ns)),
	    TP_fast_assign(__entry->ring = ring->id;
			   __entry->cookie = e->cookie;
			   __entry->length = e->length;
			   __entry->opcode = e->opcode;
			   __entry->flags = e->flags;
			   __entry->active = ring->active.count;
			   __entry->ns = ns;),
	    TP_printk("ring=%u cookie=%#llx opcode=%u flags=%#x length=%llu active=%u ns=%llu",
		      __entry->ring, __entry->cookie, __entry->opcode,
		      __entry->flags, __entry->length, __entry->active,
		      __entry->ns));

TRACE_EVENT(nymph_start,
	    TP_PROTO(const struct nymph_ring *ring, const struct nymph_entry *e,
		     u64 ns),
	    TP_ARGS(ring, e, ns),
	    TP_STRUCT__entry(__field(unsigned int, ring)
			     __field(u64, cookie)
			     __field(u64, length)
			     __field(u32, engine)
			     __field(u64, ns)),
	    TP_fast_assign(__entry->ring = ring->id;
			   __entry->cookie = e->cookie;
			   __entry->length = e->length;
			   __entry->engine = ring->engine->id;
			   __entry->ns = ns;),
	    TP_printk("ring=%u cookie=%#llx engine=%u length=%llu ns=%llu",
		      __entry->ring, __entry->cookie, __entry->engine,
		      __entry->length, __entry->ns));

/* An engine is given bytes; bytes are moved, by the engine or the CPU in its place. */
DECLARE_EVENT_CLASS(nymph_move_class,
		    TP_PROTO(const struct nymph_ring *ring,
			     const struct nymph_move *moves, unsigned int n),
		    TP_ARGS(ring, moves, n),
		    TP_STRUCT__entry(__field(unsigned int, ring)
				     __field(u32, engine)
				     __field(u32, n)
				     __field(u64, ns)),
		    TP_fast_assign(__entry->ring = ring->id;
				   __entry->engine = moves->engine;
				   __entry->n = n;
				   __entry->ns = ktime_get_ns();),
		    TP_printk("ring=%u engine=%u n=%u ns=%llu", __entry->ring,
			      __entry->engine, __entry->n, __entry->ns));

DEFINE_EVENT(nymph_move_class, nymph_move,
	     TP_PROTO(const struct nymph_ring *ring,
		      const struct nymph_move *moves, unsigned int n),
	     TP_ARGS(ring, moves, n));

DEFINE_EVENT(nymph_move_class, nymph_moved,
	     TP_PROTO(const struct nymph_ring *ring,
		      const struct nymph_move *moves, unsigned int n),
	     TP_ARGS(ring, moves, n));

/* @n moves are mapped for the channel's device, in @runs runs of bytes. */
TRACE_EVENT(nymph_mapped,
	    TP_PROTO(u32 engine, unsigned int n, unsigned int runs),
	    TP_ARGS(engine, n, runs),
	    TP_STRUCT__entry(__field(u32, engine)
			     __field(u32, n)
			     __field(u32, runs)
			     __field(u64, ns)),
	    TP_fast_assign(__entry->engine = engine;
			   __entry->n = n;
			   __entry->runs = runs;
			   __entry->ns = ktime_get_ns();),
	    TP_printk("engine=%u n=%u runs=%u ns=%llu", __entry->engine,
		      __entry->n, __entry->runs, __entry->ns));

/* A chunk, or a batch of @n entries, is moved, and hashed if the entries ask for it. */
TRACE_EVENT(nymph_landed,
	    TP_PROTO(const struct nymph_ring *ring, unsigned int n),
	    TP_ARGS(ring, n),
	    TP_STRUCT__entry(__field(unsigned int, ring)
			     __field(u32, n)
			     __field(u64, ns)),
	    TP_fast_assign(__entry->ring = ring->id;
			   __entry->n = n;
			   __entry->ns = ktime_get_ns();),
	    TP_printk("ring=%u n=%u ns=%llu", __entry->ring, __entry->n,
		      __entry->ns));

TRACE_EVENT(nymph_complete,
	    TP_PROTO(const struct nymph_ring *ring, const struct nymph_entry *e,
		     u64 bytes_done, int status, u64 ns),
	    TP_ARGS(ring, e, bytes_done, status, ns),
	    TP_STRUCT__entry(__field(unsigned int, ring)
			     __field(u64, cookie)
			     __field(u64, bytes_done)
			     __field(int, status)
			     __field(u64, ns)),
	    TP_fast_assign(__entry->ring = ring->id;
			   __entry->cookie = e->cookie;
			   __entry->bytes_done = bytes_done;
			   __entry->status = status;
			   __entry->ns = ns;),
	    TP_printk("ring=%u cookie=%#llx bytes_done=%llu status=%d ns=%llu",
		      __entry->ring, __entry->cookie, __entry->bytes_done,
		      __entry->status, __entry->ns));

#endif /* _NYMPH_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
