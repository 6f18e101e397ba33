/* The node table as text, one line a node, both in its row and in its file:
 *
 *     version=7
 *     replicas=3
 *     1 active tcp://10.0.0.1:7100
 *     4 draining tcp://10.0.0.4:7100
 *     crc32c=5b1c90aa          (the file only)
 */
#include "coordinator/node_table.h"

#include "base/alloc.h"
#include "base/codec.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILE_BYTES_MAX (32 * KIB)

static const char *const state_names[] = {[STORE_NODE_ACTIVE] = "active",
                                          [STORE_NODE_DRAINING] = "draining",
                                          [STORE_NODE_LEAVING] = "leaving"};

enum { STATE_COUNT = sizeof state_names / sizeof *state_names };

const char *node_state_name(enum store_node_state state)
{
    return state_names[state];
}

struct node_entry *node_table_find(struct node_table *t, node_id node)
{
    for (size_t i = 0; i < t->count; i++) {
        if (t->nodes[i].node == node) {
            return &t->nodes[i];
        }
    }
    return NULL;
}

static bool is_peer_url(const char *url)
{
    static const char *const schemes[] = {"tcp://", "ipc://", "inproc://"};
    bool known = false;
    for (size_t i = 0; i < sizeof schemes / sizeof *schemes; i++) {
        size_t n = strlen(schemes[i]);
        known = known || (strncmp(url, schemes[i], n) == 0 && url[n] != '\0');
    }
    return known && strlen(url) < NODE_URL_BYTES && strpbrk(url, " \t\r\n") == NULL;
}

span_status node_table_add(struct node_table *t, node_id node, const char *url,
                           struct span_error *err)
{
    if (node == 0 || node > LIMIT_PEERS) {
        return span_fail(err, SPAN_INVALID, "node %u: numbers are 1 to %d", node, LIMIT_PEERS);
    }
    if (!is_peer_url(url)) {
        return span_fail(err, SPAN_INVALID,
                         "'%.100s' is not a peer address (tcp://host:port or ipc:///path)", url);
    }
    struct node_entry *e = node_table_find(t, node);
    if (e == NULL) {
        if (t->count == LIMIT_PEERS) {
            return span_fail(err, SPAN_INVALID, "at most %d nodes", LIMIT_PEERS);
        }
        size_t at = t->count++;
        while (at > 0 && t->nodes[at - 1].node > node) {
            t->nodes[at] = t->nodes[at - 1];
            at--;
        }
        e = &t->nodes[at];
        *e = (struct node_entry){.node = node};
    }
    (void)snprintf(e->url, sizeof e->url, "%s", url);
    return SPAN_OK;
}

/* ---- changes ---- */

static span_status parse_id(const char *value, const char **rest, node_id *out,
                            struct span_error *err)
{
    char *end = NULL;
    unsigned long id = value[0] >= '0' && value[0] <= '9' ? strtoul(value, &end, 10) : 0;
    if (end == NULL) {
        return span_fail(err, SPAN_INVALID, "'%.60s' does not begin with a node's number", value);
    }
    if (id == 0 || id > LIMIT_PEERS) {
        return span_fail(err, SPAN_INVALID, "there is no node %.*s: numbers are 1 to %d",
                         (int)(end - value > 20 ? 20 : end - value), value, LIMIT_PEERS);
    }
    *out = (node_id)id;
    *rest = end;
    return SPAN_OK;
}

/* A new node, or (moves) another address of one that is there: nobody takes a number that is in use
 * by mistake, and its node away from the others with it. */
static span_status change_address(struct node_table *t, bool moves, const char *value,
                                  struct span_error *err)
{
    const char *rest;
    node_id id;
    span_status st = parse_id(value, &rest, &id, err);
    if (st != SPAN_OK) {
        return st;
    }
    if (*rest != '=') {
        return span_fail(err, SPAN_INVALID, "'%.60s' is not NUMBER=URL", value);
    }
    const char *url = rest + 1;
    const struct node_entry *e = node_table_find(t, id);
    if (moves && e == NULL) {
        return span_fail(err, SPAN_NOT_FOUND, "there is no node %u", id);
    }
    if (!moves && e != NULL && strcmp(e->url, url) != 0) {
        return span_fail(
            err, SPAN_EXISTS,
            "number %u is taken by the node at %s: choose a number no node has had, or "
            "give that node another address with 'spanlite node move-address'",
            id, e->url);
    }
    for (size_t i = 0; i < t->count; i++) {
        if (t->nodes[i].node != id && strcmp(t->nodes[i].url, url) == 0) {
            return span_fail(err, SPAN_EXISTS, "%.100s is the address of node %u", url,
                             t->nodes[i].node);
        }
    }
    return node_table_add(t, id, url, err);
}

/* Those that stay are to hold every replica that there is to be. */
static span_status check_enough_stay(const struct node_table *t, const struct node_entry *goes,
                                     struct span_error *err)
{
    size_t stay = 0;
    for (size_t i = 0; i < t->count; i++) {
        stay += t->nodes[i].state != STORE_NODE_LEAVING && &t->nodes[i] != goes ? 1 : 0;
    }
    if (goes->state == STORE_NODE_LEAVING || stay >= t->replicas) {
        return SPAN_OK;
    }
    return span_fail(
        err, SPAN_INVALID,
        "node %u can not leave: %zu node%s would stay for %u replicas of every range; "
        "add a node first ('spanlite node add'), or SET CLUSTER cluster.replicas = %zu",
        goes->node, stay, stay == 1 ? "" : "s", t->replicas, stay);
}

static span_status take_out(struct node_table *t, const struct node_entry *e,
                            struct span_error *err)
{
    if (e->state != STORE_NODE_LEAVING) {
        return span_fail(err, SPAN_INVALID, "node %u is not being decommissioned", e->node);
    }
    size_t at = (size_t)(e - t->nodes);
    memmove(&t->nodes[at], &t->nodes[at + 1], (t->count - at - 1) * sizeof *t->nodes);
    t->count--;
    return SPAN_OK;
}

static span_status change_state(struct node_table *t, const char *name, const char *value,
                                struct span_error *err)
{
    const char *rest;
    node_id id;
    span_status st = parse_id(value, &rest, &id, err);
    if (st == SPAN_OK && *rest != '\0') {
        st = span_fail(err, SPAN_INVALID, "'%.60s' is not a node's number", value);
    }
    struct node_entry *e = st == SPAN_OK ? node_table_find(t, id) : NULL;
    if (st == SPAN_OK && e == NULL) {
        st = span_fail(err, SPAN_NOT_FOUND, "there is no node %u", id);
    }
    if (st != SPAN_OK) {
        return st;
    }
    if (strcmp(name, "node.remove") == 0) {
        return take_out(t, e, err);
    }
    enum store_node_state to = strcmp(name, "node.drain") == 0          ? STORE_NODE_DRAINING
                               : strcmp(name, "node.decommission") == 0 ? STORE_NODE_LEAVING
                                                                        : STORE_NODE_ACTIVE;
    size_t others = 0;
    for (size_t i = 0; i < t->count; i++) {
        others += t->nodes[i].state == STORE_NODE_ACTIVE && t->nodes[i].node != id ? 1 : 0;
    }
    if (to != STORE_NODE_ACTIVE && others == 0) {
        return span_fail(err, SPAN_INVALID, "node %u is the last active one", id);
    }
    st = to == STORE_NODE_LEAVING ? check_enough_stay(t, e, err) : SPAN_OK;
    if (st != SPAN_OK) {
        return st;
    }
    e->state = to;
    return SPAN_OK;
}

static span_status change_replicas(struct node_table *t, const char *value, struct span_error *err)
{
    char *end = NULL;
    unsigned long n = value[0] >= '0' && value[0] <= '9' ? strtoul(value, &end, 10) : 0;
    if (n < 1 || n > LIMIT_REPLICAS || *end != '\0') {
        return span_fail(err, SPAN_INVALID, "cluster.replicas: '%.60s' is not 1 to %d", value,
                         LIMIT_REPLICAS);
    }
    t->replicas = (uint32_t)n;
    return SPAN_OK;
}

bool node_table_is_change(const char *name)
{
    static const char *const names[] = {"node.add",        "node.address",      "node.activate",
                                        "node.drain",      "node.decommission", "node.remove",
                                        "cluster.replicas"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(names[i], name) == 0) {
            return true;
        }
    }
    return false;
}

span_status node_table_change(struct node_table *t, const char *name, const char *value,
                              struct span_error *err)
{
    span_status st = strcmp(name, "node.add") == 0           ? change_address(t, false, value, err)
                     : strcmp(name, "node.address") == 0     ? change_address(t, true, value, err)
                     : strcmp(name, "cluster.replicas") == 0 ? change_replicas(t, value, err)
                                                             : change_state(t, name, value, err);
    t->version += st == SPAN_OK ? 1 : 0;
    return st;
}

/* ---- text ---- */

void node_table_encode(const struct node_table *t, struct buf *out)
{
    buf_printf(out, "version=%llu\nreplicas=%u\n", (unsigned long long)t->version, t->replicas);
    for (size_t i = 0; i < t->count; i++) {
        buf_printf(out, "%u %s %s\n", t->nodes[i].node, node_state_name(t->nodes[i].state),
                   t->nodes[i].url);
    }
}

static bool take_line(struct node_table *t, const char *line)
{
    unsigned id = 0;
    char state[16];
    char url[NODE_URL_BYTES];
    int used = 0;
    if (sscanf(line, "%u %15s %199s%n", &id, state, url, &used) != 3 || line[used] != '\0' ||
        node_table_find(t, id) != NULL || node_table_add(t, id, url, NULL) != SPAN_OK) {
        return false;
    }
    struct node_entry *e = node_table_find(t, id);
    for (unsigned i = 0; i < STATE_COUNT && e != NULL; i++) {
        if (strcmp(state, state_names[i]) == 0) {
            e->state = (enum store_node_state)i;
            return true;
        }
    }
    return false;
}

span_status node_table_decode(struct slice s, struct node_table *out)
{
    struct buf copy = {0};
    char *save = NULL;
    unsigned long long version = 0;
    unsigned replicas = 0;
    span_status st = SPAN_OK;
    *out = (struct node_table){0};
    buf_set(&copy, s);
    char *text = (char *)(uintptr_t)buf_cstr(&copy);
    size_t number = 0;
    for (char *line = strtok_r(text, "\n", &save); line != NULL && st == SPAN_OK;
         line = strtok_r(NULL, "\n", &save), number++) {
        bool good = number == 0   ? sscanf(line, "version=%llu", &version) == 1
                    : number == 1 ? sscanf(line, "replicas=%u", &replicas) == 1
                                  : take_line(out, line);
        st = good ? SPAN_OK : SPAN_CORRUPT;
    }
    buf_deinit(&copy);
    out->version = version;
    out->replicas = replicas;
    return number < 3 || version == 0 || replicas > LIMIT_REPLICAS ? SPAN_CORRUPT : st;
}

void node_table_to_store(const struct node_table *t, struct store_nodes *out)
{
    *out = (struct store_nodes){.version = t->version, .replicas = t->replicas, .count = t->count};
    for (size_t i = 0; i < t->count; i++) {
        out->nodes[i] = (struct store_node){t->nodes[i].node, t->nodes[i].state};
    }
}

/* ---- file ---- */

static span_status fail_io(struct span_error *err, const char *what, const char *path)
{
    int code = errno;
    return span_fail(err, code == ENOSPC ? SPAN_NO_SPACE : SPAN_IO, "cannot %s %s: %s", what, path,
                     strerror(code));
}

static span_status write_synced(const char *path, struct slice text, struct span_error *err)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) {
        return fail_io(err, "create", path);
    }
    ssize_t n = write(fd, text.data, text.size);
    if (n != (ssize_t)text.size || fdatasync(fd) != 0) {
        errno = n >= 0 && n < (ssize_t)text.size ? ENOSPC : errno;
        span_status st = fail_io(err, "write", path);
        (void)close(fd);
        return st;
    }
    return close(fd) == 0 ? SPAN_OK : fail_io(err, "write", path);
}

span_status node_table_write(const char *dir, const struct node_table *t, struct span_error *err)
{
    char *path = span_asprintf("%s/NODES", dir);
    char *temporary = span_asprintf("%s.new", path);
    struct buf text = {0};
    node_table_encode(t, &text);
    buf_printf(&text, "crc32c=%08x\n", crc32c(0, text.data, text.size));
    span_status st = write_synced(temporary, buf_slice(&text), err);
    if (st == SPAN_OK && rename(temporary, path) != 0) {
        st = fail_io(err, "replace", path);
    }
    int fd = st == SPAN_OK ? open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (st == SPAN_OK && (fd < 0 || fsync(fd) != 0)) {
        st = fail_io(err, "sync", dir);
    }
    if (fd >= 0) {
        (void)close(fd);
    }
    buf_deinit(&text);
    span_free(path);
    span_free(temporary);
    return st;
}

span_status node_table_read(const char *dir, struct node_table *out, struct span_error *err)
{
    char *path = span_asprintf("%s/NODES", dir);
    char *text = span_calloc(1, FILE_BYTES_MAX + 1);
    span_status st = SPAN_OK;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, FILE_BYTES_MAX);
    if (fd < 0 && errno == ENOENT) {
        st = SPAN_NOT_FOUND;
    } else if (n < 0) {
        st = fail_io(err, "read", path);
    } else {
        char *crc = strstr(text, "crc32c=");
        size_t size = crc == NULL ? 0 : (size_t)(crc - text);
        if (crc == NULL || strtoul(crc + 7, NULL, 16) != crc32c(0, text, size) ||
            node_table_decode(slice_of(text, size), out) != SPAN_OK) {
            st = span_fail(err, SPAN_CORRUPT,
                           "%s is damaged (restore it, or write the cluster's nodes to it: it says "
                           "where the other nodes are)",
                           path);
        }
    }
    if (fd >= 0) {
        (void)close(fd);
    }
    span_free(text);
    span_free(path);
    return st;
}
