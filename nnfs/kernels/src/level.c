// One level: everything that profits from a set of instructions, compiled for it.
#include "network.c"
#include "mixer.c"
#include "samples.c"
#include "light.c"
#include "fields.c"

const Level LEVEL_SYMBOL = {LEVEL_NAME, WEIGHT_OFFSET, KEY_OFFSET, step, net_path, mix_encode, mix_enter, mix_decode, run_samples, light_encode, light_decode, run_fields};
