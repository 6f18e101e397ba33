/* Routes of the HTTP port: /metrics, /healthz, /readyz, /v1/node, and with --enable-faults POST
 * /debug/faults. */
#include "base/alloc.h"
#include "base/log.h"
#include "coordinator/pg_listener.h"
#include "coordinator/server_impl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void on_metrics(void *ctx, const struct http_request *q, struct http_response *r)
{
    struct server *s = ctx;
    (void)q;
    struct node_status ns;
    struct clock_info ci;
    node_status_get(s->node, &ns);
    clock_info_get(s->clock, &ci);

    const struct {
        const char *name;
        const char *help;
        double value;
    } gauges[] = {
        {"spanlite_ranges", "Replicas on this node", (double)ns.ranges},
        {"spanlite_raft_leaders", "Ranges this node leads", (double)ns.leads},
        {"spanlite_truetime_epsilon_seconds", "Half width of the clock interval",
         (double)ci.epsilon_ns / 1e9},
        {"spanlite_truetime_state", "0 synced, 1 widened, 2 stale reads only, 3 fenced",
         (double)ci.state},
        {"spanlite_wal_syncs", "fdatasyncs of the log since start", (double)ns.wal_syncs},
        {"spanlite_wal_bytes", "Bytes written to the log since start", (double)ns.wal_bytes},
        {"spanlite_wal_sync_seconds_sum", "Time spent in fdatasync since start",
         (double)ns.sync_ns_total / 1e9},
        {"spanlite_worker_turns", "Turns of the worker since start", (double)ns.turns},
        {"spanlite_worker_wakeups", "Posts that had to wake the worker since start",
         (double)ns.mailbox_wakeups},
        {"spanlite_ready", "1 when the node can answer statements", ns.ready ? 1.0 : 0.0},
    };

    for (size_t i = 0; i < sizeof gauges / sizeof *gauges; i++) {
        metric_set(metrics_gauge(s->metrics, gauges[i].name, "", gauges[i].help), gauges[i].value);
    }
    metrics_render(s->metrics, &r->body);
    r->content_type = "text/plain; version=0.0.4; charset=utf-8";
}

static void on_health(void *ctx, const struct http_request *q, struct http_response *r)
{
    struct server *s = ctx;
    (void)q;
    struct node_status ns;
    struct clock_info ci;
    node_status_get(s->node, &ns);
    clock_info_get(s->clock, &ci);
    bool well =
        !ns.unfit && ci.state < CLOCK_STALE_READS_ONLY && strcmp(ns.wal_state, "running") == 0;
    r->status = well ? 200 : 503;
    if (well) {
        buf_append_str(&r->body, "ok\n");
    }
    if (ns.unfit || strcmp(ns.wal_state, "running") != 0) {
        buf_printf(&r->body, "disk: log is %s%s\n", ns.wal_state,
                   ns.unfit ? ", too slow to lead" : "");
    }
    if (ci.state >= CLOCK_STALE_READS_ONLY) {
        buf_printf(&r->body, "clock: %s\n", ci.reason);
    }
}

static void on_ready(void *ctx, const struct http_request *q, struct http_response *r)
{
    struct server *s = ctx;
    (void)q;
    bool ready = server_is_ready(s);
    r->status = ready ? 200 : 503;
    buf_append_str(
        &r->body,
        ready ? "ready\n"
              : "not ready: the system range has no known leader, or the clock is fenced\n");
}

static void on_node(void *ctx, const struct http_request *q, struct http_response *r)
{
    struct server *s = ctx;
    (void)q;
    struct node_status ns;
    struct server_addresses a;
    node_status_get(s->node, &ns);
    server_addresses_get(s, &a);
    r->content_type = "application/json";
    buf_printf(
        &r->body,
        "{\"node\":%u,\"sql\":\"%s\",\"http\":\"%s\",\"peer\":\"%s\",\"ready\":%s,\"ranges\":%zu,"
        "\"leads\":%zu,"
        "\"turns\":%llu,\"wal_syncs\":%llu,\"wal_units\":%llu,\"wal_bytes\":%llu,\"sync_ns\":%llu,"
        "\"mailbox_posts\":%llu,\"mailbox_wakeups\":%llu,\"sessions\":%zu,\"links\":[",
        s->options.id, a.sql, a.http, a.peer, ns.ready ? "true" : "false", ns.ranges, ns.leads,
        (unsigned long long)ns.turns, (unsigned long long)ns.wal_syncs,
        (unsigned long long)ns.wal_units, (unsigned long long)ns.wal_bytes,
        (unsigned long long)ns.sync_ns_total, (unsigned long long)ns.mailbox_posts,
        (unsigned long long)ns.mailbox_wakeups,
        s->listener == NULL ? 0 : pg_listener_connections(s->listener));
    bool first = true;
    for (size_t i = 0; i < s->options.peer_count; i++) {
        struct transport_peer_status ps;
        if (s->options.peers[i].id == s->options.id ||
            transport_peer_status(node_transport(s->node), s->options.peers[i].id, &ps) !=
                SPAN_OK) {
            continue;
        }
        const struct transport_link_status *l = &ps.link[NET_CONTROL];
        buf_printf(&r->body,
                   "%s{\"peer\":%u,\"up\":%s,\"frames_out\":%llu,\"sends_out\":%llu,\"bytes_out\":%"
                   "llu,\"frames_in\":%llu,"
                   "\"connects\":%llu}",
                   first ? "" : ",", ps.node, l->up_out && l->up_in ? "true" : "false",
                   (unsigned long long)l->frames_out, (unsigned long long)l->sends_out,
                   (unsigned long long)l->bytes_out, (unsigned long long)l->frames_in,
                   (unsigned long long)l->connects);
        first = false;
    }
    buf_append_str(&r->body, "]}\n");
}

/* ---- faults ---- */

static bool number(const struct http_request *q, const char *name, double *out, bool *bad)
{
    char text[64];
    char *end = NULL;
    if (!http_query_get(q->query, name, text, sizeof text)) {
        return false;
    }
    errno = 0;
    double v = strtod(text, &end);
    if (errno != 0 || end == text || *end != '\0') {
        *bad = true;
        return false;
    }
    *out = v;
    return true;
}

static bool path_faults(const struct http_request *q, const char *direction,
                        struct transport_fault_path *p, bool *bad)
{
    char name[32];
    double v;
    bool any = false;
    *p = (struct transport_fault_path){0};
    (void)snprintf(name, sizeof name, "%s.cut", direction);
    if (number(q, name, &v, bad)) {
        p->cut = v > 0;
        any = true;
    }
    (void)snprintf(name, sizeof name, "%s.drop", direction);
    any = number(q, name, &p->drop, bad) || any;
    (void)snprintf(name, sizeof name, "%s.duplicate", direction);
    any = number(q, name, &p->duplicate, bad) || any;
    (void)snprintf(name, sizeof name, "%s.reorder", direction);
    any = number(q, name, &p->reorder, bad) || any;
    (void)snprintf(name, sizeof name, "%s.delay_ms", direction);
    if (number(q, name, &v, bad) && v >= 0) {
        p->delay_ns = (uint64_t)(v * 1e6);
        any = true;
    }
    (void)snprintf(name, sizeof name, "%s.jitter_ms", direction);
    if (number(q, name, &v, bad) && v >= 0) {
        p->jitter_ns = (uint64_t)(v * 1e6);
        any = true;
    }
    return any;
}

static span_status network_faults(struct server *s, const struct http_request *q, bool *any,
                                  bool *bad)
{
    struct transport_fault f = {0};
    double peer = 0;
    char clear[8];
    (void)number(q, "peer", &peer, bad);
    bool out = path_faults(q, "out", &f.out, bad);
    bool in = path_faults(q, "in", &f.in, bad);
    bool wipe = http_query_get(q->query, "clear", clear, sizeof clear);
    if (*bad || peer < 0 || peer > LIMIT_PEERS || (!out && !in && !wipe)) {
        return SPAN_OK;
    }
    *any = true;
    return transport_fault_set(node_transport(s->node), (uint32_t)peer,
                               wipe && !out && !in ? NULL : &f);
}

static span_status clock_faults(struct server *s, const struct http_request *q, bool *any,
                                bool *bad, struct span_error *err)
{
    double offset_ms = 0;
    double drift_ppm = 0;
    bool offset = number(q, "clock.offset_ms", &offset_ms, bad);
    bool drift = number(q, "clock.drift_ppm", &drift_ppm, bad);
    if (*bad || (!offset && !drift)) {
        return SPAN_OK;
    }
    struct clock_info ci;
    clock_info_get(s->clock, &ci);
    *any = true;
    return clock_set_error(s->clock, offset ? (int64_t)(offset_ms * 1e6) : ci.offset_ns,
                           drift ? (int64_t)(drift_ppm * 1e3) : ci.drift_ppb, err);
}

static void disk_faults(struct server *s, const struct http_request *q, bool *any, bool *bad)
{
    struct wal_faults *f = node_wal_faults(s->node);
    double v;
    if (number(q, "disk.sync_delay_ms", &v, bad) && v >= 0) {
        atomic_store(&f->sync_delay_ms, (uint32_t)v);
        *any = true;
    }
    if (number(q, "disk.fail_syncs", &v, bad)) {
        atomic_store(&f->fail_syncs, v < 0 ? UINT32_MAX : (uint32_t)v);
        *any = true;
    }
    if (number(q, "disk.no_space", &v, bad)) {
        atomic_store(&f->no_space, v > 0);
        *any = true;
    }
}

static void on_faults(void *ctx, const struct http_request *q, struct http_response *r)
{
    struct server *s = ctx;
    if (!s->options.enable_faults) {
        r->status = 403;
        buf_append_str(&r->body, "this node was started without --enable-faults\n");
        return;
    }
    bool any = false;
    bool bad = false;
    struct span_error err = {0};
    span_status st = network_faults(s, q, &any, &bad);
    if (st == SPAN_OK && !bad) {
        st = clock_faults(s, q, &any, &bad, &err);
    }
    if (st == SPAN_OK && !bad) {
        disk_faults(s, q, &any, &bad);
    }
    if (bad || !any || st != SPAN_OK) {
        r->status = 400;
        buf_printf(&r->body, "%s\n",
                   st != SPAN_OK && err.text[0] != '\0' ? err.text
                   : st != SPAN_OK                      ? span_status_text(st)
                   : bad                                ? "a value is not a number"
                         : "nothing to set: peer=N with out.|in. cut, drop, duplicate, reorder, "
                           "delay_ms, jitter_ms, or clear=1; clock.offset_ms, clock.drift_ppm; "
                           "disk.sync_delay_ms, disk.fail_syncs, disk.no_space");
        return;
    }
    SPAN_LOG(WARN, "faults set", "query=%s", q->query);
    buf_append_str(&r->body, "ok\n");
}

const struct http_route server_routes[] = {
    {"GET", "/metrics", on_metrics},      {"GET", "/healthz", on_health},
    {"GET", "/readyz", on_ready},         {"GET", "/v1/node", on_node},
    {"POST", "/debug/faults", on_faults}, {NULL, NULL, NULL},
};
