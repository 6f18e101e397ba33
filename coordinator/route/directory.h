/* A gateway's cache of range descriptors: the whole key space, sorted, as far as it is known, and
 * where each range's leader was last seen. Only ever a guess: ranges check every request themselves
 * (rule F4). Higher generations win; what a newer descriptor overlaps is dropped, so no key is ever
 * covered twice. */
#ifndef SPAN_COORDINATOR_ROUTE_DIRECTORY_H
#define SPAN_COORDINATOR_ROUTE_DIRECTORY_H

#include "base/buf.h"
#include "base/map.h"
#include "txn/txn_msg.h"

struct dir_range {
    range_id range;
    uint64_t generation;
    struct buf start;
    struct buf end; /* empty: to the end of the key space */
    size_t member_count;
    node_id members[LIMIT_REPLICAS];
    node_id leader;       /* hint; 0: unknown */
    node_id store_leader; /* what the own store said last */
    uint64_t leader_term; /* term in which it led, as far as known: a hint of an older term does not
                             replace it */
};

struct directory {
    struct dir_range **ranges; /* by start */
    size_t count;
    size_t cap;
    struct map64 by_id;
    uint64_t version; /* changes with every change of bounds */
};

void directory_init(struct directory *d);
void directory_deinit(struct directory *d);

/* Learns a descriptor. True if bounds changed. A nonempty `leader` is taken as a hint when none is
 * known (directory_hint for more). */
bool directory_learn(struct directory *d, const struct range_descriptor *desc);
/* The range that covers key; NULL: not known. Valid until the next learn. */
struct dir_range *directory_lookup(const struct directory *d, struct slice key);
struct dir_range *directory_by_id(const struct directory *d, range_id id);
/* The range covers [start, end) (end empty: to the end of the key space) / the one key. */
bool dir_range_covers(const struct dir_range *r, struct slice key);
bool dir_range_covers_span(const struct dir_range *r, struct slice start, struct slice end);

/* Leader hint. term 0: not known. False if it was older than what is known. */
bool directory_hint(struct directory *d, range_id id, node_id leader, uint64_t term);
/* `node` turned out not to lead the range: the hint goes if it named it. */
void directory_unhint(struct directory *d, range_id id, node_id node);
void directory_unhint_node(struct directory *d, node_id node);

#endif
