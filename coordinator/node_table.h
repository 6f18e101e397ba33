/* The node table: which nodes the cluster has, where they are reached, which of them are to lead
 * nothing or to give their replicas away, and how many replicas a range is to have.
 *
 * It is one row of a system table in range 1, changed by transactions (gateway_nodes.c), and a file
 * NODES in every node's data folder, so that a node finds its peers again before it can read range
 * 1. The greater version is the newer one. A cluster whose nodes were never changed has none
 * (version 0): its nodes are those of --peers. Plain data, no locks. */
#ifndef SPAN_COORDINATOR_NODE_TABLE_H
#define SPAN_COORDINATOR_NODE_TABLE_H

#include "base/buf.h"
#include "base/limits.h"
#include "shard/node.h"

#define NODE_URL_BYTES 200

struct node_entry {
    node_id node;
    enum store_node_state state;
    char url[NODE_URL_BYTES]; /* base URL of its peer address */
};

struct node_table {
    uint64_t version;
    uint32_t replicas;
    size_t count;
    struct node_entry nodes[LIMIT_PEERS]; /* by id, rising */
};

const char *node_state_name(enum store_node_state state);
struct node_entry *node_table_find(struct node_table *t, node_id node);
/* INVALID: no room, no such id, or a URL that is no peer address. */
SPAN_CHECKED span_status node_table_add(struct node_table *t, node_id node, const char *url,
                                        struct span_error *err);
/* One change, named as a cluster setting is; the version rises.
 *
 *   node.add           "4=tcp://host:port": a new node; its number is nobody's
 *   node.address       "4=tcp://host:port": a new address of one that is there
 *   node.activate      "3": takes part again
 *   node.drain         "3": leads nothing
 *   node.decommission  "3": its replicas move away; enough nodes for cluster.replicas must stay
 *   node.remove        "3": gone from the table; only after decommission
 *   cluster.replicas   "5"
 *
 * INVALID, EXISTS or NOT_FOUND say what is wrong with it. */
SPAN_CHECKED span_status node_table_change(struct node_table *t, const char *name,
                                           const char *value, struct span_error *err);
bool node_table_is_change(const char *name); /* one of the names above */

void node_table_encode(const struct node_table *t, struct buf *out);
/* CORRUPT. */
SPAN_CHECKED span_status node_table_decode(struct slice s, struct node_table *out);
void node_table_to_store(const struct node_table *t, struct store_nodes *out);

/* DIR/NODES, with a checksum; replaced whole. IO, NO_SPACE. */
SPAN_CHECKED span_status node_table_write(const char *dir, const struct node_table *t,
                                          struct span_error *err);
/* NOT_FOUND (err untouched), CORRUPT, IO. */
SPAN_CHECKED span_status node_table_read(const char *dir, struct node_table *out,
                                         struct span_error *err);

#endif
