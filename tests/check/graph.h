/* Transactions and what orders them, as a graph, and the search for a cycle. A cycle means that no
 * serial order explains the history (Adya; Elle, VLDB 2020). Knows nothing of keys and values.
 *
 * Real time is not put in as edges. It is an interval order, so any cycle with real-time edges in
 * it can be cut down to one with exactly one of them: with a before b and c before d (each ended
 * before the other began), and a path from b to c and from d to a, either a ended before d began,
 * and the cycle d .. a, d needs the one edge, or c before b, and b .. c, b does. So it is enough to
 * ask, for every transaction, for the earliest end among all it leads to. */
#ifndef SPAN_TESTS_CHECK_GRAPH_H
#define SPAN_TESTS_CHECK_GRAPH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum edge_kind {
    EDGE_WW = 1,   /* to overwrote (or appended after) what from wrote */
    EDGE_WR = 2,   /* to read what from wrote */
    EDGE_RW = 4,   /* to overwrote what from read */
    EDGE_RT = 8,   /* from ended before to began: in found cycles only */
    EDGE_VIA = 16, /* between a stand-in and a transaction: no step of its own */
};

struct edge {
    uint32_t from;
    uint32_t to;
    uint64_t key;
    enum edge_kind kind;
};

struct graph {
    uint32_t node_count;
    struct edge *edges;
    size_t edge_count;
    size_t edge_cap;
    uint32_t *head;  /* after graph_seal: edges of node i are head[i] .. head[i + 1] */
    uint64_t *start; /* a node's interval; stand-ins: 0 and UINT64_MAX */
    uint64_t *end;
    uint32_t *component; /* after graph_seal; numbered so that edges lead to lower or equal ones */
    uint32_t component_count;
    uint32_t *component_size;
    uint64_t work; /* edges looked at by searches, which stop at a bound */
};

#define CYCLE_MAX 64

struct cycle {
    struct edge step[CYCLE_MAX]; /* step[i].to == step[i + 1].from, the last leads to the first */
    size_t count;
    bool lost; /* the only read-write step went to a write that no read ever showed */
};

void graph_init(struct graph *g, uint32_t node_count);
void graph_deinit(struct graph *g);
void graph_set_interval(struct graph *g, uint32_t node, uint64_t start, uint64_t end);
/* A stand-in node for "one of many", so that many to many needs no product of edges. */
uint32_t graph_add_stand_in(struct graph *g);
/* Edges from a node to itself are ignored. */
void graph_add(struct graph *g, uint32_t from, uint32_t to, enum edge_kind kind, uint64_t key);
/* After the last edge: sorts and finds components. */
void graph_seal(struct graph *g);

/* A short cycle of the component, the most telling kind first: only writes, then with reads of
 * them, then with one read-write step, then any. False: the component is one transaction, or its
 * cycle is too long to print. */
bool graph_cycle_in(struct graph *g, uint32_t component, struct cycle *out);
/* How many transactions lead to one that ended before they began; a short cycle of such in out. */
uint64_t graph_cycle_in_time(struct graph *g, struct cycle *out);

#endif
