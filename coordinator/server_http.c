/* Routes of the HTTP port: / lists them; /metrics, /healthz, /readyz, /v1/node, and with
 * --enable-faults POST /debug/faults and /debug/failpoints (server_faults.c). */
#include "base/alloc.h"
#include "coordinator/pg_listener.h"
#include "coordinator/server_faults.h"
#include "coordinator/server_impl.h"

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
        {"spanlite_ranges_under_replicated",
         "Ranges led here with fewer members that answer than cluster.replicas",
         (double)ns.short_of_replicas},
        {"spanlite_commit_wait_skipped",
         "1 when the node was started with --unsafe-skip-commit-wait",
         s->options.unsafe_skip_commit_wait ? 1.0 : 0.0},
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
        {"spanlite_replicas_damaged", "Replicas being rebuilt because their file was damaged",
         (double)ns.damaged},
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
    bool well = !ns.unfit && ci.state < CLOCK_STALE_READS_ONLY &&
                strcmp(ns.wal_state, "running") == 0 && ns.flush_error[0] == '\0' &&
                ns.broken == 0 && ns.damaged == 0;
    r->status = well ? 200 : 503;
    if (well) {
        buf_append_str(&r->body, "ok\n");
    }
    if (ns.short_of_replicas > 0) { /* told, not a reason to take this node out of service */
        buf_printf(&r->body,
                   "ranges: %zu led here %s fewer members that answer than cluster.replicas; SHOW "
                   "RANGES names them\n",
                   ns.short_of_replicas, ns.short_of_replicas == 1 ? "has" : "have");
    }
    if (s->options.unsafe_skip_commit_wait) {
        buf_append_str(&r->body,
                       "unsafe: commit wait is skipped (--unsafe-skip-commit-wait): reads "
                       "may miss what was acknowledged before\n");
    }
    if (ns.unfit || strcmp(ns.wal_state, "running") != 0) {
        buf_printf(&r->body, "disk: log is %s%s\n", ns.wal_state,
                   ns.unfit ? ", too slow to lead" : "");
    }
    if (ns.flush_error[0] != '\0') {
        buf_printf(&r->body, "disk: %s\n", ns.flush_error);
    }
    if (ns.damaged > 0) {
        buf_printf(&r->body, "data: %zu replica%s with a damaged file, being rebuilt: %s\n",
                   ns.damaged, ns.damaged == 1 ? "" : "s", ns.damage);
    }
    if (ns.broken > 0) {
        buf_printf(&r->body,
                   "data: %zu replica%s can not go on from what is here, and can not be rebuilt by "
                   "itself; the log names the cause. Replace the node: start another one with "
                   "--join, then decommission this one\n",
                   ns.broken, ns.broken == 1 ? "" : "s");
    }
    if (ci.state >= CLOCK_STALE_READS_ONLY) {
        buf_printf(&r->body, "clock: %s\n", ci.reason);
    }
}

static void on_ready(void *ctx, const struct http_request *q, struct http_response *r)
{
    struct server *s = ctx;
    char waiting[512];
    (void)q;
    server_waiting_for(s, waiting, sizeof waiting);
    if (waiting[0] == '\0') {
        buf_append_str(&r->body, "ready\n");
        return;
    }
    r->status = 503;
    buf_printf(&r->body, "not ready: waiting for %s\n", waiting);
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
    for (unsigned id = 1; id <= LIMIT_PEERS; id++) {
        struct transport_peer_status ps;
        if (!server_has_node(s, id) || id == s->options.id ||
            transport_peer_status(node_transport(s->node), id, &ps) != SPAN_OK) {
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

static void on_root(void *ctx, const struct http_request *q, struct http_response *r)
{
    struct server *s = ctx;
    if (strcmp(q->path, "/") != 0) { /* the library gives what nobody else takes to "/" */
        r->status = 404;
        buf_printf(&r->body, "%s: no such path; / lists what there is\n", q->path);
        return;
    }
    buf_printf(&r->body, "spanlite %s, node %u of cluster %s\n\n", SPAN_VERSION, s->options.id,
               s->options.cluster);
    buf_append_str(&r->body,
                   "GET  /metrics           figures, for Prometheus\n"
                   "GET  /healthz           200 when the node is well; what is wrong\n"
                   "GET  /readyz            200 when it answers statements; what it waits "
                   "for\n"
                   "GET  /v1/node           its addresses, ranges and links, as JSON\n");
    if (s->options.enable_faults) {
        buf_append_str(&r->body, "POST /debug/faults      set faults (--enable-faults)\n"
                                 "GET  /debug/failpoints  passages of named points\n"
                                 "POST /debug/failpoints  arm them\n");
    }
}

const struct http_route server_routes[] = {
    {"GET", "/", on_root},
    {"GET", "/metrics", on_metrics},
    {"GET", "/healthz", on_health},
    {"GET", "/readyz", on_ready},
    {"GET", "/v1/node", on_node},
    {"POST", "/debug/faults", server_faults_route},
    {"GET", "/debug/failpoints", server_failpoints_report_route},
    {"POST", "/debug/failpoints", server_failpoints_route},
    {NULL, NULL, NULL},
};
