/* Frame format, link addresses and the decisions of the fault hooks: everything of shard/net that
 * is pure. */
#include "base/alloc.h"
#include "base/codec.h"
#include "base/rng.h"
#include "shard/net/fault.h"
#include "shard/net/url.h"
#include "shard/net/wire.h"

#include <criterion/criterion.h>

static void frame_make(struct buf *b, const char *payload)
{
    struct wire_header h = {.type = WIRE_DATA,
                            .class = NET_BULK,
                            .from = 3,
                            .cluster_id = 0x1122334455667788,
                            .incarnation = 42,
                            .sequence = 7,
                            .length = (uint32_t)strlen(payload)};
    buf_clear(b);
    (void)buf_grow(b, WIRE_HEADER_BYTES);
    buf_append_str(b, payload);
    wire_seal(b->data, &h);
}

Test(wire, opens_what_it_sealed)
{
    struct buf b = {0};
    struct wire_header h;
    struct slice payload;
    frame_make(&b, "hello there");
    cr_assert_eq(wire_open(buf_slice(&b), &h, &payload, NULL), SPAN_OK);
    cr_assert_eq(h.type, WIRE_DATA);
    cr_assert_eq(h.class, NET_BULK);
    cr_assert_eq(h.from, 3);
    cr_assert_eq(h.cluster_id, 0x1122334455667788);
    cr_assert_eq(h.incarnation, 42);
    cr_assert_eq(h.sequence, 7);
    cr_assert(slice_eq(payload, slice_str("hello there")));
    buf_deinit(&b);
}

Test(wire, format_is_stable)
{
    static const uint8_t expected[12] = {0x53, 1, 6, 1, 3, 0, 0, 0, 0x88, 0x77, 0x66, 0x55};
    struct buf b = {0};
    frame_make(&b, "x");
    cr_assert_eq(b.size, 41);
    cr_assert_arr_eq(b.data, expected, sizeof(expected));
    cr_assert_eq(b.data[24], 7);
    cr_assert_eq(b.data[32], 1);
    buf_deinit(&b);
}

Test(wire, notices_every_flipped_bit)
{
    struct buf b = {0};
    struct wire_header h;
    struct slice payload;
    frame_make(&b, "some payload to protect");
    for (size_t bit = 0; bit < b.size * 8; bit++) {
        b.data[bit / 8] ^= (uint8_t)(1u << (bit % 8));
        cr_assert_neq(wire_open(buf_slice(&b), &h, &payload, NULL), SPAN_OK, "bit %zu", bit);
        b.data[bit / 8] ^= (uint8_t)(1u << (bit % 8));
    }
    cr_assert_eq(wire_open(buf_slice(&b), &h, &payload, NULL), SPAN_OK);
    buf_deinit(&b);
}

Test(wire, refuses_cut_and_extended_frames)
{
    struct buf b = {0};
    struct wire_header h;
    struct slice payload;
    frame_make(&b, "payload");
    for (size_t n = 0; n < b.size; n++) {
        cr_assert_neq(wire_open(slice_of(b.data, n), &h, &payload, NULL), SPAN_OK, "%zu", n);
    }
    buf_append_byte(&b, 0);
    cr_assert_eq(wire_open(buf_slice(&b), &h, &payload, NULL), SPAN_PROTOCOL);
    buf_deinit(&b);
}

Test(wire, tells_another_version_from_garbage)
{
    struct buf b = {0};
    struct wire_header h;
    struct slice payload;
    frame_make(&b, "payload");
    b.data[1] = WIRE_VERSION + 1;
    cr_assert_eq(wire_open(slice_of(b.data, 2), &h, &payload, NULL), SPAN_UNSUPPORTED);
    b.data[0] = 'G';
    cr_assert_eq(wire_open(buf_slice(&b), &h, &payload, NULL), SPAN_PROTOCOL);
    buf_deinit(&b);
}

Test(wire, survives_random_bytes)
{
    struct rng r;
    struct wire_header h;
    struct slice payload;
    uint64_t seed = rng_os_u64();
    cr_log_info("seed %lu", (unsigned long)seed);
    rng_init(&r, seed);
    for (int i = 0; i < 20000; i++) {
        uint8_t *p = span_malloc(96);
        size_t n = rng_below(&r, 96);
        for (size_t k = 0; k < n; k++) {
            p[k] = (uint8_t)rng_u64(&r);
        }
        if (n > 2 && rng_below(&r, 2) == 0) {
            p[0] = WIRE_MAGIC;
            p[1] = WIRE_VERSION;
        }
        cr_assert_neq(wire_open(slice_of(p, n), &h, &payload, NULL), SPAN_OK);
        struct wire_hello hello;
        struct wire_refuse refuse;
        (void)(wire_hello_decode(slice_of(p, n), &hello) == SPAN_OK);
        (void)(wire_refuse_decode(slice_of(p, n), &refuse) == SPAN_OK);
        span_free(p);
    }
}

Test(wire, payloads_come_back)
{
    struct buf b = {0};
    struct wire_hello hello = {.store_id = 9, .to = 2, .to_store_id = 11};
    struct wire_hello hello2;
    wire_hello_encode(&b, &hello);
    cr_assert_eq(wire_hello_decode(buf_slice(&b), &hello2), SPAN_OK);
    cr_assert_eq(hello2.store_id, 9);
    cr_assert_eq(hello2.to, 2);
    cr_assert_eq(hello2.to_store_id, 11);
    buf_append_byte(&b, 0);
    cr_assert_eq(wire_hello_decode(buf_slice(&b), &hello2), SPAN_PROTOCOL);

    struct wire_ack ack = {.store_id = 1, .hello_incarnation = 2};
    struct wire_ack ack2;
    buf_clear(&b);
    wire_ack_encode(&b, &ack);
    cr_assert_eq(wire_ack_decode(buf_slice(&b), &ack2), SPAN_OK);
    cr_assert_eq(ack2.store_id, 1);
    cr_assert_eq(ack2.hello_incarnation, 2);

    struct wire_refuse refuse = {.why = NET_REFUSED_STORE, .store_id = 5};
    struct wire_refuse refuse2;
    buf_clear(&b);
    wire_refuse_encode(&b, &refuse);
    cr_assert_eq(wire_refuse_decode(buf_slice(&b), &refuse2), SPAN_OK);
    cr_assert_eq(refuse2.why, NET_REFUSED_STORE);
    cr_assert_eq(refuse2.store_id, 5);
    b.data[0] = 200;
    cr_assert_eq(wire_refuse_decode(buf_slice(&b), &refuse2), SPAN_PROTOCOL);
    buf_deinit(&b);
}

/* --- addresses ----------------------------------------------------------------------------------
 */

static void check_url(const char *base, span_status want, const char *url)
{
    char out[URL_BYTES];
    enum url_scheme scheme;
    struct span_error err;
    span_status st = url_of_link(base, 3, NET_BULK, out, &scheme, &err);
    cr_assert_eq(st, want, "%s: %s", base, span_status_text(st));
    if (st == SPAN_OK) {
        cr_assert_str_eq(out, url);
    } else {
        cr_assert_gt(strlen(err.text), 10);
    }
}

Test(url, makes_link_addresses)
{
    check_url("tcp://127.0.0.1:7000", SPAN_OK, "tcp://127.0.0.1:7007");
    check_url("tcp://[::1]:7000", SPAN_OK, "tcp://[::1]:7007");
    check_url("tcp://node-a.example:65406", SPAN_OK, "tcp://node-a.example:65413");
    check_url("ipc:///tmp/n1", SPAN_OK, "ipc:///tmp/n1-3-1");
    check_url("inproc://n1", SPAN_OK, "inproc://n1-3-1");
}

Test(url, refuses_bad_addresses_with_words)
{
    check_url("", SPAN_INVALID, NULL);
    check_url("127.0.0.1:7000", SPAN_INVALID, NULL);
    check_url("http://127.0.0.1:7000", SPAN_INVALID, NULL);
    check_url("tls+tcp://127.0.0.1:7000", SPAN_UNSUPPORTED, NULL);
    check_url("tcp://127.0.0.1", SPAN_INVALID, NULL);
    check_url("tcp://:7000", SPAN_INVALID, NULL);
    check_url("tcp://::1:7000", SPAN_INVALID, NULL);
    check_url("tcp://h:70x0", SPAN_INVALID, NULL);
    check_url("tcp://h:0", SPAN_INVALID, NULL);
    check_url("tcp://h:65500", SPAN_INVALID, NULL);
    check_url("tcp://h:700000", SPAN_INVALID, NULL);
    check_url("tcp://1.2.3.4;h:7000", SPAN_INVALID, NULL);
    check_url("tcp://h:7000/x", SPAN_INVALID, NULL);
    check_url("ipc://relative", SPAN_INVALID, NULL);
    check_url("inproc://", SPAN_INVALID, NULL);
    char longer[200] = "ipc:///";
    memset(longer + 7, 'a', 150);
    check_url(longer, SPAN_INVALID, NULL);
    longer[7 + 105] = '\0';
    check_url(longer, SPAN_INVALID, NULL);
    char out[URL_BYTES];
    enum url_scheme scheme;
    cr_assert_eq(url_of_link("inproc://a", 0, NET_BULK, out, &scheme, NULL), SPAN_INVALID);
    cr_assert_eq(url_of_link("inproc://a", LIMIT_PEERS + 1, NET_BULK, out, &scheme, NULL),
                 SPAN_INVALID);
}

/* --- fault decisions ----------------------------------------------------------------------------
 */

Test(fault, probabilities_hold_on_average)
{
    struct fault_path p = {.set = {.drop = 0.25, .duplicate = 0.5}};
    struct rng r;
    rng_init(&r, 12345);
    unsigned dropped = 0;
    unsigned doubled = 0;
    for (int i = 0; i < 10000; i++) {
        struct fault_verdict v = fault_decide(&p, &r, 1000);
        dropped += v.copies == 0;
        doubled += v.copies == 2;
    }
    cr_assert(dropped > 2300 && dropped < 2700, "%u", dropped);
    cr_assert(doubled > 3500 && doubled < 4000, "%u", doubled);
}

Test(fault, delay_keeps_order_and_reorder_breaks_it)
{
    struct fault_path p = {.set = {.delay_ns = 5 * MS_NS, .jitter_ns = 5 * MS_NS}};
    struct rng r;
    rng_init(&r, 99);
    uint64_t last = 0;
    for (uint64_t now = 1; now < 1000; now++) {
        struct fault_verdict v = fault_decide(&p, &r, now * 1000);
        cr_assert_eq(v.copies, 1);
        cr_assert_geq(v.due_ns[0], now * 1000 + 5 * MS_NS);
        cr_assert_geq(v.due_ns[0], last);
        last = v.due_ns[0];
    }
    p = (struct fault_path){.set = {.reorder = 0.5}};
    unsigned overtaken = 0;
    last = 0;
    for (uint64_t now = 1; now < 1000; now++) {
        struct fault_verdict v = fault_decide(&p, &r, now * 1000);
        overtaken += v.due_ns[0] < last;
        last = v.due_ns[0];
    }
    cr_assert_gt(overtaken, 100);
}

Test(fault, nothing_overtakes_what_is_held_back)
{
    struct fault_path p = {.held = 1, .last_due_ns = 500};
    struct rng r;
    rng_init(&r, 1);
    cr_assert_gt(fault_decide(&p, &r, 1000).due_ns[0], 1000);
    p.held = 0;
    cr_assert_leq(fault_decide(&p, &r, 2000).due_ns[0], 2000);
}

Test(fault, refuses_nonsense)
{
    struct transport_fault f = {0};
    cr_assert_eq(fault_check(&f, NULL), SPAN_OK);
    f.out.drop = 1.5;
    cr_assert_eq(fault_check(&f, NULL), SPAN_INVALID);
    f = (struct transport_fault){.in = {.duplicate = -0.1}};
    cr_assert_eq(fault_check(&f, NULL), SPAN_INVALID);
    f = (struct transport_fault){.in = {.reorder = 0.0 / 0.0}};
    cr_assert_eq(fault_check(&f, NULL), SPAN_INVALID);
    f = (struct transport_fault){.in = {.delay_ns = 61 * SEC_NS}};
    cr_assert_eq(fault_check(&f, NULL), SPAN_INVALID);
}
