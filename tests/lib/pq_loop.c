/* libpq connections in one epoll loop: see pq_loop.h. */
#include "tests/lib/pq_loop.h"

#include "base/alloc.h"
#include "base/limits.h"

#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define EVENTS    64
#define REDIAL_NS (50 * MS_NS)
#define DIAL_NS   (2 * SEC_NS) /* a dial that takes longer is given up */

struct pq_loop {
    const struct cluster_url *url;
    int epoll_fd;
    uint64_t now;
    struct heap redials;
    struct heap wakes;
};

struct pq_loop *pq_loop_new(const struct cluster_url *url)
{
    struct pq_loop *l = SPAN_NEW(struct pq_loop);
    l->url = url;
    l->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    l->now = workload_now_ns();
    heap_init(&l->redials);
    heap_init(&l->wakes);
    return l;
}

void pq_loop_free(struct pq_loop *l)
{
    heap_deinit(&l->redials);
    heap_deinit(&l->wakes);
    (void)close(l->epoll_fd);
    span_free(l);
}

uint64_t pq_loop_now(const struct pq_loop *l)
{
    return l->now;
}

const char *pq_sqlstate(const PGresult *r)
{
    ExecStatusType st = PQresultStatus(r);
    if (st == PGRES_COMMAND_OK || st == PGRES_TUPLES_OK || st == PGRES_EMPTY_QUERY) {
        return "";
    }
    const char *state = PQresultErrorField(r, PG_DIAG_SQLSTATE);
    return state == NULL ? "-----" : state;
}

static void watch(struct pq_conn *c, uint32_t events)
{
    struct epoll_event ev = {.events = events, .data.ptr = c};
    int fd = PQsocket(c->pg);
    if (c->fd != fd && c->fd >= 0) {
        (void)epoll_ctl(c->loop->epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
        c->fd = -1;
    }
    if (fd < 0) {
        return;
    }
    if (epoll_ctl(c->loop->epoll_fd, c->fd == fd ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &ev) != 0) {
        (void)epoll_ctl(c->loop->epoll_fd, EPOLL_CTL_ADD, fd, &ev); /* libpq made another socket */
    }
    c->fd = fd;
}

static void hang_up(struct pq_conn *c)
{
    if (c->fd >= 0) {
        (void)epoll_ctl(c->loop->epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
        c->fd = -1;
    }
    PQclear(c->kept);
    c->kept = NULL;
    PQfinish(c->pg);
    c->pg = NULL;
    c->out_pending = false;
    c->state = PQ_DOWN;
}

/* What a server says to a connection at rest comes as a notice. */
static void note_farewell(void *ctx, const PGresult *r)
{
    struct pq_conn *c = ctx;
    const char *state = PQresultErrorField(r, PG_DIAG_SQLSTATE);
    const char *severity = PQresultErrorField(r, PG_DIAG_SEVERITY_NONLOCALIZED);
    if (state != NULL && severity != NULL && strcmp(severity, "FATAL") == 0) {
        (void)snprintf(c->why, sizeof(c->why), "%s", state);
    }
}

static void lost(struct pq_conn *c)
{
    if (c->kept != NULL && pq_sqlstate(c->kept)[0] != '\0' && c->why[0] == '\0') {
        (void)snprintf(c->why, sizeof(c->why), "%s", pq_sqlstate(c->kept));
    }
    bool tell = c->state == PQ_IDLE || c->state == PQ_BUSY;
    hang_up(c);
    heap_insert(&c->loop->redials, &c->redial, c->loop->now + REDIAL_NS);
    if (tell) {
        c->call(c, PQ_LOST, NULL);
    }
}

static void dial(struct pq_conn *c)
{
    c->state = PQ_DIALING;
    c->sent_ns = c->loop->now;
    c->why[0] = '\0';
    c->pg = cluster_url_start(c->loop->url, c->host);
    if (c->pg == NULL || PQstatus(c->pg) == CONNECTION_BAD) {
        lost(c);
        return;
    }
    watch(c, EPOLLOUT);
    heap_insert(&c->loop->redials, &c->redial, c->loop->now + DIAL_NS);
}

static void dialing(struct pq_conn *c)
{
    switch (PQconnectPoll(c->pg)) {
    case PGRES_POLLING_READING:
        watch(c, EPOLLIN);
        break;
    case PGRES_POLLING_WRITING:
        watch(c, EPOLLOUT);
        break;
    case PGRES_POLLING_OK:
        heap_remove(&c->loop->redials, &c->redial);
        (void)PQsetnonblocking(c->pg, 1);
        (void)PQsetNoticeReceiver(c->pg, note_farewell, c);
        watch(c, EPOLLIN);
        c->state = PQ_IDLE;
        c->call(c, PQ_CONNECTED, NULL);
        break;
    case PGRES_POLLING_FAILED:
    case PGRES_POLLING_ACTIVE:
        lost(c);
        break;
    }
}

/* The first error is kept, else the last result. */
static void keep(struct pq_conn *c, PGresult *r)
{
    if (c->kept != NULL && pq_sqlstate(c->kept)[0] != '\0') {
        PQclear(r);
        return;
    }
    PQclear(c->kept);
    c->kept = r;
}

static void flush_out(struct pq_conn *c)
{
    bool pending = PQflush(c->pg) == 1;
    if (pending != c->out_pending) {
        c->out_pending = pending;
        watch(c, pending ? EPOLLIN | EPOLLOUT : EPOLLIN);
    }
}

static void busy(struct pq_conn *c)
{
    bool open = PQconsumeInput(c->pg) == 1;
    if (open) {
        flush_out(c);
    }
    while (PQisBusy(c->pg) == 0) { /* what came before the end is looked at first */
        PGresult *r = PQgetResult(c->pg);
        if (r == NULL) {
            if (c->state == PQ_BUSY) {
                PGresult *answer = c->kept;
                c->kept = NULL;
                c->state = PQ_IDLE;
                c->call(c, PQ_ANSWER, answer);
                PQclear(answer);
            }
            break;
        }
        keep(c, r);
        if (PQstatus(c->pg) == CONNECTION_BAD) {
            open = false;
            break;
        }
    }
    if (!open) {
        lost(c);
    }
}

static void ready(struct pq_conn *c)
{
    switch (c->state) {
    case PQ_DIALING:
        dialing(c);
        break;
    case PQ_IDLE:
    case PQ_BUSY:
        busy(c);
        break;
    case PQ_DOWN:
        break;
    }
}

void pq_conn_send(struct pq_conn *c, const char *sql)
{
    c->state = PQ_BUSY;
    c->sent_ns = workload_now_ns();
    if (PQsendQuery(c->pg, sql) == 1) {
        flush_out(c);
    } else {
        heap_insert(&c->loop->redials, &c->redial, 0); /* told on the next turn */
    }
}

void pq_conn_drop(struct pq_conn *c)
{
    hang_up(c);
    heap_insert(&c->loop->redials, &c->redial, c->loop->now);
}

void pq_conn_wake_at(struct pq_conn *c, uint64_t at_ns)
{
    heap_insert(&c->loop->wakes, &c->wake, at_ns);
}

void pq_conn_init(struct pq_conn *c, struct pq_loop *l, unsigned host, pq_callback *call, void *ctx)
{
    *c = (struct pq_conn){.loop = l, .call = call, .ctx = ctx, .host = host, .fd = -1};
    heap_insert(&l->redials, &c->redial, 0);
}

void pq_conn_deinit(struct pq_conn *c)
{
    hang_up(c);
    heap_remove(&c->loop->redials, &c->redial);
    heap_remove(&c->loop->wakes, &c->wake);
}

static void due(struct pq_loop *l)
{
    struct heap_node *n;
    while ((n = heap_min(&l->redials)) != NULL && n->key <= l->now) {
        struct pq_conn *c =
            (struct pq_conn *)(void *)((char *)n - offsetof(struct pq_conn, redial));
        heap_remove(&l->redials, n);
        if (c->state == PQ_DOWN) {
            dial(c);
        } else {
            lost(c);
        }
    }
    while ((n = heap_min(&l->wakes)) != NULL && n->key <= l->now) {
        struct pq_conn *c = (struct pq_conn *)(void *)((char *)n - offsetof(struct pq_conn, wake));
        heap_remove(&l->wakes, n);
        c->call(c, PQ_WAKE, NULL);
    }
}

void pq_loop_turn(struct pq_loop *l, uint64_t timeout_ns)
{
    struct epoll_event events[EVENTS];
    uint64_t until = workload_now_ns() + timeout_ns;
    const struct heap_node *first[] = {heap_min(&l->redials), heap_min(&l->wakes)};
    for (int i = 0; i < 2; i++) {
        until = first[i] != NULL && first[i]->key < until ? first[i]->key : until;
    }
    l->now = workload_now_ns();
    uint64_t ns = until > l->now ? until - l->now : 0;
    struct timespec ts = {(time_t)(ns / SEC_NS), (long)(ns % SEC_NS)};
    int n = epoll_pwait2(l->epoll_fd, events, EVENTS, &ts, NULL);
    l->now = workload_now_ns();
    for (int i = 0; i < n; i++) {
        ready(events[i].data.ptr);
    }
    due(l);
}
