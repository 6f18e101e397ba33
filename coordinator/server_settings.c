/* SETTINGS: name=value lines, closed by a CRC32C over all that stands before it.
 *
 *     truetime.epsilon=4000000ns
 *     raft.lease=250000000ns
 *     crc32c=5b1c90aa
 *
 * Files written before there was a checksum end without one and are read too. Written beside, with
 * fdatasync, then renamed, then the folder is synced: a crash leaves the old file or the new one.
 */
#include "coordinator/server_settings.h"

#include "base/alloc.h"
#include "base/buf.h"
#include "base/codec.h"
#include "base/limits.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SETTINGS_BYTES_MAX 4096
#define CRC_NAME           "crc32c="

static const struct field {
    const char *name;
    size_t offset;
    uint64_t min;
    uint64_t max;
} fields[] = {
    {"truetime.epsilon", offsetof(struct server_settings, epsilon_ns), 0, EPSILON_NS_MAX},
    {"raft.lease", offsetof(struct server_settings, lease_ns), 2 * LEASE_RENEW_NS, LEASE_NS_MAX},
};

enum { FIELD_COUNT = sizeof fields / sizeof fields[0] };

static uint64_t *field_of(struct server_settings *set, size_t i)
{
    return (uint64_t *)(void *)((char *)set + fields[i].offset);
}

/* ---- writing ---- */

static span_status fail_io(struct span_error *err, const char *what, const char *path)
{
    int code = errno;

    return span_fail(err, code == ENOSPC ? SPAN_NO_SPACE : SPAN_IO, "cannot %s %s: %s", what, path,
                     strerror(code));
}

static span_status write_synced(const char *path, struct slice text, struct span_error *err)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    ssize_t n;

    if (fd < 0) {
        return fail_io(err, "create", path);
    }
    n = write(fd, text.data, text.size);
    if (n >= 0 && n < (ssize_t)text.size) {
        errno = ENOSPC; /* so few bytes are cut short by a full disk only */
    }
    if (n != (ssize_t)text.size || fdatasync(fd) != 0) {
        span_status st = fail_io(err, "write", path);

        (void)close(fd);
        return st;
    }
    return close(fd) == 0 ? SPAN_OK : fail_io(err, "write", path);
}

static span_status sync_dir(const char *path, struct span_error *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    span_status st = SPAN_OK;

    if (fd < 0 || fsync(fd) != 0) {
        st = fail_io(err, "sync", path);
    }
    if (fd >= 0) {
        (void)close(fd);
    }
    return st;
}

span_status server_settings_write(const char *dir, const struct server_settings *set,
                                  struct span_error *err)
{
    struct server_settings copy = *set;
    char *path = span_asprintf("%s/SETTINGS", dir);
    char *temporary = span_asprintf("%s.new", path);
    struct buf text = {0};
    span_status st;

    for (size_t i = 0; i < FIELD_COUNT; i++) {
        buf_printf(&text, "%s=%lluns\n", fields[i].name, (unsigned long long)*field_of(&copy, i));
    }
    buf_printf(&text, CRC_NAME "%08x\n", crc32c(0, text.data, text.size));
    st = write_synced(temporary, buf_slice(&text), err);
    if (st == SPAN_OK && rename(temporary, path) != 0) {
        st = fail_io(err, "replace", path);
    }
    if (st == SPAN_OK) {
        st = sync_dir(dir, err);
    }
    buf_deinit(&text);
    span_free(path);
    span_free(temporary);
    return st;
}

/* ---- reading ---- */

struct reader {
    const char *path;
    const char *text;
    size_t line; /* from 1 */
    bool seen[FIELD_COUNT];
    struct server_settings *out;
    struct span_error *err;
};

static span_status fail_line(const struct reader *r, const char *line, const char *why)
{
    return span_fail(r->err, SPAN_CORRUPT,
                     "%s:%zu: '%.80s' %s (if the file cannot be restored: remove it and start with "
                     "an --epsilon not below the cluster's)",
                     r->path, r->line, line, why);
}

/* "4000000ns", nothing before, between or after. */
static bool read_ns(const char *text, uint64_t *out)
{
    char *end = NULL;

    if (!isdigit((unsigned char)*text)) {
        return false;
    }
    errno = 0;
    *out = strtoull(text, &end, 10);
    return errno == 0 && strcmp(end, "ns") == 0;
}

static span_status take_field(struct reader *r, const char *line, size_t i, const char *value)
{
    uint64_t ns = 0;

    if (!read_ns(value, &ns)) {
        return fail_line(r, line, "is not a time in ns");
    }
    if (ns < fields[i].min || ns > fields[i].max) {
        return fail_line(r, line, "is out of bounds");
    }
    if (r->seen[i]) {
        return fail_line(r, line, "stands there twice");
    }
    r->seen[i] = true;
    *field_of(r->out, i) = ns;
    return SPAN_OK;
}

static span_status take_line(struct reader *r, const char *line)
{
    for (size_t i = 0; i < FIELD_COUNT; i++) {
        size_t n = strlen(fields[i].name);

        if (strncmp(line, fields[i].name, n) == 0 && line[n] == '=') {
            return take_field(r, line, i, line + n + 1);
        }
    }
    return fail_line(r, line, "is no setting of this version");
}

/* The last line: nothing may follow it. */
static span_status take_crc(struct reader *r, const char *line, const char *behind)
{
    char want[sizeof CRC_NAME + 8];
    size_t before = (size_t)(line - r->text);

    (void)snprintf(want, sizeof want, CRC_NAME "%08x", crc32c(0, r->text, before));
    if (strncmp(line, want, strlen(want)) != 0 || line[strlen(want)] != '\n') {
        return fail_line(r, "crc32c", "does not match: the file is damaged");
    }
    return *behind == '\0' ? SPAN_OK : fail_line(r, "crc32c", "is not the last line");
}

static span_status take_text(struct reader *r)
{
    for (const char *at = r->text; *at != '\0';) {
        const char *end = strchr(at, '\n');
        bool is_crc = strncmp(at, CRC_NAME, strlen(CRC_NAME)) == 0;
        char *line = span_asprintf("%.*s", end != NULL ? (int)(end - at) : (int)strlen(at), at);
        span_status st;

        r->line++;
        if (end == NULL) {
            st = fail_line(r, line, "ends in its middle");
        } else {
            st = is_crc ? take_crc(r, at, end + 1) : take_line(r, line);
        }
        span_free(line);
        if (st != SPAN_OK) {
            return st;
        }
        at = end + 1;
    }
    r->line++;
    for (size_t i = 0; i < FIELD_COUNT; i++) {
        if (!r->seen[i]) {
            return fail_line(r, fields[i].name, "is missing: the file is cut off");
        }
    }
    return SPAN_OK;
}

span_status server_settings_read(const char *dir, struct server_settings *out,
                                 struct span_error *err)
{
    char *path = span_asprintf("%s/SETTINGS", dir);
    char text[SETTINGS_BYTES_MAX + 1];
    struct reader r = {.path = path, .text = text, .out = out, .err = err};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    span_status st = SPAN_OK;
    size_t n = 0;

    if (fd < 0) {
        st = errno == ENOENT ? SPAN_NOT_FOUND : fail_io(err, "open", path);
    } else {
        ssize_t got = read(fd, text, sizeof(text) - 1);
        st = got < 0 ? fail_io(err, "read", path) : SPAN_OK;
        n = got < 0 ? 0 : (size_t)got;
        (void)close(fd);
    }
    if (st == SPAN_OK) {
        text[n] = '\0';
        st = strlen(text) == n
                 ? take_text(&r)
                 : span_fail(err, SPAN_CORRUPT, "%s is damaged: it holds a zero byte", path);
    }
    span_free(path);
    return st;
}
