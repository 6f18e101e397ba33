/* A transaction's buffered writes: an ordered map from key to value or tombstone, with an undo log
 * for savepoints. Kept at the gateway until commit (DESIGN 6); reads of the transaction look here
 * first. One owner, a session's thread. */
#ifndef SPAN_COORDINATOR_ROUTE_WRITE_BUFFER_H
#define SPAN_COORDINATOR_ROUTE_WRITE_BUFFER_H

#include "base/rng.h"
#include "base/status.h"
#include "txn/txn_types.h"

struct wb_node;

struct write_buffer {
    struct wb_node *head; /* of the skip list; made at the first write */
    size_t count;         /* keys with a write */
    size_t bytes;         /* of everything kept, undone versions not */
    struct wb_node **undo;
    size_t undo_count;
    size_t undo_cap;
    size_t last_mark; /* versions logged before it must be kept */
    struct rng rng;
};

void write_buffer_init(struct write_buffer *w);
void write_buffer_deinit(struct write_buffer *w);
void write_buffer_clear(struct write_buffer *w);

/* Copies. TOO_LARGE when the buffer would pass LIMIT_TXN_WRITE_BYTES, or the key or value its own
 * limit; nothing changed then. */
SPAN_CHECKED span_status write_buffer_put(struct write_buffer *w, struct slice key,
                                          struct slice value);
SPAN_CHECKED span_status write_buffer_del(struct write_buffer *w, struct slice key);

size_t write_buffer_mark(struct write_buffer *w);
void write_buffer_rollback_to(struct write_buffer *w, size_t mark);

/* All return false when there is none; *out borrows until the next change. */
bool write_buffer_get(const struct write_buffer *w, struct slice key, struct txn_write *out);
/* Smallest key >= key (or > key when `after`). */
bool write_buffer_seek(const struct write_buffer *w, struct slice key, bool after,
                       struct txn_write *out);
/* Greatest key < key; key empty: the greatest of all. */
bool write_buffer_seek_before(const struct write_buffer *w, struct slice key,
                              struct txn_write *out);

/* Every write in key order into out (count of them). */
void write_buffer_list(const struct write_buffer *w, struct txn_write *out);

#endif
