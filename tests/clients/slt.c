/* sqllogictest runner (file format: the corpus's README). Runs .test files
 *
 *   slt --direct FILE...            in process, over tests/lib/kv_mem
 *   slt --url URL [--split N] FILE... over libpq; with --split, before the first query after
 * inserts into a table it is split so that it lies in at least N ranges
 *
 * Prints one line a file and the records that failed (the first --show of them, default 5). Exit 0:
 * all passed, 1: some failed, 2: could not run. Runs as engine "sqlite". */
#include "base/alloc.h"
#include "base/map.h"
#include "sql/session.h"
#include "tests/lib/kv_mem.h"
#include "tests/lib/sql_client.h"

#include <libpq-fe.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#define TABLES_MAX 64

struct cell {
    char *text; /* NULL: NULL */
};

struct result {
    bool ok;
    char error[1200];
    size_t rows;
    size_t columns;
    struct cell *cells;
    unsigned *types;
};

struct engine {
    PGconn *pg; /* NULL: direct */
    struct kv_mem_store *store;
    struct schema_cache *cache;
    struct sql_session *session;
    struct sql_client client;
    const char *url;
};

struct table {
    char *name;
    bool has_rows;
    bool split;
};

struct run {
    struct engine *e;
    const char *file;
    unsigned split;
    unsigned show;
    unsigned line;
    unsigned passed;
    unsigned failed;
    unsigned skipped;
    struct table tables[TABLES_MAX];
    size_t table_count;
    struct mapb labels; /* label -> MD5 text */
};

static void result_deinit(struct result *r)
{
    for (size_t i = 0; i < r->rows * r->columns; i++) {
        span_free(r->cells[i].text);
    }
    span_free(r->cells);
    span_free(r->types);
    memset(r, 0, sizeof *r);
}

/* --- engines --- */

static bool engine_open(struct engine *e)
{
    if (e->url != NULL) {
        e->pg = PQconnectdb(e->url);
        if (PQstatus(e->pg) != CONNECTION_OK) {
            fprintf(stderr, "slt: %s", PQerrorMessage(e->pg));
            return false;
        }
        return true;
    }
    struct sql_session_options opt = {.user = "slt", .database = "slt", .seed = 1};
    struct span_error err = {0};
    e->store = kv_mem_store_new();
    e->cache = schema_cache_new();
    e->session = sql_session_new(kv_mem_new(e->store), e->cache, &opt, &err);
    if (e->session == NULL) {
        fprintf(stderr, "slt: %s\n", err.text);
        return false;
    }
    sql_client_init(&e->client, sql_session_pg(e->session));
    return true;
}

static void engine_close(struct engine *e)
{
    if (e->pg != NULL) {
        PQfinish(e->pg);
        e->pg = NULL;
        return;
    }
    if (e->session != NULL) {
        sql_client_deinit(&e->client);
        sql_session_free(e->session);
        schema_cache_free(e->cache);
        kv_mem_store_free(e->store);
        e->session = NULL;
    }
}

static void exec_pg(struct engine *e, const char *sql, struct result *r)
{
    PGresult *p = PQexec(e->pg, sql);
    ExecStatusType st = PQresultStatus(p);
    r->ok = st == PGRES_COMMAND_OK || st == PGRES_TUPLES_OK || st == PGRES_EMPTY_QUERY;
    if (!r->ok) {
        snprintf(r->error, sizeof r->error, "%s", PQresultErrorMessage(p));
    } else if (st == PGRES_TUPLES_OK) {
        r->rows = (size_t)PQntuples(p);
        r->columns = (size_t)PQnfields(p);
        r->cells = span_calloc(r->rows * r->columns + 1, sizeof *r->cells);
        r->types = span_calloc(r->columns + 1, sizeof *r->types);
        for (size_t i = 0; i < r->rows * r->columns; i++) {
            int row = (int)(i / r->columns);
            int col = (int)(i % r->columns);
            if (!PQgetisnull(p, row, col)) {
                r->cells[i].text = span_strdup(PQgetvalue(p, row, col));
            }
        }
        for (size_t i = 0; i < r->columns; i++) {
            r->types[i] = PQftype(p, (int)i);
        }
    }
    PQclear(p);
}

static void exec_direct(struct engine *e, const char *sql, struct result *r)
{
    struct sql_client *c = &e->client;
    r->ok = sql_client_query(c, sql);
    if (!r->ok) {
        snprintf(r->error, sizeof r->error, "%s %s", c->code, c->message);
        return;
    }
    r->rows = c->rows;
    r->columns = c->columns;
    r->cells = span_calloc(r->rows * r->columns + 1, sizeof *r->cells);
    r->types = span_calloc(r->columns + 1, sizeof *r->types);
    size_t at = 0;
    for (size_t i = 0; i < r->rows * r->columns; i++) {
        uint32_t size = 0;
        memcpy(&size, c->cells.data + at + 1, sizeof size);
        if (c->cells.data[at] == 0) {
            r->cells[i].text = span_strdup((const char *)c->cells.data + at + 5);
        }
        at += 6 + (size_t)size;
    }
    for (size_t i = 0; i < r->columns; i++) {
        r->types[i] = c->types[i];
    }
}

static void engine_exec(struct engine *e, const char *sql, struct result *r)
{
    memset(r, 0, sizeof *r);
    if (e->pg != NULL) {
        exec_pg(e, sql, r);
    } else {
        exec_direct(e, sql, r);
    }
}

/* --- rendering --- */

static char *render(const char *text, char type, unsigned oid)
{
    char out[512];
    if (text == NULL) {
        return span_strdup("NULL");
    }
    if (type == 'I') {
        long long v = strtoll(text, NULL, 10);
        if (strpbrk(text, ".eE") != NULL && text[0] != '\0') {
            double d = strtod(text, NULL);
            v = d >= 9.2e18 ? INT64_MAX : d <= -9.2e18 ? INT64_MIN : (long long)d;
        }
        snprintf(out, sizeof out, "%d", (int)v);
        return span_strdup(out);
    }
    if (type == 'R') {
        snprintf(out, sizeof out, "%.3f", strtod(text, NULL));
        return span_strdup(out);
    }
    if (text[0] == '\0') {
        return span_strdup("(empty)");
    }
    if (oid == 701) { /* the corpus has SQLite's text of a real */
        sqlite3_snprintf((int)sizeof out, out, "%!.15g", strtod(text, NULL));
        return span_strdup(out);
    }
    char *copy = span_strdup(text);
    for (char *p = copy; *p != '\0'; p++) {
        if ((unsigned char)*p < 0x20 || (unsigned char)*p > 0x7e) {
            *p = '@';
        }
    }
    return copy;
}

static size_t sort_columns;

static int cmp_rows(const void *a, const void *b)
{
    char *const *x = a;
    char *const *y = b;
    for (size_t i = 0; i < sort_columns; i++) {
        int c = strcmp(x[i], y[i]);
        if (c != 0) {
            return c;
        }
    }
    return 0;
}

static void md5_of(char **values, size_t n, char out[33])
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned len = 0;
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    EVP_DigestInit_ex(ctx, EVP_md5(), NULL);
    for (size_t i = 0; i < n; i++) {
        EVP_DigestUpdate(ctx, values[i], strlen(values[i]));
        EVP_DigestUpdate(ctx, "\n", 1);
    }
    EVP_DigestFinal_ex(ctx, digest, &len);
    EVP_MD_CTX_free(ctx);
    for (unsigned i = 0; i < 16; i++) {
        snprintf(out + 2 * i, 3, "%02x", digest[i]);
    }
}

/* --- records --- */

static void report(struct run *r, const char *sql, const char *why)
{
    r->failed++;
    if (r->failed <= r->show) {
        printf("%s:%u: %s\n    %.300s\n", r->file, r->line, why, sql);
    }
}

static void note_table(struct run *r, const char *sql)
{
    char name[128];
    char verb[32];
    if (sscanf(sql, " %31s", verb) != 1) {
        return;
    }
    if (strcasecmp(verb, "CREATE") == 0 && sscanf(sql, " %*s TABLE %127[^( \t\n]", name) == 1 &&
        r->table_count < TABLES_MAX) {
        r->tables[r->table_count++] = (struct table){.name = span_strdup(name)};
    }
    bool insert = strcasecmp(verb, "INSERT") == 0 || strcasecmp(verb, "REPLACE") == 0;
    for (size_t i = 0; insert && i < r->table_count; i++) {
        if (strstr(sql, r->tables[i].name) != NULL) {
            r->tables[i].has_rows = true;
        }
    }
    for (size_t i = 0; strcasecmp(verb, "DROP") == 0 && i < r->table_count; i++) {
        if (strstr(sql, r->tables[i].name) != NULL && strcasestr(sql, "TABLE") != NULL) {
            span_free(r->tables[i].name);
            r->tables[i] = r->tables[--r->table_count];
            break;
        }
    }
}

/* SELECT of a table's keys as SQL literals, in key order. */
static void keys_of(struct run *r, const char *table, struct result *keys)
{
    struct result ix;
    struct buf sql = {0};
    struct buf cols = {0};
    buf_printf(&sql, "SHOW INDEXES FROM %s", table);
    engine_exec(r->e, buf_cstr(&sql), &ix);
    for (size_t i = 0; ix.ok && i < ix.rows; i++) {
        const char *primary = ix.cells[i * ix.columns + 3].text;
        if (primary != NULL && primary[0] == 't') {
            char *list = span_strdup(ix.cells[i * ix.columns + 1].text);
            char *save = NULL;
            for (char *c = strtok_r(list, ",", &save); c != NULL; c = strtok_r(NULL, ",", &save)) {
                c += strspn(c, " ");
                c[strcspn(c, " ")] = '\0';
                buf_printf(&cols, "%squote(%s)", cols.size == 0 ? "" : "||','||", c);
            }
            span_free(list);
        }
    }
    result_deinit(&ix);
    buf_clear(&sql);
    buf_printf(&sql, "SELECT %s FROM %s ORDER BY 1",
               cols.size == 0 ? "quote(rowid)" : buf_cstr(&cols), table);
    engine_exec(r->e, buf_cstr(&sql), keys);
    buf_deinit(&sql);
    buf_deinit(&cols);
}

static bool split_table(struct run *r, struct table *t)
{
    struct result keys;
    struct result done;
    struct buf sql = {0};
    keys_of(r, t->name, &keys);
    bool ok = keys.ok;
    if (ok && keys.rows >= r->split) {
        buf_printf(&sql, "ALTER TABLE %s SPLIT AT VALUES ", t->name);
        for (unsigned i = 1; i < r->split; i++) {
            buf_printf(&sql, "%s(%s)", i == 1 ? "" : ", ",
                       keys.cells[i * keys.rows / r->split].text);
        }
        engine_exec(r->e, buf_cstr(&sql), &done);
        ok = done.ok;
        if (!ok) {
            fprintf(stderr, "slt: %s: %s\n", buf_cstr(&sql), done.error);
        }
        result_deinit(&done);
        t->split = true;
    } else if (!ok) {
        fprintf(stderr, "slt: keys of %s: %s\n", t->name, keys.error);
    }
    result_deinit(&keys);
    buf_deinit(&sql);
    return ok;
}

static void split_all(struct run *r)
{
    for (size_t i = 0; r->split > 1 && i < r->table_count; i++) {
        if (r->tables[i].has_rows && !r->tables[i].split && !split_table(r, &r->tables[i])) {
            r->failed++;
            r->tables[i].split = true;
        }
    }
}

static void run_statement(struct run *r, const char *sql, bool want_ok)
{
    struct result res;
    engine_exec(r->e, sql, &res);
    if (res.ok == want_ok) {
        r->passed++;
        if (res.ok) {
            note_table(r, sql);
        }
    } else {
        report(r, sql, res.ok ? "should have failed" : res.error);
    }
    result_deinit(&res);
}

static bool check_label(struct run *r, const char *label, const char *md5)
{
    if (label[0] == '\0') {
        return true;
    }
    char *old = mapb_get(&r->labels, slice_str(label));
    if (old == NULL) {
        mapb_put(&r->labels, slice_str(label), span_strdup(md5));
        return true;
    }
    return strcmp(old, md5) == 0;
}

static const char *compare(struct run *r, char **values, size_t n, const char *label,
                           char *const *want, size_t want_count)
{
    char md5[33];
    char hash_line[80];
    md5_of(values, n, md5);
    if (!check_label(r, label, md5)) {
        return "differs from an earlier query of the same label";
    }
    if (want_count == 1 && strstr(want[0], " values hashing to ") != NULL) {
        snprintf(hash_line, sizeof hash_line, "%zu values hashing to %s", n, md5);
        return strcmp(hash_line, want[0]) == 0 ? NULL : "hash differs";
    }
    if (n != want_count) {
        return "number of values differs";
    }
    for (size_t i = 0; i < n; i++) {
        if (strcmp(values[i], want[i]) != 0) {
            static char why[700];
            snprintf(why, sizeof why, "value %zu is \"%.300s\", expected \"%.300s\"", i, values[i],
                     want[i]);
            return why;
        }
    }
    return NULL;
}

static void run_query(struct run *r, const char *sql, const char *types, const char *mode,
                      const char *label, char *const *want, size_t want_count)
{
    struct result res;
    split_all(r);
    engine_exec(r->e, sql, &res);
    if (!res.ok) {
        report(r, sql, res.error);
        result_deinit(&res);
        return;
    }
    if (res.columns != strlen(types) && res.rows > 0) {
        report(r, sql, "number of columns differs");
        result_deinit(&res);
        return;
    }
    size_t n = res.rows * res.columns;
    char **values = span_calloc(n + 1, sizeof *values);
    for (size_t i = 0; i < n; i++) {
        values[i] = render(res.cells[i].text, types[i % res.columns], res.types[i % res.columns]);
    }
    if (strcmp(mode, "rowsort") == 0 && res.rows > 1) {
        sort_columns = res.columns;
        qsort(values, res.rows, res.columns * sizeof *values, cmp_rows);
    } else if (strcmp(mode, "valuesort") == 0 && n > 1) {
        sort_columns = 1;
        qsort(values, n, sizeof *values, cmp_rows);
    }
    const char *why = compare(r, values, n, label, want, want_count);
    if (why == NULL) {
        r->passed++;
    } else {
        report(r, sql, why);
    }
    for (size_t i = 0; i < n; i++) {
        span_free(values[i]);
    }
    span_free(values);
    result_deinit(&res);
}

/* One record: lines[0 .. n) without comments. False: halt. */
static bool run_record(struct run *r, char **lines, size_t n)
{
    bool skip = false;
    size_t i = 0;
    for (; i < n; i++) {
        char name[64] = "";
        if (sscanf(lines[i], "skipif %63s", name) == 1) {
            skip = skip || strcasecmp(name, "sqlite") == 0;
        } else if (sscanf(lines[i], "onlyif %63s", name) == 1) {
            skip = skip || strcasecmp(name, "sqlite") != 0;
        } else {
            break;
        }
    }
    if (i == n) {
        return true;
    }
    if (skip) {
        r->skipped++;
        return true;
    }
    char kind[32] = "";
    char a[300] = "";
    char mode[32] = "nosort";
    char label[128] = "";
    sscanf(lines[i], "%31s %299s %31s %127s", kind, a, mode, label);
    if (mode[0] == '#') {
        snprintf(mode, sizeof mode, "nosort");
    }
    label[0] = label[0] == '#' ? '\0' : label[0];
    if (strcmp(kind, "halt") == 0) {
        return false;
    }
    if (strcmp(kind, "statement") != 0 && strcmp(kind, "query") != 0) {
        return true; /* hash-threshold */
    }
    struct buf sql = {0};
    size_t k = i + 1;
    for (; k < n && strcmp(lines[k], "----") != 0; k++) {
        buf_printf(&sql, "%s%s", sql.size == 0 ? "" : "\n", lines[k]);
    }
    if (strcmp(kind, "statement") == 0) {
        run_statement(r, buf_cstr(&sql), strcmp(a, "ok") == 0);
    } else {
        run_query(r, buf_cstr(&sql), a, mode, label, k + 1 < n ? &lines[k + 1] : NULL,
                  k + 1 < n ? n - k - 1 : 0);
    }
    buf_deinit(&sql);
    return true;
}

/* Records of a file, one after the other. */
static bool run_lines(struct run *r, FILE *f)
{
    char **lines = NULL;
    size_t n = 0;
    size_t cap = 0;
    char *line = NULL;
    size_t line_cap = 0;
    unsigned at = 0;
    bool go = true;
    for (bool end = false; !end && go;) {
        ssize_t len = getline(&line, &line_cap, f);
        end = len < 0;
        at++;
        if (!end) {
            while (len > 0 && (line[len - 1] == '\n' || line[len - 1] == '\r')) {
                line[--len] = '\0';
            }
        }
        if (!end && len > 0 && line[0] != '#') {
            if (n == cap) {
                cap = cap == 0 ? 64 : cap * 2;
                lines = span_realloc(lines, cap * sizeof *lines);
            }
            r->line = n == 0 ? at : r->line;
            lines[n++] = span_strdup(line);
        }
        if ((end || len == 0) && n > 0) {
            go = run_record(r, lines, n);
            while (n > 0) {
                span_free(lines[--n]);
            }
        }
    }
    span_free(lines);
    free(line);
    return true;
}

/* A script begins with an empty database. */
static void drop_everything(struct engine *e)
{
    struct result all;
    engine_exec(e, "SHOW TABLES", &all);
    for (size_t i = 0; all.ok && i < all.rows; i++) {
        struct result r;
        char sql[512];
        snprintf(sql, sizeof sql, "DROP %s \"%s\"", all.cells[i * all.columns + 1].text,
                 all.cells[i * all.columns].text);
        engine_exec(e, sql, &r);
        result_deinit(&r);
    }
    result_deinit(&all);
}

static bool run_file(struct engine *e, const char *path, unsigned split, unsigned show)
{
    struct run r = {.e = e, .file = path, .split = split, .show = show};
    FILE *f = fopen(path, "r");
    if (f == NULL) {
        perror(path);
        return false;
    }
    mapb_init(&r.labels);
    if (!engine_open(e)) {
        exit(2);
    }
    if (e->url != NULL) {
        drop_everything(e);
    }
    run_lines(&r, f);
    fclose(f);
    engine_close(e);
    printf("%s: %u passed, %u failed, %u skipped\n", path, r.passed, r.failed, r.skipped);
    fflush(stdout);
    size_t pos = 0;
    struct slice key;
    for (char *p; (p = mapb_next(&r.labels, &pos, &key)) != NULL;) {
        span_free(p);
    }
    mapb_deinit(&r.labels);
    for (size_t i = 0; i < r.table_count; i++) {
        span_free(r.tables[i].name);
    }
    return r.failed == 0;
}

int main(int argc, char **argv)
{
    struct engine e = {0};
    bool direct = false;
    unsigned split = 0;
    unsigned show = 5;
    int i = 1;
    for (; i < argc && strncmp(argv[i], "--", 2) == 0; i++) {
        if (strcmp(argv[i], "--direct") == 0) {
            direct = true;
        } else if (strcmp(argv[i], "--url") == 0 && i + 1 < argc) {
            e.url = argv[++i];
        } else if (strcmp(argv[i], "--split") == 0 && i + 1 < argc) {
            split = (unsigned)strtoul(argv[++i], NULL, 10);
        } else if (strcmp(argv[i], "--show") == 0 && i + 1 < argc) {
            show = (unsigned)strtoul(argv[++i], NULL, 10);
        } else {
            break;
        }
    }
    if (!direct && e.url == NULL) {
        e.url = getenv("SPANLITE_URL");
    }
    if (i >= argc || (!direct && e.url == NULL)) {
        fprintf(stderr, "usage: slt (--direct | --url URL) [--split N] [--show N] FILE...\n");
        return 2;
    }
    bool ok = true;
    for (; i < argc; i++) {
        ok = run_file(&e, argv[i], split, show) && ok;
    }
    return ok ? 0 : 1;
}
