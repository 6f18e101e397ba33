/* struct buf, the encoders and the bounded cursor on good and malformed input, CRC32C. */
#include "base/alloc.h"
#include "base/codec.h"
#include "base/rng.h"

#include <criterion/criterion.h>
#include <signal.h>

static uint64_t seed_of_run(void)
{
    const uint64_t seed = rng_os_u64();

    cr_log_info("seed %llu", (unsigned long long)seed);
    return seed;
}

Test(buf, orders_slices_by_bytes_and_prefix_first)
{
    cr_assert(slice_cmp(slice_str("a"), slice_str("b")) < 0);
    cr_assert(slice_cmp(slice_str("ab"), slice_str("a")) > 0);
    cr_assert(slice_cmp(slice_str(""), slice_str("a")) < 0);
    cr_assert(slice_cmp(slice_str("x\xff"), slice_str("x\x01")) > 0);
    cr_assert(slice_cmp((struct slice){0}, slice_str("")) == 0);
    cr_assert(slice_eq((struct slice){0}, slice_str("")));
    cr_assert(!slice_eq(slice_str("a"), slice_str("b")));
    cr_assert(slice_has_prefix(slice_str("abc"), slice_str("ab")));
    cr_assert(slice_has_prefix(slice_str("abc"), (struct slice){0}));
    cr_assert(!slice_has_prefix(slice_str("ab"), slice_str("abc")));
}

Test(buf, grows_prints_and_moves)
{
    struct buf a = {0};
    struct buf b = {0};

    cr_assert_str_eq(buf_cstr(&a), "");
    cr_assert_eq(a.size, 0);
    for (int i = 0; i < 1000; i++) {
        buf_printf(&a, "%d,", i);
    }
    cr_assert_eq(a.size, 3890);
    cr_assert_eq(strlen(buf_cstr(&a)), 3890);
    cr_assert(strncmp(buf_cstr(&a), "0,1,2,", 6) == 0);
    buf_append_str(&b, "old");
    buf_move(&b, &a);
    cr_assert_eq(b.size, 3890);
    cr_assert_eq(a.size, 0);
    cr_assert_null(a.data);
    buf_set(&b, (struct slice){b.data + 2, 3}); /* a part of itself */
    cr_assert_str_eq(buf_cstr(&b), "1,2");
    buf_clear(&b);
    cr_assert_eq(b.size, 0);
    cr_assert(b.cap > 0);
    cr_assert_not_null(buf_grow(&a, 0));
    buf_deinit(&b);
    buf_deinit(&a);
    buf_append_byte(&a, 7); /* usable after deinit */
    cr_assert_eq(a.data[0], 7);
    buf_deinit(&a);
}

Test(codec, reads_back_what_it_wrote)
{
    struct rng r;
    struct buf b = {0};

    rng_init(&r, seed_of_run());
    for (int round = 0; round < 2000; round++) {
        const uint64_t v = rng_u64(&r) >> rng_below(&r, 64);
        const size_t n = (size_t)rng_below(&r, 300);
        struct cursor c;
        struct slice s;
        size_t patched = 0;

        buf_clear(&b);
        enc_u8(&b, (uint8_t)v);
        enc_u16(&b, (uint16_t)v);
        patched = b.size;
        enc_u32(&b, 0);
        enc_u64(&b, v);
        enc_var(&b, v);
        enc_bool(&b, v & 1);
        enc_var(&b, n);
        memset(buf_grow(&b, n), (int)(v & 0xff), n);
        enc_bytes(&b, slice_str("end"));
        enc_u32_at(&b, patched, (uint32_t)v);

        c = cursor_of(buf_slice(&b));
        cr_assert_eq(dec_u8(&c), (uint8_t)v);
        cr_assert_eq(dec_u16(&c), (uint16_t)v);
        cr_assert_eq(dec_u32(&c), (uint32_t)v);
        cr_assert_eq(dec_u64(&c), v);
        cr_assert_eq(dec_var(&c), v);
        cr_assert_eq(dec_bool(&c), (v & 1) != 0);
        s = dec_bytes(&c);
        cr_assert_eq(s.size, n);
        cr_assert(n == 0 || s.data[n - 1] == (uint8_t)v);
        cr_assert(cursor_ok(&c));
        cr_assert(!cursor_done(&c));
        cr_assert(slice_eq(dec_bytes(&c), slice_str("end")));
        cr_assert(cursor_done(&c));
        cr_assert_eq(cursor_left(&c), 0);
    }
    buf_deinit(&b);
}

Test(codec, is_little_endian_on_every_machine)
{
    struct buf b = {0};

    enc_u32(&b, 0x01020304);
    enc_var(&b, 300);
    cr_assert(slice_eq(buf_slice(&b), slice_of("\x04\x03\x02\x01\xac\x02", 6)));
    buf_deinit(&b);
}

Test(codec, error_is_sticky_after_a_short_read)
{
    struct cursor c = cursor_of(slice_of("\x01\x02\x03\x04\x05", 5));

    cr_assert_eq(dec_u32(&c), 0x04030201);
    cr_assert_eq(dec_u16(&c), 0);
    cr_assert(!cursor_ok(&c));
    cr_assert(!cursor_done(&c));
    cr_assert_eq(cursor_left(&c), 0);
    cr_assert_eq(dec_u8(&c), 0, "the byte that is still there is not handed out after an error");
    cr_assert_eq(dec_bytes(&c).size, 0);
    cr_assert_null(dec_raw(&c, 0).data);
    cr_assert_eq(dec_count(&c, 1), 0);
}

struct malformed {
    const char *bytes;
    size_t size;
};

Test(codec, refuses_malformed_varints)
{
    static const struct malformed table[] = {
        {"", 0},
        {"\x80", 1},                                              /* cut */
        {"\x80\x00", 2},                                          /* over-long 0 */
        {"\xff\x80\x00", 3},                                      /* over-long */
        {"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", 10},         /* 65 bits */
        {"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x81\x00", 11},     /* 11 bytes */
        {"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", 12}, /* never ends */
    };

    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        struct cursor c = cursor_of(slice_of(table[i].bytes, table[i].size));

        cr_assert_eq(dec_var(&c), 0);
        cr_assert(!cursor_ok(&c), "case %zu", i);
    }
}

Test(codec, takes_the_largest_varint)
{
    struct cursor c = cursor_of(slice_of("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 10));

    cr_assert_eq(dec_var(&c), UINT64_MAX);
    cr_assert(cursor_done(&c));
}

Test(codec, refuses_lengths_and_counts_beyond_the_input)
{
    struct buf b = {0};
    struct cursor c;

    enc_var(&b, UINT64_MAX);
    buf_append_str(&b, "abc");
    c = cursor_of(buf_slice(&b));
    cr_assert_eq(dec_bytes(&c).size, 0);
    cr_assert(!cursor_ok(&c));
    c = cursor_of(buf_slice(&b));
    cr_assert_eq(dec_count(&c, 8), 0);
    cr_assert(!cursor_ok(&c));

    buf_clear(&b);
    enc_var(&b, 3);
    buf_append_str(&b, "abcdef");
    c = cursor_of(buf_slice(&b));
    cr_assert_eq(dec_count(&c, 2), 3);
    c = cursor_of(buf_slice(&b));
    cr_assert_eq(dec_count(&c, 3), 0);
    cr_assert(!cursor_ok(&c));
    c = cursor_of(buf_slice(&b));
    cr_assert_eq(dec_count(&c, 0), 3, "elements of no size count as one byte each");
    buf_deinit(&b);
}

Test(codec, refuses_a_bool_that_is_neither)
{
    struct cursor c = cursor_of(slice_of("\x02\x01", 2));

    cr_assert(!dec_bool(&c));
    cr_assert(!cursor_ok(&c));
    cr_assert(!dec_bool(&c));
}

/* Random bytes through random reads: never outside the input (ASan looks), bad stays bad. */
Test(codec, survives_random_bytes)
{
    struct rng r;

    rng_init(&r, seed_of_run());
    for (int round = 0; round < 20000; round++) {
        const size_t n = (size_t)rng_below(&r, 40);
        uint8_t *bytes = span_malloc(n);
        struct cursor c;
        bool bad = false;

        for (size_t i = 0; i < n; i++) {
            bytes[i] = (uint8_t)rng_u64(&r);
        }
        c = cursor_of((struct slice){bytes, n});
        for (int reads = 0; reads < 12; reads++) {
            struct slice s = {0};
            size_t count = 0;

            switch (rng_below(&r, 6)) {
            case 0:
                (void)dec_u8(&c);
                break;
            case 1:
                (void)dec_u64(&c);
                break;
            case 2:
                (void)dec_var(&c);
                break;
            case 3:
                s = dec_bytes(&c);
                break;
            case 4:
                count = dec_count(&c, 3);
                cr_assert(count * 3 <= cursor_left(&c));
                break;
            default:
                s = dec_raw(&c, (size_t)rng_below(&r, 9));
                break;
            }
            cr_assert(s.size == 0 || (s.data >= bytes && s.data + s.size <= bytes + n));
            cr_assert(cursor_left(&c) <= n);
            cr_assert(!bad || !cursor_ok(&c), "an error went away");
            bad = !cursor_ok(&c);
        }
        span_free(bytes);
    }
}

Test(crc32c, matches_known_vectors)
{
    uint8_t bytes[32];

    cr_assert_eq(crc32c(0, "", 0), 0);
    cr_assert_eq(crc32c(0, "123456789", 9), 0xe3069283u);
    cr_assert_eq(crc32c_portable(0, "123456789", 9), 0xe3069283u);
    memset(bytes, 0, sizeof bytes); /* RFC 3720, B.4 */
    cr_assert_eq(crc32c(0, bytes, 32), 0x8a9136aau);
    memset(bytes, 0xff, sizeof bytes);
    cr_assert_eq(crc32c(0, bytes, 32), 0x62a8ab43u);
    for (uint8_t i = 0; i < 32; i++) {
        bytes[i] = i;
    }
    cr_assert_eq(crc32c(0, bytes, 32), 0x46dd794eu);
}

Test(crc32c, hardware_and_tables_agree_in_any_pieces)
{
    struct rng r;
    uint8_t bytes[600];

    rng_init(&r, seed_of_run());
    for (int round = 0; round < 3000; round++) {
        const size_t n = (size_t)rng_below(&r, sizeof bytes - 8);
        const size_t at = (size_t)rng_below(&r, 8); /* unaligned */
        const size_t cut = (size_t)rng_below(&r, n + 1);
        const uint32_t start = (uint32_t)rng_u64(&r);
        uint32_t whole = 0;

        for (size_t i = 0; i < sizeof bytes; i++) {
            bytes[i] = (uint8_t)rng_u64(&r);
        }
        whole = crc32c(start, bytes + at, n);
        cr_assert_eq(whole, crc32c_portable(start, bytes + at, n));
        cr_assert_eq(whole, crc32c(crc32c(start, bytes + at, cut), bytes + at + cut, n - cut));
        if (n) {
            bytes[at + cut % n] ^= (uint8_t)(1u << rng_below(&r, 8));
            cr_assert_neq(whole, crc32c(start, bytes + at, n), "a flipped bit is always seen");
        }
    }
}

Test(alloc, copies_and_formats)
{
    char *s = span_asprintf("%s-%d", "range", 7);
    char *t = span_strdup(s);
    void *nothing = span_memdup(NULL, 0);

    cr_assert_str_eq(t, "range-7");
    cr_assert_not_null(nothing);
    span_free(nothing);
    span_free(s);
    span_free(t);
    span_free(NULL);
}

Test(alloc, nth_call_stops_the_process, .signal = SIGABRT)
{
    span_alloc_fail_at(2);
    span_free(span_malloc(1));
    span_free(span_malloc(1));
}
