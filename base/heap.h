/* Intrusive binary min-heap by a 64-bit key (deadlines). A node knows its place, so removal and
 * re-keying are O(log n). A zeroed node is "not in a heap". Ties leave in order of insertion. */
#ifndef SPAN_BASE_HEAP_H
#define SPAN_BASE_HEAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct heap_node {
    uint64_t key;
    uint64_t order; /* insertion number: makes ties deterministic */
    size_t place;   /* 1-based; 0: not in a heap */
};

struct heap {
    struct heap_node **nodes;
    size_t count;
    size_t cap;
    uint64_t next_order;
};

void heap_init(struct heap *h);
void heap_deinit(struct heap *h);
void heap_insert(struct heap *h, struct heap_node *n, uint64_t key); /* re-keys if already in */
void heap_remove(struct heap *h, struct heap_node *n);               /* no-op if not in */
struct heap_node *heap_min(const struct heap *h);                    /* NULL when empty */

static inline bool heap_node_in(const struct heap_node *n)
{
    return n->place != 0;
}

#endif
