/* The entries of one range that are in memory: everything behind the compacted prefix.
 *
 * Pure bookkeeping: contiguous indexes, terms that never fall, payloads by reference. Entries lie
 * in one array, so that a run of them can be handed out without copying (valid until the next
 * change). */
#ifndef SPAN_SHARD_RAFT_RAFT_LOG_H
#define SPAN_SHARD_RAFT_RAFT_LOG_H

#include "shard/raft/raft_msg.h"

struct raft_log {
    raft_index base_index; /* the last compacted entry ... */
    raft_term base_term;   /* ... and its term */
    struct raft_entry *slots;
    size_t head; /* slots[head] is entry base_index + 1 */
    size_t count;
    size_t cap;
    size_t bytes; /* payload bytes held */
};

void raft_log_init(struct raft_log *l, raft_index base_index, raft_term base_term);
void raft_log_deinit(struct raft_log *l);

raft_index raft_log_last(const struct raft_log *l);
raft_term raft_log_last_term(const struct raft_log *l);
/* Term of an entry, or of the base; false when it is compacted or not there yet. */
bool raft_log_term(const struct raft_log *l, raft_index index, raft_term *term);
bool raft_log_matches(const struct raft_log *l, raft_index index, raft_term term);
/* NULL when not in memory. */
const struct raft_entry *raft_log_at(const struct raft_log *l, raft_index index);
/* The entries from index on; *count is how many. index > base. */
const struct raft_entry *raft_log_from(const struct raft_log *l, raft_index index, size_t *count);
/* Raft section 5.4.1: is a log ending in (index, term) at least as good as this one? */
bool raft_log_is_up_to_date(const struct raft_log *l, raft_index index, raft_term term);
/* The greatest index <= `index` whose term is <= `term`, not below the base: the fast back-up of a
 * log that conflicts (section 5.3). */
raft_index raft_log_find(const struct raft_log *l, raft_index index, raft_term term);

/* Appends one entry at last + 1; takes a reference to its payload. */
void raft_log_append(struct raft_log *l, const struct raft_entry *e);
void raft_log_truncate(struct raft_log *l, raft_index from); /* drops from .. last */
void raft_log_compact(struct raft_log *l, raft_index index); /* base < index <= last */
/* Drops everything: the log begins behind (index, term). */
void raft_log_reset(struct raft_log *l, raft_index index, raft_term term);

#endif
