/* Messages between nodes: the only module that knows nng.
 *
 * The transport moves opaque byte strings (concatenated messages, encoded by the caller) between
 * this node and its peers (configured, or added by transport_peer_add), over `tcp://`, `ipc://` or
 * `inproc://` (`tls+tcp://` is refused with UNSUPPORTED for now). Every peer has two links each
 * way, CONTROL and BULK, so that a snapshot chunk never delays a heartbeat. What is sent while a
 * link has a send in flight goes out together in its next frame (coalescing); the receiver gets the
 * whole frame: messages must be self-delimiting.
 *
 * It promises: bytes arrive unchanged (CRC32C), in the order of the transport_send calls per (peer,
 * class), at most once, only from a peer that proved by HELLO to be of this cluster, under its
 * number and its store; nothing of an earlier incarnation of a peer is delivered after the first
 * frame of a later one. It does not promise delivery: a send that returned OK may never arrive,
 * without any error (nng, kernel and a dying peer all lose bytes). Every request above needs an id,
 * a deadline and a rule for retry.
 *
 * Addresses. A node has a base URL; the link i -> j of class c is dialled by i and listened for by
 * j, at an address made from j's base: tcp://host:P     port P + 2*i + c: a node needs the ports
 * P+2 .. P+2*LIMIT_PEERS+1, of which it opens those of its configured peers ipc:///path/base the
 * socket file /path/base-i-c inproc://name    inproc://name-i-c
 *
 * Threads. transport_send and the queries may be called from any thread and never block. Callbacks
 * run on nng's threads or the timer thread, several at once, and, over inproc, also inside another
 * node's transport_send on its thread: they decode nothing heavy, post to a mailbox and return;
 * they do not call back into the transport except transport_peer_store_set; and nobody calls the
 * transport holding a lock that a callback takes. For one (peer, class) on_frame is never run twice
 * at once. */
#ifndef SPAN_SHARD_NET_TRANSPORT_H
#define SPAN_SHARD_NET_TRANSPORT_H

#include "base/buf.h"
#include "base/limits.h"
#include "base/status.h"
#include "shard/net/timer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct transport;

enum net_class {
    NET_CONTROL, /* heartbeats, votes, promises, transactions: small and urgent */
    NET_BULK,    /* appends of size, snapshot chunks, result pages */
    NET_CLASS_COUNT,
};

enum net_direction {
    NET_OUT, /* this node dialled it: it can send */
    NET_IN,  /* the peer dialled it: it can be heard */
};

/* A received frame. The payload lies in nng's own buffer (no copy); it is valid until the last
 * reference goes. `user` is the receiver's, zeroed: room for a struct mailbox_item and a tag, so
 * that posting a frame allocates nothing. */
struct net_frame {
    void *user[4];
    struct slice payload; /* not empty */
    uint32_t from;        /* node id */
    enum net_class class;
    uint64_t incarnation; /* the sender's */
    uint64_t heard_ns;    /* CLOCK_MONOTONIC when it came */
};

/* Another reference to the same frame (several workers share a frame's messages). Any thread. */
void net_frame_ref(struct net_frame *f);
/* Drops one; the last frees. Any thread, also after transport_close. */
void net_frame_unref(struct net_frame *f);

/* Why a link was refused at HELLO. */
enum net_refusal {
    NET_REFUSED_NOT,
    NET_REFUSED_VERSION,     /* another protocol version */
    NET_REFUSED_CLUSTER,     /* a node of another cluster */
    NET_REFUSED_NODE,        /* not the node that this address is for */
    NET_REFUSED_STORE,       /* a known node number with a store that is not its own (rule F2) */
    NET_REFUSED_INCARNATION, /* a process that was already replaced by a later one */
    NET_REFUSED_MALFORMED,   /* not HELLO at all: another program */
    NET_REFUSED_COUNT,
};

const char *net_refusal_text(enum net_refusal r);

struct transport_peer_event {
    uint32_t node;
    enum net_class class;
    enum net_direction direction;
    bool up;
    uint64_t incarnation; /* the peer's; 0 if never heard */
    uint64_t store_id;    /* the peer's, from its HELLO or HELLO-ACK; 0 if never heard */
};

struct transport_callbacks {
    void *ctx;
    /* A frame came; the callee owns one reference. */
    void (*on_frame)(void *ctx, struct net_frame *f);
    /* A link counts (HELLO and HELLO-ACK went through) or is lost (1 to 5 ms after the peer's
     * process died). An outgoing link that is down makes transport_send fail with UNAVAILABLE;
     * either direction's loss is the time to fail requests to the peer. May be NULL. */
    void (*on_peer)(void *ctx, const struct transport_peer_event *ev);
    /* A link was refused, by us (direction NET_IN: the peer said something wrong) or by the peer
     * (NET_OUT). store_id: what the other side claimed. Repeats at every reconnect. May be NULL. */
    void (*on_refused)(void *ctx, uint32_t node, enum net_direction direction, enum net_refusal why,
                       uint64_t store_id);
};

struct transport_peer_config {
    uint32_t node;     /* 1 .. LIMIT_PEERS */
    const char *url;   /* its base URL, as seen from here */
    uint64_t store_id; /* expected; 0: not known yet, any is accepted (and reported in on_peer) */
};

/* Everything is copied by transport_open; the timer is borrowed and outlives the transport. */
struct transport_config {
    uint64_t cluster_id;
    uint32_t node; /* this node: 1 .. LIMIT_PEERS */
    uint64_t store_id;
    uint64_t incarnation;   /* drawn at random at process start (rng_os_u64), not 0 */
    const char *listen_url; /* own base URL, as bound */
    const char *source; /* numeric address that outgoing tcp connections are bound to; NULL: any */
    struct timer *timer;
    const struct transport_peer_config *peers;
    size_t peer_count;
    struct transport_callbacks callbacks;
    bool enable_faults; /* else transport_fault_set is refused */
    uint64_t fault_seed;
};

/* Listens for all peers and starts dialling them; links come up by callback, which may run before
 * this returns. INVALID (a URL, a node id, a source address), UNSUPPORTED (a scheme), UNAVAILABLE
 * (an address in use: the text names it), IO. */
SPAN_CHECKED span_status transport_open(const struct transport_config *cfg, struct transport **out,
                                        struct span_error *err);
/* One more peer of a running transport: listens for it and starts dialling it. One thread at a
 * time; not from a callback. Errors as transport_open's, then nothing has changed. A peer is never
 * taken away while the transport lives. */
SPAN_CHECKED span_status transport_peer_add(struct transport *t,
                                            const struct transport_peer_config *cfg,
                                            struct span_error *err);
/* Stops everything; no callback runs after it returned. What was queued is lost. NULL is allowed.
 * Not from a callback. Frames handed out stay valid until their net_frame_unref. */
void transport_close(struct transport *t);

/* Ends nng itself: its threads, and what its reaper has not freed yet. Once, at the very end of a
 * process that wants to exit without a leak report, when nothing of nng (transports, HTTP) is open
 * any more; nng cannot be used again after it. */
void transport_library_fini(void);

/* Queues bytes for a peer; `bytes` is moved, and left empty, whatever the result. Several messages
 * may be in one call. Refusals, each counted: NOT_FOUND (no such peer), UNAVAILABLE (link down:
 * sending is not queued for a dead peer, it would only be stale), OVERLOADED (LIMIT_OUTBOX_BYTES
 * queued towards the peer), TOO_LARGE (beyond LIMIT_FRAME_BYTES). An empty buf is OK and does
 * nothing. */
SPAN_CHECKED span_status transport_send(struct transport *t, uint32_t node, enum net_class class,
                                        struct buf *bytes);

/* The store expected under a peer's number from now on (rule F2); a link of another store is
 * closed. 0: any. NOT_FOUND. */
SPAN_CHECKED span_status transport_peer_store_set(struct transport *t, uint32_t node,
                                                  uint64_t store_id);

struct transport_link_status {
    bool up_out;
    bool up_in;
    uint64_t frames_out; /* frames, payload bytes */
    uint64_t bytes_out;
    uint64_t sends_out; /* transport_send calls that were accepted: sends_out / frames_out =
                           coalescing */
    uint64_t frames_in;
    uint64_t bytes_in;
    uint64_t dropped_down;  /* sends refused: link down */
    uint64_t dropped_full;  /* sends refused: outbox full */
    uint64_t dropped_lost;  /* accepted, then thrown away with the link (queued or in flight) */
    uint64_t dropped_stale; /* frames in: of an old incarnation or connection, or an old sequence */
    uint64_t dropped_bad;   /* frames in: malformed or checksum wrong (the link is closed) */
    uint64_t dropped_fault; /* by the fault hooks, both directions */
    uint64_t connects;      /* times the outgoing link came up; reconnects = connects - 1 */
    uint64_t refused;       /* HELLOs refused, by either side */
    uint64_t queued_bytes;  /* in the outbox now */
    uint64_t last_heard_ns; /* CLOCK_MONOTONIC; 0: never */
    uint64_t rtt_ns;        /* of the last keep-alive over the outgoing link; 0: none yet */
};

struct transport_peer_status {
    uint32_t node;
    char url[256];        /* base */
    uint64_t store_id;    /* expected or learnt; 0: unknown */
    uint64_t incarnation; /* 0: never heard */
    enum net_refusal last_refusal;
    struct transport_link_status link[NET_CLASS_COUNT];
};

/* For SHOW NODES and metrics. Any thread. NOT_FOUND. */
SPAN_CHECKED span_status transport_peer_status(struct transport *t, uint32_t node,
                                               struct transport_peer_status *out);

/* Faults of one direction. Probabilities are 0 .. 1. They act on whole transport_send calls (out)
 * and whole received frames (in), above the sequence check, so that duplicates and overtaking reach
 * the callee. A delay keeps the order; what `reorder` picks is held 1 to 5 ms longer and overtaken.
 * A cut also stops HELLOs and keep-alives: after 6 s the links go down, as on a cut network. */
struct transport_fault_path {
    bool cut;
    double drop;
    double duplicate;
    double reorder;
    uint64_t delay_ns;
    uint64_t jitter_ns; /* uniform 0 .. jitter, added to the delay */
};

struct transport_fault {
    struct transport_fault_path out;
    struct transport_fault_path in;
};

/* Sets (or with NULL clears) the faults towards one peer, or all with node 0, at once and at run
 * time. UNSUPPORTED unless the transport was opened with enable_faults, NOT_FOUND, INVALID. */
SPAN_CHECKED span_status transport_fault_set(struct transport *t, uint32_t node,
                                             const struct transport_fault *fault);

#endif
