/* Fault injection over HTTP: one table of names and bounds, a parser that touches nothing, then all
 * of it at once. */
#include "coordinator/server_faults.h"

#include "base/failpoint.h"
#include "base/log.h"
#include "coordinator/server_impl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MINUTE_MS 60000
#define DAY_MS    86400000

static const struct parameter {
    const char *name;
    double min;
    double max;
    bool whole;
} parameters[FAULT_NAME_COUNT] = {
    {"peer", 0, LIMIT_PEERS, true},
    {"clear", 1, 1, true},
    {"out.cut", 0, 1, true},
    {"out.drop", 0, 1, false},
    {"out.duplicate", 0, 1, false},
    {"out.reorder", 0, 1, false},
    {"out.delay_ms", 0, MINUTE_MS, false},
    {"out.jitter_ms", 0, MINUTE_MS, false},
    {"in.cut", 0, 1, true},
    {"in.drop", 0, 1, false},
    {"in.duplicate", 0, 1, false},
    {"in.reorder", 0, 1, false},
    {"in.delay_ms", 0, MINUTE_MS, false},
    {"in.jitter_ms", 0, MINUTE_MS, false},
    {"clock.offset_ms", -DAY_MS, DAY_MS, false},
    {"clock.drift_ppm", -100000, 100000, false},
    {"disk.sync_delay_ms", 0, MINUTE_MS, true},
    {"disk.fail_syncs", -1, 1000000, true},
    {"disk.no_space", 0, 1, true},
};

/* ---- parsing ---- */

static span_status read_value(const struct parameter *p, const char *text, double *out,
                              struct span_error *err)
{
    char *end = NULL;
    bool is_plain = *text != '\0' && strspn(text, "0123456789.+-eE") == strlen(text);

    errno = 0;
    *out = is_plain ? strtod(text, &end) : 0; /* strtod alone takes nan, inf, hex and spaces */
    if (!is_plain || *end != '\0' || errno != 0) {
        return span_fail(err, SPAN_INVALID, "%s: '%.40s' is not a number", p->name, text);
    }
    if (*out < p->min || *out > p->max) {
        return span_fail(err, SPAN_INVALID,
                         "%s: '%.40s' is out of bounds, %.10g to %.10g are allowed", p->name, text,
                         p->min, p->max);
    }
    if (p->whole && *out != (double)(int64_t)*out) {
        return span_fail(err, SPAN_INVALID, "%s: '%.40s' is not a whole number", p->name, text);
    }
    return SPAN_OK;
}

/* "name=value", `size` bytes. */
static span_status take_pair(const char *pair, size_t size, struct fault_request *out,
                             struct span_error *err)
{
    char text[128];
    char *value;
    char decoded[64];

    if (size >= sizeof text) {
        return span_fail(err, SPAN_INVALID, "'%.40s...' is too long", pair);
    }
    memcpy(text, pair, size);
    text[size] = '\0';
    value = strchr(text, '=');
    if (value == NULL) {
        return span_fail(err, SPAN_INVALID, "'%s' is not name=value", text);
    }
    *value = '\0';
    for (size_t i = 0; i < FAULT_NAME_COUNT; i++) {
        if (strcmp(text, parameters[i].name) != 0) {
            continue;
        }
        if (out->given[i]) {
            return span_fail(err, SPAN_INVALID, "%s is given twice", text);
        }
        *value = '=';
        if (strlen(value + 1) >= sizeof decoded ||
            !http_query_get(text, parameters[i].name, decoded, sizeof decoded)) {
            decoded[0] = '\0'; /* too long, or empty: no number */
        }
        out->given[i] = true;
        return read_value(&parameters[i], decoded, &out->value[i], err);
    }
    return span_fail(err, SPAN_INVALID,
                     "'%s' is no fault: there are peer, clear, out. and in. cut, "
                     "drop, duplicate, reorder, delay_ms, jitter_ms, clock.offset_ms, "
                     "clock.drift_ppm, disk.sync_delay_ms, disk.fail_syncs, disk.no_space",
                     text);
}

/* The first given name of [from, to), or `to`. */
static size_t first_given(const struct fault_request *f, size_t from, size_t to)
{
    while (from < to && !f->given[from]) {
        from++;
    }
    return from;
}

static bool has_network(const struct fault_request *f)
{
    return f->given[FAULT_CLEAR] ||
           first_given(f, FAULT_OUT, FAULT_CLOCK_OFFSET_MS) != FAULT_CLOCK_OFFSET_MS;
}

static span_status check_whole(const struct fault_request *f, struct span_error *err)
{
    size_t path = first_given(f, FAULT_OUT, FAULT_CLOCK_OFFSET_MS);

    if (first_given(f, 0, FAULT_NAME_COUNT) == FAULT_NAME_COUNT) {
        return span_fail(err, SPAN_INVALID,
                         "nothing to set: peer=N with out. and in. cut, drop, duplicate, reorder, "
                         "delay_ms, jitter_ms, or with clear=1; clock.offset_ms, clock.drift_ppm; "
                         "disk.sync_delay_ms, disk.fail_syncs, disk.no_space");
    }
    if (f->given[FAULT_PEER] && !has_network(f)) {
        return span_fail(err, SPAN_INVALID, "peer belongs to out., in. or clear, none is given");
    }
    if (f->given[FAULT_CLEAR] && path != FAULT_CLOCK_OFFSET_MS) {
        return span_fail(err, SPAN_INVALID, "clear takes all away: not together with %s",
                         parameters[path].name);
    }
    return SPAN_OK;
}

span_status fault_request_parse(const char *query, struct fault_request *out,
                                struct span_error *err)
{
    *out = (struct fault_request){0};
    for (const char *p = query; *p != '\0';) {
        size_t size = strcspn(p, "&");
        span_status st = size > 0 ? take_pair(p, size, out, err) : SPAN_OK;

        if (st != SPAN_OK) {
            return st;
        }
        p += size + (p[size] == '&' ? 1 : 0);
    }
    return check_whole(out, err);
}

/* ---- applying ---- */

/* What only this node can say: after it, nothing below is refused. */
static span_status check_here(const struct server *s, const struct fault_request *f,
                              struct span_error *err)
{
    unsigned peer = (unsigned)f->value[FAULT_PEER];
    bool known = peer == 0 || (peer != s->options.id && server_has_node(s, peer));
    struct clock_info ci;

    if (!known) {
        return span_fail(err, SPAN_INVALID, "peer: node %u is no peer of node %u", peer,
                         s->options.id);
    }
    clock_info_get(s->clock, &ci);
    if ((f->given[FAULT_CLOCK_OFFSET_MS] || f->given[FAULT_CLOCK_DRIFT_PPM]) &&
        ci.source != CLOCK_SOURCE_EMULATED) {
        return span_fail(err, SPAN_INVALID, "%s: the clock of this node is '%s', not 'emulated'",
                         parameters[f->given[FAULT_CLOCK_OFFSET_MS] ? FAULT_CLOCK_OFFSET_MS
                                                                    : FAULT_CLOCK_DRIFT_PPM]
                             .name,
                         clock_source_name(ci.source));
    }
    return SPAN_OK;
}

static struct transport_fault_path path_of(const double *v)
{
    return (struct transport_fault_path){.cut = v[0] > 0,
                                         .drop = v[1],
                                         .duplicate = v[2],
                                         .reorder = v[3],
                                         .delay_ns = (uint64_t)(v[4] * 1e6),
                                         .jitter_ns = (uint64_t)(v[5] * 1e6)};
}

static span_status apply_network(struct server *s, const struct fault_request *f,
                                 struct span_error *err)
{
    struct transport_fault fault = {.out = path_of(&f->value[FAULT_OUT]),
                                    .in = path_of(&f->value[FAULT_IN])};
    span_status st;

    if (!has_network(f)) {
        return SPAN_OK;
    }
    st = transport_fault_set(node_transport(s->node), (uint32_t)f->value[FAULT_PEER],
                             f->given[FAULT_CLEAR] ? NULL : &fault);
    return st == SPAN_OK ? st : span_fail(err, st, "network: %s", span_status_text(st));
}

static span_status apply_clock(struct server *s, const struct fault_request *f,
                               struct span_error *err)
{
    bool offset = f->given[FAULT_CLOCK_OFFSET_MS];
    bool drift = f->given[FAULT_CLOCK_DRIFT_PPM];
    struct clock_info ci;

    if (!offset && !drift) {
        return SPAN_OK;
    }
    clock_info_get(s->clock, &ci);
    return clock_set_error(
        s->clock, offset ? (int64_t)(f->value[FAULT_CLOCK_OFFSET_MS] * 1e6) : ci.offset_ns,
        drift ? (int64_t)(f->value[FAULT_CLOCK_DRIFT_PPM] * 1e3) : ci.drift_ppb, err);
}

static void apply_disk(struct server *s, const struct fault_request *f)
{
    struct wal_faults *w = node_wal_faults(s->node);

    if (f->given[FAULT_SYNC_DELAY_MS]) {
        atomic_store(&w->sync_delay_ms, (uint32_t)f->value[FAULT_SYNC_DELAY_MS]);
    }
    if (f->given[FAULT_FAIL_SYNCS]) {
        atomic_store(&w->fail_syncs, f->value[FAULT_FAIL_SYNCS] < 0
                                         ? UINT32_MAX
                                         : (uint32_t)f->value[FAULT_FAIL_SYNCS]);
    }
    if (f->given[FAULT_NO_SPACE]) {
        atomic_store(&w->no_space, f->value[FAULT_NO_SPACE] > 0);
    }
}

static bool is_allowed(const struct server *s, struct http_response *r)
{
    if (!s->options.enable_faults) {
        r->status = 403;
        buf_append_str(&r->body, "this node was started without --enable-faults\n");
    }
    return s->options.enable_faults;
}

void server_faults_route(void *ctx, const struct http_request *q, struct http_response *r)
{
    struct server *s = ctx;
    struct fault_request f;
    struct span_error err = {0};
    span_status st;

    if (!is_allowed(s, r)) {
        return;
    }
    st = q->body.size == 0 ? fault_request_parse(q->query, &f, &err)
                           : span_fail(&err, SPAN_INVALID,
                                       "the body is not read: put it behind the ? of the URL");
    if (st == SPAN_OK) {
        st = check_here(s, &f, &err);
    }
    if (st != SPAN_OK) {
        r->status = 400;
        buf_printf(&r->body, "%s; nothing was changed\n", err.text);
        return;
    }
    st = apply_network(s, &f, &err);
    if (st == SPAN_OK) {
        st = apply_clock(s, &f, &err);
    }
    if (st != SPAN_OK) {
        r->status = 500;
        buf_printf(&r->body, "%s; what the request names before it is in force\n", err.text);
        return;
    }
    apply_disk(s, &f);
    SPAN_LOG(WARN, "faults set", "query=%s", q->query);
    buf_append_str(&r->body, "ok\n");
}

/* ---- failpoints ---- */

void server_failpoints_route(void *ctx, const struct http_request *q, struct http_response *r)
{
    struct server *s = ctx;
    struct span_error err = {0};
    char text[1024];
    span_status st = SPAN_OK;

    if (!is_allowed(s, r)) {
        return;
    }
    if (http_query_get(q->query, "arm", text, sizeof text)) {
        st = failpoint_arm(text, &err);
    } else if (http_query_get(q->query, "clear", text, sizeof text) && strcmp(text, "1") == 0) {
        failpoint_clear();
    } else if (http_query_get(q->query, "count", text, sizeof text) && strlen(text) == 1 &&
               strchr("01", text[0]) != NULL) {
        failpoint_count(text[0] == '1');
    } else {
        st = span_fail(&err, SPAN_INVALID, "arm=NAME[:nth]=ACTION,..., clear=1 or count=0|1");
    }
    if (st != SPAN_OK) {
        r->status = 400;
        buf_printf(&r->body, "%s; nothing was changed\n", err.text);
        return;
    }
    SPAN_LOG(WARN, "failpoints set", "query=%s", q->query);
    buf_append_str(&r->body, "ok\n");
}

void server_failpoints_report_route(void *ctx, const struct http_request *q,
                                    struct http_response *r)
{
    (void)q;
    if (is_allowed(ctx, r)) {
        failpoint_report(&r->body);
    }
}
