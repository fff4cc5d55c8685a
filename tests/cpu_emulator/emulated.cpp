#define LOWBIT_INSTRUCTIONS emulated
#include "instructions.inc"
