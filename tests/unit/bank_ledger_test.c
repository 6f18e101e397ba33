/* The bank's books: each kind of wrong is planted once and found, and books kept right by a random
 * history are right. */
#include "base/rng.h"
#include "deploy/workload/bank_ledger.h"

#include <criterion/criterion.h>
#include <stdio.h>

#define ACCOUNTS 50

struct books {
    struct bank_ledger *b;
    struct bank_verdict v;
    struct buf say;
};

static const struct bank_transfer sample = {.id = 7, .from = 1, .to = 2, .amount = 30};

static struct books books_new(void)
{
    struct books k = {.b = bank_ledger_new(3, 100)};
    buf_init(&k.say);
    return k;
}

static void fill(struct books *k, int64_t a, int64_t b, int64_t c)
{
    bank_ledger_account(k->b, 1, a);
    bank_ledger_account(k->b, 2, b);
    bank_ledger_account(k->b, 3, c);
}

static bool verify(struct books *k)
{
    bool ok = bank_ledger_verify(k->b, true, &k->v, &k->say);
    cr_assert_eq(ok, k->say.size == 0, "what is wrong is said, and only that");
    return ok;
}

static void books_free(struct books *k)
{
    bank_ledger_free(k->b);
    buf_deinit(&k->say);
}

Test(bank_ledger, is_right_when_ledger_balances_and_answers_agree)
{
    struct books k = books_new();
    fill(&k, 70, 130, 100);
    bank_ledger_transfer(k.b, &sample);
    bank_ledger_told(k.b, &sample, BANK_TOLD_DONE);
    cr_assert(verify(&k));
    cr_assert_eq(k.v.acknowledged, 1);
    cr_assert_eq(k.v.total, 300);
    books_free(&k);
}

Test(bank_ledger, finds_an_acknowledged_transfer_that_was_lost)
{
    struct books k = books_new();
    fill(&k, 100, 100, 100);
    bank_ledger_told(k.b, &sample, BANK_TOLD_DONE);
    cr_assert_not(verify(&k));
    cr_assert_eq(k.v.lost, 1);
    books_free(&k);
}

Test(bank_ledger, finds_a_transfer_done_twice)
{
    struct books k = books_new();
    fill(&k, 40, 160, 100);
    bank_ledger_transfer(k.b, &sample);
    bank_ledger_transfer(k.b, &sample);
    bank_ledger_told(k.b, &sample, BANK_TOLD_DONE);
    cr_assert_not(verify(&k));
    cr_assert_eq(k.v.doubled, 1);
    cr_assert_eq(k.v.balance_wrong, 0);
    books_free(&k);
}

Test(bank_ledger, finds_an_effect_applied_twice_with_one_ledger_row)
{
    struct books k = books_new();
    fill(&k, 40, 160, 100);
    bank_ledger_transfer(k.b, &sample);
    cr_assert_not(verify(&k));
    cr_assert_eq(k.v.balance_wrong, 2);
    cr_assert_eq(k.v.total_wrong, 0);
    books_free(&k);
}

Test(bank_ledger, finds_a_refused_transfer_that_was_done)
{
    struct books k = books_new();
    fill(&k, 70, 130, 100);
    bank_ledger_transfer(k.b, &sample);
    bank_ledger_told(k.b, &sample, BANK_TOLD_NOT_DONE);
    cr_assert_not(verify(&k));
    cr_assert_eq(k.v.undead, 1);
    books_free(&k);
}

Test(bank_ledger, lets_an_unknown_transfer_be_done_or_not_and_counts_it)
{
    for (int done = 0; done < 2; done++) {
        struct books k = books_new();
        fill(&k, done ? 70 : 100, done ? 130 : 100, 100);
        if (done) {
            bank_ledger_transfer(k.b, &sample);
        }
        bank_ledger_told(k.b, &sample, BANK_TOLD_UNKNOWN);
        cr_assert(verify(&k));
        cr_assert_eq(k.v.unknown, 1);
        cr_assert_eq(k.v.unknown_done, (uint64_t)done);
        books_free(&k);
    }
}

Test(bank_ledger, takes_the_last_word_about_a_transfer)
{
    struct books k = books_new();
    fill(&k, 70, 130, 100);
    bank_ledger_transfer(k.b, &sample);
    bank_ledger_told(k.b, &sample, BANK_TOLD_UNKNOWN);
    bank_ledger_told(k.b, &sample, BANK_TOLD_DONE);
    cr_assert(verify(&k));
    cr_assert_eq(k.v.acknowledged, 1);
    cr_assert_eq(k.v.unknown, 0);
    books_free(&k);
}

Test(bank_ledger, finds_wrong_totals_negative_missing_and_strange_accounts)
{
    struct books k = books_new();
    bank_ledger_account(k.b, 1, -1);
    bank_ledger_account(k.b, 2, 301);
    bank_ledger_account(k.b, 9, 0);
    cr_assert_not(verify(&k));
    cr_assert_eq(k.v.negative, 1);
    cr_assert_eq(k.v.missing_accounts, 1);
    cr_assert_eq(k.v.total_wrong, 1); /* account 9 was never made */
    books_free(&k);
}

Test(bank_ledger, finds_a_transfer_with_other_contents)
{
    struct books k = books_new();
    struct bank_transfer other = sample;
    other.amount = 31;
    fill(&k, 69, 131, 100);
    bank_ledger_transfer(k.b, &other);
    bank_ledger_told(k.b, &sample, BANK_TOLD_DONE);
    cr_assert_not(verify(&k));
    cr_assert_eq(k.v.different, 1);
    books_free(&k);
}

Test(bank_ledger, encodes_lines_that_decode_and_refuses_torn_ones)
{
    struct buf b;
    buf_init(&b);
    for (int told = 0; told < 3; told++) {
        struct bank_transfer t;
        enum bank_told back;
        buf_clear(&b);
        bank_told_encode(&sample, (enum bank_told)told, &b);
        cr_assert_eq(b.data[b.size - 1], '\n');
        cr_assert_eq(bank_told_decode(slice_of(b.data, b.size - 1), &t, &back), SPAN_OK);
        cr_assert_eq(back, (enum bank_told)told);
        cr_assert_eq(t.id, sample.id);
        cr_assert_eq(t.amount, sample.amount);
        for (size_t n = 0; n < b.size - 3; n++) {
            cr_assert_eq(bank_told_decode(slice_of(b.data, n), &t, &back), SPAN_INVALID);
        }
    }
    struct bank_transfer t;
    enum bank_told told;
    cr_assert_eq(bank_told_decode(slice_str("perhaps 7 1 2 30"), &t, &told), SPAN_INVALID);
    cr_assert_eq(bank_told_decode(slice_str("done 7 1 2 30 x"), &t, &told), SPAN_INVALID);
    buf_deinit(&b);
}

/* A random history kept right is right; the same with one random entry dropped is not. */
Test(bank_ledger, tells_a_right_history_from_one_with_a_hole)
{
    uint64_t seed = rng_os_u64();
    struct rng r;
    fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
    rng_init(&r, seed);
    for (int round = 0; round < 200; round++) {
        struct bank_ledger *b = bank_ledger_new(ACCOUNTS, 1000);
        struct bank_verdict v;
        struct buf say;
        int64_t balance[ACCOUNTS + 1];
        uint64_t count = rng_between(&r, 1, 200);
        uint64_t hole = round % 2 == 0 ? count : rng_below(&r, count);
        buf_init(&say);
        for (int i = 1; i <= ACCOUNTS; i++) {
            balance[i] = 1000;
        }
        for (uint64_t i = 0; i < count; i++) {
            struct bank_transfer t = {
                .id = i + 1, .from = rng_between(&r, 1, ACCOUNTS), .amount = 1};
            t.to = t.from % ACCOUNTS + 1;
            balance[t.from] -= t.amount;
            balance[t.to] += t.amount;
            bank_ledger_told(b, &t, BANK_TOLD_DONE);
            if (i != hole) {
                bank_ledger_transfer(b, &t);
            }
        }
        for (uint64_t i = 1; i <= ACCOUNTS; i++) {
            bank_ledger_account(b, i, balance[i]);
        }
        cr_assert_eq(bank_ledger_verify(b, true, &v, &say), hole == count);
        cr_assert_eq(v.lost, hole == count ? 0u : 1u);
        cr_assert_eq(v.balance_wrong, hole == count ? 0u : 2u);
        bank_ledger_free(b);
        buf_deinit(&say);
    }
}
