/* bank check: reads accounts and ledger in one read-only transaction and holds them against the
 * books (bank_ledger.c), and against what clients were told (--acks). The sums are made here and
 * not in SQL, so that a wrong join on the server cannot hide a wrong row. */
#include "base/alloc.h"
#include "base/limits.h"
#include "deploy/workload/bank.h"
#include "deploy/workload/bank_ledger.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define TRIES 20
#define INFO_NS                                                                                    \
    (10 * SEC_NS) /* without a majority each try takes that long: then one is enough               \
                   */

static uint64_t number(const PGresult *r, int row, int column)
{
    return strtoull(PQgetvalue(r, row, column), NULL, 10);
}

/* Both tables at one timestamp. A failure in the middle is UNAVAILABLE or INVALID; the caller
 * begins again with an empty ledger. */
static span_status read_tables(PGconn *conn, struct bank_ledger *b, struct span_error *err)
{
    static const char *const statements[] = {
        "BEGIN READ ONLY",
        "SELECT id, balance FROM accounts",
        "SELECT id, from_id, to_id, amount FROM transfers",
        "COMMIT",
    };
    for (size_t i = 0; i < 4; i++) {
        PGresult *r = PQexec(conn, statements[i]);
        ExecStatusType status = PQresultStatus(r);
        if (status != PGRES_TUPLES_OK && status != PGRES_COMMAND_OK) {
            const char *state = PQresultErrorField(r, PG_DIAG_SQLSTATE);
            bool again = state == NULL || cluster_sqlstate_is_retryable(state) ||
                         strcmp(state, "40003") == 0;
            span_status st =
                span_fail(err, again ? SPAN_UNAVAILABLE : SPAN_INVALID, "%s: %.*s", statements[i],
                          (int)strcspn(PQerrorMessage(conn), "\n"), PQerrorMessage(conn));
            PQclear(r);
            return st;
        }
        for (int row = 0; i == 1 && row < PQntuples(r); row++) {
            bank_ledger_account(b, number(r, row, 0), strtoll(PQgetvalue(r, row, 1), NULL, 10));
        }
        for (int row = 0; i == 2 && row < PQntuples(r); row++) {
            struct bank_transfer t = {number(r, row, 0), number(r, row, 1), number(r, row, 2),
                                      strtoll(PQgetvalue(r, row, 3), NULL, 10)};
            bank_ledger_transfer(b, &t);
        }
        PQclear(r);
    }
    return SPAN_OK;
}

/* The file as `run --acks` appended to it; a line that a crash of the client tore is left out if it
 * is the last one. */
static span_status read_acks(const char *path, struct bank_ledger *b, struct span_error *err)
{
    FILE *f = fopen(path, "r");
    if (f == NULL) {
        return span_fail(err, SPAN_IO, "%s: %s", path, strerror(errno));
    }
    char *line = NULL;
    size_t cap = 0;
    uint64_t n = 0;
    span_status st = SPAN_OK;
    for (ssize_t size; st == SPAN_OK && (size = getline(&line, &cap, f)) > 0;) {
        struct bank_transfer t;
        enum bank_told told;
        n++;
        if (line[size - 1] != '\n') {
            break;
        }
        st = bank_told_decode(slice_of(line, (size_t)size - 1), &t, &told);
        if (st == SPAN_OK) {
            bank_ledger_told(b, &t, told);
        } else {
            st = span_fail(err, SPAN_INVALID,
                           "%s:%" PRIu64 ": not a line of an acknowledgement file", path, n);
        }
    }
    free(line); /* getline's own */
    (void)fclose(f);
    return st;
}

static span_status read_all(const struct bank_options *o, struct bank_info *info,
                            struct bank_ledger **out, struct span_error *err)
{
    uint64_t begin = workload_now_ns();
    span_status st = SPAN_UNAVAILABLE;
    for (unsigned i = 0; i < TRIES && st == SPAN_UNAVAILABLE; i++) {
        PGconn *conn = NULL;
        if (i > 0) {
            struct timespec ts = {0, 100000000};
            (void)nanosleep(&ts, NULL);
        }
        st = cluster_url_connect(o->url, i, 10000, &conn, err);
        if (st != SPAN_OK) {
            return st;
        }
        st = bank_info_read(o->url, &conn, info, err);
        if (st == SPAN_OK) {
            bank_ledger_free(*out);
            *out = bank_ledger_new(info->accounts, info->balance);
            st = read_tables(conn, *out, err);
        } else if (workload_now_ns() - begin >= INFO_NS) {
            i = TRIES;
        }
        PQfinish(conn);
    }
    return st;
}

static void report(const struct bank_options *o, const struct bank_verdict *v, bool ok)
{
    if (o->json) {
        (void)printf("{\"accounts\": %" PRIu64 ", \"total\": %" PRId64 ", \"transfers\": %" PRIu64
                     ", \"acknowledged\": %" PRIu64 ", \"refused\": %" PRIu64
                     ", \"unknown\": %" PRIu64 ", \"unknown_done\": %" PRIu64 ", ",
                     v->accounts, v->total, v->transfers, v->acknowledged, v->refused, v->unknown,
                     v->unknown_done);
        (void)printf("\"missing_accounts\": %" PRIu64 ", \"negative\": %" PRIu64
                     ", \"total_wrong\": %" PRIu64 ", \"balance_wrong\": %" PRIu64
                     ", \"lost\": %" PRIu64 ", \"doubled\": %" PRIu64 ", \"undead\": %" PRIu64
                     ", \"different\": %" PRIu64 ", \"ok\": %s}\n",
                     v->missing_accounts, v->negative, v->total_wrong, v->balance_wrong, v->lost,
                     v->doubled, v->undead, v->different, ok ? "true" : "false");
        return;
    }
    (void)printf("accounts           %" PRIu64 " holding %" PRId64 "\n", v->accounts, v->total);
    (void)printf("ledger             %" PRIu64 " transfers%s\n", v->transfers,
                 o->ledger ? ", compared with every balance" : "");
    if (o->acks != NULL) {
        (void)printf("acknowledged       %" PRIu64 ": %" PRIu64 " lost, %" PRIu64
                     " doubled, %" PRIu64 " different\n",
                     v->acknowledged, v->lost, v->doubled, v->different);
        (void)printf("refused            %" PRIu64 ": %" PRIu64 " done nevertheless\n", v->refused,
                     v->undead);
        (void)printf("outcome unknown    %" PRIu64 ": %" PRIu64 " of them done\n", v->unknown,
                     v->unknown_done);
    }
    (void)printf("verdict            %s\n", ok ? "ok" : "NOT OK");
}

int bank_check(const struct bank_options *o)
{
    struct span_error err = {0};
    struct bank_info info = {0};
    struct bank_ledger *b = NULL;
    struct bank_verdict v;
    struct buf say;
    span_status st = read_all(o, &info, &b, &err);
    if (st == SPAN_OK && o->acks != NULL) {
        st = read_acks(o->acks, b, &err);
    }
    if (st != SPAN_OK) {
        bank_ledger_free(b);
        return bank_fail(&err);
    }
    buf_init(&say);
    bool ok = bank_ledger_verify(b, o->ledger, &v, &say);
    report(o, &v, ok);
    (void)fflush(stdout);
    (void)fputs(buf_cstr(&say), stderr);
    buf_deinit(&say);
    bank_ledger_free(b);
    return ok ? 0 : 1;
}
