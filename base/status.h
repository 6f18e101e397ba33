/* The one status type of spanlite.
 *
 * Every function that can fail returns span_status; 0 is success. The table below is the only list
 * of codes: it gives each its text and its kind. Kinds decide what a caller may do: RETRY may be
 * tried again unchanged, CALLER is the caller's fault and will fail again, CORRUPT stops the range
 * or the process, SYSTEM is the machine's (disk, memory). UNKNOWN is its own kind: a commit whose
 * answer was lost is never reported as aborted (rule C11). A status that crosses the wire keeps its
 * number, so numbers are never reused. sql/sqlstate.c is the only map to SQLSTATE. */
#ifndef SPAN_BASE_STATUS_H
#define SPAN_BASE_STATUS_H

#include <stddef.h>

/* X(name, number, kind, text) */
#define SPAN_STATUS_TABLE(X)                                                                       \
    X(OK, 0, NONE, "ok")                                                                           \
    X(CONFLICT, 1, RETRY, "transaction conflicts with another one")                                \
    X(WOUNDED, 2, RETRY, "transaction was wounded by an older one")                                \
    X(NOT_LEADER, 3, RETRY, "this replica does not lead the range")                                \
    X(UNAVAILABLE, 4, RETRY, "range or node is not available")                                     \
    X(STALE_DESCRIPTOR, 5, RETRY, "range descriptor is out of date")                               \
    X(STALE_SCHEMA, 6, RETRY, "schema version is out of date")                                     \
    X(OVERLOADED, 7, RETRY, "too much work queued")                                                \
    X(DEADLINE, 8, RETRY, "deadline passed")                                                       \
    X(CLOCK, 9, RETRY, "clock is outside its bound")                                               \
    X(LOCKS_LOST, 10, RETRY, "locks of the transaction were lost")                                 \
    X(WOULD_WAIT, 11, RETRY, "would have to wait")                                                 \
    X(ABORTED, 12, RETRY, "transaction was aborted")                                               \
    X(UNKNOWN_OUTCOME, 20, UNKNOWN, "outcome of the commit is unknown")                            \
    X(INVALID, 30, CALLER, "invalid argument")                                                     \
    X(NOT_FOUND, 31, CALLER, "not found")                                                          \
    X(EXISTS, 32, CALLER, "already exists")                                                        \
    X(TOO_LARGE, 33, CALLER, "larger than the limit")                                              \
    X(UNSUPPORTED, 34, CALLER, "not supported")                                                    \
    X(CANCELED, 35, CALLER, "canceled")                                                            \
    X(BELOW_HORIZON, 36, CALLER, "timestamp is older than the version window")                     \
    X(IN_FUTURE, 37, CALLER, "timestamp lies in the future")                                       \
    X(PROTOCOL, 38, CALLER, "protocol violation")                                                  \
    X(CORRUPT, 50, CORRUPT, "data is corrupt")                                                     \
    X(NOMEM, 60, SYSTEM, "out of memory")                                                          \
    X(IO, 61, SYSTEM, "input/output error")                                                        \
    X(NO_SPACE, 62, SYSTEM, "no space left on device")                                             \
    X(CLOSED, 63, SYSTEM, "closed")                                                                \
    X(INTERNAL, 64, SYSTEM, "internal error")

typedef enum span_status {

#define X(name, number, kind, text) SPAN_##name = (number),
    SPAN_STATUS_TABLE(X)
#undef X
} span_status;

enum span_kind {
    SPAN_KIND_NONE,
    SPAN_KIND_RETRY,
    SPAN_KIND_UNKNOWN,
    SPAN_KIND_CALLER,
    SPAN_KIND_CORRUPT,
    SPAN_KIND_SYSTEM,
};

#define SPAN_CHECKED           __attribute__((warn_unused_result))
#define SPAN_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))

/* Text of a code, "unknown status" for a number that is not in the table. Static storage. */
const char *span_status_text(span_status st);
/* Name of a code ("NOT_LEADER"). Static storage. */
const char *span_status_name(span_status st);
enum span_kind span_status_kind(span_status st);
/* A number from the wire as a status; INTERNAL if it is not in the table. */
span_status span_status_from_wire(unsigned number);

/* A status with one clear sentence that names what and where. Embedded by the caller. */
struct span_error {
    span_status code;
    char text[1024];
};

/* Fills err (may be NULL) and returns code, so that `return span_fail(err, SPAN_IO, ...)` reads
 * well. */
span_status span_fail(struct span_error *err, span_status code, const char *fmt, ...)
    SPAN_PRINTF(3, 4);

#endif
