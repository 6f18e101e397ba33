/* register and append: a thread a client, which does one transaction after the other and never
 * repeats one, since every attempt is a transaction of its own in a history. What a client is told:
 *
 *   answer to COMMIT (or to a statement alone)     recorded as
 *   ok                                             ok
 *   40003, connection lost, node going away        unknown (rule C11)
 *   any other error                                fail
 *   error or lost connection before COMMIT         fail
 *
 * A third of the transactions only read; some of those read in the past. Appends go to lists that
 * are given up for a new one when they hold LIST_MAX values, or reads would grow without end. */
#include "deploy/workload/history_run.h"

#include "base/alloc.h"
#include "base/limits.h"
#include "base/rng.h"
#include "deploy/workload/history_file.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define STATEMENT_MS 60000
#define STRIDE       1000000u /* ids of one slot: its lists, one after the other */
#define LIST_MAX     48
#define OPS_MAX      4

struct history_load {
    const struct bank_options *o;
    bool is_append;
    const char *table;
    struct history_file *file; /* NULL: not recorded */
    uint64_t past_at;          /* from here on there is a past with the table in it */
    uint64_t stop_at;
    _Atomic int64_t next_value;
    _Atomic uint64_t *appends; /* per slot, ever begun */
    _Atomic uint64_t begun;
    _Atomic uint64_t committed;
    _Atomic uint64_t failed;
    _Atomic uint64_t unknown;
    _Atomic uint64_t reconnects;
    _Atomic bool stop;
    pthread_mutex_t lock; /* over fatal */
    char fatal[512];
};

struct history_client {
    struct history_load *l;
    pthread_t thread;
    struct rng rng;
    unsigned number;
    unsigned host;
    PGconn *conn;
    struct history_record record;
    char sqlstate[6]; /* of the last statement; empty: it went well */
    char id[128];
    char old_id[128];
};

static volatile sig_atomic_t interrupted;

static void on_signal(int number)
{
    (void)number;
    interrupted = 1;
}

static void pause_ms(uint64_t ms)
{
    struct timespec ts = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
    (void)nanosleep(&ts, NULL);
}

static bool is_over(struct history_load *l)
{
    return atomic_load(&l->stop) || interrupted != 0 || workload_now_ns() >= l->stop_at ||
           (l->o->transfers_max != 0 && atomic_load(&l->begun) >= l->o->transfers_max);
}

static void set_fatal(struct history_client *c, const char *sql, const PGresult *r)
{
    struct history_load *l = c->l;
    pthread_mutex_lock(&l->lock);
    if (l->fatal[0] == '\0') {
        (void)snprintf(l->fatal, sizeof(l->fatal), "%.100s: SQLSTATE %s: %.350s", sql, c->sqlstate,
                       PQresultErrorMessage(r));
    }
    pthread_mutex_unlock(&l->lock);
    atomic_store(&l->stop, true);
}

/* ---- one statement ---- */

static void hang_up(struct history_client *c)
{
    PQfinish(c->conn);
    c->conn = NULL;
    c->old_id[0] = '\0';
    c->host++;
    atomic_fetch_add(&c->l->reconnects, 1);
}

/* Classes whose errors no other attempt cures. */
static bool is_hopeless(const char *sqlstate)
{
    return strncmp(sqlstate, "42", 2) == 0 || strncmp(sqlstate, "28", 2) == 0 ||
           strncmp(sqlstate, "0A", 2) == 0;
}

/* Waits for the whole answer until the time-out: false, the connection is as good as lost. */
static bool wait_answer(struct history_client *c, uint64_t until)
{
    while (PQisBusy(c->conn) != 0) {
        uint64_t now = workload_now_ns();
        struct pollfd p = {.fd = PQsocket(c->conn), .events = POLLIN};
        if (now >= until || p.fd < 0) {
            return false;
        }
        int n = poll(&p, 1, (int)((until - now) / MS_NS) + 1);
        if ((n < 0 && errno != EINTR) || PQconsumeInput(c->conn) == 0) {
            return false;
        }
    }
    return true;
}

/* Runs a statement; its first value goes to *value ("" and *rows 0 when there is none). The
 * SQLSTATE is left in c: "" done, "08006" the connection is lost (and hung up). */
static bool run(struct history_client *c, const char *sql, struct buf *value, bool *found)
{
    uint64_t until = workload_now_ns() + c->l->o->timeout_ms * MS_NS;
    c->sqlstate[0] = '\0';
    bool sent = PQsendQuery(c->conn, sql) == 1;
    while (sent) {
        if (!wait_answer(c, until)) {
            sent = false;
            break;
        }
        PGresult *r = PQgetResult(c->conn);
        if (r == NULL) {
            break;
        }
        ExecStatusType status = PQresultStatus(r);
        if (status == PGRES_TUPLES_OK && value != NULL) {
            *found = PQntuples(r) > 0;
            buf_clear(value);
            buf_append_str(value, *found ? PQgetvalue(r, 0, 0) : "");
        } else if (status == PGRES_COMMAND_OK && strcmp(PQcmdStatus(r), "ROLLBACK") == 0 &&
                   strcmp(sql, "COMMIT") == 0) {
            (void)snprintf(c->sqlstate, sizeof(c->sqlstate), "40000");
        } else if (status != PGRES_TUPLES_OK && status != PGRES_COMMAND_OK) {
            const char *state = PQresultErrorField(r, PG_DIAG_SQLSTATE);
            (void)snprintf(c->sqlstate, sizeof(c->sqlstate), "%s", state == NULL ? "08006" : state);
            if (is_hopeless(c->sqlstate)) {
                set_fatal(c, sql, r);
            }
        }
        PQclear(r);
    }
    if (!sent || PQstatus(c->conn) == CONNECTION_BAD) {
        if (c->sqlstate[0] == '\0') {
            (void)snprintf(c->sqlstate, sizeof(c->sqlstate), "08006");
        }
        hang_up(c);
    }
    return c->sqlstate[0] == '\0';
}

static bool connect_client(struct history_client *c)
{
    struct span_error err = {0};
    while (c->conn == NULL && !is_over(c->l)) {
        if (cluster_url_connect(c->l->o->url, c->host, 1000, &c->conn, &err) != SPAN_OK) {
            c->conn = NULL;
            c->host++;
            pause_ms(20);
        }
    }
    return c->conn != NULL;
}

/* ---- one transaction ---- */

static uint64_t draw_key(struct history_client *c, uint64_t *slot)
{
    *slot = rng_below(&c->rng, c->l->o->keys);
    uint64_t generation = c->l->is_append ? atomic_load(&c->l->appends[*slot]) / LIST_MAX : 0;
    return *slot * STRIDE + generation % STRIDE;
}

static bool do_read(struct history_client *c)
{
    struct buf value = {0};
    bool found = false;
    uint64_t slot = 0;
    char sql[128];
    uint64_t key = draw_key(c, &slot);
    (void)snprintf(sql, sizeof(sql), "SELECT v FROM %s WHERE id = %" PRIu64, c->l->table, key);
    bool good = run(c, sql, &value, &found);
    if (good) {
        struct buf json = {0};
        buf_printf(&json, c->l->is_append ? "[%s]" : "%s",
                   found || c->l->is_append ? buf_cstr(&value) : "null");
        history_record_read(&c->record, key, buf_cstr(&json));
        buf_deinit(&json);
    }
    buf_deinit(&value);
    return good;
}

static bool do_write(struct history_client *c)
{
    uint64_t slot = 0;
    char sql[224];
    uint64_t key = draw_key(c, &slot);
    int64_t value = atomic_fetch_add(&c->l->next_value, 1);
    if (c->l->is_append) {
        atomic_fetch_add(&c->l->appends[slot], 1);
        (void)snprintf(sql, sizeof(sql),
                       "INSERT INTO check_append VALUES (%" PRIu64 ", '%" PRId64
                       "') ON CONFLICT (id) DO UPDATE SET v = v || ',%" PRId64 "'",
                       key, value, value);
    } else {
        (void)snprintf(sql, sizeof(sql),
                       "INSERT INTO check_register VALUES (%" PRIu64 ", %" PRId64
                       ") ON CONFLICT (id) DO UPDATE SET v = excluded.v",
                       key, value);
    }
    /* Written down before it is sent: a lost answer does not undo it. */
    history_record_value(&c->record, c->l->is_append ? "append" : "w", key, value);
    return run(c, sql, NULL, NULL);
}

static void remember_id(struct history_client *c)
{
    const char *id = c->conn == NULL ? NULL : PQparameterStatus(c->conn, "spanlite.txn_id");
    c->id[0] = '\0';
    if (id != NULL && id[0] != '\0' && strcmp(id, c->old_id) != 0) {
        (void)snprintf(c->id, sizeof(c->id), "%s", id);
        memcpy(c->old_id, c->id, sizeof(c->old_id));
    }
}

/* The commit timestamp of the transaction just acknowledged; 0 when nobody tells. */
static uint64_t ask_timestamp(struct history_client *c)
{
    char sql[256];
    uint64_t ts = 0;
    if (c->id[0] == '\0' || c->conn == NULL) {
        return 0;
    }
    char *quoted = PQescapeLiteral(c->conn, c->id, strlen(c->id));
    if (quoted == NULL) {
        return 0;
    }
    (void)snprintf(sql, sizeof(sql), "SHOW TRANSACTION STATUS %.200s", quoted);
    PQfreemem(quoted);
    if (PQsendQuery(c->conn, sql) == 1 &&
        wait_answer(c, workload_now_ns() + c->l->o->timeout_ms * MS_NS)) {
        for (PGresult *r;
             wait_answer(c, workload_now_ns() + SEC_NS) && (r = PQgetResult(c->conn)) != NULL;) {
            if (PQresultStatus(r) == PGRES_TUPLES_OK && PQntuples(r) == 1 && PQnfields(r) > 1 &&
                strcmp(PQgetvalue(r, 0, 0), "committed") == 0) {
                ts = strtoull(PQgetvalue(r, 0, 1), NULL, 10);
            }
            PQclear(r);
        }
    } else {
        hang_up(c);
    }
    return ts;
}

/* After the answer to COMMIT or to a statement alone. */
static void told(struct history_client *c, bool good)
{
    struct history_record *r = &c->record;
    bool lost = strcmp(c->sqlstate, "40003") == 0 || strncmp(c->sqlstate, "08", 2) == 0 ||
                strncmp(c->sqlstate, "57", 2) == 0 || strncmp(c->sqlstate, "58", 2) == 0 ||
                strncmp(c->sqlstate, "XX", 2) == 0;
    r->end = workload_now_ns();
    r->told = good ? HISTORY_TOLD_OK : lost ? HISTORY_TOLD_UNKNOWN : HISTORY_TOLD_FAIL;
}

/* A statement by itself. */
static void transact_alone(struct history_client *c)
{
    bool write = rng_below(&c->rng, 2) == 0;
    c->record.start = workload_now_ns();
    bool good = write ? do_write(c) : do_read(c);
    told(c, good);
    if (write) {
        remember_id(c);
    }
}

static void transact(struct history_client *c)
{
    static const char *const past[] = {"'-100ms'", "'-300ms'", "'-1s'"};
    bool read_only = rng_below(&c->rng, 3) == 0;
    uint64_t ops = 1 + rng_below(&c->rng, OPS_MAX);
    char begin[64] = "BEGIN";
    if (read_only) {
        c->record.as_of = rng_below(&c->rng, 3) == 0 && workload_now_ns() >= c->l->past_at;
        (void)snprintf(begin, sizeof(begin), "BEGIN READ ONLY%s%s",
                       c->record.as_of ? " AS OF " : "",
                       c->record.as_of ? past[rng_below(&c->rng, 3)] : "");
    }
    c->record.start = workload_now_ns();
    bool good = run(c, begin, NULL, NULL);
    for (uint64_t i = 0; i < ops && good; i++) {
        good = read_only || rng_below(&c->rng, 2) == 0 ? do_read(c) : do_write(c);
    }
    if (!good) {
        c->record.told = HISTORY_TOLD_FAIL;
        c->record.end = workload_now_ns();
        if (c->conn != NULL && PQtransactionStatus(c->conn) != PQTRANS_IDLE) {
            (void)run(c, "ROLLBACK", NULL, NULL);
        }
        return;
    }
    remember_id(c);
    told(c, run(c, "COMMIT", NULL, NULL));
}

static void record(struct history_client *c)
{
    struct history_load *l = c->l;
    struct history_record *r = &c->record;
    bool good = r->told == HISTORY_TOLD_OK;
    if (good && c->id[0] != '\0') {
        r->ts = ask_timestamp(c);
    }
    atomic_fetch_add(good                              ? &l->committed
                     : r->told == HISTORY_TOLD_UNKNOWN ? &l->unknown
                                                       : &l->failed,
                     1);
    if (l->file != NULL) {
        history_file_add(l->file, r);
    }
    if (!good) {
        pause_ms(1 + rng_below(&c->rng, 10));
    }
}

static void *client_main(void *arg)
{
    struct history_client *c = arg;
    while (!is_over(c->l) && connect_client(c)) {
        atomic_fetch_add(&c->l->begun, 1);
        history_record_clear(&c->record);
        c->id[0] = '\0';
        if (rng_below(&c->rng, 4) == 0) {
            transact_alone(c);
        } else {
            transact(c);
        }
        record(c);
    }
    return NULL;
}

/* ---- the run ---- */

static span_status exec(const struct bank_options *o, PGconn **conn, const char *sql,
                        struct span_error *err)
{
    PGresult *r = NULL;
    span_status st = cluster_url_exec(o->url, conn, sql, STATEMENT_MS, &r, err);
    PQclear(st == SPAN_OK ? r : NULL);
    return st;
}

static span_status make_table(const struct history_load *l, struct span_error *err)
{
    const struct bank_options *o = l->o;
    PGconn *conn = NULL;
    struct buf sql = {0};
    buf_printf(&sql, "DROP TABLE IF EXISTS %s", l->table);
    span_status st = exec(o, &conn, buf_cstr(&sql), err);
    if (st == SPAN_OK) {
        buf_clear(&sql);
        buf_printf(&sql, "CREATE TABLE IF NOT EXISTS %s (id INTEGER PRIMARY KEY, v %s NOT NULL)",
                   l->table, l->is_append ? "TEXT" : "INTEGER");
        st = exec(o, &conn, buf_cstr(&sql), err);
    }
    if (st == SPAN_OK && o->ranges > 1 && o->keys > 1) {
        buf_clear(&sql);
        buf_printf(&sql, "ALTER TABLE %s SPLIT AT VALUES ", l->table);
        uint64_t ranges = o->ranges < o->keys ? o->ranges : o->keys;
        for (uint64_t i = 1; i < ranges; i++) {
            buf_printf(&sql, "%s(%" PRIu64 ")", i == 1 ? "" : ", ", o->keys * i / ranges * STRIDE);
        }
        st = exec(o, &conn, buf_cstr(&sql), err);
    }
    PQfinish(conn);
    buf_deinit(&sql);
    return st;
}

static void report(const struct history_load *l, double seconds)
{
    uint64_t committed = atomic_load(&l->committed);
    uint64_t failed = atomic_load(&l->failed);
    uint64_t unknown = atomic_load(&l->unknown);
    if (l->o->json) {
        (void)printf("{\"transactions\": %" PRIu64 ", \"failed\": %" PRIu64
                     ", \"unknown\": %" PRIu64 ", \"reconnects\": %" PRIu64
                     ", \"seconds\": %.3f, \"clients\": %u, \"keys\": %" PRIu64 ", \"ok\": %s}\n",
                     committed, failed, unknown, atomic_load(&l->reconnects), seconds,
                     l->o->clients, l->o->keys,
                     l->fatal[0] == '\0' && committed != 0 ? "true" : "false");
        return;
    }
    (void)printf("transactions       %" PRIu64 " in %.1f s by %u clients over %" PRIu64 " keys\n",
                 committed, seconds, l->o->clients, l->o->keys);
    (void)printf("failed             %" PRIu64 " (did not happen)\n", failed);
    (void)printf("outcome unknown    %" PRIu64 "\n", unknown);
    (void)printf("reconnects         %" PRIu64 "\n", atomic_load(&l->reconnects));
    if (l->o->history != NULL) {
        (void)printf("history            %s: judge it with \"spanlite check\"\n", l->o->history);
    }
}

static void run_clients(struct history_load *l)
{
    struct history_client *clients = span_calloc(l->o->clients, sizeof(*clients));
    unsigned started = 0;
    for (; started < l->o->clients; started++) {
        struct history_client *c = &clients[started];
        c->l = l;
        c->number = started;
        c->host = started;
        c->record.client = started;
        rng_init(&c->rng, l->o->seed ^ (0x9e3779b97f4a7c15ULL * (started + 1)));
        if (pthread_create(&c->thread, NULL, client_main, c) != 0) {
            (void)snprintf(l->fatal, sizeof(l->fatal), "no thread for client %u", started);
            atomic_store(&l->stop, true);
            break;
        }
    }
    for (unsigned i = 0; i < started; i++) {
        (void)pthread_join(clients[i].thread, NULL);
        PQfinish(clients[i].conn);
        buf_deinit(&clients[i].record.ops);
    }
    span_free(clients);
}

static int history_run(const struct bank_options *o, bool is_append)
{
    struct history_load *l = SPAN_NEW(struct history_load);
    struct span_error err = {0};
    struct sigaction sa = {.sa_handler = on_signal};
    struct sigaction old_int;
    struct sigaction old_term;
    l->o = o;
    l->is_append = is_append;
    l->table = is_append ? "check_append" : "check_register";
    l->appends = span_calloc(o->keys, sizeof(*l->appends));
    atomic_store(&l->next_value, 1);
    pthread_mutex_init(&l->lock, NULL);
    interrupted = 0;
    span_status st = make_table(l, &err);
    if (st == SPAN_OK && o->history != NULL) {
        st = history_file_open(o->history, is_append ? "append" : "register", "", &l->file, &err);
    }
    int code = st == SPAN_OK ? 0 : bank_fail(&err);
    if (st == SPAN_OK) {
        (void)sigaction(SIGINT, &sa, &old_int);
        (void)sigaction(SIGTERM, &sa, &old_term);
        uint64_t begun = workload_now_ns();
        l->past_at = begun + 1500 * MS_NS;
        l->stop_at = begun + (uint64_t)(o->seconds * 1e9);
        run_clients(l);
        report(l, (double)(workload_now_ns() - begun) / 1e9);
        (void)fflush(stdout);
        if (l->fatal[0] != '\0' || atomic_load(&l->committed) == 0) {
            (void)fprintf(stderr, "spanlite workload: %s\n",
                          l->fatal[0] == '\0' ? "no transaction was acknowledged" : l->fatal);
            code = 1;
        }
        /* Every client ended its transaction, so what is in the file is all there was. */
        if (history_file_close(l->file, true, &err) != SPAN_OK) {
            code = bank_fail(&err);
        }
        (void)sigaction(SIGINT, &old_int, NULL);
        (void)sigaction(SIGTERM, &old_term, NULL);
    }
    (void)pthread_mutex_destroy(&l->lock);
    span_free(l->appends);
    span_free(l);
    return code;
}

int history_run_register(const struct bank_options *o)
{
    return history_run(o, false);
}

int history_run_append(const struct bank_options *o)
{
    return history_run(o, true);
}
