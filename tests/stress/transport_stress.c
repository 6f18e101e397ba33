/* Three nodes in one process send to each other from several threads while nodes are closed and
 * opened again and faults come and go; for ThreadSanitizer and ASan. Checks that what arrives of
 * one sender, incarnation and class grows strictly (order, no doubles) when no fault reorders.
 * Plain main, because Criterion does not run under TSan.
 *
 *     transport_stress [seconds] [inproc|tcp|ipc] [seed] */
#include "base/alloc.h"
#include "base/codec.h"
#include "base/invariant.h"
#include "base/log.h"
#include "base/rng.h"
#include "shard/net/transport.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NODES   3
#define SENDERS 2

struct seen {
    uint64_t incarnation;
    uint64_t last[SENDERS];
};

struct node {
    uint32_t id;
    char url[100];
    pthread_rwlock_t lock; /* write: t changes */
    struct transport *t;
    atomic_uint_fast64_t received;
    struct seen seen[NODES + 1][NET_CLASS_COUNT]; /* on_frame is serial per (peer, class) */
    atomic_uint ups;
};

static struct node nodes[NODES + 1];
static struct timer *timer;
static atomic_bool stop;
static atomic_uint_fast64_t sent;

static void on_frame(void *ctx, struct net_frame *f)
{
    struct node *n = ctx;
    struct seen *s = &n->seen[f->from][f->class];
    struct cursor c = cursor_of(f->payload);
    if (s->incarnation != f->incarnation) {
        *s = (struct seen){.incarnation = f->incarnation};
    }
    while (cursor_left(&c) > 0) {
        uint32_t sender = dec_u32(&c);
        uint64_t number = dec_u64(&c);
        (void)dec_bytes(&c);
        INVARIANT(cursor_ok(&c));
        INVARIANT(sender < SENDERS);
        INVARIANT(number > s->last[sender]);
        s->last[sender] = number;
        atomic_fetch_add(&n->received, 1);
    }
    net_frame_unref(f);
}

static void on_peer(void *ctx, const struct transport_peer_event *ev)
{
    struct node *n = ctx;
    if (ev->up) {
        atomic_fetch_add(&n->ups, 1);
    }
}

static void node_open(struct node *n)
{
    struct transport_peer_config peers[NODES];
    struct span_error err;
    struct transport_config cfg = {
        .cluster_id = 9,
        .node = n->id,
        .store_id = n->id,
        .incarnation = rng_os_u64() | 1,
        .listen_url = n->url,
        .timer = timer,
        .peers = peers,
        .callbacks = {.ctx = n, .on_frame = on_frame, .on_peer = on_peer},
        .enable_faults = true,
        .fault_seed = n->id,
    };
    for (uint32_t i = 1; i <= NODES; i++) {
        if (i != n->id) {
            peers[cfg.peer_count++] =
                (struct transport_peer_config){.node = i, .url = nodes[i].url, .store_id = i};
        }
    }
    /* A port that was just closed may be closed a moment later. */
    while (transport_open(&cfg, &n->t, &err) != SPAN_OK) {
        INVARIANT(err.code == SPAN_UNAVAILABLE);
        (void)usleep(1000);
    }
}

struct sender {
    struct node *n;
    uint32_t id;
};

static void *send_all(void *arg)
{
    struct sender *s = arg;
    struct rng r;
    uint64_t number = 0;
    rng_init(&r, s->n->id * 10 + s->id);
    while (!atomic_load(&stop)) {
        uint32_t to = (uint32_t)rng_between(&r, 1, NODES);
        enum net_class class = (enum net_class)rng_below(&r, NET_CLASS_COUNT);
        struct buf b = {0};
        static const uint8_t filler[20000];
        enc_u32(&b, s->id);
        enc_u64(&b, ++number);
        enc_bytes(&b, slice_of(filler, rng_below(&r, class == NET_BULK ? 20000 : 200)));
        (void)pthread_rwlock_rdlock(&s->n->lock);
        span_status st = transport_send(s->n->t, to, class, &b);
        struct transport_peer_status status;
        if (number % 64 == 0) {
            (void)(transport_peer_status(s->n->t, to, &status) == SPAN_OK);
        }
        (void)pthread_rwlock_unlock(&s->n->lock);
        if (st == SPAN_OK) {
            atomic_fetch_add(&sent, 1);
        } else {
            (void)usleep(100);
        }
    }
    return NULL;
}

static void disturb(struct rng *r)
{
    struct node *n = &nodes[rng_between(r, 1, NODES)];
    struct transport_fault f = {0};
    switch (rng_below(r, 4)) {
    case 0:
        (void)pthread_rwlock_wrlock(&n->lock);
        transport_close(n->t);
        memset(n->seen, 0, sizeof(n->seen));
        node_open(n);
        (void)pthread_rwlock_unlock(&n->lock);
        break;
    case 1:
        f.out.drop = 0.3;
        f.in.delay_ns = rng_below(r, 3 * MS_NS);
        f.in.jitter_ns = rng_below(r, MS_NS);
        break;
    case 2:
        f.out.cut = rng_below(r, 2) == 0;
        f.in.cut = !f.out.cut;
        f.out.delay_ns = MS_NS;
        break;
    default:
        break;
    }
    INVARIANT(transport_fault_set(n->t, 0, &f) == SPAN_OK);
}

int main(int argc, char **argv)
{
    unsigned seconds = argc > 1 ? (unsigned)atoi(argv[1]) : 5;
    const char *scheme = argc > 2 ? argv[2] : "inproc";
    uint64_t seed = argc > 3 ? strtoull(argv[3], NULL, 10) : rng_os_u64();
    pthread_t threads[NODES * SENDERS];
    struct sender senders[NODES * SENDERS];
    char dir[] = "/tmp/transport_stress.XXXXXX";
    struct rng r;
    (void)printf("seed %llu\n", (unsigned long long)seed);
    rng_init(&r, seed);
    log_set_level(LOG_ERROR);
    INVARIANT(timer_open(&timer, NULL) == SPAN_OK);
    INVARIANT(mkdtemp(dir) != NULL);
    for (uint32_t i = 1; i <= NODES; i++) {
        struct node *n = &nodes[i];
        n->id = i;
        (void)pthread_rwlock_init(&n->lock, NULL);
        if (strcmp(scheme, "tcp") == 0) {
            (void)snprintf(n->url, sizeof(n->url), "tcp://127.0.0.1:%u", 21000 + 20 * i);
        } else {
            (void)snprintf(n->url, sizeof(n->url), "%s://%s/n%u", scheme, dir, i);
        }
    }
    for (uint32_t i = 1; i <= NODES; i++) {
        node_open(&nodes[i]);
    }
    for (unsigned i = 0; i < NODES * SENDERS; i++) {
        senders[i] = (struct sender){.n = &nodes[1 + i / SENDERS], .id = i % SENDERS};
        INVARIANT(pthread_create(&threads[i], NULL, send_all, &senders[i]) == 0);
    }
    uint64_t end = timer_now_ns() + seconds * SEC_NS;
    while (timer_now_ns() < end) {
        (void)usleep(20000);
        disturb(&r);
    }
    atomic_store(&stop, true);
    uint64_t received = 0;
    unsigned ups = 0;
    for (unsigned i = 0; i < NODES * SENDERS; i++) {
        (void)pthread_join(threads[i], NULL);
    }
    for (uint32_t i = 1; i <= NODES; i++) {
        transport_close(nodes[i].t);
        received += atomic_load(&nodes[i].received);
        ups += atomic_load(&nodes[i].ups);
        (void)pthread_rwlock_destroy(&nodes[i].lock);
    }
    timer_close(timer);
    (void)rmdir(dir);
    transport_library_fini();
    (void)printf("sent %llu, received %llu, links up %u times\n",
                 (unsigned long long)atomic_load(&sent), (unsigned long long)received, ups);
    INVARIANT(received > 0);
    return 0;
}
