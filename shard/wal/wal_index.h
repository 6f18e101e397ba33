/* What the log keeps in memory about its contents: the latest sticky payloads, and which ranges'
 * entries keep which segment alive. Pure bookkeeping, no I/O, no lock: its owner (wal.c) holds one.
 *
 * A *pin* says: segment s holds entries min..max of range r that are not released and not replaced.
 * Each range has at most one pin per segment, in segment order; an entry run that starts at i cuts
 * the pins of older segments down to i-1, as a Raft follower replaces its tail. A segment without
 * pins holds nothing anyone needs (sticky state is repeated in every later head, rule H3). */
#ifndef SPAN_SHARD_WAL_WAL_INDEX_H
#define SPAN_SHARD_WAL_WAL_INDEX_H

#include "base/buf.h"
#include "base/list.h"
#include "base/map.h"
#include "shard/wal/wal.h"

/* One effect of a batch. */
struct wal_batch_op {
    enum wal_record_kind kind;
    uint64_t range;
    uint64_t first; /* WAL_ENTRY: a run of consecutive indexes */
    uint64_t last;
    size_t offset; /* WAL_STICKY: where the record is in the batch's bytes */
};

/* Part of a segment that the index looks after; embedded in the segment. */
struct wal_pins {
    struct list list; /* of wal_pin_node, by seg_link */
};

struct wal_index {
    struct map64 ranges;
    uint64_t sticky_bytes; /* encoded size of all sticky records: the size of a head's records */
    uint32_t sticky_count;
};

void wal_index_init(struct wal_index *ix);
void wal_index_deinit(struct wal_index *ix);
void wal_pins_init(struct wal_pins *p);
bool wal_pins_is_empty(const struct wal_pins *p);

/* The range's entries first..last are now in the segment with these pins, which is the newest. */
void wal_index_entries(struct wal_index *ix, struct wal_pins *seg, uint64_t range, uint64_t first,
                       uint64_t last);
void wal_index_sticky(struct wal_index *ix, uint64_t range, uint8_t kind, struct slice payload);
void wal_index_tombstone(struct wal_index *ix, uint64_t range);
/* Entries at or below index need no segment any more. */
void wal_index_release(struct wal_index *ix, uint64_t range, uint64_t index);
/* A borrowed payload, valid until the next change; false when there is none. */
bool wal_index_get(const struct wal_index *ix, uint64_t range, uint8_t kind, struct slice *out);
/* All effects of a batch, in order. */
void wal_index_apply(struct wal_index *ix, struct wal_pins *seg, const struct wal_batch *b);
/* Appends all sticky records, ix->sticky_bytes of them. */
void wal_index_encode(const struct wal_index *ix, struct buf *out);
/* Up to max pins of a segment. */
size_t wal_index_pins(const struct wal_pins *seg, struct wal_pin *out, size_t max);

#endif
