typedef struct { int todo; } Mixer;
typedef struct { int todo; } Coder;
