/* What the transport costs: two processes, node 1 asks and node 2 answers, with a window of
 * requests outstanding (each answer sends the next request, from the callback's side through a
 * thread of its own, as a worker would). Prints per window and size: operations and frames per
 * second, coalescing, round trip p50 and p99, CPU per operation on each side. And the CPU of an
 * idle node with a dead peer.
 *
 *     net_bench [tcp|ipc] [seconds per row] */
#include "base/alloc.h"
#include "base/codec.h"
#include "base/hist.h"
#include "base/invariant.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/rng.h"
#include "shard/mailbox.h"
#include "shard/net/transport.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

struct bench_node {
    struct transport *t;
    struct timer *timer;
    struct mailbox *m;
    uint32_t peer;
};

struct arrival {
    struct mailbox_item item;
    struct net_frame *frame;
};

_Static_assert(sizeof(struct arrival) <= sizeof(((struct net_frame *)0)->user), "fits user");

static void on_frame(void *ctx, struct net_frame *f)
{
    struct bench_node *n = ctx;
    struct arrival *a = (struct arrival *)(void *)f->user;
    a->frame = f;
    a->item.bytes = f->payload.size;
    if (mailbox_post(n->m, &a->item) != SPAN_OK) {
        net_frame_unref(f);
    }
}

static void node_open(struct bench_node *n, const char *scheme, const char *dir, uint32_t id)
{
    char url[2][100];
    struct span_error err;
    for (unsigned i = 0; i < 2; i++) {
        if (strcmp(scheme, "tcp") == 0) {
            (void)snprintf(url[i], sizeof(url[i]), "tcp://127.0.0.1:%u", 22000 + 200 * i);
        } else {
            (void)snprintf(url[i], sizeof(url[i]), "ipc://%s/n%u", dir, i);
        }
    }
    n->peer = 3 - id;
    struct transport_peer_config peer = {.node = n->peer, .url = url[n->peer - 1]};
    struct transport_config cfg = {.cluster_id = 1,
                                   .node = id,
                                   .store_id = id,
                                   .incarnation = rng_os_u64() | 1,
                                   .listen_url = url[id - 1],
                                   .peers = &peer,
                                   .peer_count = 1,
                                   .callbacks = {.ctx = n, .on_frame = on_frame}};
    log_set_level(LOG_ERROR);
    INVARIANT(timer_open(&n->timer, NULL) == SPAN_OK);
    n->m = mailbox_new(0);
    cfg.timer = n->timer;
    if (transport_open(&cfg, &n->t, &err) != SPAN_OK) {
        (void)fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
}

static void node_close(struct bench_node *n)
{
    transport_close(n->t);
    mailbox_close(n->m);
    struct mailbox_item *it = mailbox_take_all(n->m, 0);
    while (it != NULL) {
        struct arrival *a = MAILBOX_ENTRY(it, struct arrival, item);
        it = it->next;
        net_frame_unref(a->frame);
    }
    mailbox_free(n->m);
    timer_close(n->timer);
}

static double cpu_s(void)
{
    struct rusage r;
    (void)getrusage(RUSAGE_SELF, &r);
    return (double)r.ru_utime.tv_sec + (double)r.ru_stime.tv_sec +
           (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

/* Node 2: sends every frame back, one send per turn. Ends when the pipe does; tells its CPU through
 * it at every byte read. */
static void echo(const char *scheme, const char *dir, int ask, int tell)
{
    struct bench_node n = {0};
    node_open(&n, scheme, dir, 2);
    for (;;) {
        struct mailbox_item *it = mailbox_take_all(n.m, timer_now_ns() + 50 * MS_NS);
        struct buf out = {0};
        while (it != NULL) {
            struct arrival *a = MAILBOX_ENTRY(it, struct arrival, item);
            it = it->next;
            buf_append_slice(&out, a->frame->payload);
            net_frame_unref(a->frame);
        }
        if (out.size > 0) {
            (void)(transport_send(n.t, 1, NET_CONTROL, &out) == SPAN_OK);
            continue;
        }
        char c;
        ssize_t got = read(ask, &c, 1);
        if (got == 0) {
            break;
        }
        if (got == 1) {
            double cpu = cpu_s();
            INVARIANT(write(tell, &cpu, sizeof(cpu)) == (ssize_t)sizeof(cpu));
        }
    }
    node_close(&n);
}

static double echo_cpu(int ask, int tell)
{
    double cpu;
    INVARIANT(write(ask, "x", 1) == 1);
    INVARIANT(read(tell, &cpu, sizeof(cpu)) == (ssize_t)sizeof(cpu));
    return cpu;
}

static void request(struct buf *out, size_t size)
{
    static const uint8_t filler[65536];
    enc_u64(out, timer_now_ns());
    enc_u32(out, (uint32_t)(size - 12));
    buf_append(out, filler, size - 12);
}

static void row(struct bench_node *n, unsigned window, size_t size, double seconds, int ask,
                int tell)
{
    struct hist *h = SPAN_NEW(struct hist);
    struct transport_peer_status before;
    struct transport_peer_status after;
    hist_init(h);
    double other = echo_cpu(ask, tell);
    INVARIANT(transport_peer_status(n->t, 2, &before) == SPAN_OK);
    double own = cpu_s();
    uint64_t start = timer_now_ns();
    uint64_t end = start + (uint64_t)(seconds * 1e9);
    uint64_t outstanding = window;
    uint64_t done = 0;
    struct buf out = {0};
    for (unsigned i = 0; i < window; i++) {
        request(&out, size);
    }
    INVARIANT(transport_send(n->t, 2, NET_CONTROL, &out) == SPAN_OK);
    while (outstanding > 0) {
        struct mailbox_item *it = mailbox_take_all(n->m, timer_now_ns() + 5 * SEC_NS);
        INVARIANT(it != NULL);
        bool more = timer_now_ns() < end;
        while (it != NULL) {
            struct arrival *a = MAILBOX_ENTRY(it, struct arrival, item);
            struct cursor c = cursor_of(a->frame->payload);
            it = it->next;
            while (cursor_left(&c) > 0) {
                hist_add(h, timer_now_ns() - dec_u64(&c));
                (void)dec_raw(&c, dec_u32(&c));
                INVARIANT(cursor_ok(&c));
                done++;
                if (more) {
                    request(&out, size);
                } else {
                    outstanding--;
                }
            }
            net_frame_unref(a->frame);
        }
        INVARIANT(transport_send(n->t, 2, NET_CONTROL, &out) == SPAN_OK);
    }
    double took = (double)(timer_now_ns() - start) / 1e9;
    own = cpu_s() - own;
    other = echo_cpu(ask, tell) - other;
    INVARIANT(transport_peer_status(n->t, 2, &after) == SPAN_OK);
    double frames =
        (double)(after.link[NET_CONTROL].frames_out - before.link[NET_CONTROL].frames_out);
    (void)printf("%7u %7zu %10.0f %10.0f %8.1f %9.1f %9.1f %9.2f %9.2f\n", window, size,
                 (double)done / took, frames / took, (double)done / frames,
                 (double)hist_quantile(h, 0.5) / 1e3, (double)hist_quantile(h, 0.99) / 1e3,
                 own * 1e6 / (double)done, other * 1e6 / (double)done);
    (void)fflush(stdout);
    buf_deinit(&out);
    span_free(h);
}

static void idle_row(struct bench_node *n, const char *what, double seconds)
{
    double own = cpu_s();
    (void)mailbox_take_all(n->m, timer_now_ns() + (uint64_t)(seconds * 1e9));
    (void)printf("idle, %s: %.2f %% of a core\n", what, (cpu_s() - own) / seconds * 100);
}

int main(int argc, char **argv)
{
    const char *scheme = argc > 1 ? argv[1] : "tcp";
    double seconds = argc > 2 ? atof(argv[2]) : 1.0;
    static const unsigned windows[] = {1, 4, 16, 64, 256};
    char dir[] = "/tmp/net_bench.XXXXXX";
    int ask[2];
    int tell[2];
    INVARIANT(mkdtemp(dir) != NULL);
    INVARIANT(pipe2(ask, O_NONBLOCK) == 0 && pipe(tell) == 0);
    pid_t child = fork(); /* before anything of nng, which does not survive it */
    if (child == 0) {
        (void)close(ask[1]);
        echo(scheme, dir, ask[0], tell[1]);
        transport_library_fini();
        _exit(0);
    }
    (void)close(ask[0]);
    struct bench_node n = {0};
    struct transport_peer_status s;
    node_open(&n, scheme, dir, 1);
    do {
        (void)usleep(10000);
        INVARIANT(transport_peer_status(n.t, 2, &s) == SPAN_OK);
    } while (!s.link[NET_CONTROL].up_out || !s.link[NET_CONTROL].up_in);
    (void)printf("%s\n window   bytes      ops/s   frames/s  ops/frm    p50 us    p99 us  CPU us/op"
                 "  at peer\n",
                 scheme);
    for (unsigned i = 0; i < sizeof(windows) / sizeof(windows[0]); i++) {
        row(&n, windows[i], 256, seconds, ask[1], tell[0]);
    }
    row(&n, 16, 4096, seconds, ask[1], tell[0]);
    row(&n, 4, 65536, seconds, ask[1], tell[0]);
    idle_row(&n, "peer alive", 3);
    (void)close(ask[1]);
    (void)waitpid(child, NULL, 0);
    idle_row(&n, "peer dead", 3);
    INVARIANT(transport_peer_status(n.t, 2, &s) == SPAN_OK);
    node_close(&n);
    (void)rmdir(dir);
    transport_library_fini();
    return 0;
}
