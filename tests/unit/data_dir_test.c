/* The data folder: one owner, one process at a time, nothing believed that is damaged. */
#include "base/alloc.h"
#include "base/codec.h"
#include "coordinator/data_dir.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char top[] = "/tmp/spanlite-data-XXXXXX";
static char *path;
static struct data_dir dir;
static struct span_error err;

static void setup(void)
{
    cr_assert_not_null(mkdtemp(top));
    path = span_asprintf("%s/a/node1", top);
}

static void teardown(void)
{
    char *command = span_asprintf("rm -rf '%s'", top);

    data_dir_close(&dir);
    cr_assert_eq(system(command), 0);
    span_free(command);
    span_free(path);
}

TestSuite(data_dir, .init = setup, .fini = teardown);

/* Node 1 of three nodes of the cluster "bank". */
static struct data_dir_owner owner(void)
{
    return (struct data_dir_owner){
        .cluster = "bank", .node = 1, .members = {1, 2, 3}, .member_count = 3};
}

static void reopen(void)
{
    struct data_dir_owner o = owner();

    data_dir_close(&dir);
    cr_assert_eq(data_dir_open(path, &o, &dir, &err), SPAN_OK, "%s", err.text);
    cr_assert(!dir.created);
}

static void create(bool throwaway)
{
    struct data_dir_owner o = owner();

    o.throwaway = throwaway;
    cr_assert_eq(data_dir_open(path, &o, &dir, &err), SPAN_OK, "%s", err.text);
    cr_assert(dir.created);
}

static void expect_refusal_of(span_status want, const struct data_dir_owner *o, const char *part)
{
    struct data_dir d;
    span_status st = data_dir_open(path, o, &d, &err);

    cr_assert_eq(st, want, "%s %s", span_status_name(st), err.text);
    cr_assert(strstr(err.text, part) != NULL, "'%s' does not say '%s'", err.text, part);
    cr_assert(strstr(err.text, top) != NULL, "'%s' does not name the folder", err.text);
    cr_assert_eq(d.lock_fd, -1);
    cr_assert_null(d.path);
}

static void expect_refusal(span_status want, const char *cluster, unsigned node, const char *part)
{
    struct data_dir_owner o = owner();

    o.cluster = cluster;
    o.node = node;
    expect_refusal_of(want, &o, part);
}

/* IDENTITY with this text and the right checksum. */
static void write_identity(const char *text)
{
    char *identity = span_asprintf("%s/IDENTITY", path);
    FILE *f = fopen(identity, "w");

    cr_assert_not_null(f);
    fprintf(f, "%scrc32c=%08x\n", text, crc32c(0, text, strlen(text)));
    cr_assert_eq(fclose(f), 0);
    span_free(identity);
}

Test(data_dir, is_created_with_its_parents_and_remembers_its_owner)
{
    uint64_t store_id;
    struct stat st;

    create(true);
    store_id = dir.store_id;
    cr_assert_eq(stat(path, &st), 0);
    cr_assert_eq(st.st_mode & 0777, 0700);
    reopen();
    cr_assert_eq(dir.store_id, store_id);
    cr_assert_eq(dir.node, 1);
    cr_assert_str_eq(dir.cluster, "bank");
    cr_assert(dir.throwaway, "the mark is the folder's, not this start's");
}

Test(data_dir, of_another_cluster_or_node_is_refused)
{
    create(false);
    data_dir_close(&dir);
    expect_refusal(SPAN_INVALID, "other", 1, "belongs to cluster 'bank', not 'other'");
    expect_refusal(SPAN_INVALID, "bank", 2, "belongs to node 1, not node 2");
}

Test(data_dir, of_a_cluster_of_other_nodes_is_refused)
{
    struct data_dir_owner o = owner();

    create(false);
    cr_assert_eq(dir.member_count, 3);
    reopen();
    cr_assert_eq(dir.member_count, 3);
    cr_assert_eq(dir.members[2], 3);
    data_dir_close(&dir);
    o.members[3] = 4;
    o.members[4] = 5;
    o.member_count = 5;
    expect_refusal_of(SPAN_INVALID, &o, "of the nodes 1, 2, 3, not 1, 2, 3, 4, 5");
    o.member_count = 1;
    expect_refusal_of(SPAN_INVALID, &o, "of the nodes 1, 2, 3, not 1:");
    o = owner();
    o.members[2] = 7;
    expect_refusal_of(SPAN_INVALID, &o, "of the nodes 1, 2, 3, not 1, 2, 7");
}

Test(data_dir, that_has_no_list_of_nodes_yet_is_taken)
{
    struct data_dir_owner o = owner();

    create(false);
    write_identity("spanlite=1\ncluster=bank\nnode=1\nstore=00000000000000ab\nthrowaway=no\n");
    reopen();
    cr_assert_eq(dir.member_count, 0);
    cr_assert_eq(dir.store_id, 0xab);
    data_dir_close(&dir);
    o.members[0] = 9;
    o.node = 2;
    expect_refusal_of(SPAN_INVALID, &o, "belongs to node 1, not node 2");
}

Test(data_dir, with_a_list_that_is_none_is_refused)
{
    static const char *const lists[] = {"",    "1,", ",1",   "1,,2", "2,1", "1,1",
                                        "1,x", "0",  "1 ,2", "65",   "-1",  "99999999999999999999"};

    create(false);
    data_dir_close(&dir);
    for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++) {
        char *text = span_asprintf("spanlite=2\ncluster=bank\nnode=1\nstore=1\nthrowaway=no\n"
                                   "members=%s\n",
                                   lists[i]);

        write_identity(text);
        expect_refusal(SPAN_CORRUPT, "bank", 1, "is not a list of nodes");
        span_free(text);
    }
    write_identity("spanlite=2\ncluster=bank\nnode=1\nstore=1\nthrowaway=no\n");
    expect_refusal(SPAN_CORRUPT, "bank", 1, "a line is missing");
    write_identity("spanlite=3\nwhatever=1\n");
    expect_refusal(SPAN_INVALID, "bank", 1, "newer spanlite (format 3");
}

Test(data_dir, can_be_looked_at_while_it_is_open)
{
    struct data_dir d;

    cr_assert_eq(data_dir_peek(path, &d, &err), SPAN_NOT_FOUND);
    data_dir_close(&d);
    cr_assert_neq(access(path, F_OK), 0, "looking makes nothing");
    create(false);
    cr_assert_eq(data_dir_peek(path, &d, &err), SPAN_OK, "%s", err.text);
    cr_assert_eq(d.node, 1);
    cr_assert_eq(d.member_count, 3);
    cr_assert_eq(d.lock_fd, -1);
    data_dir_close(&d);
    expect_refusal(SPAN_EXISTS, "bank", 1, "in use by process");
}

Test(data_dir, is_used_by_one_process_at_a_time)
{
    char pid[32];

    create(false);
    snprintf(pid, sizeof(pid), "in use by process %ld", (long)getpid());
    expect_refusal(SPAN_EXISTS, "bank", 1, pid);
}

Test(data_dir, is_free_again_after_its_process_was_killed)
{
    int status = 0;
    pid_t child = fork();

    if (child == 0) {
        struct data_dir_owner o = owner();

        if (data_dir_open(path, &o, &dir, &err) == SPAN_OK) {
            raise(SIGKILL);
        }
        _exit(1);
    }
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert(WIFSIGNALED(status));
    dir.lock_fd = -1; /* the child's */
    reopen();
}

Test(data_dir, unsafe_switches_need_the_mark)
{
    create(false);
    cr_assert_eq(data_dir_require_throwaway(&dir, "--unsafe-x", &err), SPAN_INVALID);
    cr_assert(strstr(err.text, "--unsafe-x") != NULL && strstr(err.text, path) != NULL);
    data_dir_close(&dir);
    path[strlen(path) - 1] = '2';
    create(true);
    cr_assert_eq(data_dir_require_throwaway(&dir, "--unsafe-x", &err), SPAN_OK);
}

/* Every byte of IDENTITY flipped in turn, and every shorter length: refused, never believed. */
Test(data_dir, a_damaged_identity_is_refused)
{
    char *identity = span_asprintf("%s/IDENTITY", path);
    char text[512];
    ssize_t n;
    int fd;

    create(false);
    data_dir_close(&dir);
    fd = open(identity, O_RDWR);
    n = read(fd, text, sizeof(text));
    cr_assert_gt(n, 60);
    for (ssize_t i = 0; i < n - 1; i++) { /* the last byte is the final newline */
        char flipped = (char)(text[i] ^ 1);

        cr_assert_eq(pwrite(fd, &flipped, 1, i), 1);
        expect_refusal(SPAN_CORRUPT, "bank", 1, "damaged");
        cr_assert_eq(pwrite(fd, &text[i], 1, i), 1);
    }
    for (ssize_t i = n - 2; i >= 0; i--) {
        cr_assert_eq(ftruncate(fd, i), 0);
        expect_refusal(SPAN_CORRUPT, "bank", 1, "damaged");
    }
    close(fd);
    span_free(identity);
}

Test(data_dir, a_folder_of_something_else_is_left_alone)
{
    char *file = span_asprintf("%s/photos.txt", top);
    FILE *f = fopen(file, "w");
    struct data_dir_owner o = owner();
    struct data_dir d;

    fclose(f);
    cr_assert_eq(data_dir_open(top, &o, &d, &err), SPAN_INVALID);
    cr_assert(strstr(err.text, "photos.txt") != NULL, "%s", err.text);
    span_free(file);
}

Test(data_dir, a_path_that_cannot_be_made_is_named)
{
    struct data_dir_owner o = owner();
    struct data_dir d;

    cr_assert_eq(data_dir_open("/proc/spanlite/x", &o, &d, &err), SPAN_IO);
    cr_assert(strstr(err.text, "/proc/spanlite") != NULL, "%s", err.text);
    cr_assert_eq(data_dir_open("/dev/null/x", &o, &d, &err), SPAN_IO);
}
