/* Table descriptors and their cache; see schema.h. */
#include "sql/schema.h"

#include "base/alloc.h"
#include "base/codec.h"
#include "base/limits.h"
#include "base/map.h"

#include <ctype.h>
#include <pthread.h>
#include <strings.h>

#define DESC_VERSION 1

struct table_desc *table_desc_new(void)
{
    struct table_desc *d = SPAN_NEW(struct table_desc);
    atomic_init(&d->refs, 1);
    return d;
}

struct table_desc *table_desc_ref(struct table_desc *d)
{
    atomic_fetch_add_explicit(&d->refs, 1, memory_order_relaxed);
    return d;
}

void table_index_deinit(struct table_index *ix)
{
    span_free(ix->name);
    span_free(ix->sql);
    span_free(ix->columns);
    span_free(ix->desc);
    span_free(ix->collations);
    memset(ix, 0, sizeof *ix);
}

void table_desc_unref(struct table_desc *d)
{
    if (d == NULL || atomic_fetch_sub_explicit(&d->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    for (size_t i = 0; i < d->column_count; i++) {
        span_free(d->columns[i].name);
        span_free(d->columns[i].decl_type);
    }
    span_free(d->columns);
    for (size_t i = 0; i < d->index_count; i++) {
        table_index_deinit(&d->indexes[i]);
    }
    span_free(d->indexes);
    table_index_deinit(&d->primary);
    span_free(d->name);
    span_free(d->table);
    span_free(d->sql);
    span_free(d);
}

static void enc_str(struct buf *out, const char *s)
{
    enc_bytes(out, slice_str(s == NULL ? "" : s));
}

static char *dec_str(struct cursor *c)
{
    struct slice s = dec_bytes(c);
    char *p = span_malloc(s.size + 1);
    if (s.size > 0) {
        memcpy(p, s.data, s.size);
        c->bad = c->bad || memchr(s.data, 0, s.size) != NULL; /* no name or text has one */
    }
    p[s.size] = '\0';
    return p;
}

#define INDEX_BYTES_MIN 7 /* of one without name and columns */

static void index_encode(const struct table_index *ix, struct buf *out)
{
    enc_u16(out, ix->id);
    enc_str(out, ix->name);
    enc_str(out, ix->sql);
    enc_bool(out, ix->unique);
    enc_u8(out, (uint8_t)ix->state);
    enc_var(out, ix->count);
    for (size_t i = 0; i < ix->count; i++) {
        enc_u16(out, ix->columns[i]);
        enc_bool(out, ix->desc[i]);
        enc_u8(out, (uint8_t)ix->collations[i]);
    }
}

static void index_decode(struct cursor *c, struct table_index *ix, size_t columns)
{
    ix->id = dec_u16(c);
    ix->name = dec_str(c);
    ix->sql = dec_str(c);
    ix->unique = dec_bool(c);
    ix->state = dec_u8(c) == INDEX_PUBLIC ? INDEX_PUBLIC : INDEX_BUILDING;
    ix->count = dec_count(c, 4);
    ix->columns = span_calloc(ix->count + 1, sizeof *ix->columns);
    ix->desc = span_calloc(ix->count + 1, sizeof *ix->desc);
    ix->collations = span_calloc(ix->count + 1, sizeof *ix->collations);
    for (size_t i = 0; i < ix->count; i++) {
        ix->columns[i] = dec_u16(c);
        ix->desc[i] = dec_bool(c);
        uint8_t coll = dec_u8(c);
        ix->collations[i] = (enum sql_collation)coll;
        if (ix->columns[i] >= columns || coll > COLL_RTRIM) {
            c->bad = true;
        }
    }
}

void table_desc_encode(const struct table_desc *d, struct buf *out)
{
    enc_u8(out, DESC_VERSION);
    enc_u8(out, (uint8_t)d->kind);
    enc_u32(out, d->id);
    enc_u64(out, d->version);
    enc_str(out, d->name);
    enc_str(out, d->table);
    enc_str(out, d->sql);
    enc_var(out, d->column_count);
    for (size_t i = 0; i < d->column_count; i++) {
        const struct table_column *c = &d->columns[i];
        enc_str(out, c->name);
        enc_str(out, c->decl_type);
        enc_u8(out, (uint8_t)c->affinity);
        enc_u8(out, (uint8_t)c->collation);
        enc_u8(out,
               (uint8_t)((c->notnull ? 1 : 0) | (c->generated ? 2 : 0) | (c->has_default ? 4 : 0)));
    }
    enc_u8(out, (uint8_t)d->pk);
    enc_u16(out, d->pk_column);
    enc_bool(out, d->conflict_clauses);
    enc_u16(out, d->next_index_id);
    index_encode(&d->primary, out);
    enc_var(out, d->index_count);
    for (size_t i = 0; i < d->index_count; i++) {
        index_encode(&d->indexes[i], out);
    }
}

static void columns_decode(struct cursor *c, struct table_desc *d)
{
    d->column_count = dec_count(c, 5);
    d->columns = span_calloc(d->column_count + 1, sizeof *d->columns);
    for (size_t i = 0; i < d->column_count; i++) {
        struct table_column *col = &d->columns[i];
        col->name = dec_str(c);
        col->decl_type = dec_str(c);
        uint8_t aff = dec_u8(c);
        uint8_t coll = dec_u8(c);
        uint8_t flags = dec_u8(c);
        if (aff > AFF_REAL || coll > COLL_RTRIM) {
            c->bad = true;
            return;
        }
        col->affinity = (enum sql_affinity)aff;
        col->collation = (enum sql_collation)coll;
        col->notnull = (flags & 1) != 0;
        col->generated = (flags & 2) != 0;
        col->has_default = (flags & 4) != 0;
    }
}

span_status table_desc_decode(struct slice in, struct table_desc **out)
{
    struct cursor c = cursor_of(in);
    *out = NULL;
    if (dec_u8(&c) != DESC_VERSION) {
        return SPAN_CORRUPT;
    }
    struct table_desc *d = table_desc_new();
    d->kind = (enum desc_kind)dec_u8(&c);
    d->id = dec_u32(&c);
    d->version = dec_u64(&c);
    d->name = dec_str(&c);
    d->table = dec_str(&c);
    d->sql = dec_str(&c);
    columns_decode(&c, d);
    d->pk = (enum pk_kind)dec_u8(&c);
    d->pk_column = dec_u16(&c);
    d->conflict_clauses = dec_bool(&c);
    d->next_index_id = dec_u16(&c);
    index_decode(&c, &d->primary, d->column_count);
    size_t n = dec_count(&c, INDEX_BYTES_MIN);
    d->indexes = span_calloc(n + 1, sizeof *d->indexes);
    for (size_t i = 0; i < n; i++) {
        index_decode(&c, &d->indexes[i], d->column_count);
        d->index_count = i + 1;
    }
    bool kinds = d->kind >= DESC_TABLE && d->kind <= DESC_VIEW && d->pk <= PK_COLUMNS;
    if (!cursor_done(&c) || !kinds ||
        (d->pk == PK_ROWID && d->kind == DESC_TABLE && d->pk_column >= d->column_count)) {
        table_desc_unref(d);
        return SPAN_CORRUPT;
    }
    *out = d;
    return SPAN_OK;
}

struct table_desc *table_desc_copy(const struct table_desc *d)
{
    struct buf b = {0};
    struct table_desc *copy = NULL;
    table_desc_encode(d, &b);
    span_status st = table_desc_decode(buf_slice(&b), &copy);
    buf_deinit(&b);
    return st == SPAN_OK ? copy : NULL;
}

int table_find_column(const struct table_desc *d, const char *name)
{
    for (size_t i = 0; i < d->column_count; i++) {
        if (strcasecmp(d->columns[i].name, name) == 0) {
            return (int)i;
        }
    }
    return -1;
}

struct table_index *table_find_index(struct table_desc *d, const char *name)
{
    for (size_t i = 0; i < d->index_count; i++) {
        if (strcasecmp(d->indexes[i].name, name) == 0) {
            return &d->indexes[i];
        }
    }
    return NULL;
}

static bool columns_match(const struct table_desc *d, const struct table_index *ix,
                          const char *columns)
{
    struct buf b = {0};
    for (size_t i = 0; i < ix->count; i++) {
        buf_printf(&b, "%s%s.%s", i == 0 ? "" : ", ", d->name, d->columns[ix->columns[i]].name);
    }
    bool same = ix->count > 0 && strcasecmp(buf_cstr(&b), columns) == 0;
    buf_deinit(&b);
    return same;
}

const char *table_constraint_of(const struct table_desc *d, const char *columns)
{
    if (columns_match(d, &d->primary, columns)) {
        return d->primary.name;
    }
    for (size_t i = 0; i < d->index_count; i++) {
        if (d->indexes[i].unique && columns_match(d, &d->indexes[i], columns)) {
            return d->indexes[i].name;
        }
    }
    return NULL;
}

void table_row_key(const struct table_desc *d, const struct sql_value *columns, int64_t rowid,
                   struct buf *out)
{
    key_index_prefix(out, d->id, 0);
    if (d->pk != PK_COLUMNS) {
        struct sql_value v = sql_value_int(rowid);
        key_encode(out, &v, COLL_BINARY, false);
        return;
    }
    for (size_t i = 0; i < d->primary.count; i++) {
        key_encode(out, &columns[d->primary.columns[i]], d->primary.collations[i],
                   d->primary.desc[i]);
    }
}

void schema_lower(const char *name, struct buf *out)
{
    buf_clear(out);
    for (; *name != '\0'; name++) {
        buf_append_byte(out, (uint8_t)(*name >= 'A' && *name <= 'Z' ? *name + 32 : *name));
    }
    (void)buf_cstr(out);
}

void schema_name_key(const char *name, struct buf *out)
{
    struct buf low = {0};
    schema_lower(name, &low);
    key_index_prefix(out, SYS_TABLE_DESCRIPTORS, 0);
    struct sql_value v = {.type = SQL_TEXT, .s = buf_slice(&low)};
    key_encode(out, &v, COLL_BINARY, false);
    buf_deinit(&low);
}

struct schema_cache {
    pthread_mutex_t mutex;
    struct mapb names;   /* lower-case name -> struct table_desc, a reference each */
    struct map64 rowids; /* table id -> largest explicit rowid, as a pointer-sized number */
    atomic_ullong generation;
};

struct schema_cache *schema_cache_new(void)
{
    struct schema_cache *c = SPAN_NEW(struct schema_cache);
    pthread_mutex_init(&c->mutex, NULL);
    mapb_init(&c->names);
    map64_init(&c->rowids);
    atomic_init(&c->generation, 1);
    return c;
}

void schema_cache_free(struct schema_cache *c)
{
    if (c == NULL) {
        return;
    }
    size_t pos = 0;
    struct slice key;
    for (void *p; (p = mapb_next(&c->names, &pos, &key)) != NULL;) {
        table_desc_unref(p);
    }
    mapb_deinit(&c->names);
    map64_deinit(&c->rowids);
    pthread_mutex_destroy(&c->mutex);
    span_free(c);
}

uint64_t schema_cache_generation(const struct schema_cache *c)
{
    return atomic_load_explicit(&c->generation, memory_order_acquire);
}

struct table_desc *schema_cache_get(struct schema_cache *c, const char *name)
{
    struct buf low = {0};
    schema_lower(name, &low);
    pthread_mutex_lock(&c->mutex);
    struct table_desc *d = mapb_get(&c->names, buf_slice(&low));
    if (d != NULL) {
        table_desc_ref(d);
    }
    pthread_mutex_unlock(&c->mutex);
    buf_deinit(&low);
    return d;
}

size_t schema_cache_all(struct schema_cache *c, struct table_desc ***out)
{
    size_t n = 0;
    size_t pos = 0;
    struct slice key;
    pthread_mutex_lock(&c->mutex);
    *out = span_calloc(c->names.count + 1, sizeof **out);
    for (void *p; (p = mapb_next(&c->names, &pos, &key)) != NULL;) {
        (*out)[n++] = table_desc_ref(p);
    }
    pthread_mutex_unlock(&c->mutex);
    return n;
}

void schema_cache_put(struct schema_cache *c, struct table_desc *d)
{
    struct buf low = {0};
    schema_lower(d->name, &low);
    pthread_mutex_lock(&c->mutex);
    struct table_desc *old = mapb_get(&c->names, buf_slice(&low));
    if (old != NULL && old->id == d->id && old->version >= d->version) {
        old = NULL;
    } else {
        mapb_put(&c->names, buf_slice(&low), table_desc_ref(d));
        atomic_fetch_add_explicit(&c->generation, 1, memory_order_release);
    }
    pthread_mutex_unlock(&c->mutex);
    table_desc_unref(old);
    buf_deinit(&low);
}

void schema_cache_drop(struct schema_cache *c, const char *name)
{
    struct buf low = {0};
    schema_lower(name, &low);
    pthread_mutex_lock(&c->mutex);
    struct table_desc *old = mapb_remove(&c->names, buf_slice(&low));
    if (old != NULL) {
        atomic_fetch_add_explicit(&c->generation, 1, memory_order_release);
    }
    pthread_mutex_unlock(&c->mutex);
    table_desc_unref(old);
    buf_deinit(&low);
}

uint64_t schema_cache_rowid_seen(struct schema_cache *c, uint32_t table_id, uint64_t seen)
{
    pthread_mutex_lock(&c->mutex);
    uint64_t old = (uint64_t)(uintptr_t)map64_get(&c->rowids, table_id);
    if (seen > old && seen <= INT64_MAX) {
        map64_put(&c->rowids, table_id, (void *)(uintptr_t)seen);
        old = seen;
    }
    pthread_mutex_unlock(&c->mutex);
    return old;
}

span_status schema_load(struct kv *kv, const char *name, enum kv_lock lock, struct table_desc **out,
                        struct span_error *err)
{
    struct buf key = {0};
    struct buf value = {0};
    bool found = false;
    *out = NULL;
    schema_name_key(name, &key);
    span_status st = kv->ops->get(kv, buf_slice(&key), lock, &found, &value, err);
    if (st == SPAN_OK && found) {
        st = table_desc_decode(buf_slice(&value), out);
        if (st != SPAN_OK) {
            st = span_fail(err, st, "descriptor of \"%s\" is corrupt", name);
        }
    }
    buf_deinit(&key);
    buf_deinit(&value);
    return st;
}

span_status schema_load_all(struct kv *kv, struct table_desc ***out, size_t *count,
                            struct span_error *err)
{
    struct buf start = {0};
    struct buf end = {0};
    struct kv_scan *scan = NULL;
    size_t cap = 0;
    *out = NULL;
    *count = 0;
    key_table_start(&start, SYS_TABLE_DESCRIPTORS);
    key_table_end(&end, SYS_TABLE_DESCRIPTORS);
    span_status st = kv->ops->scan_open(kv, buf_slice(&start), buf_slice(&end), false, KV_LOCK_NONE,
                                        0, &scan, err);
    while (st == SPAN_OK) {
        struct slice k;
        struct slice v;
        st = kv->ops->scan_next(scan, &k, &v, err);
        if (st != SPAN_OK) {
            break;
        }
        if (*count == cap) {
            cap = cap == 0 ? 16 : cap * 2;
            *out = span_realloc(*out, cap * sizeof **out);
        }
        st = table_desc_decode(v, &(*out)[*count]);
        if (st == SPAN_OK) {
            (*count)++;
        } else {
            st = span_fail(err, st, "a descriptor is corrupt");
        }
    }
    if (scan != NULL) {
        kv->ops->scan_close(scan);
    }
    buf_deinit(&start);
    buf_deinit(&end);
    if (st == SPAN_NOT_FOUND) {
        return SPAN_OK;
    }
    for (size_t i = 0; i < *count; i++) {
        table_desc_unref((*out)[i]);
    }
    span_free(*out);
    *out = NULL;
    *count = 0;
    return st;
}

span_status schema_store(struct kv *kv, const struct table_desc *d, struct span_error *err)
{
    struct buf key = {0};
    struct buf value = {0};
    schema_name_key(d->name, &key);
    table_desc_encode(d, &value);
    span_status st = SPAN_OK;
    if (value.size > LIMIT_ROW_BYTES) {
        st = span_fail(err, SPAN_TOO_LARGE, "the definition of \"%s\" is larger than %llu bytes",
                       d->name, LIMIT_ROW_BYTES);
    } else {
        st = kv->ops->put(kv, buf_slice(&key), buf_slice(&value), err);
    }
    buf_deinit(&key);
    buf_deinit(&value);
    return st;
}
