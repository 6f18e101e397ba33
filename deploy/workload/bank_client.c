/* A client of the bank as a state machine over non-blocking libpq: see bank_client.h. */
#include "deploy/workload/bank_client.h"

#include "base/alloc.h"
#include "base/invariant.h"
#include "base/limits.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>

#define STATUS_PATIENCE_NS (30 * SEC_NS)
#define STATUS_PAUSE_NS    (20 * MS_NS)
#define STALE_AFTER_NS     (1500 * MS_NS) /* stale audits read times at which the bank was whole */

static void go_ready(struct bank_client *c);
static void go_down(struct bank_client *c, uint64_t pause_ns);
static void next_step(struct bank_client *c);

void bank_client_init(struct bank_client *c, struct bank_shared *s, unsigned number, bool auditor)
{
    *c = (struct bank_client){.s = s, .number = number, .auditor = auditor, .fd = -1};
    rng_init(&c->rng, s->o->seed ^ (0x9e3779b97f4a7c15ULL * (number + 1)));
    c->host = number;
    c->state = BANK_DOWN;
    s->active++;
    heap_insert(&s->timers, &c->timer, s->now);
}

void bank_client_deinit(struct bank_client *c)
{
    heap_remove(&c->s->timers, &c->timer);
    PQfinish(c->conn);
    c->conn = NULL;
    buf_deinit(&c->record.ops);
}

static bool is_finished(const struct bank_shared *s)
{
    return s->stopping ||
           (s->o->transfers_max != 0 && s->committed + s->declined >= s->o->transfers_max);
}

static void record_stamp(struct bank_client *c, uint64_t ts);

static void go_done(struct bank_client *c)
{
    record_stamp(c, 0);
    if (c->state != BANK_DONE) {
        c->state = BANK_DONE;
        c->s->active--;
        c->sent_at = 0;
        heap_remove(&c->s->timers, &c->timer);
        PQfinish(c->conn);
        c->conn = NULL;
        c->fd = -1;
    }
}

static void say_trouble(struct bank_shared *s, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

static void say_trouble(struct bank_shared *s, const char *fmt, ...)
{
    va_list ap;
    if (s->trouble[0] == '\0') {
        va_start(ap, fmt);
        (void)vsnprintf(s->trouble, sizeof(s->trouble), fmt, ap);
        va_end(ap);
    }
}

/* Sockets. */

static void watch(struct bank_client *c, uint32_t events)
{
    struct epoll_event ev = {.events = events, .data.ptr = c};
    int fd = PQsocket(c->conn);
    if (fd < 0) {
        return;
    }
    /* libpq may have closed one socket and opened another with the same number. */
    if (epoll_ctl(c->s->epoll_fd, EPOLL_CTL_MOD, fd, &ev) != 0) {
        (void)epoll_ctl(c->s->epoll_fd, EPOLL_CTL_ADD, fd, &ev);
    }
    c->fd = fd;
}

static void wake_in(struct bank_client *c, uint64_t ns)
{
    heap_insert(&c->s->timers, &c->timer, c->s->now + ns);
}

/* Doubling from 1 ms to 64 ms, with jitter so that two who collided do not meet again. */
static uint64_t backoff_ns(struct bank_client *c)
{
    unsigned n = c->attempt < 6 ? c->attempt : 6;
    uint64_t top = MS_NS << n;
    return top / 2 + rng_below(&c->rng, top);
}

/* Sends one statement of the simple protocol; its answer leads to next_step in state `state`. */
static void begin_answer(struct bank_client *c, enum bank_state state, int sent)
{
    c->state = state;
    c->failed = false;
    c->sqlstate[0] = '\0';
    c->not_done = false;
    c->value[0][0] = '\0';
    c->sent_at = c->s->now;
    int flushed = sent == 1 ? PQflush(c->conn) : -1;
    if (flushed < 0) {
        go_down(c, backoff_ns(c));
    } else if (flushed > 0) {
        c->out_pending = true;
        watch(c, EPOLLIN | EPOLLOUT);
    }
}

static void send_sql(struct bank_client *c, enum bank_state state, const char *sql)
{
    begin_answer(c, state, PQsendQuery(c->conn, sql));
}

static void send_step(struct bank_client *c, enum bank_state state)
{
    const struct bank_transfer *t = &c->transfer;
    char id[24];
    char from[24];
    char to[24];
    char amount[24];
    char sql[160];
    (void)snprintf(id, sizeof(id), "%" PRIu64, t->id);
    (void)snprintf(from, sizeof(from), "%" PRIu64, t->from);
    (void)snprintf(to, sizeof(to), "%" PRIu64, t->to);
    (void)snprintf(amount, sizeof(amount), "%" PRId64, t->amount);
    const char *name = state == BANK_LEDGER ? "ledger" : state == BANK_DEBIT ? "debit" : "credit";
    const char *const ledger[] = {id, from, to, amount};
    const char *const update[] = {amount, state == BANK_DEBIT ? from : to};
    bool is_ledger = state == BANK_LEDGER;
    if (c->s->o->prepared) {
        begin_answer(c, state,
                     PQsendQueryPrepared(c->conn, name, is_ledger ? 4 : 2,
                                         is_ledger ? ledger : update, NULL, NULL, 0));
        return;
    }
    if (is_ledger) {
        (void)snprintf(sql, sizeof(sql), "INSERT INTO transfers VALUES (%s, %s, %s, %s)", id, from,
                       to, amount);
    } else {
        (void)snprintf(sql, sizeof(sql),
                       "UPDATE accounts SET balance = balance %c %s WHERE id = %s",
                       state == BANK_DEBIT ? '-' : '+', amount, update[1]);
    }
    send_sql(c, state, sql);
}

static void send_whole(struct bank_client *c)
{
    const struct bank_transfer *t = &c->transfer;
    char sql[512];
    int n =
        snprintf(sql, sizeof(sql),
                 "BEGIN; UPDATE accounts SET balance = balance - %" PRId64 " WHERE id = %" PRIu64
                 "; UPDATE accounts SET balance = balance + %" PRId64 " WHERE id = %" PRIu64 "; ",
                 t->amount, t->from, t->amount, t->to);
    if (c->s->o->ledger) {
        n += snprintf(sql + n, sizeof(sql) - (size_t)n,
                      "INSERT INTO transfers VALUES (%" PRIu64 ", %" PRIu64 ", %" PRIu64
                      ", %" PRId64 "); ",
                      t->id, t->from, t->to, t->amount);
    }
    (void)snprintf(sql + n, sizeof(sql) - (size_t)n, "COMMIT");
    send_sql(c, BANK_WHOLE, sql);
}

static void send_prepare(struct bank_client *c)
{
    static const char *const statements[][2] = {
        {"debit", "UPDATE accounts SET balance = balance - $1 WHERE id = $2"},
        {"credit", "UPDATE accounts SET balance = balance + $1 WHERE id = $2"},
        {"ledger", "INSERT INTO transfers VALUES ($1, $2, $3, $4)"},
    };
    unsigned count = c->s->o->ledger ? 3 : 2;
    if (c->prepare_step == count || c->auditor || !c->s->o->prepared) {
        go_ready(c);
        return;
    }
    const char *const *p = statements[c->prepare_step++];
    begin_answer(c, BANK_PREPARING, PQsendPrepare(c->conn, p[0], p[1], 0, NULL));
}

/* The history (--history). */

/* A transfer, as far as it is known. An acknowledged one waits in c->record for its timestamp. */
static void record_transfer(struct bank_client *c, enum bank_told told)
{
    static const enum history_told as[] = {
        [BANK_TOLD_DONE] = HISTORY_TOLD_OK,
        [BANK_TOLD_NOT_DONE] = HISTORY_TOLD_FAIL,
        [BANK_TOLD_UNKNOWN] = HISTORY_TOLD_UNKNOWN,
    };
    struct history_record *r = &c->record;
    history_record_clear(r);
    r->client = c->number;
    r->start = c->attempt_at != 0 ? c->attempt_at : c->begun_at;
    r->end = c->s->now;
    r->told = as[told];
    history_record_transfer(r, c->transfer.from, c->transfer.to, c->transfer.amount);
    if (told == BANK_TOLD_DONE && c->txn_id[0] != '\0') {
        memcpy(c->record_id, c->txn_id, sizeof(c->record_id));
        c->has_record = true;
    } else {
        history_file_add(c->s->history, r);
    }
}

static void record_stamp(struct bank_client *c, uint64_t ts)
{
    if (c->has_record) {
        c->has_record = false;
        c->record.ts = ts;
        history_file_add(c->s->history, &c->record);
    }
}

static void record_audit(struct bank_client *c)
{
    struct history_record *r = &c->record;
    history_record_clear(r);
    r->client = c->number;
    r->start = c->audit_begun;
    r->end = c->s->now;
    r->told = HISTORY_TOLD_OK;
    r->as_of = c->audit_stale;
    history_record_value(r, "audit", c->audit_rows, c->audit_total);
    history_file_add(c->s->history, r);
}

/* Transfers. */

static void tell(struct bank_client *c, enum bank_told told)
{
    if (c->s->history != NULL) {
        record_transfer(c, told);
    }
    if (c->s->o->acks != NULL) {
        bank_told_encode(&c->transfer, told, &c->s->told);
    }
}

static void transfer_end(struct bank_client *c)
{
    c->has_transfer = false;
    c->need_status = false;
    c->txn_id[0] = '\0';
    c->attempt_at = 0;
}

static void transfer_acknowledged(struct bank_client *c)
{
    struct bank_shared *s = c->s;
    uint64_t took = s->now - c->begun_at;
    hist_add(&s->latency, took);
    hist_add(&s->second, took);
    s->committed++;
    uint64_t gap = s->now - s->last_ack;
    if (gap > s->gap_max) {
        s->gap_max = gap;
    }
    s->last_ack = s->now;
    tell(c, BANK_TOLD_DONE);
    transfer_end(c);
}

static void transfer_unknown(struct bank_client *c)
{
    c->s->unknown++;
    tell(c, BANK_TOLD_UNKNOWN);
    transfer_end(c);
}

static void transfer_declined(struct bank_client *c)
{
    c->s->declined++;
    c->declined = false;
    tell(c, BANK_TOLD_NOT_DONE);
    transfer_end(c);
}

static void draw_transfer(struct bank_client *c)
{
    struct bank_transfer *t = &c->transfer;
    uint64_t n = c->s->info.accounts;
    do {
        t->id = rng_u64(&c->rng) >> 2; /* unique for all practical purposes, and a positive int8 */
    } while (t->id == 0);
    t->from = 1 + rng_below(&c->rng, n);
    t->to = 1 + rng_below(&c->rng, n - 1);
    t->to += t->to >= t->from;
    t->amount = (int64_t)rng_between(&c->rng, 1, (uint64_t)c->s->o->amount_max);
    c->has_transfer = true;
    c->begun_at = c->s->now;
    c->attempt = 0;
    c->declined = false;
}

static void begin_transfer(struct bank_client *c)
{
    c->attempt_at = c->s->now;
    if (c->s->o->pipeline) {
        send_whole(c);
    } else {
        send_sql(c, BANK_BEGIN, "BEGIN");
    }
}

static void remember_id(struct bank_client *c)
{
    const char *id = PQparameterStatus(c->conn, "spanlite.txn_id");
    if (id == NULL || id[0] == '\0' || strcmp(id, c->old_id) == 0) {
        c->txn_id[0] = '\0';
        return;
    }
    (void)snprintf(c->txn_id, sizeof(c->txn_id), "%s", id);
    memcpy(c->old_id, c->txn_id, sizeof(c->old_id));
}

static void send_commit(struct bank_client *c)
{
    remember_id(c);
    send_sql(c, BANK_COMMIT, "COMMIT");
}

/* False: there is no id to ask for. */
static bool ask_status(struct bank_client *c, enum bank_state state, const char *id)
{
    char sql[192];
    char *quoted = id[0] == '\0' ? NULL : PQescapeLiteral(c->conn, id, strlen(id));
    if (quoted == NULL) {
        return false;
    }
    (void)snprintf(sql, sizeof(sql), "SHOW TRANSACTION STATUS %.160s", quoted);
    PQfreemem(quoted);
    send_sql(c, state, sql);
    return true;
}

static void send_status(struct bank_client *c)
{
    if (!ask_status(c, BANK_STATUS, c->txn_id)) {
        transfer_unknown(c);
        go_ready(c);
    }
}

/* The commit timestamp, if the answer has one, goes with the transfer into the history. */
static void stamp_answered(struct bank_client *c)
{
    bool there = !c->failed && strcmp(c->value[0], "committed") == 0;
    record_stamp(c, there ? strtoull(c->value[1], NULL, 10) : 0);
    go_ready(c);
}

/* The transfer did not happen; it is tried again after a pause, or given up if the run is over. */
static void transfer_again(struct bank_client *c)
{
    c->s->retries++;
    c->attempt++;
    c->need_status = false;
    if (c->s->stopping) {
        tell(c, BANK_TOLD_NOT_DONE);
        transfer_end(c);
        go_ready(c);
        return;
    }
    c->state = BANK_PAUSE;
    wake_in(c, backoff_ns(c));
}

static void audit_again(struct bank_client *c)
{
    c->attempt++;
    c->state = BANK_PAUSE;
    wake_in(c, backoff_ns(c));
}

/* An answer that no rule of ours explains: the run stops and says so. */
static void fatal(struct bank_client *c, const char *what)
{
    if (c->s->fatal[0] == '\0') {
        (void)snprintf(c->s->fatal, sizeof(c->s->fatal), "%s: SQLSTATE %s: %.400s", what,
                       c->sqlstate, PQerrorMessage(c->conn));
    }
    c->s->stopping = true;
}

/* Classes whose errors no repetition cures: syntax and names, authorization, not supported. */
static bool is_hopeless(const char *sqlstate)
{
    return strncmp(sqlstate, "42", 2) == 0 || strncmp(sqlstate, "28", 2) == 0 ||
           strncmp(sqlstate, "0A", 2) == 0 || strncmp(sqlstate, "22", 2) == 0;
}

static bool is_node_going(const char *sqlstate)
{
    return strncmp(sqlstate, "57P", 3) == 0 || strcmp(sqlstate, "53300") == 0 ||
           strncmp(sqlstate, "08", 2) == 0;
}

/* After a failed statement that was not COMMIT, or a COMMIT that surely did not happen. */
static void roll_back_then_again(struct bank_client *c)
{
    if (strcmp(c->sqlstate, "23514") == 0) {
        c->declined = true; /* not enough money: the CHECK said so */
    } else if (strcmp(c->sqlstate, "23505") == 0) {
        c->s->violations++;
        say_trouble(
            c->s, "transfer %" PRIu64 " was reported as not done and is in the ledger (attempt %u)",
            c->transfer.id, c->attempt + 1);
        c->declined = true;
    } else if (is_hopeless(c->sqlstate)) {
        fatal(c, "a transfer failed");
    }
    if (is_node_going(c->sqlstate)) {
        go_down(c, backoff_ns(c));
        return;
    }
    PGTransactionStatusType txn = PQtransactionStatus(c->conn);
    if (txn == PQTRANS_INERROR || txn == PQTRANS_INTRANS) {
        send_sql(c, BANK_ROLLBACK, "ROLLBACK");
    } else {
        c->state = BANK_ROLLBACK;
        c->failed = false;
        next_step(c);
    }
}

/* An UPDATE by primary key found no row: going on would make money out of nothing. */
static void account_missing(struct bank_client *c)
{
    c->s->violations++;
    say_trouble(c->s, "account %" PRIu64 " or %" PRIu64 " was not found by an UPDATE",
                c->transfer.from, c->transfer.to);
    c->declined = true;
    send_sql(c, BANK_ROLLBACK, "ROLLBACK");
}

static void rolled_back(struct bank_client *c)
{
    if (c->auditor) {
        audit_again(c);
    } else if (c->declined) {
        transfer_declined(c);
        go_ready(c);
    } else {
        transfer_again(c);
    }
}

static void committed_or_not(struct bank_client *c)
{
    if (!c->failed && !c->not_done) {
        if (c->s->o->pipeline && c->s->history != NULL) {
            remember_id(c);
        }
        transfer_acknowledged(c);
        go_ready(c);
    } else if (is_node_going(c->sqlstate)) {
        go_down(c, backoff_ns(c)); /* no word about the transaction: as if the answer was lost */
    } else if (c->failed && strcmp(c->sqlstate, "40003") == 0) {
        if (c->s->o->pipeline) {
            remember_id(c);
        }
        c->need_status = true;
        c->status_since = c->s->now;
        send_status(c);
    } else {
        roll_back_then_again(c);
    }
}

static bool starts_with(const char *text, const char *word)
{
    return strncasecmp(text, word, strlen(word)) == 0;
}

/* The outcome stands in one of the columns of the first row, whatever their order. */
static void status_answered(struct bank_client *c)
{
    for (size_t i = 0; i < 3 && !c->failed; i++) {
        if (starts_with(c->value[i], "committed")) {
            c->s->resolved++;
            transfer_acknowledged(c);
            go_ready(c);
            return;
        }
        if (starts_with(c->value[i], "aborted")) {
            c->s->resolved++;
            transfer_again(c);
            return;
        }
        if (starts_with(c->value[i], "expired") || starts_with(c->value[i], "unknown")) {
            transfer_unknown(c); /* too long ago for anybody to know */
            go_ready(c);
            return;
        }
    }
    if (c->failed && (is_hopeless(c->sqlstate) || strcmp(c->sqlstate, "02000") == 0)) {
        transfer_unknown(c); /* nobody knows this id (any more) */
        go_ready(c);
        return;
    }
    if (c->s->now > c->status_since + STATUS_PATIENCE_NS) {
        transfer_unknown(c);
        go_ready(c);
        return;
    }
    c->state = BANK_PAUSE; /* running, or a retryable failure: ask again */
    wake_in(c, STATUS_PAUSE_NS);
}

/* Audits. */

static void begin_audit(struct bank_client *c)
{
    static const char *const begin[] = {
        "BEGIN READ ONLY",
        "BEGIN READ ONLY AS OF '-200ms'",
        "BEGIN READ ONLY",
        "BEGIN READ ONLY AS OF '-1s'",
    };
    unsigned which = c->audit_number % 4;
    bool stale = which % 2 == 1 && !c->s->no_stale && c->s->now > c->s->start + STALE_AFTER_NS;
    c->audit_stale = stale;
    c->audit_begun = c->s->now;
    send_sql(c, BANK_AUDIT_BEGIN, stale ? begin[which] : begin[0]);
}

static void audit_read(struct bank_client *c)
{
    uint64_t count = strtoull(c->value[0], NULL, 10);
    int64_t total = strtoll(c->value[1], NULL, 10);
    c->audit_rows = count;
    c->audit_total = total;
    int64_t want = (int64_t)c->s->info.accounts * c->s->info.balance;
    if (count != c->s->info.accounts || total != want) {
        c->s->mismatches++;
        say_trouble(c->s,
                    "%s audit found %s accounts holding %s, there are %" PRIu64 " holding %" PRId64,
                    c->audit_stale ? "a stale" : "a strong", c->value[0], c->value[1],
                    c->s->info.accounts, want);
    }
    send_sql(c, BANK_AUDIT_COMMIT, "COMMIT");
}

static void audit_done(struct bank_client *c)
{
    if (c->s->history != NULL) {
        record_audit(c);
    }
    c->s->audits++;
    c->s->stale_audits += c->audit_stale;
    c->audit_number++;
    c->attempt = 0;
    if (c->s->stopping) {
        go_done(c);
        return;
    }
    /* An audit reads every account: at most a third of the time goes to audits. */
    uint64_t took = c->s->now - c->audit_begun;
    uint64_t pause = c->s->o->audit_ms * MS_NS;
    c->state = BANK_PAUSE;
    wake_in(c, pause > 2 * took ? pause : 2 * took);
}

static void audit_failed(struct bank_client *c)
{
    if (c->audit_stale &&
        (strcmp(c->sqlstate, "42601") == 0 || strcmp(c->sqlstate, "0A000") == 0)) {
        c->s->no_stale = true; /* a stock PostgreSQL */
    } else if (c->audit_stale && strcmp(c->sqlstate, "72000") == 0) {
        c->audit_number++; /* older than the versions that are kept: the next one, then */
    } else if (is_hopeless(c->sqlstate)) {
        fatal(c, "an audit failed");
    }
    if (c->s->stopping) {
        go_done(c);
        return;
    }
    c->sqlstate[0] = '\0';
    roll_back_then_again(c);
}

/* A statement was answered whole. */
static void next_step(struct bank_client *c)
{
    bool audit = c->state == BANK_AUDIT_BEGIN || c->state == BANK_AUDIT_READ ||
                 c->state == BANK_AUDIT_COMMIT;
    c->sent_at = 0;
    if (c->failed && audit) {
        audit_failed(c);
        return;
    }
    if (c->failed && c->state >= BANK_BEGIN && c->state <= BANK_LEDGER) {
        roll_back_then_again(c);
        return;
    }
    if (c->not_done && c->state != BANK_COMMIT && c->state != BANK_WHOLE) {
        account_missing(c);
        return;
    }
    switch (c->state) {
    case BANK_PREPARING:
        if (c->failed) {
            go_down(c, 100 * MS_NS);
        } else {
            send_prepare(c);
        }
        break;
    case BANK_BEGIN:
        send_step(c, BANK_DEBIT);
        break;
    case BANK_DEBIT:
        send_step(c, BANK_CREDIT);
        break;
    case BANK_CREDIT:
        if (c->s->o->ledger) {
            send_step(c, BANK_LEDGER);
        } else {
            send_commit(c);
        }
        break;
    case BANK_LEDGER:
        send_commit(c);
        break;
    case BANK_COMMIT:
    case BANK_WHOLE:
        committed_or_not(c);
        break;
    case BANK_ROLLBACK:
        rolled_back(c);
        break;
    case BANK_STATUS:
        status_answered(c);
        break;
    case BANK_STAMP:
        stamp_answered(c);
        break;
    case BANK_AUDIT_BEGIN:
        send_sql(c, BANK_AUDIT_READ, "SELECT count(*), sum(balance) FROM accounts");
        break;
    case BANK_AUDIT_READ:
        audit_read(c);
        break;
    case BANK_AUDIT_COMMIT:
        audit_done(c);
        break;
    case BANK_DOWN:
    case BANK_DIALING:
    case BANK_READY:
    case BANK_PAUSE:
    case BANK_DONE:
        INVARIANT(!"no statement is under way");
    }
}

/* Connected and between transfers: what is to be done? */
static void go_ready(struct bank_client *c)
{
    c->state = BANK_READY;
    c->sent_at = 0;
    if (c->has_record) {
        if (!ask_status(c, BANK_STAMP, c->record_id)) {
            record_stamp(c, 0);
            go_ready(c);
        }
        return;
    }
    if (c->need_status) {
        send_status(c);
        return;
    }
    if (c->auditor) {
        if (c->s->stopping) {
            go_done(c);
        } else {
            begin_audit(c);
        }
        return;
    }
    if (!c->has_transfer) {
        if (is_finished(c->s)) {
            go_done(c);
            return;
        }
        draw_transfer(c);
    } else if (c->s->stopping) {
        tell(c, BANK_TOLD_NOT_DONE);
        transfer_end(c);
        go_done(c);
        return;
    }
    begin_transfer(c);
}

/* Connection lost or refused. What was under way did not happen, unless it was the COMMIT. */
static void go_down(struct bank_client *c, uint64_t pause_ns)
{
    record_stamp(c, 0);
    if (c->state == BANK_COMMIT || c->state == BANK_WHOLE) {
        c->need_status = true;
        c->status_since = c->s->now;
        if (c->state == BANK_WHOLE) {
            remember_id(c);
        }
    } else if (c->declined && c->has_transfer) {
        transfer_declined(c);
    } else if (c->has_transfer && !c->need_status) {
        c->s->retries++;
        c->attempt++;
    }
    if (c->state == BANK_ROLLBACK) {
        c->declined = false;
    }
    PQfinish(c->conn);
    c->conn = NULL;
    c->fd = -1;
    c->out_pending = false;
    c->sent_at = 0;
    c->host++;
    c->state = BANK_DOWN;
    c->s->reconnects++;
    if (c->s->stopping && !c->need_status) {
        if (c->has_transfer) {
            tell(c, BANK_TOLD_NOT_DONE);
            transfer_end(c);
        }
        go_done(c);
        return;
    }
    wake_in(c, pause_ns);
}

/* Dialling. */

static void dial_poll(struct bank_client *c)
{
    PostgresPollingStatusType p = PQconnectPoll(c->conn);
    if (p == PGRES_POLLING_FAILED) {
        go_down(c, 20 * MS_NS + rng_below(&c->rng, 30 * MS_NS));
        return;
    }
    if (p != PGRES_POLLING_OK) {
        watch(c, p == PGRES_POLLING_READING ? EPOLLIN : EPOLLOUT);
        return;
    }
    (void)PQsetnonblocking(c->conn, 1);
    watch(c, EPOLLIN);
    c->prepare_step = 0;
    c->old_id[0] = '\0';
    send_prepare(c);
}

static void dial(struct bank_client *c)
{
    c->conn = cluster_url_start(c->s->o->url, c->host);
    c->state = BANK_DIALING;
    c->sent_at = c->s->now;
    if (c->conn == NULL || PQstatus(c->conn) == CONNECTION_BAD) {
        go_down(c, 20 * MS_NS + rng_below(&c->rng, 30 * MS_NS));
        return;
    }
    watch(c, EPOLLOUT); /* as libpq wants it: write first */
}

void bank_client_wake(struct bank_client *c)
{
    heap_remove(&c->s->timers, &c->timer);
    if (c->state == BANK_DOWN) {
        if (c->s->stopping && !c->need_status) {
            go_done(c);
            return;
        }
        dial(c);
    } else if (c->state == BANK_PAUSE) {
        go_ready(c);
    }
}

/* Answers. */

static void take_result(struct bank_client *c, const PGresult *r)
{
    ExecStatusType status = PQresultStatus(r);
    if (status == PGRES_TUPLES_OK) {
        for (int i = 0; i < 3; i++) {
            bool there = PQntuples(r) != 0 && i < PQnfields(r);
            (void)snprintf(c->value[i], sizeof(c->value[i]), "%s",
                           there ? PQgetvalue(r, 0, i) : "");
        }
        return;
    }
    if (status == PGRES_COMMAND_OK) {
        const char *tag = PQcmdStatus((PGresult *)(uintptr_t)r);
        c->not_done = c->not_done || strcmp(tag, "UPDATE 0") == 0 ||
                      (c->state == BANK_COMMIT && strcmp(tag, "ROLLBACK") == 0);
        return;
    }
    if (!c->failed) {
        const char *state = PQresultErrorField(r, PG_DIAG_SQLSTATE);
        c->failed = true;
        (void)snprintf(c->sqlstate, sizeof(c->sqlstate), "%s", state == NULL ? "08006" : state);
    }
}

void bank_client_ready(struct bank_client *c)
{
    if (c->state == BANK_DIALING) {
        dial_poll(c);
        return;
    }
    if (c->conn == NULL) {
        return; /* an event of before it was closed */
    }
    if (PQconsumeInput(c->conn) == 0) {
        go_down(c, backoff_ns(c));
        return;
    }
    if (c->out_pending) {
        int flushed = PQflush(c->conn);
        if (flushed < 0) {
            go_down(c, backoff_ns(c));
            return;
        }
        if (flushed == 0) {
            c->out_pending = false;
            watch(c, EPOLLIN);
        }
    }
    if (c->sent_at == 0) {
        return; /* at rest: a notice, or 57P01 and then the end of the connection */
    }
    while (!PQisBusy(c->conn)) {
        PGresult *r = PQgetResult(c->conn);
        if (r == NULL) {
            if (PQstatus(c->conn) != CONNECTION_OK) {
                go_down(c, backoff_ns(c));
            } else {
                next_step(c);
            }
            return;
        }
        take_result(c, r);
        PQclear(r);
    }
}

void bank_client_check_timeout(struct bank_client *c)
{
    uint64_t limit = c->state == BANK_DIALING ? 2 * SEC_NS : c->s->o->timeout_ms * MS_NS;
    if (c->sent_at != 0 && c->s->now > c->sent_at + limit) {
        go_down(c, backoff_ns(c));
    }
}

void bank_client_abandon(struct bank_client *c)
{
    if (c->state == BANK_DONE) {
        return;
    }
    if (c->has_transfer) {
        if (c->need_status || c->state == BANK_COMMIT || c->state == BANK_WHOLE) {
            transfer_unknown(c);
        } else {
            tell(c, BANK_TOLD_NOT_DONE);
            transfer_end(c);
        }
    }
    go_done(c);
}
