/* file.h - reads one small file of a checkpoint folder. */
#ifndef DS_TEXT_FILE_H
#define DS_TEXT_FILE_H

#include "base/buf.h"
#include "base/err.h"

/* ds_text_read_file: appends dir/name to out. DS_ENOTFOUND, DS_EIO, DS_ELIMIT (DS_MAX_TOKENIZER_BYTES) name
 * the file; out is freed on error. */
ds_code ds_text_read_file(const char *dir, const char *name, ds_buf *out, ds_err *err);

#endif
