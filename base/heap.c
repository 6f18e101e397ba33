/* Binary min-heap of nodes that live in their owners. nodes[0] is the root; node->place is its
 * index plus one. Equal keys are ordered by an insertion number, so the order in which timers fire
 * depends only on the operations (the simulator's traces must repeat). */
#include "base/heap.h"

#include "base/alloc.h"
#include "base/invariant.h"

static bool node_before(const struct heap_node *a, const struct heap_node *b)
{
    return a->key != b->key ? a->key < b->key : a->order < b->order;
}

static void heap_put_at(struct heap *h, size_t i, struct heap_node *n)
{
    h->nodes[i] = n;
    n->place = i + 1;
}

/* Moves n up from the hole at i as far as it belongs. */
static void heap_sift_up(struct heap *h, size_t i, struct heap_node *n)
{
    while (i > 0 && node_before(n, h->nodes[(i - 1) / 2])) {
        heap_put_at(h, i, h->nodes[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
    heap_put_at(h, i, n);
}

static void heap_sift_down(struct heap *h, size_t i, struct heap_node *n)
{
    for (;;) {
        size_t child = 2 * i + 1;

        if (child >= h->count) {
            break;
        }
        if (child + 1 < h->count && node_before(h->nodes[child + 1], h->nodes[child])) {
            child++;
        }
        if (!node_before(h->nodes[child], n)) {
            break;
        }
        heap_put_at(h, i, h->nodes[child]);
        i = child;
    }
    heap_put_at(h, i, n);
}

void heap_init(struct heap *h)
{
    *h = (struct heap){0};
}

void heap_deinit(struct heap *h)
{
    for (size_t i = 0; i < h->count; i++) {
        h->nodes[i]->place = 0;
    }
    span_free(h->nodes);
    *h = (struct heap){0};
}

void heap_insert(struct heap *h, struct heap_node *n, uint64_t key)
{
    if (heap_node_in(n)) {
        heap_remove(h, n);
    }
    if (h->count == h->cap) {
        h->cap = h->cap ? h->cap * 2 : 16;
        h->nodes = span_realloc(h->nodes, h->cap * sizeof h->nodes[0]);
    }
    n->key = key;
    n->order = h->next_order++;
    heap_sift_up(h, h->count++, n);
}

void heap_remove(struct heap *h, struct heap_node *n)
{
    struct heap_node *last = NULL;
    size_t i = 0;

    if (!heap_node_in(n)) {
        return;
    }
    i = n->place - 1;
    REQUIRE(i < h->count);
    REQUIRE(h->nodes[i] == n); /* it is in this heap, not in another */
    n->place = 0;
    last = h->nodes[--h->count];
    if (last == n) {
        return;
    }
    if (i > 0 && node_before(last, h->nodes[(i - 1) / 2])) {
        heap_sift_up(h, i, last);
    } else {
        heap_sift_down(h, i, last);
    }
}

struct heap_node *heap_min(const struct heap *h)
{
    return h->count ? h->nodes[0] : NULL;
}
