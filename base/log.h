/* Log lines: one event a line, logfmt (ts=… level=… node=… msg="…" key=value …), to a sink (stderr
 * by default). Thread-safe. SPAN_LOG(INFO, "what happened", "key=%d path=%s", value, path): spaces
 * in the format separate fields, values are quoted and escaped as needed (do not quote %s
 * yourself). An event without values is SPAN_LOG_MSG(INFO, "what happened"). */
#ifndef SPAN_BASE_LOG_H
#define SPAN_BASE_LOG_H

#include <stdbool.h>

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

/* Sink called with a whole line without the newline, one call at a time; it must not log itself. */
typedef void log_sink(void *ctx, enum log_level level, const char *line);

void log_set_level(enum log_level level);
bool log_level_parse(const char *text, enum log_level *out);
void log_set_sink(log_sink *sink, void *ctx);
/* Node number put on every line of this thread (several nodes may share a process); 0: none. */
void log_set_node(unsigned node);
bool log_enabled(enum log_level level);
void log_write(enum log_level level, const char *msg, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#define SPAN_LOG(level, msg, ...)                                                                  \
    (log_enabled(LOG_##level) ? log_write(LOG_##level, msg, __VA_ARGS__) : (void)0)
#define SPAN_LOG_MSG(level, msg) SPAN_LOG(level, msg, "%s", "")

#endif
