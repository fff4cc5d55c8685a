set(LOWBIT_ISA_FLAGS -fno-schedule-insns)
