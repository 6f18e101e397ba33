/* This node's part of SHOW, and cluster settings applied here. On the worker's thread. */
#include "base/alloc.h"
#include "base/log.h"
#include "coordinator/config.h"
#include "coordinator/pg_listener.h"
#include "coordinator/server_impl.h"
#include "coordinator/server_settings.h"

#include <stdio.h>

enum { TEXT = 25, INT8 = 20, FLOAT8 = 701 };

static span_status store_rows(struct server *s, const struct tt_now *now, enum kv_show what,
                              size_t columns, const char *const *names, const unsigned *types,
                              struct kv_table *out)
{
    struct arena a = {0};
    struct slice *cells = NULL;
    size_t count = 0;
    unsigned width = 0;
    store_show(node_store(s->node), now, (unsigned)what, &a, &cells, &count, &width);
    kv_table_init(out, columns, names, types);
    const char *row[32];
    for (size_t i = 0; width != 0 && i + width <= count; i += width) {
        for (size_t k = 0; k < columns; k++) {
            row[k] = cells[i + k].data == NULL
                         ? NULL
                         : (const char *)cells[i + k].data; /* NUL-terminated by store_show */
        }
        kv_table_add_row(out, row);
    }
    arena_deinit(&a);
    return SPAN_OK;
}

static span_status show_ranges(struct server *s, const struct tt_now *now, struct kv_table *out)
{
    static const char *const names[] = {
        "range_id", "generation", "start_key", "end_key",   "leader",       "replicas", "term",
        "applied",  "last_index", "lease_end", "safe_time", "memory_bytes", "node",     "state"};
    static const unsigned types[] = {INT8, INT8, TEXT, TEXT, INT8, TEXT, INT8,
                                     INT8, INT8, INT8, INT8, INT8, INT8, TEXT};
    return store_rows(s, now, KV_SHOW_RANGES, 14, names, types, out);
}

static span_status show_transactions(struct server *s, const struct tt_now *now,
                                     struct kv_table *out)
{
    static const char *const names[] = {"txn_id", "range_id", "state",   "role",     "age_ms",
                                        "locks",  "waiting",  "gateway", "timestamp"};
    static const unsigned types[] = {TEXT, INT8, TEXT, TEXT, FLOAT8, INT8, INT8, INT8, INT8};
    return store_rows(s, now, KV_SHOW_TRANSACTIONS, 9, names, types, out);
}

static span_status show_locks(struct server *s, const struct tt_now *now, struct kv_table *out)
{
    static const char *const names[] = {"range_id", "start_key", "end_key", "mode",      "state",
                                        "txn_id",   "waits_for", "age_ms",  "txn_age_ms"};
    static const unsigned types[] = {INT8, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT, FLOAT8, FLOAT8};
    return store_rows(s, now, KV_SHOW_LOCKS, 9, names, types, out);
}

static const char *clock_state_text(enum clock_state st)
{
    static const char *const names[] = {[CLOCK_SYNCED] = "synced",
                                        [CLOCK_WIDENED] = "widened",
                                        [CLOCK_STALE_READS_ONLY] = "stale-reads-only",
                                        [CLOCK_FENCED] = "fenced"};
    return names[st];
}

static span_status show_nodes(struct server *s, struct kv_table *out)
{
    static const char *const names[] = {
        "node",     "state", "peer_address", "sql_address", "http_address", "ranges",  "leads",
        "sessions", "clock", "uptime_s",     "wal",         "version",      "store_id"};
    static const unsigned types[] = {INT8, TEXT, TEXT, TEXT, TEXT, INT8, INT8,
                                     INT8, TEXT, INT8, TEXT, TEXT, TEXT};
    struct server_addresses a;
    struct node_status ns;
    struct clock_info ci;
    server_addresses_get(s, &a);
    node_status_get(s->node, &ns);
    clock_info_get(s->clock, &ci);
    char id[16], ranges[24], leads[24], sessions[24], uptime[24], store[24];
    (void)snprintf(id, sizeof id, "%u", s->options.id);
    (void)snprintf(ranges, sizeof ranges, "%zu", store_range_count(node_store(s->node)));
    (void)snprintf(leads, sizeof leads, "%zu", store_leader_count(node_store(s->node)));
    (void)snprintf(sessions, sizeof sessions, "%zu",
                   s->listener == NULL ? 0 : pg_listener_connections(s->listener));
    (void)snprintf(uptime, sizeof uptime, "%llu",
                   (unsigned long long)((clock_os_mono_ns() - s->started_ns) / SEC_NS));
    (void)snprintf(store, sizeof store, "%016llx", (unsigned long long)s->data.store_id);
    const struct node_entry *e = node_table_find(&s->nodes, s->options.id);
    const char *state = ns.unfit ? "slow-disk" : "live";
    if (s->nodes.version > 0 && (e == NULL || e->state != STORE_NODE_ACTIVE)) {
        state = e == NULL ? "removed" : node_state_name(e->state);
    }
    const char *row[] = {id,     state,        a.peer,
                         a.sql,  a.http,       ranges,
                         leads,  sessions,     clock_state_text(ci.state),
                         uptime, ns.wal_state, SPAN_VERSION,
                         store};
    kv_table_init(out, sizeof row / sizeof *row, names, types);
    kv_table_add_row(out, row);
    return SPAN_OK;
}

static span_status show_clocks(struct server *s, struct kv_table *out)
{
    static const char *const names[] = {"node",      "source",    "state",     "epsilon_ms",
                                        "earliest",  "latest",    "true_time", "offset_ms",
                                        "drift_ppb", "conflicts", "reason"};
    static const unsigned types[] = {INT8, TEXT,   TEXT, FLOAT8, INT8, INT8,
                                     INT8, FLOAT8, INT8, INT8,   TEXT};
    struct clock_info ci;
    clock_info_get(s->clock, &ci);
    char id[16], eps[32], earliest[24], latest[24], true_time[24], offset[32], drift[24],
        conflicts[16];
    (void)snprintf(id, sizeof id, "%u", s->options.id);
    (void)snprintf(eps, sizeof eps, "%.3f", (double)ci.epsilon_ns / 1e6);
    (void)snprintf(earliest, sizeof earliest, "%llu", (unsigned long long)ci.now.tt.earliest.ns);
    (void)snprintf(latest, sizeof latest, "%llu", (unsigned long long)ci.now.tt.latest.ns);
    (void)snprintf(true_time, sizeof true_time, "%llu",
                   (unsigned long long)clock_true_now(s->clock).ns);
    (void)snprintf(offset, sizeof offset, "%.3f", (double)ci.offset_ns / 1e6);
    (void)snprintf(drift, sizeof drift, "%lld", (long long)ci.drift_ppb);
    (void)snprintf(conflicts, sizeof conflicts, "%u", ci.conflicts);
    const char *row[] = {id,
                         clock_source_name(ci.source),
                         clock_state_text(ci.state),
                         eps,
                         earliest,
                         latest,
                         ci.source == CLOCK_SOURCE_SYSTEM ? NULL : true_time,
                         offset,
                         drift,
                         conflicts,
                         ci.reason};
    kv_table_init(out, sizeof row / sizeof *row, names, types);
    kv_table_add_row(out, row);
    return SPAN_OK;
}

/* ---- settings ---- */

static span_status read_time(const char *name, const char *value, uint64_t *out,
                             struct span_error *err)
{
    int64_t ns;
    if (config_read_duration(value, &ns) != SPAN_OK || ns <= 0) {
        return span_fail(err, SPAN_INVALID, "%s takes a time like 4ms, not %s", name, value);
    }
    *out = (uint64_t)ns;
    return SPAN_OK;
}

static span_status set_epsilon(struct server *s, const struct tt_now *now, const char *value,
                               struct span_error *err)
{
    uint64_t ns = 0;
    (void)now;
    span_status st = read_time("truetime.epsilon", value, &ns, err);
    if (st == SPAN_OK) {
        st = clock_epsilon_check(ns, s->options.lease_ns, err);
    }
    if (st == SPAN_OK) {
        st = clock_set_epsilon(s->clock, ns, err);
    }
    if (st == SPAN_OK) {
        s->options.epsilon_ns = ns;
    }
    return st;
}

static span_status set_lease(struct server *s, const struct tt_now *now, const char *value,
                             struct span_error *err)
{
    uint64_t ns = 0;
    (void)now;
    span_status st = read_time("raft.lease", value, &ns, err);
    if (st == SPAN_OK && (ns > LEASE_NS_MAX || ns < 3 * LEASE_RENEW_NS)) {
        st = span_fail(err, SPAN_INVALID, "raft.lease must lie between %llums and %llums",
                       (unsigned long long)(3 * LEASE_RENEW_NS / MS_NS),
                       (unsigned long long)(LEASE_NS_MAX / MS_NS));
    }
    if (st == SPAN_OK) {
        st = clock_epsilon_check(s->options.epsilon_ns, ns, err);
    }
    if (st == SPAN_OK) {
        s->options.lease_ns = ns;
        store_set_lease(node_store(s->node), ns);
    }
    return st;
}

static span_status set_balance(struct server *s, const struct tt_now *now, const char *value,
                               struct span_error *err)
{
    (void)now;
    bool on = strcmp(value, "on") == 0 || strcmp(value, "true") == 0;
    if (!on && strcmp(value, "off") != 0 && strcmp(value, "false") != 0) {
        return span_fail(err, SPAN_INVALID, "placement.balance is on or off, not %s", value);
    }
    s->balance_off = !on;
    store_set_balance(node_store(s->node), on);
    return SPAN_OK;
}

static span_status set_split_size(struct server *s, const struct tt_now *now, const char *value,
                                  struct span_error *err)
{
    uint64_t bytes = 0;
    (void)now;
    bool off = strcmp(value, "off") == 0 || strcmp(value, "0") == 0;
    if (!off && (config_read_size(value, &bytes) != SPAN_OK || bytes < MIB)) {
        return span_fail(err, SPAN_INVALID,
                         "range.split_size takes a size of at least 1MiB, or off");
    }
    s->split_bytes = bytes;
    store_set_split_size(node_store(s->node), bytes);
    return SPAN_OK;
}

static void text_split_size(const struct server *s, char *out, size_t n)
{
    if (s->split_bytes == 0) {
        (void)snprintf(out, n, "off");
    } else {
        (void)snprintf(out, n, "%.6gMiB", (double)s->split_bytes / (double)MIB);
    }
}

static span_status set_elsewhere(struct server *s, const struct tt_now *now, const char *value,
                                 struct span_error *err)
{
    (void)s;
    (void)now;
    (void)value;
    return span_fail(err, SPAN_INVALID, "cluster.replicas is part of the node table");
}

static void text_replicas(const struct server *s, char *out, size_t n)
{
    struct node_table t;
    server_nodes_get((void *)(uintptr_t)s, &t);
    (void)snprintf(out, n, "%u", t.replicas);
}

static void text_epsilon(const struct server *s, char *out, size_t n)
{
    (void)snprintf(out, n, "%.3fms", (double)s->options.epsilon_ns / 1e6);
}

static void text_lease(const struct server *s, char *out, size_t n)
{
    (void)snprintf(out, n, "%llums", (unsigned long long)(s->options.lease_ns / MS_NS));
}

static void text_balance(const struct server *s, char *out, size_t n)
{
    (void)snprintf(out, n, "%s", s->balance_off ? "off" : "on");
}

static span_status set_by_flag(struct server *s, const struct tt_now *now, const char *value,
                               struct span_error *err)
{
    (void)s;
    (void)now;
    (void)value;
    return span_fail(err, SPAN_INVALID,
                     "unsafe.skip_commit_wait is a flag of 'spanlite start', for each node");
}

static void text_skips_wait(const struct server *s, char *out, size_t n)
{
    (void)snprintf(out, n, "%s", s->options.unsafe_skip_commit_wait ? "on" : "off");
}

static const struct setting {
    const char *name;
    const char *help;
    span_status (*set)(struct server *s, const struct tt_now *now, const char *value,
                       struct span_error *err);
    void (*text)(const struct server *s, char *out, size_t n);
} settings[] = {
    {"truetime.epsilon", "half width of the clock interval", set_epsilon, text_epsilon},
    {"raft.lease", "length of leader leases", set_lease, text_lease},
    {"placement.balance", "leaderships and replicas move to nodes that have fewer", set_balance,
     text_balance},
    {"range.split_size", "a range whose file is larger is split", set_split_size, text_split_size},
    {"cluster.replicas", "replicas of every range, as far as there are nodes", set_elsewhere,
     text_replicas},
    {"unsafe.skip_commit_wait", "this node answers without commit wait: on breaks consistency",
     set_by_flag, text_skips_wait},
};

static span_status save_settings(const struct server *s, struct span_error *err)
{
    struct server_settings set = {.epsilon_ns = s->options.epsilon_ns,
                                  .lease_ns = s->options.lease_ns};
    return server_settings_write(s->data.path, &set, err);
}

span_status server_set(void *ctx, const struct tt_now *now, const char *name, const char *value,
                       struct span_error *err)
{
    struct server *s = ctx;
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        if (strcmp(settings[i].name, name) == 0) {
            span_status st = settings[i].set(s, now, value, err);
            if (st == SPAN_OK) {
                st = save_settings(s, err); /* before it is acknowledged (rule B10) */
            }
            SPAN_LOG(INFO, "cluster setting", "name=%s value=%s status=%s", name, value,
                     span_status_name(st));
            return st;
        }
    }
    return span_fail(err, SPAN_INVALID,
                     "there is no cluster setting %s; SHOW CLUSTER SETTINGS lists them", name);
}

static span_status show_settings(struct server *s, struct kv_table *out)
{
    static const char *const names[] = {"node", "name", "value", "description"};
    static const unsigned types[] = {INT8, TEXT, TEXT, TEXT};
    char id[16];
    char value[64];
    (void)snprintf(id, sizeof id, "%u", s->options.id);
    kv_table_init(out, 4, names, types);
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        settings[i].text(s, value, sizeof value);
        const char *row[] = {id, settings[i].name, value, settings[i].help};
        kv_table_add_row(out, row);
    }
    return SPAN_OK;
}

span_status server_show(void *ctx, const struct tt_now *now, enum kv_show what,
                        struct kv_table *out, struct span_error *err)
{
    struct server *s = ctx;
    (void)err;
    switch (what) {
    case KV_SHOW_RANGES:
        return show_ranges(s, now, out);
    case KV_SHOW_NODES:
        return show_nodes(s, out);
    case KV_SHOW_CLOCKS:
        return show_clocks(s, out);
    case KV_SHOW_TRANSACTIONS:
        return show_transactions(s, now, out);
    case KV_SHOW_LOCKS:
        return show_locks(s, now, out);
    case KV_SHOW_CLUSTER_SETTINGS:
        return show_settings(s, out);
    }
    return span_fail(err, SPAN_INVALID, "unknown SHOW");
}
