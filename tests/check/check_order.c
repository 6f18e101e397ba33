/* What the graph and the timestamps say, put in words. */
#include "base/alloc.h"
#include "tests/check/check_impl.h"

#include <inttypes.h>
#include <stdlib.h>

#define CYCLES_MAX 5 /* components of which a cycle is printed */

/* ---- cycles ---- */

static size_t count_kind(const struct cycle *y, enum edge_kind kind)
{
    size_t n = 0;
    for (size_t i = 0; i < y->count; i++) {
        n += y->step[i].kind == kind;
    }
    return n;
}

/* Read-write steps with other steps between each two of them, all of those "read what it wrote". */
static bool is_long_fork(const struct cycle *y)
{
    if (y->count != 4) {
        return false;
    }
    for (size_t i = 0; i < 4; i++) {
        enum edge_kind want = y->step[i].kind == EDGE_RW ? EDGE_WR : EDGE_RW;
        if ((y->step[i].kind != EDGE_RW && y->step[i].kind != EDGE_WR) ||
            y->step[(i + 1) % 4].kind != want) {
            return false;
        }
    }
    return true;
}

static enum check_anomaly name_cycle(const struct checker *c, const struct cycle *y)
{
    size_t ww = count_kind(y, EDGE_WW);
    size_t wr = count_kind(y, EDGE_WR);
    size_t rw = count_kind(y, EDGE_RW);
    bool in_time = count_kind(y, EDGE_RT) != 0;
    if (in_time && y->count == 2 && rw == 1) {
        return y->lost && c->h->kind == HISTORY_APPEND ? CHECK_LOST_WRITE : CHECK_STALE_READ;
    }
    if (in_time && y->count == 2 && wr == 1) {
        return CHECK_FUTURE_READ;
    }
    if (in_time && y->count == 3 && rw == 1 && wr == 1) {
        return CHECK_CAUSAL_REVERSE;
    }
    if (!in_time && y->count == 2 && rw != 0 && ww + rw == 2 && y->step[0].key == y->step[1].key) {
        return CHECK_LOST_UPDATE;
    }
    if (!in_time && y->count == 2 && rw == 2) {
        return CHECK_WRITE_SKEW;
    }
    if (is_long_fork(y)) {
        return CHECK_LONG_FORK;
    }
    if (rw == 0) {
        return wr == 0 ? (in_time ? CHECK_G0_REALTIME : CHECK_G0)
                       : (in_time ? CHECK_G1C_REALTIME : CHECK_G1C);
    }
    if (rw == 1) {
        return in_time ? CHECK_G_SINGLE_REALTIME : CHECK_G_SINGLE;
    }
    return in_time ? CHECK_G2_REALTIME : CHECK_G2;
}

static void say_op(struct checker *c, const struct history_op *op)
{
    struct buf *say = &c->r->say;
    switch (op->kind) {
    case HISTORY_APPEND_OP:
        buf_printf(say, "append %" PRIu64 " %" PRId64, op->key, op->value);
        break;
    case HISTORY_WRITE:
        buf_printf(say, "write %" PRIu64 " %" PRId64, op->key, op->value);
        break;
    case HISTORY_READ:
        buf_printf(say, "read %" PRIu64 " ", op->key);
        if (op->is_null) {
            buf_append_str(say, "nothing");
        } else {
            buf_printf(say, "%" PRId64, op->value);
        }
        break;
    case HISTORY_LIST:
        buf_printf(say, "read %" PRIu64 " [", op->key);
        for (size_t i = op->list_count > 6 ? op->list_count - 6 : 0; i < op->list_count; i++) {
            buf_printf(say, "%s%" PRId64,
                       i == 0                    ? ""
                       : i == op->list_count - 6 ? "... "
                                                 : " ",
                       c->h->values[op->list + i]);
        }
        buf_append_byte(say, ']');
        break;
    case HISTORY_TRANSFER:
        buf_printf(say, "transfer %" PRId64 " from %" PRIu64 " to %" PRIu64, op->value, op->key,
                   op->to);
        break;
    case HISTORY_AUDIT:
        buf_append_str(say, "audit");
        break;
    }
}

static void say_txn(struct checker *c, size_t number, uint32_t n)
{
    const struct history_txn *t = &c->h->txns[n];
    buf_printf(&c->r->say, "  T%zu = ", number);
    checker_name(c, n);
    buf_printf(&c->r->say, ", %.6f s to ", (double)t->start / 1e9);
    if (t->outcome == HISTORY_UNKNOWN) {
        buf_append_str(&c->r->say, "?");
    } else {
        buf_printf(&c->r->say, "%.6f s", (double)t->end / 1e9);
    }
    if (t->ts != 0) {
        buf_printf(&c->r->say, ", timestamp %" PRIu64, t->ts);
    }
    for (size_t i = 0; i < t->op_count; i++) {
        buf_append_str(&c->r->say, i == 0 ? ": " : ", ");
        say_op(c, &c->h->ops[t->op + i]);
    }
    buf_append_byte(&c->r->say, '\n');
}

static void say_step(struct checker *c, const struct edge *e, size_t from, size_t to)
{
    struct buf *say = &c->r->say;
    buf_printf(say, "  T%zu comes before T%zu: ", from, to);
    switch (e->kind) {
    case EDGE_WW:
        buf_printf(say, "T%zu wrote key %" PRIu64 " after T%zu had\n", to, e->key, from);
        break;
    case EDGE_WR:
        buf_printf(say, "T%zu read from key %" PRIu64 " what T%zu wrote\n", to, e->key, from);
        break;
    case EDGE_RW:
        buf_printf(say, "T%zu read key %" PRIu64 " without what T%zu wrote\n", from, e->key, to);
        break;
    case EDGE_RT:
        buf_printf(say, "T%zu had ended when T%zu began\n", from, to);
        break;
    case EDGE_VIA:
        break;
    }
}

static void say_cycle(struct checker *c, const struct cycle *y)
{
    if (!checker_found(c, name_cycle(c, y))) {
        return;
    }
    for (size_t i = 0; i < y->count; i++) {
        say_txn(c, i + 1, y->step[i].from);
    }
    for (size_t i = 0; i < y->count; i++) {
        say_step(c, &y->step[i], i + 1, (i + 1) % y->count + 1);
    }
    buf_append_str(&c->r->say, "  so none of them can be the first.\n\n");
}

void check_cycles(struct checker *c)
{
    struct cycle y;
    size_t said = 0;
    c->r->edges = c->g.edge_count;
    for (uint32_t i = 0; i < c->g.component_count; i++) {
        if (c->g.component_size[i] < 2) {
            continue;
        }
        if (said < CYCLES_MAX && graph_cycle_in(&c->g, i, &y)) {
            said++;
            say_cycle(c, &y);
        } else if (checker_found(c, CHECK_G2)) {
            buf_printf(&c->r->say, "  %" PRIu32 " transactions go in circles\n\n",
                       c->g.component_size[i]);
        }
    }
    uint64_t in_time = graph_cycle_in_time(&c->g, &y);
    if (in_time != 0 && y.count != 0) {
        say_cycle(c, &y);
        c->r->found[name_cycle(c, &y)] += in_time - 1;
        c->r->found_total += in_time - 1;
    } else if (in_time != 0) {
        (void)checker_found(c, CHECK_G2_REALTIME);
    }
}

/* ---- timestamps ---- */

static bool has_ts(const struct checker *c, uint32_t n)
{
    return n < c->h->txn_count && c->h->txns[n].ts != 0 && c->counts[n] && !c->h->txns[n].as_of;
}

static void say_pair(struct checker *c, uint32_t first, uint32_t second, const char *words)
{
    say_txn(c, 1, first);
    say_txn(c, 2, second);
    buf_printf(&c->r->say, "  %s\n\n", words);
}

static int by_start(const void *a, const void *b, void *ctx)
{
    const struct history_txn *t = ctx;
    uint64_t x = t[*(const uint32_t *)a].start;
    uint64_t y = t[*(const uint32_t *)b].start;
    return x < y ? -1 : x > y;
}

static int by_end(const void *a, const void *b, void *ctx)
{
    const struct history_txn *t = ctx;
    uint64_t x = t[*(const uint32_t *)a].end;
    uint64_t y = t[*(const uint32_t *)b].end;
    return x < y ? -1 : x > y;
}

void check_timestamps(struct checker *c)
{
    const struct history_txn *t = c->h->txns;
    uint32_t *starts = span_calloc(c->h->txn_count + 1, sizeof(*starts));
    uint32_t *ends = span_calloc(c->h->txn_count + 1, sizeof(*ends));
    size_t n = 0;
    size_t ended = 0;
    uint32_t newest = 0;
    for (uint32_t i = 0; i < c->h->txn_count; i++) {
        if (has_ts(c, i) && t[i].outcome == HISTORY_OK) {
            starts[n] = i;
            ends[n++] = i;
        }
    }
    qsort_r(starts, n, sizeof(*starts), by_start, c->h->txns);
    qsort_r(ends, n, sizeof(*ends), by_end, c->h->txns);
    for (size_t i = 0; i < n; i++) {
        uint32_t v = starts[i];
        for (; ended < n && t[ends[ended]].end < t[v].start; ended++) {
            newest = ended == 0 || t[ends[ended]].ts > t[newest].ts ? ends[ended] : newest;
        }
        c->r->pairs += ended != 0;
        if (ended != 0 && t[newest].ts >= t[v].ts && checker_found(c, CHECK_TIMESTAMP_INVERSION)) {
            say_pair(c, newest, v, "T1 had ended when T2 began, and T2 has no later timestamp.");
        }
    }
    for (size_t i = 0; i < c->g.edge_count; i++) {
        const struct edge *e = &c->g.edges[i];
        if (e->kind != EDGE_VIA && has_ts(c, e->from) && has_ts(c, e->to) &&
            t[e->from].ts >= t[e->to].ts && checker_found(c, CHECK_TIMESTAMP_ORDER)) {
            say_step(c, e, 1, 2);
            say_pair(c, e->from, e->to, "and T2 has no later timestamp.");
        }
    }
    span_free(starts);
    span_free(ends);
}
