/* Frame format, little-endian:
 *
 *      0  u8   magic 0x53        4  u32  from node          24  u64  sequence
 *      1  u8   version           8  u64  cluster id         32  u32  payload length
 *      2  u8   type             16  u64  incarnation        36  u32  crc32c
 *      3  u8   class                                        40       payload
 *
 * The checksum covers bytes 0..35 and the payload. Magic and version keep their place for ever, so
 * that any version can refuse any other politely. nng delimits messages, so the length is
 * redundant: it is there to notice a truncated or run-together message rather than to find the end.
 *
 * The sequence is per sender, peer and class, starts at 1 and grows over all connections of one
 * incarnation; every type of frame takes one. A receiver drops what does not grow. */
#include "shard/net/wire.h"

#include "base/codec.h"
#include "base/invariant.h"

enum { CRC_AT = 36 };

static void put_u32(uint8_t *p, uint32_t v)
{
    for (unsigned i = 0; i < 4; i++) {
        p[i] = (uint8_t)(v >> (8 * i));
    }
}

static void put_u64(uint8_t *p, uint64_t v)
{
    for (unsigned i = 0; i < 8; i++) {
        p[i] = (uint8_t)(v >> (8 * i));
    }
}

static uint32_t frame_crc(const uint8_t *frame, size_t length)
{
    return crc32c(crc32c(0, frame, CRC_AT), frame + WIRE_HEADER_BYTES, length);
}

void wire_seal(uint8_t *frame, const struct wire_header *h)
{
    REQUIRE(h->length <= LIMIT_FRAME_BYTES);
    frame[0] = WIRE_MAGIC;
    frame[1] = WIRE_VERSION;
    frame[2] = (uint8_t)h->type;
    frame[3] = (uint8_t)h->class;
    put_u32(frame + 4, h->from);
    put_u64(frame + 8, h->cluster_id);
    put_u64(frame + 16, h->incarnation);
    put_u64(frame + 24, h->sequence);
    put_u32(frame + 32, h->length);
    put_u32(frame + CRC_AT, frame_crc(frame, h->length));
}

span_status wire_open(struct slice frame, struct wire_header *h, struct slice *payload,
                      struct span_error *err)
{
    struct cursor c = cursor_of(frame);
    if (frame.size < 2 || dec_u8(&c) != WIRE_MAGIC) {
        return span_fail(err, SPAN_PROTOCOL, "not a spanlite frame (%zu bytes)", frame.size);
    }
    unsigned version = dec_u8(&c);
    if (version != WIRE_VERSION) {
        return span_fail(err, SPAN_UNSUPPORTED, "frame of protocol version %u, this is version %d",
                         version, WIRE_VERSION);
    }
    if (frame.size < WIRE_HEADER_BYTES) {
        return span_fail(err, SPAN_PROTOCOL, "frame header cut short (%zu bytes)", frame.size);
    }
    unsigned type = dec_u8(&c);
    unsigned class = dec_u8(&c);
    h->from = dec_u32(&c);
    h->cluster_id = dec_u64(&c);
    h->incarnation = dec_u64(&c);
    h->sequence = dec_u64(&c);
    h->length = dec_u32(&c);
    uint32_t crc = dec_u32(&c);
    if (h->length > LIMIT_FRAME_BYTES || h->length != cursor_left(&c)) {
        return span_fail(err, SPAN_PROTOCOL, "frame says %u payload bytes and holds %zu", h->length,
                         cursor_left(&c));
    }
    if (crc != frame_crc(frame.data, h->length)) {
        return span_fail(err, SPAN_CORRUPT, "frame checksum does not fit (%u payload bytes)",
                         h->length);
    }
    if (type < WIRE_HELLO || type > WIRE_DATA || class >= NET_CLASS_COUNT) {
        return span_fail(err, SPAN_PROTOCOL, "frame of unknown type %u or class %u", type, class);
    }
    h->type = (enum wire_type)type;
    h->class = (enum net_class) class;
    *payload = dec_raw(&c, h->length);
    return SPAN_OK;
}

void wire_hello_encode(struct buf *b, const struct wire_hello *m)
{
    enc_u64(b, m->store_id);
    enc_u32(b, m->to);
    enc_u64(b, m->to_store_id);
}

span_status wire_hello_decode(struct slice s, struct wire_hello *m)
{
    struct cursor c = cursor_of(s);
    m->store_id = dec_u64(&c);
    m->to = dec_u32(&c);
    m->to_store_id = dec_u64(&c);
    return cursor_done(&c) ? SPAN_OK : SPAN_PROTOCOL;
}

void wire_ack_encode(struct buf *b, const struct wire_ack *m)
{
    enc_u64(b, m->store_id);
    enc_u64(b, m->hello_incarnation);
}

span_status wire_ack_decode(struct slice s, struct wire_ack *m)
{
    struct cursor c = cursor_of(s);
    m->store_id = dec_u64(&c);
    m->hello_incarnation = dec_u64(&c);
    return cursor_done(&c) ? SPAN_OK : SPAN_PROTOCOL;
}

void wire_refuse_encode(struct buf *b, const struct wire_refuse *m)
{
    enc_u8(b, (uint8_t)m->why);
    enc_u64(b, m->store_id);
}

span_status wire_refuse_decode(struct slice s, struct wire_refuse *m)
{
    struct cursor c = cursor_of(s);
    unsigned why = dec_u8(&c);
    m->store_id = dec_u64(&c);
    if (!cursor_done(&c) || why == NET_REFUSED_NOT || why >= NET_REFUSED_COUNT) {
        return SPAN_PROTOCOL;
    }
    m->why = (enum net_refusal)why;
    return SPAN_OK;
}

void wire_ping_encode(struct buf *b, uint64_t mono_ns)
{
    enc_u64(b, mono_ns);
}

span_status wire_ping_decode(struct slice s, uint64_t *mono_ns)
{
    struct cursor c = cursor_of(s);
    *mono_ns = dec_u64(&c);
    return cursor_done(&c) ? SPAN_OK : SPAN_PROTOCOL;
}

const char *net_refusal_text(enum net_refusal r)
{
    switch (r) {
    case NET_REFUSED_NOT:
        return "not refused";
    case NET_REFUSED_VERSION:
        return "another protocol version";
    case NET_REFUSED_CLUSTER:
        return "a node of another cluster";
    case NET_REFUSED_NODE:
        return "another node than this address is for";
    case NET_REFUSED_STORE:
        return "a known node number with another store";
    case NET_REFUSED_INCARNATION:
        return "a process that a later one has replaced";
    case NET_REFUSED_MALFORMED:
        return "not a spanlite node";
    case NET_REFUSED_COUNT:
        break;
    }
    return "unknown reason";
}
