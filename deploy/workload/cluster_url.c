/* Hosts of a URL: see cluster_url.h. */
#include "deploy/workload/cluster_url.h"

#include "base/alloc.h"
#include "base/limits.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define HOSTS_MAX     64
#define OPTIONS_MAX   64
#define HOSTS_TOLD    5
#define DIAL_MS       10000U /* of a statement's patience, for a node that takes the connection */
#define TELL_MS       2000U  /* a wait that is longer is told */
#define TELL_AGAIN_MS 10000U

struct cluster_url {
    PQconninfoOption *options;
    char *hosts[HOSTS_MAX];
    char *ports[HOSTS_MAX];
    char *names[HOSTS_MAX];
    unsigned count;
};

uint64_t workload_now_ns(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * SEC_NS + (uint64_t)ts.tv_nsec;
}

static const char *option_value(const struct cluster_url *u, const char *keyword)
{
    for (const PQconninfoOption *o = u->options; o->keyword != NULL; o++) {
        if (strcmp(o->keyword, keyword) == 0) {
            return o->val;
        }
    }
    return NULL;
}

/* Item i of a comma-separated list; the last one if there are fewer; NULL for an empty item. */
static char *list_item(const char *list, unsigned i)
{
    const char *p = list;
    for (; i > 0 && strchr(p, ',') != NULL; i--) {
        p = strchr(p, ',') + 1;
    }
    size_t n = strcspn(p, ",");
    return n == 0 ? NULL : span_asprintf("%.*s", (int)n, p);
}

static void take_hosts(struct cluster_url *u)
{
    const char *hosts = option_value(u, "host");
    const char *ports = option_value(u, "port");
    if (hosts == NULL) {
        hosts = getenv("PGHOST") != NULL ? getenv("PGHOST") : "127.0.0.1";
    }
    if (ports == NULL) {
        ports = getenv("PGPORT") != NULL ? getenv("PGPORT") : "5433";
    }
    u->count = 1;
    for (const char *p = hosts; (p = strchr(p, ',')) != NULL && u->count < HOSTS_MAX; p++) {
        u->count++;
    }
    for (unsigned i = 0; i < u->count; i++) {
        u->hosts[i] = list_item(hosts, i);
        u->ports[i] = list_item(ports, i);
        u->names[i] = span_asprintf("%s:%s", u->hosts[i] == NULL ? "" : u->hosts[i],
                                    u->ports[i] == NULL ? "" : u->ports[i]);
    }
}

span_status cluster_url_parse(const char *url, struct cluster_url **out, struct span_error *err)
{
    char *why = NULL;
    if (url == NULL) {
        url = getenv("SPANLITE_URL");
    }
    if (url == NULL || url[0] == '\0') {
        url = getenv("PGHOST") != NULL ? "postgresql://" : CLUSTER_URL_DEFAULT;
    }
    struct cluster_url *u = SPAN_NEW(struct cluster_url);
    u->options = PQconninfoParse(url, &why);
    if (u->options == NULL) {
        size_t n = why == NULL ? 0 : strcspn(why, "\n");
        span_status st =
            span_fail(err, SPAN_INVALID, "URL \"%s\": %.*s", url, (int)n, why == NULL ? "" : why);
        PQfreemem(why);
        span_free(u);
        return st;
    }
    take_hosts(u);
    *out = u;
    return SPAN_OK;
}

void cluster_url_free(struct cluster_url *u)
{
    if (u == NULL) {
        return;
    }
    for (unsigned i = 0; i < u->count; i++) {
        span_free(u->hosts[i]);
        span_free(u->ports[i]);
        span_free(u->names[i]);
    }
    PQconninfoFree(u->options);
    span_free(u);
}

unsigned cluster_url_hosts(const struct cluster_url *u)
{
    return u->count;
}

const char *cluster_url_host(const struct cluster_url *u, unsigned i)
{
    return u->names[i % u->count];
}

static void ignore_notice(void *ctx, const char *message)
{
    (void)ctx;
    (void)message;
}

PGconn *cluster_url_start(const struct cluster_url *u, unsigned i)
{
    const char *keys[OPTIONS_MAX];
    const char *values[OPTIONS_MAX];
    size_t n = 0;
    bool has_user = false;
    for (const PQconninfoOption *o = u->options; o->keyword != NULL && n < OPTIONS_MAX - 5; o++) {
        if (o->val == NULL || strcmp(o->keyword, "host") == 0 || strcmp(o->keyword, "port") == 0) {
            continue;
        }
        has_user = has_user || strcmp(o->keyword, "user") == 0;
        keys[n] = o->keyword;
        values[n++] = o->val;
    }
    keys[n] = "host";
    values[n++] = u->hosts[i % u->count];
    keys[n] = "port";
    values[n++] = u->ports[i % u->count];
    keys[n] = "fallback_application_name";
    values[n++] = "spanlite workload";
    if (!has_user && getenv("PGUSER") == NULL) {
        keys[n] = "user";
        values[n++] = "root";
    }
    keys[n] = NULL;
    values[n] = NULL;
    PGconn *c = PQconnectStartParams(keys, values, 0);
    if (c != NULL) {
        (void)PQsetNoticeProcessor(c, ignore_notice, NULL);
    }
    return c;
}

/* Drives a started connection until it stands, fails, or `deadline` passes. */
static bool finish_connect(PGconn *c, uint64_t deadline)
{
    if (c == NULL || PQstatus(c) == CONNECTION_BAD) {
        return false;
    }
    PostgresPollingStatusType want = PGRES_POLLING_WRITING;
    while (want != PGRES_POLLING_OK && want != PGRES_POLLING_FAILED) {
        struct pollfd p = {.fd = PQsocket(c),
                           .events = want == PGRES_POLLING_READING ? POLLIN : POLLOUT};
        uint64_t now = workload_now_ns();
        if (now >= deadline || poll(&p, 1, (int)((deadline - now) / MS_NS) + 1) == 0) {
            return false;
        }
        want = PQconnectPoll(c);
    }
    return want == PGRES_POLLING_OK;
}

static void sleep_ms(unsigned ms)
{
    struct timespec ts = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};
    (void)nanosleep(&ts, NULL);
}

/* "127.0.0.1:5433, 127.0.0.1:5434", the first few. */
static const char *print_hosts(const struct cluster_url *u, char *out, size_t size)
{
    size_t n = 0;
    out[0] = '\0';
    for (unsigned i = 0; i < u->count && n < size; i++) {
        if (i == HOSTS_TOLD) {
            (void)snprintf(out + n, size - n, " and %u more", u->count - i);
            break;
        }
        n += (size_t)snprintf(out + n, size - n, "%s%s", i > 0 ? ", " : "", cluster_url_host(u, i));
    }
    return out;
}

span_status cluster_url_connect(const struct cluster_url *u, unsigned first, unsigned timeout_ms,
                                PGconn **out, struct span_error *err)
{
    uint64_t begun = workload_now_ns();
    uint64_t end = begun + timeout_ms * MS_NS;
    bool told = timeout_ms < TELL_MS;
    char why[512] = "no answer";
    char hosts[400];
    for (unsigned i = first;; i++) {
        uint64_t now = workload_now_ns();
        uint64_t one = now + 2 * SEC_NS < end ? now + 2 * SEC_NS : end;
        PGconn *c = cluster_url_start(u, i);
        if (finish_connect(c, one)) {
            *out = c;
            return SPAN_OK;
        }
        if (c != NULL && PQstatus(c) == CONNECTION_BAD && PQerrorMessage(c)[0] != '\0') {
            (void)snprintf(why, sizeof(why), "%.*s", (int)strcspn(PQerrorMessage(c), "\n"),
                           PQerrorMessage(c));
        }
        PQfinish(c);
        bool all_tried = i - first + 1 >= u->count;
        if (workload_now_ns() >= end && all_tried) {
            return span_fail(
                err, SPAN_UNAVAILABLE,
                "no node answers at %s (%s): start a cluster with \"spanlite demo\" or "
                "\"deploy/local/cluster up\", or name one with --url or SPANLITE_URL",
                print_hosts(u, hosts, sizeof(hosts)), why);
        }
        if (!told && workload_now_ns() - begun > TELL_MS * MS_NS) {
            told = true;
            (void)fprintf(stderr, "spanlite workload: no node answers at %s yet; trying for %u s\n",
                          print_hosts(u, hosts, sizeof(hosts)), timeout_ms / 1000);
        }
        if (all_tried) {
            sleep_ms(50);
        }
    }
}

bool cluster_sqlstate_is_retryable(const char *s)
{
    static const char *const list[] = {"40001", "40P01", "57P01", "57P02",
                                       "57P03", "53300", "57014", "55P03"};
    for (size_t i = 0; s != NULL && i < sizeof(list) / sizeof(list[0]); i++) {
        if (strcmp(s, list[i]) == 0) {
            return true;
        }
    }
    return s != NULL && strncmp(s, "08", 2) == 0;
}

/* Says what the server said, or how the connection ended, in one line. */
static span_status say_error(const PGconn *conn, const PGresult *r, const char *sql,
                             struct span_error *err)
{
    const char *state = PQresultErrorField(r, PG_DIAG_SQLSTATE);
    const char *text = PQresultErrorField(r, PG_DIAG_MESSAGE_PRIMARY);
    const char *hint = PQresultErrorField(r, PG_DIAG_MESSAGE_HINT);
    if (text == NULL) {
        const char *lost = PQerrorMessage(conn);
        return span_fail(err, SPAN_INVALID, "%.*s, at: %.120s", (int)strcspn(lost, "\n"),
                         lost[0] != '\0' ? lost : "the connection was lost", sql);
    }
    return span_fail(err, SPAN_INVALID, "%s (SQLSTATE %s)%s%s, at: %.120s%s", text,
                     state == NULL ? "none" : state, hint == NULL ? "" : ". ",
                     hint == NULL ? "" : hint, sql, strlen(sql) > 120 ? "..." : "");
}

span_status cluster_url_exec(const struct cluster_url *u, PGconn **conn, const char *sql,
                             unsigned timeout_ms, PGresult **result, struct span_error *err)
{
    uint64_t end = workload_now_ns() + timeout_ms * MS_NS;
    uint64_t tell_at = workload_now_ns() + TELL_MS * MS_NS;
    for (unsigned attempt = 0;; attempt++) {
        if (*conn == NULL) {
            /* A cluster that is busy electing answers the dial; one that does not is not there. */
            uint64_t now = workload_now_ns();
            unsigned left = now < end ? (unsigned)((end - now) / MS_NS) : 0;
            left = left < DIAL_MS ? left : DIAL_MS;
            span_status st = cluster_url_connect(u, attempt, left, conn, err);
            if (st != SPAN_OK) {
                return st;
            }
        }
        PGresult *r = PQexec(*conn, sql);
        ExecStatusType status = PQresultStatus(r);
        if (status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK) {
            *result = r;
            return SPAN_OK;
        }
        const char *state = PQresultErrorField(r, PG_DIAG_SQLSTATE);
        bool lost = PQstatus(*conn) != CONNECTION_OK;
        /* 40003 as well: the statement may be run twice. */
        bool again = lost || cluster_sqlstate_is_retryable(state) ||
                     (state != NULL && strcmp(state, "40003") == 0);
        span_status st = say_error(*conn, r, sql, err);
        PQclear(r);
        if (lost) {
            PQfinish(*conn);
            *conn = NULL;
        }
        if (!again) {
            return st;
        }
        if (workload_now_ns() >= end) {
            struct span_error last = *err;
            return span_fail(err, SPAN_UNAVAILABLE,
                             "the cluster did not answer within %u s; is a majority of its nodes "
                             "up? The last try: %.300s",
                             timeout_ms / 1000, last.text);
        }
        if (workload_now_ns() >= tell_at) {
            tell_at = workload_now_ns() + TELL_AGAIN_MS * MS_NS;
            (void)fprintf(stderr,
                          "spanlite workload: waiting for the cluster, %u s at most: %.300s\n",
                          (unsigned)((end - workload_now_ns()) / SEC_NS) + 1, err->text);
        }
        sleep_ms(attempt < 5 ? 5U << attempt : 200);
    }
}
