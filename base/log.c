/* logfmt lines: ts=2024-05-01T12:00:00.123456Z level=info node=2 msg="..." key=value ...
 *
 * The caller writes its values as one printf format of space-separated key=value fields. Spaces in
 * the format end a field; spaces that come out of a conversion do not, so that "path=%s size=%zu"
 * is right for any path: the separators in the format are replaced by a control byte before
 * formatting, the result is cut at those, and each value is quoted where logfmt wants it. A double
 * quote in the format only groups (text="%s of %s"). A line is composed first and handed over
 * whole, in one write. */
#include "base/log.h"

#include "base/alloc.h"
#include "base/buf.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#define FIELD_END       '\x1f' /* ASCII unit separator */
#define VALUE_BYTES_MAX 2048   /* a peer's text must not flood the log */
#define LINE_BYTES_MAX  16384

static _Atomic int log_level_now = LOG_INFO;
static pthread_mutex_t sink_lock = PTHREAD_MUTEX_INITIALIZER;
static log_sink *sink_fn;
static void *sink_ctx;
static _Thread_local unsigned log_node;

static const char *const level_names[] = {
    [LOG_DEBUG] = "debug", [LOG_INFO] = "info", [LOG_WARN] = "warn", [LOG_ERROR] = "error"};

void log_set_level(enum log_level level)
{
    atomic_store_explicit(&log_level_now, (int)level, memory_order_relaxed);
}

bool log_level_parse(const char *text, enum log_level *out)
{
    for (int i = LOG_DEBUG; i <= LOG_ERROR; i++) {
        if (strcmp(text, level_names[i]) == 0) {
            *out = (enum log_level)i;
            return true;
        }
    }
    return false;
}

void log_set_sink(log_sink *sink, void *ctx)
{
    pthread_mutex_lock(&sink_lock);
    sink_fn = sink;
    sink_ctx = ctx;
    pthread_mutex_unlock(&sink_lock);
}

void log_set_node(unsigned node)
{
    log_node = node;
}

bool log_enabled(enum log_level level)
{
    return (int)level >= atomic_load_explicit(&log_level_now, memory_order_relaxed);
}

static bool value_is_bare(const uint8_t *v, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (v[i] <= ' ' || v[i] == '"' || v[i] == '=' || v[i] == '\\' || v[i] == 0x7f) {
            return false;
        }
    }
    return n > 0;
}

static void append_value(struct buf *line, const uint8_t *v, size_t n, bool always_quote)
{
    const bool cut = n > VALUE_BYTES_MAX;

    if (cut) {
        n = VALUE_BYTES_MAX;
        while (n > 0 && (v[n] & 0xc0) == 0x80) {
            n--; /* not in the middle of a UTF-8 character */
        }
    }
    if (!cut && !always_quote && value_is_bare(v, n)) {
        buf_append(line, v, n);
        return;
    }
    buf_append_byte(line, '"');
    for (size_t i = 0; i < n; i++) {
        if (v[i] == '"' || v[i] == '\\') {
            buf_append_byte(line, '\\');
            buf_append_byte(line, v[i]);
        } else if (v[i] == '\n') {
            buf_append_str(line, "\\n");
        } else if (v[i] < ' ' || v[i] == 0x7f) {
            buf_printf(line, "\\x%02x", v[i]);
        } else {
            buf_append_byte(line, v[i]);
        }
    }
    buf_append_str(line, cut ? "...\"" : "\"");
}

/* The format with FIELD_END for its separating spaces and without its grouping quotes. */
static void mark_fields(struct buf *marked, const char *fmt)
{
    bool quoted = false;

    for (const char *p = fmt; *p; p++) {
        if (*p == '%' && p[1]) {
            /* Flags may hold a space ("% d"): copied up to the conversion. */
            do {
                buf_append_byte(marked, (uint8_t)*p++);
            } while (*p && strchr(" +-#0", *p));
            if (!*p) {
                return;
            }
            buf_append_byte(marked, (uint8_t)*p);
        } else if (*p == '"') {
            quoted = !quoted;
        } else {
            buf_append_byte(marked, *p == ' ' && !quoted ? (uint8_t)FIELD_END : (uint8_t)*p);
        }
    }
}

static void append_fields(struct buf *line, const struct buf *fields)
{
    size_t start = 0;

    for (size_t i = 0; i <= fields->size; i++) {
        const uint8_t *field = NULL;
        const uint8_t *eq = NULL;
        size_t size = 0;

        if (i < fields->size && fields->data[i] != FIELD_END) {
            continue;
        }
        size = i - start;
        if (size > 0 && line->size < LINE_BYTES_MAX) {
            field = fields->data + start;
            eq = memchr(field, '=', size);
            buf_append_byte(line, ' ');
            if (eq) {
                const size_t name = (size_t)(eq - field) + 1;

                buf_append(line, field, name);
                append_value(line, field + name, size - name, false);
            } else {
                buf_append_str(line, "text="); /* a field without a name: still valid logfmt */
                append_value(line, field, size, false);
            }
        }
        start = i + 1;
    }
}

static void append_time(struct buf *line)
{
    struct timespec now = {0};
    struct tm tm = {0};

    (void)clock_gettime(CLOCK_REALTIME, &now);
    (void)gmtime_r(&now.tv_sec, &tm);
    buf_printf(line, "ts=%04d-%02d-%02dT%02d:%02d:%02d.%06ldZ", tm.tm_year + 1900, tm.tm_mon + 1,
               tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec, now.tv_nsec / 1000);
}

static void emit(enum log_level level, struct buf *line)
{
    log_sink *fn = NULL;

    pthread_mutex_lock(&sink_lock);
    fn = sink_fn;
    if (fn) {
        fn(sink_ctx, level, buf_cstr(line));
    }
    pthread_mutex_unlock(&sink_lock);
    if (!fn) {
        ssize_t written = 0;

        buf_append_byte(line, '\n');
        written = write(STDERR_FILENO, line->data, line->size);
        (void)written; /* a log that cannot be written is not a reason to stop */
    }
}

void log_write(enum log_level level, const char *msg, const char *fmt, ...)
{
    struct buf line = {0};
    struct buf marked = {0};
    struct buf fields = {0};
    va_list ap;
    va_list again;
    int n = 0;
    /* Allocations that are to fail are counted without those of the log: a run goes the same way
     * whatever its level is. */
    uint64_t left = span_alloc_left();
    if (left != 0) {
        span_alloc_fail_at(0);
    }

    append_time(&line);
    buf_printf(&line, " level=%s", level_names[level]);
    if (log_node) {
        buf_printf(&line, " node=%u", log_node);
    }
    buf_append_str(&line, " msg=");
    append_value(&line, (const uint8_t *)msg, strlen(msg), true);

    mark_fields(&marked, fmt);
    va_start(ap, fmt);
    va_copy(again, ap);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    n = vsnprintf(NULL, 0, buf_cstr(&marked), ap);
    if (n > 0) {
        (void)vsnprintf((char *)buf_grow(&fields, (size_t)n + 1), (size_t)n + 1, buf_cstr(&marked),
                        again);
        fields.size = (size_t)n;
    }
#pragma GCC diagnostic pop
    va_end(again);
    va_end(ap);
    append_fields(&line, &fields);
    emit(level, &line);

    buf_deinit(&fields);
    buf_deinit(&marked);
    buf_deinit(&line);
    if (left != 0) {
        span_alloc_fail_at(left);
    }
}
