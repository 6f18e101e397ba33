/* The log's format: what checks out, what must not. */
#include "base/rng.h"
#include "shard/wal/wal_segment.h"

#include <criterion/criterion.h>

#define STORE 0x1122334455667788ULL

Test(wal_segment, header_survives_and_any_flipped_bit_is_refused)
{
    uint8_t sector[SEG_SECTOR_BYTES];
    struct seg_header h = {7, STORE, 65536};
    struct seg_header back;
    struct span_error err;
    seg_header_encode(&h, sector);
    cr_assert_eq(seg_header_decode(sector, sizeof sector, "f", 7, STORE, &back, &err), SPAN_OK);
    cr_assert(back.id == 7 && back.store_id == STORE && back.bytes == 65536);
    for (size_t bit = 0; bit < sizeof sector * 8; bit++) {
        sector[bit / 8] ^= (uint8_t)(1U << bit % 8);
        cr_assert_neq(seg_header_decode(sector, sizeof sector, "f", 7, STORE, &back, &err), SPAN_OK,
                      "bit %zu", bit);
        sector[bit / 8] ^= (uint8_t)(1U << bit % 8);
    }
    cr_assert_eq(seg_header_decode(sector, 511, "f", 7, STORE, &back, &err), SPAN_CORRUPT);
}

Test(wal_segment, header_errors_say_what_is_wrong)
{
    uint8_t sector[SEG_SECTOR_BYTES];
    struct seg_header back;
    struct span_error err;
    seg_header_encode(&(struct seg_header){7, STORE, 65536}, sector);
    cr_assert_eq(seg_header_decode(sector, sizeof sector, "d/f", 7, STORE + 1, &back, &err),
                 SPAN_INVALID);
    cr_assert(strstr(err.text, "d/f") != NULL && strstr(err.text, "store") != NULL);
    cr_assert_eq(seg_header_decode(sector, sizeof sector, "d/f", 8, STORE, &back, &err),
                 SPAN_CORRUPT);
    memset(sector, 'x', 8);
    cr_assert_eq(seg_header_decode(sector, sizeof sector, "d/f", 7, STORE, &back, &err),
                 SPAN_CORRUPT);
    cr_assert(strstr(err.text, "magic") != NULL);
}

Test(wal_segment, names_parse_back_and_others_do_not)
{
    char name[SEG_NAME_BYTES];
    uint64_t id = 0;
    seg_name(0x1234567890abcdefULL, name);
    cr_assert_str_eq(name, "wal-1234567890abcdef.seg");
    cr_assert(seg_name_parse(name, &id) && id == 0x1234567890abcdefULL);
    const char *bad[] = {"wal-1234567890abcdef.sex",
                         "wal-1234567890abcdeg.seg",
                         "reserve",
                         "",
                         "wal-0000000000000000.seg",
                         "wal-1234567890abcdef.seg2",
                         "wal-1234567890ABCDEF.seg"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cr_assert_not(seg_name_parse(bad[i], &id), "%s", bad[i]);
    }
}

/* A segment image with one unit of two records at its first place. */
static void unit_make(struct buf *seg, struct unit *u)
{
    buf_init(seg);
    memset(buf_grow(seg, SEG_SECTOR_BYTES), 0, SEG_SECTOR_BYTES);
    size_t at = unit_begin(seg);
    record_encode(seg,
                  &(struct wal_record){
                      .kind = WAL_STICKY, .type = 3, .range = 9, .payload = slice_str("vote")});
    record_encode(seg, &(struct wal_record){.kind = WAL_ENTRY,
                                            .type = 1,
                                            .range = 9,
                                            .index = 12,
                                            .term = 4,
                                            .payload = slice_str("payload")});
    *u = (struct unit){.seq = 5,
                       .durable = 4,
                       .oldest = 1,
                       .newest = 3,
                       .prev = 2,
                       .flags = UNIT_HEAD,
                       .record_count = 2};
    unit_seal(seg, at, 3, STORE, u);
}

Test(wal_segment, unit_gives_back_its_header_and_records)
{
    struct buf seg;
    struct unit u;
    unit_make(&seg, &u);
    cr_assert_eq(seg.size, 2 * SEG_SECTOR_BYTES);
    struct unit got;
    cr_assert(unit_check(seg.data, seg.size, SEG_SECTOR_BYTES, 3, STORE, &got));
    cr_assert(got.seq == 5 && got.durable == 4 && got.oldest == 1 && got.newest == 3);
    cr_assert(got.prev == 2 && got.flags == UNIT_HEAD && got.record_count == 2);
    struct record_cursor c = record_cursor_of(got.records);
    struct wal_record r;
    cr_assert_eq(record_next(&c, &r), 1);
    cr_assert(r.kind == WAL_STICKY && r.type == 3 && r.range == 9);
    cr_assert(slice_eq(r.payload, slice_str("vote")));
    cr_assert_eq(record_next(&c, &r), 1);
    cr_assert(r.kind == WAL_ENTRY && r.index == 12 && r.term == 4 && r.type == 1);
    cr_assert(slice_eq(r.payload, slice_str("payload")));
    cr_assert_eq(record_next(&c, &r), 0);
    buf_deinit(&seg);
}

Test(wal_segment, unit_of_another_segment_or_store_or_with_any_flipped_bit_does_not_check_out)
{
    struct buf seg;
    struct unit u;
    unit_make(&seg, &u);
    cr_assert_not(unit_check(seg.data, seg.size, SEG_SECTOR_BYTES, 4, STORE, &u));
    cr_assert_not(unit_check(seg.data, seg.size, SEG_SECTOR_BYTES, 3, STORE + 1, &u));
    cr_assert_not(unit_check(seg.data, seg.size - 1, SEG_SECTOR_BYTES, 3, STORE, &u));
    cr_assert_not(unit_check(seg.data, seg.size, 0, 3, STORE, &u));
    for (size_t bit = SEG_SECTOR_BYTES * 8; bit < seg.size * 8; bit++) {
        seg.data[bit / 8] ^= (uint8_t)(1U << bit % 8);
        cr_assert_not(unit_check(seg.data, seg.size, SEG_SECTOR_BYTES, 3, STORE, &u), "bit %zu",
                      bit);
        seg.data[bit / 8] ^= (uint8_t)(1U << bit % 8);
    }
    cr_assert(unit_check(seg.data, seg.size, SEG_SECTOR_BYTES, 3, STORE, &u));
    buf_deinit(&seg);
}

Test(wal_segment, random_bytes_are_never_read_out_of_bounds)
{
    struct rng r;
    rng_init(&r, 42);
    uint8_t bytes[256];
    for (int round = 0; round < 20000; round++) {
        size_t n = (size_t)rng_below(&r, sizeof bytes + 1);
        for (size_t i = 0; i < n; i++) {
            bytes[i] = (uint8_t)rng_below(&r, 4);
        }
        /* A heap copy of exactly n bytes, so that a sanitizer sees one byte too far. */
        struct buf copy = {0};
        buf_append(&copy, bytes, n);
        struct record_cursor c = record_cursor_of(buf_slice(&copy));
        struct wal_record rec;
        int got;
        size_t seen = 0;
        while ((got = record_next(&c, &rec)) == 1) {
            seen += rec.payload.size;
        }
        cr_assert(got <= 0 && seen <= n);
        buf_deinit(&copy);
    }
}

Test(wal_segment, small_files_refuse_damage_and_other_stores)
{
    struct buf b = {0};
    struct span_error err;
    struct seg_clean c = {5, 4096, 99};
    struct seg_clean back;
    clean_encode(&c, STORE, &b);
    cr_assert_eq(clean_decode(buf_slice(&b), "clean", STORE, &back, &err), SPAN_OK);
    cr_assert(back.segment_id == 5 && back.offset == 4096 && back.seq == 99);
    cr_assert_eq(clean_decode(buf_slice(&b), "clean", STORE + 1, &back, &err), SPAN_INVALID);
    for (size_t bit = 0; bit < b.size * 8; bit++) {
        b.data[bit / 8] ^= (uint8_t)(1U << bit % 8);
        cr_assert_neq(clean_decode(buf_slice(&b), "clean", STORE, &back, &err), SPAN_OK);
        b.data[bit / 8] ^= (uint8_t)(1U << bit % 8);
    }
    cr_assert_eq(clean_decode(slice_of(b.data, b.size - 1), "clean", STORE, &back, &err),
                 SPAN_CORRUPT);
    identity_encode(STORE, &b);
    cr_assert_eq(identity_decode(buf_slice(&b), "identity", STORE, &err), SPAN_OK);
    cr_assert_eq(identity_decode(buf_slice(&b), "identity", 1, &err), SPAN_INVALID);
    cr_assert(strstr(err.text, "identity") != NULL);
    buf_deinit(&b);
}
