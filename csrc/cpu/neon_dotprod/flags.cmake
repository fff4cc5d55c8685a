set(LOWBIT_ISA_FLAGS -march=armv8.2-a+dotprod -fno-schedule-insns)  # SDOT came with Armv8.2
