/* The frame on a link between two nodes: header, checksum and the small payloads of the link itself
 * (HELLO, HELLO-ACK, REFUSE, keep-alives). Pure bytes, no nng. What a DATA frame carries is opaque
 * here. wire.c describes the format. */
#ifndef SPAN_SHARD_NET_WIRE_H
#define SPAN_SHARD_NET_WIRE_H

#include "base/buf.h"
#include "base/limits.h"
#include "base/status.h"
#include "shard/net/transport.h"

#include <stdbool.h>
#include <stdint.h>

#define WIRE_MAGIC        0x53 /* 'S' */
#define WIRE_VERSION      1
#define WIRE_HEADER_BYTES 40
#define WIRE_FRAME_MAX    (LIMIT_FRAME_BYTES + WIRE_HEADER_BYTES)

enum wire_type {
    WIRE_HELLO = 1, /* dialer's first frame */
    WIRE_ACK,       /* listener's answer: the link counts */
    WIRE_REFUSE,    /* listener's answer: it does not, and why */
    WIRE_PING,      /* dialer, every few seconds */
    WIRE_PONG,      /* listener, at once, with the ping's payload */
    WIRE_DATA,
};

struct wire_header {
    enum wire_type type;
    enum net_class class;
    uint32_t from;
    uint64_t cluster_id;
    uint64_t incarnation;
    uint64_t sequence;
    uint32_t length; /* payload bytes */
};

/* Payload of HELLO. */
struct wire_hello {
    uint64_t store_id;    /* the dialer's */
    uint32_t to;          /* node it wants */
    uint64_t to_store_id; /* store it expects there; 0: any */
};

/* Payload of ACK. */
struct wire_ack {
    uint64_t store_id;          /* the listener's */
    uint64_t hello_incarnation; /* the incarnation that is acknowledged */
};

/* Payload of REFUSE. */
struct wire_refuse {
    enum net_refusal why;
    uint64_t store_id; /* the listener's */
};

/* Writes header and checksum over WIRE_HEADER_BYTES at `frame`, which the payload of h->length
 * bytes follows already. */
void wire_seal(uint8_t *frame, const struct wire_header *h);

/* Checks and takes apart a whole frame as received. PROTOCOL: not a frame, wrong length, unknown
 * type or class; UNSUPPORTED: a frame of another version (the magic fits; nothing else may be
 * believed); CORRUPT: the checksum does not fit. `payload` is borrowed from the frame. `err` names
 * the reason. */
SPAN_CHECKED span_status wire_open(struct slice frame, struct wire_header *h, struct slice *payload,
                                   struct span_error *err);

void wire_hello_encode(struct buf *b, const struct wire_hello *m);
void wire_ack_encode(struct buf *b, const struct wire_ack *m);
void wire_refuse_encode(struct buf *b, const struct wire_refuse *m);
void wire_ping_encode(struct buf *b, uint64_t mono_ns);

/* PROTOCOL when malformed. */
SPAN_CHECKED span_status wire_hello_decode(struct slice s, struct wire_hello *m);
SPAN_CHECKED span_status wire_ack_decode(struct slice s, struct wire_ack *m);
SPAN_CHECKED span_status wire_refuse_decode(struct slice s, struct wire_refuse *m);
SPAN_CHECKED span_status wire_ping_decode(struct slice s, uint64_t *mono_ns);

#endif
