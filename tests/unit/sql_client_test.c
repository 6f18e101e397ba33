/* What `spanlite node` and `spanlite range` print, from results made by hand. */
#include "coordinator/sql_client.h"

#include <criterion/criterion.h>
#include <string.h>

static PGresult *result;
static struct buf out;

/* Columns id int8, name text, up bool, ratio float8; NULL cells by a NULL text. */
static void make_result(const char *const rows[][4], int count)
{
    static char id[] = "id";
    static char name[] = "name";
    static char up[] = "up";
    static char ratio[] = "ratio";
    PGresAttDesc columns[4] = {{.name = id, .typid = 20},
                               {.name = name, .typid = 25},
                               {.name = up, .typid = 16},
                               {.name = ratio, .typid = 701}};

    result = PQmakeEmptyPGresult(NULL, PGRES_TUPLES_OK);
    cr_assert(PQsetResultAttrs(result, 4, columns));
    for (int i = 0; i < count; i++) {
        for (int c = 0; c < 4; c++) {
            const char *text = rows[i][c];

            cr_assert(PQsetvalue(result, i, c, (char *)(uintptr_t)text,
                                 text != NULL ? (int)strlen(text) : -1));
        }
    }
}

static void teardown(void)
{
    PQclear(result);
    buf_deinit(&out);
}

TestSuite(sql_client, .fini = teardown);

Test(sql_client, tables_align_numbers_right_and_text_by_characters)
{
    const char *const rows[][4] = {{"7", "Zoë", "t", "0.5"}, {"1234", NULL, "f", NULL}};

    make_result(rows, 2);
    sql_client_table(result, NULL, &out);
    cr_assert_str_eq(buf_cstr(&out), "  id  name  up  ratio\n"
                                     "----  ----  --  -----\n"
                                     "   7  Zoë   t     0.5\n"
                                     "1234  -     f       -\n");
}

Test(sql_client, tables_have_the_columns_asked_for_in_that_order)
{
    const char *const rows[][4] = {{"7", "ada", "t", "0.5"}};

    make_result(rows, 1);
    sql_client_table(result, "up id nonsense", &out);
    cr_assert_str_eq(buf_cstr(&out), "up  id\n--  --\nt    7\n");
}

Test(sql_client, json_has_bare_numbers_and_escaped_text)
{
    const char *const rows[][4] = {{"7", "a\"b\\c\n\x01", "t", "-1.5e3"}, {NULL, "", "f", "NaN"}};

    make_result(rows, 2);
    sql_client_json(result, &out);
    cr_assert_str_eq(
        buf_cstr(&out),
        "[\n  {\"id\": 7, \"name\": \"a\\\"b\\\\c\\n\\u0001\", \"up\": true, \"ratio\": -1.5e3},"
        "\n  {\"id\": null, \"name\": \"\", \"up\": false, \"ratio\": \"NaN\"}\n]\n");
}

Test(sql_client, no_rows_are_an_empty_array)
{
    make_result(NULL, 0);
    sql_client_json(result, &out);
    cr_assert_str_eq(buf_cstr(&out), "[]\n");
}

Test(sql_client, no_server_is_said_in_one_line)
{
    struct span_error err = {0};
    PGconn *conn = NULL;

    cr_assert_eq(sql_client_connect("postgresql://me:secret@127.0.0.1:1/x", &conn, &err),
                 SPAN_UNAVAILABLE);
    cr_assert_null(conn);
    cr_assert(strstr(err.text, "127.0.0.1") != NULL, "%s", err.text);
    cr_assert_null(strstr(err.text, "secret"));
    cr_assert_null(strchr(err.text, '\n'));
}
