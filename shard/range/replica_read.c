/* Reads: with locks at the leader, lock-free at a timestamp at the leader (rule A5) or on any
 * replica whose safe time has reached it. An answer says how far it came, so that a page is bounded
 * and the caller continues. */
#include "base/alloc.h"
#include "base/log.h"
#include "base/planted.h"
#include "shard/range/replica.h"

struct collect {
    struct buf *bytes; /* keys and values one after the other */
    struct row_place *rows;
    size_t count;
    size_t cap;
    uint32_t span;
};

struct row_place {
    size_t at;
    size_t key_size;
    size_t value_size;
    uint32_t span;
};

struct read_out {
    struct collect c;
    struct read_resume *resumes;
    size_t resume_count;
    struct buf resume_bytes; /* keys of the resumes, fixed up at the end */
    struct tt_ts seen;
};

static bool collect_row(void *ctx, struct slice key, struct slice value, struct tt_ts ts)
{
    struct collect *c = ctx;
    (void)ts;
    if (c->count == c->cap) {
        c->cap = c->cap == 0 ? 8 : c->cap * 2;
        c->rows = span_realloc(c->rows, c->cap * sizeof *c->rows);
    }
    c->rows[c->count++] = (struct row_place){c->bytes->size, key.size, value.size, c->span};
    buf_append_slice(c->bytes, key);
    buf_append_slice(c->bytes, value);
    return true;
}

/* Damaged data takes this replica out, and not the statement: the others have the right bytes. */
static void refuse_read(struct replica *r, const struct range_request *q, span_status st)
{
    if (st == SPAN_CORRUPT || st == SPAN_IO) {
        SPAN_LOG(ERROR, "a read failed", "range=%llu error=\"%s\"", (unsigned long long)r->id,
                 engine_error(r->engine)->text);
        replica_break(r, "read", st);
        replica_refuse(r, q, SPAN_NOT_LEADER, "this replica is out");
    } else {
        replica_refuse(r, q, st, "");
    }
}

/* One span at `at`. `covered` (start, end) is what the answer stands for, for locking; false: stop,
 * the page is full. */
static span_status read_span(struct replica *r, const struct read_span *s, uint32_t index,
                             struct tt_ts at, struct read_out *out, struct buf *stop_key,
                             bool *complete)
{
    out->c.span = index;
    *complete = true;
    if (s->span.point) {
        struct engine_value v;
        span_status st = engine_get(r->engine, s->span.start, at, &v);
        if (st != SPAN_OK) {
            return st;
        }
        out->seen = tt_max(out->seen, v.seen);
        if (v.found == ENGINE_FOUND) {
            collect_row(&out->c, s->span.start, v.value, v.ts);
        }
        return SPAN_OK;
    }
    struct engine_scan_spec spec = {
        .start = s->span.start,
        .end = s->span.end,
        .at = at,
        .reverse = s->reverse,
        .max_rows = s->max_rows == 0 || s->max_rows > LIMIT_RESULT_PAGE_ROWS
                        ? LIMIT_RESULT_PAGE_ROWS
                        : s->max_rows,
        .max_bytes = LIMIT_RESULT_PAGE_BYTES,
    };
    struct engine_scan_result res;
    span_status st = engine_scan(r->engine, &spec, collect_row, &out->c, &res);
    if (st != SPAN_OK) {
        return st;
    }
    out->seen = tt_max(out->seen, res.seen);
    if (res.more) {
        *complete = false;
        buf_set(stop_key, res.resume);
    }
    return SPAN_OK;
}

static void read_out_free(struct read_out *o)
{
    span_free(o->c.rows);
    span_free(o->resumes);
    buf_deinit(&o->resume_bytes);
}

static void answer(struct replica *r, const struct range_request *q, struct read_out *o,
                   struct tt_ts t_safe)
{
    struct row *rows = span_calloc(o->c.count + 1, sizeof *rows);
    for (size_t i = 0; i < o->c.count; i++) {
        const struct row_place *p = &o->c.rows[i];
        rows[i].key = slice_of(o->c.bytes->data + p->at, p->key_size);
        rows[i].value = slice_of(o->c.bytes->data + p->at + p->key_size, p->value_size);
        rows[i].span = p->span;
    }
    size_t at = 0;
    for (size_t i = 0; i < o->resume_count; i++) {
        o->resumes[i].key.data = o->resume_bytes.data + at;
        at += o->resumes[i].key.size;
    }
    struct range_response resp = {.status = SPAN_OK,
                                  .seen = o->seen,
                                  .ts = t_safe,
                                  .row_count = o->c.count,
                                  .rows = rows,
                                  .resume_count = o->resume_count,
                                  .resumes = o->resumes};
    replica_respond(r, q, &resp);
    span_free(rows);
}

static void add_resume(struct read_out *o, size_t spans, uint32_t span, struct slice key)
{
    if (o->resumes == NULL) {
        o->resumes = span_calloc(spans, sizeof *o->resumes);
    }
    o->resumes[o->resume_count++] = (struct read_resume){span, {NULL, key.size}};
    buf_append_slice(&o->resume_bytes, key);
}

/* Rule A5: a record chosen at or below the read's timestamp and not applied whose keys meet its
 * spans. */
static bool must_wait(const struct replica *r, const struct range_request *q)
{
    if (PLANTED(FLIGHT_IGNORED)) {
        return false;
    }
    LIST_EACH(it, &r->flight)
    {
        const struct rtxn *t = LIST_ENTRY(it, struct rtxn, in_state);
        if (t->ts.ns > q->read_ts.ns) {
            continue;
        }
        for (size_t k = 0; k < t->key_count; k++) {
            struct slice key = buf_slice(&t->keys[k]);
            if (key.size > 0 && key.data[0] == 0) {
                return true; /* a schema version: any read of the range may depend on it */
            }
            for (size_t i = 0; i < q->span_count; i++) {
                const struct span *s = &q->spans[i].span;
                if (s->point ? slice_eq(s->start, key)
                             : slice_cmp(key, s->start) >= 0 &&
                                   (s->end.size == 0 || slice_cmp(key, s->end) < 0)) {
                    return true;
                }
            }
        }
    }
    return false;
}

static void read_at(struct replica *r, const struct range_request *q, struct tt_ts t_safe)
{
    struct read_out o = {.c = {.bytes = store_row_bytes(r->store)}};
    struct buf stop = {0};
    span_status st = replica_check_schema(r, q, q->read_ts);
    for (uint32_t i = 0; st == SPAN_OK && i < q->span_count; i++) {
        bool complete = true;
        if (o.c.bytes->size >=
            LIMIT_RESULT_PAGE_BYTES) { /* page full: the rest is for the next request */
            complete = false;
            const struct span *s = &q->spans[i].span;
            buf_set(&stop, q->spans[i].reverse && !s->point ? s->end : s->start);
        } else {
            st = read_span(r, &q->spans[i], i, q->read_ts, &o, &stop, &complete);
        }
        if (!complete) {
            add_resume(&o, q->span_count, i, buf_slice(&stop));
        }
    }
    if (st == SPAN_OK) {
        answer(r, q, &o, t_safe);
    } else {
        refuse_read(r, q, st);
    }
    buf_deinit(&stop);
    read_out_free(&o);
}

/* Any replica, at a timestamp its safe time has reached; a little patience, then the leader has to
 * do it. */
static void follower_read(struct replica *r, const struct tt_now *now, struct slice body,
                          const struct range_request *q)
{
    struct tt_ts safe = replica_safe_time(r);
    if (q->read_ts.ns <= safe.ns) {
        read_at(r, q, safe);
        return;
    }
    uint64_t patience = 150 * MS_NS;
    if (r->leading || q->read_ts.ns > safe.ns + patience || q->budget_ns <= 1) {
        replica_refuse(r, q, SPAN_NOT_LEADER, "");
        return;
    }
    (void)body;
    (void)now;
    replica_refuse(r, q, SPAN_WOULD_WAIT, "");
}

static void leader_read(struct replica *r, const struct tt_now *now, struct slice body,
                        const struct range_request *q)
{
    if (q->read_ts.ns > now->tt.latest.ns + SKEW_NS_MAX) { /* rule A6 */
        replica_refuse(r, q, SPAN_IN_FUTURE, "");
        return;
    }
    if (q->read_ts.ns >= raft_lease_end(r->raft).ns && !PLANTED(READ_ABOVE_LEASE)) {
        replica_park(r, now, body, q, RPARK_LEASE, NULL);
        return;
    }
    r->floor = tt_max(r->floor, q->read_ts); /* rule A5: first the floor ... */
    if (must_wait(r, q)) {
        replica_park(r, now, body, q, RPARK_FLIGHT, NULL);
        return;
    }
    read_at(r, q, tt_ts_of(0));
}

/* ---- with locks ---- */

enum taken {
    TAKEN,
    TAKEN_WAITING,
    TAKEN_REFUSED,
};

static enum taken take(struct replica *r, const struct tt_now *now, struct rtxn *t,
                       const struct range_request *q, struct span span, enum lock_mode mode)
{
    bool local = span.start.size > 0 && span.start.data[0] == 0;
    if (t->owner.held_count >= LIMIT_TXN_LOCKS && !local) {
        /* Rule G5: past the limit its locks merge, never go: from here one lock on all of the range
         * stands for the rest. */
        span = (struct span){.start = buf_slice(&r->start), .end = buf_slice(&r->end)};
    }
    struct lock_request lq = {.owner = &t->owner,
                              .span = span,
                              .mode = mode,
                              .may_wait = q->may_wait,
                              .now_ns = now->mono_ns};
    switch (lock_table_acquire(r->locks, &lq, replica_wound_cb, r)) {
    case LOCK_GRANTED:
        return TAKEN;
    case LOCK_WAITING:
        return TAKEN_WAITING;
    case LOCK_REFUSED:
        break;
    }
    return TAKEN_REFUSED;
}

static enum taken worse(enum taken a, enum taken b)
{
    return a > b ? a : b;
}

/* Locks what one span's answer stands for: what was searched S, what came back X under
 * READ_LOCK_UPDATE (C6, G3). */
static enum taken lock_answer(struct replica *r, const struct tt_now *now, struct rtxn *t,
                              const struct range_request *q, uint32_t index,
                              const struct read_out *o, size_t first_row, bool complete,
                              struct slice stop)
{
    const struct read_span *s = &q->spans[index];
    bool update = q->lock == READ_LOCK_UPDATE;
    if (s->span.point) {
        return take(r, now, t, q, s->span, update ? LOCK_EXCLUSIVE : LOCK_SHARED);
    }
    struct span searched = s->span;
    if (!complete) {
        if (s->reverse) {
            searched.start = stop; /* resume is the exclusive end of what is left */
        } else {
            searched.end = stop;
        }
    }
    enum taken got = take(r, now, t, q, searched, LOCK_SHARED);
    for (size_t i = first_row; update && i < o->c.count && got != TAKEN_REFUSED; i++) {
        const struct row_place *p = &o->c.rows[i];
        struct span point = {.start = slice_of(o->c.bytes->data + p->at, p->key_size),
                             .point = true};
        got = worse(got, take(r, now, t, q, point, LOCK_EXCLUSIVE));
    }
    return got;
}

static enum taken lock_schema(struct replica *r, const struct tt_now *now, struct rtxn *t,
                              const struct range_request *q)
{
    enum taken got = TAKEN;
    for (size_t i = 0; i < q->schema_count; i++) {
        uint8_t key[SCHEMA_KEY_BYTES];
        struct span point = {.start = schema_key(key, q->schema[i].table_id), .point = true};
        got = worse(got, take(r, now, t, q, point, LOCK_SHARED));
    }
    return got;
}

static void locking_read(struct replica *r, const struct tt_now *now, struct slice body,
                         const struct range_request *q)
{
    span_status why = replica_admit_txn(r, q);
    if (why != SPAN_OK) {
        replica_refuse(r, q, why, "");
        return;
    }
    struct rtxn *t = rtxn_of_request(r, now, q);
    struct read_out o = {.c = {.bytes = store_row_bytes(r->store)}};
    struct buf stop = {0};
    enum taken got = lock_schema(r, now, t, q);
    span_status st = got == TAKEN ? replica_check_schema(r, q, ENGINE_NEWEST) : SPAN_OK;
    for (uint32_t i = 0; st == SPAN_OK && got != TAKEN_REFUSED && i < q->span_count; i++) {
        bool complete = true;
        if (o.c.bytes->size >= LIMIT_RESULT_PAGE_BYTES) {
            const struct span *s = &q->spans[i].span;
            add_resume(&o, q->span_count, i, q->spans[i].reverse && !s->point ? s->end : s->start);
            continue;
        }
        size_t first = o.c.count;
        st = read_span(r, &q->spans[i], i, ENGINE_NEWEST, &o, &stop, &complete);
        if (st == SPAN_OK) {
            got = worse(got, lock_answer(r, now, t, q, i, &o, first, complete, buf_slice(&stop)));
        }
        if (!complete) {
            add_resume(&o, q->span_count, i, buf_slice(&stop));
        }
    }
    if (st != SPAN_OK) {
        refuse_read(r, q, st);
    } else if (rtxn_find(r, &q->txn) != t) {
        replica_refuse(r, q, SPAN_WOUNDED, "");
    } else if (got == TAKEN_WAITING) {
        replica_park(r, now, body, q, RPARK_LOCKS, t);
    } else if (got == TAKEN_REFUSED) {
        replica_refuse(r, q, SPAN_WOULD_WAIT, "");
    } else {
        answer(r, q, &o, tt_ts_of(0));
    }
    buf_deinit(&stop);
    read_out_free(&o);
}

void replica_op_read(struct replica *r, const struct tt_now *now, struct slice body,
                     const struct range_request *q)
{
    if (tt_is_none(q->read_ts)) {
        locking_read(r, now, body, q);
    } else if (replica_may_serve(r, now) ||
               (PLANTED(READ_ABOVE_LEASE) && r->serving && !r->releasing)) {
        leader_read(r, now, body, q);
    } else {
        follower_read(r, now, body, q);
    }
}
