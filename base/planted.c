/* The table of planted bugs by name; see planted.h. */
#include "base/planted.h"

#include <ctype.h>
#include <string.h>

uint64_t planted_bits;

static const struct planted_info table[] = {
#define PLANTED_ROW(name, seeds, scenario, text) {#name, seeds, #scenario, text},
    PLANTED_TABLE(PLANTED_ROW)
#undef PLANTED_ROW
};

_Static_assert(PLANTED_COUNT <= 64, "one word holds them");

const struct planted_info *planted_get(size_t i)
{
    return i < PLANTED_COUNT ? &table[i] : NULL;
}

static bool name_is(const char *name, const char *given)
{
    size_t i = 0;
    for (; name[i] != 0 && given[i] != 0; i++) {
        char want = name[i] == '_' ? '-' : (char)tolower((unsigned char)name[i]);
        if (want != given[i]) {
            return false;
        }
    }
    return name[i] == given[i];
}

const struct planted_info *planted_set(const char *name)
{
    for (size_t i = 0; i < PLANTED_COUNT; i++) {
        if (name_is(table[i].name, name)) {
            planted_bits |= 1ULL << i;
            return &table[i];
        }
    }
    return NULL;
}
