/* Messages of PostgreSQL's frontend/backend protocol, version 3: framing and decoding of what a
 * client sends, encoding of what a server answers. Pure functions over bytes; integers are
 * big-endian, strings end with a NUL. Decoded slices and strings borrow from the message.
 *
 * A regular message is: type (1 byte), length (4 bytes, counts itself but not the type), body.
 * Before the start-up there is no type byte: length, then a 4-byte code that is either a protocol
 * version or one of three magic requests. */
#ifndef SPAN_SQL_PGWIRE_PG_MSG_H
#define SPAN_SQL_PGWIRE_PG_MSG_H

#include "sql/pgwire/pg_session.h"

#define PG_PROTOCOL_3_0   196608u
#define PG_CODE_CANCEL    80877102u
#define PG_CODE_SSL       80877103u
#define PG_CODE_GSSENC    80877104u
#define PG_MSG_LENGTH_MAX 0x3fffffffu /* as PostgreSQL: longer ones are garbage */
#define PG_MSG_HEADER     5
#define PG_SPECIAL_HEADER 4

/* Client messages after the start-up. The value is the type byte. */
enum pg_front {
    PG_FRONT_BIND = 'B',
    PG_FRONT_CLOSE = 'C',
    PG_FRONT_DESCRIBE = 'D',
    PG_FRONT_EXECUTE = 'E',
    PG_FRONT_FUNCTION = 'F',
    PG_FRONT_FLUSH = 'H',
    PG_FRONT_PARSE = 'P',
    PG_FRONT_QUERY = 'Q',
    PG_FRONT_SYNC = 'S',
    PG_FRONT_TERMINATE = 'X',
    PG_FRONT_COPY_DATA = 'd',
    PG_FRONT_COPY_DONE = 'c',
    PG_FRONT_COPY_FAIL = 'f',
    PG_FRONT_PASSWORD = 'p', /* also SASLInitialResponse and SASLResponse */
};

/* Is it a type byte a client may send? */
bool pg_front_is_type(uint8_t type);

struct pg_frame {
    uint8_t type;      /* 0 for a message before the start-up */
    struct slice body; /* set when whole; the code of a start-up message is part of it */
    size_t total; /* bytes of the whole message, known as soon as the header is there; 0 before */
    bool whole;
};

/* Looks at the beginning of `in`. PROTOCOL: an unknown type byte or an impossible length. */
span_status pg_frame_decode(struct slice in, struct pg_frame *out) SPAN_CHECKED;
/* The same before the start-up; a length above `max` is PROTOCOL. */
span_status pg_special_decode(struct slice in, size_t max, struct pg_frame *out) SPAN_CHECKED;

struct pg_parse {
    struct slice name;
    struct slice sql;
    struct slice oids; /* oid_count big-endian 32-bit numbers: pg_oid_at() */
    size_t oid_count;
};

struct pg_bind {
    struct slice portal;
    struct slice stmt;
    struct slice param_formats; /* 16-bit numbers: pg_format_at() */
    size_t param_format_count;
    struct slice params; /* walk with pg_param_next() */
    size_t param_count;
    struct slice result_formats;
    size_t result_format_count;
};

struct pg_describe { /* also Close */
    uint8_t kind;    /* 'S' statement, 'P' portal */
    struct slice name;
};

struct pg_execute {
    struct slice portal;
    uint32_t max_rows; /* 0: all; a negative number from the client means the same */
};

/* All give PROTOCOL for a body that is too short, too long or holds impossible counts. */
span_status pg_parse_decode(struct slice body, struct pg_parse *out) SPAN_CHECKED;
span_status pg_bind_decode(struct slice body, struct pg_bind *out) SPAN_CHECKED;
span_status pg_describe_decode(struct slice body, struct pg_describe *out) SPAN_CHECKED;
span_status pg_execute_decode(struct slice body, struct pg_execute *out) SPAN_CHECKED;
span_status pg_query_decode(struct slice body, struct slice *sql) SPAN_CHECKED;
/* Sync, Flush, Terminate: an empty body. */
span_status pg_empty_decode(struct slice body) SPAN_CHECKED;

uint32_t pg_oid_at(const struct pg_parse *p, size_t i);
/* Format code of parameter or column i by the rule "none: all text; one: for all; else each". */
uint16_t pg_format_at(struct slice formats, size_t count, size_t i);
/* Takes the next parameter off *params; the message was checked by pg_bind_decode. */
struct pg_value pg_param_next(struct slice *params);

/* The key and value strings of a StartupMessage, after its version. */
struct pg_startup_pair {
    const char *name;
    const char *value;
};

/* Decodes up to max pairs. PROTOCOL: no terminator, or more pairs than max. */
span_status pg_startup_decode(struct slice pairs, struct pg_startup_pair *out, size_t max,
                              size_t *count) SPAN_CHECKED;
uint32_t pg_be32(const uint8_t *p);

/* What the server says. Each appends one whole message to `out`. */
void pg_put_auth_ok(struct buf *out);
void pg_put_negotiate(struct buf *out, uint32_t version, const char *const *names, size_t count);
void pg_put_parameter_status(struct buf *out, const char *name, const char *value);
void pg_put_backend_key(struct buf *out, uint32_t pid, uint32_t key);
void pg_put_ready(struct buf *out, char txn_status);
/* formats: NULL (all text) or one code a column. */
void pg_put_row_description(struct buf *out, const struct pg_column *cols, const uint16_t *formats,
                            size_t count);
void pg_put_data_row(struct buf *out, const struct pg_value *values, size_t count);
void pg_put_command_complete(struct buf *out, const char *tag);
void pg_put_parameter_description(struct buf *out, const uint32_t *oids, size_t count);
void pg_put_error(struct buf *out, const struct pg_error *e);
void pg_put_notice(struct buf *out, const struct pg_error *e);
/* Messages without a body: ParseComplete '1', BindComplete '2', CloseComplete '3',
 * EmptyQueryResponse 'I', NoData 'n', PortalSuspended 's'. */
void pg_put_simple(struct buf *out, char type);

/* Size PostgreSQL states for a type in RowDescription: 8 for int8, -1 for variable length. */
int16_t pg_type_size(uint32_t oid);

/* Binary formats, where the conversion from and to text is plain: bool, int2, int4, int8, oid,
 * float4, float8, bytea, text, varchar, json, unknown. */
bool pg_binary_supported(uint32_t oid);
/* Text to binary / binary to text, appended to out. INVALID: not a value of that type. UNSUPPORTED:
 * no conversion for it. */
span_status pg_text_to_binary(uint32_t oid, struct slice text, struct buf *out) SPAN_CHECKED;
span_status pg_binary_to_text(uint32_t oid, struct slice bin, struct buf *out) SPAN_CHECKED;

#endif
