#define LOWBIT_INSTRUCTIONS real
#include "instructions.inc"
