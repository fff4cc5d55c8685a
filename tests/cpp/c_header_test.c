/* The public header is C, and liblowbit.so is all that a program in C needs: y = x W^T + bias, W the identity. */
#include <lowbit/lowbit.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                       \
  do {                                                                                         \
    if (!(condition)) {                                                                        \
      fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #condition, lowbit_last_error()); \
      return 1;                                                                                \
    }                                                                                          \
  } while (0)

enum { n = 5, k = 5, m = 2 };

int main(void) {
  int8_t codes[n * k] = {0};
  float scales[n], bias[n], x[m * k], y[m * n];
  for (int i = 0; i < n; ++i) {
    codes[i * k + i] = 1;
    scales[i] = 0.5f;
    bias[i] = (float)i;
  }
  for (int i = 0; i < m * k; ++i) x[i] = (float)(2 * i);

  lowbit_weight w;
  memset(&w, 0, sizeof w);
  CHECK(lowbit_format_find("int8", &w.format) == LOWBIT_OK);
  w.n = n;
  w.k = k;
  w.group_n = 1;
  w.group_k = k;
  w.codes = codes;
  w.scales = scales;
  w.scale_dtype = LOWBIT_F32;
  w.global_scale = 1;
  lowbit_array_shapes shapes;
  CHECK(lowbit_weight_shapes(&w, &shapes) == LOWBIT_OK);
  CHECK(shapes.codes[0] == n && shapes.codes[1] == k && shapes.scales[0] == n && shapes.scales[1] == 1);
  CHECK(shapes.super_dimensions == 0);
  size_t bytes = 0;
  CHECK(lowbit_packed_bytes(&w, &bytes) == LOWBIT_OK);
  void* packed = malloc(bytes);
  CHECK(packed && lowbit_pack(&w, packed, bytes, NULL) == LOWBIT_OK);

  lowbit_gemm_args args;
  memset(&args, 0, sizeof args);
  args.family = LOWBIT_WEIGHT_ONLY;
  args.m = m;
  args.x = x;
  args.x_dtype = LOWBIT_F32;
  args.x_stride = k;
  args.packed = packed;
  args.packed_bytes = bytes;
  args.bias = bias;
  args.bias_dtype = LOWBIT_F32;
  args.y = y;
  args.y_dtype = LOWBIT_F32;
  args.y_stride = n;
  CHECK(lowbit_gemm(&args) == LOWBIT_OK);
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j) CHECK(y[i * n + j] == (float)(i * k + j) + (float)j);

  args.packed_bytes = 8;
  CHECK(lowbit_gemm(&args) == LOWBIT_INVALID_VALUE && strstr(lowbit_last_error(), "8"));
  CHECK(lowbit_format_find("int3.5", &w.format) == LOWBIT_INVALID_VALUE);
  CHECK(lowbit_function_find("gelu_tanh", &args.function) == LOWBIT_OK && args.function == LOWBIT_GELU_TANH);
  CHECK(lowbit_function_find("tanh", &args.function) == LOWBIT_INVALID_VALUE && strstr(lowbit_last_error(), "tanh"));
  w.group_k = 0;
  CHECK(lowbit_weight_shapes(&w, &shapes) == LOWBIT_INVALID_VALUE && strstr(lowbit_last_error(), "1 x 0"));
  free(packed);
  printf("lowbit %s, level %s\n", lowbit_version(), lowbit_cpu_isa_name(lowbit_cpu_isa()));
  return 0;
}
