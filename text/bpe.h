/* bpe.h - byte-pair merges of one word. Read-only after the loader; scratch belongs to one call. */
#ifndef DS_TEXT_BPE_H
#define DS_TEXT_BPE_H

#include "text/tokenizer.h"
#include "text/vocab.h"

typedef struct ds_merge {
    int32_t left, right, id; /* left < 0: free slot */
    uint32_t rank;
} ds_merge;

typedef struct ds_bpe {
    const ds_vocab *vocab;
    ds_merge *merge; /* open addressing by (left, right) */
    uint32_t n_slots, n_merges;
    int32_t byte_id[256]; /* token of a single byte (byte-level letter, or <0xHH>), or -1 */
    int byte_level;       /* symbols start as bytes; else as code points, with bytes as the fallback */
    int ignore_merges;    /* a word that is a token is that token, whatever the merges say */
    int32_t unk_id;       /* for what has no symbol; -1: dropped, as the reference does */
    int fuse_unk;
} ds_bpe;

typedef struct ds_bpe_symbol {
    int32_t id; /* -1: merged into an earlier one */
    uint32_t prev, next;
} ds_bpe_symbol;

typedef struct ds_bpe_scratch {
    ds_bpe_symbol *symbol;
    uint64_t *heap; /* rank << 32 | position */
    size_t n, cap, n_heap, cap_heap;
    ds_buf raw;
} ds_bpe_scratch;

/* ds_bpe_add: the next merge in order of rank; a pair given twice keeps the later rank, as in the reference.
 */
ds_code ds_bpe_add(ds_bpe *b, int32_t left, int32_t right, int32_t id, uint32_t rank);
/* ds_bpe_word: appends the ids of one pre-token. O(n log n) time, 28 bytes of scratch a byte at worst. */
ds_code ds_bpe_word(const ds_bpe *b, ds_bpe_scratch *s, const char *word, size_t len, ds_ids *out);
void ds_bpe_scratch_free(ds_bpe_scratch *s);
void ds_bpe_free(ds_bpe *b);

ds_code ds_ids_push(ds_ids *ids, int32_t id);

#endif
