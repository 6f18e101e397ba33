/* Texts, names and kinds of the status codes, all expanded from the one table in status.h, so that
 * a code cannot exist without them. */
#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>

const char *span_status_text(span_status st)
{
    switch (st) {
#define X(name, number, kind, text)                                                                \
    case SPAN_##name:                                                                              \
        return text;
        SPAN_STATUS_TABLE(X)
#undef X
    }
    return "unknown status";
}

const char *span_status_name(span_status st)
{
    switch (st) {
#define X(name, number, kind, text)                                                                \
    case SPAN_##name:                                                                              \
        return #name;
        SPAN_STATUS_TABLE(X)
#undef X
    }
    return "UNKNOWN_STATUS";
}

enum span_kind span_status_kind(span_status st)
{
    static const struct {
        span_status code;
        enum span_kind kind;
    } kinds[] = {

#define X(name, number, kind, text) {SPAN_##name, SPAN_KIND_##kind},
        SPAN_STATUS_TABLE(X)
#undef X
    };

    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (kinds[i].code == st) {
            return kinds[i].kind;
        }
    }
    return SPAN_KIND_SYSTEM;
}

span_status span_status_from_wire(unsigned number)
{
    switch (number) {
#define X(name, value, kind, text)                                                                 \
    case value:                                                                                    \
        return SPAN_##name;
        SPAN_STATUS_TABLE(X)
#undef X
    default:
        return SPAN_INTERNAL;
    }
}

span_status span_fail(struct span_error *err, span_status code, const char *fmt, ...)
{
    if (err) {
        va_list ap;

        err->code = code;
        va_start(ap, fmt);
        (void)vsnprintf(err->text, sizeof err->text, fmt, ap);
        va_end(ap);
    }
    return code;
}
