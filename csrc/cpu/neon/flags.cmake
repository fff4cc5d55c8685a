# GCC's scheduler before register allocation moves loads up until the sums of a tile no longer fit: 6 x 4 spilled.
set(LOWBIT_ISA_FLAGS -fno-schedule-insns)
