/* conf_text.h - words that conf.c (errors, dump) and conf_help.c (help, reference page) share. */
#ifndef DS_BASE_CONF_TEXT_H
#define DS_BASE_CONF_TEXT_H

#include "base/conf.h"

#include <stdint.h>

enum { DS_CONF_WORD = 512 }; /* bytes enough for any of the texts below; longer ones are cut */

void ds_conf_flag(const ds_conf_key *key, char out[DS_CONF_WORD]);  /* "--kv-pages" */
void ds_conf_env(const ds_conf_key *key, char out[DS_CONF_WORD]);   /* "DSPARK_KV_PAGES" */
void ds_conf_range(const ds_conf_key *key, char out[DS_CONF_WORD]); /* "1 to 4096 pages"; "" when unbounded */
void ds_conf_number(double v, char out[DS_CONF_WORD]);              /* shortest text that reads back equal */
void ds_conf_size(int64_t bytes, char out[DS_CONF_WORD]);           /* "64M", "1000" */
const char *ds_conf_type_name(const ds_conf_key *key);              /* "integer", "size", ... */

#endif
