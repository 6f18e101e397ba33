/* bank init: the tables, their splits, the accounts; and what run and check read of it. Every
 * statement may be run twice without harm, so that a leader lost in the middle is no matter. */
#include "deploy/workload/bank.h"

#include "base/buf.h"
#include "base/limits.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BATCH_ROWS   500
#define STATEMENT_MS 60000
#define LEDGER_TOP   (UINT64_MAX >> 2) /* transfer ids are below it */

int bank_fail(const struct span_error *err)
{
    (void)fprintf(stderr, "spanlite workload: %s\n", err->text);
    return err->code == SPAN_UNAVAILABLE ? 2 : 1;
}

/* A statement without a result of interest. */
static span_status run_sql(const struct bank_options *o, PGconn **conn, const char *sql,
                           struct span_error *err)
{
    PGresult *r = NULL;
    span_status st = cluster_url_exec(o->url, conn, sql, STATEMENT_MS, &r, err);
    if (st == SPAN_OK) {
        PQclear(r);
    }
    return st;
}

span_status bank_info_read(const struct cluster_url *u, PGconn **conn, struct bank_info *out,
                           struct span_error *err)
{
    PGresult *r = NULL;
    *out = (struct bank_info){0};
    span_status st = cluster_url_exec(u, conn, "SELECT key, value FROM bank_info", 5000, &r, err);
    if (st != SPAN_OK) {
        return strstr(err->text, "42P01") != NULL
                   ? span_fail(err, SPAN_NOT_FOUND,
                               "there is no bank yet: run \"spanlite workload bank init\" first")
                   : st;
    }
    for (int i = 0; i < PQntuples(r); i++) {
        if (strcmp(PQgetvalue(r, i, 0), "accounts") == 0) {
            out->accounts = strtoull(PQgetvalue(r, i, 1), NULL, 10);
        } else if (strcmp(PQgetvalue(r, i, 0), "balance") == 0) {
            out->balance = strtoll(PQgetvalue(r, i, 1), NULL, 10);
        }
    }
    PQclear(r);
    if (out->accounts < 2) {
        return span_fail(err, SPAN_NOT_FOUND,
                         "the bank is not complete: run \"spanlite workload "
                         "bank init --force\" again");
    }
    return SPAN_OK;
}

static span_status make_tables(const struct bank_options *o, PGconn **conn, struct span_error *err)
{
    static const char *const drop[] = {
        "DROP TABLE IF EXISTS bank_info",
        "DROP TABLE IF EXISTS transfers",
        "DROP TABLE IF EXISTS accounts",
    };
    static const char *const create[] = {
        "CREATE TABLE IF NOT EXISTS accounts (id INTEGER PRIMARY KEY, "
        "balance INTEGER NOT NULL CHECK (balance >= 0))",
        "CREATE TABLE IF NOT EXISTS transfers (id BIGINT PRIMARY KEY, from_id INTEGER NOT NULL, "
        "to_id INTEGER NOT NULL, amount INTEGER NOT NULL)",
        "CREATE TABLE IF NOT EXISTS bank_info (key TEXT PRIMARY KEY, value INTEGER NOT NULL)",
    };
    span_status st = SPAN_OK;
    if (!o->force) {
        struct bank_info info;
        struct span_error ignored = {0};
        st = bank_info_read(o->url, conn, &info, &ignored);
        if (st == SPAN_OK) {
            return span_fail(err, SPAN_EXISTS,
                             "there is a bank of %" PRIu64 " accounts already: --force replaces it",
                             info.accounts);
        }
        if (st != SPAN_NOT_FOUND) {
            *err = ignored;
            return st;
        }
    }
    /* Without --force only what an interrupted init left behind is dropped: bank_info comes last.
     */
    for (size_t i = 0; i < 3; i++) {
        st = run_sql(o, conn, drop[i], err);
        if (st != SPAN_OK) {
            return st;
        }
    }
    for (size_t i = 0; i < 3; i++) {
        st = run_sql(o, conn, create[i], err);
        if (st != SPAN_OK) {
            return st;
        }
    }
    return SPAN_OK;
}

/* Splits a table into o->ranges equal parts of the ids 1 .. top. */
static span_status split_table(const struct bank_options *o, PGconn **conn, const char *table,
                               uint64_t top, struct span_error *err)
{
    struct buf sql;
    if (o->ranges < 2) {
        return SPAN_OK;
    }
    buf_init(&sql);
    buf_printf(&sql, "ALTER TABLE %s SPLIT AT VALUES ", table);
    for (unsigned i = 1; i < o->ranges; i++) {
        uint64_t at = top / o->ranges * i + top % o->ranges * i / o->ranges + 1;
        buf_printf(&sql, "%s(%" PRIu64 ")", i == 1 ? "" : ", ", at);
    }
    span_status st = run_sql(o, conn, buf_cstr(&sql), err);
    buf_deinit(&sql);
    return st;
}

static span_status fill_accounts(const struct bank_options *o, PGconn **conn,
                                 struct span_error *err)
{
    bool show = !o->quiet && isatty(STDERR_FILENO);
    struct buf sql;
    span_status st = SPAN_OK;
    buf_init(&sql);
    for (uint64_t id = 1; id <= o->accounts && st == SPAN_OK;) {
        buf_clear(&sql);
        buf_append_str(&sql, "INSERT INTO accounts VALUES ");
        for (unsigned i = 0; i < BATCH_ROWS && id <= o->accounts; i++, id++) {
            buf_printf(&sql, "%s(%" PRIu64 ",%" PRId64 ")", i == 0 ? "" : ",", id, o->balance);
        }
        /* A batch whose answer was lost is sent again. */
        buf_append_str(&sql, " ON CONFLICT (id) DO NOTHING");
        st = run_sql(o, conn, buf_cstr(&sql), err);
        if (show) {
            (void)fprintf(stderr, "\r%" PRIu64 " of %" PRIu64 " accounts\x1b[K", id - 1,
                          o->accounts);
        }
    }
    if (show) {
        (void)fputs("\r\x1b[K", stderr);
    }
    buf_deinit(&sql);
    return st;
}

static span_status write_info(const struct bank_options *o, PGconn **conn, struct span_error *err)
{
    char sql[192];
    (void)snprintf(sql, sizeof(sql),
                   "INSERT INTO bank_info VALUES ('accounts', %" PRIu64 "), ('balance', %" PRId64
                   ") ON CONFLICT (key) DO NOTHING",
                   o->accounts, o->balance);
    return run_sql(o, conn, sql, err);
}

int bank_init(const struct bank_options *o)
{
    struct span_error err = {0};
    PGconn *conn = NULL;
    uint64_t start = workload_now_ns();
    span_status st = make_tables(o, &conn, &err);
    if (st == SPAN_OK) {
        st = split_table(o, &conn, "accounts", o->accounts, &err);
    }
    if (st == SPAN_OK) {
        st = split_table(o, &conn, "transfers", LEDGER_TOP, &err);
    }
    if (st == SPAN_OK) {
        st = fill_accounts(o, &conn, &err);
    }
    if (st == SPAN_OK) {
        st = write_info(o, &conn, &err);
    }
    PQfinish(conn);
    if (st != SPAN_OK) {
        return bank_fail(&err);
    }
    double took = (double)(workload_now_ns() - start) / 1e9;
    if (o->json) {
        (void)printf("{\"accounts\": %" PRIu64 ", \"ranges\": %u, \"balance\": %" PRId64
                     ", \"seconds\": %.3f, \"ok\": true}\n",
                     o->accounts, o->ranges, o->balance, took);
    } else {
        (void)printf("%" PRIu64 " accounts of %" PRId64 " in %u range%s, made in %.1f s\n",
                     o->accounts, o->balance, o->ranges, o->ranges == 1 ? "" : "s", took);
    }
    return 0;
}
