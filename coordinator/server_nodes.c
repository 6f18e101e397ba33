/* The node table on this node: from the folder at start, from range 1 later. On the worker's thread
 * once the server runs. */
#include "base/alloc.h"
#include "base/log.h"
#include "coordinator/server_impl.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

static struct server_peer *peer_of(struct server_options *o, unsigned id)
{
    for (size_t i = 0; i < o->peer_count; i++) {
        if (o->peers[i].id == id) {
            return &o->peers[i];
        }
    }
    return NULL;
}

static void drop_peer(struct server_options *o, size_t at)
{
    span_free(o->peers[at].url);
    memmove(&o->peers[at], &o->peers[at + 1], (o->peer_count - at - 1) * sizeof o->peers[0]);
    o->peer_count--;
}

/* --peers may be as old as the cluster: nodes that joined later come from the table, nodes that
 * left are not dialled any more. An address given by hand wins over the table's. */
static span_status merge_peers(struct server *s, struct span_error *err)
{
    struct server_options *o = &s->options;
    span_status st = SPAN_OK;
    for (size_t i = o->peer_count; i-- > 0;) {
        if (o->peers[i].id != o->id && node_table_find(&s->nodes, o->peers[i].id) == NULL) {
            SPAN_LOG(WARN, "peer is not in the cluster any more", "peer=%u", o->peers[i].id);
            drop_peer(o, i);
        }
    }
    for (size_t i = 0; i < s->nodes.count && st == SPAN_OK; i++) {
        const struct node_entry *e = &s->nodes.nodes[i];
        char text[NODE_URL_BYTES + 16];
        if (peer_of(o, e->node) == NULL) {
            (void)snprintf(text, sizeof text, "%u=%s", e->node, e->url);
            st = server_options_add_peers(o, text, err);
        }
    }
    return st;
}

static_assert(LIMIT_PEERS <= 64, "one bit a node");

static void publish(struct server *s)
{
    uint64_t bits = 0;
    for (size_t i = 0; s->nodes.version > 0 && i < s->nodes.count; i++) {
        bits |= 1ULL << (s->nodes.nodes[i].node - 1);
    }
    for (size_t i = 0; s->nodes.version == 0 && i < s->options.peer_count; i++) {
        bits |= 1ULL << (s->options.peers[i].id - 1);
    }
    atomic_store_explicit(&s->node_bits, bits, memory_order_relaxed);
}

bool server_has_node(const struct server *s, unsigned id)
{
    return id >= 1 && id <= LIMIT_PEERS &&
           (atomic_load_explicit(&s->node_bits, memory_order_relaxed) >> (id - 1) & 1) != 0;
}

span_status server_nodes_open(struct server *s, struct span_error *err)
{
    span_status st = node_table_read(s->options.data_dir, &s->nodes, err);
    if (st == SPAN_NOT_FOUND) {
        s->nodes = (struct node_table){0};
        publish(s);
        return SPAN_OK;
    }
    publish(s);
    if (st == SPAN_OK && node_table_find(&s->nodes, s->options.id) == NULL) {
        SPAN_LOG(WARN, "this node was removed from the cluster", "node=%u", s->options.id);
    }
    return st == SPAN_OK ? merge_peers(s, err) : st;
}

span_status server_nodes_apply(void *ctx, const struct tt_now *now, const struct node_table *t,
                               struct span_error *err)
{
    struct server *s = ctx;
    if (t->version <= s->nodes.version) {
        return SPAN_OK;
    }
    /* On disk before anything acts on it. */
    span_status st = node_table_write(s->data.path, t, err);
    for (size_t i = 0; st == SPAN_OK && i < t->count; i++) {
        st = node_add_peer(s->node, t->nodes[i].node, t->nodes[i].url, err);
    }
    if (st != SPAN_OK) {
        return st;
    }
    struct store_nodes nodes;
    node_id ids[LIMIT_PEERS];
    s->nodes = *t;
    node_table_to_store(t, &nodes);
    store_set_nodes(node_store(s->node), now, &nodes);
    for (size_t i = 0; i < t->count; i++) {
        ids[i] = t->nodes[i].node;
    }
    gateway_set_nodes(s->gateway, ids, t->count);
    clock_set_peer_count(s->clock, t->count > 0 ? (unsigned)t->count - 1 : 0);
    publish(s);
    return SPAN_OK;
}

void server_nodes_get(void *ctx, struct node_table *out)
{
    const struct server *s = ctx;
    *out = s->nodes;
    if (out->version > 0) {
        return;
    }
    struct span_error err;
    for (size_t i = 0; i < s->options.peer_count; i++) {
        const struct server_peer *p = &s->options.peers[i];
        if (node_table_add(out, p->id, p->url, &err) != SPAN_OK) {
            SPAN_LOG(ERROR, "node can not be in the node table", "error=\"%s\"", err.text);
        }
    }
    out->replicas = (uint32_t)(out->count < LIMIT_REPLICAS ? out->count : LIMIT_REPLICAS);
}

void server_nodes_look(struct server *s, const struct tt_now *now)
{
    if (store_nodes_version_heard(node_store(s->node)) > s->nodes.version) {
        gateway_refresh_nodes(s->gateway, now);
    }
    struct slice key;
    if (store_split_wanted(node_store(s->node), &key)) {
        gateway_auto_split(s->gateway, now, key);
    }
}
