/* Leader/follower pool over one epoll descriptor: see pg_listener.h.
 *
 * Ownership. A connection is armed in epoll for one event (EPOLLONESHOT); the thread that receives
 * it owns the connection until it arms it again or closes it. `lock` makes that ownership visible
 * to the others who may touch a resting connection (tick: timeouts; drain: 57P01), which only ever
 * try it. `refs` keeps the memory while they look. The table, the refs and each connection's
 * session pointer (for cancel) are under the listener's mutex; a connection leaves the table before
 * its descriptor is closed and its session freed, so whoever finds it in the table under the mutex
 * may use both. */
#include "coordinator/pg_listener.h"

#include "base/alloc.h"
#include "base/invariant.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/map.h"
#include "base/rng.h"
#include "sql/pgwire/pg_conn.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define SOCKETS_MAX     64
#define ACCEPT_BURST    64
#define STACK_BYTES     (512 * KIB) /* SQLite's parser and our session on top of it */
#define SPARE_THREADS   2
#define REFUSED_MAX     64 /* clients beyond the limit that are being told so */
#define GONE_CHECK_NS   SEC_NS
#define DRAIN_STEP_NS   (10 * MS_NS)
#define DRAIN_LOG_EVERY 500

enum source_kind { SOURCE_LISTEN, SOURCE_WAKE, SOURCE_TICK, SOURCE_CONN };

struct source {
    enum source_kind kind;
    int fd;
};

struct listen_socket {
    struct source source;
    unsigned port;
    size_t address;      /* index in the configuration */
    char *path;          /* of a unix socket; removed at the end */
    atomic_bool stalled; /* out of descriptors: the tick arms it again */
};

struct conn {
    struct source source;
    struct pg_listener *l;
    pthread_mutex_t lock; /* held by the thread that steps it */
    bool closed;          /* under lock */
    bool refused;         /* the gate's last word was said: nothing follows */
    unsigned refs;        /* under l->mutex */
    uint32_t pid;
    uint32_t key;
    uint64_t born_ns;
    _Atomic uint64_t busy_since_ns;   /* 0: at rest */
    const struct pg_session *session; /* under l->mutex; set once its cancel key may be known */
    struct pg_conn *pg;
};

struct pg_listener {
    struct pg_listener_config cfg;
    struct listen_socket sockets[SOCKETS_MAX];
    size_t socket_count;
    int epoll_fd;
    struct source wake;
    struct source tick;

    atomic_bool draining;
    atomic_bool stop;
    atomic_int waiting; /* threads in (or on their way to) epoll_wait */

    pthread_mutex_t mutex;
    pthread_cond_t changed; /* live or threads went down */
    struct map64 table;     /* pid -> struct conn */
    size_t live;            /* connections whose session is not freed yet */
    size_t threads;
    bool drained;
    struct rng rng;

    struct metric *m_open;
    struct metric *m_accepted;
    struct metric *m_refused;
    struct metric *m_threads;
};

static const struct pg_error err_too_many = {
    .severity = "FATAL",
    .sqlstate = "53300",
    .message = "sorry, too many clients already",
    .hint = "Connect to another node, use a connection pool, or raise --max-sessions.",
};

static const struct pg_error err_shutdown = {
    .severity = "FATAL",
    .sqlstate = "57P01",
    .message = "terminating connection: this node is shutting down",
    .hint = "Connect to another node of the cluster.",
};

static uint64_t mono_ns(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * SEC_NS + (uint64_t)ts.tv_nsec;
}

/* Writing. */

/* Everything or false; a client that takes nothing for write_timeout_ms is given up. */
static bool send_all(const struct conn *c, struct slice bytes)
{
    while (bytes.size != 0) {
        ssize_t n = send(c->source.fd, bytes.data, bytes.size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n > 0) {
            bytes = slice_of(bytes.data + n, bytes.size - (size_t)n);
            continue;
        }
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0 && errno != EAGAIN) {
            return false;
        }
        struct pollfd p = {.fd = c->source.fd, .events = POLLOUT};
        int ready = poll(&p, 1, (int)c->l->cfg.write_timeout_ms);
        if (ready == 0) {
            SPAN_LOG(WARN, "client does not read, connection dropped", "pid=%u unsent=%zu", c->pid,
                     bytes.size);
            return false;
        }
        if (ready < 0 && errno != EINTR) {
            return false;
        }
    }
    return true;
}

/* The answer can not leave, ever: the client hears that instead. */
static void conn_refuse(struct conn *c)
{
    const struct pg_listener_config *cfg = &c->l->cfg;
    bool unknown = pg_conn_commit_begun(c->pg);
    char why[300] = "";
    char text[400];
    if (cfg->hold_refusal != NULL) {
        cfg->hold_refusal(cfg->hold_ctx, why, sizeof why);
    }
    bool stopping = why[0] == '\0';
    (void)snprintf(text, sizeof text, "%s%s",
                   unknown ? "the transaction may have committed, but its answer cannot be vouched "
                             "for: "
                           : "",
                   stopping ? err_shutdown.message : why);
    struct pg_error e = {
        .severity = "FATAL",
        .sqlstate = unknown    ? "40003"
                    : stopping ? "57P01"
                               : "57P03",
        .message = text,
        .hint = unknown ? "SHOW TRANSACTION STATUS 'id' on another node tells."
                        : "Connect to another node of the cluster.",
    };
    pg_conn_discard(c->pg, &e);
    c->refused = true;
    (void)send_all(c, pg_conn_out(c->pg));
    pg_conn_flushed(c->pg);
}

/* Rule D0: no byte leaves before the gate of what it answers. */
static bool conn_write(struct conn *c)
{
    struct slice out = pg_conn_out(c->pg);
    if (out.size == 0) {
        return true;
    }
    if (c->refused) {
        return false;
    }
    uint64_t not_before = pg_conn_not_before(c->pg);
    if (not_before != 0 && c->l->cfg.hold != NULL &&
        !c->l->cfg.hold(c->l->cfg.hold_ctx, not_before)) {
        conn_refuse(c);
        return false;
    }
    bool ok = send_all(c, out);
    pg_conn_flushed(c->pg);
    return ok;
}

static span_status conn_flush_hook(void *ctx, struct pg_conn *pg)
{
    (void)pg;
    return conn_write(ctx) ? SPAN_OK : SPAN_CLOSED;
}

/* Life of a connection. */

static void conn_unref(struct conn *c)
{
    struct pg_listener *l = c->l;
    pthread_mutex_lock(&l->mutex);
    INVARIANT(c->refs != 0);
    bool last = --c->refs == 0;
    pthread_mutex_unlock(&l->mutex);
    if (!last) {
        return;
    }
    pg_conn_free(c->pg); /* rolls back; may block */
    (void)close(c->source.fd);
    pthread_mutex_destroy(&c->lock);
    span_free(c);
    pthread_mutex_lock(&l->mutex);
    l->live--;
    metric_set(l->m_open, (double)l->live);
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->mutex);
}

/* By the owner, with lock held; afterwards only conn_unref is left. */
static void conn_close(struct conn *c)
{
    struct pg_listener *l = c->l;
    c->closed = true;
    (void)epoll_ctl(l->epoll_fd, EPOLL_CTL_DEL, c->source.fd, NULL);
    pthread_mutex_lock(&l->mutex);
    (void)map64_remove(&l->table, c->pid);
    c->session = NULL;
    pthread_mutex_unlock(&l->mutex);
    (void)shutdown(c->source.fd, SHUT_RDWR);
}

static void cancel_by_key(struct pg_listener *l, uint32_t pid, uint32_t key)
{
    pthread_mutex_lock(&l->mutex);
    const struct conn *c = map64_get(&l->table, pid);
    if (c != NULL && c->key == key && c->session != NULL) {
        c->session->ops->cancel(c->session->impl); /* never blocks */
    }
    pthread_mutex_unlock(&l->mutex);
}

/* From now on a CancelRequest may name this connection. */
static void conn_publish_session(struct conn *c)
{
    if (c->session == NULL && pg_conn_session(c->pg) != NULL) {
        pthread_mutex_lock(&c->l->mutex);
        c->session = pg_conn_session(c->pg);
        pthread_mutex_unlock(&c->l->mutex);
    }
}

/* Handles every whole message that is buffered. False: close. */
static bool conn_step_all(struct conn *c)
{
    for (;;) {
        enum pg_conn_step step = pg_conn_step(c->pg);
        uint32_t pid;
        uint32_t key;
        switch (step) {
        case PG_CONN_NEED_INPUT:
            return !pg_conn_wants_flush(c->pg) || conn_write(c);
        case PG_CONN_MORE:
            conn_publish_session(c);
            if (pg_conn_wants_flush(c->pg) && !conn_write(c)) {
                return false;
            }
            break;
        case PG_CONN_CANCEL:
            pg_conn_cancel_target(c->pg, &pid, &key);
            cancel_by_key(c->l, pid, key);
            return false;
        case PG_CONN_CLOSE:
            (void)conn_write(c);
            return false;
        }
    }
}

/* Tells a connection that rests outside a transaction that the node goes away. */
static bool conn_leave_if_draining(struct conn *c, bool even_in_txn)
{
    if (!pg_conn_is_at_rest(c->pg) || (!even_in_txn && pg_conn_txn_status(c->pg) != 'I')) {
        return false;
    }
    pg_conn_shutdown(c->pg, &err_shutdown);
    (void)conn_write(c);
    return true;
}

/* Reads and runs until the socket is dry. False: close. */
static bool conn_run(struct conn *c)
{
    for (;;) {
        size_t room = 0;
        uint8_t *p = pg_conn_in_space(c->pg, &room);
        ssize_t n = recv(c->source.fd, p, room, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0 && errno == EAGAIN) {
            return !(atomic_load(&c->l->draining) && conn_leave_if_draining(c, false));
        }
        if (n <= 0) {
            return false;
        }
        pg_conn_in_add(c->pg, (size_t)n);
        if (!conn_step_all(c)) {
            return false;
        }
        if ((size_t)n < room && !atomic_load(&c->l->draining)) {
            return true; /* that was all; if not, the armed socket says so at once */
        }
    }
}

/* ThreadSanitizer does not know that the event which lets another thread close the socket comes
 * from this call: tests/stress/tsan.supp names it. */
static bool arm_source(const struct pg_listener *l, struct source *s, int op)
{
    struct epoll_event ev = {.events = EPOLLIN | EPOLLRDHUP | EPOLLONESHOT, .data.ptr = s};
    return epoll_ctl(l->epoll_fd, op, s->fd, &ev) == 0;
}

static void conn_serve(struct pg_listener *l, struct conn *c)
{
    pthread_mutex_lock(&c->lock);
    atomic_store_explicit(&c->busy_since_ns, mono_ns(), memory_order_relaxed);
    bool keep = conn_run(c);
    atomic_store_explicit(&c->busy_since_ns, 0, memory_order_relaxed);
    if (!keep) {
        conn_close(c);
    }
    pthread_mutex_unlock(&c->lock);
    if (!keep) {
        conn_unref(c);
        return;
    }
    /* Once armed, another thread may own (and free) it: nothing of c is touched after this. */
    bool armed = arm_source(l, &c->source, EPOLL_CTL_MOD);
    INVARIANT(armed);
}

/* Accepting. */

static uint32_t draw_pid(struct pg_listener *l)
{
    for (;;) {
        uint32_t pid = (uint32_t)(rng_u64(&l->rng) & 0x7fffffff);
        if (pid != 0 && map64_get(&l->table, pid) == NULL) {
            return pid;
        }
    }
}

static void socket_options(int fd)
{
    int on = 1;
    int idle_s = 60;
    int interval_s = 10;
    int tries = 6;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof(interval_s));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &tries, sizeof(tries));
}

static void conn_new(struct pg_listener *l, int fd)
{
    socket_options(fd);
    struct conn *c = SPAN_NEW(struct conn);
    c->source = (struct source){SOURCE_CONN, fd};
    c->l = l;
    c->refs = 1;
    c->born_ns = mono_ns();
    pthread_mutex_init(&c->lock, NULL);
    struct pg_conn_config cfg = {
        .factory = l->cfg.factory,
        .server_version = l->cfg.server_version,
        .flush = conn_flush_hook,
        .flush_ctx = c,
    };
    pthread_mutex_lock(&l->mutex);
    bool refuse = l->live >= l->cfg.sessions_max;
    bool flood = l->live >= (size_t)l->cfg.sessions_max + REFUSED_MAX || atomic_load(&l->draining);
    if (!flood) {
        c->pid = draw_pid(l);
        c->key = (uint32_t)rng_u64(&l->rng);
        (void)map64_put(&l->table, c->pid, c);
        l->live++;
        metric_set(l->m_open, (double)l->live);
    }
    pthread_mutex_unlock(&l->mutex);
    metric_add(refuse ? l->m_refused : l->m_accepted, 1);
    if (flood) {
        (void)close(fd);
        pthread_mutex_destroy(&c->lock);
        span_free(c);
        return;
    }
    cfg.pid = c->pid;
    cfg.key = c->key;
    cfg.refuse = refuse ? &err_too_many : NULL;
    pthread_mutex_lock(&c->lock);
    c->pg = pg_conn_new(&cfg);
    pthread_mutex_unlock(&c->lock);
    if (!arm_source(l, &c->source, EPOLL_CTL_ADD)) {
        SPAN_LOG(WARN, "connection cannot be watched", "error=%s", strerror(errno));
        pthread_mutex_lock(&c->lock);
        conn_close(c);
        pthread_mutex_unlock(&c->lock);
        conn_unref(c);
    }
}

static void accept_some(struct pg_listener *l, struct listen_socket *s)
{
    for (int i = 0; i < ACCEPT_BURST && !atomic_load(&l->draining); i++) {
        int fd = accept4(s->source.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            conn_new(l, fd);
            continue;
        }
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            SPAN_LOG(WARN, "cannot accept clients for now", "error=%s", strerror(errno));
            atomic_store(&s->stalled, true); /* armed again it would spin */
            return;
        }
        if (errno != EINTR && errno != ECONNABORTED) {
            break;
        }
    }
    if (!atomic_load(&l->draining)) {
        (void)arm_source(l, &s->source, EPOLL_CTL_MOD);
    }
}

/* Tick: timeouts of resting connections, clients that left in the middle of a statement. */

static struct conn **conns_ref_all(struct pg_listener *l, size_t *count)
{
    pthread_mutex_lock(&l->mutex);
    struct conn **all = span_calloc(l->table.count + 1, sizeof(struct conn *));
    size_t pos = 0;
    *count = 0;
    for (struct conn *c; (c = map64_next(&l->table, &pos, NULL)) != NULL;) {
        c->refs++;
        all[(*count)++] = c;
    }
    pthread_mutex_unlock(&l->mutex);
    return all;
}

/* A statement that runs for a second already: does anybody still wait for its answer? */
static void check_client_gone(struct conn *c, uint64_t now)
{
    uint64_t since = atomic_load_explicit(&c->busy_since_ns, memory_order_relaxed);
    if (since == 0 || now < since + GONE_CHECK_NS) {
        return;
    }
    /* The reference keeps the descriptor open (conn_unref closes it). */
    struct pollfd p = {.fd = c->source.fd, .events = POLLRDHUP};
    if (poll(&p, 1, 0) == 1 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0) {
        cancel_by_key(c->l, c->pid, c->key);
    }
}

static void check_rest(struct conn *c, uint64_t now)
{
    bool close_it = false;
    if (pg_conn_session(c->pg) == NULL) {
        close_it = now > c->born_ns + c->l->cfg.startup_timeout_ms * MS_NS;
    } else if (pg_conn_idle_check(c->pg, now) == PG_CONN_CLOSE) {
        (void)conn_write(c);
        close_it = true;
    } else if (pg_conn_wants_flush(c->pg)) {
        close_it = !conn_write(c);
    }
    if (close_it) {
        (void)shutdown(c->source.fd, SHUT_RDWR); /* its event makes a pool thread close it */
    }
}

static void tick(struct pg_listener *l)
{
    uint64_t ticks = 0;
    ssize_t n = read(l->tick.fd, &ticks, sizeof(ticks));
    (void)n;
    size_t count = 0;
    struct conn **all = conns_ref_all(l, &count);
    uint64_t now = mono_ns();
    for (size_t i = 0; i < count; i++) {
        struct conn *c = all[i];
        if (pthread_mutex_trylock(&c->lock) == 0) {
            if (!c->closed && c->pg != NULL) {
                check_rest(c, now);
            }
            pthread_mutex_unlock(&c->lock);
        } else {
            check_client_gone(c, now);
        }
        conn_unref(c);
    }
    span_free(all);
    for (size_t i = 0; i < l->socket_count && !atomic_load(&l->draining); i++) {
        if (atomic_exchange(&l->sockets[i].stalled, false)) {
            (void)arm_source(l, &l->sockets[i].source, EPOLL_CTL_MOD);
        }
    }
    (void)arm_source(l, &l->tick, EPOLL_CTL_MOD);
}

/* Pool. */

static void *pool_main(void *arg);

/* A new thread counts as waiting from here on, so that a burst does not start one for each event.
 */
static bool spawn(struct pg_listener *l)
{
    pthread_attr_t attr;
    pthread_t thread;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    atomic_fetch_add(&l->waiting, 1);
    pthread_mutex_lock(&l->mutex);
    l->threads++;
    metric_set(l->m_threads, (double)l->threads);
    pthread_mutex_unlock(&l->mutex);
    int rc = pthread_create(&thread, &attr, pool_main, l);
    pthread_attr_destroy(&attr);
    if (rc != 0) {
        SPAN_LOG(WARN, "cannot start a session thread", "error=%s", strerror(rc));
        atomic_fetch_sub(&l->waiting, 1);
        pthread_mutex_lock(&l->mutex);
        l->threads--;
        pthread_mutex_unlock(&l->mutex);
    }
    return rc == 0;
}

static void handle(struct pg_listener *l, struct source *s)
{
    switch (s->kind) {
    case SOURCE_LISTEN:
        accept_some(l, (struct listen_socket *)(void *)s);
        break;
    case SOURCE_TICK:
        tick(l);
        break;
    case SOURCE_CONN:
        conn_serve(l, (struct conn *)(void *)s);
        break;
    case SOURCE_WAKE:
        break; /* l->stop is looked at next */
    }
}

/* Leaves if others keep waiting; the exchange makes sure that two do not leave for one. */
static bool may_leave(struct pg_listener *l)
{
    int waiting = atomic_load(&l->waiting);
    while (waiting > SPARE_THREADS) {
        if (atomic_compare_exchange_weak(&l->waiting, &waiting, waiting - 1)) {
            return true;
        }
    }
    return false;
}

static void pool_loop(struct pg_listener *l)
{
    for (;;) {
        struct epoll_event ev;
        int n = epoll_wait(l->epoll_fd, &ev, 1, (int)l->cfg.idle_thread_ms);
        if (atomic_load(&l->stop)) {
            return;
        }
        if (n == 0 && may_leave(l)) {
            return;
        }
        if (n <= 0) {
            continue;
        }
        if (atomic_fetch_sub(&l->waiting, 1) == 1) {
            (void)spawn(l);
        }
        handle(l, ev.data.ptr);
        atomic_fetch_add(&l->waiting, 1);
    }
}

static void *pool_main(void *arg)
{
    struct pg_listener *l = arg;
    char name[16];
    (void)snprintf(name, sizeof(name), "pg-%u", l->cfg.node % 1000);
    (void)prctl(PR_SET_NAME, name);
    (void)prctl(PR_SET_TIMERSLACK, 1UL);
    log_set_node(l->cfg.node);
    pool_loop(l);
    pthread_mutex_lock(&l->mutex);
    l->threads--;
    metric_set(l->m_threads, (double)l->threads);
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->mutex); /* the listener may be freed from here on */
    return NULL;
}

/* Opening. */

static span_status address_split(const char *address, char host[256], char port[8],
                                 struct span_error *err)
{
    const char *colon = strrchr(address, ':');
    size_t host_size = colon == NULL ? 0 : (size_t)(colon - address);
    const char *from = address;
    if (host_size >= 2 && from[0] == '[' && from[host_size - 1] == ']') {
        from++;
        host_size -= 2;
    }
    size_t digits = colon == NULL ? 0 : strspn(colon + 1, "0123456789");
    if (colon == NULL || digits == 0 || digits > 5 || colon[1 + digits] != '\0' ||
        host_size >= 256 || strtoul(colon + 1, NULL, 10) > 65535) {
        return span_fail(err, SPAN_INVALID,
                         "SQL address \"%s\" is not of the form host:port, such as 127.0.0.1:5433",
                         address);
    }
    memcpy(host, from, host_size);
    host[host_size] = '\0';
    memcpy(port, colon + 1, digits + 1);
    return SPAN_OK;
}

static unsigned bound_port(int fd)
{
    struct sockaddr_storage a;
    socklen_t size = sizeof(a);
    if (getsockname(fd, (struct sockaddr *)&a, &size) != 0) {
        return 0;
    }
    if (a.ss_family == AF_INET6) {
        return ntohs(((const struct sockaddr_in6 *)&a)->sin6_port);
    }
    return ntohs(((const struct sockaddr_in *)&a)->sin_port);
}

static void set_port(struct addrinfo *ai, unsigned port)
{
    if (ai->ai_family == AF_INET6) {
        ((struct sockaddr_in6 *)(void *)ai->ai_addr)->sin6_port = htons((uint16_t)port);
    } else {
        ((struct sockaddr_in *)(void *)ai->ai_addr)->sin_port = htons((uint16_t)port);
    }
}

/* A listening descriptor, or -errno. */
static int listen_on(const struct addrinfo *ai)
{
    int on = 1;
    int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return -errno;
    }
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (ai->ai_family == AF_INET6) {
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
    }
    if (bind(fd, ai->ai_addr, ai->ai_addrlen) != 0 || listen(fd, 1024) != 0) {
        int rc = -errno;
        (void)close(fd);
        return rc;
    }
    return fd;
}

/* A socket file without a listener is what a killed process left. */
static bool is_stale(const struct sockaddr_un *a)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool stale = fd >= 0 && connect(fd, (const struct sockaddr *)a, sizeof(*a)) != 0 &&
                 errno == ECONNREFUSED;
    if (fd >= 0) {
        (void)close(fd);
    }
    return stale;
}

static span_status open_folder(struct pg_listener *l, size_t i, struct span_error *err)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    const char *dir = l->cfg.addresses[i];
    char *path = span_asprintf("%s/.s.PGSQL.%u", dir, l->sockets[0].port);
    span_status st = SPAN_OK;
    if (strlen(path) >= sizeof(a.sun_path)) {
        st = span_fail(err, SPAN_INVALID,
                       "cannot listen on %s: the path of a socket has at most %zu bytes", path,
                       sizeof(a.sun_path) - 1);
        span_free(path);
        return st;
    }
    memcpy(a.sun_path, path, strlen(path) + 1);
    if (is_stale(&a)) {
        (void)unlink(path);
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (const struct sockaddr *)&a, sizeof(a)) != 0 || listen(fd, 1024) != 0) {
        st = span_fail(err, errno == EADDRINUSE ? SPAN_EXISTS : SPAN_IO,
                       "cannot listen for SQL clients on %s: %s", path,
                       errno == EADDRINUSE ? "another process does, or it is no socket"
                                           : strerror(errno));
        if (fd >= 0) {
            (void)close(fd);
        }
        span_free(path);
        return st;
    }
    (void)chmod(path, 0777); /* who may connect is said by the folder, as with PostgreSQL */
    struct listen_socket *s = &l->sockets[l->socket_count++];
    s->source = (struct source){SOURCE_LISTEN, fd};
    s->port = l->sockets[0].port;
    s->address = i;
    s->path = path;
    return SPAN_OK;
}

/* Every address a name has gets a socket ("localhost" is two); with port 0 they share the first's.
 */
static span_status open_address(struct pg_listener *l, size_t i, struct span_error *err)
{
    const char *address = l->cfg.addresses[i];
    if (address[0] == '/' && i > 0 && l->socket_count < SOCKETS_MAX) {
        return open_folder(l, i, err);
    }
    char host[256];
    char port[8];
    span_status st = address_split(address, host, port, err);
    if (st != SPAN_OK) {
        return st;
    }
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *found = NULL;
    int rc =
        getaddrinfo(host[0] == '\0' || strcmp(host, "*") == 0 ? NULL : host, port, &hints, &found);
    if (rc != 0) {
        return span_fail(err, SPAN_INVALID, "SQL address \"%s\": %s", address, gai_strerror(rc));
    }
    int failure = 0;
    unsigned first_port = 0;
    for (struct addrinfo *ai = found; ai != NULL && l->socket_count < SOCKETS_MAX;
         ai = ai->ai_next) {
        if (ai->ai_family != AF_INET && ai->ai_family != AF_INET6) {
            continue;
        }
        if (first_port != 0) {
            set_port(ai, first_port);
        }
        int fd = listen_on(ai);
        if (fd < 0) {
            failure = fd == -EADDRINUSE || failure == 0 ? -fd : failure;
            continue;
        }
        struct listen_socket *s = &l->sockets[l->socket_count++];
        s->source = (struct source){SOURCE_LISTEN, fd};
        s->port = bound_port(fd);
        s->address = i;
        first_port = s->port;
    }
    freeaddrinfo(found);
    if (failure == EADDRINUSE) {
        return span_fail(
            err, SPAN_EXISTS,
            "cannot listen for SQL clients on %s: the port is in use by another process", address);
    }
    if (first_port == 0) {
        return span_fail(err, SPAN_IO, "cannot listen for SQL clients on %s: %s", address,
                         strerror(failure));
    }
    return SPAN_OK;
}

static span_status open_events(struct pg_listener *l, struct span_error *err)
{
    l->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    l->wake = (struct source){SOURCE_WAKE, eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    l->tick =
        (struct source){SOURCE_TICK, timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)};
    if (l->epoll_fd < 0 || l->wake.fd < 0 || l->tick.fd < 0) {
        return span_fail(err, SPAN_IO, "SQL listener: %s", strerror(errno));
    }
    struct timespec period = {.tv_sec = l->cfg.tick_ms / 1000,
                              .tv_nsec = (long)(l->cfg.tick_ms % 1000) * 1000000};
    struct itimerspec its = {period, period};
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = &l->wake};
    bool ok = timerfd_settime(l->tick.fd, 0, &its, NULL) == 0 &&
              epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, l->wake.fd, &ev) == 0 &&
              arm_source(l, &l->tick, EPOLL_CTL_ADD);
    for (size_t i = 0; i < l->socket_count && ok; i++) {
        ok = arm_source(l, &l->sockets[i].source, EPOLL_CTL_ADD);
    }
    return ok ? SPAN_OK : span_fail(err, SPAN_IO, "SQL listener: %s", strerror(errno));
}

static void close_fd(int fd)
{
    if (fd >= 0) {
        (void)close(fd);
    }
}

static void destroy(struct pg_listener *l)
{
    for (size_t i = 0; i < l->socket_count; i++) {
        close_fd(l->sockets[i].source.fd);
        if (l->sockets[i].path != NULL) {
            (void)unlink(l->sockets[i].path);
            span_free(l->sockets[i].path);
        }
    }
    close_fd(l->wake.fd);
    close_fd(l->tick.fd);
    close_fd(l->epoll_fd);
    map64_deinit(&l->table);
    pthread_cond_destroy(&l->changed);
    pthread_mutex_destroy(&l->mutex);
    span_free(l);
}

static void take_config(struct pg_listener *l, const struct pg_listener_config *cfg)
{
    l->cfg = *cfg;
    l->cfg.sessions_max = cfg->sessions_max != 0 ? cfg->sessions_max : LIMIT_SESSIONS;
    l->cfg.idle_thread_ms = cfg->idle_thread_ms != 0 ? cfg->idle_thread_ms : 5000;
    l->cfg.tick_ms = cfg->tick_ms != 0 ? cfg->tick_ms : 500;
    l->cfg.startup_timeout_ms = cfg->startup_timeout_ms != 0 ? cfg->startup_timeout_ms : 60000;
    l->cfg.write_timeout_ms = cfg->write_timeout_ms != 0 ? cfg->write_timeout_ms : 60000;
    if (cfg->metrics != NULL) {
        l->m_open = metrics_gauge(cfg->metrics, "spanlite_pgwire_connections", "",
                                  "Client connections open now.");
        l->m_accepted = metrics_counter(cfg->metrics, "spanlite_pgwire_connections_total", "",
                                        "Client connections accepted.");
        l->m_refused = metrics_counter(cfg->metrics, "spanlite_pgwire_refused_total", "",
                                       "Client connections refused for want of room (53300).");
        l->m_threads = metrics_gauge(cfg->metrics, "spanlite_pgwire_threads", "",
                                     "Session threads alive now.");
    }
}

span_status pg_listener_open(const struct pg_listener_config *cfg, struct pg_listener **out,
                             struct span_error *err)
{
    struct pg_listener *l = SPAN_NEW(struct pg_listener);
    pthread_condattr_t attr;
    l->wake.fd = -1;
    l->tick.fd = -1;
    l->epoll_fd = -1;
    take_config(l, cfg);
    rng_init(&l->rng, rng_os_u64());
    map64_init(&l->table);
    pthread_mutex_init(&l->mutex, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&l->changed, &attr);
    pthread_condattr_destroy(&attr);
    span_status st = SPAN_OK;
    for (size_t i = 0; i < cfg->address_count && st == SPAN_OK; i++) {
        st = open_address(l, i, err);
    }
    if (st == SPAN_OK) {
        st = open_events(l, err);
    }
    if (st != SPAN_OK) {
        destroy(l);
        return st;
    }
    l->cfg.addresses = NULL; /* the caller's memory; no longer needed */
    l->cfg.address_count = 0;
    bool any = false;
    for (int i = 0; i < SPARE_THREADS; i++) {
        any = spawn(l) || any;
    }
    if (!any) {
        destroy(l);
        return span_fail(err, SPAN_NOMEM, "cannot start a thread for SQL clients");
    }
    *out = l;
    return SPAN_OK;
}

unsigned pg_listener_port(const struct pg_listener *l, size_t i)
{
    for (size_t k = 0; k < l->socket_count; k++) {
        if (l->sockets[k].address == i) {
            return l->sockets[k].port;
        }
    }
    return 0;
}

/* Closing. */

/* One round over all connections. `force`: grace is over. */
static void drain_round(struct pg_listener *l, bool force)
{
    size_t count = 0;
    struct conn **all = conns_ref_all(l, &count);
    for (size_t i = 0; i < count; i++) {
        struct conn *c = all[i];
        if (pthread_mutex_trylock(&c->lock) == 0) {
            if (!c->closed && c->pg != NULL) {
                bool leave = conn_leave_if_draining(c, force);
                if (leave || force || pg_conn_session(c->pg) == NULL) {
                    (void)shutdown(c->source.fd, SHUT_RDWR);
                }
            }
            pthread_mutex_unlock(&c->lock);
        } else if (force) {
            cancel_by_key(l, c->pid, c->key);
        }
        conn_unref(c);
    }
    span_free(all);
}

static void wait_changed(struct pg_listener *l, uint64_t ns)
{
    struct timespec until;
    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t at = (uint64_t)until.tv_sec * SEC_NS + (uint64_t)until.tv_nsec + ns;
    until.tv_sec = (time_t)(at / SEC_NS);
    until.tv_nsec = (long)(at % SEC_NS);
    (void)pthread_cond_timedwait(&l->changed, &l->mutex, &until);
}

static void drain_connections(struct pg_listener *l, unsigned grace_ms)
{
    uint64_t end = mono_ns() + grace_ms * MS_NS;
    for (unsigned round = 1;; round++) {
        bool force = mono_ns() >= end;
        drain_round(l, force);
        pthread_mutex_lock(&l->mutex);
        if (l->live != 0) {
            wait_changed(l, DRAIN_STEP_NS);
        }
        size_t left = l->live;
        pthread_mutex_unlock(&l->mutex);
        if (left == 0) {
            return;
        }
        if (round % DRAIN_LOG_EVERY == 0) {
            SPAN_LOG(WARN, "waiting for statements to end", "connections=%zu", left);
        }
    }
}

void pg_listener_drain(struct pg_listener *l, unsigned grace_ms)
{
    if (l->drained) {
        return;
    }
    l->drained = true;
    pthread_mutex_lock(&l->mutex);
    atomic_store(&l->draining, true); /* under the mutex: nobody enters the table after this */
    pthread_mutex_unlock(&l->mutex);
    for (size_t i = 0; i < l->socket_count; i++) {
        /* Refuses new clients at once; the descriptor stays ours until no thread can use it. */
        (void)shutdown(l->sockets[i].source.fd, SHUT_RDWR);
    }
    drain_connections(l, grace_ms);
    atomic_store(&l->stop, true);
    uint64_t one = 1;
    ssize_t n = write(l->wake.fd, &one, sizeof(one));
    (void)n;
    pthread_mutex_lock(&l->mutex);
    while (l->threads != 0) {
        wait_changed(l, SEC_NS);
    }
    pthread_mutex_unlock(&l->mutex);
}

void pg_listener_free(struct pg_listener *l)
{
    if (l == NULL) {
        return;
    }
    pg_listener_drain(l, 0);
    destroy(l);
}

size_t pg_listener_connections(struct pg_listener *l)
{
    pthread_mutex_lock(&l->mutex);
    size_t n = l->live;
    pthread_mutex_unlock(&l->mutex);
    return n;
}

size_t pg_listener_threads(struct pg_listener *l)
{
    pthread_mutex_lock(&l->mutex);
    size_t n = l->threads;
    pthread_mutex_unlock(&l->mutex);
    return n;
}
