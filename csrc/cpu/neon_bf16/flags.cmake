set(LOWBIT_ISA_FLAGS -march=armv8.2-a+dotprod+i8mm+bf16 -fno-schedule-insns)
