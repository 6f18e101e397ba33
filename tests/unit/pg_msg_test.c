/* Messages: every field decoded, every truncation and many random damages refused or harmless, and
 * the bytes of what the server says. */
#include "base/alloc.h"
#include "base/rng.h"
#include "sql/pgwire/pg_msg.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

#define BYTES(s) slice_of((s), sizeof(s) - 1)

Test(pg_msg, decodes_parse_with_name_text_and_types)
{
    struct pg_parse m;
    cr_assert_eq(pg_parse_decode(BYTES("s1\0select $1\0\0\2\0\0\0\x14\0\0\0\0"), &m), SPAN_OK);
    cr_assert(slice_eq(m.name, slice_str("s1")));
    cr_assert(slice_eq(m.sql, slice_str("select $1")));
    cr_assert_eq(m.oid_count, 2);
    cr_assert_eq(pg_oid_at(&m, 0), (uint32_t)PG_OID_INT8);
    cr_assert_eq(pg_oid_at(&m, 1), (uint32_t)PG_OID_UNKNOWN);
}

static const char bind_bytes[] = "p\0s\0"
                                 "\0\2\0\0\0\1"
                                 "\0\2\0\0\0\3abc\xff\xff\xff\xff"
                                 "\0\1\0\1";

Test(pg_msg, decodes_bind_with_formats_values_and_null)
{
    struct pg_bind m;
    cr_assert_eq(pg_bind_decode(BYTES(bind_bytes), &m), SPAN_OK);
    cr_assert_eq(m.param_count, 2);
    cr_assert_eq(pg_format_at(m.param_formats, m.param_format_count, 1), 1);
    cr_assert_eq(pg_format_at(m.result_formats, m.result_format_count, 5), 1); /* one for all */
    cr_assert_eq(pg_format_at(slice_of("", 0), 0, 5), 0);                      /* none: text */
    struct slice rest = m.params;
    struct pg_value v = pg_param_next(&rest);
    cr_assert(!v.is_null && slice_eq(v.text, slice_str("abc")));
    cr_assert(pg_param_next(&rest).is_null);
    cr_assert_eq(rest.size, 0);
}

Test(pg_msg, refuses_every_truncation_and_every_trailing_byte)
{
    static const char parse[] = "s1\0select\0\0\1\0\0\0\x14";
    static const char execute[] = "p\0\0\0\0\5";
    struct pg_parse p;
    struct pg_bind b;
    struct pg_execute e;
    struct pg_describe d;
    struct slice sql;
    for (size_t n = 0; n < sizeof(parse) - 1; n++) {
        cr_assert_eq(pg_parse_decode(slice_of(parse, n), &p), SPAN_PROTOCOL);
    }
    cr_assert_eq(pg_parse_decode(slice_of(parse, sizeof(parse)), &p), SPAN_PROTOCOL);
    for (size_t n = 0; n < sizeof(bind_bytes) - 1; n++) {
        cr_assert_eq(pg_bind_decode(slice_of(bind_bytes, n), &b), SPAN_PROTOCOL);
    }
    cr_assert_eq(pg_bind_decode(slice_of(bind_bytes, sizeof(bind_bytes)), &b), SPAN_PROTOCOL);
    for (size_t n = 0; n < sizeof(execute) - 1; n++) {
        cr_assert_eq(pg_execute_decode(slice_of(execute, n), &e), SPAN_PROTOCOL);
    }
    cr_assert_eq(pg_execute_decode(BYTES(execute), &e), SPAN_OK);
    cr_assert_eq(e.max_rows, 5);
    cr_assert_eq(pg_execute_decode(BYTES("p\0\xff\xff\xff\xff"), &e), SPAN_OK);
    cr_assert_eq(e.max_rows, 0);
    cr_assert_eq(pg_describe_decode(BYTES("Sx\0"), &d), SPAN_OK);
    cr_assert_eq(pg_describe_decode(BYTES("Xx\0"), &d), SPAN_PROTOCOL);
    cr_assert_eq(pg_describe_decode(BYTES("S"), &d), SPAN_PROTOCOL);
    cr_assert_eq(pg_query_decode(BYTES("select 1"), &sql), SPAN_PROTOCOL);
    cr_assert_eq(pg_query_decode(BYTES("select\0 1\0"), &sql), SPAN_PROTOCOL);
    cr_assert_eq(pg_query_decode(BYTES("select 1\0"), &sql), SPAN_OK);
    cr_assert_eq(pg_empty_decode(BYTES("")), SPAN_OK);
    cr_assert_eq(pg_empty_decode(BYTES("x")), SPAN_PROTOCOL);
}

Test(pg_msg, refuses_counts_that_lie)
{
    struct pg_bind b;
    struct pg_parse p;
    cr_assert_eq(pg_bind_decode(BYTES("\0\0\0\0\xff\xff\0\0"), &b), SPAN_PROTOCOL);
    cr_assert_eq(pg_bind_decode(BYTES("\0\0\0\0\0\1\x7f\xff\xff\xff\0\0"), &b), SPAN_PROTOCOL);
    cr_assert_eq(pg_bind_decode(BYTES("\0\0\0\2\0\0\0\0\0\0\0\0"), &b),
                 SPAN_PROTOCOL); /* 2 formats, 0 values */
    cr_assert_eq(pg_parse_decode(BYTES("\0\0\xff\xff"), &p), SPAN_PROTOCOL);
}

Test(pg_msg, frames_messages_as_their_bytes_arrive)
{
    struct pg_frame f;
    static const char whole[] = "Q\0\0\0\x0dselect 1\0S\0\0\0\4";
    for (size_t n = 0; n < 14; n++) {
        cr_assert_eq(pg_frame_decode(slice_of(whole, n), &f), SPAN_OK);
        cr_assert_not(f.whole);
        cr_assert_eq(f.total, n < 5 ? 0u : 14u);
    }
    cr_assert_eq(pg_frame_decode(BYTES(whole), &f), SPAN_OK);
    cr_assert(f.whole && f.type == 'Q' && f.total == 14 && f.body.size == 9);
    cr_assert_eq(pg_frame_decode(BYTES("Q\0\0\0\3"), &f), SPAN_PROTOCOL);
    cr_assert_eq(pg_frame_decode(BYTES("Q\xff\xff\xff\xff"), &f), SPAN_PROTOCOL);
    cr_assert_eq(pg_frame_decode(BYTES("z"), &f), SPAN_PROTOCOL);
    cr_assert_eq(pg_frame_decode(BYTES("\0"), &f), SPAN_PROTOCOL);
    cr_assert_eq(pg_special_decode(BYTES("\0\0\0\7"), 10000, &f), SPAN_PROTOCOL);
    cr_assert_eq(pg_special_decode(BYTES("\0\0\x27\x11"), 10000, &f), SPAN_PROTOCOL);
    cr_assert_eq(pg_special_decode(BYTES("\0\0\x27\x10"), 10000, &f), SPAN_OK);
    cr_assert_eq(pg_special_decode(BYTES("\0\0\0\x08\0\3\0\0"), 10000, &f), SPAN_OK);
    cr_assert(f.whole && f.body.size == 4);
}

Test(pg_msg, decodes_startup_pairs)
{
    struct pg_startup_pair pairs[2];
    size_t n = 0;
    cr_assert_eq(pg_startup_decode(BYTES("user\0me\0database\0\0\0"), pairs, 2, &n), SPAN_OK);
    cr_assert_eq(n, 2);
    cr_assert_str_eq(pairs[0].value, "me");
    cr_assert_str_eq(pairs[1].name, "database");
    cr_assert_str_eq(pairs[1].value, "");
    cr_assert_eq(pg_startup_decode(BYTES("user\0me\0"), pairs, 2, &n), SPAN_PROTOCOL);
    cr_assert_eq(pg_startup_decode(BYTES("user\0"), pairs, 2, &n), SPAN_PROTOCOL);
    cr_assert_eq(pg_startup_decode(BYTES("a\0b\0c\0d\0e\0f\0\0"), pairs, 2, &n), SPAN_PROTOCOL);
    cr_assert_eq(pg_startup_decode(BYTES("a\0b\0\0x"), pairs, 2, &n), SPAN_PROTOCOL);
}

static void expect_bytes(struct buf *b, struct slice want)
{
    cr_assert_eq(b->size, want.size, "%zu bytes, wanted %zu", b->size, want.size);
    cr_assert(want.size == 0 || memcmp(b->data, want.data, want.size) == 0);
    buf_clear(b);
}

Test(pg_msg, encodes_what_the_server_says)
{
    struct buf b;
    buf_init(&b);
    pg_put_auth_ok(&b);
    expect_bytes(&b, BYTES("R\0\0\0\x08\0\0\0\0"));
    pg_put_parameter_status(&b, "a", "b");
    expect_bytes(&b, BYTES("S\0\0\0\x08"
                           "a\0b\0"));
    pg_put_backend_key(&b, 1, 0xfffefdfc);
    expect_bytes(&b, BYTES("K\0\0\0\x0c\0\0\0\1\xff\xfe\xfd\xfc"));
    pg_put_ready(&b, 'T');
    expect_bytes(&b, BYTES("Z\0\0\0\5T"));
    struct pg_column col = {.name = "id", .type_oid = PG_OID_INT8};
    pg_put_row_description(&b, &col, NULL, 1);
    expect_bytes(&b, BYTES("T\0\0\0\x1b\0\1id\0\0\0\0\0\0\0\0\0\0\x14\0\x08\xff\xff\xff\xff\0\0"));
    struct pg_value row[2] = {{.text = slice_str("42")}, {.is_null = true}};
    pg_put_data_row(&b, row, 2);
    expect_bytes(&b, BYTES("D\0\0\0\x10\0\2\0\0\0\2"
                           "42\xff\xff\xff\xff"));
    pg_put_command_complete(&b, "SELECT 1");
    expect_bytes(&b, BYTES("C\0\0\0\x0dSELECT 1\0"));
    struct pg_error e = {
        .severity = "ERROR", .sqlstate = "42601", .message = "no", .position = 12, .hint = "h"};
    pg_put_error(&b, &e);
    expect_bytes(&b, BYTES("E\0\0\0\x25SERROR\0VERROR\0C42601\0Mno\0Hh\0P12\0\0"));
    pg_put_simple(&b, '1');
    expect_bytes(&b, BYTES("1\0\0\0\4"));
    const char *names[] = {"_pq_.x"};
    pg_put_negotiate(&b, PG_PROTOCOL_3_0, names, 1);
    expect_bytes(&b, BYTES("v\0\0\0\x13\0\3\0\0\0\0\0\1_pq_.x\0"));
    uint32_t oids[] = {20, 25};
    pg_put_parameter_description(&b, oids, 2);
    expect_bytes(&b, BYTES("t\0\0\0\x0e\0\2\0\0\0\x14\0\0\0\x19"));
    buf_deinit(&b);
}

static void there_and_back(uint32_t oid, const char *text, struct slice bin)
{
    struct buf b;
    buf_init(&b);
    cr_assert_eq(pg_text_to_binary(oid, slice_str(text), &b), SPAN_OK, "%s", text);
    expect_bytes(&b, bin);
    cr_assert_eq(pg_binary_to_text(oid, bin, &b), SPAN_OK);
    expect_bytes(&b, slice_str(text));
    buf_deinit(&b);
}

Test(pg_msg, converts_plain_types_between_text_and_binary)
{
    there_and_back(PG_OID_INT8, "-9223372036854775808", BYTES("\x80\0\0\0\0\0\0\0"));
    there_and_back(PG_OID_INT8, "258", BYTES("\0\0\0\0\0\0\1\2"));
    there_and_back(PG_OID_INT4, "-1", BYTES("\xff\xff\xff\xff"));
    there_and_back(PG_OID_INT2, "-2", BYTES("\xff\xfe"));
    there_and_back(PG_OID_OID, "4294967295", BYTES("\xff\xff\xff\xff"));
    there_and_back(PG_OID_FLOAT8, "0.1", BYTES("\x3f\xb9\x99\x99\x99\x99\x99\x9a"));
    there_and_back(PG_OID_FLOAT4, "0.1", BYTES("\x3d\xcc\xcc\xcd"));
    there_and_back(PG_OID_BOOL, "t", BYTES("\1"));
    there_and_back(PG_OID_BYTEA, "\\x00ff", BYTES("\0\xff"));
    there_and_back(PG_OID_TEXT, "h\xc3\xa9", BYTES("h\xc3\xa9"));
    there_and_back(PG_OID_TEXT, "", BYTES(""));
}

Test(pg_msg, refuses_values_that_are_not_of_the_type)
{
    struct buf b;
    buf_init(&b);
    cr_assert_eq(pg_text_to_binary(PG_OID_INT2, slice_str("32768"), &b), SPAN_INVALID);
    cr_assert_eq(pg_text_to_binary(PG_OID_INT8, slice_str("9223372036854775808"), &b),
                 SPAN_INVALID);
    cr_assert_eq(pg_text_to_binary(PG_OID_INT8, slice_str("1x"), &b), SPAN_INVALID);
    cr_assert_eq(pg_text_to_binary(PG_OID_INT8, slice_str(""), &b), SPAN_INVALID);
    cr_assert_eq(pg_text_to_binary(PG_OID_BYTEA, slice_str("\\x0"), &b), SPAN_INVALID);
    cr_assert_eq(pg_text_to_binary(PG_OID_BOOL, slice_str("maybe"), &b), SPAN_INVALID);
    cr_assert_eq(pg_text_to_binary(PG_OID_TIMESTAMP, slice_str("2026-01-01"), &b),
                 SPAN_UNSUPPORTED);
    cr_assert_eq(pg_binary_to_text(PG_OID_INT8, slice_str("abc"), &b), SPAN_INVALID);
    cr_assert_eq(pg_binary_to_text(PG_OID_BOOL, BYTES("\2"), &b), SPAN_INVALID);
    cr_assert_eq(b.size, 0);
    buf_deinit(&b);
}

Test(pg_msg, floats_read_back_as_the_same_number)
{
    uint64_t seed = rng_os_u64();
    struct rng r;
    struct buf b;
    fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
    rng_init(&r, seed);
    buf_init(&b);
    for (int i = 0; i < 20000; i++) {
        uint8_t bin[8];
        uint64_t bits = rng_u64(&r);
        for (int k = 0; k < 8; k++) {
            bin[k] = (uint8_t)(bits >> (56 - 8 * k));
        }
        if ((bits >> 52 & 0x7ff) == 0x7ff) {
            continue; /* infinities and NaN have names, not digits */
        }
        buf_clear(&b);
        cr_assert_eq(pg_binary_to_text(PG_OID_FLOAT8, slice_of(bin, 8), &b), SPAN_OK);
        double v = strtod(buf_cstr(&b), NULL);
        cr_assert_eq(memcmp(&v, &bits, 8), 0);
    }
    buf_deinit(&b);
}

/* Random bytes never make a decoder read out of bounds (run under ASan) or a slice leave the body.
 */
Test(pg_msg, survives_random_bodies)
{
    uint64_t seed = rng_os_u64();
    struct rng r;
    fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
    rng_init(&r, seed);
    for (int i = 0; i < 100000; i++) {
        size_t n = (size_t)rng_below(&r, 40);
        uint8_t *p = span_malloc(n + 1);
        for (size_t k = 0; k < n; k++) {
            p[k] = rng_below(&r, 2) == 0 ? 0 : (uint8_t)rng_below(&r, 4);
        }
        struct pg_bind b;
        struct pg_parse q;
        struct pg_startup_pair pairs[8];
        size_t count = 0;
        if (pg_bind_decode(slice_of(p, n), &b) == SPAN_OK) {
            struct slice rest = b.params;
            for (size_t k = 0; k < b.param_count; k++) {
                struct pg_value v = pg_param_next(&rest);
                cr_assert(v.is_null || (v.text.size == 0) ||
                          (v.text.data >= p && v.text.data + v.text.size <= p + n));
            }
        }
        (void)(pg_parse_decode(slice_of(p, n), &q) == SPAN_OK);
        (void)(pg_startup_decode(slice_of(p, n), pairs, 8, &count) == SPAN_OK);
        span_free(p);
    }
}
