/* The node table: changes, text, file. */
#include "base/alloc.h"
#include "coordinator/node_table.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct node_table three(void)
{
    struct node_table t = {.replicas = 3};
    struct span_error err;
    cr_assert_eq(node_table_add(&t, 2, "tcp://h:2", &err), SPAN_OK);
    cr_assert_eq(node_table_add(&t, 3, "tcp://h:3", &err), SPAN_OK);
    cr_assert_eq(node_table_add(&t, 1, "tcp://h:1", &err), SPAN_OK);
    return t;
}

static span_status change(struct node_table *t, const char *name, const char *value)
{
    struct span_error err;
    cr_assert(node_table_is_change(name));
    return node_table_change(t, name, value, &err);
}

Test(node_table, changes_raise_the_version_and_refusals_do_not)
{
    struct node_table t = three();
    cr_assert_eq(t.nodes[0].node, 1);
    cr_assert_eq(t.nodes[2].node, 3);
    cr_assert_eq(change(&t, "node.add", "4=tcp://h:4"), SPAN_OK);
    cr_assert_eq(t.version, 1);
    cr_assert_eq(t.count, 4);
    cr_assert_eq(change(&t, "node.drain", "4"), SPAN_OK);
    cr_assert_eq(node_table_find(&t, 4)->state, STORE_NODE_DRAINING);
    cr_assert_eq(change(&t, "node.activate", "4"), SPAN_OK);
    cr_assert_eq(change(&t, "node.remove", "3"), SPAN_INVALID); /* not leaving */
    cr_assert_eq(change(&t, "node.decommission", "3"), SPAN_OK);
    cr_assert_eq(change(&t, "node.remove", "3"), SPAN_OK);
    cr_assert_null(node_table_find(&t, 3));
    cr_assert_eq(change(&t, "cluster.replicas", "5"), SPAN_OK);
    cr_assert_eq(t.replicas, 5);
    uint64_t version = t.version;

    static const struct {
        const char *name;
        const char *value;
        span_status st;
    } bad[] = {
        {"node.drain", "3", SPAN_NOT_FOUND},       {"node.drain", "", SPAN_INVALID},
        {"node.drain", "1x", SPAN_INVALID},        {"node.add", "5", SPAN_INVALID},
        {"node.add", "0=tcp://h:1", SPAN_INVALID}, {"node.add", "65=tcp://h:1", SPAN_INVALID},
        {"node.add", "5=http://h", SPAN_INVALID},  {"node.add", "5=tcp://a b", SPAN_INVALID},
        {"node.add", "5=tcp://", SPAN_INVALID},    {"cluster.replicas", "0", SPAN_INVALID},
        {"cluster.replicas", "8", SPAN_INVALID},   {"cluster.replicas", "3 ", SPAN_INVALID},
    };

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cr_assert_eq(change(&t, bad[i].name, bad[i].value), bad[i].st, "%s = %s", bad[i].name,
                     bad[i].value);
    }
    cr_assert_eq(t.version, version);
    cr_assert_not(node_table_is_change("truetime.epsilon"));
}

Test(node_table, the_last_active_node_stays)
{
    struct node_table t = three();
    t.replicas = 1;
    cr_assert_eq(change(&t, "node.decommission", "1"), SPAN_OK);
    cr_assert_eq(change(&t, "node.drain", "2"), SPAN_OK);
    cr_assert_eq(change(&t, "node.drain", "3"), SPAN_INVALID);
    cr_assert_eq(change(&t, "node.decommission", "3"), SPAN_INVALID);
}

Test(node_table, a_number_in_use_is_not_given_away)
{
    struct node_table t = three();
    struct span_error err;
    cr_assert_eq(node_table_change(&t, "node.add", "3=tcp://other:3", &err), SPAN_EXISTS);
    cr_assert_not_null(strstr(err.text, "tcp://h:3"), "%s", err.text);
    cr_assert_str_eq(node_table_find(&t, 3)->url, "tcp://h:3");
    cr_assert_eq(change(&t, "node.add", "3=tcp://h:3"), SPAN_OK); /* the same again */
    cr_assert_eq(change(&t, "node.add", "4=tcp://h:3"), SPAN_EXISTS);
    cr_assert_eq(change(&t, "node.address", "4=tcp://h:4"), SPAN_NOT_FOUND);
    cr_assert_eq(change(&t, "node.address", "3=tcp://h:2"), SPAN_EXISTS);
    cr_assert_eq(change(&t, "node.address", "3=tcp://other:3"), SPAN_OK);
    cr_assert_str_eq(node_table_find(&t, 3)->url, "tcp://other:3");
    cr_assert_eq(node_table_change(&t, "node.drain", "99", &err), SPAN_INVALID);
    cr_assert_not_null(strstr(err.text, "there is no node 99"), "%s", err.text);
}

Test(node_table, who_leaves_leaves_enough_nodes_for_the_replicas)
{
    struct node_table t = three();
    struct span_error err;
    cr_assert_eq(node_table_change(&t, "node.decommission", "3", &err), SPAN_INVALID);
    cr_assert_not_null(strstr(err.text, "add a node first"), "%s", err.text);
    cr_assert_eq(node_table_find(&t, 3)->state, STORE_NODE_ACTIVE);
    cr_assert_eq(change(&t, "cluster.replicas", "2"), SPAN_OK);
    cr_assert_eq(change(&t, "node.decommission", "3"), SPAN_OK);
    cr_assert_eq(change(&t, "cluster.replicas", "3"), SPAN_OK);
    cr_assert_eq(change(&t, "node.decommission", "3"), SPAN_OK); /* goes on */
    cr_assert_eq(change(&t, "node.add", "4=tcp://h:4"), SPAN_OK);
    cr_assert_eq(change(&t, "node.add", "5=tcp://h:5"), SPAN_OK);
    cr_assert_eq(change(&t, "node.decommission", "1"), SPAN_OK);
}

Test(node_table, text_comes_back_and_damaged_text_is_refused)
{
    struct node_table t = three();
    struct node_table back;
    struct buf b = {0};
    cr_assert_eq(change(&t, "node.drain", "2"), SPAN_OK);
    node_table_encode(&t, &b);
    cr_assert_eq(node_table_decode(buf_slice(&b), &back), SPAN_OK);
    cr_assert_eq(memcmp(&t, &back, sizeof t), 0);

    static const char *const bad[] = {
        "",
        "version=1\n",
        "version=1\nreplicas=3\n",
        "version=0\nreplicas=3\n1 active tcp://h:1\n",
        "version=1\nreplicas=9\n1 active tcp://h:1\n",
        "version=1\nreplicas=3\n1 asleep tcp://h:1\n",
        "version=1\nreplicas=3\n1 active tcp://h:1 x\n",
        "version=1\nreplicas=3\n1 active tcp://h:1\n1 active tcp://h:1\n",
        "version=1\nreplicas=3\n0 active tcp://h:1\n",
    };

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cr_assert_eq(node_table_decode(slice_str(bad[i]), &back), SPAN_CORRUPT, "%s", bad[i]);
    }
    buf_deinit(&b);
}

Test(node_table, the_file_is_whole_or_refused)
{
    char dir[] = "/tmp/node_table_test.XXXXXX";
    struct node_table t = three();
    struct node_table back;
    struct span_error err = {0};
    cr_assert_not_null(mkdtemp(dir));
    char *path = span_asprintf("%s/NODES", dir);
    cr_assert_eq(node_table_read(dir, &back, &err), SPAN_NOT_FOUND);
    t.version = 7;
    cr_assert_eq(node_table_write(dir, &t, &err), SPAN_OK, "%s", err.text);
    cr_assert_eq(node_table_read(dir, &back, &err), SPAN_OK, "%s", err.text);
    cr_assert_eq(memcmp(&t, &back, sizeof t), 0);
    struct stat sb;
    cr_assert_eq(stat(path, &sb), 0);
    for (long i = 0; i < (long)sb.st_size - 1; i++) { /* the last byte is a line's end */
        FILE *f = fopen(path, "r+");
        cr_assert_not_null(f);
        cr_assert_eq(fseek(f, i, SEEK_SET), 0);
        int c = fgetc(f);
        cr_assert_eq(fseek(f, i, SEEK_SET), 0);
        (void)fputc(c ^ 1, f);
        (void)fclose(f);
        cr_assert_eq(node_table_read(dir, &back, &err), SPAN_CORRUPT, "byte %ld", i);
        f = fopen(path, "r+");
        cr_assert_not_null(f);
        cr_assert_eq(fseek(f, i, SEEK_SET), 0);
        (void)fputc(c, f);
        (void)fclose(f);
    }
    cr_assert_eq(node_table_read(dir, &back, &err), SPAN_OK);
    cr_assert_eq(unlink(path), 0);
    cr_assert_eq(rmdir(dir), 0);
    span_free(path);
}
