/* External consistency: T1 commits, is answered, then T2 begins somewhere else; is ts(T1) < ts(T2),
 * and does everybody who may see T2 see T1?
 *
 *   ec_probe URL --pairs N [--lanes 8] [--seed S] [--json]
 *
 * URL names the nodes in this order: the one with the fastest clock, which leads the ranges of ids
 * 1..1000 and 1001..2000 of table ec(id, v); the one with the slowest clock, which leads 2001..3000
 * and 3001..4000; then the others. Lane l owns rows x1 = l, x2 = 1000 + l, y1 = 2000 + l, y2 = 3000
 * + l and does pairs k = 1, 2, ...: T1 sets x1 = x2 = k in one transaction, T2 sets y1 = y2 = k in
 * another; T1 of k + 1 begins after T2 of k was answered. So in every snapshot of the database x1 =
 * x2, y1 = y2 and y <= x <= y + 1. Half of the pairs go through the fastest node (T1) and the
 * slowest (T2), the rest through random ones. What T2 is, by turns:
 *
 *   write    T2 begins after T1's answer and writes without reading
 *   read     strong reads through every node, of one range and of all, after T1's answer; then
 * write early    T2 copies x1 to y1 and y2 in a loop that began before T1: it reads T1's row before
 * T1's answer is out reader   a strong reader in a loop that began before T1; as soon as one was
 * told T1's value, readers through every node must be told it too; then write
 *
 * After each pair the commit timestamps are compared with each other and with true time (the nodes'
 * clocks are emulated on this machine, so its clock is true time): T1's timestamp must have passed
 * when its answer came and must not lie before its COMMIT was sent. Then all rows are read AS OF
 * T2's and T1's timestamp. Meanwhile a thread a node reads snapshots in the past without end.
 *
 * Exit code: 0 no inversion, 1 inversions, 2 wrong usage, 3 a statement failed for good. */
#include "base/alloc.h"
#include "base/limits.h"
#include "base/rng.h"
#include "deploy/workload/cluster_url.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LANES_MAX 64
#define HOSTS_MAX 8
#define STRIDE    1000u
#define TRIES     2000

enum mode { MODE_WRITE, MODE_READ, MODE_EARLY, MODE_READER, MODES };

static const char *const mode_names[MODES] = {"write", "read", "early", "reader"};

struct lane {
    pthread_t thread;
    pthread_t helper;
    unsigned number; /* from 1 */
    struct rng rng;
    struct rng helper_rng;
    PGconn *own[HOSTS_MAX];
    PGconn *helpers[HOSTS_MAX];
    /* What the helper is to do; under lock. */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    enum mode job; /* MODE_WRITE: nothing */
    bool quit;
    uint64_t k;
    unsigned through;
    bool started;
    bool done;
    /* Its results. */
    uint64_t saw_ns; /* true time when it had the answer that showed k */
    char t2_id[160];
    uint64_t t2_sent_ns;
};

static struct {
    const struct cluster_url *url;
    unsigned hosts;
    unsigned lanes;
    uint64_t pairs;
    uint64_t seed;
    bool json;
    _Atomic uint64_t next_pair;
    _Atomic uint64_t done[MODES];
    _Atomic uint64_t stale_reads; /* a strong reader missed what it had to see */
    _Atomic uint64_t order;       /* ts(T1) >= ts(T2) */
    _Atomic uint64_t snapshots;   /* a snapshot showed T2 without T1, or half a transaction */
    _Atomic uint64_t early;       /* answered before the timestamp had certainly passed */
    _Atomic uint64_t old;         /* a timestamp before its commit was asked for */
    _Atomic uint64_t snapshots_read;
    _Atomic uint64_t before_answer; /* read T1's row, or was told it, before T1's answer came */
    _Atomic uint64_t retries;
    _Atomic bool stop;
    _Atomic bool broken;
    _Atomic unsigned said;
    pthread_mutex_t print;
} g = {.lanes = 8, .pairs = 300, .print = PTHREAD_MUTEX_INITIALIZER};

static uint64_t true_ns(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_REALTIME, &ts);
    return (uint64_t)ts.tv_sec * SEC_NS + (uint64_t)ts.tv_nsec;
}

__attribute__((format(printf, 1, 2))) static void say(const char *fmt, ...)
{
    va_list ap;
    if (atomic_fetch_add(&g.said, 1) >= 20) {
        return;
    }
    pthread_mutex_lock(&g.print);
    va_start(ap, fmt);
    (void)vfprintf(stderr, fmt, ap);
    va_end(ap);
    (void)fputc('\n', stderr);
    pthread_mutex_unlock(&g.print);
}

static void broken(const char *what, const PGconn *c)
{
    say("ec_probe: %s: %s", what, c == NULL ? "" : PQerrorMessage(c));
    atomic_store(&g.broken, true);
    atomic_store(&g.stop, true);
}

static PGconn *dial(unsigned host)
{
    for (int i = 0; i < 100; i++) {
        PGconn *c = cluster_url_start(g.url, host);
        int wait = 0;
        while (c != NULL && PQstatus(c) != CONNECTION_OK && PQstatus(c) != CONNECTION_BAD) {
            if (PQconnectPoll(c) == PGRES_POLLING_FAILED || ++wait > 20000) {
                break;
            }
            (void)nanosleep(&(struct timespec){0, 100000}, NULL);
        }
        if (c != NULL && PQstatus(c) == CONNECTION_OK) {
            return c;
        }
        PQfinish(c);
        (void)nanosleep(&(struct timespec){0, 50000000}, NULL);
    }
    return NULL;
}

static void dial_all(PGconn **to)
{
    for (unsigned i = 0; i < g.hosts; i++) {
        to[i] = dial(i);
        if (to[i] == NULL) {
            broken("no connection to", NULL);
        }
    }
}

enum outcome { DID, AGAIN, FAILED };

/* One message; *out (may be NULL) gets the last result with rows, owned by the caller. */
static enum outcome run(PGconn *c, const char *sql, PGresult **out)
{
    enum outcome o = DID;
    if (out != NULL) {
        *out = NULL;
    }
    if (c == NULL || PQsendQuery(c, sql) != 1) {
        broken(sql, c);
        return FAILED;
    }
    for (PGresult *r; (r = PQgetResult(c)) != NULL;) {
        ExecStatusType st = PQresultStatus(r);
        if (st == PGRES_TUPLES_OK && out != NULL) {
            PQclear(*out);
            *out = r;
            continue;
        }
        if (st != PGRES_TUPLES_OK && st != PGRES_COMMAND_OK && st != PGRES_EMPTY_QUERY) {
            const char *state = PQresultErrorField(r, PG_DIAG_SQLSTATE);
            bool future = state != NULL && strcmp(state, "22023") == 0; /* AS OF in the future */
            if (future) {
                atomic_fetch_add(&g.early,
                                 1); /* the timestamp was told, so it should have passed */
            }
            if (future || (state != NULL && cluster_sqlstate_is_retryable(state))) {
                o = o == DID ? AGAIN : o;
            } else {
                broken(sql, c);
                o = FAILED;
            }
        }
        PQclear(r);
    }
    if (o != DID && out != NULL) {
        PQclear(*out);
        *out = NULL;
    }
    if (o == AGAIN) {
        atomic_fetch_add(&g.retries, 1);
        if (PQtransactionStatus(c) != PQTRANS_IDLE) {
            PQclear(PQexec(c, "ROLLBACK"));
        }
    }
    return o;
}

static int64_t cell(const PGresult *r, int row, int column)
{
    return r != NULL && row < PQntuples(r) && column < PQnfields(r)
               ? strtoll(PQgetvalue(r, row, column), NULL, 10)
               : -1;
}

/* Sets rows a and b to k in one interactive transaction. */
static bool write_pair(PGconn *c, unsigned a, unsigned b, uint64_t k, char *id, size_t id_size,
                       uint64_t *commit_sent_ns)
{
    char sql[2][128];
    unsigned rows[2] = {a, b};
    for (int i = 0; i < 2; i++) {
        (void)snprintf(sql[i], sizeof sql[i], "UPDATE ec SET v = %" PRIu64 " WHERE id = %u", k,
                       rows[i]);
    }
    for (int i = 0; i < TRIES && !atomic_load(&g.broken); i++) {
        enum outcome o = run(c, "BEGIN", NULL);
        o = o == DID ? run(c, sql[0], NULL) : o;
        o = o == DID ? run(c, sql[1], NULL) : o;
        if (o == DID) {
            const char *p = PQparameterStatus(c, "spanlite.txn_id");
            (void)snprintf(id, id_size, "%s", p == NULL ? "" : p);
            *commit_sent_ns = true_ns();
            o = run(c, "COMMIT", NULL);
        }
        if (o == DID) {
            return true;
        }
    }
    broken("a write did not get through", c);
    return false;
}

/* ---- checks ---- */

static void expect_seen(PGconn *c, const char *sql, uint64_t k, unsigned lane, unsigned host,
                        const char *what)
{
    PGresult *r = NULL;
    enum outcome o = AGAIN;
    for (int i = 0; i < TRIES && o == AGAIN; i++) {
        o = run(c, sql, &r);
    }
    if (o == DID && cell(r, 0, 0) < (int64_t)k) {
        atomic_fetch_add(&g.stale_reads, 1);
        say("lane %u pair %" PRIu64 ": %s through host %u found %" PRId64, lane, k, what, host,
            cell(r, 0, 0));
    }
    PQclear(r);
}

/* Strong reads of T1's row through every node: of its range alone, and in a transaction that reads
 * the slow range as well, so that the gateway has to choose the timestamp. */
static void strong_readers(PGconn **through, unsigned lane, uint64_t k, const char *what)
{
    char one[128];
    char all[256];
    (void)snprintf(one, sizeof one, "SELECT v FROM ec WHERE id = %u", lane);
    (void)snprintf(
        all, sizeof all,
        "SELECT min(v) FROM ec WHERE id IN (%u, %u) AND (SELECT v FROM ec WHERE id = %u) >= 0",
        lane, STRIDE + lane, 2 * STRIDE + lane);
    for (unsigned h = 0; h < g.hosts; h++) {
        unsigned host = (h + 1) % g.hosts; /* the slowest first */
        expect_seen(through[host], one, k, lane, host, what);
        expect_seen(through[host], all, k, lane, host, what);
    }
}

static bool commit_ts(PGconn *c, const char *id, uint64_t *ts)
{
    char sql[256];
    *ts = 0;
    (void)snprintf(sql, sizeof sql, "SHOW TRANSACTION STATUS '%s'", id);
    for (int i = 0; i < TRIES && !atomic_load(&g.broken); i++) {
        PGresult *r = NULL;
        enum outcome o = run(c, sql, &r);
        bool committed =
            o == DID && PQntuples(r) == 1 && strcmp(PQgetvalue(r, 0, 0), "committed") == 0;
        if (committed) {
            *ts = strtoull(PQgetvalue(r, 0, 1), NULL, 10);
            PQclear(r);
            return *ts != 0;
        }
        bool running = o == DID && PQntuples(r) == 1 && strcmp(PQgetvalue(r, 0, 0), "running") == 0;
        if (o == DID && !running) {
            say("ec_probe: %s says \"%s\" of a transaction that was acknowledged", sql,
                PQntuples(r) == 1 ? PQgetvalue(r, 0, 0) : "nothing");
            atomic_store(&g.broken, true);
        }
        PQclear(r);
        if (o == FAILED) {
            return false;
        }
        (void)nanosleep(&(struct timespec){0, 2000000}, NULL);
    }
    return false;
}

/* Every lane of a snapshot. want >= 0: lane `only` must hold exactly these. */
static void check_snapshot(const PGresult *r, const char *what)
{
    int64_t v[4][LANES_MAX + 1];
    memset(v, 0xff, sizeof v);
    for (int i = 0; i < PQntuples(r); i++) {
        int64_t id = cell(r, i, 0);
        int64_t part = id / STRIDE;
        int64_t lane = id % STRIDE;
        if (part >= 0 && part < 4 && lane >= 1 && lane <= (int64_t)g.lanes) {
            v[part][lane] = cell(r, i, 1);
        }
    }
    for (unsigned l = 1; l <= g.lanes; l++) {
        bool whole = v[0][l] == v[1][l] && v[2][l] == v[3][l] && v[0][l] >= 0 && v[2][l] >= 0;
        bool ordered = v[2][l] <= v[0][l] && v[0][l] <= v[2][l] + 1;
        if (!whole || !ordered) {
            atomic_fetch_add(&g.snapshots, 1);
            say("%s: lane %u holds x %" PRId64 " %" PRId64 ", y %" PRId64 " %" PRId64, what, l,
                v[0][l], v[1][l], v[2][l], v[3][l]);
        }
    }
}

/* All rows AS OF one timestamp; lane's x and y must be these (-1: whatever). */
static void read_as_of(PGconn *c, uint64_t ts, unsigned lane, int64_t x, int64_t y,
                       const char *what)
{
    char sql[160];
    PGresult *r = NULL;
    enum outcome o = AGAIN;
    (void)snprintf(sql, sizeof sql,
                   "BEGIN READ ONLY AS OF %" PRIu64 "; SELECT id, v FROM ec; COMMIT", ts);
    for (int i = 0; i < TRIES && o == AGAIN; i++) {
        o = run(c, sql, &r);
    }
    if (o != DID) {
        return;
    }
    atomic_fetch_add(&g.snapshots_read, 1);
    check_snapshot(r, what);
    for (int i = 0; i < PQntuples(r); i++) {
        bool is_x = cell(r, i, 0) == lane;
        bool is_y = cell(r, i, 0) == 2 * STRIDE + lane;
        int64_t want = is_x ? x : is_y ? y : -1;
        if (want >= 0 && cell(r, i, 1) != want) {
            atomic_fetch_add(&g.snapshots, 1);
            say("%s: lane %u row %" PRId64 " is %" PRId64 ", not %" PRId64, what, lane,
                cell(r, i, 0), cell(r, i, 1), want);
        }
    }
    PQclear(r);
}

static void check_times(const char *which, uint64_t ts, uint64_t sent, uint64_t answered,
                        unsigned lane, uint64_t k)
{
    if (answered != 0 && ts >= answered) {
        atomic_fetch_add(&g.early, 1);
        say("lane %u pair %" PRIu64 ": %s was answered %" PRIu64 " us before its timestamp", lane,
            k, which, (ts - answered) / 1000);
    }
    if (ts < sent) {
        atomic_fetch_add(&g.old, 1);
        say("lane %u pair %" PRIu64 ": %s has a timestamp %" PRIu64
            " us before its COMMIT was sent",
            lane, k, which, (sent - ts) / 1000);
    }
}

/* ---- the helper: what runs while T1 commits ---- */

static void helper_early(struct lane *l)
{
    char sql[512];
    unsigned n = l->number;
    PGconn *c = l->helpers[l->through];
    (void)snprintf(sql, sizeof sql,
                   "BEGIN; UPDATE ec SET v = (SELECT v FROM ec WHERE id = %u) WHERE id = %u; "
                   "UPDATE ec SET v = (SELECT v FROM ec WHERE id = %u) WHERE id = %u RETURNING v; "
                   "COMMIT",
                   n, 2 * STRIDE + n, STRIDE + n, 3 * STRIDE + n);
    while (!atomic_load(&g.stop)) {
        PGresult *r = NULL;
        uint64_t sent = true_ns();
        enum outcome o = run(c, sql, &r);
        bool got = o == DID && cell(r, 0, 0) == (int64_t)l->k;
        PQclear(r);
        if (o == FAILED) {
            return;
        }
        if (got) {
            const char *p = PQparameterStatus(c, "spanlite.txn_id");
            l->saw_ns = true_ns();
            l->t2_sent_ns = sent;
            (void)snprintf(l->t2_id, sizeof l->t2_id, "%s", p == NULL ? "" : p);
            return;
        }
        /* T1 is older or younger; give it room to take its locks. */
        (void)nanosleep(&(struct timespec){0, (long)rng_below(&l->helper_rng, 3000000)}, NULL);
    }
}

static void helper_reader(struct lane *l)
{
    char sql[128];
    PGconn *c = l->helpers[l->through];
    (void)snprintf(sql, sizeof sql, "SELECT v FROM ec WHERE id = %u", l->number);
    while (!atomic_load(&g.stop)) {
        PGresult *r = NULL;
        enum outcome o = run(c, sql, &r);
        bool got = o == DID && cell(r, 0, 0) == (int64_t)l->k;
        PQclear(r);
        if (got) {
            l->saw_ns = true_ns();
            strong_readers(l->helpers, l->number, l->k, "a reader after a reader");
            return;
        }
        if (o == FAILED) {
            return;
        }
    }
}

static void *helper_main(void *arg)
{
    struct lane *l = arg;
    dial_all(l->helpers);
    pthread_mutex_lock(&l->lock);
    for (;;) {
        while (l->job == MODE_WRITE && !l->quit) {
            pthread_cond_wait(&l->changed, &l->lock);
        }
        if (l->quit) {
            break;
        }
        enum mode job = l->job;
        l->started = true;
        pthread_cond_broadcast(&l->changed);
        pthread_mutex_unlock(&l->lock);
        if (job == MODE_EARLY) {
            helper_early(l);
        } else {
            helper_reader(l);
        }
        pthread_mutex_lock(&l->lock);
        l->job = MODE_WRITE;
        l->done = true;
        pthread_cond_broadcast(&l->changed);
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

static void helper_begin(struct lane *l, enum mode job, uint64_t k, unsigned through)
{
    pthread_mutex_lock(&l->lock);
    l->job = job;
    l->k = k;
    l->through = through;
    l->started = false;
    l->done = false;
    l->saw_ns = 0;
    pthread_cond_broadcast(&l->changed);
    while (!l->started) {
        pthread_cond_wait(&l->changed, &l->lock);
    }
    pthread_mutex_unlock(&l->lock);
    (void)nanosleep(&(struct timespec){0, (long)rng_below(&l->rng, 2000000)}, NULL);
}

static void helper_end(struct lane *l)
{
    pthread_mutex_lock(&l->lock);
    while (!l->done) {
        pthread_cond_wait(&l->changed, &l->lock);
    }
    pthread_mutex_unlock(&l->lock);
}

/* ---- a pair ---- */

static void one_pair(struct lane *l, uint64_t k, enum mode mode)
{
    unsigned n = l->number;
    unsigned a = 0;
    unsigned b = 1 % g.hosts;
    char id[2][160] = {"", ""};
    uint64_t sent[2] = {0, 0};
    uint64_t answered[2] = {0, 0};
    uint64_t ts[2];
    if (rng_below(&l->rng, 2) == 0) {
        a = (unsigned)rng_below(&l->rng, g.hosts);
        b = (unsigned)rng_below(&l->rng, g.hosts);
    }
    bool helped = mode == MODE_EARLY || mode == MODE_READER;
    if (helped) {
        helper_begin(l, mode, k, mode == MODE_EARLY ? b : (unsigned)rng_below(&l->rng, g.hosts));
    }
    bool ok = write_pair(l->own[a], n, STRIDE + n, k, id[0], sizeof id[0], &sent[0]);
    answered[0] = true_ns();
    if (ok && mode == MODE_READ) {
        strong_readers(l->own, n, k, "a strong read after the answer");
    }
    if (ok && mode != MODE_EARLY) {
        ok =
            write_pair(l->own[b], 2 * STRIDE + n, 3 * STRIDE + n, k, id[1], sizeof id[1], &sent[1]);
        answered[1] = true_ns();
    }
    if (helped) {
        helper_end(l);
        if (mode == MODE_EARLY) {
            memcpy(id[1], l->t2_id, sizeof id[1]);
            answered[1] = l->saw_ns;
        }
        if ((mode == MODE_EARLY ? l->t2_sent_ns : l->saw_ns) < answered[0]) {
            atomic_fetch_add(&g.before_answer, 1);
        }
    }
    if (!ok || atomic_load(&g.broken) || !commit_ts(l->own[b], id[0], &ts[0]) ||
        !commit_ts(l->own[a], id[1], &ts[1])) {
        return;
    }
    if (ts[0] >= ts[1]) {
        atomic_fetch_add(&g.order, 1);
        say("lane %u pair %" PRIu64 " (%s): T1 %" PRIu64 " is not before T2 %" PRIu64, n, k,
            mode_names[mode], ts[0], ts[1]);
    }
    check_times("T1", ts[0], sent[0], answered[0], n, k);
    check_times("T2", ts[1], sent[1], answered[1], n, k);
    if (helped && l->saw_ns != 0 && ts[0] >= l->saw_ns) {
        atomic_fetch_add(&g.early, 1);
        say("lane %u pair %" PRIu64 ": a reader was told T1 before its timestamp had passed", n, k);
    }
    unsigned h = (unsigned)rng_below(&l->rng, g.hosts);
    read_as_of(l->own[h], ts[1], n, (int64_t)k, (int64_t)k, "AS OF T2");
    h = (h + 1) % g.hosts;
    read_as_of(l->own[h], ts[0], n, (int64_t)k, -1, "AS OF T1");
    if (k % 4 == 0) {
        read_as_of(l->own[h], ts[0] - 1, n, (int64_t)k - 1, (int64_t)k - 1, "just before T1");
    }
    atomic_fetch_add(&g.done[mode], 1);
}

static void *lane_main(void *arg)
{
    struct lane *l = arg;
    dial_all(l->own);
    for (uint64_t k = 1; !atomic_load(&g.stop); k++) {
        uint64_t number = atomic_fetch_add(&g.next_pair, 1);
        if (number >= g.pairs) {
            break;
        }
        one_pair(l, k, (enum mode)((number / g.lanes) % MODES));
    }
    pthread_mutex_lock(&l->lock);
    l->quit = true;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

/* Snapshots of the near past through one node, all the time. */
static void *snapshot_main(void *arg)
{
    unsigned host = (unsigned)(uintptr_t)arg;
    struct rng rng;
    PGconn *c = dial(host);
    rng_init(&rng, g.seed + 1000 + host);
    while (!atomic_load(&g.stop) && c != NULL) {
        char sql[160];
        char what[64];
        PGresult *r = NULL;
        (void)snprintf(sql, sizeof sql,
                       "BEGIN READ ONLY AS OF '-%" PRIu64 "us'; SELECT id, v FROM ec; COMMIT",
                       rng_between(&rng, 1, 60000));
        (void)snprintf(what, sizeof what, "a snapshot through host %u", host);
        if (run(c, sql, &r) == DID) {
            atomic_fetch_add(&g.snapshots_read, 1);
            check_snapshot(r, what);
        }
        PQclear(r);
        (void)nanosleep(&(struct timespec){0, 2000000}, NULL);
    }
    PQfinish(c);
    return NULL;
}

/* ---- the run ---- */

static void prepare(void)
{
    PGconn *c = dial(0);
    char sql[256];
    for (unsigned l = 1; l <= g.lanes && c != NULL; l++) {
        for (int i = 0; i < TRIES && !atomic_load(&g.broken); i++) {
            (void)snprintf(sql, sizeof sql,
                           "INSERT INTO ec VALUES (%u, 0), (%u, 0), (%u, 0), (%u, 0) ON CONFLICT "
                           "(id) DO UPDATE SET v = 0",
                           l, STRIDE + l, 2 * STRIDE + l, 3 * STRIDE + l);
            if (run(c, sql, NULL) == DID) {
                break;
            }
        }
    }
    if (c == NULL) {
        broken("no connection", NULL);
    }
    PQfinish(c);
}

static void run_all(void)
{
    struct lane *lanes = span_calloc(g.lanes, sizeof *lanes);
    pthread_t snapshots[HOSTS_MAX];
    struct timespec rest = {0, 100000000}; /* so that snapshots up to 60 ms old show the rows */
    prepare();
    (void)nanosleep(&rest, NULL);
    for (unsigned h = 0; h < g.hosts; h++) {
        (void)pthread_create(&snapshots[h], NULL, snapshot_main, (void *)(uintptr_t)h);
    }
    for (unsigned i = 0; i < g.lanes; i++) {
        struct lane *l = &lanes[i];
        l->number = i + 1;
        rng_init(&l->rng, g.seed + i);
        rng_init(&l->helper_rng, g.seed + 500 + i);
        (void)pthread_mutex_init(&l->lock, NULL);
        (void)pthread_cond_init(&l->changed, NULL);
        (void)pthread_create(&l->helper, NULL, helper_main, l);
        (void)pthread_create(&l->thread, NULL, lane_main, l);
    }
    for (unsigned i = 0; i < g.lanes; i++) {
        struct lane *l = &lanes[i];
        (void)pthread_join(l->thread, NULL);
        (void)pthread_join(l->helper, NULL);
        for (unsigned h = 0; h < g.hosts; h++) {
            PQfinish(l->own[h]);
            PQfinish(l->helpers[h]);
        }
    }
    atomic_store(&g.stop, true);
    for (unsigned h = 0; h < g.hosts; h++) {
        (void)pthread_join(snapshots[h], NULL);
    }
    span_free(lanes);
}

static uint64_t report(double seconds)
{
    uint64_t pairs = 0;
    uint64_t inversions = g.stale_reads + g.order + g.snapshots;
    for (int i = 0; i < MODES; i++) {
        pairs += g.done[i];
    }
    if (g.json) {
        (void)printf("{\"pairs\": %" PRIu64 ", ", pairs);
        for (int i = 0; i < MODES; i++) {
            (void)printf("\"%s\": %" PRIu64 ", ", mode_names[i], g.done[i]);
        }
        (void)printf("\"inversions\": %" PRIu64 ", \"stale_reads\": %" PRIu64
                     ", \"order\": %" PRIu64 ", \"bad_snapshots\": %" PRIu64
                     ", \"early_answers\": %" PRIu64 ", \"old_timestamps\": %" PRIu64 ", ",
                     inversions, g.stale_reads, g.order, g.snapshots, g.early, g.old);
        (void)printf("\"snapshots_read\": %" PRIu64 ", \"before_answer\": %" PRIu64
                     ", \"retries\": %" PRIu64 ", \"seconds\": %.2f, \"seed\": %" PRIu64
                     ", \"ok\": %s}\n",
                     g.snapshots_read, g.before_answer, g.retries, seconds, g.seed,
                     inversions + g.early + g.old == 0 && !g.broken ? "true" : "false");
    } else {
        (void)printf("pairs              %" PRIu64 " in %.1f s (seed %" PRIu64 ")\n", pairs,
                     seconds, g.seed);
        (void)printf("inversions         %" PRIu64 ": %" PRIu64 " strong reads missed T1, %" PRIu64
                     " pairs in the wrong order, %" PRIu64 " snapshots of %" PRIu64 " wrong\n",
                     inversions, g.stale_reads, g.order, g.snapshots, g.snapshots_read);
        (void)printf("against true time  %" PRIu64 " answered too early, %" PRIu64
                     " timestamps too old\n",
                     g.early, g.old);
        (void)printf("before T1's answer %" PRIu64 " saw its row\n", g.before_answer);
    }
    return inversions + g.early + g.old;
}

static int complain(const char *what, const char *which)
{
    (void)fprintf(stderr, "ec_probe: %s%s\n", what, which);
    return 2;
}

int main(int argc, char **argv)
{
    struct span_error err = {0};
    struct cluster_url *url = NULL;
    g.seed = rng_os_u64() >> 33;
    if (argc < 2) {
        return complain("usage: ec_probe URL [--pairs N] [--lanes N] [--seed N] [--json]", "");
    }
    for (int i = 2; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0) {
            g.json = true;
            continue;
        }
        uint64_t v = i + 1 < argc ? strtoull(argv[i + 1], NULL, 10) : 0;
        if (strcmp(argv[i], "--pairs") == 0 && v > 0) {
            g.pairs = v;
        } else if (strcmp(argv[i], "--lanes") == 0 && v > 0 && v <= LANES_MAX) {
            g.lanes = (unsigned)v;
        } else if (strcmp(argv[i], "--seed") == 0) {
            g.seed = v;
        } else {
            return complain("unknown flag or bad number: ", argv[i]);
        }
        i++;
    }
    if (cluster_url_parse(argv[1], &url, &err) != SPAN_OK) {
        return complain(err.text, "");
    }
    g.url = url;
    g.hosts = cluster_url_hosts(url) < HOSTS_MAX ? cluster_url_hosts(url) : HOSTS_MAX;
    uint64_t begun = workload_now_ns();
    run_all();
    uint64_t wrong = report((double)(workload_now_ns() - begun) / 1e9);
    cluster_url_free(url);
    return g.broken ? 3 : wrong != 0 ? 1 : 0;
}
