set(LOWBIT_ISA_FLAGS -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni)
set(LOWBIT_ISA_FLAGS_kernels_bf16 -mavx512bf16)  # its rows ask for avx512_bf16 themselves
