/* Outcome table against a naive model: additions, duplicates, growth, sealing, loading, expiry. */
#include "base/alloc.h"
#include "base/limits.h"
#include "base/rng.h"
#include "shard/range/outcome_table.h"

#include <criterion/criterion.h>
#include <stdio.h>

static struct txn_id id_of(uint64_t begin, uint32_t node, uint32_t seq)
{
    return (struct txn_id){begin, node, seq};
}

Test(outcome_table, a_duplicate_is_fine_and_a_contradiction_is_not)
{
    struct outcome_table *t = outcome_table_new();
    struct txn_id a = id_of(5, 1, 9);
    struct txn_id b = id_of(5, 2, 9);
    cr_assert_null(outcome_table_get(t, &a));
    cr_assert_eq(outcome_table_add(t, &a, tt_ts_of(7)), SPAN_OK);
    cr_assert_eq(outcome_table_add(t, &b, tt_ts_of(0)), SPAN_OK);
    cr_assert_eq(outcome_table_add(t, &a, tt_ts_of(7)), SPAN_OK);
    cr_assert_eq(outcome_table_add(t, &a, tt_ts_of(8)), SPAN_EXISTS);
    cr_assert_eq(outcome_table_add(t, &a, tt_ts_of(0)), SPAN_EXISTS);
    cr_assert_eq(outcome_table_add(t, &b, tt_ts_of(1)), SPAN_EXISTS);
    cr_assert_eq(outcome_table_get(t, &a)->ts.ns, 7);
    cr_assert(tt_is_none(outcome_table_get(t, &b)->ts));
    cr_assert_eq(outcome_table_count(t), 2);
    outcome_table_free(t);
}

Test(outcome_table, a_sealed_block_is_bounded_and_all_of_them_hold_everything)
{
    struct outcome_table *t = outcome_table_new();
    struct outcome_table *copy = outcome_table_new();
    struct buf b = {0};
    const uint32_t n = 2 * OUTCOME_BLOCK_MAX + 77;
    for (uint32_t i = 1; i <= n; i++) {
        struct txn_id id = id_of(1000 + i, 1, i);
        cr_assert_eq(outcome_table_add(t, &id, tt_ts_of(i % 3 == 0 ? 0 : 5000 + i)), SPAN_OK);
    }
    uint64_t number;
    uint64_t blocks = 0;
    while ((number = outcome_table_seal(t, &b)) != 0) {
        cr_assert_eq(number, ++blocks);
        cr_assert_leq(b.size, LIMIT_ENTRY_BYTES / 2);
        cr_assert_eq(outcome_table_load(copy, number, buf_slice(&b)), SPAN_OK);
        buf_clear(&b);
    }
    cr_assert_eq(blocks, 3);
    cr_assert_eq(outcome_table_count(copy), n);
    for (uint32_t i = 1; i <= n; i++) {
        struct txn_id id = id_of(1000 + i, 1, i);
        cr_assert_eq(outcome_table_get(copy, &id)->ts.ns, i % 3 == 0 ? 0 : 5000 + i);
    }
    buf_deinit(&b);
    outcome_table_free(t);
    outcome_table_free(copy);
}

Test(outcome_table, malformed_blocks_are_refused)
{
    struct outcome_table *t = outcome_table_new();
    struct buf b = {0};
    for (uint32_t i = 1; i <= 20; i++) {
        struct txn_id id = id_of(i, 1, i);
        cr_assert_eq(outcome_table_add(t, &id, tt_ts_of(i)), SPAN_OK);
    }
    cr_assert_eq(outcome_table_seal(t, &b), 1);
    outcome_table_free(t);
    for (size_t cut = 0; cut < b.size; cut++) {
        t = outcome_table_new();
        uint8_t *exact = span_malloc(cut + 1); /* so that ASan sees a read past the end */
        memcpy(exact, b.data, cut);
        cr_assert_eq(outcome_table_load(t, 1, slice_of(exact, cut)), SPAN_PROTOCOL, "cut %zu", cut);
        span_free(exact);
        outcome_table_free(t);
    }
    struct buf bad = {0};
    buf_set(&bad, buf_slice(&b));
    bad.data[0] = 2; /* version */
    t = outcome_table_new();
    cr_assert_eq(outcome_table_load(t, 1, buf_slice(&bad)), SPAN_PROTOCOL);
    cr_assert_eq(outcome_table_load(t, 0, buf_slice(&b)), SPAN_PROTOCOL, "0 is no number");
    bad.data[0] = 1;
    buf_append_byte(&bad, 0);
    cr_assert_eq(outcome_table_load(t, 1, buf_slice(&bad)), SPAN_PROTOCOL, "bytes behind it");
    outcome_table_free(t);
    buf_deinit(&bad);
    buf_deinit(&b);
}

/* ---- against a model ---- */

#define IDS 3000

struct mblock {
    uint64_t number;
    struct buf bytes;
};

struct model {
    struct txn_id ids[IDS];
    struct tt_ts ts[IDS];
    uint64_t block[IDS]; /* 0: not sealed */
    bool have[IDS];
    size_t count;
    struct mblock rows[IDS]; /* as an engine would hold them */
    size_t row_count;
    struct outcome_table *t;
};

static void gone(void *ctx, uint64_t number)
{
    struct model *m = ctx;
    for (size_t i = 0; i < m->row_count; i++) {
        if (m->rows[i].number == number) {
            buf_deinit(&m->rows[i].bytes);
            m->rows[i] = m->rows[--m->row_count];
            return;
        }
    }
    cr_assert_fail("a block that was never sealed is gone");
}

static void model_expire(struct model *m, uint64_t w)
{
    for (size_t i = 0; i < IDS; i++) {
        bool stays = !m->have[i] || m->block[i] == 0;
        for (size_t k = 0; k < IDS && !stays; k++) {
            stays = m->have[k] && m->block[k] == m->block[i] && m->ids[k].begin_ns >= w;
        }
        if (!stays) { /* all of its block */
            uint64_t block = m->block[i];
            for (size_t k = 0; k < IDS; k++) {
                if (m->have[k] && m->block[k] == block) {
                    m->have[k] = false;
                    m->count--;
                }
            }
        }
    }
}

static void seal(struct model *m)
{
    struct buf b = {0};
    uint64_t number = outcome_table_seal(m->t, &b);
    bool any = false;
    for (size_t i = 0; i < IDS; i++) {
        if (m->have[i] && m->block[i] == 0) {
            m->block[i] = number;
            any = true;
        }
    }
    cr_assert_eq(number != 0, any);
    if (number != 0) {
        for (size_t i = 0; i < m->row_count; i++) {
            cr_assert_neq(m->rows[i].number, number, "a number is used once");
        }
        m->rows[m->row_count++] = (struct mblock){number, b};
    } else {
        buf_deinit(&b);
    }
}

/* A crash: what was not sealed is replayed from the log. */
static void reload(struct model *m)
{
    outcome_table_free(m->t);
    m->t = outcome_table_new();
    for (uint64_t n = 1, left = m->row_count; left > 0; n++) {
        for (size_t i = 0; i < m->row_count; i++) {
            if (m->rows[i].number == n) {
                cr_assert_eq(outcome_table_load(m->t, n, buf_slice(&m->rows[i].bytes)), SPAN_OK);
                left--;
            }
        }
    }
    for (size_t i = 0; i < IDS; i++) {
        if (m->have[i] && m->block[i] == 0) {
            cr_assert_eq(outcome_table_add(m->t, &m->ids[i], m->ts[i]), SPAN_OK);
        }
    }
}

static void count_one(void *ctx, const struct outcome *o)
{
    (void)o;
    (*(size_t *)ctx)++;
}

static void check(struct model *m)
{
    size_t each = 0;
    outcome_table_each(m->t, count_one, &each);
    cr_assert_eq(each, m->count);
    cr_assert_eq(outcome_table_count(m->t), m->count);
    for (size_t i = 0; i < IDS; i++) {
        const struct outcome *o = outcome_table_get(m->t, &m->ids[i]);
        cr_assert_eq(o != NULL, m->have[i]);
        cr_assert(o == NULL || (o->ts.ns == m->ts[i].ns && txn_id_eq(&o->txn, &m->ids[i])));
    }
}

static void step(struct model *m, struct rng *g, uint64_t *clock)
{
    uint64_t dice = rng_below(g, 200);
    if (dice < 190) {
        size_t i = (size_t)rng_below(g, IDS);
        *clock += rng_below(g, 3);
        if (!m->have[i]) {
            /* near each other in time, some long begun */
            m->ids[i].begin_ns = *clock - (rng_below(g, 5) == 0 ? rng_below(g, 500) : 0);
            m->ids[i].node = 1 + (uint32_t)rng_below(g, 3);
            m->ts[i] = tt_ts_of(rng_below(g, 4) == 0 ? 0 : *clock + 1);
            m->have[i] = true;
            m->block[i] = 0;
            m->count++;
        }
        cr_assert_eq(outcome_table_add(m->t, &m->ids[i], m->ts[i]), SPAN_OK);
    } else if (dice < 196) {
        seal(m);
    } else if (dice < 198) {
        uint64_t w = *clock - rng_below(g, 1500);
        outcome_table_expire(m->t, tt_ts_of(w), gone, m);
        model_expire(m, w);
    } else {
        reload(m);
    }
}

Test(outcome_table, equals_a_naive_model_over_random_steps, .timeout = 120)
{
    static struct model m;
    for (uint64_t seed = 1; seed <= 6; seed++) {
        struct rng g;
        uint64_t clock = 100000;
        fprintf(stderr, "outcome_table seed %lu\n", (unsigned long)seed);
        rng_init(&g, seed);
        memset(&m, 0, sizeof m);
        m.t = outcome_table_new();
        for (uint32_t i = 0; i < IDS; i++) {
            m.ids[i] = id_of(1, 1, i);
        }
        for (int n = 0; n < 12000; n++) {
            step(&m, &g, &clock);
            if (n % 40 == 0) {
                check(&m);
            }
        }
        check(&m);
        for (size_t i = 0; i < m.row_count; i++) {
            buf_deinit(&m.rows[i].bytes);
        }
        outcome_table_free(m.t);
    }
}
