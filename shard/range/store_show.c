/* This node's rows for SHOW RANGES, TRANSACTIONS and LOCKS: what its leaders know, as text cells.
 */
#include "base/alloc.h"
#include "shard/range/store_impl.h"

#include <stdio.h>

/* Numbers of enum kv_show (sql/kv.h), which this layer may not include. */
enum {
    SHOW_RANGES = 0,
    SHOW_TRANSACTIONS = 3,
    SHOW_LOCKS = 4,
};

struct rows {
    struct arena *arena;
    struct slice *cells;
    size_t count;
    size_t cap;
};

static void add(struct rows *r, struct slice s)
{
    if (r->count == r->cap) {
        size_t cap = r->cap == 0 ? 64 : r->cap * 2;
        struct slice *cells = arena_alloc(r->arena, cap * sizeof *cells);
        if (r->count > 0) {
            memcpy(cells, r->cells, r->count * sizeof *cells);
        }
        r->cells = cells;
        r->cap = cap;
    }
    r->cells[r->count++] = s;
}

static void add_text(struct rows *r, const char *text)
{
    size_t n = strlen(text);
    char *copy = arena_alloc(r->arena, n + 1);
    memcpy(copy, text, n);
    add(r, slice_of(copy, n));
}

static void add_number(struct rows *r, uint64_t v)
{
    char text[24];
    (void)snprintf(text, sizeof text, "%llu", (unsigned long long)v);
    add_text(r, text);
}

static void add_null(struct rows *r)
{
    add(r, (struct slice){NULL, 0});
}

static void add_hex(struct rows *r, struct slice s)
{
    static const char digits[] = "0123456789abcdef";
    char *text = arena_alloc(r->arena, s.size * 2 + 1);
    for (size_t i = 0; i < s.size; i++) {
        text[2 * i] = digits[s.data[i] >> 4];
        text[2 * i + 1] = digits[s.data[i] & 15];
    }
    add(r, slice_of(text, s.size * 2));
}

static void add_ms(struct rows *r, uint64_t ns)
{
    char text[32];
    (void)snprintf(text, sizeof text, "%.3f", (double)ns / 1e6);
    add_text(r, text);
}

static void add_txn(struct rows *r, const struct txn_id *id)
{
    char text[48];
    txn_id_format(id, text);
    add_text(r, text);
}

/* The newest timestamp at which this replica answers a read at once: what its leader has closed,
 * and on the leader itself any time that its lease covers and no transaction in flight may still
 * write below (rules A4, A5). None: it answers no read now. */
static struct tt_ts readable_ts(const struct replica *r, const struct tt_now *now)
{
    struct tt_ts t = replica_safe_time(r);
    uint64_t end = raft_lease_end(r->raft).ns;
    if (!replica_may_serve(r, now) || end == 0) {
        return t;
    }
    uint64_t ns = now->tt.latest.ns < end ? now->tt.latest.ns : end - 1;
    LIST_EACH(it, &r->flight)
    {
        const struct rtxn *x = LIST_ENTRY(it, struct rtxn, in_state);
        if (x->ts.ns <= ns) {
            ns = x->ts.ns - 1;
        }
    }
    return tt_max(t, tt_ts_of(ns));
}

static void add_ts(struct rows *r, struct tt_ts ts)
{
    if (tt_is_none(ts)) {
        add_null(r);
    } else {
        add_number(r, ts.ns);
    }
}

static const char *range_state(const struct store *s, const struct tt_now *now,
                               const struct replica *r)
{
    return r->broken                         ? "damaged"
           : raft_leader(r->raft) == 0       ? "no leader"
           : store_range_is_short(s, now, r) ? "under-replicated"
                                             : "ok";
}

/* range_id, generation, start_key (hex), end_key (hex, NULL: none), leader, replicas, term,
 * applied_index, last_index, lease_end, safe_time, memory_bytes, reporter, state */
static void show_ranges(const struct store *s, const struct tt_now *now, struct rows *out)
{
    for (size_t i = 0; i < s->by_key_count; i++) {
        const struct replica *r = s->by_key[i];
        char members[64] = "";
        int n = 0;
        for (size_t k = 0; k < r->member_count; k++) {
            n += snprintf(members + n, sizeof members - (size_t)n, k == 0 ? "%u" : ",%u",
                          r->members[k]);
        }
        add_number(out, r->id);
        add_number(out, r->generation);
        add_hex(out, buf_slice(&r->start));
        if (r->end.size == 0) {
            add_null(out);
        } else {
            add_hex(out, buf_slice(&r->end));
        }
        if (raft_leader(r->raft) == 0) {
            add_null(out);
        } else {
            add_number(out, raft_leader(r->raft));
        }
        add_text(out, members);
        add_number(out, raft_current_term(r->raft));
        add_number(out, raft_applied(r->raft));
        add_number(out, raft_last_index(r->raft));
        add_ts(out, raft_lease_end(r->raft));
        add_ts(out, readable_ts(r, now));
        add_number(out, r->engine == NULL ? 0 : engine_memory_bytes(r->engine));
        add_number(out, s->cfg.self);
        add_text(out, range_state(s, now, r));
    }
}

static const char *state_name(enum rtxn_state state)
{
    static const char *const names[] = {
        [RTXN_HOLDING] = "open",        [RTXN_COMMITTING] = "committing",
        [RTXN_PREPARING] = "preparing", [RTXN_PREPARED] = "prepared",
        [RTXN_FINISHING] = "finishing", [RTXN_COORDINATING] = "coordinating",
        [RTXN_DECIDING] = "deciding",   [RTXN_DECIDED] = "decided",
    };
    return names[state];
}

/* txn_id, range_id, state, role, age_ms, locks, waiting, gateway, timestamp */
static void show_transactions(const struct store *s, const struct tt_now *now, struct rows *out)
{
    for (size_t i = 0; i < s->by_key_count; i++) {
        const struct replica *r = s->by_key[i];
        size_t pos = 0;
        const struct rtxn *t;
        while (r->leading && (t = mapb_next(&r->txns, &pos, NULL)) != NULL) {
            uint64_t latest = now->tt.latest.ns;
            bool coordinator = t->state == RTXN_COORDINATING || t->state == RTXN_DECIDING ||
                               t->state == RTXN_DECIDED;
            bool participant = t->state == RTXN_PREPARING || t->state == RTXN_PREPARED ||
                               t->state == RTXN_FINISHING;
            add_txn(out, &t->owner.txn);
            add_number(out, r->id);
            add_text(out, state_name(t->state));
            add_text(out, coordinator ? "coordinator" : participant ? "participant" : "");
            add_ms(out, latest > t->owner.txn.begin_ns ? latest - t->owner.txn.begin_ns : 0);
            add_number(out, t->owner.held_count);
            add_number(out, t->owner.waiting_count);
            if (t->gateway == 0) {
                add_null(out);
            } else {
                add_number(out, t->gateway);
            }
            if (tt_is_none(t->ts)) {
                add_null(out);
            } else {
                add_number(out, t->ts.ns);
            }
        }
    }
}

struct lock_rows {
    struct rows *out;
    const struct replica *r;
    uint64_t mono_ns;
    uint64_t latest_ns;
};

static void add_lock(void *ctx, const struct lock_owner *o, const struct span *span,
                     enum lock_mode mode, bool held, uint64_t since_ns)
{
    struct lock_rows *l = ctx;
    add_number(l->out, l->r->id);
    add_hex(l->out, span->start);
    if (span->point) {
        add_null(l->out);
    } else {
        add_hex(l->out, span->end);
    }
    add_text(l->out, mode == LOCK_EXCLUSIVE ? "exclusive" : "shared");
    add_text(l->out, held ? "held" : "waiting");
    add_txn(l->out, &o->txn);
    const struct lock_owner *b = held ? NULL : lock_table_blocker(l->r->locks, o);
    if (b == NULL) {
        add_null(l->out);
    } else {
        add_txn(l->out, &b->txn);
    }
    add_ms(l->out, since_ns != 0 && since_ns < l->mono_ns ? l->mono_ns - since_ns : 0);
    add_ms(l->out, o->txn.begin_ns < l->latest_ns ? l->latest_ns - o->txn.begin_ns : 0);
}

/* range_id, start_key (hex), end_key (hex, NULL: a point), mode, state, txn_id, waits_for,
 * lock_age_ms, txn_age_ms */
static void show_locks(const struct store *s, const struct tt_now *now, struct rows *out)
{
    for (size_t i = 0; i < s->by_key_count; i++) {
        const struct replica *r = s->by_key[i];
        struct lock_rows l = {out, r, now->mono_ns, now->tt.latest.ns};
        if (r->leading) {
            lock_table_each(r->locks, add_lock, &l);
        }
    }
}

void store_show(const struct store *s, const struct tt_now *now, unsigned what, struct arena *a,
                struct slice **cells, size_t *cell_count, unsigned *columns)
{
    struct rows rows = {.arena = a};
    if (what == SHOW_RANGES) {
        *columns = 14;
        show_ranges(s, now, &rows);
    } else if (what == SHOW_TRANSACTIONS) {
        *columns = 9;
        show_transactions(s, now, &rows);
    } else if (what == SHOW_LOCKS) {
        *columns = 9;
        show_locks(s, now, &rows);
    } else {
        *columns = 0;
    }
    *cells = rows.cells;
    *cell_count = rows.count;
}
