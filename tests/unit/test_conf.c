/* Configuration: each source, their precedence, and every error with the words a person needs. */
#include "base/conf.h"
#include "tests/lib/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct conf {
    char *model, *device;
    int64_t kv_pages, memory;
    double rate;
    int prefix_cache;
} conf;

static const ds_conf_key KEYS[] = {
    {"model", DS_CONF_STR, offsetof(conf, model), NULL, .help = "folder of the model"},
    {"device", DS_CONF_ENUM, offsetof(conf, device), "cpu", .choices = "cpu|cuda", .help = "back end"},
    {"kv_pages", DS_CONF_INT, offsetof(conf, kv_pages), "64", 1, 4096, .unit = "pages",
     .help = "pages of KV"},
    {"memory", DS_CONF_BYTES, offsetof(conf, memory), "64M", 4096, 0x1p40, .unit = "bytes", .help = "memory"},
    {"rate", DS_CONF_FLOAT, offsetof(conf, rate), "0.5", 0, 10, .unit = "1/s", .help = "rate"},
    {"prefix_cache", DS_CONF_BOOL, offsetof(conf, prefix_cache), "true", .help = "share prefixes"},
};
static const ds_conf_prog PROG = {"prog", "A program.", "--model DIR [options]", KEYS, 6, "The end."};

enum { MAX_WORDS = 12 };
typedef struct run {
    conf c;
    char *argv[MAX_WORDS];
    int argc, rest;
    ds_conf_action action;
    ds_err err;
    ds_code code;
} run;

/* Loads with the flags in `line` (split at spaces; "@" stands for a file with the content of `file`). */
static run load(const char *line, const char *file, char **envp, int words)
{
    static char text[512], path[64];
    run r = {.argv = {"prog"}, .argc = 1};
    int fd = memfd_create("conf", 0);
    CHECK(fd >= 0);
    if (file)
        CHECK(write(fd, file, strlen(file)) == (ssize_t)strlen(file));
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    snprintf(text, sizeof text, "%s", line);
    for (char *save, *w = strtok_r(text, " ", &save); w && r.argc < MAX_WORDS; w = strtok_r(NULL, " ", &save))
        r.argv[r.argc++] = strcmp(w, "@") == 0 ? path : w;
    r.code = ds_conf_load(&PROG, &r.c, r.argc, r.argv, envp, &r.action, words ? &r.rest : NULL, &r.err);
    close(fd);
    return r;
}

static void done(run *r)
{
    ds_conf_free(&PROG, &r->c);
}

static void fails(const char *line, const char *file, char **envp, const char *field, const char *words)
{
    run r = load(line, file, envp, 0);
    CHECK_MSG(r.code != DS_OK, "%s was accepted", line);
    CHECK_STR(r.err.field, field);
    CHECK_MSG(strstr(r.err.msg, words), "\"%s\" does not say \"%s\"", r.err.msg, words);
    CHECK(!r.c.model && !r.c.device);
}

DS_TEST(defaults)
{
    run r = load("", NULL, NULL, 0);
    CHECK_OK(r.code, r.err);
    CHECK_EQ(r.action, DS_CONF_RUN);
    CHECK(!r.c.model);
    CHECK_STR(r.c.device, "cpu");
    CHECK_EQ(r.c.kv_pages, 64);
    CHECK_EQ(r.c.memory, 64 << 20);
    CHECK(r.c.rate == 0.5 && r.c.prefix_cache == 1);
    done(&r);
}

DS_TEST(flags_in_every_form)
{
    run r = load("--kv-pages 100 --memory=2GiB --rate=2.5e-1 --no-prefix-cache --device=cuda --model=a=b",
                 NULL, NULL, 0);
    CHECK_OK(r.code, r.err);
    CHECK_EQ(r.c.kv_pages, 100);
    CHECK_EQ(r.c.memory, 2ll << 30);
    CHECK(r.c.rate == 0.25 && r.c.prefix_cache == 0);
    CHECK_STR(r.c.device, "cuda");
    CHECK_STR(r.c.model, "a=b");
    done(&r);
    r = load("--prefix-cache=off --kv_pages 7 --kv-pages 8", NULL, NULL, 0);
    CHECK_OK(r.code, r.err);
    CHECK_EQ(r.c.prefix_cache, 0);
    CHECK_EQ(r.c.kv_pages, 8); /* the last flag wins */
    done(&r);
}

DS_TEST(file_syntax)
{
    run r = load("--config @",
                 "# comment\r\n\n  kv-pages = 9  # pages\nmodel = \"a \\\"b\\\" # \\\\ \" # c\n"
                 "device='cuda'\nprefix_cache = no\nmemory = 16K",
                 NULL, 0);
    CHECK_OK(r.code, r.err);
    CHECK_EQ(r.c.kv_pages, 9);
    CHECK_STR(r.c.model, "a \"b\" # \\ ");
    CHECK_STR(r.c.device, "cuda");
    CHECK_EQ(r.c.prefix_cache, 0);
    CHECK_EQ(r.c.memory, 16384);
    done(&r);
    r = load("--config @", "model = a#b c\n", NULL, 0);
    CHECK_OK(r.code, r.err);
    CHECK_STR(r.c.model, "a#b c");
    done(&r);
}

DS_TEST(precedence)
{
    char *env[] = {"DSPARK_KV_PAGES=20", "DSPARK_RATE=2", "DSPARK_OTHER=x", "KV_PAGES=1", NULL};
    run r = load("--config @ --kv-pages 30", "kv_pages = 10\nrate = 1\nmemory = 8192\n", env, 0);
    CHECK_OK(r.code, r.err);
    CHECK_EQ(r.c.kv_pages, 30); /* flag over environment over file */
    CHECK(r.c.rate == 2);       /* environment over file */
    CHECK_EQ(r.c.memory, 8192); /* file over default */
    done(&r);
}

DS_TEST(actions)
{
    static const struct {
        const char *line;
        ds_conf_action action;
    } cases[] = {{"--help", DS_CONF_HELP},
                 {"-h", DS_CONF_HELP},
                 {"--version", DS_CONF_VERSION},
                 {"--check-config", DS_CONF_CHECK},
                 {"--help-markdown", DS_CONF_MARKDOWN},
                 {"--help --config does-not-exist", DS_CONF_HELP}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        run r = load(cases[i].line, NULL, NULL, 0);
        CHECK_OK(r.code, r.err);
        CHECK_EQ(r.action, cases[i].action);
        done(&r);
    }
}

DS_TEST(words_are_gathered_in_order)
{
    run r = load("chat --rate 1 hello --no-prefix-cache -1 -- --rate", NULL, NULL, 1);
    CHECK_OK(r.code, r.err);
    CHECK_EQ(r.argc - r.rest, 4);
    CHECK_STR(r.argv[r.rest], "chat");
    CHECK_STR(r.argv[r.rest + 1], "hello");
    CHECK_STR(r.argv[r.rest + 2], "-1");
    CHECK_STR(r.argv[r.rest + 3], "--rate");
    CHECK(r.c.rate == 1);
    done(&r);
}

DS_TEST(flag_errors)
{
    fails("--kv-page 3", NULL, NULL, "kv_page", "unknown flag --kv-page; did you mean --kv-pages?");
    fails("--zzzzzz", NULL, NULL, "zzzzzz", "unknown flag --zzzzzz");
    fails("--no-kv-pages", NULL, NULL, "no_kv_pages", "unknown flag");
    fails("--kv-pages", NULL, NULL, "kv_pages", "flag --kv-pages needs a value");
    fails("--kv-pages --rate 1", NULL, NULL, "kv_pages", "needs a value");
    fails("--kv-pages 0", NULL, NULL, "kv_pages",
          "flag --kv-pages: kv_pages is \"0\", must be 1 to 4096 pages");
    fails("--kv-pages 4097", NULL, NULL, "kv_pages", "1 to 4096 pages");
    fails("--kv-pages 1x", NULL, NULL, "kv_pages", "an integer, 1 to 4096 pages");
    fails("--kv-pages 99999999999999999999", NULL, NULL, "kv_pages", "an integer");
    fails("--kv-pages=", NULL, NULL, "kv_pages", "an integer");
    fails("--memory 1Q", NULL, NULL, "memory", "a size such as 4096, 64M or 2G, 4K to 1T bytes");
    fails("--memory 9000000000T", NULL, NULL, "memory", "a size");
    fails("--memory 2T", NULL, NULL, "memory", "4K to 1T bytes");
    fails("--rate nan", NULL, NULL, "rate", "a number, 0 to 10 1/s");
    fails("--rate 10.5", NULL, NULL, "rate", "0 to 10 1/s");
    fails("--prefix-cache=maybe", NULL, NULL, "prefix_cache", "true or false");
    fails("--device gpu", NULL, NULL, "device", "one of cpu|cuda");
    fails("--device cpu|cuda", NULL, NULL, "device", "one of cpu|cuda");
    fails("--device=", NULL, NULL, "device", "one of cpu|cuda");
    fails("stray", NULL, NULL, "", "unexpected word \"stray\"");
    fails("--config", NULL, NULL, "config", "flag --config needs a value");
    fails("--confg x", NULL, NULL, "confg", "did you mean --config?");
}

DS_TEST(environment_errors)
{
    char *env[] = {"DSPARK_KV_PAGES=no", NULL};
    fails("", NULL, env, "kv_pages", "environment DSPARK_KV_PAGES: kv_pages is \"no\"");
}

DS_TEST(file_errors)
{
    fails("--config @", "\n\nkv_pags = 3\n", NULL, "kv_pags",
          ":3: unknown key \"kv_pags\"; did you mean kv_pages?");
    fails("--config @", "kv_pages = 5\nkv-pages = 6\n", NULL, "kv_pages",
          ":2: key kv_pages was already set in line 1");
    fails("--config @", "kv_pages = 0\n", NULL, "kv_pages", ":1: kv_pages is \"0\", must be 1 to 4096 pages");
    fails("--config @", "hello\n", NULL, "", ":1: \"hello\" is not of the form key = value");
    fails("--config @", "[section]\n", NULL, "", "is not of the form key = value");
    fails("--config @", "model = \"open\n", NULL, "model", "open quote");
    fails("--config @", "model = \"a\" b\n", NULL, "model", "text after its quotes");
    fails("--config @", "model = \"a\\qb\"\n", NULL, "model", "unknown escape");
    fails("--config does/not/exist", NULL, NULL, "config", "config file does/not/exist: No such file");
    fails("--config /", NULL, NULL, "config", "config file /: ");
}

DS_TEST(file_limits)
{
    int fd = memfd_create("conf", 0);
    char path[64], *argv[] = {"prog", "--config", path};
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    conf c = {0};
    ds_conf_action action;
    ds_err err;
    CHECK(write(fd, "rate = 1\0", 9) == 9);
    CHECK_EQ(ds_conf_load(&PROG, &c, 3, argv, NULL, &action, NULL, &err), DS_EINVAL);
    CHECK(strstr(err.msg, "NUL byte"));
    char *big = malloc(1 << 20);
    memset(big, '\n', 1 << 20);
    CHECK(pwrite(fd, big, 1 << 20, 0) == 1 << 20);
    ds_code at_limit = ds_conf_load(&PROG, &c, 3, argv, NULL, &action, NULL, &err);
    ds_conf_free(&PROG, &c);
    CHECK(pwrite(fd, "\n", 1, 1 << 20) == 1);
    ds_code beyond = ds_conf_load(&PROG, &c, 3, argv, NULL, &action, NULL, &err);
    free(big);
    close(fd);
    CHECK_EQ(at_limit, DS_OK);
    CHECK_EQ(beyond, DS_EINVAL);
    CHECK(strstr(err.msg, "larger than 1048576 bytes"));
}

DS_TEST(dump_reads_back)
{
    run a = load("--model @ --rate 0.1 --memory 3M --device cuda --no-prefix-cache", NULL, NULL, 0);
    CHECK_OK(a.code, a.err);
    free(a.c.model);
    a.c.model = strdup("two words # \"quoted\" \\ back");
    ds_buf text = {0};
    CHECK_EQ(ds_conf_dump(&PROG, &a.c, &text), DS_OK);
    CHECK(strstr(text.data, "memory = 3M\n") && strstr(text.data, "rate = 0.1\n"));
    run b = load("--config @", text.data, NULL, 0);
    CHECK_OK(b.code, b.err);
    CHECK_STR(b.c.model, a.c.model);
    CHECK_STR(b.c.device, "cuda");
    CHECK(b.c.rate == a.c.rate && b.c.memory == a.c.memory && b.c.prefix_cache == 0);
    ds_buf_free(&text);
    done(&a);
    done(&b);
}

DS_TEST(help_and_reference_name_every_key)
{
    ds_buf help = {0}, page = {0};
    CHECK_EQ(ds_conf_help(&PROG, &help), DS_OK);
    CHECK_EQ(ds_conf_markdown(&PROG, &page), DS_OK);
    CHECK(strstr(help.data, "Usage: prog --model DIR [options]\nA program."));
    CHECK(strstr(help.data, "  --kv-pages N                pages of KV (default 64; 1 to 4096 pages)\n"));
    CHECK(strstr(help.data, "  --[no-]prefix-cache "));
    CHECK(strstr(help.data, "The end."));
    CHECK(strstr(page.data, "| `kv_pages` | integer | `64` | 1 to 4096 pages | pages of KV |\n"));
    CHECK(strstr(page.data, "| `device` | choice | `cpu` | cpu\\|cuda | back end |\n"));
    for (const char *line = help.data; *line; line += strcspn(line, "\n") + 1)
        CHECK_MSG(strcspn(line, "\n") <= 110, "a help line is too wide");
    ds_buf_free(&help);
    ds_buf_free(&page);
}
