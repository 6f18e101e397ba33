/* Session variables: SET, SHOW and RESET of the names PostgreSQL's clients use. The timeouts,
 * default_transaction_read_only and client_min_messages work. Of the others only those values are
 * taken that promise what is so anyway (UTC, ISO dates, serializable), or nothing at all.
 *
 * A change inside a block is undone with it: the values before it lie in s->var_undo. */
#include "base/alloc.h"
#include "base/limits.h"
#include "sql/run.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum var_kind {
    V_FIXED, /* cannot be changed */
    V_FREE,  /* any text, no effect promised */
    V_BOOL,
    V_TIME, /* a duration, in milliseconds without a unit */
    V_DIGITS,
    V_LEVEL, /* client_min_messages */
    V_ISOLATION,
    V_COMMIT, /* synchronous_commit */
    V_ZONE,
    V_DATES,
    V_PATH,
    V_ENCODING,
    V_STRINGS, /* standard_conforming_strings */
    V_ONE,     /* only as it is */
};

struct var_def {
    const char *name;
    const char *value;
    enum var_kind kind;
    bool reported; /* ParameterStatus at connect and on change */
};

static const struct var_def defs[] = {
    {"server_version", "15.0 (spanlite " SPAN_VERSION ")", V_FIXED, true},
    {"server_version_num", "150000", V_FIXED, false},
    {"server_encoding", "UTF8", V_FIXED, true},
    {"client_encoding", "UTF8", V_ENCODING, true},
    {"DateStyle", "ISO, MDY", V_DATES, true},
    {"IntervalStyle", "postgres", V_FREE, true}, /* there are no intervals */
    {"TimeZone", "Etc/UTC", V_ZONE, true},
    {"integer_datetimes", "on", V_FIXED, true},
    {"standard_conforming_strings", "on", V_STRINGS, true},
    {"application_name", "", V_FREE, true},
    {"session_authorization", "", V_FIXED, true},
    {"is_superuser", "on", V_FIXED, true},
    {"in_hot_standby", "off", V_FIXED, true},
    {"default_transaction_read_only", "off", V_BOOL, true},
    {"extra_float_digits", "1", V_DIGITS, false},
    {"statement_timeout", "0", V_TIME, false},
    {"lock_timeout", "0", V_TIME, false},
    {"idle_in_transaction_session_timeout", "60s", V_TIME, false},
    {"idle_session_timeout", "0", V_TIME, false},
    {"search_path", "public", V_PATH, false},
    {"client_min_messages", "notice", V_LEVEL, false},
    {"transaction_isolation", "serializable", V_ISOLATION, false},
    {"default_transaction_isolation", "serializable", V_ISOLATION, false},
    {"default_transaction_deferrable", "off", V_BOOL, false},
    {"transaction_read_only", "off", V_FIXED, false},
    {"bytea_output", "hex", V_ONE, false},
    {"row_security", "on", V_BOOL, false}, /* there are no policies */
    {"synchronous_commit", "on", V_COMMIT, false},
    {"max_identifier_length", "255", V_FIXED, false},
    {"escape_string_warning", "on", V_BOOL, false},
    {"backslash_quote", "safe_encoding", V_FREE, false},
    {"default_tablespace", "", V_ONE, false},
    {"default_table_access_method", "heap", V_ONE, false},
    {"xmloption", "content", V_FREE, false},
    {"check_function_bodies", "on", V_BOOL, false},
    {"work_mem", "4MB", V_FREE, false},
    {"jit", "off", V_BOOL, false},
    {"geqo", "on", V_BOOL, false},
};

#define DEF_COUNT (sizeof defs / sizeof defs[0])
_Static_assert(sizeof defs / sizeof defs[0] <= SESSION_VARS_MAX, "room for every variable");

static int find(const char *name)
{
    for (size_t i = 0; i < DEF_COUNT; i++) {
        if (strcasecmp(defs[i].name, name) == 0) {
            return (int)i;
        }
    }
    return -1;
}

void vars_init(struct sql_session *s)
{
    for (size_t i = 0; i < DEF_COUNT; i++) {
        const char *v = defs[i].value;
        if (strcmp(defs[i].name, "session_authorization") == 0) {
            v = s->user;
        }
        s->vars[i].value = span_strdup(v);
    }
    s->var_count = DEF_COUNT;
    s->idle_timeout_ns = TXN_IDLE_NS_DEFAULT;
}

void vars_deinit(struct sql_session *s)
{
    for (size_t i = 0; i < s->var_count; i++) {
        span_free(s->vars[i].value);
        span_free(s->vars[i].kept);
    }
    s->var_count = 0;
    span_free(s->var_undo);
    s->var_undo = NULL;
}

const char *vars_get(struct sql_session *s, const char *name)
{
    int i = find(name);
    if (i < 0 || (size_t)i >= s->var_count) {
        return NULL;
    }
    if (strcasecmp(name, "transaction_read_only") == 0) {
        return block_refuses_writes(s) ? "on" : "off";
    }
    return s->vars[i].value;
}

bool parse_duration_ns(const char *text, uint64_t default_unit_ns, uint64_t *out)
{
    static const struct {
        const char *unit;
        uint64_t ns;
    } units[] = {{"ns", 1},
                 {"us", 1000},
                 {"ms", MS_NS},
                 {"s", SEC_NS},
                 {"min", 60 * SEC_NS},
                 {"m", 60 * SEC_NS},
                 {"h", 3600 * SEC_NS},
                 {"d", 86400 * SEC_NS}};

    char *end = NULL;
    while (isspace((unsigned char)*text)) {
        text++;
    }
    if (!isdigit((unsigned char)*text) && *text != '.') {
        return false;
    }
    errno = 0;
    double v = strtod(text, &end);
    while (isspace((unsigned char)*end)) {
        end++;
    }
    uint64_t unit = *end == '\0' ? default_unit_ns : 0;
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        if (strcasecmp(end, units[i].unit) == 0) {
            unit = units[i].ns;
        }
    }
    if (errno != 0 || unit == 0 || !(v * (double)unit < 9e18)) {
        return false;
    }
    *out = (uint64_t)(v * (double)unit);
    return true;
}

static bool bad_value(struct sql_session *s, const char *name, const char *value)
{
    sql_error_set(&s->err, "22023", "invalid value for parameter \"%s\": \"%s\"", name, value);
    return false;
}

static bool not_supported(struct sql_session *s, const char *name, const char *value,
                          const char *hint)
{
    sql_error_set(&s->err, "0A000", "%s \"%s\" is not supported", name, value);
    sql_error_hint(&s->err, "%s", hint);
    return false;
}

static bool one_of(const char *value, const char *const *words)
{
    for (; *words != NULL; words++) {
        if (strcasecmp(value, *words) == 0) {
            return true;
        }
    }
    return false;
}

/* "on" or "off" of what PostgreSQL takes for a boolean; NULL: none. */
static const char *boolean(const char *value)
{
    static const char *const on[] = {"on", "true", "yes", "1", "t", "y", NULL};
    static const char *const off[] = {"off", "false", "no", "0", "f", "n", NULL};
    return one_of(value, on) ? "on" : one_of(value, off) ? "off" : NULL;
}

static bool is_utc(const char *zone)
{
    static const char *const names[] = {
        "UTC", "UCT", "GMT", "GMT0", "Zulu", "Z",     "GMT+0",  "Universal", "Greenwich",
        "0",   "+0",  "-0",  "+00",  "-00",  "00:00", "+00:00", "-00:00",    NULL};
    return one_of(strncasecmp(zone, "Etc/", 4) == 0 ? zone + 4 : zone, names);
}

/* "ISO", "ISO, DMY", "YMD": words of a list; the order of days and months means nothing here, for
 * dates are text. */
static bool is_iso(const char *value)
{
    static const char *const words[] = {"ISO", "MDY",      "DMY",         "YMD",
                                        "US",  "European", "NonEuropean", NULL};
    while (*value != '\0') {
        char word[32];
        size_t n = strcspn(value, ", ");
        snprintf(word, sizeof word, "%.*s", n > 31 ? 31 : (int)n, value);
        if (n > 0 && !one_of(word, words)) {
            return false;
        }
        value += n;
        value += strspn(value, ", ");
    }
    return true;
}

/* Every table is in one schema: a path without it finds them all the same. */
static void warn_path(struct sql_session *s, const char *value)
{
    static const char *const known[] = {"public", "$user", "pg_catalog", "pg_temp", "", NULL};
    while (*value != '\0' && s->sink != NULL) {
        char word[256];
        size_t n = strcspn(value, ",");
        size_t bare = n;
        while (bare > 0 && value[bare - 1] == ' ') {
            bare--;
        }
        snprintf(word, sizeof word, "%.*s", bare > 255 ? 255 : (int)bare, value);
        if (!one_of(word, known)) {
            char text[400];
            snprintf(text, sizeof text,
                     "schema \"%s\" does not exist: every table is in schema public", word);
            run_notice(s, s->sink, "01000", text);
        }
        value += n;
        value += strspn(value, ", ");
    }
}

static const char *const levels[] = {"debug5", "debug4", "debug3", "debug2",  "debug1", "debug",
                                     "log",    "info",   "notice", "warning", "error",  NULL};

bool vars_wants_notice(struct sql_session *s, bool warning)
{
    const char *level = vars_get(s, "client_min_messages");
    return strcasecmp(level, "error") != 0 && (warning || strcasecmp(level, "warning") != 0);
}

/* The value as it is remembered; NULL with s->err for one that means nothing or promises what is
 * not so. */
static const char *checked(struct sql_session *s, const struct var_def *d, const char *value)
{
    static const char *const isolations[] = {"serializable", "repeatable read", "read committed",
                                             "read uncommitted", NULL};
    static const char *const commits[] = {"local", "remote_write", "remote_apply", NULL};
    static const char *const utf8[] = {"UTF8", "UTF-8", "unicode", "SQL_ASCII", NULL};
    uint64_t ns = 0;
    char *end = NULL;
    long n = 0;
    bool ok = true;
    switch (d->kind) {
    case V_FIXED:
    case V_FREE:
        break;
    case V_BOOL:
        value = boolean(value) != NULL ? boolean(value) : value;
        ok = boolean(value) != NULL;
        break;
    case V_TIME:
        ok = parse_duration_ns(value, MS_NS, &ns);
        break;
    case V_DIGITS:
        n = strtol(value, &end, 10);
        ok = end != value && *end == '\0' && n >= -15 && n <= 3;
        break;
    case V_LEVEL:
        ok = one_of(value, levels);
        break;
    case V_ISOLATION: /* every level is the strongest */
        ok = one_of(value, isolations);
        value = ok ? "serializable" : value;
        break;
    case V_COMMIT:
        ok = boolean(value) != NULL || one_of(value, commits);
        value = ok ? "on" : value;
        break;
    case V_ZONE:
        if (!is_utc(value)) {
            (void)not_supported(s, "time zone", value, "Times are in UTC.");
            return NULL;
        }
        break;
    case V_DATES:
        if (!is_iso(value)) {
            (void)not_supported(s, "DateStyle", value, "Dates are text: ISO, as 2026-01-31.");
            return NULL;
        }
        value = strncasecmp(value, "ISO,", 4) == 0 ? value : d->value;
        break;
    case V_PATH:
        warn_path(s, value);
        break;
    case V_ENCODING:
        if (!one_of(value, utf8)) {
            (void)not_supported(s, "client_encoding", value, "Use UTF8.");
            return NULL;
        }
        value = "UTF8";
        break;
    case V_STRINGS:
        if (boolean(value) != NULL && strcmp(boolean(value), "off") == 0) {
            sql_error_set(&s->err, "0A000", "standard_conforming_strings is always on");
            sql_error_hint(&s->err, "Write E'..' for strings with backslash escapes.");
            return NULL;
        }
        ok = boolean(value) != NULL;
        value = "on";
        break;
    case V_ONE:
        if (strcasecmp(value, d->value) != 0) {
            (void)not_supported(s, d->name, value, "It is always as SHOW says.");
            return NULL;
        }
        break;
    }
    if (!ok) {
        (void)bad_value(s, d->name, value);
    }
    return ok ? value : NULL;
}

/* Takes the value, and what it does. */
static void take_value(struct sql_session *s, size_t i, char *value)
{
    const struct {
        const char *name;
        uint64_t *ns;
    } timeouts[] = {
        {"statement_timeout", &s->statement_timeout_ns},
        {"lock_timeout", &s->lock_timeout_ns},
        {"idle_in_transaction_session_timeout", &s->idle_timeout_ns},
        {"idle_session_timeout", &s->idle_session_timeout_ns},
    };

    bool same = s->vars[i].value != NULL && strcmp(s->vars[i].value, value) == 0;
    span_free(s->vars[i].value);
    s->vars[i].value = value;
    for (size_t k = 0; defs[i].kind == V_TIME && k < sizeof timeouts / sizeof timeouts[0]; k++) {
        uint64_t ns = 0;
        if (strcmp(defs[i].name, timeouts[k].name) == 0 && parse_duration_ns(value, MS_NS, &ns)) {
            *timeouts[k].ns = ns;
        }
    }
    if (defs[i].reported && s->sink != NULL && !same) {
        pg_sink_parameter_status(s->sink, defs[i].name, value);
    }
}

/* Notes variable i for ROLLBACK, once between two savepoints. */
static void note_undo(struct sql_session *s, size_t i)
{
    size_t from = s->savepoint_count > 0 ? s->savepoints[s->savepoint_count - 1].var_mark : 0;
    for (size_t k = from; k < s->var_undo_count; k++) {
        if (s->var_undo[k].var == i) {
            return;
        }
    }
    if (s->var_undo_count == s->var_undo_cap) {
        s->var_undo_cap = s->var_undo_cap == 0 ? 8 : s->var_undo_cap * 2;
        s->var_undo = span_realloc(s->var_undo, s->var_undo_cap * sizeof *s->var_undo);
    }
    const struct session_var *v = &s->vars[i];
    s->var_undo[s->var_undo_count++] =
        (struct var_undo){.var = i,
                          .value = span_strdup(v->value),
                          .kept = v->kept == NULL ? NULL : span_strdup(v->kept)};
}

void vars_rollback_to(struct sql_session *s, size_t mark)
{
    while (s->var_undo_count > mark) {
        struct var_undo *u = &s->var_undo[--s->var_undo_count];
        take_value(s, u->var, u->value);
        span_free(s->vars[u->var].kept);
        s->vars[u->var].kept = u->kept;
    }
}

void vars_end(struct sql_session *s, bool committed)
{
    if (s->var_undo_count == 0) {
        return;
    }
    if (!committed) {
        vars_rollback_to(s, 0);
        return;
    }
    for (size_t i = 0; i < s->var_count; i++) {
        char *kept = s->vars[i].kept;
        s->vars[i].kept = NULL;
        if (kept != NULL) {
            take_value(s, i, kept);
        }
    }
    for (size_t k = 0; k < s->var_undo_count; k++) {
        span_free(s->var_undo[k].value);
        span_free(s->var_undo[k].kept);
    }
    s->var_undo_count = 0;
}

static bool assign(struct sql_session *s, const char *name, const char *value, bool local)
{
    int at = find(name);
    if (at < 0) {
        sql_error_set(&s->err, "42704", "unrecognized configuration parameter \"%s\"", name);
        return false;
    }
    size_t i = (size_t)at;
    if (defs[i].kind == V_FIXED) {
        sql_error_set(&s->err, "55P02", "parameter \"%s\" cannot be changed", defs[i].name);
        return false;
    }
    if (strlen(value) > 1024) {
        return bad_value(s, name, "(too long)");
    }
    const char *good = checked(s, &defs[i], value);
    if (good == NULL) {
        return false;
    }
    if (local && s->block == BLOCK_NONE) {
        run_notice(s, s->sink, "25P01", "SET LOCAL can only be used in transaction blocks");
        return true;
    }
    if (s->block != BLOCK_NONE) {
        note_undo(s, i);
        if (!local) {
            span_free(s->vars[i].kept);
            s->vars[i].kept = NULL;
        } else if (s->vars[i].kept == NULL) {
            s->vars[i].kept = span_strdup(s->vars[i].value);
        }
    }
    take_value(s, i, span_strdup(good));
    return true;
}

bool vars_set(struct sql_session *s, const char *name, const char *value)
{
    return assign(s, name, value, false);
}

bool vars_set_local(struct sql_session *s, const char *name, const char *value)
{
    return assign(s, name, value, true);
}

bool vars_reset(struct sql_session *s, const char *name, bool local)
{
    int i = find(name);
    if (i < 0) {
        sql_error_set(&s->err, "42704", "unrecognized configuration parameter \"%s\"", name);
        return false;
    }
    return defs[i].kind == V_FIXED || assign(s, defs[i].name, defs[i].value, local);
}

void vars_reset_all(struct sql_session *s)
{
    for (size_t i = 0; i < DEF_COUNT; i++) {
        if (defs[i].kind != V_FIXED && strcmp(s->vars[i].value, defs[i].value) != 0) {
            (void)vars_set(s, defs[i].name, defs[i].value);
        }
    }
}

bool sql_session_set(struct sql_session *s, const char *name, const char *value,
                     struct span_error *err)
{
    sql_error_clear(&s->err);
    if (vars_set(s, name, value)) {
        return true;
    }
    /* Drivers tell their time zone and date style unasked: they get what is so as ParameterStatus,
     * which is honest, and not a refused connection. */
    int i = find(name);
    if (i >= 0 && (defs[i].kind == V_ZONE || defs[i].kind == V_DATES || defs[i].kind == V_ONE) &&
        strcmp(s->err.code, "0A000") == 0) {
        sql_error_clear(&s->err);
        return true;
    }
    (void)span_fail(err, SPAN_INVALID, "%s", s->err.message);
    return false;
}

void sql_session_each_reported(struct sql_session *s,
                               void (*f)(void *ctx, const char *name, const char *value), void *ctx)
{
    for (size_t i = 0; i < DEF_COUNT; i++) {
        if (defs[i].reported) {
            f(ctx, defs[i].name, s->vars[i].value);
        }
    }
}
