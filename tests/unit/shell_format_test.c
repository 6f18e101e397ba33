/* Output modes, over results made by hand with libpq. */
#include "sql/shell/format.h"

#include <criterion/criterion.h>
#include <locale.h>
#include <stdio.h>

/* n (int8), t (text), b (bool): (1, "x\ny,\"", t) and (22, NULL, f). */
static PGresult *sample(void)
{
    PGresAttDesc columns[3] = {{.name = (char[]){"n"}, .typid = 20},
                               {.name = (char[]){"t\xc3\xa9"}, .typid = 25},
                               {.name = (char[]){"b"}, .typid = 16}};
    PGresult *r = PQmakeEmptyPGresult(NULL, PGRES_TUPLES_OK);
    cr_assert_eq(PQsetResultAttrs(r, 3, columns), 1);
    cr_assert(PQsetvalue(r, 0, 0, (char[]){"1"}, 1));
    cr_assert(PQsetvalue(r, 0, 1, (char[]){"x\ny,\""}, 5));
    cr_assert(PQsetvalue(r, 0, 2, (char[]){"t"}, 1));
    cr_assert(PQsetvalue(r, 1, 0, (char[]){"22"}, 2));
    cr_assert(PQsetvalue(r, 1, 1, NULL, -1));
    cr_assert(PQsetvalue(r, 1, 2, (char[]){"f"}, 1));
    return r;
}

static void expect(struct shell_format f, const char *want)
{
    struct buf out;
    PGresult *r = sample();
    buf_init(&out);
    shell_format_result(&f, r, NULL, &out);
    cr_assert_str_eq(buf_cstr(&out), want);
    buf_deinit(&out);
    PQclear(r);
}

Test(shell_format, draws_tables_with_numbers_right_and_null_named)
{
    (void)setlocale(LC_CTYPE, "C.UTF-8");
    expect((struct shell_format){.mode = SHELL_TABLE, .header = true, .footer = true},
           "+----+--------+---+\n"
           "|  n | t\xc3\xa9     | b |\n"
           "+----+--------+---+\n"
           "|  1 | x\\ny,\" | t |\n"
           "| 22 | NULL   | f |\n"
           "+----+--------+---+\n"
           "(2 rows)\n");
    expect((struct shell_format){.mode = SHELL_TABLE, .unicode = true, .null_text = "-"},
           "┌────┬────────┬───┐\n"
           "│  1 │ x\\ny,\" │ t │\n"
           "│ 22 │ -      │ f │\n"
           "└────┴────────┴───┘\n");
}

Test(shell_format, writes_expanded_records)
{
    (void)setlocale(LC_CTYPE, "C.UTF-8");
    expect((struct shell_format){.mode = SHELL_EXPANDED},
           "-[ 1 ]\nn  | 1\nt\xc3\xa9 | x\\ny,\"\nb  | t\n-[ 2 ]\nn  | 22\nt\xc3\xa9 | NULL\nb  | "
           "f\n");
}

Test(shell_format, expands_only_what_is_wider_than_the_screen)
{
    (void)setlocale(LC_CTYPE, "C.UTF-8");
    expect((struct shell_format){.mode = SHELL_TABLE, .width = 19}, "+----+--------+---+\n"
                                                                    "|  1 | x\\ny,\" | t |\n"
                                                                    "| 22 | NULL   | f |\n"
                                                                    "+----+--------+---+\n");
    expect((struct shell_format){.mode = SHELL_TABLE, .width = 18},
           "-[ 1 ]\nn  | 1\nt\xc3\xa9 | x\\ny,\"\nb  | t\n-[ 2 ]\nn  | 22\nt\xc3\xa9 | NULL\nb  | "
           "f\n");
}

Test(shell_format, writes_csv_that_tells_null_from_empty_and_tsv_on_one_line_a_row)
{
    expect((struct shell_format){.mode = SHELL_CSV, .header = true},
           "n,t\xc3\xa9,b\n1,\"x\ny,\"\"\",t\n22,,f\n");
    expect((struct shell_format){.mode = SHELL_TSV}, "1\tx\\ny,\"\tt\n22\tNULL\tf\n");
}

Test(shell_format, writes_json_with_bare_numbers_and_booleans)
{
    (void)setlocale(LC_CTYPE, "C.UTF-8");
    expect((struct shell_format){.mode = SHELL_JSON},
           "[{\"n\": 1, \"t\xc3\xa9\": \"x\\ny,\\\"\", \"b\": true},\n"
           " {\"n\": 22, \"t\xc3\xa9\": null, \"b\": false}]\n");
    expect((struct shell_format){.mode = SHELL_JSONL},
           "{\"n\": 1, \"t\xc3\xa9\": \"x\\ny,\\\"\", \"b\": true}\n"
           "{\"n\": 22, \"t\xc3\xa9\": null, \"b\": false}\n");
}

/* SQLite puts any value into any column: what is no JSON number is a string. */
Test(shell_format, quotes_what_is_not_a_json_number)
{
    static const struct {
        const char *value;
        bool bare;
    } list[] = {{"0", true},       {"-1", true},   {"1.5", true},       {"1e+20", true},
                {"-2.5E-3", true}, {"01", false},  {"+1", false},       {".5", false},
                {"1.", false},     {"NaN", false}, {"Infinity", false}, {"", false},
                {"1e", false},     {"abc", false}, {"-", false}};

    for (size_t i = 0; i < sizeof(list) / sizeof(list[0]); i++) {
        PGresAttDesc column = {.name = (char[]){"n"}, .typid = 701};
        PGresult *r = PQmakeEmptyPGresult(NULL, PGRES_TUPLES_OK);
        struct shell_format f = {.mode = SHELL_JSONL};
        char text[32];
        char want[64];
        struct buf out;
        buf_init(&out);
        (void)PQsetResultAttrs(r, 1, &column);
        (void)snprintf(text, sizeof(text), "%s", list[i].value);
        (void)PQsetvalue(r, 0, 0, text, (int)strlen(text));
        shell_format_result(&f, r, NULL, &out);
        (void)snprintf(want, sizeof(want), list[i].bare ? "{\"n\": %s}\n" : "{\"n\": \"%s\"}\n",
                       text);
        cr_assert_str_eq(buf_cstr(&out), want);
        buf_deinit(&out);
        PQclear(r);
    }
}

Test(shell_format, shows_tags_only_to_people_and_json)
{
    struct buf out;
    buf_init(&out);
    for (int mode = SHELL_TABLE; mode <= SHELL_JSONL; mode++) {
        struct shell_format f = {.mode = (enum shell_mode)mode};
        buf_clear(&out);
        shell_format_tag(&f, "INSERT 0 1", &out);
        const char *want = mode == SHELL_CSV || mode == SHELL_TSV ? ""
                           : mode == SHELL_JSON || mode == SHELL_JSONL
                               ? "{\"status\": \"INSERT 0 1\"}\n"
                               : "INSERT 0 1\n";
        cr_assert_str_eq(buf_cstr(&out), want);
    }
    buf_deinit(&out);
}

Test(shell_format, measures_wide_combining_control_and_broken_characters)
{
    (void)setlocale(LC_CTYPE, "C.UTF-8");
    cr_assert_eq(shell_text_width(slice_str("abc")), 3);
    cr_assert_eq(shell_text_width(slice_str("\xe6\x97\xa5")), 2); /* a CJK character */
    cr_assert_eq(shell_text_width(slice_str("e\xcc\x81")), 1);    /* e and an accent on it */
    cr_assert_eq(shell_text_width(slice_str("\x01")), 4);         /* \x01 */
    cr_assert_eq(shell_text_width(slice_str("\xff")), 4);         /* \xff */
    cr_assert_eq(shell_text_width(slice_str("\xe6\x97")), 8);     /* cut short: two escapes */
}

Test(shell_format, knows_its_modes_by_their_names_and_others_by_theirs)
{
    enum shell_mode m;
    for (int mode = SHELL_TABLE; mode <= SHELL_JSONL; mode++) {
        cr_assert(shell_mode_parse(shell_mode_name((enum shell_mode)mode), &m));
        cr_assert_eq(m, (enum shell_mode)mode);
    }
    cr_assert(shell_mode_parse("box", &m) && m == SHELL_TABLE);
    cr_assert_not(shell_mode_parse("xml", &m));
}
