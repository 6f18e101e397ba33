/* The transport between nodes of one process, over every scheme, and against peers that misbehave
 * (made by hand on plain TCP). Nothing sleeps to synchronize: every wait is for
 * a condition that a callback signals, with a bound after which the test fails. */
#include "base/alloc.h"
#include "base/codec.h"
#include "base/log.h"
#include "base/rng.h"
#include "shard/net/transport.h"
#include "shard/net/wire.h"

#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define CLUSTER  77
#define NODE_MAX 3
#define FRAMES   4096
#define WAIT_S   20

/* A node under test and what its callbacks said. */
struct node {
    struct timer *timer;
    struct transport *t;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool up[NODE_MAX + 1][2][NET_CLASS_COUNT];
    unsigned ups;
    unsigned downs;
    unsigned refusals;
    enum net_refusal why;
    enum net_direction why_direction;
    uint32_t why_node;
    uint64_t why_store;
    uint64_t peer_incarnation;
    uint64_t peer_store;
    /* numbers received, four bytes each, per class; from whom */
    uint32_t got[NET_CLASS_COUNT][FRAMES];
    size_t got_count[NET_CLASS_COUNT];
    size_t bytes;
    uint64_t incarnation_of_last;
};

static void on_frame(void *ctx, struct net_frame *f)
{
    struct node *n = ctx;
    struct cursor c = cursor_of(f->payload);
    (void)pthread_mutex_lock(&n->lock);
    n->bytes += f->payload.size;
    while (cursor_left(&c) >= 4 && n->got_count[f->class] < FRAMES) {
        n->got[f->class][n->got_count[f->class]++] = dec_u32(&c);
    }
    n->incarnation_of_last = f->incarnation;
    (void)pthread_cond_broadcast(&n->changed);
    (void)pthread_mutex_unlock(&n->lock);
    net_frame_unref(f);
}

static void on_peer(void *ctx, const struct transport_peer_event *ev)
{
    struct node *n = ctx;
    (void)pthread_mutex_lock(&n->lock);
    cr_assert_neq(n->up[ev->node][ev->direction][ev->class], ev->up, "no event twice");
    n->up[ev->node][ev->direction][ev->class] = ev->up;
    n->ups += ev->up;
    n->downs += !ev->up;
    n->peer_incarnation = ev->incarnation;
    n->peer_store = ev->store_id;
    (void)pthread_cond_broadcast(&n->changed);
    (void)pthread_mutex_unlock(&n->lock);
}

static void on_refused(void *ctx, uint32_t node, enum net_direction direction, enum net_refusal why,
                       uint64_t store_id)
{
    struct node *n = ctx;
    (void)pthread_mutex_lock(&n->lock);
    n->refusals++;
    n->why = why;
    n->why_direction = direction;
    n->why_node = node;
    n->why_store = store_id;
    (void)pthread_cond_broadcast(&n->changed);
    (void)pthread_mutex_unlock(&n->lock);
}

/* Waits for `cond` over struct node *n, with its lock held while it is looked at. */
#define WAIT_FOR(n, cond)                                                                          \
    do {                                                                                           \
        struct timespec until_;                                                                    \
        (void)clock_gettime(CLOCK_REALTIME, &until_);                                              \
        until_.tv_sec += WAIT_S;                                                                   \
        (void)pthread_mutex_lock(&(n)->lock);                                                      \
        while (!(cond)) {                                                                          \
            int rc_ = pthread_cond_timedwait(&(n)->changed, &(n)->lock, &until_);                  \
            cr_assert_eq(rc_, 0, "waited in vain for: " #cond);                                    \
        }                                                                                          \
        (void)pthread_mutex_unlock(&(n)->lock);                                                    \
    } while (0)

/* Polls a status that has no callback. The timed wait is only the pace of the polling. */
#define POLL_FOR(n, cond)                                                                          \
    do {                                                                                           \
        uint64_t end_ = timer_now_ns() + WAIT_S * SEC_NS;                                          \
        while (!(cond)) {                                                                          \
            cr_assert_lt(timer_now_ns(), end_, "waited in vain for: " #cond);                      \
            pace(n);                                                                               \
        }                                                                                          \
    } while (0)

static void pace(struct node *n)
{
    struct timespec until;
    (void)clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 2000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    (void)pthread_mutex_lock(&n->lock);
    (void)pthread_cond_timedwait(&n->changed, &n->lock, &until);
    (void)pthread_mutex_unlock(&n->lock);
}

/* --- clusters of two or three nodes -------------------------------------------------------------
 */

enum scheme { TCP, IPC, INPROC };

static char *base_url(enum scheme scheme, uint32_t node)
{
    static char dir[] = "/tmp/transport_test.XXXXXX";
    static bool made;
    static uint64_t tag;
    if (!made) {
        made = true;
        tag = rng_os_u64();
        if (scheme == IPC) {
            cr_assert_not_null(mkdtemp(dir));
        }
    }
    switch (scheme) {
    case TCP:
        /* Below the ephemeral ports; tests run side by side, so each process takes 30 of its own,
         * 10 a node (a listener per peer and class). */
        return span_asprintf("tcp://127.0.0.1:%u",
                             12000 + 30 * ((unsigned)getpid() % 600) + 10 * (node - 1));
    case IPC:
        return span_asprintf("ipc://%s/n%u", dir, node);
    case INPROC:
    default:
        return span_asprintf("inproc://t%lx-n%u", (unsigned long)tag, node);
    }
}

static void ipc_clean_up(enum scheme scheme)
{
    if (scheme == IPC) {
        char *url = base_url(IPC, 1);
        url[strlen(url) - 3] = '\0';
        cr_assert_eq(rmdir(url + strlen("ipc://")), 0, "nng left its sockets in %s", url + 6);
        span_free(url);
    }
}

static struct transport_config config_of(struct node *n, uint32_t id)
{
    return (struct transport_config){
        .cluster_id = CLUSTER,
        .node = id,
        .store_id = 1000 + id,
        .incarnation = rng_os_u64() | 1,
        .timer = n->timer,
        .callbacks = {.ctx = n, .on_frame = on_frame, .on_peer = on_peer, .on_refused = on_refused},
        .fault_seed = 1,
    };
}

static struct node *node_new(void)
{
    static bool registered;
    struct node *n = SPAN_NEW(struct node);
    if (!registered) {
        registered = true;
        (void)atexit(transport_library_fini); /* for the leak checker */
    }
    log_set_level(LOG_ERROR);
    (void)pthread_mutex_init(&n->lock, NULL);
    (void)pthread_cond_init(&n->changed, NULL);
    cr_assert_eq(timer_open(&n->timer, NULL), SPAN_OK);
    return n;
}

/* Opens node `id` of a cluster of `count`, after `change` had its way with the configuration. */
static span_status node_try_open(struct node *n, enum scheme scheme, uint32_t id, uint32_t count,
                                 void (*change)(struct transport_config *), struct span_error *err)
{
    struct transport_peer_config peers[NODE_MAX];
    struct transport_config cfg = config_of(n, id);
    char *urls[NODE_MAX + 1];
    for (uint32_t i = 1; i <= count; i++) {
        urls[i] = base_url(scheme, i);
        if (i != id) {
            peers[cfg.peer_count++] = (struct transport_peer_config){.node = i, .url = urls[i]};
        }
    }
    cfg.listen_url = urls[id];
    cfg.peers = peers;
    if (change != NULL) {
        change(&cfg);
    }
    span_status st = transport_open(&cfg, &n->t, err);
    for (uint32_t i = 1; i <= count; i++) {
        span_free(urls[i]);
    }
    return st;
}

static void node_open(struct node *n, enum scheme scheme, uint32_t id, uint32_t count,
                      void (*change)(struct transport_config *))
{
    struct span_error err;
    span_status st = node_try_open(n, scheme, id, count, change, &err);
    cr_assert_eq(st, SPAN_OK, "%s", err.text);
}

static void node_free(struct node *n)
{
    transport_close(n->t);
    timer_close(n->timer);
    (void)pthread_cond_destroy(&n->changed);
    (void)pthread_mutex_destroy(&n->lock);
    span_free(n);
}

static struct node *node_start(enum scheme scheme, uint32_t id, uint32_t count)
{
    struct node *n = node_new();
    node_open(n, scheme, id, count, NULL);
    return n;
}

static bool all_up(struct node *n, uint32_t peer)
{
    return n->up[peer][NET_OUT][NET_CONTROL] && n->up[peer][NET_OUT][NET_BULK] &&
           n->up[peer][NET_IN][NET_CONTROL] && n->up[peer][NET_IN][NET_BULK];
}

static span_status send_number(struct node *n, uint32_t to, enum net_class class, uint32_t number)
{
    struct buf b = {0};
    enc_u32(&b, number);
    span_status st = transport_send(n->t, to, class, &b);
    cr_assert_null(b.data, "moved, whatever the result");
    return st;
}

static struct transport_link_status link_of(struct node *n, uint32_t peer, enum net_class class)
{
    struct transport_peer_status s;
    cr_assert_eq(transport_peer_status(n->t, peer, &s), SPAN_OK);
    return s.link[class];
}

/* --- delivery -----------------------------------------------------------------------------------
 */

ParameterizedTestParameters(transport, delivers_in_order_both_ways_on_every_scheme)
{
    static enum scheme schemes[] = {TCP, IPC, INPROC};

    return cr_make_param_array(enum scheme, schemes, 3);
}

ParameterizedTest(enum scheme *scheme, transport, delivers_in_order_both_ways_on_every_scheme,
                  .timeout = 60)
{
    struct node *a = node_start(*scheme, 1, 2);
    struct node *b = node_start(*scheme, 2, 2);
    WAIT_FOR(a, all_up(a, 2));
    WAIT_FOR(b, all_up(b, 1));
    for (uint32_t i = 0; i < 2000; i++) {
        cr_assert_eq(send_number(a, 2, NET_CONTROL, i), SPAN_OK);
        cr_assert_eq(send_number(b, 1, NET_CONTROL, i), SPAN_OK);
        cr_assert_eq(send_number(a, 2, NET_BULK, i), SPAN_OK);
    }
    WAIT_FOR(b, b->got_count[NET_CONTROL] == 2000 && b->got_count[NET_BULK] == 2000);
    WAIT_FOR(a, a->got_count[NET_CONTROL] == 2000);
    for (uint32_t i = 0; i < 2000; i++) {
        cr_assert_eq(b->got[NET_CONTROL][i], i);
        cr_assert_eq(b->got[NET_BULK][i], i);
        cr_assert_eq(a->got[NET_CONTROL][i], i);
    }
    struct transport_link_status s = link_of(a, 2, NET_CONTROL);
    cr_assert_eq(s.sends_out, 2000);
    cr_assert_eq(s.bytes_out, 8000);
    cr_assert_leq(s.frames_out, s.sends_out);
    cr_assert_eq(s.queued_bytes, 0);
    cr_assert(s.up_out && s.up_in);
    cr_assert_eq(s.connects, 1);
    cr_assert_gt(s.last_heard_ns, 0);
    cr_assert_eq(link_of(b, 1, NET_BULK).bytes_in, 8000);
    node_free(a);
    node_free(b);
    ipc_clean_up(*scheme);
}

Test(transport, carries_large_frames_and_refuses_larger_ones, .timeout = 60)
{
    struct node *a = node_start(TCP, 1, 2);
    struct node *b = node_start(TCP, 2, 2);
    struct buf big = {0};
    WAIT_FOR(a, all_up(a, 2));
    memset(buf_grow(&big, LIMIT_FRAME_BYTES), 7, LIMIT_FRAME_BYTES);
    cr_assert_eq(transport_send(a->t, 2, NET_BULK, &big), SPAN_OK);
    WAIT_FOR(b, b->bytes == LIMIT_FRAME_BYTES);
    memset(buf_grow(&big, LIMIT_FRAME_BYTES + 1), 7, LIMIT_FRAME_BYTES + 1);
    cr_assert_eq(transport_send(a->t, 2, NET_BULK, &big), SPAN_TOO_LARGE);
    cr_assert_null(big.data);
    cr_assert_eq(transport_send(a->t, 2, NET_BULK, &big), SPAN_OK, "an empty one does nothing");
    cr_assert_eq(send_number(a, 3, NET_BULK, 1), SPAN_NOT_FOUND);
    cr_assert_eq(send_number(a, 99999, NET_BULK, 1), SPAN_NOT_FOUND);
    node_free(a);
    node_free(b);
}

Test(transport, connects_three_nodes_each_with_each, .timeout = 60)
{
    struct node *n[NODE_MAX + 1];
    for (uint32_t i = 1; i <= 3; i++) {
        n[i] = node_start(INPROC, i, 3);
    }
    for (uint32_t i = 1; i <= 3; i++) {
        WAIT_FOR(n[i], all_up(n[i], i % 3 + 1) && all_up(n[i], (i + 1) % 3 + 1));
    }
    cr_assert_eq(send_number(n[1], 3, NET_CONTROL, 5), SPAN_OK);
    WAIT_FOR(n[3], n[3]->got_count[NET_CONTROL] == 1);
    for (uint32_t i = 1; i <= 3; i++) {
        node_free(n[i]);
    }
}

/* Node 3 is not in the first two's configuration: they learn of it while they run and talk. */
static void add_later(enum scheme scheme)
{
    struct node *n[NODE_MAX + 1];
    char *url = base_url(scheme, 3);
    struct transport_peer_config p = {.node = 3, .url = url};
    struct span_error err;
    n[1] = node_start(scheme, 1, 2);
    n[2] = node_start(scheme, 2, 2);
    WAIT_FOR(n[1], all_up(n[1], 2));
    cr_assert_eq(send_number(n[1], 3, NET_CONTROL, 1), SPAN_NOT_FOUND);
    n[3] = node_start(scheme, 3, 3);
    cr_assert_eq(send_number(n[1], 2, NET_CONTROL, 7), SPAN_OK);
    cr_assert_eq(transport_peer_add(n[1]->t, &p, &err), SPAN_OK, "%s", err.text);
    cr_assert_eq(transport_peer_add(n[2]->t, &p, &err), SPAN_OK, "%s", err.text);
    cr_assert_eq(transport_peer_add(n[1]->t, &p, &err), SPAN_INVALID);
    WAIT_FOR(n[1], all_up(n[1], 3));
    WAIT_FOR(n[2], all_up(n[2], 3));
    WAIT_FOR(n[3], all_up(n[3], 1) && all_up(n[3], 2));
    cr_assert_eq(send_number(n[1], 3, NET_CONTROL, 5), SPAN_OK);
    cr_assert_eq(send_number(n[3], 2, NET_BULK, 6), SPAN_OK);
    WAIT_FOR(n[3], n[3]->got_count[NET_CONTROL] == 1);
    WAIT_FOR(n[2], n[2]->got_count[NET_BULK] == 1 && n[2]->got_count[NET_CONTROL] == 1);
    p.node = 1;
    cr_assert_eq(transport_peer_add(n[1]->t, &p, &err), SPAN_INVALID); /* itself */
    for (uint32_t i = 1; i <= 3; i++) {
        node_free(n[i]);
    }
    span_free(url);
}

Test(transport, a_peer_can_be_added_while_it_runs, .timeout = 60)
{
    add_later(TCP);
}

Test(transport, a_peer_can_be_added_while_it_runs_inproc, .timeout = 60)
{
    add_later(INPROC);
}

/* --- peers that come and go ---------------------------------------------------------------------
 */

Test(transport, refuses_to_queue_for_a_dead_peer, .timeout = 60)
{
    struct node *a = node_start(TCP, 1, 2);
    cr_assert_eq(send_number(a, 2, NET_CONTROL, 1), SPAN_UNAVAILABLE);
    cr_assert_eq(link_of(a, 2, NET_CONTROL).dropped_down, 1);
    node_free(a);
}

Test(transport, notices_a_peer_that_leaves_and_one_that_returns_with_a_new_incarnation,
     .timeout = 60)
{
    struct node *a = node_start(TCP, 1, 2);
    for (uint32_t round = 0; round < 3; round++) {
        struct node *b = node_start(TCP, 2, 2);
        WAIT_FOR(a, all_up(a, 2));
        WAIT_FOR(b, all_up(b, 1));
        uint64_t first = a->peer_incarnation;
        cr_assert_eq(a->peer_store, 1002);
        cr_assert_eq(send_number(b, 1, NET_CONTROL, round), SPAN_OK);
        WAIT_FOR(a, a->got_count[NET_CONTROL] == round + 1);
        cr_assert_eq(a->incarnation_of_last, first);
        node_free(b);
        WAIT_FOR(a, a->downs == 4 * (round + 1));
        cr_assert_eq(send_number(a, 2, NET_CONTROL, 1), SPAN_UNAVAILABLE);
    }
    cr_assert_eq(link_of(a, 2, NET_CONTROL).connects, 3);
    node_free(a);
}

struct flood {
    struct node *n;
    enum net_class class;
    atomic_bool stop;
    pthread_t thread;
};

static void *flood_run(void *arg)
{
    struct flood *f = arg;
    while (!atomic_load(&f->stop)) {
        (void)!send_number(f->n, 2, f->class, 1);
    }
    return NULL;
}

/* Found by tests/cluster/failpoints: a frame that was handed to nng just behind the close of its
 * stream never ended, and the link that waited for it never sent again, not even HELLO. */
Test(transport, a_link_that_breaks_under_a_sender_comes_back, .timeout = 60)
{
    struct node *a = node_start(TCP, 1, 2);
    struct flood floods[NET_CLASS_COUNT];
    for (unsigned i = 0; i < NET_CLASS_COUNT; i++) {
        floods[i] = (struct flood){.n = a, .class = (enum net_class)i};
        cr_assert_eq(pthread_create(&floods[i].thread, NULL, flood_run, &floods[i]), 0);
    }
    for (unsigned round = 0; round < 20; round++) {
        struct node *b = node_start(TCP, 2, 2);
        WAIT_FOR(a, all_up(a, 2));
        WAIT_FOR(b, all_up(b, 1));
        node_free(b);
    }
    for (unsigned i = 0; i < NET_CLASS_COUNT; i++) {
        atomic_store(&floods[i].stop, true);
        cr_assert_eq(pthread_join(floods[i].thread, NULL), 0);
    }
    node_free(a);
}

static void change_node(struct transport_config *c)
{
    c->node = 3;
}

static void change_cluster(struct transport_config *c)
{
    c->cluster_id = CLUSTER + 1;
}

static void change_store(struct transport_config *c)
{
    c->store_id = 5555;
}

static void expect_store(struct transport_config *c)
{
    static struct transport_peer_config peer;
    peer = c->peers[0];
    peer.store_id = 1002;
    c->peers = &peer;
}

Test(transport, refuses_a_node_of_another_cluster_with_the_reason, .timeout = 60)
{
    struct node *a = node_start(TCP, 1, 2);
    struct node *b = node_new();
    node_open(b, TCP, 2, 2, change_cluster);
    WAIT_FOR(a, a->refusals > 0);
    WAIT_FOR(b, b->refusals > 0);
    cr_assert_eq(a->why, NET_REFUSED_CLUSTER);
    cr_assert_eq(b->why, NET_REFUSED_CLUSTER);
    cr_assert_eq(a->ups, 0);
    cr_assert_eq(b->ups, 0);
    struct transport_peer_status s;
    cr_assert_eq(transport_peer_status(a->t, 2, &s), SPAN_OK);
    cr_assert_eq(s.last_refusal, NET_REFUSED_CLUSTER);
    node_free(a);
    node_free(b);
}

Test(transport, refuses_a_known_number_with_another_store_rule_f2, .timeout = 60)
{
    struct node *a = node_new();
    node_open(a, TCP, 1, 2, expect_store);
    struct node *b = node_new();
    node_open(b, TCP, 2, 2, change_store);
    WAIT_FOR(a, a->refusals > 0);
    cr_assert_eq(a->why, NET_REFUSED_STORE);
    cr_assert_eq(a->why_node, 2);
    cr_assert_eq(a->why_store, 5555);
    cr_assert_eq(a->ups, 0);
    /* Told that this is the store now, it lets the node in. */
    cr_assert_eq(transport_peer_store_set(a->t, 2, 5555), SPAN_OK);
    WAIT_FOR(a, all_up(a, 2));
    cr_assert_eq(transport_peer_store_set(a->t, 2, 1), SPAN_OK);
    WAIT_FOR(a, a->downs == 4);
    cr_assert_eq(transport_peer_store_set(a->t, 3, 1), SPAN_NOT_FOUND);
    node_free(a);
    node_free(b);
}

/* --- misbehaving peers, by hand -----------------------------------------------------------------
 */

/* A peer by hand, on plain TCP, that dials the address at which node 1 listens for node 2's CONTROL
 * link and speaks nng's framing: "\0SP\0", protocol 16 (pair0), then messages behind their length.
 */
struct rogue {
    int fd;
    struct buf frame;
    uint64_t sequence;
    uint64_t incarnation;
};

static int dial_tcp(unsigned offset)
{
    char *base = base_url(TCP, 1);
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval patience = {.tv_sec = WAIT_S};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    sa.sin_port = htons((uint16_t)((unsigned)atoi(strrchr(base, ':') + 1) + offset));
    cr_assert_eq(connect(fd, (struct sockaddr *)(void *)&sa, sizeof(sa)), 0);
    cr_assert_eq(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)), 0);
    cr_assert_eq(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)), 0);
    span_free(base);
    return fd;
}

/* Where node 2 would listen. */
static int listen_tcp(unsigned offset)
{
    char *base = base_url(TCP, 2);
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    sa.sin_port = htons((uint16_t)((unsigned)atoi(strrchr(base, ':') + 1) + offset));
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    cr_assert_eq(bind(fd, (struct sockaddr *)(void *)&sa, sizeof(sa)), 0);
    cr_assert_eq(listen(fd, 8), 0);
    span_free(base);
    return fd;
}

static void rogue_dial(struct rogue *r)
{
    *r = (struct rogue){.incarnation = rng_os_u64() | 1, .fd = dial_tcp(4)};
}

static void rogue_close(struct rogue *r)
{
    (void)close(r->fd);
    buf_deinit(&r->frame);
}

static struct slice rogue_frame(struct rogue *r, enum wire_type type, struct slice payload)
{
    struct wire_header h = {.type = type,
                            .class = NET_CONTROL,
                            .from = 2,
                            .cluster_id = CLUSTER,
                            .incarnation = r->incarnation,
                            .sequence = ++r->sequence,
                            .length = (uint32_t)payload.size};
    buf_clear(&r->frame);
    (void)buf_grow(&r->frame, WIRE_HEADER_BYTES);
    buf_append_slice(&r->frame, payload);
    wire_seal(r->frame.data, &h);
    return buf_slice(&r->frame);
}

/* The other side may have hung up in the middle: no matter here. */
static void rogue_send_raw(struct rogue *r, struct slice bytes)
{
    (void)!send(r->fd, bytes.data, bytes.size, MSG_NOSIGNAL);
}

static void rogue_send(struct rogue *r, enum wire_type type, struct slice payload)
{
    rogue_send_raw(r, rogue_frame(r, type, payload));
}

static void rogue_hello(struct rogue *r)
{
    struct buf b = {0};
    wire_hello_encode(&b, &(struct wire_hello){.store_id = 1002, .to = 1});
    rogue_send(r, WIRE_HELLO, buf_slice(&b));
    buf_deinit(&b);
}

static void rogue_number(struct rogue *r, uint32_t number)
{
    struct buf b = {0};
    enc_u32(&b, number);
    rogue_send(r, WIRE_DATA, buf_slice(&b));
    buf_deinit(&b);
}

/* Type of the next frame that node 1 sends to it; 0: it hung up. */
static enum wire_type rogue_receive(struct rogue *r, struct wire_refuse *refuse)
{
    uint8_t frame[256];
    struct wire_header h;
    struct slice payload;
    ssize_t n = recv(r->fd, frame, WIRE_HEADER_BYTES, MSG_WAITALL);
    if (n == 0 || (n < 0 && errno == ECONNRESET)) {
        return 0;
    }
    cr_assert_eq(n, WIRE_HEADER_BYTES);
    cr_assert_eq(recv(r->fd, frame + n, frame[32], MSG_WAITALL), frame[32]);
    cr_assert_eq(wire_open(slice_of(frame, WIRE_HEADER_BYTES + frame[32]), &h, &payload, NULL),
                 SPAN_OK);
    if (h.type == WIRE_REFUSE && refuse != NULL) {
        cr_assert_eq(wire_refuse_decode(payload, refuse), SPAN_OK);
    }
    return h.type;
}

/* Dials and says HELLO until it is let in: right after another connection went, nng may still hold
 * its place (a real node dials again too). */
static void rogue_connect(struct rogue *r, uint64_t incarnation)
{
    uint64_t end = timer_now_ns() + WAIT_S * SEC_NS;
    for (;;) {
        rogue_dial(r);
        r->incarnation = incarnation;
        rogue_hello(r);
        enum wire_type answer = rogue_receive(r, NULL);
        if (answer == WIRE_ACK) {
            return;
        }
        cr_assert_eq(answer, 0);
        cr_assert_lt(timer_now_ns(), end);
        rogue_close(r);
    }
}

Test(transport, accepts_a_peer_made_by_hand_and_drops_old_sequences, .timeout = 60)
{
    struct node *a = node_start(TCP, 1, 2);
    struct rogue r;
    rogue_dial(&r);
    rogue_hello(&r);
    cr_assert_eq(rogue_receive(&r, NULL), WIRE_ACK);
    rogue_number(&r, 10);
    rogue_number(&r, 11);
    r.sequence -= 2;
    rogue_number(&r, 98); /* a sequence seen before */
    rogue_number(&r, 99);
    rogue_number(&r, 12);
    uint64_t incarnation = r.incarnation;
    r.incarnation = 4; /* a frame that some other process made */
    rogue_number(&r, 97);
    r.incarnation = incarnation;
    rogue_number(&r, 13);
    WAIT_FOR(a, a->got_count[NET_CONTROL] == 4);
    for (uint32_t i = 0; i < 4; i++) {
        cr_assert_eq(a->got[NET_CONTROL][i], 10 + i);
    }
    cr_assert_eq(link_of(a, 2, NET_CONTROL).dropped_stale, 3);
    struct buf ping = {0};
    wire_ping_encode(&ping, 1);
    rogue_send(&r, WIRE_PING, buf_slice(&ping));
    cr_assert_eq(rogue_receive(&r, NULL), WIRE_PONG);
    buf_deinit(&ping);
    rogue_close(&r);
    node_free(a);
}

Test(transport, does_not_let_a_replaced_incarnation_back_in, .timeout = 60)
{
    struct node *a = node_start(TCP, 1, 2);
    struct rogue old;
    struct rogue new;
    struct wire_refuse refuse;
    rogue_connect(&old, 111);
    rogue_close(&old);
    WAIT_FOR(a, a->downs == 1);
    rogue_connect(&new, 222);
    rogue_close(&new);
    WAIT_FOR(a, a->downs == 2);
    enum wire_type answer = 0;
    while (answer == 0) {
        rogue_dial(&old);
        old.incarnation = 111;
        rogue_hello(&old);
        answer = rogue_receive(&old, &refuse);
        rogue_close(&old);
    }
    cr_assert_eq(answer, WIRE_REFUSE);
    cr_assert_eq(refuse.why, NET_REFUSED_INCARNATION);
    cr_assert_eq(refuse.store_id, 1001);
    node_free(a);
}

Test(transport, refuses_another_protocol_version_and_another_target, .timeout = 60)
{
    struct node *a = node_start(TCP, 1, 2);
    struct rogue r;
    struct wire_refuse refuse;
    struct buf b = {0};
    rogue_dial(&r);
    buf_set(&b, rogue_frame(&r, WIRE_HELLO, slice_str("whatever it holds")));
    b.data[1] = WIRE_VERSION + 1;
    rogue_send_raw(&r, buf_slice(&b));
    cr_assert_eq(rogue_receive(&r, &refuse), WIRE_REFUSE);
    cr_assert_eq(refuse.why, NET_REFUSED_VERSION);
    rogue_close(&r); /* what follows such a frame is not looked at */
    WAIT_FOR(a, a->refusals == 1);
    for (;;) {
        rogue_dial(&r);
        rogue_send(&r, WIRE_HELLO, slice_str("malformed"));
        if (rogue_receive(&r, &refuse) != 0) {
            break;
        }
        rogue_close(&r);
    }
    cr_assert_eq(refuse.why, NET_REFUSED_MALFORMED);
    buf_clear(&b);
    wire_hello_encode(&b, &(struct wire_hello){.store_id = 1002, .to = 3});
    rogue_send(&r, WIRE_HELLO, buf_slice(&b));
    cr_assert_eq(rogue_receive(&r, &refuse), WIRE_REFUSE);
    cr_assert_eq(refuse.why, NET_REFUSED_NODE);
    buf_clear(&b);
    wire_hello_encode(&b, &(struct wire_hello){.store_id = 1002, .to = 1, .to_store_id = 31});
    rogue_send(&r, WIRE_HELLO, buf_slice(&b));
    cr_assert_eq(rogue_receive(&r, &refuse), WIRE_REFUSE);
    cr_assert_eq(refuse.why, NET_REFUSED_STORE);
    cr_assert_eq(a->ups, 0);
    buf_deinit(&b);
    rogue_close(&r);
    node_free(a);
}

Test(transport, closes_a_link_with_a_bad_frame_and_goes_on, .timeout = 60)
{
    struct node *a = node_start(TCP, 1, 2);
    static const char *const kinds[] = {"garbage", "data before hello", "bad checksum",
                                        "oversized"};
    for (unsigned kind = 0; kind < 4; kind++) {
        struct rogue r;
        struct buf b = {0};
        rogue_dial(&r);
        switch (kind) {
        case 0:
            rogue_send_raw(&r, slice_str("GET / HTTP/1.0\r\n\r\n"));
            break;
        case 1:
            rogue_number(&r, 66);
            break;
        case 2:
            rogue_close(&r);
            rogue_connect(&r, 5);
            buf_set(&b, rogue_frame(&r, WIRE_DATA, slice_str("12345678")));
            b.data[b.size - 1] ^= 1;
            rogue_send_raw(&r, buf_slice(&b));
            break;
        default:
            rogue_close(&r);
            rogue_connect(&r, 6);
            memset(buf_grow(&b, WIRE_FRAME_MAX + 1), 1, WIRE_FRAME_MAX + 1);
            rogue_send_raw(&r, buf_slice(&b));
            break;
        }
        cr_assert_eq(rogue_receive(&r, NULL), 0, "hung up: %s", kinds[kind]);
        POLL_FOR(a, !link_of(a, 2, NET_CONTROL).up_in);
        buf_deinit(&b);
        rogue_close(&r);
    }
    cr_assert_eq(a->got_count[NET_CONTROL], 0);
    cr_assert_eq(link_of(a, 2, NET_CONTROL).dropped_bad, 4);
    struct node *b = node_start(TCP, 2, 2);
    WAIT_FOR(a, all_up(a, 2));
    cr_assert_eq(send_number(b, 1, NET_CONTROL, 1), SPAN_OK);
    WAIT_FOR(a, a->got_count[NET_CONTROL] == 1);
    node_free(a);
    node_free(b);
}

Test(transport, is_not_impressed_by_plain_garbage_on_its_port, .timeout = 60)
{
    struct node *a = node_start(TCP, 1, 2);
    char junk[4096];
    memset(junk, 'Z', sizeof(junk));
    for (unsigned i = 0; i < 20; i++) {
        int fd = dial_tcp(4 + (i & 1));
        (void)!send(fd, junk, i == 0 ? 0 : sizeof(junk), MSG_NOSIGNAL);
        (void)close(fd);
    }
    struct node *b = node_start(TCP, 2, 2);
    WAIT_FOR(a, all_up(a, 2));
    cr_assert_eq(send_number(a, 2, NET_BULK, 1), SPAN_OK);
    WAIT_FOR(b, b->got_count[NET_BULK] == 1);
    node_free(a);
    node_free(b);
}

/* nng's listener of a pair socket dies of this, silently (see link_stream.c). */
Test(transport, survives_processes_that_connect_to_its_ipc_socket_and_leave, .timeout = 60)
{
    struct node *a = node_start(IPC, 1, 2);
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    char *base = base_url(IPC, 1);
    for (unsigned i = 0; i < 20; i++) {
        (void)snprintf(sa.sun_path, sizeof(sa.sun_path), "%s-2-%u", base + strlen("ipc://"), i & 1);
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        cr_assert_eq(connect(fd, (struct sockaddr *)(void *)&sa, sizeof(sa)), 0);
        (void)close(fd);
    }
    struct node *b = node_start(IPC, 2, 2);
    WAIT_FOR(a, all_up(a, 2));
    span_free(base);
    node_free(a);
    node_free(b);
    ipc_clean_up(IPC);
}

Test(transport, second_dialer_on_a_busy_link_is_harmless, .timeout = 60)
{
    struct node *a = node_start(TCP, 1, 2);
    struct node *b = node_start(TCP, 2, 2);
    WAIT_FOR(a, all_up(a, 2));
    WAIT_FOR(b, all_up(b, 1));
    struct rogue r[5];
    for (unsigned i = 0; i < 5; i++) {
        rogue_dial(&r[i]);
        rogue_hello(&r[i]);
        rogue_number(&r[i], 666);
        cr_assert_eq(send_number(b, 1, NET_CONTROL, i), SPAN_OK);
    }
    WAIT_FOR(a, a->got_count[NET_CONTROL] == 5);
    for (uint32_t i = 0; i < 5; i++) {
        cr_assert_eq(a->got[NET_CONTROL][i], i);
        cr_assert_eq(rogue_receive(&r[i], NULL), 0, "hung up");
        rogue_close(&r[i]);
    }
    cr_assert_eq(a->downs, 0);
    node_free(a);
    node_free(b);
}

/* --- bounds -------------------------------------------------------------------------------------
 */

/* Node 1, and a peer by hand that says ACK on node 1's BULK link and then reads nothing. */
static struct node *node_with_silent_peer(struct rogue *r)
{
    int listener = listen_tcp(3);
    uint8_t frame[WIRE_HEADER_BYTES + 20];
    struct wire_header h;
    struct slice payload;
    struct buf b = {0};
    struct node *a = node_start(TCP, 1, 2);
    *r = (struct rogue){.fd = accept(listener, NULL, NULL)};
    cr_assert_eq(recv(r->fd, frame, sizeof(frame), MSG_WAITALL), sizeof(frame));
    cr_assert_eq(wire_open(slice_of(frame, sizeof(frame)), &h, &payload, NULL), SPAN_OK);
    cr_assert_eq(h.type, WIRE_HELLO);
    wire_ack_encode(&b, &(struct wire_ack){.store_id = 1002, .hello_incarnation = h.incarnation});
    h.type = WIRE_ACK;
    h.from = 2;
    h.incarnation = 99;
    h.length = (uint32_t)b.size;
    (void)buf_grow(&r->frame, WIRE_HEADER_BYTES);
    buf_append_slice(&r->frame, buf_slice(&b));
    wire_seal(r->frame.data, &h);
    rogue_send_raw(r, buf_slice(&r->frame));
    WAIT_FOR(a, a->up[2][NET_OUT][NET_BULK]);
    (void)close(listener);
    buf_deinit(&b);
    return a;
}

Test(transport, drops_the_newest_beyond_the_outbox_and_keeps_the_other_class, .timeout = 60)
{
    struct rogue r;
    struct node *a = node_with_silent_peer(&r);
    span_status st = SPAN_OK;
    unsigned sent = 0;
    while (st == SPAN_OK) {
        struct buf chunk = {0};
        memset(buf_grow(&chunk, MIB), 1, MIB);
        st = transport_send(a->t, 2, NET_BULK, &chunk);
        sent += st == SPAN_OK;
        cr_assert_lt(sent, 200);
    }
    cr_assert_eq(st, SPAN_OVERLOADED);
    struct transport_link_status ls = link_of(a, 2, NET_BULK);
    cr_assert_eq(ls.dropped_full, 1);
    cr_assert_leq(ls.queued_bytes, LIMIT_OUTBOX_BYTES);
    cr_assert_gt(ls.queued_bytes, LIMIT_OUTBOX_BYTES - 2 * MIB);
    /* The silent peer is given up after a while, and what was queued is counted as lost. */
    WAIT_FOR(a, !a->up[2][NET_OUT][NET_BULK]);
    POLL_FOR(a, link_of(a, 2, NET_BULK).queued_bytes == 0);
    cr_assert_gt(link_of(a, 2, NET_BULK).dropped_lost, 60);
    rogue_close(&r);
    node_free(a);
}

Test(transport, coalesces_what_is_queued_behind_a_frame, .timeout = 60)
{
    struct rogue r;
    struct node *a = node_with_silent_peer(&r);
    struct buf big = {0};
    size_t expected = LIMIT_FRAME_BYTES + 1000 * sizeof(uint32_t);
    size_t got = 0;
    /* More than the kernel takes: the link stands, and what comes now gathers. */
    memset(buf_grow(&big, LIMIT_FRAME_BYTES), 7, LIMIT_FRAME_BYTES);
    cr_assert_eq(transport_send(a->t, 2, NET_BULK, &big), SPAN_OK);
    for (uint32_t i = 0; i < 1000; i++) {
        cr_assert_eq(send_number(a, 2, NET_BULK, i), SPAN_OK);
    }
    char *sink = span_malloc(MIB);
    while (got < expected) {
        ssize_t n = recv(r.fd, sink, MIB, 0);
        cr_assert_gt(n, 0);
        got += (size_t)n;
    }
    struct transport_link_status s = link_of(a, 2, NET_BULK);
    cr_assert_eq(s.sends_out, 1001);
    cr_assert_eq(s.frames_out, 2);
    span_free(sink);
    rogue_close(&r);
    node_free(a);
}

/* --- configuration ------------------------------------------------------------------------------
 */

static void change_source(struct transport_config *c)
{
    c->source = "127.0.0.9";
}

static void change_source_bad(struct transport_config *c)
{
    c->source = "localhost";
}

static void change_listen_tls(struct transport_config *c)
{
    c->listen_url = "tls+tcp://127.0.0.1:7000";
}

Test(transport, refuses_bad_configurations_with_words, .timeout = 60)
{
    struct node *a = node_new();
    struct span_error err;
    cr_assert_eq(node_try_open(a, TCP, 1, 2, change_source_bad, &err), SPAN_INVALID);
    cr_assert(strstr(err.text, "localhost") != NULL);
    cr_assert_eq(node_try_open(a, TCP, 1, 2, change_listen_tls, &err), SPAN_UNSUPPORTED);
    cr_assert(strstr(err.text, "TLS") != NULL);
    cr_assert_eq(node_try_open(a, TCP, 2, 3, change_node, &err), SPAN_INVALID);
    cr_assert(strstr(err.text, "this node") != NULL);
    node_open(a, TCP, 1, 2, NULL);
    struct node *twin = node_new();
    cr_assert_eq(node_try_open(twin, TCP, 1, 2, NULL, &err), SPAN_UNAVAILABLE);
    cr_assert(strstr(err.text, "in use") != NULL);
    node_free(twin);
    node_free(a);
}

/* The source address is seen by a listener made by hand at node 2's address for node 1. */
Test(transport, binds_outgoing_connections_to_the_source_address, .timeout = 60)
{
    struct sockaddr_in sa;
    socklen_t len = sizeof(sa);
    int fd = listen_tcp(2);
    struct node *a = node_new();
    node_open(a, TCP, 1, 2, change_source);
    int conn = accept(fd, (struct sockaddr *)(void *)&sa, &len);
    cr_assert_geq(conn, 0);
    cr_assert_eq(ntohl(sa.sin_addr.s_addr), 0x7f000009);
    (void)close(conn);
    (void)close(fd);
    node_free(a);
}

/* --- fault hooks --------------------------------------------------------------------------------
 */

static void with_faults(struct transport_config *c)
{
    c->enable_faults = true;
}

static void pair_with_faults(struct node **a, struct node **b)
{
    *a = node_new();
    *b = node_new();
    node_open(*a, INPROC, 1, 2, with_faults);
    node_open(*b, INPROC, 2, 2, NULL);
    WAIT_FOR(*a, all_up(*a, 2));
    WAIT_FOR(*b, all_up(*b, 1));
}

Test(transport, faults_are_refused_unless_enabled)
{
    struct node *a = node_start(INPROC, 1, 2);
    struct transport_fault f = {.out = {.cut = true}};
    cr_assert_eq(transport_fault_set(a->t, 2, &f), SPAN_UNSUPPORTED);
    struct node *b = node_new();
    node_open(b, INPROC, 2, 2, with_faults);
    f.out.drop = 3.0;
    cr_assert_eq(transport_fault_set(b->t, 1, &f), SPAN_INVALID);
    cr_assert_eq(transport_fault_set(b->t, 3, NULL), SPAN_NOT_FOUND);
    node_free(a);
    node_free(b);
}

Test(transport, cut_one_way_stops_that_way_only_and_heals, .timeout = 60)
{
    struct node *a;
    struct node *b;
    pair_with_faults(&a, &b);
    struct transport_fault f = {.out = {.cut = true}};
    cr_assert_eq(transport_fault_set(a->t, 2, &f), SPAN_OK);
    cr_assert_eq(send_number(a, 2, NET_CONTROL, 1), SPAN_OK, "a cut is not noticed at once");
    cr_assert_eq(send_number(b, 1, NET_CONTROL, 2), SPAN_OK);
    WAIT_FOR(a, a->got_count[NET_CONTROL] == 1);
    cr_assert_eq(transport_fault_set(a->t, 2, NULL), SPAN_OK);
    cr_assert_eq(send_number(a, 2, NET_CONTROL, 3), SPAN_OK);
    WAIT_FOR(b, b->got_count[NET_CONTROL] == 1);
    cr_assert_eq(b->got[NET_CONTROL][0], 3);
    cr_assert_geq(link_of(a, 2, NET_CONTROL).dropped_fault, 1, "keep-alives too");

    f = (struct transport_fault){.in = {.cut = true}};
    cr_assert_eq(transport_fault_set(a->t, 0, &f), SPAN_OK);
    cr_assert_eq(send_number(b, 1, NET_CONTROL, 4), SPAN_OK);
    cr_assert_eq(send_number(a, 2, NET_CONTROL, 5), SPAN_OK);
    WAIT_FOR(b, b->got_count[NET_CONTROL] == 2);
    POLL_FOR(a, link_of(a, 2, NET_CONTROL).dropped_fault >= 2);
    cr_assert_eq(a->got_count[NET_CONTROL], 1);
    node_free(a);
    node_free(b);
}

Test(transport, a_cut_that_lasts_takes_the_links_down_until_it_heals, .timeout = 60)
{
    struct node *a;
    struct node *b;
    pair_with_faults(&a, &b);
    struct transport_fault f = {.out = {.cut = true}, .in = {.cut = true}};
    cr_assert_eq(transport_fault_set(a->t, 2, &f), SPAN_OK);
    WAIT_FOR(a, a->downs == 4);
    WAIT_FOR(b, b->downs == 4);
    cr_assert_eq(send_number(b, 1, NET_CONTROL, 1), SPAN_UNAVAILABLE);
    cr_assert_eq(transport_fault_set(a->t, 2, NULL), SPAN_OK);
    WAIT_FOR(a, all_up(a, 2));
    WAIT_FOR(b, all_up(b, 1));
    cr_assert_eq(send_number(b, 1, NET_CONTROL, 2), SPAN_OK);
    WAIT_FOR(a, a->got_count[NET_CONTROL] == 1);
    node_free(a);
    node_free(b);
}

Test(transport, drops_duplicates_and_reorders_as_told, .timeout = 60)
{
    struct node *a;
    struct node *b;
    pair_with_faults(&a, &b);
    struct transport_fault f = {.out = {.drop = 1.0}};
    cr_assert_eq(transport_fault_set(a->t, 2, &f), SPAN_OK);
    for (uint32_t i = 0; i < 50; i++) {
        cr_assert_eq(send_number(a, 2, NET_CONTROL, 1000), SPAN_OK);
    }
    cr_assert_eq(link_of(a, 2, NET_CONTROL).dropped_fault, 50);

    f = (struct transport_fault){.out = {.duplicate = 1.0}};
    cr_assert_eq(transport_fault_set(a->t, 2, &f), SPAN_OK);
    cr_assert_eq(send_number(a, 2, NET_CONTROL, 7), SPAN_OK);
    WAIT_FOR(b, b->got_count[NET_CONTROL] == 2);
    cr_assert_eq(b->got[NET_CONTROL][0], 7);
    cr_assert_eq(b->got[NET_CONTROL][1], 7);

    f = (struct transport_fault){.in = {.duplicate = 1.0, .delay_ns = MS_NS}};
    cr_assert_eq(transport_fault_set(a->t, 2, &f), SPAN_OK);
    cr_assert_eq(send_number(b, 1, NET_CONTROL, 8), SPAN_OK);
    WAIT_FOR(a, a->got_count[NET_CONTROL] == 2);

    f = (struct transport_fault){.out = {.reorder = 0.5}};
    cr_assert_eq(transport_fault_set(a->t, 2, &f), SPAN_OK);
    for (uint32_t i = 0; i < 100; i++) {
        cr_assert_eq(send_number(a, 2, NET_BULK, i), SPAN_OK);
    }
    WAIT_FOR(b, b->got_count[NET_BULK] == 100);
    unsigned backwards = 0;
    uint64_t sum = 0;
    for (uint32_t i = 0; i < 100; i++) {
        sum += b->got[NET_BULK][i];
        backwards += i > 0 && b->got[NET_BULK][i] < b->got[NET_BULK][i - 1];
    }
    cr_assert_eq(sum, 4950, "each once");
    cr_assert_gt(backwards, 0);
    node_free(a);
    node_free(b);
}

Test(transport, delays_keep_the_order_and_hold_for_their_time, .timeout = 60)
{
    struct node *a;
    struct node *b;
    pair_with_faults(&a, &b);
    struct transport_fault f = {.out = {.delay_ns = 20 * MS_NS, .jitter_ns = 5 * MS_NS}};
    cr_assert_eq(transport_fault_set(a->t, 2, &f), SPAN_OK);
    uint64_t start = timer_now_ns();
    for (uint32_t i = 0; i < 100; i++) {
        cr_assert_eq(send_number(a, 2, NET_CONTROL, i), SPAN_OK);
    }
    cr_assert_eq(transport_fault_set(a->t, 2, NULL), SPAN_OK);
    cr_assert_eq(send_number(a, 2, NET_CONTROL, 100), SPAN_OK);
    WAIT_FOR(b, b->got_count[NET_CONTROL] == 101);
    cr_assert_geq(timer_now_ns() - start, 20 * MS_NS);
    for (uint32_t i = 0; i < 101; i++) {
        cr_assert_eq(b->got[NET_CONTROL][i], i);
    }
    /* Closing with messages held back on both ways loses them and leaks nothing. */
    f = (struct transport_fault){.out = {.delay_ns = 30 * SEC_NS}, .in = {.delay_ns = 30 * SEC_NS}};
    cr_assert_eq(transport_fault_set(a->t, 2, &f), SPAN_OK);
    cr_assert_eq(send_number(a, 2, NET_CONTROL, 1), SPAN_OK);
    cr_assert_eq(send_number(b, 1, NET_CONTROL, 1), SPAN_OK);
    POLL_FOR(a, link_of(a, 2, NET_CONTROL).frames_in == 1);
    node_free(a);
    node_free(b);
}

/* --- frames outlive the transport
 * ----------------------------------------------------------------- */

static void keep_frame(void *ctx, struct net_frame *f)
{
    struct node *n = ctx;
    (void)pthread_mutex_lock(&n->lock);
    f->user[0] = n;
    net_frame_ref(f);
    n->got_count[0] = (size_t)(uintptr_t)f;
    (void)pthread_cond_broadcast(&n->changed);
    (void)pthread_mutex_unlock(&n->lock);
    net_frame_unref(f);
}

static void change_keep(struct transport_config *c)
{
    c->callbacks.on_frame = keep_frame;
}

Test(transport, frames_stay_valid_after_close, .timeout = 60)
{
    struct node *a = node_start(INPROC, 1, 2);
    struct node *b = node_new();
    node_open(b, INPROC, 2, 2, change_keep);
    WAIT_FOR(a, all_up(a, 2));
    cr_assert_eq(send_number(a, 2, NET_CONTROL, 31), SPAN_OK);
    WAIT_FOR(b, b->got_count[0] != 0);
    struct net_frame *f = (struct net_frame *)b->got_count[0];
    node_free(a);
    node_free(b);
    cr_assert_eq(f->payload.size, 4);
    cr_assert_eq(f->payload.data[0], 31);
    cr_assert_eq(f->from, 1);
    net_frame_unref(f);
}
