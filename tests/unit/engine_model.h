/* A naive model of the engine for its tests: a log of operations, and what any prefix of it must
 * show. Included by tests/unit/engine_*_test.c only. */
#ifndef SPAN_TESTS_UNIT_ENGINE_MODEL_H
#define SPAN_TESTS_UNIT_ENGINE_MODEL_H

#include "base/alloc.h"
#include "base/rng.h"
#include "shard/engine/engine.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MODEL_KEYS 120
#define MODEL_META 12

enum op_kind { OP_PUT, OP_DELETE, OP_META_PUT, OP_META_DELETE, OP_HORIZON, OP_END };

struct op {
    enum op_kind kind;
    unsigned key;
    uint64_t ts;    /* version, horizon; the applied index for OP_END */
    uint64_t value; /* drawn number: the bytes follow from it */
};

/* A log, and the state after some prefix of it. */
struct model {
    struct op *ops;
    size_t count;
    size_t cap;
    uint64_t applied;
    uint64_t horizon;
    uint64_t max_ts;
    uint64_t newest[MODEL_KEYS];
    uint64_t meta[MODEL_META]; /* value number, 0: absent */
    unsigned first_key;        /* keys in bounds: first_key <= i < end_key, and local ones */
    unsigned end_key;
};

/* Keys by number, in byte order: the first ten are local, later ones are prefixes of each other now
 * and then. */
static inline struct slice model_key(unsigned i, char out[32])
{
    int n = 0;
    if (i < 10) {
        out[0] = 0;
        n = 1 + snprintf(out + 1, 31, "local%u", i);
    } else {
        n = snprintf(out, 32, "k%02u%s", i / 3, i % 3 == 0 ? "" : i % 3 == 1 ? "a" : "ab\xff");
    }
    return slice_of(out, (size_t)n);
}

static inline struct slice model_meta_key(unsigned i, char out[32])
{
    return slice_of(out,
                    (size_t)snprintf(out, 32, "%s/%02u", i % 2 == 0 ? "prepare" : "outcome", i));
}

static inline void model_value(uint64_t number, struct buf *out)
{
    buf_clear(out);
    buf_printf(out, "v%llu", (unsigned long long)number);
    size_t fill = number % 97 == 0 ? 9000 : number % 40;
    memset(buf_grow(out, fill), (int)('a' + number % 26), fill);
}

static inline bool model_has_key(const struct model *m, unsigned key)
{
    return key < 10 || (key >= m->first_key && key < m->end_key);
}

static inline void model_init(struct model *m)
{
    *m = (struct model){.first_key = 10, .end_key = MODEL_KEYS};
}

static inline void model_deinit(struct model *m)
{
    span_free(m->ops);
}

static inline void model_add(struct model *m, struct op op)
{
    if (m->count == m->cap) {
        m->cap = m->cap == 0 ? 64 : m->cap * 2;
        m->ops = span_realloc(m->ops, m->cap * sizeof *m->ops);
    }
    m->ops[m->count++] = op;
}

/* What the newest operations change, without logging them. */
static inline void model_apply(struct model *m, const struct op *op)
{
    switch (op->kind) {
    case OP_PUT:
    case OP_DELETE:
        m->newest[op->key] = op->ts;
        m->max_ts = op->ts > m->max_ts ? op->ts : m->max_ts;
        break;
    case OP_META_PUT:
        m->meta[op->key] = op->value;
        break;
    case OP_META_DELETE:
        m->meta[op->key] = 0;
        break;
    case OP_HORIZON:
        m->horizon = op->ts > m->horizon ? op->ts : m->horizon;
        break;
    case OP_END:
        m->applied = op->ts;
        break;
    }
}

static inline void engine_apply_op(struct engine *e, const struct op *op)
{
    char text[32];
    struct buf value = {0};
    span_status st = SPAN_OK;
    model_value(op->value, &value);
    switch (op->kind) {
    case OP_PUT:
        st = engine_put(e, model_key(op->key, text), tt_ts_of(op->ts), buf_slice(&value));
        break;
    case OP_DELETE:
        st = engine_delete(e, model_key(op->key, text), tt_ts_of(op->ts));
        break;
    case OP_META_PUT:
        st = engine_meta_put(e, model_meta_key(op->key, text), buf_slice(&value));
        break;
    case OP_META_DELETE:
        st = engine_meta_delete(e, model_meta_key(op->key, text));
        break;
    case OP_HORIZON:
        engine_set_horizon(e, tt_ts_of(op->ts));
        break;
    case OP_END:
        engine_set_applied(e, op->ts);
        break;
    }
    cr_assert_eq(st, SPAN_OK, "apply: %s", engine_error(e)->text);
    buf_deinit(&value);
}

/* One random entry into the log, the state and (if not NULL) the engine. */
static inline void model_random_entry(struct model *m, struct rng *r, struct engine *e)
{
    size_t from = m->count;
    uint64_t n = rng_between(r, 1, 5);
    for (uint64_t i = 0; i < n; i++) {
        struct op op = {.value = rng_between(r, 1, 1000000)};
        uint64_t what = rng_below(r, 100);
        if (what < 15) {
            op.kind = what < 10 ? OP_META_PUT : OP_META_DELETE;
            op.key = (unsigned)rng_below(r, MODEL_META);
        } else if (what < 17 && m->max_ts > 200) {
            op.kind = OP_HORIZON;
            op.ts = m->max_ts - rng_below(r, 200);
        } else {
            op.kind = what < 40 ? OP_DELETE : OP_PUT;
            do {
                op.key = (unsigned)rng_below(r, MODEL_KEYS);
            } while (!model_has_key(m, op.key));
            /* Now and then an outcome that lies below newer records (rule A4). */
            bool late = rng_below(r, 5) == 0 && m->newest[op.key] < m->max_ts;
            op.ts = late ? rng_between(r, m->newest[op.key] + 1, m->max_ts)
                         : m->max_ts + rng_between(r, 1, 3);
        }
        model_add(m, op);
        model_apply(m, &m->ops[m->count - 1]);
    }
    model_add(m, (struct op){.kind = OP_END, .ts = m->applied + 1});
    model_apply(m, &m->ops[m->count - 1]);
    for (size_t i = from; e != NULL && i < m->count; i++) {
        engine_apply_op(e, &m->ops[i]);
    }
}

/* The state after the entry `applied` (the log stays whole). */
static inline struct model model_at(const struct model *m, uint64_t applied)
{
    struct model out;
    model_init(&out);
    out.first_key = m->first_key;
    out.end_key = m->end_key;
    for (size_t i = 0; i < m->count && out.applied < applied; i++) {
        model_add(&out, m->ops[i]);
        model_apply(&out, &m->ops[i]);
    }
    return out;
}

/* Applies the entries behind the engine's index, as a restart does. */
static inline void model_replay(const struct model *m, struct engine *e)
{
    uint64_t index = 1;
    for (size_t i = 0; i < m->count; i++) {
        if (index > engine_applied_flushed(e)) {
            engine_apply_op(e, &m->ops[i]);
        }
        index += m->ops[i].kind == OP_END;
    }
}

/* The operation whose version of key is visible at `at`; NULL: none. */
static inline const struct op *model_version(const struct model *m, unsigned key, uint64_t at)
{
    const struct op *found = NULL;
    for (size_t i = 0; i < m->count; i++) {
        const struct op *op = &m->ops[i];
        if (op->kind <= OP_DELETE && op->key == key && op->ts <= at) {
            found = op; /* versions of a key are in order */
        }
    }
    return found;
}

static inline void check_get(struct engine *e, const struct model *m, unsigned key, uint64_t at)
{
    char text[32];
    struct engine_value got;
    span_status st = engine_get(e, model_key(key, text), tt_ts_of(at), &got);
    if (at < m->horizon) {
        cr_assert_eq(st, SPAN_BELOW_HORIZON);
        return;
    }
    cr_assert_eq(st, SPAN_OK, "get: %s", engine_error(e)->text);
    const struct op *want = model_has_key(m, key) ? model_version(m, key, at) : NULL;
    bool found = want != NULL && want->kind == OP_PUT;
    cr_assert_eq(got.found == ENGINE_FOUND, found, "key %u at %llu: found %d, want ts %llu kind %d",
                 key, (unsigned long long)at, (int)got.found,
                 (unsigned long long)(want == NULL ? 0 : want->ts),
                 want == NULL ? -1 : (int)want->kind);
    if (found) {
        struct buf value = {0};
        model_value(want->value, &value);
        cr_assert_eq(got.ts.ns, want->ts);
        cr_assert(slice_eq(got.value, buf_slice(&value)));
        buf_deinit(&value);
    }
    /* Rule D0: at or above what decided the answer, a tombstone too; never above the timestamp. */
    cr_assert(got.seen.ns <= at);
    cr_assert(want == NULL || got.seen.ns >= want->ts);
    if (at == UINT64_MAX && model_has_key(m, key)) {
        struct tt_ts newest;
        cr_assert_eq(engine_newest_ts(e, model_key(key, text), &newest), SPAN_OK);
        cr_assert(newest.ns == m->newest[key] || (newest.ns == 0 && m->newest[key] <= m->horizon) ||
                      (!found && newest.ns <= m->newest[key]),
                  "newest %llu, want %llu", (unsigned long long)newest.ns,
                  (unsigned long long)m->newest[key]);
    }
}

struct scan_check {
    const struct model *m;
    uint64_t at;
    bool reverse;
    int next;      /* number of the next key to look at */
    uint64_t seen; /* newest version examined by right */
    uint64_t stop_after;
    uint64_t rows;
};

/* Moves to the next visible key; false at the end of the key space. */
static inline const struct op *scan_next(struct scan_check *c, unsigned *key)
{
    while (c->next >= 0 && c->next < MODEL_KEYS) {
        *key = (unsigned)c->next;
        c->next += c->reverse ? -1 : 1;
        const struct op *op = model_has_key(c->m, *key) ? model_version(c->m, *key, c->at) : NULL;
        if (op != NULL) {
            c->seen = op->ts > c->seen ? op->ts : c->seen;
        }
        if (op != NULL && op->kind == OP_PUT) {
            return op;
        }
    }
    return NULL;
}

static inline bool scan_row(void *ctx, struct slice key, struct slice value, struct tt_ts ts)
{
    struct scan_check *c = ctx;
    unsigned i = 0;
    char text[32];
    struct buf want = {0};
    const struct op *op = scan_next(c, &i);
    cr_assert_not_null(op, "a row too many");
    cr_assert(slice_eq(key, model_key(i, text)), "key %u expected at %llu", i,
              (unsigned long long)c->at);
    model_value(op->value, &want);
    cr_assert(slice_eq(value, buf_slice(&want)));
    cr_assert_eq(ts.ns, op->ts);
    buf_deinit(&want);
    c->rows++;
    return c->stop_after == 0 || c->rows < c->stop_after;
}

/* Scans [lo, hi) at `at`, in pieces if there are limits. */
static inline void check_scan(struct engine *e, const struct model *m, struct engine_scan_spec spec,
                              unsigned lo, unsigned hi, uint64_t stop_after)
{
    char lo_text[32];
    char hi_text[32];
    struct scan_check c = {.m = m,
                           .at = spec.at.ns,
                           .reverse = spec.reverse,
                           .next = spec.reverse ? (int)hi - 1 : (int)lo,
                           .stop_after = stop_after};
    spec.start = lo == 0 ? (struct slice){0} : model_key(lo, lo_text);
    spec.end = hi == MODEL_KEYS ? (struct slice){0} : model_key(hi, hi_text);
    uint64_t seen = 0;
    struct engine_scan_result result = {.more = true};
    while (result.more) {
        uint64_t rows = c.rows;
        span_status st = engine_scan(e, &spec, scan_row, &c, &result);
        cr_assert_eq(st, SPAN_OK, "scan: %s", engine_error(e)->text);
        cr_assert_eq(result.rows, c.rows - rows);
        cr_assert(spec.max_rows == 0 || result.rows <= spec.max_rows);
        cr_assert(result.seen.ns <= spec.at.ns);
        seen = result.seen.ns > seen ? result.seen.ns : seen;
        cr_assert(seen >= c.seen);
        *(spec.reverse ? &spec.end : &spec.start) = result.resume;
        c.stop_after = 0;
    }
    unsigned key = 0;
    while (c.next >= (int)lo && c.next < (int)hi) {
        const struct op *op = scan_next(&c, &key);
        cr_assert(op == NULL || key < lo || key >= hi, "key %u is missing at %llu", key,
                  (unsigned long long)spec.at.ns);
    }
}

static inline bool count_meta(void *ctx, struct slice key, struct slice value)
{
    (void)key;
    (void)value;
    ++*(unsigned *)ctx;
    return true;
}

static inline void check_meta(struct engine *e, const struct model *m)
{
    unsigned want[3] = {0};
    for (unsigned i = 0; i < MODEL_META; i++) {
        char text[32];
        struct slice got;
        struct buf value = {0};
        span_status st = engine_meta_get(e, model_meta_key(i, text), &got);
        cr_assert_eq(st, m->meta[i] == 0 ? SPAN_NOT_FOUND : SPAN_OK, "meta %u", i);
        model_value(m->meta[i], &value);
        cr_assert(m->meta[i] == 0 || slice_eq(got, buf_slice(&value)));
        buf_deinit(&value);
        want[i % 2] += m->meta[i] != 0;
        want[2] += m->meta[i] != 0;
    }
    static const char *const prefix[] = {"prepare/", "outcome/", ""};
    for (unsigned i = 0; i < 3; i++) {
        unsigned got = 0;
        cr_assert_eq(engine_meta_scan(e, slice_str(prefix[i]), count_meta, &got), SPAN_OK);
        cr_assert_eq(got, want[i]);
    }
}

/* Everything: all keys at many timestamps, scans both ways, meta. */
static inline void check_all(struct engine *e, const struct model *m, struct rng *r)
{
    cr_assert_eq(engine_applied(e), m->applied);
    cr_assert_eq(engine_horizon(e).ns, m->horizon);
    uint64_t at[5] = {UINT64_MAX, m->horizon, m->max_ts,
                      rng_between(r, m->horizon, m->max_ts > m->horizon ? m->max_ts : m->horizon),
                      rng_between(r, m->horizon, m->max_ts > m->horizon ? m->max_ts : m->horizon)};
    for (unsigned i = 0; i < 5; i++) {
        for (unsigned key = 0; key < MODEL_KEYS; key++) {
            check_get(e, m, key, at[i]);
        }
        check_scan(e, m, (struct engine_scan_spec){.at = tt_ts_of(at[i]), .reverse = i % 2 != 0}, 0,
                   MODEL_KEYS, 0);
        check_scan(e, m, (struct engine_scan_spec){.at = tt_ts_of(at[i]), .reverse = i % 2 == 0}, 0,
                   MODEL_KEYS, 0);
    }
    check_meta(e, m);
}

static inline void check_some(struct engine *e, const struct model *m, struct rng *r)
{
    uint64_t at = rng_below(r, 3) == 0 ? UINT64_MAX : rng_between(r, 0, m->max_ts + 2);
    check_get(e, m, (unsigned)rng_below(r, MODEL_KEYS), at);
    if (rng_below(r, 4) != 0 || at < m->horizon) {
        return;
    }
    unsigned lo = (unsigned)rng_below(r, MODEL_KEYS);
    unsigned hi = (unsigned)rng_between(r, lo, MODEL_KEYS);
    struct engine_scan_spec spec = {.at = tt_ts_of(at),
                                    .reverse = rng_below(r, 2) == 0,
                                    .max_rows = rng_below(r, 3) == 0 ? rng_between(r, 1, 20) : 0,
                                    .max_bytes = rng_below(r, 3) == 0 ? rng_between(r, 1, 500) : 0};
    check_scan(e, m, spec, lo, hi, rng_below(r, 4) == 0 ? rng_between(r, 1, 10) : 0);
}

/* ---- directories and seeds ----------------------------------------------------------------------
 */

static inline char *temp_dir(void)
{
    char *dir = span_strdup("/tmp/engine_test.XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
    return dir;
}

static inline void temp_dir_remove(char *dir)
{
    DIR *d = opendir(dir);
    for (struct dirent *entry = readdir(d); entry != NULL; entry = readdir(d)) {
        char *path = span_asprintf("%s/%s", dir, entry->d_name);
        if (entry->d_name[0] != '.') {
            (void)unlink(path);
        }
        span_free(path);
    }
    (void)closedir(d);
    cr_assert_eq(rmdir(dir), 0);
    span_free(dir);
}

static inline uint64_t test_seed(struct rng *r)
{
    const char *given = getenv("ENGINE_SEED");
    uint64_t seed = given != NULL ? strtoull(given, NULL, 10) : rng_os_u64() % 1000000000;
    printf("seed: ENGINE_SEED=%llu\n", (unsigned long long)seed);
    (void)fflush(stdout);
    rng_init(r, seed);
    return seed;
}

static inline struct engine *must_open(const struct engine_options *opt)
{
    struct engine *e = NULL;
    struct span_error err = {0};
    span_status st = engine_open(opt, &e, &err);
    cr_assert_eq(st, SPAN_OK, "open: %s", err.text);
    return e;
}

static inline void must_flush(struct engine *e)
{
    struct span_error err = {0};
    span_status st = engine_flush_now(e, &err);
    cr_assert_eq(st, SPAN_OK, "flush: %s", err.text);
}

#endif
