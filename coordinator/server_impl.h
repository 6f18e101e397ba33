/* Inside of a server, shared by server.c (life), server_show.c (SHOW, settings) and server_http.c
 * (routes). */
#ifndef SPAN_COORDINATOR_SERVER_IMPL_H
#define SPAN_COORDINATOR_SERVER_IMPL_H

#include "coordinator/data_dir.h"
#include "coordinator/gateway.h"
#include "coordinator/http.h"
#include "coordinator/server.h"
#include "shard/node.h"
#include "truetime/clock.h"

#include <pthread.h>

struct server {
    struct server_options options;
    struct data_dir data;
    struct metrics *metrics;
    struct clock *clock;
    struct timer *timer;
    struct node *node;
    struct gateway *gateway;
    struct kv_env *kv_env;
    struct answer_gate *gate;
    struct schema_cache *schemas;
    struct pg_listener *listener;
    struct http *http;
    struct arena learn_arena;
    struct node_table nodes; /* in force; version 0: options.peers. Worker's thread once started */
    _Atomic uint64_t node_bits; /* bit id - 1: a node of the cluster; any thread reads */
    uint64_t learnt_version;
    uint64_t started_ns;
    char peer_url[256];
    bool started;
    bool met_peers; /* they may know this store: its folder is not unmade any more (rule F2) */
    bool balance_off;
    uint64_t split_bytes; /* range.split_size */
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t changed;
    bool stop;
    bool fatal;
    char fatal_text[512];
};

/* gateway_host functions, on the worker's thread. */
span_status server_show(void *ctx, const struct tt_now *now, enum kv_show what,
                        struct kv_table *out, struct span_error *err);
span_status server_set(void *ctx, const struct tt_now *now, const char *name, const char *value,
                       struct span_error *err);

/* server_nodes.c: the node table. At start: what the folder's NODES says of peers wins over
 * options.peers, whose ids must be known. */
SPAN_CHECKED span_status server_nodes_open(struct server *s, struct span_error *err);
/* Any thread: is it a node of the cluster, as far as known here? */
bool server_has_node(const struct server *s, unsigned id);
/* gateway_host functions. */
span_status server_nodes_apply(void *ctx, const struct tt_now *now, const struct node_table *t,
                               struct span_error *err);
void server_nodes_get(void *ctx, struct node_table *out);
/* A newer table somewhere is read; a range that is too large is split. Each turn; cheap. */
void server_nodes_look(struct server *s, const struct tt_now *now);

/* server_ports.c. EXISTS: somebody listens where this node is to. Ports are tried and left again.
 */
SPAN_CHECKED span_status server_ports_check(const struct server_options *o, struct span_error *err);
/* INVALID: two nodes of one host whose blocks of peer ports overlap; says how far apart they go. */
SPAN_CHECKED span_status server_ports_overlap(const struct server_options *o,
                                              struct span_error *err);

extern const struct http_route server_routes[];

#endif
