/* A node put together: data folder, clock, store and its threads (shard/node.h), gateway, SQL
 * sessions, PostgreSQL port, HTTP port.
 *
 *   pg_listener --session--> sql_session --> kv_session --op--> node's worker: gateway core -->
 * ranges here and elsewhere
 *        `--- answers through the answer gate (rule D0)
 *
 * Stopping, in order: no new clients and the old ones drained, leaderships handed over, gateway
 * closed, threads stopped, log closed. */
#include "coordinator/server.h"

#include "base/alloc.h"
#include "base/log.h"
#include "base/map.h"
#include "base/rng.h"
#include "coordinator/answer_gate.h"
#include "coordinator/data_dir.h"
#include "coordinator/gateway.h"
#include "coordinator/http.h"
#include "coordinator/kv_session.h"
#include "coordinator/pg_listener.h"
#include "coordinator/server_impl.h"
#include "coordinator/server_settings.h"
#include "sql/session.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <time.h>

#define DRAIN_MS    3000u /* without a majority a statement never ends by itself */
#define HANDOVER_NS (2 * SEC_NS)
#define LOOK_NS     (10 * MS_NS) /* how often server_wait_ready looks */

/* ---- the gateway as the node's guest ---- */

static void guest_message(void *ctx, const struct tt_now *now, node_id from, uint8_t kind,
                          struct slice body)
{
    struct server *s = ctx;
    gateway_message(s->gateway, now, from, kind, body);
}

static void guest_op(void *ctx, const struct tt_now *now, struct mailbox_item *item)
{
    struct server *s = ctx;
    gateway_op(s->gateway, now, MAILBOX_ENTRY(item, struct gateway_op, item));
}

static void guest_tick(void *ctx, const struct tt_now *now)
{
    struct server *s = ctx;
    gateway_tick(s->gateway, now);
}

static uint64_t guest_deadline(void *ctx)
{
    struct server *s = ctx;
    return gateway_deadline_ns(s->gateway);
}

static void guest_peer_lost(void *ctx, const struct tt_now *now, node_id node)
{
    struct server *s = ctx;
    gateway_peer_lost(s->gateway, now, node);
}

static void guest_peer_up(void *ctx, const struct tt_now *now, node_id node)
{
    struct server *s = ctx;
    gateway_peer_up(s->gateway, now, node);
}

static void guest_turn_begin(void *ctx, const struct tt_now *now)
{
    struct server *s = ctx;
    struct store *store = node_store(s->node);
    uint64_t version = store_descriptors_version(store);
    if (version != s->learnt_version) {
        s->learnt_version = version;
        struct range_descriptor *all;
        arena_clear(&s->learn_arena);
        size_t n = store_descriptors(store, &s->learn_arena, &all);
        gateway_learn(s->gateway, now, all, n);
    }
    server_nodes_look(s, now);
}

static struct buf *gateway_out(void *ctx, node_id to, unsigned cls)
{
    struct server *s = ctx;
    return node_out(s->node, to, (enum store_class)cls);
}

static span_status post_op(void *ctx, struct gateway_op *op)
{
    struct server *s = ctx;
    return node_post(s->node, &op->item);
}

static void session_now(void *ctx, struct tt_now *out)
{
    struct server *s = ctx;
    clock_now(s->clock, out);
}

static void clock_reason(void *ctx, char *out, size_t size)
{
    struct server *s = ctx;
    struct clock_info ci;
    clock_info_get(s->clock, &ci);
    (void)snprintf(out, size, "%s", ci.reason);
}

/* ---- sessions ---- */

static void open_failed(const struct pg_sink *sink, const char *sqlstate, const char *text)
{
    struct pg_error e = {.severity = "FATAL", .sqlstate = sqlstate, .message = text};
    pg_sink_error(sink, &e);
}

static bool session_open(void *ctx, const struct pg_startup *st, const struct pg_sink *sink,
                         struct pg_session *out)
{
    struct server *s = ctx;
    struct span_error err = {0};
    struct kv *kv = kv_session_new(s->kv_env);
    struct sql_session_options opt = {.user = st->user,
                                      .database = st->database,
                                      .application_name = st->application_name,
                                      .retry_ns = 0};
    struct sql_session *session = sql_session_new(kv, s->schemas, &opt, &err);
    if (session == NULL) {
        kv->ops->free(kv);
        open_failed(sink, "53000", err.text);
        return false;
    }
    char idle[32]; /* the node's default first: what the client asks for wins */
    (void)snprintf(idle, sizeof idle, "%llums",
                   (unsigned long long)(s->options.txn_idle_ns / MS_NS));
    if (!sql_session_set(session, "idle_in_transaction_session_timeout", idle, &err)) {
        open_failed(sink, "22023", err.text);
        sql_session_free(session);
        return false;
    }
    for (size_t i = 0; i < st->setting_count; i++) {
        if (!sql_session_set(session, st->setting_names[i], st->setting_values[i], &err)) {
            open_failed(sink, "22023", err.text);
            sql_session_free(session);
            return false;
        }
    }
    *out = sql_session_pg(session);
    return true;
}

/* ---- start ---- */

static void on_fatal(void *ctx, const char *what)
{
    struct server *s = ctx;
    pthread_mutex_lock(&s->lock);
    s->fatal = true;
    (void)snprintf(s->fatal_text, sizeof s->fatal_text, "%s", what);
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

static span_status start_clock(struct server *s, struct span_error *err)
{
    struct clock_options co;
    clock_options_init(&co);
    switch (s->options.clock) {
    case SERVER_CLOCK_EMULATED:
        co.source = CLOCK_SOURCE_EMULATED;
        break;
    case SERVER_CLOCK_SYSTEM:
        co.source = CLOCK_SOURCE_SYSTEM;
        break;
    case SERVER_CLOCK_FIXED:
        co.source = CLOCK_SOURCE_FIXED;
        break;
    }
    co.epsilon_ns = s->options.epsilon_ns;
    co.offset_ns = s->options.clock_offset_ns;
    co.drift_ppb = s->options.clock_drift_ppb;
    co.peer_count = (unsigned)s->options.peer_count - 1;
    span_status st = clock_new(&co, &s->clock, err);
    if (st == SPAN_OK) {
        (void)clock_refresh(s->clock);
    }
    return st;
}

static span_status start_node(struct server *s, struct span_error *err)
{
    struct node_peer peers[LIMIT_PEERS];
    const char *listen = s->options.peer_listen;
    for (size_t i = 0; i < s->options.peer_count; i++) {
        peers[i] =
            (struct node_peer){.node = s->options.peers[i].id, .url = s->options.peers[i].url};
        if (listen == NULL && s->options.peers[i].id == s->options.id) {
            listen = s->options.peers[i].url;
        }
    }
    (void)snprintf(s->peer_url, sizeof s->peer_url, "%s", listen == NULL ? "" : listen);
    struct node_config nc = {
        .self = s->options.id,
        .cluster_id = span_hash64(s->options.cluster, strlen(s->options.cluster)),
        .store_id = s->data.store_id,
        .dir = s->data.path,
        .created = s->data.created,
        .join = s->data.joined,
        .listen_url = s->peer_url,
        .source = s->options.bind,
        .peers = peers,
        .peer_count = s->options.peer_count,
        .clock = s->clock,
        .timer = s->timer,
        .metrics = s->metrics,
        .lease_ns = s->options.lease_ns,
        .version_window_ns = s->options.version_window_ns,
        .flush_bytes = s->options.flush_bytes,
        .cache_bytes = s->options.cache_bytes,
        .wal_segment_bytes = s->options.wal_segment_bytes,
        .enable_faults = s->options.enable_faults,
        .on_fatal = on_fatal,
        .fatal_ctx = s,
    };
    return node_open(&nc, &s->node, err);
}

static span_status start_gateway(struct server *s, struct span_error *err)
{
    struct gateway_config gc = {
        .self = s->options.id,
        .incarnation = node_incarnation(s->node),
        .node_count = s->options.peer_count,
        .seed = rng_os_u64(),
        .metrics = s->metrics,
        .out_ctx = s,
        .out = gateway_out,
        .host = {.ctx = s,
                 .show = server_show,
                 .set = server_set,
                 .nodes = server_nodes_apply,
                 .nodes_get = server_nodes_get},
    };
    for (size_t i = 0; i < s->options.peer_count; i++) {
        gc.nodes[i] = s->options.peers[i].id;
    }
    s->gateway = gateway_new(&gc);
    s->split_bytes = RANGE_SPLIT_BYTES;
    store_set_split_size(node_store(s->node), s->split_bytes);
    if (s->nodes.version > 0) {
        struct store_nodes nodes;
        struct tt_now now;
        clock_now(s->clock, &now);
        node_table_to_store(&s->nodes, &nodes);
        store_set_nodes(node_store(s->node), &now, &nodes);
    }
    struct kv_env_options ko = {.node = s->options.id,
                                .seed = rng_os_u64(),
                                .now = session_now,
                                .now_ctx = s,
                                .clock_reason = clock_reason,
                                .post = post_op,
                                .post_ctx = s};
    s->kv_env = kv_env_new(&ko);
    struct node_guest guest = {.ctx = s,
                               .message = guest_message,
                               .op = guest_op,
                               .tick = guest_tick,
                               .deadline_ns = guest_deadline,
                               .peer_lost = guest_peer_lost,
                               .peer_up = guest_peer_up,
                               .turn_begin = guest_turn_begin};
    s->met_peers = true;
    return node_start(s->node, &guest, err);
}

static span_status start_ports(struct server *s, struct span_error *err)
{
    struct answer_gate_options ag = {
        .clock = s->clock, .metrics = s->metrics, .skip = s->options.unsafe_skip_commit_wait};
    s->gate = answer_gate_new(&ag);
    sql_global_init();
    s->schemas = schema_cache_new();
    const char *addresses[] = {s->options.sql_listen, s->options.sql_socket};
    struct pg_listener_config lc = {
        .addresses = addresses,
        .address_count = s->options.sql_socket != NULL ? 2 : 1,
        .factory = {.open = session_open, .ctx = s},
        .server_version = SPAN_VERSION,
        .hold = answer_gate_hold,
        .hold_refusal = answer_gate_refusal,
        .hold_ctx = s->gate,
        .metrics = s->metrics,
        .node = s->options.id,
        .sessions_max = s->options.sessions_max,
    };
    span_status st = pg_listener_open(&lc, &s->listener, err);
    if (st == SPAN_OK && s->options.http_listen != NULL) {
        st = http_open(s->options.http_listen, server_routes, s, &s->http, err);
    }
    return st;
}

static void server_destroy(struct server *s)
{
    if (s->gate != NULL) {
        answer_gate_stop(s->gate);
    }
    http_close(s->http);
    s->http = NULL;
    pg_listener_free(s->listener);
    node_close(s->node, s->fatal || !s->started ? 0 : HANDOVER_NS);
    if (s->gateway != NULL) {
        struct tt_now now;
        clock_now(s->clock, &now);
        gateway_close(s->gateway, &now);
        gateway_free(s->gateway);
    }
    if (s->kv_env != NULL) {
        kv_env_free(s->kv_env);
    }
    if (s->schemas != NULL) {
        schema_cache_free(s->schemas);
    }
    answer_gate_free(s->gate);
    if (s->timer != NULL) {
        timer_close(s->timer);
    }
    clock_free(s->clock);
    if (s->data.created && !s->met_peers) {
        data_dir_unmake(&s->data);
    }
    data_dir_close(&s->data);
    arena_deinit(&s->learn_arena);
    metrics_free(s->metrics);
    s->listener = NULL;
    s->node = NULL;
    s->gateway = NULL;
    s->kv_env = NULL;
    s->schemas = NULL;
    s->gate = NULL;
    s->timer = NULL;
    s->clock = NULL;
    s->metrics = NULL;
}

static span_status open_data(struct server *s, struct span_error *err)
{
    span_status st = server_nodes_open(s, err);
    if (st != SPAN_OK) {
        return st;
    }
    struct data_dir_owner owner = {.cluster = s->options.cluster,
                                   .node = s->options.id,
                                   .member_count = s->options.peer_count,
                                   .throwaway = s->options.throwaway,
                                   .join = s->options.join};
    for (size_t i = 0; i < s->options.peer_count; i++) {
        owner.members[i] = s->options.peers[i].id; /* kept by id: rising */
    }
    if (s->nodes.version > 0) { /* checked against the table; the folder was made with others */
        struct data_dir was;
        st = data_dir_peek(s->options.data_dir, &was, err);
        owner.member_count = was.member_count;
        memcpy(owner.members, was.members, sizeof owner.members);
        data_dir_close(&was);
        if (st != SPAN_OK) {
            return st == SPAN_NOT_FOUND
                       ? span_fail(err, SPAN_CORRUPT, "%s has a NODES but no IDENTITY",
                                   s->options.data_dir)
                       : st;
        }
    }
    st = data_dir_open(s->options.data_dir, &owner, &s->data, err);
    if (st == SPAN_OK && s->options.join && !s->data.joined) {
        st = span_fail(err, SPAN_INVALID,
                       "--join is for a new node; data folder %s is one of the cluster's first: "
                       "start it without --join",
                       s->options.data_dir);
    }
    return st;
}

/* What the cluster was told before holds from the first moment on (rule B10). */
static span_status load_settings(struct server *s, struct span_error *err)
{
    struct server_options *o = &s->options;
    struct server_settings set;
    span_status st = server_settings_read(s->data.path, &set, err);
    if (st == SPAN_OK) {
        /* never less than the flag: range 1 says later if it may be */
        o->epsilon_ns = set.epsilon_ns > o->epsilon_ns ? set.epsilon_ns : o->epsilon_ns;
        o->lease_ns = set.lease_ns;
    } else if (st != SPAN_NOT_FOUND) {
        return st;
    }
    if (o->lease_ns < 10 * o->epsilon_ns) {
        o->lease_ns = LEASE_NS_MAX < 10 * o->epsilon_ns ? LEASE_NS_MAX : 10 * o->epsilon_ns;
    }
    return SPAN_OK;
}

/* What a first start can be refused for is looked at before there is an IDENTITY: a folder that was
 * refused is nobody's, and the next start may say something else. */
static span_status check_new_folder(const struct server *s, struct span_error *err)
{
    struct data_dir was;
    span_status st = data_dir_peek(s->options.data_dir, &was, err);
    data_dir_close(&was);
    if (st != SPAN_NOT_FOUND) {
        return SPAN_OK; /* what is wrong with it is said by who opens it */
    }
    if (s->options.unsafe_skip_commit_wait && !s->options.throwaway) {
        return span_fail(
            err, SPAN_INVALID,
            "--unsafe-skip-commit-wait is refused: the new data folder %s would be one "
            "to keep; give --throwaway, too",
            s->options.data_dir);
    }
    return server_ports_check(&s->options, err);
}

/* The file and what is wrong with it were named; this is what can be done. */
static void advise_on_damage(const struct server *s, span_status st, struct span_error *err)
{
    if (st == SPAN_CORRUPT || st == SPAN_NOT_FOUND) {
        size_t n = strlen(err->text);
        (void)snprintf(err->text + n, sizeof err->text - n,
                       ". Bring back the whole folder as it was when the node last ran; or, where "
                       "the cluster has other nodes, replace this one: 'spanlite node add' a new "
                       "one with an empty folder, then 'spanlite node decommission %u'",
                       s->options.id);
    }
}

static span_status start_all(struct server *s, struct span_error *err)
{
    span_status st = check_new_folder(s, err);
    if (st == SPAN_OK) {
        st = open_data(s, err);
    }
    if (st == SPAN_OK && s->options.unsafe_skip_commit_wait) {
        st = data_dir_require_throwaway(&s->data, "--unsafe-skip-commit-wait", err);
    }
    if (st == SPAN_OK && s->options.unsafe_skip_commit_wait) {
        SPAN_LOG(WARN, "commit wait is skipped: external consistency does not hold",
                 "flag=--unsafe-skip-commit-wait node=%u", s->options.id);
    }
    if (st == SPAN_OK) {
        st = load_settings(s, err);
    }
    if (st == SPAN_OK) {
        st = start_clock(s, err);
    }
    if (st == SPAN_OK) {
        st = timer_open(&s->timer, err);
    }
    if (st == SPAN_OK) {
        st = start_node(s, err);
        advise_on_damage(s, st, err);
    }
    if (st == SPAN_OK) {
        st = start_gateway(s, err);
    }
    return st == SPAN_OK ? start_ports(s, err) : st;
}

/* Its waits are measured by the clock that nobody sets. */
static void init_changed(struct server *s)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->changed, &attr);
    pthread_condattr_destroy(&attr);
}

span_status server_start(const struct server_options *o, struct server **out,
                         struct span_error *err)
{
    span_status st = server_options_check(o, err);
    if (st != SPAN_OK) {
        return st;
    }
    if (o->workers > 1) {
        return span_fail(err, SPAN_UNSUPPORTED, "--workers %u: a node has one worker so far",
                         o->workers);
    }
    /* Threads made from here on do not preempt each other when they are woken: a commit is a chain
     * of wake-ups over a handful of threads, and running each a little later, with more in its
     * queue, saves a quarter of the CPU of a transaction. Refused by a sandbox: then not. */
    struct sched_param none = {0};
    (void)sched_setscheduler(0, SCHED_BATCH, &none);
    struct server *s = SPAN_NEW(struct server);
    server_options_copy(&s->options, o);
    pthread_mutex_init(&s->lock, NULL);
    init_changed(s);
    s->data.lock_fd = -1;
    s->metrics = metrics_new();
    s->started_ns = clock_os_mono_ns();
    st = start_all(s, err);
    if (st != SPAN_OK) {
        server_destroy(s);
        server_free(s);
        return st;
    }
    s->started = true;
    *out = s;
    return SPAN_OK;
}

void server_stop(struct server *s)
{
    pthread_mutex_lock(&s->lock);
    s->stop = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

span_status server_wait(struct server *s, struct span_error *err)
{
    pthread_mutex_lock(&s->lock);
    while (!s->stop && !s->fatal) {
        pthread_cond_wait(&s->changed, &s->lock);
    }
    bool failed = s->fatal;
    pthread_mutex_unlock(&s->lock);
    if (s->listener != NULL) {
        pg_listener_drain(s->listener, failed ? 0 : DRAIN_MS);
    }
    server_destroy(s);
    return failed ? span_fail(err, SPAN_IO, "node %u stopped: %s", s->options.id, s->fatal_text)
                  : SPAN_OK;
}

void server_free(struct server *s)
{
    if (s == NULL) {
        return;
    }
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->changed);
    server_options_deinit(&s->options);
    span_free(s);
}

void server_addresses_get(const struct server *s, struct server_addresses *out)
{
    *out = (struct server_addresses){0};
    char host[100];
    unsigned port = 0;
    if (s->listener != NULL &&
        server_address_split(s->options.sql_listen, host, sizeof host, &port) == SPAN_OK) {
        (void)snprintf(out->sql, sizeof out->sql, strchr(host, ':') != NULL ? "[%s]:%u" : "%s:%u",
                       host, pg_listener_port(s->listener, 0));
    }
    http_address(s->http, out->http, sizeof out->http);
    (void)snprintf(out->peer, sizeof out->peer, "%s", s->peer_url);
}

bool server_is_ready(const struct server *s)
{
    struct node_status ns;
    node_status_get(s->node, &ns);
    return ns.ready;
}

/* "nodes 2, 3" that have no link both ways; their count. */
static size_t append_absent(const struct server *s, struct buf *out, size_t *all)
{
    size_t count = 0;
    *all = 0;
    for (unsigned id = 1; id <= LIMIT_PEERS; id++) {
        struct transport_peer_status ps;
        *all += server_has_node(s, id) ? 1 : 0;
        if (!server_has_node(s, id) || id == s->options.id ||
            (transport_peer_status(node_transport(s->node), id, &ps) == SPAN_OK &&
             ps.link[NET_CONTROL].up_out && ps.link[NET_CONTROL].up_in)) {
            continue;
        }
        buf_printf(out, "%s%u", count++ > 0 ? ", " : "", id);
    }
    return count;
}

void server_waiting_for(const struct server *s, char *out, size_t size)
{
    size_t all;
    struct buf absent = {0};
    struct clock_info ci;
    size_t count = append_absent(s, &absent, &all);
    clock_info_get(s->clock, &ci);
    if (server_is_ready(s)) {
        (void)snprintf(out, size, "%s", "");
    } else if (ci.state >= CLOCK_FENCED) {
        (void)snprintf(out, size, "the clock: %s", ci.reason);
    } else if (2 * (all - count) <= all) {
        (void)snprintf(out, size, "node%s %s: %zu of %zu nodes %s here, a majority is %zu",
                       count == 1 ? "" : "s", buf_cstr(&absent), all - count, all,
                       all - count == 1 ? "is" : "are", all / 2 + 1);
    } else {
        (void)snprintf(out, size, "a leader of the system range");
    }
    buf_deinit(&absent);
}

span_status server_wait_ready(struct server *s, unsigned timeout_ms)
{
    uint64_t end = clock_os_mono_ns() + timeout_ms * MS_NS;
    for (;;) {
        uint64_t now = clock_os_mono_ns();
        uint64_t until = now + LOOK_NS < end ? now + LOOK_NS : end;
        struct timespec at = {.tv_sec = (time_t)(until / SEC_NS),
                              .tv_nsec = (long)(until % SEC_NS)};
        if (server_is_ready(s)) {
            return SPAN_OK;
        }
        if (now >= end) {
            return SPAN_DEADLINE;
        }
        pthread_mutex_lock(&s->lock);
        if (!s->stop && !s->fatal) {
            (void)pthread_cond_timedwait(&s->changed, &s->lock, &at);
        }
        bool ends = s->stop || s->fatal;
        pthread_mutex_unlock(&s->lock);
        if (ends) {
            return SPAN_CLOSED;
        }
    }
}
