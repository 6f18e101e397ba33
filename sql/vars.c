/* Session variables: SET, SHOW and RESET of the names PostgreSQL's clients use. Most are only
 * remembered; statement_timeout and idle_in_transaction_session_timeout work. */
#include "base/alloc.h"
#include "base/limits.h"
#include "sql/session_impl.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

struct var_def {
    const char *name;
    const char *value;
    bool fixed;    /* cannot be changed */
    bool reported; /* ParameterStatus at connect and on change */
};

static const struct var_def defs[] = {
    {"server_version", "15.0 (spanlite " SPAN_VERSION ")", true, true},
    {"server_version_num", "150000", true, false},
    {"server_encoding", "UTF8", true, true},
    {"client_encoding", "UTF8", false, true},
    {"DateStyle", "ISO, MDY", false, true},
    {"IntervalStyle", "postgres", false, true},
    {"TimeZone", "Etc/UTC", false, true},
    {"integer_datetimes", "on", true, true},
    {"standard_conforming_strings", "on", false, true},
    {"application_name", "", false, true},
    {"session_authorization", "", true, true},
    {"is_superuser", "on", true, true},
    {"in_hot_standby", "off", true, true},
    {"default_transaction_read_only", "off", false, true},
    {"extra_float_digits", "1", false, false},
    {"statement_timeout", "0", false, false},
    {"lock_timeout", "0", false, false},
    {"idle_in_transaction_session_timeout", "60s", false, false},
    {"idle_session_timeout", "0", false, false},
    {"search_path", "public", false, false},
    {"client_min_messages", "notice", false, false},
    {"transaction_isolation", "serializable", false, false},
    {"default_transaction_isolation", "serializable", false, false},
    {"default_transaction_deferrable", "off", false, false},
    {"transaction_read_only", "off", true, false},
    {"bytea_output", "hex", false, false},
    {"row_security", "on", false, false},
    {"synchronous_commit", "on", false, false},
    {"max_identifier_length", "255", true, false},
    {"escape_string_warning", "on", false, false},
    {"backslash_quote", "safe_encoding", false, false},
    {"default_tablespace", "", false, false},
    {"default_table_access_method", "heap", false, false},
    {"xmloption", "content", false, false},
    {"check_function_bodies", "on", false, false},
    {"work_mem", "4MB", false, false},
    {"jit", "off", false, false},
    {"geqo", "on", false, false},
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
    }
    s->var_count = 0;
}

const char *vars_get(struct sql_session *s, const char *name)
{
    int i = find(name);
    if (i < 0 || (size_t)i >= s->var_count) {
        return NULL;
    }
    if (strcasecmp(name, "transaction_read_only") == 0) {
        return s->read_only && s->block == BLOCK_EXPLICIT ? "on" : "off";
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

/* Values that mean something to us, or that we cannot honour. */
static bool check_value(struct sql_session *s, const char *name, const char *value)
{
    uint64_t ns = 0;
    if (strcasecmp(name, "statement_timeout") == 0) {
        if (!parse_duration_ns(value, MS_NS, &ns)) {
            return bad_value(s, name, value);
        }
        s->statement_timeout_ns = ns;
    } else if (strcasecmp(name, "idle_in_transaction_session_timeout") == 0) {
        if (!parse_duration_ns(value, MS_NS, &ns)) {
            return bad_value(s, name, value);
        }
        s->idle_timeout_ns = ns;
    } else if (strcasecmp(name, "client_encoding") == 0) {
        if (strcasecmp(value, "UTF8") != 0 && strcasecmp(value, "UTF-8") != 0 &&
            strcasecmp(value, "unicode") != 0 && strcasecmp(value, "SQL_ASCII") != 0) {
            sql_error_set(&s->err, "0A000", "client_encoding \"%s\" is not supported", value);
            sql_error_hint(&s->err, "Use UTF8.");
            return false;
        }
    } else if (strcasecmp(name, "standard_conforming_strings") == 0) {
        if (strcasecmp(value, "on") != 0 && strcasecmp(value, "true") != 0 &&
            strcmp(value, "1") != 0) {
            sql_error_set(&s->err, "0A000", "standard_conforming_strings is always on");
            sql_error_hint(&s->err, "Write E'..' for strings with backslash escapes.");
            return false;
        }
    }
    return true;
}

bool vars_set(struct sql_session *s, const char *name, const char *value)
{
    int i = find(name);
    if (i < 0) {
        sql_error_set(&s->err, "42704", "unrecognized configuration parameter \"%s\"", name);
        return false;
    }
    if (defs[i].fixed) {
        sql_error_set(&s->err, "55P02", "parameter \"%s\" cannot be changed", defs[i].name);
        return false;
    }
    if (strlen(value) > 1024) {
        return bad_value(s, name, "(too long)");
    }
    if (!check_value(s, name, value)) {
        return false;
    }
    span_free(s->vars[i].value);
    s->vars[i].value = span_strdup(strcasecmp(name, "client_encoding") == 0 ? "UTF8" : value);
    if (defs[i].reported && s->sink != NULL) {
        pg_sink_parameter_status(s->sink, defs[i].name, s->vars[i].value);
    }
    return true;
}

bool vars_reset(struct sql_session *s, const char *name)
{
    int i = find(name);
    if (i < 0) {
        sql_error_set(&s->err, "42704", "unrecognized configuration parameter \"%s\"", name);
        return false;
    }
    return defs[i].fixed || vars_set(s, defs[i].name, defs[i].value);
}

void vars_reset_all(struct sql_session *s)
{
    for (size_t i = 0; i < DEF_COUNT; i++) {
        if (!defs[i].fixed && strcmp(s->vars[i].value, defs[i].value) != 0) {
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
