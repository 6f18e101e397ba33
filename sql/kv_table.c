/* Text tables for SHOW; see kv.h. */
#include "base/alloc.h"
#include "sql/kv.h"

void kv_table_init(struct kv_table *t, size_t columns, const char *const *names,
                   const unsigned *types)
{
    memset(t, 0, sizeof *t);
    t->columns = columns;
    t->names = span_calloc(columns + 1, sizeof *t->names);
    t->types = span_calloc(columns + 1, sizeof *t->types);
    for (size_t i = 0; i < columns; i++) {
        t->names[i] = span_strdup(names[i]);
        t->types[i] = types == NULL ? 25 : types[i];
    }
}

void kv_table_add_row(struct kv_table *t, const char *const *cells)
{
    t->cells = span_realloc(t->cells, (t->rows + 1) * t->columns * sizeof *t->cells);
    for (size_t i = 0; i < t->columns; i++) {
        t->cells[t->rows * t->columns + i] = cells[i] == NULL ? NULL : span_strdup(cells[i]);
    }
    t->rows++;
}

void kv_table_deinit(struct kv_table *t)
{
    for (size_t i = 0; i < t->columns; i++) {
        span_free(t->names[i]);
    }
    for (size_t i = 0; i < t->rows * t->columns; i++) {
        span_free(t->cells[i]);
    }
    span_free(t->names);
    span_free(t->types);
    span_free(t->cells);
    span_free(t->missing);
    memset(t, 0, sizeof *t);
}
