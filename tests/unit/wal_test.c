/* The log against a model: what replay gives after any crash is the state after some prefix of the
 * batches submitted, never shorter than what was acknowledged; damage gives that or a refusal that
 * names the file. Most tests run without threads on the disk in memory (tests/lib/wal_memfile.h).
 */
#include "base/alloc.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/map.h"
#include "base/rng.h"
#include "shard/wal/wal.h"
#include "shard/wal/wal_file.h"
#include "tests/lib/wal_memfile.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define STORE   77ULL
#define RANGES  4U
#define INDEXES 600U
#define KINDS   3U

static void quiet(void)
{
    log_set_level(LOG_ERROR + 1);
}

TestSuite(wal, .init = quiet);

/* ---- The model ---- */

/* What a caller knows of the log: range 0 kind 0 holds the number of the last batch. */
struct state {
    uint64_t batch;
    uint64_t entry[RANGES][INDEXES]; /* value, 0: none */
    uint64_t last[RANGES];
    uint64_t sticky[RANGES][KINDS]; /* value, 0: none */
};

enum op_kind { OP_ENTRY, OP_STICKY, OP_TOMBSTONE };

struct op {
    enum op_kind kind;
    uint64_t range; /* 0-based; in the log + 1 */
    uint64_t index; /* or sticky kind */
    uint64_t value;
};

struct batch {
    struct op ops[12];
    size_t count;
};

struct model {
    struct rng rng;
    struct wal_memfs *fs;
    struct wal *w;
    uint64_t now_ns;
    struct batch *batches; /* [i]: batch i + 1 */
    size_t batch_count;
    size_t batch_cap;
    uint64_t acked;        /* batches up to here were completed with OK */
    uint64_t failed;       /* the first that was completed with an error, or 0 */
    struct state live;     /* after all submitted */
    struct state replayed; /* filled by replay */
    uint64_t released[RANGES];
    uint64_t segment_bytes;
    uint64_t payload_max;
    bool bad_payload;
};

static void payload_make(uint64_t value, uint64_t max, struct buf *out)
{
    size_t n = 8 + (size_t)(span_mix64(value) % (max - 7));
    buf_clear(out);
    uint8_t *p = buf_grow(out, n);
    memcpy(p, &value, 8);
    for (size_t i = 8; i < n; i++) {
        p[i] = (uint8_t)(value + i);
    }
}

static void state_apply(struct state *s, const struct op *op)
{
    uint64_t r = op->range;
    switch (op->kind) {
    case OP_ENTRY:
        s->entry[r][op->index] = op->value;
        for (uint64_t i = op->index + 1; i <= s->last[r]; i++) {
            s->entry[r][i] = 0;
        }
        s->last[r] = op->index;
        break;
    case OP_STICKY:
        s->sticky[r][op->index] = op->value;
        break;
    case OP_TOMBSTONE:
        memset(s->entry[r], 0, sizeof s->entry[r]);
        memset(s->sticky[r], 0, sizeof s->sticky[r]);
        s->last[r] = 0;
        break;
    }
}

/* Replay callback: rebuilds a state the way a node would. */
static span_status on_replay(void *ctx, const struct wal_record *rec, struct span_error *err)
{
    struct model *m = ctx;
    (void)err;
    if (rec->range == 0) {
        memcpy(&m->replayed.batch, rec->payload.data, 8);
        return SPAN_OK;
    }
    uint64_t value = 0;
    if (rec->kind != WAL_TOMBSTONE) {
        struct buf want = {0};
        memcpy(&value, rec->payload.data, 8);
        payload_make(value, m->payload_max, &want);
        m->bad_payload = m->bad_payload || !slice_eq(buf_slice(&want), rec->payload);
        buf_deinit(&want);
    }
    struct op op = {OP_TOMBSTONE, rec->range - 1, 0, value};
    if (rec->kind == WAL_ENTRY) {
        op.kind = OP_ENTRY;
        op.index = rec->index;
        m->bad_payload = m->bad_payload || rec->term != value % 1000;
    } else if (rec->kind == WAL_STICKY) {
        op.kind = OP_STICKY;
        op.index = rec->type;
    }
    state_apply(&m->replayed, &op);
    return SPAN_OK;
}

static void on_done(void *ctx, uint64_t cookie, span_status st)
{
    struct model *m = ctx;
    if (st == SPAN_OK) {
        cr_assert_eq(cookie, m->acked + 1, "completions out of order");
        cr_assert_eq(m->failed, 0, "a batch was acknowledged after one that failed");
        m->acked = cookie;
    } else if (m->failed == 0) {
        m->failed = cookie;
    }
}

static uint64_t model_now(void *ctx)
{
    return ((struct model *)ctx)->now_ns;
}

static span_status model_open(struct model *m, struct span_error *err)
{
    struct wal_options opt = {
        .segment_bytes = m->segment_bytes,
        .no_reserve = true,
        .manual = true,
        .fs = wal_memfs_fs(m->fs),
        .now_ns = model_now,
        .now_ctx = m,
    };
    memset(&m->replayed, 0, sizeof m->replayed);
    m->bad_payload = false;
    return wal_open("mem", STORE, &opt, on_replay, m, &m->w, err);
}

static void model_init(struct model *m, uint64_t seed, uint64_t segment_bytes, uint64_t payload_max)
{
    memset(m, 0, sizeof *m);
    rng_init(&m->rng, seed);
    m->fs = wal_memfs_new();
    m->now_ns = SEC_NS;
    m->segment_bytes = segment_bytes;
    m->payload_max = payload_max;
}

static void model_deinit(struct model *m)
{
    span_free(m->batches);
    wal_memfs_free(m->fs);
}

static void state_after(const struct model *m, uint64_t batches, struct state *out)
{
    memset(out, 0, sizeof *out);
    for (uint64_t b = 0; b < batches; b++) {
        for (size_t i = 0; i < m->batches[b].count; i++) {
            state_apply(out, &m->batches[b].ops[i]);
        }
    }
    out->batch = batches;
}

/* The batch never happened: its tombstones did not start the ranges anew. */
static void released_restore(struct model *m, const struct batch *b)
{
    for (size_t i = b->count; i-- > 0;) {
        if (b->ops[i].kind == OP_TOMBSTONE) {
            m->released[b->ops[i].range] = b->ops[i].value;
        }
    }
}

/* The replayed state must be that after some prefix that has all that was acknowledged. Returns a
 * text of what is wrong, or NULL. */
static const char *model_compare(struct model *m)
{
    static __thread char text[200];
    const struct state *got = &m->replayed;
    if (got->batch < m->acked || got->batch > m->batch_count) {
        snprintf(text, sizeof text, "batches 1..%lu are there, acknowledged were %lu of %zu",
                 (unsigned long)got->batch, (unsigned long)m->acked, m->batch_count);
        return text;
    }
    for (size_t b = m->batch_count; b > got->batch; b--) {
        released_restore(m, &m->batches[b - 1]);
    }
    if (m->bad_payload) {
        return "a payload or term is wrong";
    }
    struct state *want = span_calloc(1, sizeof *want);
    const char *bad = NULL;
    state_after(m, got->batch, want);
    for (uint64_t r = 0; r < RANGES && bad == NULL; r++) {
        if (memcmp(got->sticky[r], want->sticky[r], sizeof got->sticky[r]) != 0) {
            snprintf(text, sizeof text, "sticky state of range %lu differs", (unsigned long)r);
            bad = text;
        }
        for (uint64_t i = m->released[r] + 1; i < INDEXES && bad == NULL; i++) {
            if (got->entry[r][i] != want->entry[r][i]) {
                snprintf(text, sizeof text, "entry %lu of range %lu differs: %lx, not %lx",
                         (unsigned long)i, (unsigned long)r, (unsigned long)got->entry[r][i],
                         (unsigned long)want->entry[r][i]);
                bad = text;
            }
        }
    }
    span_free(want);
    return bad;
}

/* After a crash and a replay: what was lost never happened. */
static void model_adopt(struct model *m)
{
    m->batch_count = (size_t)m->replayed.batch;
    m->acked = m->replayed.batch;
    m->failed = 0;
    state_after(m, m->acked, &m->live);
}

static void batch_random(struct model *m, struct batch *b)
{
    b->count = (size_t)rng_between(&m->rng, 1, 4);
    for (size_t i = 0; i < b->count; i++) {
        struct op *op = &b->ops[i];
        uint64_t r = rng_below(&m->rng, RANGES);
        uint64_t dice = rng_below(&m->rng, 100);
        op->range = r;
        op->value = rng_u64(&m->rng) | 1;
        op->kind = OP_ENTRY;
        op->index = m->live.last[r] + 1;
        if (dice < 20) {
            op->kind = OP_STICKY;
            op->index = rng_below(&m->rng, KINDS);
        } else if (dice < 22 || (dice < 80 && op->index >= INDEXES)) {
            op->kind = OP_TOMBSTONE;
            op->value = m->released[r]; /* comes back if the tombstone is lost */
            m->released[r] = 0;
        } else if (dice < 35 && m->live.last[r] > m->released[r]) {
            /* A follower's conflict: replace a tail that was not applied yet. */
            op->index = rng_between(&m->rng, m->released[r] + 1, m->live.last[r]);
        } else if (op->index >= INDEXES) {
            op->kind = OP_STICKY;
            op->index = 0;
        }
        state_apply(&m->live, op);
    }
}

static void batch_encode(const struct model *m, const struct batch *b, uint64_t number,
                         struct wal_batch *out)
{
    struct buf payload = {0};
    for (size_t i = 0; i < b->count; i++) {
        const struct op *op = &b->ops[i];
        payload_make(op->value, m->payload_max, &payload);
        if (op->kind == OP_ENTRY) {
            wal_batch_add_entry(out, op->range + 1, op->index, op->value % 1000,
                                (uint8_t)(op->value >> 8), buf_slice(&payload));
        } else if (op->kind == OP_STICKY) {
            wal_batch_add_sticky(out, op->range + 1, (uint8_t)op->index, buf_slice(&payload));
        } else {
            wal_batch_add_tombstone(out, op->range + 1);
        }
    }
    wal_batch_add_sticky(out, 0, 0, slice_of(&number, 8));
    buf_deinit(&payload);
}

static void model_submit(struct model *m)
{
    if (m->batch_count == m->batch_cap) {
        m->batch_cap = m->batch_cap == 0 ? 64 : m->batch_cap * 2;
        m->batches = span_realloc(m->batches, m->batch_cap * sizeof *m->batches);
    }
    struct batch *b = &m->batches[m->batch_count];
    struct state *before = span_memdup(&m->live, sizeof m->live);
    batch_random(m, b);
    struct wal_batch wb;
    wal_batch_init(&wb);
    batch_encode(m, b, m->batch_count + 1, &wb);
    span_status st = wal_submit(m->w, &wb, on_done, m, m->batch_count + 1);
    wal_batch_deinit(&wb);
    if (st == SPAN_OK) {
        m->batch_count++;
    } else {
        m->live = *before;
        released_restore(m, b);
    }
    span_free(before);
}

/* Flush and checkpoint of a range, as a node would: only what is durable. */
static void model_release(struct model *m)
{
    uint64_t r = rng_below(&m->rng, RANGES);
    struct state *durable = span_calloc(1, sizeof *durable);
    state_after(m, m->acked, durable);
    /* Released only if no batch on its way replaces or deletes below: entries are "applied". */
    if (m->acked == m->batch_count && durable->last[r] > m->released[r]) {
        m->released[r] = rng_between(&m->rng, m->released[r] + 1, durable->last[r]);
        wal_release(m->w, r + 1, m->released[r]);
    }
    span_free(durable);
}

static void model_step(struct model *m)
{
    uint64_t dice = rng_below(&m->rng, 100);
    m->now_ns += rng_below(&m->rng, MS_NS);
    if (dice < 45) {
        model_submit(m);
    } else if (dice < 85) {
        (void)wal_run(m->w);
    } else if (dice < 95) {
        model_release(m);
    } else {
        m->now_ns += 10 * MS_NS;
        (void)wal_run(m->w);
    }
}

static void model_drain(struct model *m)
{
    while (m->acked < m->batch_count && m->failed == 0) {
        cr_assert(wal_run(m->w));
    }
}

/* Lets the empty unit of rule H1 follow. */
static void model_mark(struct model *m)
{
    for (int i = 0; i < 6; i++) {
        m->now_ns += 10 * MS_NS;
        (void)wal_run(m->w);
    }
}

/* ---- Crashes ---- */

/* One life after another on one disk; each ends in a random way. */
static void crashes_run(uint64_t seed, int lives, bool faults)
{
    struct model *m = span_calloc(1, sizeof *m);
    struct span_error err = {0};
    model_init(m, seed, 8192 + 4096 * (seed % 4), 60 + seed % 3 * 400);
    for (int life = 0; life < lives; life++) {
        span_status st = model_open(m, &err);
        cr_assert_eq(st, SPAN_OK, "seed %lu life %d: %s", (unsigned long)seed, life, err.text);
        const char *bad = model_compare(m);
        cr_assert(bad == NULL, "seed %lu life %d: %s", (unsigned long)seed, life, bad);
        model_adopt(m);
        /* A node releases again what it knows to be flushed. */
        for (uint64_t r = 0; r < RANGES; r++) {
            wal_release(m->w, r + 1, m->released[r]);
        }
        uint64_t steps = rng_below(&m->rng, 150);
        uint64_t end = rng_below(&m->rng, 10);
        if (end < 5) {
            wal_memfs_stop_after(m->fs, rng_below(&m->rng, 120));
        }
        if (faults && rng_below(&m->rng, 2) == 0) {
            wal_memfs_fail_syncs(m->fs, rng_below(&m->rng, 40), rng_between(&m->rng, 1, 2));
        }
        for (uint64_t i = 0; i < steps; i++) {
            model_step(m);
        }
        wal_memfs_fail_syncs(m->fs, 0, 0);
        if (end >= 8) {
            (void)wal_close(m->w);
            cr_assert(m->acked == m->batch_count || m->failed != 0);
            wal_memfs_kill(m->fs);
        } else {
            wal_abandon(m->w);
            if (end == 7) {
                wal_memfs_kill(m->fs);
            } else {
                wal_memfs_power_loss(m->fs, &m->rng, 101);
            }
        }
        if (end == 7 || end >= 8) {
            /* What a killed process leaves may be lost in the next power failure, unless replayed.
             */
            st = model_open(m, &err);
            cr_assert_eq(st, SPAN_OK, "seed %lu life %d: %s", (unsigned long)seed, life, err.text);
            bad = model_compare(m);
            cr_assert(bad == NULL, "seed %lu life %d: %s", (unsigned long)seed, life, bad);
            model_adopt(m);
            wal_abandon(m->w);
            wal_memfs_power_loss(m->fs, &m->rng, 101);
        }
    }
    model_deinit(m);
    span_free(m);
}

Test(wal, any_crash_leaves_a_prefix_with_all_that_was_acknowledged)
{
    for (uint64_t seed = 1; seed <= 60; seed++) {
        crashes_run(seed, 12, false);
    }
}

Test(wal, any_crash_with_failing_syncs_leaves_a_prefix_with_all_that_was_acknowledged)
{
    for (uint64_t seed = 1001; seed <= 1060; seed++) {
        crashes_run(seed, 12, true);
    }
}

/* ---- Damage ---- */

/* A busy log of a few segments whose end was marked by an empty unit; not open. */
static void busy_log(struct model *m, uint64_t seed, bool clean)
{
    struct span_error err;
    model_init(m, seed, 8192, 200);
    cr_assert_eq(model_open(m, &err), SPAN_OK);
    for (int i = 0; i < 60; i++) {
        model_submit(m);
        if (i % 3 == 0) {
            model_drain(m);
            model_release(m);
        }
    }
    model_drain(m);
    cr_assert(wal_memfs_count(m->fs) >= 5);
    if (clean) {
        cr_assert_eq(wal_close(m->w), SPAN_OK);
    } else {
        model_mark(m);
        wal_abandon(m->w);
    }
    m->w = NULL;
}

/* Opens a damaged copy: either all that was acknowledged is there, or it is refused and the file
 * (or a neighbour that shows the loss) is named. */
static bool damaged_opens(struct model *m, struct wal_memfs *damaged, const char *file,
                          uint64_t offset)
{
    struct wal_memfs *whole = m->fs;
    struct span_error err = {0};
    m->fs = damaged;
    span_status st = model_open(m, &err);
    m->fs = whole;
    if (st == SPAN_OK) {
        const char *bad = model_compare(m);
        cr_assert(bad == NULL, "%s at %lu: %s", file, (unsigned long)offset, bad);
        wal_abandon(m->w);
    } else {
        enum span_kind kind = span_status_kind(st);
        cr_assert(kind == SPAN_KIND_CORRUPT || kind == SPAN_KIND_CALLER, "%s at %lu: %s: %s", file,
                  (unsigned long)offset, span_status_name(st), err.text);
        cr_assert(strstr(err.text, "mem/") != NULL, "%s", err.text);
    }
    wal_memfs_free(damaged);
    return st == SPAN_OK;
}

static void flip_every_byte(bool clean)
{
    struct model *m = span_calloc(1, sizeof *m);
    busy_log(m, 5, clean);
    uint64_t refused = 0;
    uint64_t opened = 0;
    for (size_t f = 0; f < wal_memfs_count(m->fs); f++) {
        const char *name = wal_memfs_name(m->fs, f);
        uint64_t size = wal_memfs_size(m->fs, name);
        for (uint64_t at = 0; at < size; at++) {
            struct wal_memfs *copy = wal_memfs_clone(m->fs);
            wal_memfs_xor(copy, name, at, (uint8_t)(1 + at % 255));
            bool ok = damaged_opens(m, copy, name, at);
            refused += ok ? 0 : 1;
            opened += ok ? 1 : 0;
        }
    }
    cr_assert(refused > 4000 && opened > 4000, "%lu refused, %lu opened", (unsigned long)refused,
              (unsigned long)opened);
    model_deinit(m);
    span_free(m);
}

Test(wal, every_flipped_byte_gives_all_that_was_acknowledged_or_a_named_refusal, .timeout = 120)
{
    flip_every_byte(false);
}

Test(wal, every_flipped_byte_after_a_clean_stop_too, .timeout = 120)
{
    flip_every_byte(true);
}

Test(wal, every_truncation_gives_all_that_was_acknowledged_or_a_named_refusal, .timeout = 120)
{
    struct model *m = span_calloc(1, sizeof *m);
    busy_log(m, 6, false);
    for (size_t f = 0; f < wal_memfs_count(m->fs); f++) {
        const char *name = wal_memfs_name(m->fs, f);
        for (uint64_t size = 0; size < wal_memfs_size(m->fs, name); size++) {
            struct wal_memfs *copy = wal_memfs_clone(m->fs);
            wal_memfs_truncate(copy, name, size);
            (void)damaged_opens(m, copy, name, size);
        }
    }
    model_deinit(m);
    span_free(m);
}

Test(wal, every_missing_segment_is_refused_by_name)
{
    struct model *m = span_calloc(1, sizeof *m);
    for (int clean = 0; clean < 2; clean++) {
        busy_log(m, 7, clean == 1);
        unsigned segments = 0;
        for (size_t f = 0; f < wal_memfs_count(m->fs); f++) {
            const char *name = wal_memfs_name(m->fs, f);
            if (strncmp(name, "wal-", 4) != 0) {
                continue;
            }
            struct wal_memfs *copy = wal_memfs_clone(m->fs);
            cr_assert(wal_memfs_remove(copy, name));
            struct wal_memfs *whole = m->fs;
            struct span_error err = {0};
            m->fs = copy;
            span_status st = model_open(m, &err);
            m->fs = whole;
            if (st == SPAN_OK) {
                /* Only a file that waits to be used again may go. */
                cr_assert(model_compare(m) == NULL);
                wal_abandon(m->w);
            } else {
                segments++;
                cr_assert_eq(st, SPAN_CORRUPT);
                cr_assert(strstr(err.text, "missing") != NULL || clean, "%s", err.text);
                cr_assert(strstr(err.text, "wal-") != NULL, "%s", err.text);
            }
            wal_memfs_free(copy);
        }
        cr_assert(segments >= 3, "%u", segments);
        model_deinit(m);
    }
    span_free(m);
}

Test(wal, all_segments_missing_is_refused)
{
    struct model *m = span_calloc(1, sizeof *m);
    busy_log(m, 8, false);
    for (size_t f = wal_memfs_count(m->fs); f-- > 0;) {
        const char *name = wal_memfs_name(m->fs, f);
        if (strncmp(name, "wal-", 4) == 0) {
            (void)wal_memfs_remove(m->fs, name);
        }
    }
    wal_memfs_kill(m->fs);
    struct span_error err;
    cr_assert_eq(model_open(m, &err), SPAN_CORRUPT);
    cr_assert(strstr(err.text, "missing") != NULL, "%s", err.text);
    model_deinit(m);
    span_free(m);
}

Test(wal, a_torn_tail_after_a_clean_stop_is_refused)
{
    struct model *m = span_calloc(1, sizeof *m);
    busy_log(m, 9, true);
    /* The last unit of the tip: flip its first byte, which looks like a torn write. */
    struct buf clean = {0};
    cr_assert(wal_memfs_get(m->fs, "clean", &clean));
    uint64_t id;
    uint64_t end;
    memcpy(&id, clean.data + 20, 8);
    memcpy(&end, clean.data + 28, 8);
    buf_deinit(&clean);
    char name[40];
    snprintf(name, sizeof name, "wal-%016lx.seg", (unsigned long)id);
    wal_memfs_xor(m->fs, name, end - 1, 1);
    wal_memfs_kill(m->fs);
    struct span_error err;
    cr_assert_eq(model_open(m, &err), SPAN_CORRUPT);
    cr_assert(strstr(err.text, name) != NULL && strstr(err.text, "offset") != NULL, "%s", err.text);
    cr_assert(strstr(err.text, "clean") != NULL, "%s", err.text);
    model_deinit(m);
    span_free(m);
}

Test(wal, another_stores_log_is_refused)
{
    struct model *m = span_calloc(1, sizeof *m);
    busy_log(m, 10, false);
    wal_memfs_kill(m->fs);
    struct wal_options opt = {.segment_bytes = 8192, .manual = true, .fs = wal_memfs_fs(m->fs)};
    struct span_error err;
    cr_assert_eq(wal_open("mem", STORE + 1, &opt, NULL, NULL, &m->w, &err), SPAN_INVALID);
    cr_assert(strstr(err.text, "store") != NULL, "%s", err.text);
    model_deinit(m);
    span_free(m);
}

Test(wal, what_was_cut_once_never_comes_back)
{
    struct model *m = span_calloc(1, sizeof *m);
    struct span_error err;
    char first[] = "wal-0000000000000001.seg";
    model_init(m, 21, 8192, 100);
    cr_assert_eq(model_open(m, &err), SPAN_OK);
    model_submit(m);
    model_drain(m);
    wal_abandon(m->w);
    wal_memfs_kill(m->fs);
    /* As if power had gone before the sync: of [head][unit] only the unit reached the disk. */
    wal_memfs_xor(m->fs, first, 512 + 20, 1);
    m->acked = 0;
    struct wal_stats stats;
    cr_assert_eq(model_open(m, &err), SPAN_OK, "%s", err.text);
    cr_assert_eq(m->replayed.batch, 0);
    wal_stats_get(m->w, &stats);
    cr_assert(stats.recovered_cut_bytes >= 512);
    /* A head alone is written, of the same size: the old unit must not continue it. */
    model_mark(m);
    wal_abandon(m->w);
    wal_memfs_kill(m->fs);
    cr_assert_eq(model_open(m, &err), SPAN_OK, "%s", err.text);
    cr_assert_eq(m->replayed.batch, 0);
    wal_abandon(m->w);
    model_deinit(m);
    span_free(m);
}

/* Greatest segment name, copied to out. */
static void last_segment(struct wal_memfs *fs, char out[40])
{
    out[0] = '\0';
    for (size_t f = 0; f < wal_memfs_count(fs); f++) {
        const char *name = wal_memfs_name(fs, f);
        if (strncmp(name, "wal-", 4) == 0 && strcmp(name, out) > 0) {
            snprintf(out, 40, "%s", name);
        }
    }
}

Test(wal, a_segment_made_at_the_last_moment_is_missed_too)
{
    struct model *m = span_calloc(1, sizeof *m);
    struct span_error err = {0};
    char full[40];
    char last[40];
    model_init(m, 22, 8192, 300);
    cr_assert_eq(model_open(m, &err), SPAN_OK);
    wal_memfs_set_capacity(m->fs, 3 * 8192);
    for (int i = 0; i < 200 && wal_state_get(m->w) != WAL_STALLED; i++) {
        model_submit(m);
        (void)wal_run(m->w);
    }
    cr_assert_eq(wal_state_get(m->w), WAL_STALLED);
    last_segment(m->fs, full);
    wal_memfs_set_capacity(m->fs, UINT64_MAX);
    m->now_ns += SEC_NS;
    model_drain(m);
    wal_abandon(m->w);
    wal_memfs_kill(m->fs);
    for (last_segment(m->fs, last); strcmp(last, full) > 0; last_segment(m->fs, last)) {
        (void)wal_memfs_remove(m->fs, last);
    }
    cr_assert_eq(model_open(m, &err), SPAN_CORRUPT);
    cr_assert(strstr(err.text, "missing") != NULL, "%s", err.text);
    model_deinit(m);
    span_free(m);
}

/* ---- Failing disks ---- */

Test(wal, a_failed_sync_is_written_again_elsewhere_before_it_is_acknowledged)
{
    struct model *m = span_calloc(1, sizeof *m);
    struct span_error err;
    struct wal_stats stats;
    model_init(m, 11, 16384, 100);
    cr_assert_eq(model_open(m, &err), SPAN_OK);
    for (int i = 0; i < 5; i++) {
        model_submit(m);
        model_drain(m);
    }
    model_mark(m);
    wal_stats_get(m->w, &stats);
    wal_memfs_fail_syncs(m->fs, 0, 1);
    model_submit(m);
    model_drain(m);
    cr_assert_eq(m->failed, 0);
    uint64_t before = stats.rotations;
    wal_stats_get(m->w, &stats);
    cr_assert_eq(stats.sync_failures, 1);
    cr_assert_eq(stats.rotations, before + 1, "written again, but not to a fresh segment");
    /* Power goes at once; the pages of the failed sync were marked clean and are gone. */
    wal_abandon(m->w);
    wal_memfs_power_loss(m->fs, &m->rng, 0);
    cr_assert_eq(model_open(m, &err), SPAN_OK, "%s", err.text);
    const char *bad = model_compare(m);
    cr_assert(bad == NULL, "%s", bad);
    cr_assert_eq(m->replayed.batch, 6);
    wal_abandon(m->w);
    model_deinit(m);
    span_free(m);
}

Test(wal, two_failed_syncs_acknowledge_nothing_and_kill_the_log)
{
    struct model *m = span_calloc(1, sizeof *m);
    struct span_error err;
    model_init(m, 12, 16384, 100);
    cr_assert_eq(model_open(m, &err), SPAN_OK);
    model_submit(m);
    model_drain(m);
    model_mark(m);
    wal_memfs_fail_syncs(m->fs, 0, 100);
    model_submit(m);
    model_submit(m);
    model_drain(m);
    cr_assert_eq(m->acked, 1);
    cr_assert_eq(m->failed, 2);
    cr_assert_eq(wal_state_get(m->w), WAL_DEAD);
    wal_memfs_fail_syncs(m->fs, 0, 0);
    struct wal_batch b;
    wal_batch_init(&b);
    wal_batch_add_tombstone(&b, 3);
    cr_assert_eq(wal_submit(m->w, &b, on_done, m, 4), SPAN_IO);
    wal_batch_deinit(&b);
    cr_assert_not(wal_has_room(m->w));
    cr_assert_eq(wal_close(m->w), SPAN_IO);
    wal_memfs_power_loss(m->fs, &m->rng, 50);
    cr_assert_eq(model_open(m, &err), SPAN_OK, "%s", err.text);
    cr_assert(model_compare(m) == NULL);
    wal_abandon(m->w);
    model_deinit(m);
    span_free(m);
}

Test(wal, a_full_disk_stalls_without_loss_and_goes_on_when_there_is_room)
{
    struct model *m = span_calloc(1, sizeof *m);
    struct span_error err;
    model_init(m, 13, 8192, 300);
    cr_assert_eq(model_open(m, &err), SPAN_OK);
    wal_memfs_set_capacity(m->fs, 4 * 8192);
    for (int i = 0; i < 200 && wal_state_get(m->w) != WAL_STALLED; i++) {
        model_submit(m);
        (void)wal_run(m->w);
    }
    cr_assert_eq(wal_state_get(m->w), WAL_STALLED);
    cr_assert_not(wal_has_room(m->w));
    uint64_t stuck = m->acked;
    cr_assert(stuck < m->batch_count && m->failed == 0);
    m->now_ns += 300 * MS_NS;
    cr_assert(wal_run(m->w));
    cr_assert_eq(m->acked, stuck);
    cr_assert(wal_oldest_unsynced_ns(m->w) >= 300 * MS_NS);
    wal_memfs_set_capacity(m->fs, UINT64_MAX);
    m->now_ns += 300 * MS_NS;
    model_drain(m);
    cr_assert_eq(m->acked, m->batch_count);
    cr_assert_eq(wal_state_get(m->w), WAL_RUNNING);
    wal_abandon(m->w);
    wal_memfs_power_loss(m->fs, &m->rng, 0);
    cr_assert_eq(model_open(m, &err), SPAN_OK, "%s", err.text);
    cr_assert(model_compare(m) == NULL);
    wal_abandon(m->w);
    model_deinit(m);
    span_free(m);
}

Test(wal, a_full_disk_goes_on_by_itself_when_segments_are_released)
{
    struct model *m = span_calloc(1, sizeof *m);
    struct span_error err;
    model_init(m, 14, 8192, 300);
    cr_assert_eq(model_open(m, &err), SPAN_OK);
    wal_memfs_set_capacity(m->fs, 5 * 8192);
    for (int i = 0; i < 200 && wal_state_get(m->w) != WAL_STALLED; i++) {
        model_submit(m);
        (void)wal_run(m->w);
    }
    cr_assert_eq(wal_state_get(m->w), WAL_STALLED);
    struct wal_pin pins[RANGES];
    size_t n = wal_oldest_pinned(m->w, pins, RANGES);
    cr_assert(n > 0);
    for (size_t i = 0; i < n; i++) {
        m->released[pins[i].range - 1] = pins[i].index;
        wal_release(m->w, pins[i].range, pins[i].index);
    }
    m->now_ns += 300 * MS_NS;
    model_drain(m);
    cr_assert_eq(m->acked, m->batch_count);
    cr_assert_eq(m->failed, 0);
    wal_abandon(m->w);
    wal_memfs_power_loss(m->fs, &m->rng, 0);
    cr_assert_eq(model_open(m, &err), SPAN_OK, "%s", err.text);
    wal_abandon(m->w);
    model_deinit(m);
    span_free(m);
}

static void on_state(void *ctx, enum wal_state state, const char *text)
{
    cr_assert(text != NULL);
    ((unsigned *)ctx)[state]++;
}

Test(wal, the_reserve_is_used_when_the_disk_is_full_and_made_again)
{
    struct model *m = span_calloc(1, sizeof *m);
    struct span_error err;
    unsigned seen[4] = {0};
    model_init(m, 15, 8192, 300);
    struct wal_options opt = {
        .segment_bytes = 8192,
        .manual = true,
        .fs = wal_memfs_fs(m->fs),
        .now_ns = model_now,
        .now_ctx = m,
        .on_state = on_state,
        .state_ctx = seen,
    };
    cr_assert_eq(wal_open("mem", STORE, &opt, on_replay, m, &m->w, &err), SPAN_OK);
    cr_assert_eq(wal_memfs_size(m->fs, "reserve"), 8192);
    wal_memfs_set_capacity(m->fs, 3 * 8192 + 200);
    for (int i = 0; i < 100 && wal_state_get(m->w) == WAL_RUNNING; i++) {
        model_submit(m);
        model_drain(m);
    }
    cr_assert_eq(wal_state_get(m->w), WAL_LOW_SPACE);
    cr_assert_eq(wal_memfs_size(m->fs, "reserve"), 0);
    model_submit(m);
    model_drain(m);
    cr_assert_eq(m->acked, m->batch_count);
    wal_memfs_set_capacity(m->fs, UINT64_MAX);
    m->now_ns += 10 * SEC_NS;
    (void)wal_run(m->w);
    cr_assert_eq(wal_state_get(m->w), WAL_RUNNING);
    cr_assert_eq(wal_memfs_size(m->fs, "reserve"), 8192);
    cr_assert(seen[WAL_LOW_SPACE] == 1 && seen[WAL_RUNNING] == 1 && seen[WAL_STALLED] == 0);
    cr_assert_eq(wal_close(m->w), SPAN_OK);
    model_deinit(m);
    span_free(m);
}

/* ---- Space ---- */

struct sticky_log {
    uint64_t entries;
    uint64_t min_index;
    uint64_t votes;
    uint64_t last_vote;
};

static span_status sticky_replay(void *ctx, const struct wal_record *r, struct span_error *err)
{
    struct sticky_log *s = ctx;
    (void)err;
    if (r->kind == WAL_ENTRY) {
        s->entries++;
        s->min_index = s->min_index == 0 || r->index < s->min_index ? r->index : s->min_index;
    } else if (r->kind == WAL_STICKY && r->range == 7) {
        s->votes++;
        memcpy(&s->last_vote, r->payload.data, 8);
    }
    return SPAN_OK;
}

static void count_done(void *ctx, uint64_t cookie, span_status st)
{
    (void)cookie;
    cr_assert_eq(st, SPAN_OK);
    ++*(unsigned *)ctx;
}

Test(wal, an_idle_ranges_vote_survives_recycling_and_stale_records_do_not)
{
    struct wal_memfs *fs = wal_memfs_new();
    struct wal_options opt = {
        .segment_bytes = 8192, .no_reserve = true, .manual = true, .fs = wal_memfs_fs(fs)};
    struct wal *w;
    struct span_error err;
    unsigned done = 0;
    cr_assert_eq(wal_open("mem", STORE, &opt, NULL, NULL, &w, &err), SPAN_OK);
    struct wal_batch b;
    wal_batch_init(&b);
    uint64_t vote = 9;
    wal_batch_add_sticky(&b, 7, 1, slice_of(&vote, 8));
    cr_assert_eq(wal_submit(w, &b, count_done, &done, 0), SPAN_OK);
    uint8_t payload[300] = {1};
    for (uint64_t i = 1; i <= 400; i++) {
        wal_batch_add_entry(&b, 3, i, 1, 0, slice_of(payload, sizeof payload));
        cr_assert_eq(wal_submit(w, &b, count_done, &done, 0), SPAN_OK);
        cr_assert(wal_run(w));
        wal_release(w, 3, i - 1);
    }
    struct wal_stats stats;
    wal_stats_get(w, &stats);
    cr_assert(stats.recycled > 10 && stats.created <= 4, "%lu recycled, %lu created",
              (unsigned long)stats.recycled, (unsigned long)stats.created);
    cr_assert(stats.segments_live <= 2);
    cr_assert(wal_memfs_count(fs) <= 7);
    struct buf got = {0};
    cr_assert(wal_sticky_get(w, 7, 1, &got));
    cr_assert_eq(got.size, 8);
    cr_assert_not(wal_sticky_get(w, 7, 2, &got));
    buf_deinit(&got);
    wal_abandon(w);
    wal_memfs_kill(fs);
    struct sticky_log s = {0};
    cr_assert_eq(wal_open("mem", STORE, &opt, sticky_replay, &s, &w, &err), SPAN_OK, "%s",
                 err.text);
    cr_assert(s.votes == 1 && s.last_vote == 9);
    cr_assert(s.entries > 0 && s.entries < 40 && s.min_index > 360);
    cr_assert_eq(wal_close(w), SPAN_OK);
    wal_batch_deinit(&b);
    wal_memfs_free(fs);
}

Test(wal, the_range_that_keeps_the_oldest_segment_is_named)
{
    struct wal_memfs *fs = wal_memfs_new();
    struct wal_options opt = {
        .segment_bytes = 8192, .no_reserve = true, .manual = true, .fs = wal_memfs_fs(fs)};
    struct wal *w;
    struct wal_pin pin;
    unsigned done = 0;
    cr_assert_eq(wal_open("mem", STORE, &opt, NULL, NULL, &w, NULL), SPAN_OK);
    struct wal_batch b;
    wal_batch_init(&b);
    uint8_t payload[300] = {1};
    wal_batch_add_entry(&b, 5, 1, 1, 0, slice_of(payload, 10));
    wal_batch_add_entry(&b, 5, 2, 1, 0, slice_of(payload, 10));
    cr_assert_eq(wal_submit(w, &b, count_done, &done, 0), SPAN_OK);
    cr_assert(wal_run(w));
    cr_assert_eq(wal_oldest_pinned(w, &pin, 1), 0, "the only segment cannot be freed");
    for (uint64_t i = 1; i <= 60; i++) {
        wal_batch_add_entry(&b, 3, i, 1, 0, slice_of(payload, sizeof payload));
        cr_assert_eq(wal_submit(w, &b, count_done, &done, 0), SPAN_OK);
        cr_assert(wal_run(w));
        wal_release(w, 3, i);
    }
    cr_assert_eq(wal_oldest_pinned(w, &pin, 1), 1);
    cr_assert(pin.range == 5 && pin.index == 2);
    struct wal_stats stats;
    wal_stats_get(w, &stats);
    cr_assert(stats.segments_live >= 4);
    /* Replacing the entries in a newer segment unpins the old one up to there, releasing the rest.
     */
    wal_batch_add_entry(&b, 5, 2, 2, 0, slice_of(payload, 10));
    cr_assert_eq(wal_submit(w, &b, count_done, &done, 0), SPAN_OK);
    cr_assert(wal_run(w));
    cr_assert_eq(wal_oldest_pinned(w, &pin, 1), 1);
    cr_assert(pin.range == 5 && pin.index == 1);
    wal_release(w, 5, 1);
    cr_assert_eq(wal_oldest_pinned(w, &pin, 1), 0);
    wal_batch_add_entry(&b, 3, 61, 1, 0, slice_of(payload, 10));
    cr_assert_eq(wal_submit(w, &b, count_done, &done, 0), SPAN_OK);
    cr_assert(wal_run(w));
    wal_stats_get(w, &stats);
    cr_assert_eq(stats.segments_live, 1);
    cr_assert_eq(wal_close(w), SPAN_OK);
    wal_batch_deinit(&b);
    wal_memfs_free(fs);
}

Test(wal, a_tombstone_takes_everything_of_its_range)
{
    struct wal_memfs *fs = wal_memfs_new();
    struct wal_options opt = {
        .segment_bytes = 8192, .no_reserve = true, .manual = true, .fs = wal_memfs_fs(fs)};
    struct wal *w;
    struct wal_pin pin;
    unsigned done = 0;
    cr_assert_eq(wal_open("mem", STORE, &opt, NULL, NULL, &w, NULL), SPAN_OK);
    struct wal_batch b;
    wal_batch_init(&b);
    uint8_t payload[300] = {1};
    uint64_t vote = 3;
    wal_batch_add_sticky(&b, 7, 1, slice_of(&vote, 8));
    wal_batch_add_entry(&b, 7, 1, 1, 0, slice_of(payload, 10));
    for (uint64_t i = 1; i <= 60; i++) {
        wal_batch_add_entry(&b, 3, i, 1, 0, slice_of(payload, sizeof payload));
        cr_assert_eq(wal_submit(w, &b, count_done, &done, 0), SPAN_OK);
        cr_assert(wal_run(w));
        wal_release(w, 3, i);
    }
    cr_assert_eq(wal_oldest_pinned(w, &pin, 1), 1);
    wal_batch_add_tombstone(&b, 7);
    cr_assert_eq(wal_submit(w, &b, count_done, &done, 0), SPAN_OK);
    cr_assert(wal_run(w));
    cr_assert_eq(wal_oldest_pinned(w, &pin, 1), 0);
    struct buf got = {0};
    cr_assert_not(wal_sticky_get(w, 7, 1, &got));
    for (uint64_t i = 61; i <= 100; i++) {
        wal_batch_add_entry(&b, 3, i, 1, 0, slice_of(payload, sizeof payload));
        cr_assert_eq(wal_submit(w, &b, count_done, &done, 0), SPAN_OK);
        cr_assert(wal_run(w));
        wal_release(w, 3, i);
    }
    cr_assert_eq(wal_close(w), SPAN_OK);
    wal_memfs_kill(fs);
    struct sticky_log s = {0};
    cr_assert_eq(wal_open("mem", STORE, &opt, sticky_replay, &s, &w, NULL), SPAN_OK);
    cr_assert_eq(s.votes, 0);
    cr_assert_eq(wal_close(w), SPAN_OK);
    wal_batch_deinit(&b);
    wal_memfs_free(fs);
}

/* ---- Queue and limits ---- */

Test(wal, batches_over_a_limit_are_refused_whole)
{
    struct wal_memfs *fs = wal_memfs_new();
    struct wal_options opt = {.segment_bytes = 8192,
                              .queue_bytes_max = 4096,
                              .no_reserve = true,
                              .manual = true,
                              .fs = wal_memfs_fs(fs)};
    struct wal *w;
    unsigned done = 0;
    cr_assert_eq(wal_open("mem", STORE, &opt, NULL, NULL, &w, NULL), SPAN_OK);
    struct wal_batch b;
    wal_batch_init(&b);
    static uint8_t payload[LIMIT_ENTRY_BYTES + 1];
    wal_batch_add_entry(&b, 1, 1, 1, 0, slice_of(payload, wal_batch_bytes_max(w)));
    cr_assert_eq(wal_submit(w, &b, count_done, &done, 0), SPAN_TOO_LARGE);
    wal_batch_clear(&b);
    wal_batch_add_entry(&b, 1, 1, 1, 0, slice_of(payload, sizeof payload));
    cr_assert_eq(wal_submit(w, &b, count_done, &done, 0), SPAN_TOO_LARGE);
    wal_batch_clear(&b);
    cr_assert(wal_batch_is_empty(&b));
    wal_batch_add_entry(&b, 1, 1, 1, 0, slice_of(payload, wal_batch_bytes_max(w) - 32));
    cr_assert_eq(wal_submit(w, &b, count_done, &done, 0), SPAN_OK);
    cr_assert(wal_batch_is_empty(&b));
    span_status st = SPAN_OK;
    uint64_t i = 2;
    for (; st == SPAN_OK && i < 100; i++) {
        wal_batch_clear(&b);
        wal_batch_add_entry(&b, 1, i, 1, 0, slice_of(payload, 500));
        st = wal_submit(w, &b, count_done, &done, 0);
    }
    cr_assert_eq(st, SPAN_OVERLOADED);
    cr_assert_not(wal_has_room(w));
    while (wal_run(w)) {
    }
    cr_assert_eq(done, i - 2);
    cr_assert(wal_has_room(w));
    cr_assert_eq(wal_queued_bytes(w), 0);
    cr_assert_eq(wal_close(w), SPAN_OK);
    wal_batch_deinit(&b);
    wal_memfs_free(fs);
}

Test(wal, sticky_state_that_would_not_fit_a_segment_is_refused)
{
    struct wal_memfs *fs = wal_memfs_new();
    struct wal_options opt = {
        .segment_bytes = 8192, .no_reserve = true, .manual = true, .fs = wal_memfs_fs(fs)};
    struct wal *w;
    unsigned done = 0;
    cr_assert_eq(wal_open("mem", STORE, &opt, NULL, NULL, &w, NULL), SPAN_OK);
    struct wal_batch b;
    wal_batch_init(&b);
    uint8_t payload[1000] = {0};
    span_status st = SPAN_OK;
    uint64_t range = 0;
    while (st == SPAN_OK && range < 20) {
        wal_batch_clear(&b);
        wal_batch_add_sticky(&b, ++range, 1, slice_of(payload, sizeof payload));
        st = wal_submit(w, &b, count_done, &done, 0);
        (void)wal_run(w);
    }
    cr_assert_eq(st, SPAN_TOO_LARGE);
    cr_assert_eq(range, 3);
    /* Entries still go, and so do many turns of the segments. */
    for (uint64_t i = 1; i < 50; i++) {
        wal_batch_clear(&b);
        wal_batch_add_entry(&b, 1, i, 1, 0, slice_of(payload, sizeof payload));
        cr_assert_eq(wal_submit(w, &b, count_done, &done, 0), SPAN_OK);
        (void)wal_run(w);
        wal_release(w, 1, i);
    }
    cr_assert_eq(done, 51);
    cr_assert_eq(wal_close(w), SPAN_OK);
    wal_batch_deinit(&b);
    wal_memfs_free(fs);
}

Test(wal, one_empty_unit_follows_when_nothing_else_comes)
{
    struct model *m = span_calloc(1, sizeof *m);
    struct span_error err;
    struct wal_stats a;
    struct wal_stats b;
    model_init(m, 16, 65536, 100);
    cr_assert_eq(model_open(m, &err), SPAN_OK);
    model_mark(m);
    cr_assert_eq(wal_next_run_ns(m->w), UINT64_MAX);
    model_submit(m);
    cr_assert_eq(wal_next_run_ns(m->w), 0);
    model_drain(m);
    wal_stats_get(m->w, &a);
    uint64_t due = wal_next_run_ns(m->w);
    cr_assert(due > m->now_ns && due <= m->now_ns + 10 * MS_NS);
    cr_assert_not(wal_run(m->w));
    m->now_ns = due;
    cr_assert(wal_run(m->w));
    wal_stats_get(m->w, &b);
    cr_assert_eq(b.empty_units, a.empty_units + 1);
    cr_assert_eq(wal_next_run_ns(m->w), UINT64_MAX);
    model_submit(m);
    model_drain(m);
    model_submit(m);
    model_drain(m);
    wal_stats_get(m->w, &a);
    cr_assert_eq(a.empty_units, b.empty_units, "a unit that follows says it as well");
    wal_abandon(m->w);
    model_deinit(m);
    span_free(m);
}

/* ---- Real files and threads ---- */

struct tmp {
    char path[64];
};

static void tmp_make(struct tmp *t)
{
    strcpy(t->path, "/tmp/wal_test.XXXXXX");
    cr_assert(mkdtemp(t->path) != NULL);
}

static void tmp_remove(const struct tmp *t)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", t->path);
    cr_assert_eq(system(command), 0);
}

struct submitter {
    struct wal *w;
    uint64_t range;
    uint64_t count;
    pthread_mutex_t mu;
    pthread_cond_t cond;
    uint64_t done;
};

static void submitter_done(void *ctx, uint64_t cookie, span_status st)
{
    struct submitter *s = ctx;
    cr_assert_eq(st, SPAN_OK);
    pthread_mutex_lock(&s->mu);
    cr_assert_eq(cookie, s->done + 1);
    s->done = cookie;
    pthread_cond_signal(&s->cond);
    pthread_mutex_unlock(&s->mu);
}

static void *submitter_main(void *arg)
{
    struct submitter *s = arg;
    struct wal_batch b;
    wal_batch_init(&b);
    for (uint64_t i = 1; i <= s->count; i++) {
        uint64_t payload[20] = {s->range, i};
        wal_batch_add_entry(&b, s->range, i, 1, 0, slice_of(payload, sizeof payload));
        cr_assert_eq(wal_submit(s->w, &b, submitter_done, s, i), SPAN_OK);
        pthread_mutex_lock(&s->mu);
        while (s->done + 16 < i) {
            pthread_cond_wait(&s->cond, &s->mu);
        }
        pthread_mutex_unlock(&s->mu);
        if (i % 100 == 0) {
            wal_release(s->w, s->range, i - 50);
        }
    }
    pthread_mutex_lock(&s->mu);
    while (s->done < s->count) {
        pthread_cond_wait(&s->cond, &s->mu);
    }
    pthread_mutex_unlock(&s->mu);
    wal_batch_deinit(&b);
    return NULL;
}

struct last_indexes {
    uint64_t last[8];
};

static span_status last_replay(void *ctx, const struct wal_record *r, struct span_error *err)
{
    struct last_indexes *l = ctx;
    (void)err;
    if (r->kind == WAL_ENTRY) {
        uint64_t payload[2];
        memcpy(payload, r->payload.data, sizeof payload);
        cr_assert(payload[0] == r->range && payload[1] == r->index);
        cr_assert(l->last[r->range] == 0 || r->index == l->last[r->range] + 1);
        l->last[r->range] = r->index;
    }
    return SPAN_OK;
}

Test(wal, several_threads_share_syncs_and_everything_is_there_after_a_kill)
{
    struct tmp t;
    tmp_make(&t);
    struct wal_options opt = {.segment_bytes = 65536, .no_reserve = true};
    struct wal *w;
    struct span_error err;
    cr_assert_eq(wal_open(t.path, STORE, &opt, NULL, NULL, &w, &err), SPAN_OK, "%s", err.text);
    struct submitter s[4];
    pthread_t threads[4];
    for (uint64_t i = 0; i < 4; i++) {
        s[i] = (struct submitter){.w = w, .range = i + 1, .count = 1500};
        pthread_mutex_init(&s[i].mu, NULL);
        pthread_cond_init(&s[i].cond, NULL);
        cr_assert_eq(pthread_create(&threads[i], NULL, submitter_main, &s[i]), 0);
    }
    for (size_t i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    struct wal_stats stats;
    wal_stats_get(w, &stats);
    cr_assert_eq(stats.batches, 6000);
    cr_assert(stats.syncs < 4000, "%lu syncs", (unsigned long)stats.syncs);
    cr_assert(stats.recycled > 0);
    wal_abandon(w);
    struct last_indexes l = {0};
    cr_assert_eq(wal_open(t.path, STORE, &opt, last_replay, &l, &w, &err), SPAN_OK, "%s", err.text);
    for (size_t i = 1; i <= 4; i++) {
        cr_assert_eq(l.last[i], 1500);
    }
    cr_assert_eq(wal_close(w), SPAN_OK);
    l = (struct last_indexes){0};
    cr_assert_eq(wal_open(t.path, STORE, &opt, last_replay, &l, &w, &err), SPAN_OK, "%s", err.text);
    cr_assert_eq(l.last[4], 1500);
    cr_assert_eq(wal_close(w), SPAN_OK);
    tmp_remove(&t);
}

Test(wal, a_second_owner_and_an_unusable_directory_get_a_clear_error)
{
    struct tmp t;
    tmp_make(&t);
    struct wal_options opt = {.segment_bytes = 8192, .no_reserve = true};
    struct wal *w;
    struct wal *other;
    struct span_error err;
    char path[128];
    snprintf(path, sizeof path, "%s/wal", t.path);
    cr_assert_eq(wal_open(path, STORE, &opt, NULL, NULL, &w, &err), SPAN_OK, "%s", err.text);
    cr_assert_eq(wal_open(path, STORE, &opt, NULL, NULL, &other, &err), SPAN_UNAVAILABLE);
    cr_assert(strstr(err.text, path) != NULL && strstr(err.text, "another process") != NULL);
    cr_assert_eq(wal_close(w), SPAN_OK);
    snprintf(path, sizeof path, "%s/a/b", t.path);
    cr_assert_eq(wal_open(path, STORE, &opt, NULL, NULL, &w, &err), SPAN_NOT_FOUND);
    cr_assert(strstr(err.text, path) != NULL);
    opt.segment_bytes = 5000;
    cr_assert_eq(wal_open(t.path, STORE, &opt, NULL, NULL, &w, &err), SPAN_INVALID);
    tmp_remove(&t);
}

Test(wal, garbage_in_place_of_a_segment_is_refused_by_name)
{
    struct tmp t;
    tmp_make(&t);
    struct wal_options opt = {.segment_bytes = 8192, .no_reserve = true};
    struct wal *w;
    struct span_error err;
    cr_assert_eq(wal_open(t.path, STORE, &opt, NULL, NULL, &w, &err), SPAN_OK, "%s", err.text);
    cr_assert_eq(wal_close(w), SPAN_OK);
    char path[128];
    snprintf(path, sizeof path, "%s/wal-0000000000000001.seg", t.path);
    int fd = open(path, O_WRONLY);
    cr_assert(fd >= 0);
    cr_assert_eq(pwrite(fd, "not a log", 9, 0), 9);
    close(fd);
    cr_assert_eq(wal_open(t.path, STORE, &opt, NULL, NULL, &w, &err), SPAN_CORRUPT);
    cr_assert(strstr(err.text, path) != NULL && strstr(err.text, "magic") != NULL, "%s", err.text);
    tmp_remove(&t);
}

Test(wal, faults_can_be_set_while_running)
{
    struct tmp t;
    tmp_make(&t);
    struct wal_faults faults = {0};
    struct wal_options opt = {.segment_bytes = 65536, .no_reserve = true, .faults = &faults};
    struct wal *w;
    struct span_error err;
    cr_assert_eq(wal_open(t.path, STORE, &opt, NULL, NULL, &w, &err), SPAN_OK, "%s", err.text);
    struct submitter s = {.w = w, .range = 1, .count = 5};
    pthread_mutex_init(&s.mu, NULL);
    pthread_cond_init(&s.cond, NULL);
    atomic_store(&faults.sync_delay_ms, 20);
    submitter_main(&s);
    struct wal_stats stats;
    wal_stats_get(w, &stats);
    cr_assert(stats.sync_ns_max >= 20 * MS_NS);
    atomic_store(&faults.sync_delay_ms, 0);
    /* One failing sync is survived. */
    atomic_store(&faults.fail_syncs, 1);
    s.count = 10;
    s.done = 0;
    s.range = 2;
    submitter_main(&s);
    cr_assert_eq(s.done, 10);
    cr_assert_eq(wal_state_get(w), WAL_RUNNING);
    cr_assert_eq(wal_close(w), SPAN_OK);
    tmp_remove(&t);
}
