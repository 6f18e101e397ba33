/* The history checker against histories made by hand, one for each anomaly it can name; against
 * histories of a serial model with overlapping transactions, which must pass; and against the same
 * with one thing changed, which must not. */
#include "base/alloc.h"
#include "base/rng.h"
#include "tests/check/check_history.h"

#include <criterion/criterion.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

/* One transaction from words: "start end outcome[@ts] op...": a1=10 appends 10 to key 1, l1=10,20
 * is a list read, w1=5 writes, g1=5 reads (g1=- found nothing), audit=3,300 and move=1,2,5 are the
 * bank's. "ok*" is a read in the past. */
static void add(struct history *h, const char *text)
{
    char words[256];
    char *rest = NULL;
    (void)snprintf(words, sizeof(words), "%s", text);
    uint64_t start = strtoull(strtok_r(words, " ", &rest), NULL, 10);
    uint64_t end = strtoull(strtok_r(NULL, " ", &rest), NULL, 10);
    const char *outcome = strtok_r(NULL, " ", &rest);
    const char *ts = strchr(outcome, '@');
    struct history_txn *t = history_add_txn(h, h->txn_count, start, end,
                                            outcome[0] == 'o'   ? HISTORY_OK
                                            : outcome[0] == 'f' ? HISTORY_FAIL
                                                                : HISTORY_UNKNOWN);
    t->ts = ts == NULL ? 0 : strtoull(ts + 1, NULL, 10);
    t->as_of = strchr(outcome, '*') != NULL;
    for (const char *w; (w = strtok_r(NULL, " ", &rest)) != NULL;) {
        int64_t list[16];
        struct history_op op = {0};
        char *at = strchr(w, '=') + 1;
        for (; *at != '\0' && *at != '-'; at += *at == ',') {
            list[op.list_count++] = strtoll(at, &at, 10);
        }
        op.key = strtoull(w + 1, NULL, 10);
        op.value = list[0];
        if (w[0] == 'l') {
            op.kind = HISTORY_LIST;
            history_add_op(h, op, list);
            continue;
        }
        if (strncmp(w, "audit", 5) == 0) {
            op = (struct history_op){
                .kind = HISTORY_AUDIT, .key = (uint64_t)list[0], .value = list[1]};
        } else if (w[0] == 'm') {
            op = (struct history_op){.kind = HISTORY_TRANSFER,
                                     .key = (uint64_t)list[0],
                                     .to = (uint64_t)list[1],
                                     .value = list[2]};
        } else {
            op.kind = w[0] == 'a' ? HISTORY_APPEND_OP : w[0] == 'w' ? HISTORY_WRITE : HISTORY_READ;
            op.is_null = op.kind == HISTORY_READ && op.list_count == 0;
            op.value = op.is_null ? 0 : op.value;
        }
        op.list_count = 0;
        history_add_op(h, op, NULL);
    }
}

static struct check_report judge(const struct history *h)
{
    struct check_report r;
    struct span_error err = {0};
    cr_assert_eq(check_history(h, &r, &err), SPAN_OK, "%s", err.text);
    return r;
}

struct planted {
    enum history_kind kind;
    int found; /* -1: nothing */
    const char *txns[8];
};

static void expect(const struct planted *p, size_t number)
{
    struct history h;
    history_init_empty(&h, p->kind);
    h.accounts = 3;
    h.balance = 100;
    for (size_t i = 0; i < 8 && p->txns[i] != NULL; i++) {
        add(&h, p->txns[i]);
    }
    struct check_report r = judge(&h);
    const char *say = buf_cstr(&r.say);
    if (p->found < 0) {
        cr_assert_eq(r.found_total, 0, "case %zu: found something in a good history:\n%s", number,
                     say);
    } else {
        cr_assert_neq(r.found[p->found], 0, "case %zu: %s was not found but:\n%s", number,
                      check_anomaly_name((enum check_anomaly)p->found), say);
        cr_assert_not_null(strstr(say, check_anomaly_text((enum check_anomaly)p->found)));
    }
    check_report_deinit(&r);
    history_deinit(&h);
}

#define A HISTORY_APPEND
#define R HISTORY_REGISTER
#define B HISTORY_BANK

Test(check_history, every_planted_anomaly_is_found_and_named)
{
    static const struct planted cases[] = {
        {A, CHECK_GARBAGE_READ, {"0 9 ok a1=1", "10 19 ok l1=1,2"}},
        {R, CHECK_GARBAGE_READ, {"0 9 ok w1=1", "10 19 ok g1=2"}},
        {A, CHECK_ABORTED_READ, {"0 9 fail a1=1", "10 19 ok l1=1"}},
        {A, CHECK_ABORTED_READ, {"0 9 fail a1=1", "0 9 ok a1=2", "10 19 ok l1=1,2"}},
        {R, CHECK_ABORTED_READ, {"0 9 fail w1=1", "10 19 ok g1=1"}},
        {A, CHECK_INTERMEDIATE_READ, {"0 9 ok a1=1 a1=2", "5 19 ok l1=1"}},
        {R, CHECK_INTERMEDIATE_READ, {"0 9 ok w1=1 w1=2", "5 19 ok g1=1"}},
        {A, CHECK_DUPLICATE, {"0 9 ok a1=1", "0 9 ok a1=2", "10 19 ok l1=1,2,1"}},
        {A, CHECK_DUPLICATE, {"0 9 ok a1=1", "10 19 ok l1=1,1"}},
        {A,
         CHECK_INCOMPATIBLE_ORDER,
         {"0 9 ok a1=1", "0 9 ok a1=2", "0 9 ok l1=1,2", "0 9 ok l1=2"}},
        {A, CHECK_INTERNAL, {"0 9 ok a1=1", "10 19 ok a1=2 l1=1"}},
        {A, CHECK_INTERNAL, {"0 9 ok a1=1", "0 9 ok l1= l1=1"}},
        {R, CHECK_INTERNAL, {"0 9 ok w1=1", "10 19 ok w1=2 g1=1"}},
        {R, CHECK_INTERNAL, {"0 9 ok w1=1", "0 9 ok g1=- g1=1"}},
        {A,
         CHECK_LOST_UPDATE,
         {"0 9 ok a1=1", "10 29 ok l1=1 a1=2", "10 29 ok l1=1 a1=3", "30 39 ok l1=1,2,3"}},
        {A, CHECK_LOST_UPDATE, {"0 9 ok a1=1", "10 29 ok l1=1 a1=2", "10 29 ok l1=1 a1=3"}},
        {R, CHECK_LOST_UPDATE, {"0 9 ok w1=1", "10 29 ok g1=1 w1=2", "10 29 ok g1=1 w1=3"}},
        {R, CHECK_LOST_UPDATE, {"0 9 ok g1=- w1=1", "0 9 ok g1=- w1=3"}},
        {R, CHECK_LOST_UPDATE, {"0 9 ok@5 w1=1", "10 29 ok@15 g1=1 w1=2", "10 29 ok@14 w1=3"}},
        {A, CHECK_LOST_WRITE, {"0 9 ok a1=1", "10 19 ok a1=2", "20 29 ok l1=1"}},
        {A, CHECK_LOST_WRITE, {"0 9 ok a1=1", "10 19 ok l1="}},
        {A, CHECK_WRITE_SKEW, {"0 9 ok l1= a2=1", "0 9 ok l2= a1=2", "10 19 ok l1=2 l2=1"}},
        {R, CHECK_WRITE_SKEW, {"0 9 ok g1=- w2=1", "0 9 ok g2=- w1=2"}},
        {R,
         CHECK_WRITE_SKEW,
         {"0 9 ok@5 w1=1 w2=1", "10 19 ok@15 g1=1 g2=1 w1=2", "10 19 ok@16 g1=1 g2=1 w2=2"}},
        {A,
         CHECK_LONG_FORK,
         {"0 99 ok a1=1", "0 99 ok a2=2", "0 99 ok l1=1 l2=", "0 99 ok l1= l2=2"}},
        {R,
         CHECK_LONG_FORK,
         {"0 99 ok w1=1", "0 99 ok w2=2", "0 99 ok g1=1 g2=-", "0 99 ok g1=- g2=2"}},
        {A, CHECK_STALE_READ, {"0 9 ok a1=1", "10 19 ok l1=", "20 29 ok l1=1"}},
        {R, CHECK_STALE_READ, {"0 9 ok g1=- w1=1", "10 19 ok g1=-"}},
        {R, CHECK_STALE_READ, {"0 9 ok w1=1", "10 19 ok g1=-"}},
        {A, CHECK_FUTURE_READ, {"0 9 ok l1=1", "10 19 ok a1=1"}},
        {A, CHECK_FUTURE_READ, {"0 9 ok l1=1", "10 19 unknown a1=1"}},
        {A, CHECK_FUTURE_READ, {"0 9 ok* l1=1", "10 19 ok a1=1"}},
        {R, CHECK_FUTURE_READ, {"0 9 ok g1=1", "10 19 ok w1=1"}},
        {A,
         CHECK_CAUSAL_REVERSE,
         {"0 9 ok a1=1", "10 19 ok a2=2", "0 29 ok l1= l2=2", "30 39 ok l1=1"}},
        {A,
         CHECK_CAUSAL_REVERSE,
         {"0 9 ok a1=1", "10 19 ok a2=2", "5 29 ok* l1= l2=2", "30 39 ok l1=1"}},
        {R, CHECK_CAUSAL_REVERSE, {"0 9 ok w1=1", "10 19 ok w2=2", "0 29 ok g1=- g2=2"}},
        {A, CHECK_G0, {"0 9 ok a1=1 a2=2", "0 9 ok a1=3 a2=4", "10 19 ok l1=1,3 l2=4,2"}},
        {A, CHECK_G1C, {"0 9 ok a1=1 l2=2", "0 9 ok a2=2 l1=1"}},
        {R, CHECK_G1C, {"0 9 ok w1=1 g2=2", "0 9 ok w2=2 g1=1"}},
        {A, CHECK_G_SINGLE, {"0 9 ok a1=1 a2=2", "0 9 ok l1=1 l2=", "10 19 ok l2=2"}},
        {R, CHECK_G_SINGLE, {"0 9 ok w1=1 w2=2", "0 9 ok g1=1 g2=-"}},
        {A, CHECK_G2, {"0 9 ok l1= a2=1", "0 9 ok l2= a3=2", "0 9 ok l3= a1=3"}},
        {A, CHECK_G0_REALTIME, {"0 9 ok a1=1", "10 19 ok a1=2", "20 29 ok l1=2,1"}},
        {R, CHECK_G0_REALTIME, {"0 9 ok@20 w1=1", "10 19 ok@15 w1=2"}},
        {A, CHECK_G1C_REALTIME, {"0 9 ok l2=2 a3=3", "0 30 ok l1=1 a2=2", "10 19 ok a1=1"}},
        {A,
         CHECK_G_SINGLE_REALTIME,
         {"0 9 ok a1=1", "10 19 ok a2=2", "0 40 ok l2=2 a3=3",
          "0 40 ok l3=3 l1=", "50 59 ok l1=1"}},
        {A,
         CHECK_G2_REALTIME,
         {"0 9 ok a1=1", "0 40 ok l1= a3=3", "20 40 ok l3=", "50 59 ok l1=1 l3=3",
          "50 59 ok l3=3"}},
        {A, CHECK_TIMESTAMP_INVERSION, {"0 9 ok@20 a1=1", "10 19 ok@15 a2=2"}},
        {B, CHECK_TIMESTAMP_INVERSION, {"0 9 ok@20 move=1,2,5", "10 19 ok@20 move=2,3,1"}},
        {A, CHECK_TIMESTAMP_ORDER, {"0 9 ok@20 a1=1", "5 19 ok@15 l1=1 a2=2"}},
        {B, CHECK_WRONG_TOTAL, {"0 9 ok audit=3,300", "10 19 ok* audit=3,299"}},
        {B, CHECK_MISSING_ACCOUNTS, {"0 9 ok audit=2,300"}},
    };
    bool named[CHECK_ANOMALY_COUNT] = {false};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        expect(&cases[i], i);
        named[cases[i].found] = true;
    }
    for (int a = 0; a < CHECK_ANOMALY_COUNT; a++) {
        cr_assert(named[a], "no case plants %s", check_anomaly_name((enum check_anomaly)a));
    }
}

Test(check_history, good_histories_that_look_odd_pass)
{
    static const struct planted cases[] = {
        {A, -1, {NULL}},
        {A, -1, {"0 9 ok"}},
        /* Overlapping: either order will do. */
        {A, -1, {"0 9 ok a1=1", "5 14 ok l1="}},
        {A, -1, {"0 9 ok a1=1", "9 14 ok l1="}},
        {R, -1, {"0 9 ok w1=1", "5 14 ok g1=-", "5 14 ok g1=1"}},
        /* Unknown: done or not, early or late. */
        {A, -1, {"0 9 unknown a1=1", "10 19 ok l1=", "20 29 ok l1=1"}},
        {A, -1, {"0 9 unknown a1=1", "10 19 ok l1="}},
        {A, -1, {"0 9 unknown a1=1 a2=5", "10 19 ok l1= l2=", "20 29 ok l1=1", "30 39 ok l2=5"}},
        {R,
         -1,
         {"0 9 ok@5 g1=- w1=1", "10 19 unknown g1=1 w1=2", "20 29 ok g1=1", "30 39 ok g1=2"}},
        /* One that only an unknown one read, and nobody that one. */
        {A, -1, {"0 9 unknown a1=1", "10 19 unknown l1=1 a2=2"}},
        {A, -1, {"0 9 fail a1=1", "10 19 ok l1="}},
        /* Its own appends: in the middle, at the end, unread. */
        {A, -1, {"0 9 ok a1=1 l1=1 a1=2 l1=1,2", "10 19 ok l1=1,2"}},
        {A, -1, {"0 9 ok a1=1", "10 19 ok l1=1 a1=2"}},
        {A, -1, {"0 9 ok a1=1 l1=1 a1=2"}},
        {A, -1, {"0 9 ok l1= a1=1", "0 9 ok a1=2"}},
        {R, -1, {"0 9 ok g1=- w1=1 g1=1 w1=2 g1=2", "10 19 ok g1=2"}},
        {R, -1, {"0 9 unknown g1=- w1=1", "0 9 unknown g1=- w1=3", "20 21 ok g1=3"}},
        /* In the past. */
        {A, -1, {"0 9 ok a1=1", "20 29 ok* l1="}},
        {A, -1, {"0 9 ok@5 a1=1", "10 19 ok@15 a1=2", "20 29 ok*@5 l1=1", "30 39 ok l1=1,2"}},
        {B, -1, {"0 9 ok@5 move=1,2,5", "10 19 ok* audit=3,300", "10 19 fail audit=3,12"}},
        {A, -1, {"0 9 ok@5 a1=1", "9 19 ok@4 a2=2"}},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        expect(&cases[i], i);
    }
}

Test(check_history, a_value_written_twice_cannot_be_judged)
{
    struct history h;
    struct check_report r;
    struct span_error err = {0};
    history_init_empty(&h, HISTORY_APPEND);
    add(&h, "0 9 ok a1=1");
    add(&h, "0 9 ok a1=1");
    cr_assert_eq(check_history(&h, &r, &err), SPAN_INVALID);
    cr_assert_not_null(strstr(err.text, "line 3"), "%s", err.text);
    check_report_deinit(&r);
    history_deinit(&h);
}

/* ---- a serial model ---- */

#define KEYS      24
#define LIST_MAX  40
#define APART_NS  100
#define JITTER_NS 1500 /* so about 15 transactions overlap */

struct model {
    int64_t list[KEYS][LIST_MAX]; /* register: the last one counts */
    size_t count[KEYS];
    int64_t next_value;
    uint64_t first_key; /* keys change, as in the workload, or lists would be as long as it */
};

static void model_op(struct history *h, struct model *m, struct model *own, struct rng *r)
{
    struct history_op op = {.key = m->first_key + rng_below(r, KEYS)};
    bool is_append = h->kind == HISTORY_APPEND;
    size_t *n = &own->count[op.key % KEYS];
    int64_t *list = own->list[op.key % KEYS];
    bool write = rng_below(r, 2) == 0 && *n < LIST_MAX;
    if (write) {
        op.kind = is_append ? HISTORY_APPEND_OP : HISTORY_WRITE;
        op.value = ++m->next_value;
        list[(*n)++] = op.value;
    } else if (is_append) {
        op.kind = HISTORY_LIST;
        op.list_count = *n;
    } else {
        op.kind = HISTORY_READ;
        op.is_null = *n == 0;
        op.value = *n == 0 ? 0 : list[*n - 1];
    }
    history_add_op(h, op, op.kind == HISTORY_LIST ? list : NULL);
    if (!is_append && *n == LIST_MAX) {
        list[0] = list[*n - 1]; /* only the last one counts */
        *n = 1;
    }
}

/* Transactions take effect one after the other, APART_NS between them, somewhere inside their
 * intervals. */
static void model_run(struct history *h, enum history_kind kind, size_t count, bool with_ts,
                      struct rng *r)
{
    struct model *m = SPAN_NEW(struct model);
    struct model *own = SPAN_NEW(struct model);
    history_init_empty(h, kind);
    m->next_value = 1000;
    for (size_t i = 0; i < count; i++) {
        uint64_t at = (i + 20) * APART_NS;
        uint64_t luck = rng_below(r, 100);
        struct history_txn *t =
            history_add_txn(h, i % 16, at - rng_below(r, JITTER_NS), at + rng_below(r, JITTER_NS),
                            luck < 90   ? HISTORY_OK
                            : luck < 95 ? HISTORY_UNKNOWN
                                        : HISTORY_FAIL);
        bool happens = luck < 93;
        t->ts = with_ts && t->outcome == HISTORY_OK ? 1 + at : 0;
        if (i % 400 == 399) {
            memset(m->count, 0, sizeof(m->count));
            m->first_key += KEYS;
        }
        *own = *m;
        for (uint64_t n = 1 + rng_below(r, 4); n > 0; n--) {
            model_op(h, m, own, r);
        }
        own->next_value = m->next_value;
        if (happens) {
            *m = *own;
        }
    }
    span_free(m);
    span_free(own);
}

static void expect_good(const struct history *h, uint64_t seed)
{
    struct check_report r = judge(h);
    cr_assert_eq(r.found_total, 0, "seed %" PRIu64 ":\n%s", seed, buf_cstr(&r.say));
    check_report_deinit(&r);
}

static uint64_t draw_seed(void)
{
    const char *given = getenv("SPAN_SEED");
    uint64_t seed = given == NULL ? rng_os_u64() : strtoull(given, NULL, 10);
    (void)fprintf(stderr, "seed %" PRIu64 "\n", seed);
    return seed;
}

Test(check_history, serial_histories_with_overlap_pass)
{
    uint64_t seed = draw_seed();
    for (uint64_t i = 0; i < 120; i++) {
        struct history h;
        struct rng r;
        rng_init(&r, seed + i);
        model_run(&h, i % 2 == 0 ? A : R, 20 + rng_below(&r, 400), i % 3 != 0, &r);
        expect_good(&h, seed + i);
        history_deinit(&h);
    }
}

/* ---- mutations: each certainly wrong where it applies ---- */

static struct history_op *first_read(const struct history *h, struct history_txn *t)
{
    for (size_t i = 0; i < t->op_count; i++) {
        struct history_op *op = &h->ops[t->op + i];
        bool is_other = true; /* no own operation on the key before it */
        for (size_t k = 0; k < i; k++) {
            is_other = is_other && h->ops[t->op + k].key != op->key;
        }
        if (is_other && (op->kind == HISTORY_LIST || op->kind == HISTORY_READ)) {
            return op;
        }
    }
    return NULL;
}

static const struct history_txn *writer_of(const struct history *h, uint64_t key, int64_t value)
{
    for (size_t i = 0; i < h->txn_count; i++) {
        for (size_t k = 0; k < h->txns[i].op_count; k++) {
            const struct history_op *op = &h->ops[h->txns[i].op + k];
            if ((op->kind == HISTORY_APPEND_OP || op->kind == HISTORY_WRITE) && op->key == key &&
                op->value == value) {
                return &h->txns[i];
            }
        }
    }
    return NULL;
}

/* The read forgets what an acknowledged transaction had written before it began. */
static bool mutate_stale(struct history *h, struct history_txn *t, struct history_op *op)
{
    if (op->kind == HISTORY_READ) {
        const struct history_txn *w = op->is_null ? NULL : writer_of(h, op->key, op->value);
        if (w == NULL || w->outcome != HISTORY_OK || w->end >= t->start) {
            return false;
        }
        op->is_null = true;
        return true;
    }
    if (op->list_count == 0) {
        return false;
    }
    const struct history_txn *w = writer_of(h, op->key, h->values[op->list + op->list_count - 1]);
    if (w->outcome != HISTORY_OK || w->end >= t->start) {
        return false;
    }
    op->list_count--;
    return true;
}

static bool mutate_future(struct history *h, struct history_txn *t, struct history_op *op)
{
    struct history_txn *w = NULL;
    if (op->kind == HISTORY_READ && !op->is_null) {
        w = &h->txns[writer_of(h, op->key, op->value) - h->txns];
    } else if (op->kind == HISTORY_LIST && op->list_count != 0) {
        w = &h->txns[writer_of(h, op->key, h->values[op->list + op->list_count - 1]) - h->txns];
    }
    if (w == NULL || w == t) {
        return false;
    }
    w->start = t->end + 1;
    w->end = w->end <= w->start ? w->start + 1 : w->end;
    return true;
}

static bool mutate_garbage(struct history *h, struct history_txn *t, struct history_op *op)
{
    (void)t;
    if (op->kind == HISTORY_READ) {
        op->is_null = false;
        op->value = 3;
        return true;
    }
    if (op->list_count == 0) {
        return false;
    }
    h->values[op->list + op->list_count - 1] = 3;
    return true;
}

static bool mutate_swap(struct history *h, struct history_txn *t, struct history_op *op)
{
    (void)t;
    if (op->kind != HISTORY_LIST || op->list_count < 2) {
        return false;
    }
    /* Another read has both of them, in the right order. */
    for (size_t i = 0; i < h->op_count; i++) {
        const struct history_op *o = &h->ops[i];
        if (o == op || o->kind != HISTORY_LIST || o->key != op->key ||
            o->list_count < op->list_count) {
            continue;
        }
        for (size_t k = 0; k < h->txn_count; k++) { /* one that counts */
            const struct history_txn *r = &h->txns[k];
            if (r->op <= i && i < r->op + r->op_count && r->outcome == HISTORY_OK && r != t) {
                int64_t *v = &h->values[op->list + op->list_count - 2];
                int64_t was = v[0];
                v[0] = v[1];
                v[1] = was;
                return true;
            }
        }
    }
    return false;
}

static bool mutate_double(struct history *h, struct history_txn *t, struct history_op *op)
{
    (void)t;
    if (op->kind != HISTORY_LIST || op->list_count < 2) {
        return false;
    }
    h->values[op->list + op->list_count - 1] = h->values[op->list];
    return true;
}

static bool mutate_ts(struct history *h, struct history_txn *t, struct history_op *op)
{
    (void)op;
    for (size_t i = 0; i < h->txn_count; i++) {
        struct history_txn *o = &h->txns[i];
        if (o->ts != 0 && t->ts != 0 && o->end < t->start) {
            uint64_t was = o->ts;
            o->ts = t->ts;
            t->ts = was;
            return true;
        }
    }
    return false;
}

static bool mutate_failed(struct history *h, struct history_txn *t, struct history_op *op)
{
    const struct history_txn *w = NULL;
    if (op->kind == HISTORY_READ && !op->is_null) {
        w = writer_of(h, op->key, op->value);
    } else if (op->kind == HISTORY_LIST && op->list_count != 0) {
        w = writer_of(h, op->key, h->values[op->list]);
    }
    if (w == NULL || w == t) {
        return false;
    }
    h->txns[w - h->txns].outcome = HISTORY_FAIL;
    return true;
}

Test(check_history, one_thing_changed_fails)
{
    static const struct {
        const char *name;
        bool (*apply)(struct history *h, struct history_txn *t, struct history_op *op);
    } mutations[] = {
        {"stale", mutate_stale},   {"future", mutate_future}, {"garbage", mutate_garbage},
        {"swap", mutate_swap},     {"double", mutate_double}, {"timestamps", mutate_ts},
        {"failed", mutate_failed},
    };

    uint64_t seed = draw_seed();
    unsigned applied[7] = {0};
    for (uint64_t i = 0; i < 350; i++) {
        struct history h;
        struct rng r;
        size_t m = i % 7;
        rng_init(&r, seed + i);
        /* With timestamps every version of a register has its place, so nothing can hide. */
        model_run(&h, (i / 7) % 2 == 0 ? A : R, 60 + rng_below(&r, 200), true, &r);
        size_t from = h.txn_count / 2;
        bool done = false;
        for (size_t k = from; k < h.txn_count && !done; k++) {
            struct history_txn *t = &h.txns[k];
            struct history_op *op = t->outcome == HISTORY_OK ? first_read(&h, t) : NULL;
            done = op != NULL && mutations[m].apply(&h, t, op);
        }
        if (done) {
            struct check_report report = judge(&h);
            applied[m]++;
            cr_assert_neq(report.found_total, 0, "seed %" PRIu64 ": %s was not noticed", seed + i,
                          mutations[m].name);
            check_report_deinit(&report);
        }
        history_deinit(&h);
    }
    for (size_t m = 0; m < 7; m++) {
        cr_assert_gt(applied[m], 10, "%s was hardly ever tried: %u", mutations[m].name, applied[m]);
    }
}

Test(check_history, a_hundred_thousand_transactions_take_seconds)
{
    struct history h;
    struct rng r;
    rng_init(&r, 7);
    model_run(&h, A, 100000, true, &r);
    expect_good(&h, 7);
    /* And one that went all wrong: the search for the shortest circle is bounded. */
    for (size_t i = 0; i < h.txn_count; i++) {
        struct history_op *op = first_read(&h, &h.txns[i]);
        if (i % 10 == 0 && op != NULL && op->list_count > 0) {
            op->list_count--;
        }
    }
    struct check_report report = judge(&h);
    cr_assert_gt(report.found_total, 100);
    check_report_deinit(&report);
    history_deinit(&h);
}

/* ---- the file ---- */

Test(check_history, a_file_read_is_the_history_written)
{
    uint64_t seed = draw_seed();
    for (uint64_t i = 0; i < 20; i++) {
        struct history h;
        struct history back;
        struct buf text = {0};
        struct buf again = {0};
        struct span_error err = {0};
        struct rng r;
        rng_init(&r, seed + i);
        model_run(&h, i % 2 == 0 ? A : R, 100, true, &r);
        history_format(&h, &text);
        cr_assert_eq(history_parse(buf_slice(&text), &back, &err), SPAN_OK, "%s", err.text);
        history_format(&back, &again);
        cr_assert(slice_eq(buf_slice(&text), buf_slice(&again)));
        /* Cut off anywhere it is refused: what was under way is missing. */
        for (size_t n = rng_below(&r, 40); n < text.size; n += 1 + rng_below(&r, 400)) {
            struct history cut;
            cr_assert_eq(history_parse(slice_of(text.data, n), &cut, &err), SPAN_INVALID);
            cr_assert_not_null(strstr(err.text, "line "), "%s", err.text);
            history_deinit(&cut);
        }
        history_deinit(&h);
        history_deinit(&back);
        buf_deinit(&text);
        buf_deinit(&again);
    }
}

Test(check_history, a_malformed_file_is_refused_with_its_line)
{
    static const struct {
        const char *text;
        const char *want;
    } cases[] = {
        {"", "line 1"},
        {"\n", "line 1"},
        {"{}\n", "spanlite_history"},
        {"{\"spanlite_history\":2,\"kind\":\"append\"}\n", "version"},
        {"{\"spanlite_history\":1,\"kind\":\"set\"}\n", "append, register or bank"},
        {"{\"spanlite_history\":1,\"kind\":\"append\"}\n", "did not end"},
        {"{\"spanlite_history\":1,\"kind\":\"append\"}\n{\"client\":1}\n", "line 2"},
        {"{\"spanlite_history\":1,\"kind\":\"append\"}\n"
         "{\"client\":1,\"start\":9,\"end\":2,\"outcome\":\"ok\",\"ops\":[]}\n",
         "ends before it begins"},
        {"{\"spanlite_history\":1,\"kind\":\"append\"}\n"
         "{\"client\":1,\"start\":1,\"end\":2,\"outcome\":\"ok\",\"ops\":[[\"w\",1,2]]}\n",
         "does not have"},
        {"{\"spanlite_history\":1,\"kind\":\"append\"}\n"
         "{\"client\":1,\"start\":1,\"end\":2,\"outcome\":\"maybe\",\"ops\":[]}\n",
         "ok, fail or unknown"},
        {"{\"spanlite_history\":1,\"kind\":\"append\"}\n{\"end\":true,\"transactions\":1}\n",
         "counts other"},
        {"{\"spanlite_history\":1,\"kind\":\"append\"}\n{\"end\":true,\"transactions\":0}\n{}\n",
         "behind the end"},
        {"{\"spanlite_history\":1,\"kind\":\"append\"}\n"
         "{\"end\":true,\"transactions\":0,\"ops\":[[\"r\",1,[7]]]}\n",
         "last line is no transaction"},
        {"{\"spanlite_history\":1,\"kind\":\"append\",\"x\":[[[[[[[[[[[]]]]]]]]]]]}\n", "too deep"},
        {"{\"spanlite_history\":99999999999999999999}\n", "too large"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct history h;
        struct span_error err = {0};
        cr_assert_eq(history_parse(slice_str(cases[i].text), &h, &err), SPAN_INVALID, "case %zu",
                     i);
        cr_assert_not_null(strstr(err.text, cases[i].want), "case %zu: %s", i, err.text);
        history_deinit(&h);
    }
}

Test(check_history, members_of_later_versions_are_passed_over)
{
    static const char text[] =
        "{\"spanlite_history\":1,\"kind\":\"register\",\"seed\":{\"a\":[1,\"x]\\\"\",null]}}\n"
        " { \"client\" : 1 , \"start\":1,\"end\":2,\"outcome\":\"ok\",\"why\":\"}\",\"ops\":[ "
        "[\"r\",1,null] , [\"w\",1,-5]]}\r\n"
        "{\"end\":true,\"transactions\":1}\n";
    struct history h;
    struct span_error err = {0};
    cr_assert_eq(history_parse(slice_str(text), &h, &err), SPAN_OK, "%s", err.text);
    cr_assert_eq(h.txn_count, 1);
    cr_assert_eq(h.op_count, 2);
    cr_assert(h.ops[0].is_null);
    cr_assert_eq(h.ops[1].value, -5);
    history_deinit(&h);
}
