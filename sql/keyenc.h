/* Order-preserving encoding of SQL values: the byte order of encoded tuples is SQLite's order of
 * the values under each column's collation and direction (DESIGN 6). Everything below SQL sees only
 * these bytes.
 *
 * One value: a tag byte, then
 *   NULL  0x05
 *   number 0x10: the largest double not above the value, 8 bytes big-endian with the sign bit
 * flipped (all bits for negatives); if its magnitude is 2^53 or more, 2 bytes more with (value -
 * double) for integers, so that integers beyond a double's precision stay exact. 5 and 5.0 are one
 * key, as SQLite's UNIQUE wants it. text  0x20, blob 0x30: bytes with 0x00 written as 00 FF, ended
 * by 00 01. NOCASE folds A-Z and, as SQLite's collation does, compares only the length after an
 * embedded NUL; RTRIM drops spaces at the end. A DESC column has every byte inverted. No value's
 * encoding is a prefix of another's, so tuples are concatenations, and a tuple's prefix is a span:
 * [k, key_prefix_end(k)). */
#ifndef SPAN_SQL_KEYENC_H
#define SPAN_SQL_KEYENC_H

#include "sql/rowenc.h"

enum sql_collation {
    COLL_BINARY,
    COLL_NOCASE,
    COLL_RTRIM,
};

/* COLL_BINARY for NULL or ""; false for a name SQLite does not have built in. */
bool sql_collation_of(const char *name, enum sql_collation *out);
const char *sql_collation_name(enum sql_collation c);

/* 0x01, table id, index id. */
void key_index_prefix(struct buf *out, uint32_t table_id, uint16_t index_id);
/* First key of table id and first key after all of it. */
void key_table_start(struct buf *out, uint32_t table_id);
void key_table_end(struct buf *out, uint32_t table_id);
#define KEY_INDEX_PREFIX_BYTES 7
/* Ids out of a key; false if it is no table key. rest: what follows the prefix. */
bool key_parse_prefix(struct slice key, uint32_t *table_id, uint16_t *index_id, struct slice *rest);

void key_encode(struct buf *out, const struct sql_value *v, enum sql_collation coll, bool desc);
/* Takes one value off the front of *in. Numbers come back as integers where they are whole and
 * below 2^53 in magnitude, text as it was folded; scratch owns the bytes of text. False: malformed.
 */
bool key_decode(struct slice *in, bool desc, struct sql_value *v, struct buf *scratch);
/* Smallest key above every key with prefix k. */
void key_prefix_end(struct buf *out, struct slice k);

#endif
