/* The transport: configuration, look-up of links, deadlines, status. The links themselves are in
 * link.c. */
#include "base/alloc.h"
#include "base/invariant.h"
#include "shard/net/link.h"

#include <arpa/inet.h>
#include <string.h>

#define TICK_NS (100 * MS_NS) /* all patience here is in multiples of it */

/* --- deadlines ----------------------------------------------------------------------------------
 */

static void tick(struct timer_node *n)
{
    struct transport *t = LIST_ENTRY(n, struct transport, tick);
    if (atomic_load(&t->closing)) {
        return;
    }
    uint64_t now = timer_now_ns();
    for (uint32_t node = 1; node <= LIMIT_PEERS; node++) {
        if (t->peers[node] == NULL) {
            continue;
        }
        for (unsigned c = 0; c < NET_CLASS_COUNT; c++) {
            link_tick(&t->peers[node]->links[NET_OUT][c], now);
            link_tick(&t->peers[node]->links[NET_IN][c], now);
        }
    }
    timer_at(t->timer, &t->tick, now + TICK_NS, tick);
}

void transport_kick(struct transport *t)
{
    if (atomic_load(&t->ready) && !atomic_load(&t->closing)) {
        timer_at(t->timer, &t->tick, timer_now_ns(), tick);
    }
}

/* --- opening ------------------------------------------------------------------------------------
 */

static span_status parse_source(struct transport *t, const char *source, struct span_error *err)
{
    if (source == NULL || source[0] == '\0') {
        return SPAN_OK;
    }
    struct in_addr v4;
    struct in6_addr v6;
    if (inet_pton(AF_INET, source, &v4) == 1) {
        t->source.s_in = (struct nng_sockaddr_in){.sa_family = NNG_AF_INET, .sa_addr = v4.s_addr};
    } else if (inet_pton(AF_INET6, source, &v6) == 1) {
        t->source.s_in6 = (struct nng_sockaddr_in6){.sa_family = NNG_AF_INET6};
        memcpy(t->source.s_in6.sa_addr, &v6, sizeof(v6));
    } else {
        return span_fail(err, SPAN_INVALID, "'%s': the source address must be numeric", source);
    }
    t->has_source = true;
    return SPAN_OK;
}

static void link_init(struct link *l, struct peer *p, enum net_direction direction,
                      enum net_class class)
{
    l->t = p->t;
    l->peer = p;
    l->direction = direction;
    l->class = class;
    list_init(&l->stream.conns);
    (void)pthread_mutex_init(&l->lock, NULL);
    (void)pthread_mutex_init(&l->report_lock, NULL);
    (void)pthread_mutex_init(&l->deliver_lock, NULL);
}

static struct peer *peer_new(struct transport *t, const struct transport_peer_config *cfg)
{
    struct peer *p = SPAN_NEW(struct peer);
    p->t = t;
    p->node = cfg->node;
    p->url = span_strdup(cfg->url);
    p->store_expected = cfg->store_id;
    (void)pthread_mutex_init(&p->lock, NULL);
    for (unsigned c = 0; c < NET_CLASS_COUNT; c++) {
        link_init(&p->links[NET_OUT][c], p, NET_OUT, (enum net_class)c);
        link_init(&p->links[NET_IN][c], p, NET_IN, (enum net_class)c);
    }
    return p;
}

static void peer_free(struct peer *p)
{
    for (unsigned d = 0; d < 2; d++) {
        for (unsigned c = 0; c < NET_CLASS_COUNT; c++) {
            struct link *l = &p->links[d][c];
            (void)pthread_mutex_destroy(&l->lock);
            (void)pthread_mutex_destroy(&l->report_lock);
            (void)pthread_mutex_destroy(&l->deliver_lock);
        }
    }
    (void)pthread_mutex_destroy(&p->lock);
    span_free(p->url);
    span_free(p);
}

/* Checks one peer's configuration and makes it, with the addresses of its links; not yet in
 * t->peers. */
static span_status peer_make(struct transport *t, const struct transport_peer_config *cfg,
                             struct peer **made, struct span_error *err)
{
    if (cfg->node == 0 || cfg->node > LIMIT_PEERS) {
        return span_fail(err, SPAN_INVALID, "peer id %u: must be 1..%d", cfg->node, LIMIT_PEERS);
    }
    if (cfg->node == t->node) {
        return span_fail(err, SPAN_INVALID, "peer %u is this node", cfg->node);
    }
    if (t->peers[cfg->node] != NULL) {
        return span_fail(err, SPAN_INVALID, "peer %u is given twice", cfg->node);
    }
    if (cfg->url == NULL) {
        return span_fail(err, SPAN_INVALID, "peer %u has no address", cfg->node);
    }
    struct peer *p = peer_new(t, cfg);
    for (unsigned c = 0; c < NET_CLASS_COUNT; c++) {
        struct link *out = &p->links[NET_OUT][c];
        struct link *in = &p->links[NET_IN][c];
        span_status st =
            url_of_link(cfg->url, t->node, (enum net_class)c, out->url, &out->scheme, err);
        if (st == SPAN_OK) {
            st =
                url_of_link(t->listen_url, cfg->node, (enum net_class)c, in->url, &in->scheme, err);
        }
        if (st != SPAN_OK) {
            peer_free(p);
            return st;
        }
    }
    *made = p;
    return SPAN_OK;
}

static span_status config_check(const struct transport_config *cfg, struct span_error *err)
{
    char url[URL_BYTES];
    enum url_scheme scheme;
    if (cfg->node == 0 || cfg->node > LIMIT_PEERS) {
        return span_fail(err, SPAN_INVALID, "node id %u: must be 1..%d", cfg->node, LIMIT_PEERS);
    }
    if (cfg->peer_count >= LIMIT_PEERS) {
        return span_fail(err, SPAN_INVALID, "%zu peers: at most %d", cfg->peer_count,
                         LIMIT_PEERS - 1);
    }
    REQUIRE(cfg->incarnation != 0);
    REQUIRE(cfg->timer != NULL);
    REQUIRE(cfg->callbacks.on_frame != NULL);
    /* Also without peers: the address is checked before there are any. */
    return url_of_link(cfg->listen_url, cfg->node, NET_CONTROL, url, &scheme, err);
}

static span_status peer_open(struct peer *p, struct span_error *err)
{
    for (unsigned c = 0; c < NET_CLASS_COUNT; c++) {
        span_status st = link_open(&p->links[NET_IN][c], err);
        if (st == SPAN_OK) {
            st = link_open(&p->links[NET_OUT][c], err);
        }
        if (st != SPAN_OK) {
            return st;
        }
    }
    return SPAN_OK;
}

static void peer_close(struct peer *p)
{
    for (unsigned c = 0; c < NET_CLASS_COUNT; c++) {
        link_close(&p->links[NET_OUT][c]);
        link_close(&p->links[NET_IN][c]);
    }
}

span_status transport_open(const struct transport_config *cfg, struct transport **out,
                           struct span_error *err)
{
    span_status st = config_check(cfg, err);
    if (st != SPAN_OK) {
        return st;
    }
    struct transport *t = SPAN_NEW(struct transport);
    t->cluster_id = cfg->cluster_id;
    t->node = cfg->node;
    t->store_id = cfg->store_id;
    t->incarnation = cfg->incarnation;
    t->enable_faults = cfg->enable_faults;
    t->timer = cfg->timer;
    t->callbacks = cfg->callbacks;
    (void)pthread_mutex_init(&t->fault_lock, NULL);
    rng_init(&t->fault_rng, cfg->fault_seed);
    list_init(&t->delayed);
    t->listen_url = span_strdup(cfg->listen_url);
    st = parse_source(t, cfg->source, err);
    for (size_t i = 0; st == SPAN_OK && i < cfg->peer_count; i++) {
        struct peer *p = NULL;
        st = peer_make(t, &cfg->peers[i], &p, err);
        t->peers[cfg->peers[i].node] = st == SPAN_OK ? p : t->peers[cfg->peers[i].node];
    }
    for (uint32_t node = 1; st == SPAN_OK && node <= LIMIT_PEERS; node++) {
        if (t->peers[node] != NULL) {
            st = peer_open(t->peers[node], err);
        }
    }
    if (st != SPAN_OK) {
        transport_close(t);
        return st;
    }
    *out = t;
    atomic_store(&t->ready, true);
    transport_kick(t);
    return SPAN_OK;
}

span_status transport_peer_add(struct transport *t, const struct transport_peer_config *cfg,
                               struct span_error *err)
{
    struct peer *p = NULL;
    span_status st = peer_make(t, cfg, &p, err);
    if (st != SPAN_OK) {
        return st;
    }
    st = peer_open(p, err);
    if (st != SPAN_OK) {
        peer_close(p);
        peer_free(p);
        return st;
    }
    t->peers[cfg->node] = p;
    transport_kick(t);
    return SPAN_OK;
}

void transport_close(struct transport *t)
{
    if (t == NULL) {
        return;
    }
    atomic_store(&t->closing, true);
    (void)timer_cancel(t->timer, &t->tick);
    delayed_clear(t);
    for (uint32_t node = 1; node <= LIMIT_PEERS; node++) {
        if (t->peers[node] != NULL) {
            peer_close(t->peers[node]);
        }
    }
    /* A link's callback may have kicked before it saw `closing`. */
    (void)timer_cancel(t->timer, &t->tick);
    for (uint32_t node = 1; node <= LIMIT_PEERS; node++) {
        if (t->peers[node] != NULL) {
            peer_free(t->peers[node]);
        }
    }
    (void)pthread_mutex_destroy(&t->fault_lock);
    span_free(t->listen_url);
    span_free(t);
}

void transport_library_fini(void)
{
    nng_fini();
}

/* --- calls --------------------------------------------------------------------------------------
 */

static struct peer *peer_of(struct transport *t, uint32_t node)
{
    return node <= LIMIT_PEERS ? t->peers[node] : NULL;
}

span_status transport_send(struct transport *t, uint32_t node, enum net_class class,
                           struct buf *bytes)
{
    struct peer *p = peer_of(t, node);
    span_status st = SPAN_OK;
    REQUIRE(class < NET_CLASS_COUNT);
    if (p == NULL) {
        st = SPAN_NOT_FOUND;
    } else if (bytes->size > LIMIT_FRAME_BYTES) {
        st = SPAN_TOO_LARGE;
    }
    if (st != SPAN_OK || bytes->size == 0) {
        buf_deinit(bytes);
        return st;
    }
    struct link *l = &p->links[NET_OUT][class];
    return t->enable_faults ? link_fault_send(l, bytes) : link_send(l, bytes);
}

span_status transport_peer_store_set(struct transport *t, uint32_t node, uint64_t store_id)
{
    struct peer *p = peer_of(t, node);
    if (p == NULL) {
        return SPAN_NOT_FOUND;
    }
    (void)pthread_mutex_lock(&p->lock);
    p->store_expected = store_id;
    bool other = store_id != 0 && p->store_learnt != 0 && p->store_learnt != store_id;
    if (other) {
        p->last_refusal = NET_REFUSED_STORE;
    }
    (void)pthread_mutex_unlock(&p->lock);
    for (unsigned c = 0; other && c < NET_CLASS_COUNT; c++) {
        link_drop(&p->links[NET_OUT][c]);
        link_drop(&p->links[NET_IN][c]);
    }
    return SPAN_OK;
}

static void link_status(struct peer *p, enum net_class class, struct transport_link_status *s)
{
    struct link *out = &p->links[NET_OUT][class];
    struct link *in = &p->links[NET_IN][class];
    (void)pthread_mutex_lock(&out->lock);
    *s = out->stats; /* frames_out .. connects, queued_bytes, rtt_ns are this link's */
    s->up_out = out->up;
    (void)pthread_mutex_unlock(&out->lock);
    (void)pthread_mutex_lock(&in->lock);
    s->up_in = in->up;
    s->frames_in = in->stats.frames_in;
    s->bytes_in = in->stats.bytes_in;
    s->dropped_stale += in->stats.dropped_stale;
    s->dropped_bad += in->stats.dropped_bad;
    s->dropped_fault += in->stats.dropped_fault;
    s->refused += in->stats.refused;
    if (s->last_heard_ns < in->stats.last_heard_ns) {
        s->last_heard_ns = in->stats.last_heard_ns;
    }
    (void)pthread_mutex_unlock(&in->lock);
}

span_status transport_peer_status(struct transport *t, uint32_t node,
                                  struct transport_peer_status *out)
{
    struct peer *p = peer_of(t, node);
    if (p == NULL) {
        return SPAN_NOT_FOUND;
    }
    *out = (struct transport_peer_status){.node = node};
    (void)strncpy(out->url, p->url, sizeof(out->url) - 1);
    (void)pthread_mutex_lock(&p->lock);
    out->store_id = p->store_expected != 0 ? p->store_expected : p->store_learnt;
    out->incarnation = p->incarnation;
    out->last_refusal = p->last_refusal;
    (void)pthread_mutex_unlock(&p->lock);
    for (unsigned c = 0; c < NET_CLASS_COUNT; c++) {
        link_status(p, (enum net_class)c, &out->link[c]);
    }
    return SPAN_OK;
}

static void fault_put(struct link *l, const struct transport_fault_path *set)
{
    (void)pthread_mutex_lock(&l->t->fault_lock);
    l->fault.set = *set;
    (void)pthread_mutex_unlock(&l->t->fault_lock);
}

span_status transport_fault_set(struct transport *t, uint32_t node,
                                const struct transport_fault *fault)
{
    static const struct transport_fault none;
    if (!t->enable_faults) {
        return SPAN_UNSUPPORTED;
    }
    if (node != 0 && peer_of(t, node) == NULL) {
        return SPAN_NOT_FOUND;
    }
    if (fault == NULL) {
        fault = &none;
    }
    span_status st = fault_check(fault, NULL);
    if (st != SPAN_OK) {
        return st;
    }
    for (uint32_t i = 1; i <= LIMIT_PEERS; i++) {
        struct peer *p = t->peers[i];
        for (unsigned c = 0; p != NULL && (node == 0 || node == i) && c < NET_CLASS_COUNT; c++) {
            fault_put(&p->links[NET_OUT][c], &fault->out);
            fault_put(&p->links[NET_IN][c], &fault->in);
        }
    }
    return SPAN_OK;
}
