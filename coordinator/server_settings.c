/* Cluster settings that must hold from a node's first moment on (rule B10): the bound of its clock
 * may not be smaller after a restart than what the cluster was told before, and range 1, where the
 * settings lie, can only be read later. So each node keeps what it applied in a small file beside
 * IDENTITY, replaced before the change is acknowledged: name=value lines. */
#include "base/alloc.h"
#include "coordinator/server_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static span_status write_synced(const char *path, struct slice text)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) {
        return SPAN_IO;
    }
    bool ok = write(fd, text.data, text.size) == (ssize_t)text.size && fdatasync(fd) == 0;
    ok = close(fd) == 0 && ok;
    return ok ? SPAN_OK : SPAN_IO;
}

static void sync_dir(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)fsync(fd);
        (void)close(fd);
    }
}

span_status server_settings_save(const struct server *s, struct span_error *err)
{
    char *path = span_asprintf("%s/SETTINGS", s->data.path);
    char *temporary = span_asprintf("%s/SETTINGS.new", s->data.path);
    struct buf b = {0};
    buf_printf(&b, "truetime.epsilon=%lluns\nraft.lease=%lluns\n",
               (unsigned long long)s->options.epsilon_ns, (unsigned long long)s->options.lease_ns);
    span_status st = write_synced(temporary, buf_slice(&b));
    if (st == SPAN_OK && rename(temporary, path) != 0) {
        st = SPAN_IO;
    }
    if (st == SPAN_OK) {
        sync_dir(s->data.path);
    } else {
        st = span_fail(err, SPAN_IO, "%s: can not be written: %s", path, strerror(errno));
    }
    buf_deinit(&b);
    span_free(path);
    span_free(temporary);
    return st;
}

static void take_line(struct server *s, const char *line)
{
    unsigned long long ns = 0;
    if (sscanf(line, "truetime.epsilon=%lluns", &ns) == 1 && ns > s->options.epsilon_ns &&
        ns <= EPSILON_NS_MAX) {
        s->options.epsilon_ns = ns; /* never less than the flag: range 1 says later if it may be */
    } else if (sscanf(line, "raft.lease=%lluns", &ns) == 1 && ns >= 3 * LEASE_RENEW_NS &&
               ns <= LEASE_NS_MAX) {
        s->options.lease_ns = ns;
    }
}

void server_settings_load(struct server *s)
{
    char *path = span_asprintf("%s/SETTINGS", s->data.path);
    FILE *f = fopen(path, "re");
    char line[256];
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        take_line(s, line);
    }
    if (f != NULL) {
        (void)fclose(f);
    }
    if (s->options.lease_ns < 10 * s->options.epsilon_ns) {
        s->options.lease_ns =
            LEASE_NS_MAX < 10 * s->options.epsilon_ns ? LEASE_NS_MAX : 10 * s->options.epsilon_ns;
    }
    span_free(path);
}
