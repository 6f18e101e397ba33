/* Frames between nodes: the header with its checksum, and the link's own payloads. The first byte
 * says whether the rest is a frame as it is, or a header and payload that get a right checksum. */
#include "base/limits.h"
#include "shard/net/wire.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    return 0;
}

static void open_payloads(const struct wire_header *h, struct slice payload)
{
    struct buf b = {0};
    struct wire_hello hello;
    struct wire_ack ack;
    struct wire_refuse refuse;
    uint64_t ns = 0;
    INVARIANT(payload.size == h->length && payload.size <= LIMIT_FRAME_BYTES);
    if (wire_hello_decode(payload, &hello) == SPAN_OK) {
        wire_hello_encode(&b, &hello);
        INVARIANT(slice_eq(buf_slice(&b), payload));
    }
    buf_clear(&b);
    if (wire_ack_decode(payload, &ack) == SPAN_OK) {
        wire_ack_encode(&b, &ack);
        INVARIANT(slice_eq(buf_slice(&b), payload));
    }
    buf_clear(&b);
    if (wire_refuse_decode(payload, &refuse) == SPAN_OK) {
        wire_refuse_encode(&b, &refuse);
        INVARIANT(slice_eq(buf_slice(&b), payload));
    }
    buf_clear(&b);
    if (wire_ping_decode(payload, &ns) == SPAN_OK) {
        wire_ping_encode(&b, ns);
        INVARIANT(slice_eq(buf_slice(&b), payload));
    }
    buf_deinit(&b);
}

static void open_frame(struct slice frame)
{
    struct wire_header h;
    struct slice payload;
    struct span_error err = {0};
    if (wire_open(frame, &h, &payload, &err) == SPAN_OK) {
        open_payloads(&h, payload);
    } else {
        INVARIANT(err.text[0] != '\0');
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) {
        return 0;
    }
    open_frame(slice_of(data + 1, size - 1));
    if (data[0] % 2 == 1 && size >= 8) {
        struct buf frame = {0};
        struct wire_header h = {.type = (enum wire_type)(1 + data[1] % 8),
                                .class = (enum net_class)(data[2] % 4),
                                .from = data[3],
                                .cluster_id = data[4],
                                .incarnation = data[5],
                                .sequence = data[6],
                                .length = (uint32_t)(size - 8) + (data[7] > 250 ? data[7] : 0)};
        (void)buf_grow(&frame, WIRE_HEADER_BYTES);
        buf_append(&frame, data + 8, size - 8);
        if (h.length == size - 8) {
            wire_seal(frame.data, &h);
            open_frame(buf_slice(&frame));
        }
        buf_deinit(&frame);
    }
    return 0;
}

static void emit_payload(fuzz_emit *emit, void *ctx, const char *name, enum wire_type type,
                         struct buf *payload)
{
    struct buf b = {0};
    uint8_t head[8] = {1, (uint8_t)(type - 1), 0, 2, 7, 9, 1, 0};
    buf_append(&b, head, 8);
    buf_append_slice(&b, buf_slice(payload));
    emit(ctx, name, buf_slice(&b));
    buf_clear(&b);
    buf_append_byte(&b, 0);
    (void)buf_grow(&b, WIRE_HEADER_BYTES);
    buf_append_slice(&b, buf_slice(payload));
    struct wire_header h = {.type = type,
                            .from = 2,
                            .cluster_id = 7,
                            .incarnation = 9,
                            .length = (uint32_t)payload->size};
    struct buf frame = {0};
    buf_append(&frame, b.data + 1, b.size - 1);
    wire_seal(frame.data, &h);
    memcpy(b.data + 1, frame.data, frame.size);
    char raw[64];
    size_t n = strlen(name);
    memcpy(raw, name, n);
    memcpy(raw + n, "-raw", 5);
    emit(ctx, raw, buf_slice(&b));
    buf_deinit(&frame);
    buf_deinit(&b);
    buf_clear(payload);
}

void fuzz_seeds(fuzz_emit *emit, void *ctx)
{
    struct buf p = {0};
    wire_hello_encode(&p, &(struct wire_hello){.store_id = 1, .to = 2, .to_store_id = 3});
    emit_payload(emit, ctx, "hello", WIRE_HELLO, &p);
    wire_ack_encode(&p, &(struct wire_ack){.store_id = 1, .hello_incarnation = 5});
    emit_payload(emit, ctx, "ack", WIRE_ACK, &p);
    wire_refuse_encode(&p, &(struct wire_refuse){.why = (enum net_refusal)1, .store_id = 3});
    emit_payload(emit, ctx, "refuse", WIRE_REFUSE, &p);
    wire_ping_encode(&p, 12345);
    emit_payload(emit, ctx, "ping", WIRE_PING, &p);
    buf_append_str(&p, "payload");
    emit_payload(emit, ctx, "data", WIRE_DATA, &p);
    buf_deinit(&p);
}
