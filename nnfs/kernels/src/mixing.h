// The mixer's state of one chunk: memory of `nnfs.mixer.state`, laid out as numba's kernels have it, so that either can
// go on with it.
enum { CONTEXTS = 14, MATCHES = 2, INPUTS = 32, SETS = 4, CERTAIN = 33, RECORD = 12, FIND_BITS = 16, MOST_CHUNK_LANES = 32, MOST_STATES = 256 };
enum { LAST, WORD, WORD_BEFORE, LINE, LINE_BEFORE, POINT, LENGTH, MISSES }; // of a record; three for each match model
enum { LIMIT = 2839, SQUASHED = 2 * LIMIT + 1 };

typedef struct { // what all chunks share: made once by Python, from the arrays of nnfs.mixer
    i32 squash[SQUASHED];
    i16 stretch[65536];
    i16 coarse[4096];
    u8 next[512];
    i32 reciprocal[1024];
    i32 fine[SQUASHED];
} Tables;

typedef struct {
    const Tables *tables;
    i64 size, lanes, stride, begin; // bytes of the chunk; rows of records or 0; where it begins in `plain`
    i64 lines, rate, rate_last, map_limit, refine_limit;
    u8 *plain;         // (begin + size,)
    u8 *table;         // (16 lines,): check byte and 15 bit histories a line
    u32 *maps;         // (CONTEXTS, 256)
    u32 *match_maps;   // (MATCHES, 512)
    i32 *weights;      // (592, INPUTS)
    i32 *weights_last; // (256, SETS)
    u32 *refine;       // (256 + 4096, CERTAIN)
    i32 *find;         // (MATCHES, 2^FIND_BITS)
    i64 *record;       // (lanes, RECORD)
} Mixer;

// The state of one chunk of codec 20: memory of `nnfs.mixer.lightstate`
enum { LIGHT_CONTEXTS = 11, LIGHT_INPUTS = 24 };
typedef struct {
    const Tables *tables;
    i64 size, lines;
    u8 *plain;         // (size,)
    const i32 *pairs;  // (LIGHT_CONTEXTS, 256): a stretch in the low half, a slope in the high one
    u8 *table;         // (16 lines,): check byte and 15 bit histories a line
    u32 *match_map;    // (256,)
    i32 *weights;      // (568, LIGHT_INPUTS)
    i32 *weights_last; // (256, SETS)
    u32 *refine;       // (256 + 4096, CERTAIN)
    i32 *find;         // (2^FIND_BITS,)
} Light;

// The state of one chunk of fields: memory of `nnfs.mixer.fieldstate`, in its order
enum { FIELD_CONTEXTS = 16, FIELD_INPUTS = 48 };
typedef struct {
    const Tables *tables;
    i64 size, lines, stride, width, skip, big; // bytes of the chunk, a record, a field, before the first field
    u8 *plain;         // (size,)
    u8 *table;         // (16 lines,): check byte and 15 bit histories a line
    u32 *maps;         // (FIELD_CONTEXTS, 256)
    u32 *match_map;    // (256,)
    u32 *guess_map;    // (3, 512)
    u32 *delta;        // (3, 44, 8, 256)
    u16 *indirect;     // (2^16,): a byte, and above it how often it came
    i32 *weights;      // (1552, FIELD_INPUTS)
    i32 *weights_last; // (256, 6)
    u32 *refine;       // (256 + 4096, CERTAIN)
    i32 *find;         // (2^FIND_BITS,)
} Fields;

// The entropy decoder of one chunk (`nnfs.codec.rans`)
typedef struct {
    i64 *states;
    i64 width; // of them
    const u8 *words;
    i64 size, cursor;
} Coder;

// The state of one chunk of samples: memory of `nnfs.mixer.samples.Samples`, in its order
enum { EXPERTS = 6, SOLVERS = 2, MOST_REGRESSORS = 32, SAMPLE_CONTEXTS = 6, SAMPLE_TABLE_BITS = 18 };
typedef struct {
    const Tables *tables;
    const i64 *parameters;
    i32 *value;
    const i64 *offsets;
    i64 *r, *b, *w, *lower, *scratch, *x, *mean, *narrow, *place;
    i32 *error;
    i64 *spread;
    i32 *weights, *weights_last;
    u32 *refine;
    i32 *inputs;
    i64 *key;
    u8 *table;
    u32 *maps;
    i64 *hashed, *seen, *below;
} Samples;
