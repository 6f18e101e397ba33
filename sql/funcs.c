/* SQL functions of a session: SQLite's own that must be ours (random and friends repeat within a
 * statement, rule G2; printf cannot be interrupted, so its widths are capped) and PostgreSQL's that
 * clients expect. */
#include "base/alloc.h"
#include "base/limits.h"
#include "sql/session_impl.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#define PRINTF_WIDTH_MAX 10000
#define RANDOMBLOB_MAX   (1 << 20)

static struct sql_session *session_of(sqlite3_context *ctx)
{
    return sqlite3_user_data(ctx);
}

static void f_random(sqlite3_context *ctx, int n, sqlite3_value **v)
{
    (void)n;
    (void)v;
    sqlite3_result_int64(ctx, (sqlite3_int64)rng_u64(&session_of(ctx)->rng));
}

static void f_randomblob(sqlite3_context *ctx, int n, sqlite3_value **v)
{
    (void)n;
    sqlite3_int64 size = sqlite3_value_int64(v[0]);
    size = size < 1 ? 1 : size;
    if (size > RANDOMBLOB_MAX) {
        sqlite3_result_error_toobig(ctx);
        return;
    }
    uint8_t *p = span_malloc((size_t)size);
    for (sqlite3_int64 i = 0; i < size; i++) {
        p[i] = (uint8_t)rng_u64(&session_of(ctx)->rng);
    }
    sqlite3_result_blob64(ctx, p, (sqlite3_uint64)size, SQLITE_TRANSIENT);
    span_free(p);
}

static void f_uuid(sqlite3_context *ctx, int n, sqlite3_value **v)
{
    (void)n;
    (void)v;
    struct rng *r = &session_of(ctx)->rng;
    uint64_t a = (rng_u64(r) & ~0xf000ULL) | 0x4000ULL;
    uint64_t b = (rng_u64(r) & ~(3ULL << 62)) | 2ULL << 62;
    char text[40];
    snprintf(text, sizeof text, "%08x-%04x-%04x-%04x-%012llx", (unsigned)(a >> 32),
             (unsigned)(a >> 16 & 0xffff), (unsigned)(a & 0xffff), (unsigned)(b >> 48),
             (unsigned long long)(b & 0xffffffffffffULL));
    sqlite3_result_text(ctx, text, -1, SQLITE_TRANSIENT);
}

static void f_now(sqlite3_context *ctx, int n, sqlite3_value **v)
{
    (void)n;
    (void)v;
    int64_t ms = session_of(ctx)->now_ms;
    time_t secs = (time_t)(ms / 1000);
    struct tm tm;
    char text[64];
    gmtime_r(&secs, &tm);
    size_t len = strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &tm);
    snprintf(text + len, sizeof text - len, ".%03d+00", (int)(ms % 1000));
    sqlite3_result_text(ctx, text, -1, SQLITE_TRANSIENT);
}

static void result_str(sqlite3_context *ctx, const char *s)
{
    sqlite3_result_text(ctx, s, -1, SQLITE_TRANSIENT);
}

static void f_version(sqlite3_context *ctx, int n, sqlite3_value **v)
{
    (void)n;
    (void)v;
    result_str(ctx, "PostgreSQL 15.0 (spanlite " SPAN_VERSION ")");
}

static void f_user(sqlite3_context *ctx, int n, sqlite3_value **v)
{
    (void)n;
    (void)v;
    const char *user = session_of(ctx)->user;
    result_str(ctx, user == NULL ? "" : user);
}

static void f_database(sqlite3_context *ctx, int n, sqlite3_value **v)
{
    (void)n;
    (void)v;
    const char *db = session_of(ctx)->database;
    result_str(ctx, db == NULL ? "" : db);
}

static void f_schema(sqlite3_context *ctx, int n, sqlite3_value **v)
{
    (void)n;
    (void)v;
    result_str(ctx, "public");
}

static void f_pid(sqlite3_context *ctx, int n, sqlite3_value **v)
{
    (void)n;
    (void)v;
    sqlite3_result_int64(ctx, session_of(ctx)->opt.backend_pid);
}

static void f_false(sqlite3_context *ctx, int n, sqlite3_value **v)
{
    (void)n;
    (void)v;
    sqlite3_result_int(ctx, 0);
}

static void f_txid(sqlite3_context *ctx, int n, sqlite3_value **v)
{
    (void)n;
    (void)v;
    struct sql_session *s = session_of(ctx);
    if (s->kv == NULL || s->txn_id[0] == '\0') {
        sqlite3_result_null(ctx);
        return;
    }
    result_str(ctx, s->txn_id);
}

static void f_setting(sqlite3_context *ctx, int n, sqlite3_value **v)
{
    const char *name = (const char *)sqlite3_value_text(v[0]);
    const char *value = name == NULL ? NULL : vars_get(session_of(ctx), name);
    if (value != NULL) {
        result_str(ctx, value);
    } else if (n < 2 || sqlite3_value_int(v[1]) == 0) {
        char *msg =
            span_asprintf("unrecognized configuration parameter \"%s\"", name == NULL ? "" : name);
        sqlite3_result_error(ctx, msg, -1);
        span_free(msg);
    }
}

/* pg_sleep(seconds): in small steps, so that cancel and deadline end it. */
static void f_sleep(sqlite3_context *ctx, int n, sqlite3_value **v)
{
    (void)n;
    struct sql_session *s = session_of(ctx);
    double secs = sqlite3_value_double(v[0]);
    if (s->kv == NULL || !(secs > 0.0) || secs > 3600.0) {
        return;
    }
    uint64_t end = session_mono_ns(s) + (uint64_t)(secs * 1e9);
    while (session_mono_ns(s) < end) {
        if (atomic_load_explicit(&s->canceled, memory_order_relaxed) ||
            (s->deadline_ns != 0 && session_mono_ns(s) > s->deadline_ns)) {
            sqlite3_interrupt(s->db);
            sqlite3_result_error_code(ctx, SQLITE_INTERRUPT);
            return;
        }
        struct timespec ts = {.tv_nsec = (long)(2 * MS_NS)};
        nanosleep(&ts, NULL);
    }
    result_str(ctx, "");
}

/* --- printf with capped widths --- */

struct spec {
    char text[64]; /* "%-08.3" without the conversion */
    size_t len;
    char conv;
};

/* One number of a specification: digits or '*'. False when it is too large. */
static bool take_number(const char **p, struct spec *sp, int *arg, int n, sqlite3_value **v)
{
    long value = 0;
    bool any = false;
    if (**p == '*') {
        value = *arg < n ? (long)sqlite3_value_int64(v[(*arg)++]) : 0;
        any = true;
        (*p)++;
    } else {
        for (; **p >= '0' && **p <= '9'; (*p)++) {
            value = value > PRINTF_WIDTH_MAX ? value : value * 10 + (**p - '0');
            any = true;
        }
    }
    if (value > PRINTF_WIDTH_MAX || value < -PRINTF_WIDTH_MAX) {
        return false;
    }
    if (any) {
        sp->len += (size_t)snprintf(sp->text + sp->len, sizeof sp->text - sp->len, "%ld", value);
    }
    return true;
}

static bool take_spec(const char **p, struct spec *sp, int *arg, int n, sqlite3_value **v)
{
    sp->len = 0;
    sp->text[sp->len++] = '%';
    for (; **p != '\0' && strchr("-+ 0#,!", **p) != NULL; (*p)++) {
        if (sp->len < 12) {
            sp->text[sp->len++] = **p;
        }
    }
    if (!take_number(p, sp, arg, n, v)) {
        return false;
    }
    if (**p == '.') {
        sp->text[sp->len++] = '.';
        (*p)++;
        if (!take_number(p, sp, arg, n, v)) {
            return false;
        }
    }
    while (**p == 'l') {
        (*p)++;
    }
    sp->conv = **p;
    if (**p != '\0') {
        (*p)++;
    }
    return true;
}

/* The first code point of UTF-8 text. */
static unsigned first_char(const char *text)
{
    const unsigned char *u = (const unsigned char *)text;
    unsigned c = u[0] < 0xc0 ? u[0] : u[0] & (u[0] < 0xe0 ? 0x1fU : u[0] < 0xf0 ? 0x0fU : 0x07U);
    for (size_t i = 1; u[0] >= 0xc0 && i < 4 && (u[i] & 0xc0) == 0x80; i++) {
        c = c << 6 | (u[i] & 0x3fU);
    }
    return c;
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"

static void append_spec(sqlite3_str *out, struct spec *sp, sqlite3_value *arg)
{
    const char *text = arg == NULL ? "" : (const char *)sqlite3_value_text(arg);
    char *f = sp->text;
    size_t n = sp->len;
    switch (sp->conv) {
    case '%':
        sqlite3_str_append(out, "%", 1);
        return;
    case 'd':
    case 'i':
    case 'u':
    case 'x':
    case 'X':
    case 'o':
        snprintf(f + n, sizeof sp->text - n, "ll%c", sp->conv);
        sqlite3_str_appendf(out, f, arg == NULL ? 0LL : (long long)sqlite3_value_int64(arg));
        return;
    case 'f':
    case 'e':
    case 'E':
    case 'g':
    case 'G':
        snprintf(f + n, sizeof sp->text - n, "%c", sp->conv);
        sqlite3_str_appendf(out, f, arg == NULL ? 0.0 : sqlite3_value_double(arg));
        return;
    case 'c': /* not as text: a precision repeats the character */
        snprintf(f + n, sizeof sp->text - n, text == NULL || text[0] == '\0' ? "s" : "c");
        if (text == NULL || text[0] == '\0') {
            sqlite3_str_appendf(out, f, "");
        } else {
            sqlite3_str_appendf(out, f, first_char(text));
        }
        return;
    case 's':
    case 'z':
    case 'q':
    case 'Q':
    case 'w':
        snprintf(f + n, sizeof sp->text - n, "%c", sp->conv == 'z' ? 's' : sp->conv);
        sqlite3_str_appendf(out, f, sp->conv == 'Q' ? text : text == NULL ? "" : text);
        return;
    default:
        return;
    }
}

#pragma GCC diagnostic pop

static void f_printf(sqlite3_context *ctx, int n, sqlite3_value **v)
{
    const char *p = n < 1 ? NULL : (const char *)sqlite3_value_text(v[0]);
    if (p == NULL) {
        return;
    }
    sqlite3_str *out = sqlite3_str_new(sqlite3_context_db_handle(ctx));
    int arg = 1;
    while (*p != '\0') {
        const char *q = strchr(p, '%');
        if (q == NULL) {
            sqlite3_str_appendall(out, p);
            break;
        }
        sqlite3_str_append(out, p, (int)(q - p));
        p = q + 1;
        struct spec sp;
        if (!take_spec(&p, &sp, &arg, n, v)) {
            sqlite3_free(sqlite3_str_finish(out));
            sqlite3_result_error(ctx, "printf width or precision too large", -1);
            return;
        }
        sqlite3_value *value = NULL;
        if (sp.conv != '%' && arg < n) {
            value = v[arg++];
        }
        append_spec(out, &sp, value);
    }
    int len = sqlite3_str_length(out);
    char *text = sqlite3_str_finish(out);
    if (text == NULL) {
        sqlite3_result_text(ctx, "", 0, SQLITE_STATIC);
    } else {
        sqlite3_result_text(ctx, text, len, sqlite3_free);
    }
}

bool session_add_functions(struct sql_session *s)
{
    static const struct {
        const char *name;
        int args;
        bool deterministic;
        void (*f)(sqlite3_context *, int, sqlite3_value **);
    } table[] = {
        {"random", 0, false, f_random},
        {"randomblob", 1, false, f_randomblob},
        {"gen_random_uuid", 0, false, f_uuid},
        {"printf", -1, true, f_printf},
        {"format", -1, true, f_printf},
        {"now", 0, false, f_now},
        {"transaction_timestamp", 0, false, f_now},
        {"statement_timestamp", 0, false, f_now},
        {"clock_timestamp", 0, false, f_now},
        {"version", 0, false, f_version},
        {"current_user", 0, false, f_user},
        {"session_user", 0, false, f_user},
        {"current_role", 0, false, f_user},
        {"current_database", 0, false, f_database},
        {"current_catalog", 0, false, f_database},
        {"current_schema", 0, false, f_schema},
        {"pg_backend_pid", 0, false, f_pid},
        {"pg_is_in_recovery", 0, false, f_false},
        {"txid_current", 0, false, f_txid},
        {"current_setting", 1, false, f_setting},
        {"current_setting", 2, false, f_setting},
        {"pg_sleep", 1, false, f_sleep},
    };

    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        int flags = SQLITE_UTF8 | SQLITE_INNOCUOUS;
        flags |= table[i].deterministic ? SQLITE_DETERMINISTIC : 0;
        if (sqlite3_create_function_v2(s->db, table[i].name, table[i].args, flags, s, table[i].f,
                                       NULL, NULL, NULL) != SQLITE_OK) {
            return false;
        }
    }
    return true;
}
