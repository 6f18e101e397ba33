/* The bank's books: see bank_ledger.h. */
#include "deploy/workload/bank_ledger.h"

#include "base/alloc.h"
#include "base/invariant.h"
#include "base/map.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define SAY_MAX 10 /* sentences about one kind of violation */

struct entry {
    struct bank_transfer ledger; /* as found in the ledger */
    struct bank_transfer said;   /* as the client knew it */
    unsigned times;              /* rows in the ledger */
    bool is_told;
    enum bank_told told;
};

struct bank_ledger {
    uint64_t accounts;
    int64_t initial;
    bool *seen;
    int64_t *balance;
    uint64_t strange; /* accounts with an id that was never made */
    struct map64 entries;
};

struct bank_ledger *bank_ledger_new(uint64_t accounts, int64_t initial)
{
    struct bank_ledger *b = SPAN_NEW(struct bank_ledger);
    b->accounts = accounts;
    b->initial = initial;
    b->seen = span_calloc(accounts + 1, sizeof(bool));
    b->balance = span_calloc(accounts + 1, sizeof(int64_t));
    map64_init(&b->entries);
    return b;
}

void bank_ledger_free(struct bank_ledger *b)
{
    if (b == NULL) {
        return;
    }
    size_t pos = 0;
    for (struct entry *e; (e = map64_next(&b->entries, &pos, NULL)) != NULL;) {
        span_free(e);
    }
    map64_deinit(&b->entries);
    span_free(b->seen);
    span_free(b->balance);
    span_free(b);
}

void bank_ledger_account(struct bank_ledger *b, uint64_t id, int64_t balance)
{
    if (id == 0 || id > b->accounts || b->seen[id]) {
        b->strange++;
        return;
    }
    b->seen[id] = true;
    b->balance[id] = balance;
}

static struct entry *entry_of(struct bank_ledger *b, uint64_t id)
{
    struct entry *e = map64_get(&b->entries, id);
    if (e == NULL) {
        e = SPAN_NEW(struct entry);
        (void)map64_put(&b->entries, id, e);
    }
    return e;
}

void bank_ledger_transfer(struct bank_ledger *b, const struct bank_transfer *t)
{
    struct entry *e = entry_of(b, t->id);
    e->ledger = *t;
    e->times++;
}

void bank_ledger_told(struct bank_ledger *b, const struct bank_transfer *t, enum bank_told told)
{
    struct entry *e = entry_of(b, t->id);
    e->said = *t;
    e->is_told = true;
    e->told = told;
}

static void say_transfer(struct buf *say, uint64_t count, const struct bank_transfer *t,
                         const char *what)
{
    if (count <= SAY_MAX) {
        buf_printf(say, "transfer %" PRIu64 " of %" PRId64 " from %" PRIu64 " to %" PRIu64 ": %s\n",
                   t->id, t->amount, t->from, t->to, what);
    }
}

static void verify_entry(const struct entry *e, struct bank_verdict *v, struct buf *say)
{
    v->transfers += e->times;
    if (e->times > 1) {
        v->doubled++;
        say_transfer(say, v->doubled, &e->ledger, "is in the ledger more than once");
    }
    if (!e->is_told) {
        return;
    }
    bool is_there = e->times != 0;
    switch (e->told) {
    case BANK_TOLD_DONE:
        v->acknowledged++;
        if (!is_there) {
            v->lost++;
            say_transfer(say, v->lost, &e->said, "was acknowledged and is not in the ledger");
        }
        break;
    case BANK_TOLD_NOT_DONE:
        v->refused++;
        if (is_there) {
            v->undead++;
            say_transfer(say, v->undead, &e->said, "was refused and is in the ledger");
        }
        break;
    case BANK_TOLD_UNKNOWN:
        v->unknown++;
        v->unknown_done += is_there;
        break;
    }
    if (is_there && (e->said.from != e->ledger.from || e->said.to != e->ledger.to ||
                     e->said.amount != e->ledger.amount)) {
        v->different++;
        say_transfer(say, v->different, &e->said, "is in the ledger with other contents");
    }
}

/* What each account should hold, if the ledger is complete. */
static int64_t *expected_balances(const struct bank_ledger *b)
{
    int64_t *want = span_calloc(b->accounts + 1, sizeof(int64_t));
    for (uint64_t i = 1; i <= b->accounts; i++) {
        want[i] = b->initial;
    }
    size_t pos = 0;
    for (const struct entry *e; (e = map64_next(&b->entries, &pos, NULL)) != NULL;) {
        int64_t moved = e->ledger.amount * (int64_t)e->times;
        if (e->times != 0 && e->ledger.from >= 1 && e->ledger.from <= b->accounts) {
            want[e->ledger.from] -= moved;
        }
        if (e->times != 0 && e->ledger.to >= 1 && e->ledger.to <= b->accounts) {
            want[e->ledger.to] += moved;
        }
    }
    return want;
}

static void verify_accounts(const struct bank_ledger *b, bool compare, struct bank_verdict *v,
                            struct buf *say)
{
    int64_t *want = compare ? expected_balances(b) : NULL;
    for (uint64_t i = 1; i <= b->accounts; i++) {
        if (!b->seen[i]) {
            v->missing_accounts++;
            continue;
        }
        v->accounts++;
        v->total += b->balance[i];
        if (b->balance[i] < 0) {
            v->negative++;
        }
        if (want != NULL && want[i] != b->balance[i]) {
            v->balance_wrong++;
            if (v->balance_wrong <= SAY_MAX) {
                buf_printf(say,
                           "account %" PRIu64 " holds %" PRId64 ", its ledger says %" PRId64 "\n",
                           i, b->balance[i], want[i]);
            }
        }
    }
    span_free(want);
    int64_t paid_in = (int64_t)b->accounts * b->initial;
    if (v->total != paid_in || b->strange != 0) {
        v->total_wrong = 1;
        buf_printf(say, "the accounts hold %" PRId64 " in total, %" PRId64 " was paid in\n",
                   v->total, paid_in);
    }
    if (v->missing_accounts != 0 || b->strange != 0) {
        buf_printf(say,
                   "%" PRIu64 " accounts are missing, %" PRIu64 " are there that were never made\n",
                   v->missing_accounts, b->strange);
    }
    if (v->negative != 0) {
        buf_printf(say, "%" PRIu64 " accounts are below 0\n", v->negative);
    }
}

bool bank_ledger_verify(struct bank_ledger *b, bool compare_balances, struct bank_verdict *out,
                        struct buf *say)
{
    *out = (struct bank_verdict){0};
    verify_accounts(b, compare_balances, out, say);
    size_t pos = 0;
    for (const struct entry *e; (e = map64_next(&b->entries, &pos, NULL)) != NULL;) {
        verify_entry(e, out, say);
    }
    return out->missing_accounts == 0 && out->negative == 0 && out->total_wrong == 0 &&
           out->balance_wrong == 0 && out->lost == 0 && out->doubled == 0 && out->undead == 0 &&
           out->different == 0;
}

static const char *const told_words[] = {
    [BANK_TOLD_DONE] = "done", [BANK_TOLD_NOT_DONE] = "not", [BANK_TOLD_UNKNOWN] = "unknown"};

void bank_told_encode(const struct bank_transfer *t, enum bank_told told, struct buf *out)
{
    buf_printf(out, "%s %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRId64 "\n", told_words[told], t->id,
               t->from, t->to, t->amount);
}

span_status bank_told_decode(struct slice line, struct bank_transfer *t, enum bank_told *told)
{
    char text[128];
    char word[16];
    int end = 0;
    if (line.size == 0 || line.size >= sizeof(text)) {
        return SPAN_INVALID;
    }
    memcpy(text, line.data, line.size);
    text[line.size] = '\0';
    if (sscanf(text, "%15s %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNd64 "%n", word, &t->id,
               &t->from, &t->to, &t->amount, &end) != 5 ||
        (size_t)end != line.size || t->id == 0) {
        return SPAN_INVALID;
    }
    for (size_t i = 0; i < sizeof(told_words) / sizeof(told_words[0]); i++) {
        if (strcmp(word, told_words[i]) == 0) {
            *told = (enum bank_told)i;
            return SPAN_OK;
        }
    }
    return SPAN_INVALID;
}
