/* Choice of an index for xBestIndex; see plan.h.
 *
 * Costs are in rows read; a request to a range counts as 20. Row counts are guesses (no statistics
 * yet): a table holds a million rows, each pinned column cuts to a twentieth, each bound to a
 * quarter, a pinned unique key to one row. That is enough for joins to prefer key look-ups on the
 * inner side. */
#include "sql/vtab/plan.h"

#include <math.h>
#include <string.h>
#include <strings.h>

#define ROWS_GUESS   1000000.0
#define REQUEST_COST 20.0

/* Constraint numbers that pin each eq column and bound the next one; -1: none. */
struct candidate {
    struct vtab_plan plan;
    int eq[VTAB_EQ_MAX];
    int lo;
    int hi;
    bool ordered;
    double cost;
    double rows;
    bool unique;
};

static int index_column(const struct vtab_shape *shape, const struct vtab_index *ix, size_t i)
{
    if (shape->has_rowid && ix == &shape->indexes[0]) {
        return -1;
    }
    return ix->columns[i];
}

static size_t key_columns(const struct vtab_shape *shape, const struct vtab_index *ix)
{
    return shape->has_rowid && ix == &shape->indexes[0] ? 1 : ix->count;
}

static bool column_matches(const struct vtab_shape *shape, int want, int have)
{
    if (want == -1) {
        return have == -1 || (shape->rowid_column >= 0 && have == shape->rowid_column);
    }
    return want == have;
}

static bool collation_ok(const struct vtab_shape *shape, const struct vtab_index *ix, size_t i,
                         sqlite3_index_info *info, int constraint)
{
    if (index_column(shape, ix, i) == -1) {
        return true; /* rowids are integers */
    }
    const char *coll = sqlite3_vtab_collation(info, constraint);
    return strcasecmp(coll == NULL ? "BINARY" : coll, ix->collations[i]) == 0;
}

/* Best equality constraint on column i of the index: = before IS before IN; -1: none. */
static int find_eq(const struct vtab_shape *shape, const struct vtab_index *ix, size_t i,
                   sqlite3_index_info *info, bool in_used, bool *is_in, bool *null_ok)
{
    int best = -1;
    int want = index_column(shape, ix, i);
    for (int k = 0; k < info->nConstraint; k++) {
        const struct sqlite3_index_constraint *c = &info->aConstraint[k];
        if (!c->usable || !column_matches(shape, want, c->iColumn)) {
            continue;
        }
        bool eq = c->op == SQLITE_INDEX_CONSTRAINT_EQ;
        bool is = c->op == SQLITE_INDEX_CONSTRAINT_IS || c->op == SQLITE_INDEX_CONSTRAINT_ISNULL;
        if ((!eq && !is) || !collation_ok(shape, ix, i, info, k)) {
            continue;
        }
        bool in = eq && sqlite3_vtab_in(info, k, -1) != 0;
        if (in && (in_used || best >= 0)) {
            continue;
        }
        best = k;
        *is_in = in;
        *null_ok = is;
        if (eq && !in) {
            return best;
        }
    }
    return best;
}

static void find_range(const struct vtab_shape *shape, const struct vtab_index *ix, size_t i,
                       sqlite3_index_info *info, struct candidate *c)
{
    int want = index_column(shape, ix, i);
    for (int k = 0; k < info->nConstraint; k++) {
        const struct sqlite3_index_constraint *x = &info->aConstraint[k];
        if (!x->usable || !column_matches(shape, want, x->iColumn) ||
            !collation_ok(shape, ix, i, info, k)) {
            continue;
        }
        bool lo = x->op == SQLITE_INDEX_CONSTRAINT_GT || x->op == SQLITE_INDEX_CONSTRAINT_GE;
        bool hi = x->op == SQLITE_INDEX_CONSTRAINT_LT || x->op == SQLITE_INDEX_CONSTRAINT_LE;
        if (lo && c->lo < 0) {
            c->lo = k;
            c->plan.lo_incl = x->op == SQLITE_INDEX_CONSTRAINT_GE;
        } else if (hi && c->hi < 0) {
            c->hi = k;
            c->plan.hi_incl = x->op == SQLITE_INDEX_CONSTRAINT_LE;
        }
    }
    c->plan.has_lo = c->lo >= 0;
    c->plan.has_hi = c->hi >= 0;
}

/* Does scanning the index (forwards or backwards) give the order asked for? */
static void find_order(const struct vtab_shape *shape, const struct vtab_index *ix,
                       const sqlite3_index_info *info, struct candidate *c)
{
    if (info->nOrderBy == 0 || c->plan.in_at >= 0) {
        return;
    }
    size_t n = key_columns(shape, ix);
    size_t at = 0;
    bool reverse = false;
    bool set = false;
    for (int k = 0; k < info->nOrderBy; k++) {
        int col = info->aOrderBy[k].iColumn;
        bool pinned = false;
        for (size_t e = 0; e < c->plan.eq_count; e++) {
            pinned = pinned || column_matches(shape, index_column(shape, ix, e), col);
        }
        if (pinned) {
            continue;
        }
        at = at < c->plan.eq_count ? c->plan.eq_count : at;
        if (at >= n) {
            if (c->unique || (ix->unique && c->plan.eq_count == 0 && at == n && set &&
                              ix == &shape->indexes[0])) {
                break; /* whole primary key: nothing is left to order */
            }
            return;
        }
        if (!column_matches(shape, index_column(shape, ix, at), col)) {
            if (c->unique) {
                break;
            }
            return;
        }
        bool desc = index_column(shape, ix, at) == -1 ? false : ix->desc[at];
        bool back = (info->aOrderBy[k].desc != 0) != desc;
        if (set && back != reverse) {
            return;
        }
        reverse = back;
        set = true;
        at++;
    }
    c->ordered = true;
    c->plan.reverse = reverse;
}

static void consider(const struct vtab_shape *shape, unsigned at, sqlite3_index_info *info,
                     struct candidate *c)
{
    const struct vtab_index *ix = &shape->indexes[at];
    size_t n = key_columns(shape, ix);
    memset(c, 0, sizeof *c);
    c->plan.index = at;
    c->plan.in_at = -1;
    c->lo = -1;
    c->hi = -1;
    bool nulls = false;
    while (c->plan.eq_count < n && c->plan.eq_count < VTAB_EQ_MAX) {
        bool in = false;
        bool null_ok = false;
        int k = find_eq(shape, ix, c->plan.eq_count, info, c->plan.in_at >= 0, &in, &null_ok);
        if (k < 0) {
            break;
        }
        if (in) {
            c->plan.in_at = (int)c->plan.eq_count;
        }
        if (null_ok) {
            c->plan.null_ok |= 1U << c->plan.eq_count;
            nulls = true;
        }
        c->eq[c->plan.eq_count++] = k;
    }
    if (c->plan.eq_count < n) {
        find_range(shape, ix, c->plan.eq_count, info, c);
    }
    c->unique = ix->unique && c->plan.eq_count == n && n > 0 && !nulls && c->plan.in_at < 0;
    double rows = ROWS_GUESS;
    for (unsigned i = 0; i < c->plan.eq_count; i++) {
        rows /= 20.0;
    }
    if (ix->unique && c->plan.eq_count == n && n > 0 && !nulls) {
        rows = 1.0;
    }
    rows = c->plan.has_lo ? rows / 4.0 : rows;
    rows = c->plan.has_hi ? rows / 4.0 : rows;
    if (c->plan.in_at >= 0) {
        rows *= 10.0;
    }
    c->rows = rows < 1.0 ? 1.0 : rows;
    bool covering = (info->colUsed & ~ix->covers) == 0;
    c->cost = REQUEST_COST + c->rows * (at == 0 ? 1.0 : covering ? 1.0 : 4.0);
    if (at != 0 && !covering) {
        c->cost += REQUEST_COST;
    }
    find_order(shape, ix, info, c);
}

static uint64_t limit_hint(sqlite3_index_info *info)
{
    for (int k = 0; k < info->nConstraint; k++) {
        sqlite3_value *v = NULL;
        if (info->aConstraint[k].op == SQLITE_INDEX_CONSTRAINT_LIMIT &&
            sqlite3_vtab_rhs_value(info, k, &v) == SQLITE_OK && v != NULL) {
            sqlite3_int64 n = sqlite3_value_int64(v);
            return n > 0 ? (uint64_t)n : 0;
        }
    }
    return 0;
}

static double total_cost(const struct candidate *c, const sqlite3_index_info *info)
{
    if (c->ordered || info->nOrderBy == 0) {
        return c->cost;
    }
    return c->cost + c->rows * (1.0 + log2(c->rows + 1.0)) * 0.3;
}

/* "USING INDEX ab (bal=? AND id>?)" */
static void plan_words(const struct vtab_shape *shape, const struct candidate *c,
                       const sqlite3_index_info *info, sqlite3_str *out)
{
    const struct vtab_index *ix = &shape->indexes[c->plan.index];
    bool any = c->plan.eq_count > 0 || c->plan.has_lo || c->plan.has_hi;
    bool covering = c->plan.index != 0 && (info->colUsed & ~ix->covers) == 0;
    if (c->plan.index == 0 && !any) {
        sqlite3_str_appendall(out, c->plan.reverse ? "BACKWARDS" : "");
        return;
    }
    sqlite3_str_appendf(out, "USING %s%s", covering ? "COVERING " : "",
                        c->plan.index == 0 ? "PRIMARY KEY" : "INDEX ");
    sqlite3_str_appendall(out, c->plan.index == 0 ? "" : ix->name);
    const char *between = " (";
    for (size_t i = 0; any && i < c->plan.eq_count + 1U; i++) {
        bool eq = i < c->plan.eq_count;
        if (!eq && !c->plan.has_lo && !c->plan.has_hi) {
            break;
        }
        int col = index_column(shape, ix, i);
        col = col == -1 ? shape->rowid_column : col;
        const char *name = col < 0 ? "rowid" : shape->column_names[col];
        if (eq) {
            bool in = (int)i == c->plan.in_at;
            sqlite3_str_appendf(out, "%s%s%s", between, name, in ? " IN (..)" : "=?");
            between = " AND ";
        }
        if (!eq && c->plan.has_lo) {
            sqlite3_str_appendf(out, "%s%s>%s?", between, name, c->plan.lo_incl ? "=" : "");
            between = " AND ";
        }
        if (!eq && c->plan.has_hi) {
            sqlite3_str_appendf(out, "%s%s<%s?", between, name, c->plan.hi_incl ? "=" : "");
        }
    }
    sqlite3_str_appendall(out, any ? ")" : "");
    sqlite3_str_appendall(out, c->plan.reverse ? " BACKWARDS" : "");
}

static char *plan_text(const struct vtab_shape *shape, const struct candidate *c,
                       sqlite3_index_info *info)
{
    sqlite3_str *out = sqlite3_str_new(NULL);
    sqlite3_str_appendf(out, "%u %u %u %d %d %d %d %d %d %llu %llu|", c->plan.index,
                        c->plan.eq_count, c->plan.null_ok, c->plan.in_at, c->plan.has_lo,
                        c->plan.lo_incl, c->plan.has_hi, c->plan.hi_incl, c->plan.reverse,
                        (unsigned long long)info->colUsed, (unsigned long long)limit_hint(info));
    plan_words(shape, c, info, out);
    return sqlite3_str_finish(out);
}

int vtab_plan_best(const struct vtab_shape *shape, sqlite3_index_info *info)
{
    struct candidate best;
    consider(shape, 0, info, &best);
    for (unsigned i = 1; i < shape->index_count; i++) {
        struct candidate c;
        consider(shape, i, info, &c);
        bool useful = c.plan.eq_count > 0 || c.plan.has_lo || c.plan.has_hi || c.ordered ||
                      (info->colUsed & ~shape->indexes[i].covers) == 0;
        if (useful && total_cost(&c, info) < total_cost(&best, info)) {
            best = c;
        }
    }
    int argc = 0;
    for (unsigned i = 0; i < best.plan.eq_count; i++) {
        info->aConstraintUsage[best.eq[i]].argvIndex = ++argc;
        if ((int)i == best.plan.in_at) {
            sqlite3_vtab_in(info, best.eq[i], 1);
        }
    }
    if (best.lo >= 0) {
        info->aConstraintUsage[best.lo].argvIndex = ++argc;
    }
    if (best.hi >= 0) {
        info->aConstraintUsage[best.hi].argvIndex = ++argc;
    }
    info->idxNum = (int)best.plan.index;
    info->idxStr = plan_text(shape, &best, info);
    if (info->idxStr == NULL) {
        return SQLITE_NOMEM;
    }
    info->needToFreeIdxStr = 1;
    info->orderByConsumed = best.ordered && info->nOrderBy > 0;
    info->estimatedCost = best.cost;
    info->estimatedRows = (sqlite3_int64)best.rows;
    info->idxFlags = best.unique ? SQLITE_INDEX_SCAN_UNIQUE : 0;
    return SQLITE_OK;
}

/* The next number of an idxStr; false at anything else. By hand: this runs for every xFilter. */
static bool take(const char **p, bool negative_ok, long long *out)
{
    bool negative = negative_ok && **p == '-';
    *p += negative ? 1 : 0;
    if (**p < '0' || **p > '9') {
        return false;
    }
    unsigned long long n = 0;
    for (; **p >= '0' && **p <= '9'; (*p)++) {
        n = n * 10 + (unsigned)(**p - '0');
    }
    *p += **p == ' ' ? 1 : 0;
    *out = negative ? -(long long)n : (long long)n;
    return true;
}

bool vtab_plan_parse(const char *idx_str, struct vtab_plan *out)
{
    long long v[11];
    for (int i = 0; i < 11; i++) {
        if (!take(&idx_str, i == 3, &v[i])) {
            return false;
        }
    }
    *out = (struct vtab_plan){
        .index = (unsigned)v[0],
        .eq_count = (unsigned)v[1],
        .null_ok = (unsigned)v[2],
        .in_at = (int)v[3],
        .has_lo = v[4] != 0,
        .lo_incl = v[5] != 0,
        .has_hi = v[6] != 0,
        .hi_incl = v[7] != 0,
        .reverse = v[8] != 0,
        .col_used = (uint64_t)v[9],
        .hint_rows = (uint64_t)v[10],
    };
    return *idx_str == '|' && out->eq_count <= VTAB_EQ_MAX;
}
