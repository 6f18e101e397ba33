/* Inside of the transport: one link (one nng pair0 socket) and the peer it belongs to.
 * transport_nng.c makes and ends them and drives their deadlines, link.c runs them. Not for other
 * modules. */
#ifndef SPAN_SHARD_NET_LINK_H
#define SPAN_SHARD_NET_LINK_H

#include "base/list.h"
#include "base/rng.h"
#include "shard/net/fault.h"
#include "shard/net/transport.h"
#include "shard/net/url.h"
#include "shard/net/wire.h"

#include <nng/nng.h>
#include <pthread.h>
#include <stdatomic.h>

/* A frame is closed at this size unless one send alone is larger: coalescing more saves nothing
 * (the cost per frame is long spread) and delays what comes behind. */
#define LINK_COALESCE_BYTES (1 * MIB)

#define LINK_RETIRED 16 /* earlier incarnations of a peer that are remembered, to be refused */

/* What a link has to send for itself, before any data. */
enum link_want {
    WANT_HELLO = 1u << 0,
    WANT_ACK = 1u << 1,
    WANT_REFUSE = 1u << 2,
    WANT_PING = 1u << 3,
    WANT_PONG = 1u << 4,
};

/* Sends waiting, oldest first. */
struct outbox {
    struct buf *items;
    size_t at; /* first one not taken yet */
    size_t count;
    size_t cap;
};

struct link;
struct conn;

/* What carries a link's frames: byte streams (link_stream.c) or, in one process, a pair0 socket
 * (link_pair.c). Connections are told apart by an id that is not 0 and not used again. */
struct link_ops {
    /* Makes it ready and, NET_IN, listens. 0 or nng's error. */
    int (*open)(struct link *l);
    /* Begins to dial; not while dialling. Timer thread. */
    void (*dial)(struct link *l);
    /* Deadlines of its own. Timer thread. */
    void (*tick)(struct link *l, uint64_t now_ns);
    /* Takes a frame, with the baton. True: done with it, the baton is still the caller's. False: it
     * keeps the baton until it calls link_frame_done. */
    bool (*hand_over)(struct link *l, nng_msg *msg, size_t sends);
    /* Closes the connection with this id, if it is still there; link_conn_removed follows. Any
     * thread. */
    void (*drop)(struct link *l, uint32_t id);
    /* Ends everything and frees; no callback of it runs afterwards. l->closing is set. */
    void (*close)(struct link *l);
};

extern const struct link_ops link_stream_ops;
extern const struct link_ops link_pair_ops;

/* link_pair.c's part of a link. */
struct link_pair {
    nng_socket socket;
    bool open;
    nng_dialer dialer; /* with `dialed`, only the timer thread's, then close's */
    bool dialed;
    nng_aio *recv_aio;
    nng_aio *try_aio;  /* without callback: hands a frame over if the pipe takes it at once */
    nng_aio *wait_aio; /* with callback: for a frame that has to wait for the pipe */
};

/* link_stream.c's part of a link. */
struct link_stream {
    nng_stream_dialer *dialer;
    nng_stream_listener *listener;
    nng_aio *dial_aio;
    nng_aio *accept_aio;
    bool dialing;       /* under the link's lock, as all below */
    bool dialer_closed; /* timed out: to be made anew */
    bool accepting;
    uint64_t dial_until_ns;
    struct conn *conn; /* the connection that counts */
    struct list conns; /* all that are not freed yet */
};

struct conn;

struct link {
    struct transport *t;
    struct peer *peer;
    enum net_class class;
    enum net_direction direction;
    enum url_scheme scheme;
    char url[URL_BYTES];
    const struct link_ops *ops;
    bool open; /* ops->open was called */
    struct link_pair pair;
    struct link_stream stream;

    /* Only of the thread that set `sending`. */
    struct outbox batch;
    uint64_t batch_gen;   /* up_gen of the connection the batch was meant for */
    size_t waiting_sends; /* sends inside the frame that waits */

    pthread_mutex_t lock; /* never held while nng or a callback of the user is called */
    bool closing;
    uint32_t conn_id; /* of the connection that counts; 0: none */
    uint64_t conn_since_ns;
    bool up;         /* HELLO and HELLO-ACK went through on this connection */
    uint64_t up_gen; /* grows whenever it comes up */
    unsigned wants;  /* enum link_want */
    struct wire_refuse refuse;
    uint64_t ack_incarnation;
    uint64_t pong_ns; /* payload of the PING to answer */
    bool sending;     /* the baton: some thread, or a frame under way, has the sending side */
    uint64_t sequence_out;
    uint64_t incarnation_in; /* whose sequence it is */
    uint64_t sequence_in;
    struct outbox queue;
    uint64_t due_ns; /* NET_OUT without connection: when to dial (again) */
    uint64_t hello_due_ns;
    uint64_t ping_due_ns;
    uint64_t alive_ns;                  /* last PONG (out), last frame (in) */
    uint64_t log_due_ns;                /* no line about bad input before */
    struct fault_path fault;            /* under the transport's fault_lock */
    struct transport_link_status stats; /* up_* and queued_bytes included */

    pthread_mutex_t report_lock; /* serializes on_peer */
    bool reported_up;
    uint64_t reported_gen;
    pthread_mutex_t deliver_lock; /* serializes on_frame when faults let two threads deliver */
};

struct peer {
    struct transport *t;
    uint32_t node;
    char *url;
    struct link links[2][NET_CLASS_COUNT]; /* [direction][class] */

    pthread_mutex_t lock; /* innermost */
    uint64_t store_expected;
    uint64_t store_learnt;
    uint64_t incarnation;
    uint64_t retired[LINK_RETIRED];
    size_t retired_count; /* ever; the ring's place is the remainder */
    enum net_refusal last_refusal;
};

struct transport {
    uint64_t cluster_id;
    uint32_t node;
    uint64_t store_id;
    uint64_t incarnation;
    bool enable_faults;
    bool has_source;
    nng_sockaddr source;
    struct timer *timer;
    struct transport_callbacks callbacks;
    char *listen_url;
    struct peer
        *_Atomic peers[LIMIT_PEERS + 1]; /* by node id; added while it runs, never removed */
    atomic_bool ready;                   /* all links are open: deadlines may run */
    atomic_bool closing;
    struct timer_node tick;

    pthread_mutex_t fault_lock; /* of the two below */
    struct rng fault_rng;
    struct list delayed; /* struct delayed, link_fault.c */
};

/* link.c */

/* Listens or gets ready to dial. */
SPAN_CHECKED span_status link_open(struct link *l, struct span_error *err);
/* No callback of this link runs after it. */
void link_close(struct link *l);
/* Deadlines: redial, HELLO again, keep-alive, silence. On the timer thread. */
void link_tick(struct link *l, uint64_t now_ns);
/* Sends what is wanted and queued, unless another thread is at it. */
void link_pump(struct link *l);
/* transport_send after the look-up. */
SPAN_CHECKED span_status link_send(struct link *l, struct buf *bytes);
/* Closes the connection that counts. */
void link_drop(struct link *l);
/* Tells on_peer what changed since the last time. Not with the link's lock held. */
void link_report(struct link *l);

/* For link_ops: a connection came about (false: there is one already, close this one; with `c` it
 * is made l->stream.conn in the same moment), may be used, and is gone; a frame that was handed
 * over is sent or lost. */
bool link_conn_adding(struct link *l, uint32_t id, struct conn *c);
void link_conn_added(struct link *l, uint32_t id);
void link_conn_removed(struct link *l, uint32_t id);
void link_frame_done(struct link *l, bool lost);
/* link_recv.c: a frame came; takes the message over. */
void link_frame(struct link *l, uint32_t id, nng_msg *msg);

/* link_fault.c. The two ways through the fault hooks; only with enable_faults. Both take over what
 * they are given. */
SPAN_CHECKED span_status link_fault_send(struct link *l, struct buf *bytes);
void link_fault_deliver(struct link *l, struct net_frame *f);
/* Is this link cut? May be called with a link's lock held. */
bool link_is_cut(struct link *l);
/* Cancels and frees everything the hooks hold back. */
void delayed_clear(struct transport *t);

/* A frame over nng's message (taken over): payload_at bytes into its body. One reference. */
struct net_frame *net_frame_new(nng_msg *msg, size_t payload_at);
/* A copy with a message of its own. */
struct net_frame *net_frame_copy(const struct net_frame *f);

/* Makes the transport look at its links' deadlines now. Any thread. */
void transport_kick(struct transport *t);

#endif
