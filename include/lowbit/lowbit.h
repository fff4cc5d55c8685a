// lowbit: low-precision GEMM kernels. The one public C header: no torch, no C++, no global state but
// the CPU level chosen at start. Everything else in csrc/ is private.
//
// The life of a weight:   canonical form --lowbit_pack--> packed bytes --lowbit_gemm--> y = x W^T + bias
//
// A member that is zero means what it meant before there was that member: zero a struct, then fill in what you know.
//
// Every function returns a status and throws, prints and aborts nothing; lowbit_last_error() then holds one
// sentence with the offending numbers (per thread). Matrices are row-major. Pointers need no alignment
// unless stated; 64-byte aligned packed weights are faster.
#ifndef LOWBIT_LOWBIT_H
#define LOWBIT_LOWBIT_H

#include <stddef.h>
#include <stdint.h>

#if defined(LOWBIT_BUILD)
#define LOWBIT_API __attribute__((visibility("default")))
#else
#define LOWBIT_API
#endif

// Enumerations are ints: any number that C can hold in one may be given, and what is none of its values is refused.
#ifdef __cplusplus
#define LOWBIT_INT : int
extern "C" {
#else
#define LOWBIT_INT
#endif

typedef enum lowbit_status LOWBIT_INT {
  LOWBIT_OK = 0,
  LOWBIT_INVALID_VALUE = 1,  // a size, code, scale or header that cannot be: see lowbit_last_error()
  LOWBIT_INVALID_TYPE = 2,   // a dtype that this operation does not take
  LOWBIT_UNSUPPORTED = 3,    // no kernel runs this problem here
  LOWBIT_OUT_OF_MEMORY = 4,
} lowbit_status;

typedef enum lowbit_dtype LOWBIT_INT {
  LOWBIT_F32 = 0,
  LOWBIT_F16 = 1,
  LOWBIT_BF16 = 2,
  LOWBIT_I8 = 3,
  LOWBIT_E8M0 = 4,  // OCP MX scale: 2^(byte - 127), 255 is NaN
  LOWBIT_E4M3 = 5,  // OCP FP8, finite only ("fn"): 448 is the largest, 0x7f and 0xff are NaN
  LOWBIT_U8 = 6,    // a code of a format's own table of scales: lowbit_format_info.scale_values
} lowbit_dtype;

// Where memory is, where a product is computed, what a packed weight is laid out for. LOWBIT_CUDA is the current device
// of the calling thread: select it (cudaSetDevice) and keep it current during the call.
typedef enum lowbit_device LOWBIT_INT {
  LOWBIT_CPU = 0,
  LOWBIT_CUDA = 1,
} lowbit_device;

LOWBIT_API const char* lowbit_last_error(void);
LOWBIT_API const char* lowbit_version(void);

// ---- formats -----------------------------------------------------------------------------------------------

// A format is an index into the table of csrc/formats/formats.inc.
typedef int32_t lowbit_format;

typedef struct lowbit_format_info {
  const char* name;           // "int4", "mxfp4", ... as published
  int32_t bits;               // per code: 2, 3, 4, 5, 6 or 8
  int32_t block_n, block_k;   // weights that share a scale; 0: the caller's choice
  int32_t scale_dtype;        // a lowbit_dtype, or -1: the caller's choice of F32, F16, BF16
  int32_t has_zero_point;     // zero points are allowed
  int32_t has_global_scale;   // one more fp32 factor for the whole tensor
  const float* values;        // [2^bits] value of every code
  int32_t is_integer;         // LOWBIT_INTEGER multiplies by it
  int32_t has_signed_scales;  // scales may be negative
  int32_t has_min;            // every group has a minimum, stored as its scale is
  // Scales of two levels: `scales` are small numbers, which a larger block multiplies by its super scale.
  int32_t super_groups;       // groups that share a super scale; 0: scales of one level
  int32_t super_dtype;        // F16 or F32
  int32_t super_flat;         // they are counted on from row to row; else each row begins a new block
  const float* scale_values;  // [256] what a scale of U8 stands for; NULL: its dtype says
} lowbit_format_info;

LOWBIT_API int32_t lowbit_num_formats(void);
LOWBIT_API lowbit_status lowbit_format_get(lowbit_format format, lowbit_format_info* info);
LOWBIT_API lowbit_status lowbit_format_find(const char* name, lowbit_format* format);

// ---- threads -----------------------------------------------------------------------------------------------

// The caller's thread pool. run() calls body(arg, begin, end) on disjoint ranges that cover [0, count), on up to
// num_threads threads, and returns when all are done. A NULL lowbit_parallel or run: the calling thread alone.
typedef struct lowbit_parallel {
  void (*run)(void* context, int64_t count, void (*body)(void* arg, int64_t begin, int64_t end), void* arg);
  void* context;
  int32_t num_threads;
} lowbit_parallel;

// ---- weights -----------------------------------------------------------------------------------------------

// The canonical form, as checkpoints hold it. W[i][j] = ((value(code) - zero_point) * scale + min) * global_scale.
// Of formats with super_groups, scale = scales[..] * super_scales[..] + scale_offset and min = mins[..] *
// super_mins[..].
typedef struct lowbit_weight {
  lowbit_format format;
  int64_t n, k;              // W is n x k: n outputs, k inputs
  int64_t group_n, group_k;  // one scale for each group_n x group_k rectangle; the last ones may be short
  const void* codes;         // [n][ceil(k * bits / 8)] bytes, element 0 in the low bits.
                             //   int4: two's complement + 8, as compressed-tensors; int8: two's complement
  const void* scales;        // [ceil(n / group_n)][ceil(k / group_k)] of scale_dtype
  lowbit_dtype scale_dtype;
  const int8_t* zero_points;  // same shape as scales, in the units of value(); NULL: none
  float global_scale;         // 1 where the format has none
  const void* mins;           // has_min: same shape and dtype as scales
  const void* super_scales;   // super_groups: of super_dtype, [n][ceil(groups / super_groups)], or super_flat:
                              //   [ceil(n * groups / super_groups)], groups = ceil(k / group_k)
  const void* super_mins;     // has_min and super_groups: same shape and dtype as super_scales
  float scale_offset;         // of scales that are U8; 0 for others
  lowbit_device packed_for;   // the layout of its packed form: panels for CPUs or fragments for GPUs
} lowbit_weight;

// Where lowbit_unpack writes: arrays as lowbit_weight has them. Those that the weight does not have may be NULL.
typedef struct lowbit_weight_arrays {
  void *codes, *scales;
  int8_t* zero_points;
  void *mins, *super_scales, *super_mins;
} lowbit_weight_arrays;

// Shapes of the arrays of lowbit_weight, from format, n, k and group alone.
typedef struct lowbit_array_shapes {
  int64_t codes[2];          // bytes
  int64_t scales[2];         // and of zero points and mins
  int32_t super_dimensions;  // of super scales and super mins: 2, super_flat: 1; 0: there are none
  int64_t supers[2];
} lowbit_array_shapes;
LOWBIT_API lowbit_status lowbit_weight_shapes(const lowbit_weight* weight, lowbit_array_shapes* shapes);
// The bytes that lowbit_pack writes, from the description alone (pointers are not read).
LOWBIT_API lowbit_status lowbit_packed_bytes(const lowbit_weight* weight, size_t* bytes);
// Checks every scale, zero point and code, then writes header and codes, for the CPU or for GPUs as
// weight->packed_for says; all memory is the host's. `packed` is untouched on an error.
LOWBIT_API lowbit_status lowbit_pack(const lowbit_weight* weight, void* packed, size_t bytes,
                                     const lowbit_parallel* parallel);
// Reads the header of packed bytes, the first LOWBIT_PACKED_HEADER_BYTES, and checks it; the rest is not read, only
// counted. Pointers in *weight become NULL (zero_points: non-NULL if there are any; what else there is the format
// says); every other member is filled in.
LOWBIT_API lowbit_status lowbit_packed_describe(const void* packed, size_t bytes, lowbit_weight* weight);
#define LOWBIT_PACKED_HEADER_BYTES 256
// The exact inverse of lowbit_pack, of either layout.
LOWBIT_API lowbit_status lowbit_unpack(const void* packed, size_t bytes, const lowbit_weight_arrays* out,
                                       const lowbit_parallel* parallel);
// out[n][k] = W in F32, F16 or BF16 (computed in fp32, rounded once).
LOWBIT_API lowbit_status lowbit_dequantize_packed(const void* packed, size_t bytes, void* out, lowbit_dtype dtype,
                                                  const lowbit_parallel* parallel);
LOWBIT_API lowbit_status lowbit_dequantize(const lowbit_weight* weight, void* out, lowbit_dtype dtype,
                                           const lowbit_parallel* parallel);

// A weight's description as text, "int4 4096x11008 1x128 bfloat16" (format, n x k, group_n x group_k, dtype of scales,
// then " zero_points" if there are any), and back, checked; the global scale is not in it. For whoever holds a packed
// weight in device memory and cannot read its header.
LOWBIT_API lowbit_status lowbit_weight_to_text(const lowbit_weight* weight, char* text, size_t bytes);
LOWBIT_API lowbit_status lowbit_weight_from_text(const char* text, lowbit_weight* weight);

// The same on the device: every pointer but `weight` is device memory, `stream` a cudaStream_t (NULL: the default one).
// Nothing is allocated or waited for, so that a CUDA graph can hold the call. `weight` is a description, its codes,
// scales and zero points in device memory; packed_for is taken for LOWBIT_CUDA. Packing checks the description alone:
// values stay unseen on the device, and NaN scales or codes go through.
LOWBIT_API lowbit_status lowbit_pack_cuda(const lowbit_weight* weight, void* packed, size_t bytes, void* stream);
LOWBIT_API lowbit_status lowbit_unpack_cuda(const lowbit_weight* weight, const void* packed, size_t bytes,
                                            const lowbit_weight_arrays* out, void* stream);
LOWBIT_API lowbit_status lowbit_dequantize_packed_cuda(const lowbit_weight* weight, const void* packed, size_t bytes,
                                                       void* out, lowbit_dtype dtype, void* stream);
LOWBIT_API lowbit_status lowbit_dequantize_cuda(const lowbit_weight* weight, void* out, lowbit_dtype dtype,
                                                void* stream);

// codes[i][j] = the code whose value is nearest to w / divisor + zero_point, ties to the even code, saturating;
// a NaN quotient becomes the code of 0.
// The quotient is rounded to the wider of the two dtypes first, as torch would. zero_points may be NULL.
typedef struct lowbit_encode_args {
  lowbit_format format;
  int64_t n, k, group_n, group_k;
  const void* w;               // [n][k]
  lowbit_dtype w_dtype;        // F32, F16, BF16
  const void* divisor;         // [ceil(n / group_n)][ceil(k / group_k)]
  lowbit_dtype divisor_dtype;  // F32, F16, BF16
  const int8_t* zero_points;
  void* codes;  // [n][ceil(k * bits / 8)]
} lowbit_encode_args;
LOWBIT_API lowbit_status lowbit_encode(const lowbit_encode_args* args, const lowbit_parallel* parallel);
LOWBIT_API lowbit_status lowbit_encode_cuda(const lowbit_encode_args* args, void* stream);

// ---- multiplication ----------------------------------------------------------------------------------------

typedef enum lowbit_family LOWBIT_INT {
  LOWBIT_WEIGHT_ONLY = 0,  // y = x W^T + bias in floating point, W decoded on the way
  LOWBIT_INTEGER = 1,      // x quantized to int8, exact int32 sums, scales after; integer weights
  LOWBIT_FP8 = 2,          // x quantized to E4M3, sums of E4M3 products in floating point, scales after; weights
                           // whose values E4M3 has; CUDA only
} lowbit_family;

typedef enum lowbit_activation LOWBIT_INT {
  LOWBIT_DYNAMIC_SYMMETRIC = 0,   // per row: scale = max|x| / 127
  LOWBIT_DYNAMIC_ASYMMETRIC = 1,  // per row: scale = (max - min) / 255 over a range that includes 0
  LOWBIT_STATIC = 2,              // x_scale (and x_zero_point) given; x may be I8 (E4M3 for LOWBIT_FP8) already
} lowbit_activation;

// How LOWBIT_FP8 sums. Tensor cores add E4M3 products with fewer bits than fp32 has: PROMOTED adds their sums of 128
// columns in fp32, FAST leaves all of K to them.
typedef enum lowbit_accumulation LOWBIT_INT {
  LOWBIT_PROMOTED = 0,
  LOWBIT_FAST = 1,
} lowbit_accumulation;

// What a product does to its sums before they are rounded to y:
//   y[m][n] = to_y( combine( function( x W^T + bias ), other[m][n] ) ), all of it in fp32.
typedef enum lowbit_function LOWBIT_INT {
  LOWBIT_IDENTITY = 0,
  LOWBIT_SILU = 1,       // x / (1 + exp(-x))
  LOWBIT_GELU = 2,       // x Phi(x), Phi the normal distribution
  LOWBIT_GELU_TANH = 3,  // x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
  LOWBIT_RELU = 4,       // max(x, 0)
} lowbit_function;

// "silu", "gelu", "gelu_tanh", "relu"
LOWBIT_API lowbit_status lowbit_function_find(const char* name, lowbit_function* function);

typedef enum lowbit_combination LOWBIT_INT {
  LOWBIT_ALONE = 0,
  LOWBIT_ADD = 1,       // + other: a residual
  LOWBIT_MULTIPLY = 2,  // * other: what a gate is for
} lowbit_combination;

typedef struct lowbit_gemm_args {
  lowbit_family family;
  int64_t m;
  const void* x;         // [m][k]
  lowbit_dtype x_dtype;  // F32, F16, BF16; I8 (LOWBIT_INTEGER) or E4M3 (LOWBIT_FP8) with LOWBIT_STATIC
  int64_t x_stride;      // elements between rows
  const void* packed;
  size_t packed_bytes;
  const void* bias;         // [n] or NULL
  lowbit_dtype bias_dtype;  // F32, F16, BF16
  void* y;                  // [m][n]
  lowbit_dtype y_dtype;     // F32, F16, BF16
  int64_t y_stride;
  lowbit_activation activation;  // not LOWBIT_WEIGHT_ONLY; LOWBIT_FP8: no zero points, scale = max|x| / 448
  const float* x_scale;          // LOWBIT_STATIC: [num_x_scales], x = (q - zero_point) * x_scale
  const int32_t* x_zero_point;   // [num_x_scales] in [-128, 127], or NULL: 0
  int64_t num_x_scales;          // 1 or m; with x_group, m * ceil(k / x_group)
  const lowbit_parallel* parallel;

  // LOWBIT_CUDA: all pointers but args, weight and parallel are device memory. Nothing is allocated or waited for.
  // F32 activations of LOWBIT_WEIGHT_ONLY are rounded to BF16 first.
  lowbit_device device;
  const lowbit_weight* weight;  // the description of `packed`, whose header the host does not read
  void* workspace;              // lowbit_gemm_workspace bytes, 256-byte aligned; free again after the call's work
  size_t workspace_bytes;
  void* stream;                      // cudaStream_t
  lowbit_accumulation accumulation;  // LOWBIT_FP8
  int64_t x_group;                   // LOWBIT_FP8: columns of x that share a scale, 128; 0: a row

  lowbit_function function;
  lowbit_combination combination;
  const void* other;         // [m][n], where there is a combination. It may be y itself, element for element, or share
                             // no element with it.
  lowbit_dtype other_dtype;  // F32, F16, BF16
  int64_t other_stride;      // elements between rows
} lowbit_gemm_args;

LOWBIT_API lowbit_status lowbit_gemm(const lowbit_gemm_args* args);
// The workspace that lowbit_gemm needs for these arguments, of which the pointers are not read; 0 on the CPU.
LOWBIT_API lowbit_status lowbit_gemm_workspace(const lowbit_gemm_args* args, size_t* bytes);

// Quantizes rows as LOWBIT_INTEGER does: q[m][k], scale[m], zero_point[m].
LOWBIT_API lowbit_status lowbit_quantize_rows(const void* x, lowbit_dtype dtype, int64_t m, int64_t k, int64_t stride,
                                              lowbit_activation activation, int8_t* q, float* scale,
                                              int32_t* zero_point, const lowbit_parallel* parallel);

// Activations to low precision, row by row, alone or together with what models do just before. On the CPU and on CUDA
// the same bits.
typedef enum lowbit_activation_format LOWBIT_INT {
  LOWBIT_ACTIVATION_INT8 = 0,             // fp32 scale of a row: max|v| / 127
  LOWBIT_ACTIVATION_INT8_ASYMMETRIC = 1,  // fp32 scale and int32 zero point of a row
  LOWBIT_ACTIVATION_FP8 = 2,              // E4M3; fp32 scale of a row: max|v| / 448
  LOWBIT_ACTIVATION_FP8_BLOCK = 3,        // E4M3; fp32 scale of 128 columns
  LOWBIT_ACTIVATION_MXFP8 = 4,            // E4M3; E8M0 scale of 32 columns (OCP MX v1.0 section 6.3)
  LOWBIT_ACTIVATION_MXFP4 = 5,            // E2M1; E8M0 scale of 32 columns
  LOWBIT_ACTIVATION_NVFP4 = 6,            // E2M1; E4M3 scale of 16 columns: global_scale * max|v| / 6
} lowbit_activation_format;

typedef struct lowbit_activation_format_info {
  const char* name;  // "int8", "int8_asymmetric", "fp8_e4m3", "fp8_e4m3_block", "mxfp8", "mxfp4", "nvfp4"
  int32_t bits;
  int32_t block;  // columns that share a scale; 0: all of a row
  lowbit_dtype scale_dtype;
} lowbit_activation_format_info;

LOWBIT_API int32_t lowbit_num_activation_formats(void);
LOWBIT_API lowbit_status lowbit_activation_format_get(lowbit_activation_format format,
                                                      lowbit_activation_format_info* info);

typedef enum lowbit_activation_source LOWBIT_INT {
  LOWBIT_PLAIN = 0,     // v = x
  LOWBIT_RMS_NORM = 1,  // v = s / sqrt(mean(s^2) + epsilon) * weight, s = x, or x + other rounded to x's dtype
  LOWBIT_SILU_MUL = 2,  // v = x / (1 + exp(-x)) * other
} lowbit_activation_source;

typedef struct lowbit_quantize_args {
  lowbit_device device;  // LOWBIT_CUDA: pointers are device memory, nothing is allocated or waited for
  lowbit_activation_format format;
  lowbit_activation_source source;
  int32_t power_of_two;  // LOWBIT_ACTIVATION_FP8_BLOCK: scales are powers of two
  int32_t swizzled;      // MXFP8, MXFP4, NVFP4: scales as Blackwell's tensor cores read them: of row r and block b of
                         // `blocks`, byte (r / 128 * ceil(blocks / 4) + b / 4) * 512 + r % 32 * 16 + r % 128 / 32 * 4
                         // + b % 4; the bytes that this fills up are 0
  int64_t m, k;
  const void* x;         // [m][k]
  lowbit_dtype x_dtype;  // F32, F16, BF16
  int64_t x_stride;      // strides: elements between rows
  const void* other;     // LOWBIT_SILU_MUL: [m][k]; LOWBIT_RMS_NORM: what is added to x, or NULL; of x's dtype
  int64_t other_stride;
  const void* weight;  // LOWBIT_RMS_NORM: [k], or NULL: 1
  lowbit_dtype weight_dtype;
  float epsilon;
  void* sum;  // LOWBIT_RMS_NORM with `other`: [m][k] x + other in x's dtype, or NULL; may be `other`
  int64_t sum_stride;
  const float* global_scale;        // NVFP4: [1], or NULL: 1
  void* q;                          // [m][ceil(k * bits / 8)] bytes, element 0 in the low bits
  int64_t q_stride;                 // bytes
  void* scales;                     // [m] fp32; [m][ceil(k / block)] of the format's dtype; or swizzled
  int64_t scale_stride;             // of those in blocks that are not swizzled
  int32_t* zero_points;             // INT8_ASYMMETRIC: [m]
  const lowbit_parallel* parallel;  // on the CPU
  void* stream;                     // on CUDA
} lowbit_quantize_args;

LOWBIT_API lowbit_status lowbit_quantize(const lowbit_quantize_args* args);

// ---- what is here ------------------------------------------------------------------------------------------

typedef struct lowbit_problem {
  lowbit_family family;
  lowbit_format format;
  int64_t m, n, k, group_k;
  lowbit_dtype x_dtype;
  // LOWBIT_CUDA
  lowbit_device device;
  int32_t arch;     // as a device of this compute capability would, 80 or 90; 0: the current one
  int64_t group_n;  // 0: 1
  int64_t x_group;
  lowbit_accumulation accumulation;
} lowbit_problem;

typedef struct lowbit_kernel_info {
  const char* name;  // family_compute_isa_tile
  const char* isa;   // the level it belongs to: "avx2", "sm80"
  lowbit_family family;
  int32_t mr, nr, kr;       // tile: rows of x, rows of W, depth of one step
  int32_t batch_invariant;  // row i of y does not depend on m or on the other rows
  int32_t runnable;         // this machine and the current level (or a device) can run it
  lowbit_device device;
} lowbit_kernel_info;

LOWBIT_API int32_t lowbit_num_kernels(void);
LOWBIT_API lowbit_status lowbit_kernel_get(int32_t index, lowbit_kernel_info* info);
// Visits every kernel of the family on problem->device, best first: chosen != 0 for the one that runs, else the reason
// why not.
LOWBIT_API lowbit_status lowbit_explain(const lowbit_problem* problem,
                                        void (*visit)(void* context, int32_t kernel, int32_t chosen,
                                                      const char* reason),
                                        void* context);

// CPU levels, worst first: "scalar", "avx2", ... Each runs the kernels of all before it, too.
LOWBIT_API int32_t lowbit_num_cpu_isas(void);
LOWBIT_API const char* lowbit_cpu_isa_name(int32_t isa);
LOWBIT_API int32_t lowbit_cpu_isa_supported(int32_t isa);  // by this machine
LOWBIT_API int32_t lowbit_cpu_isa(void);                   // in use: the best supported, capped by LOWBIT_CPU_ISA
LOWBIT_API lowbit_status lowbit_set_cpu_isa(int32_t isa);  // for tests and bug reports; not while kernels run
LOWBIT_API const char* lowbit_cpu_features(void);          // "avx2 fma f16c ..." as detected

// What the CUDA side of this library is.
typedef struct lowbit_cuda_info {
  const char* architectures;  // built for "80 89 90a"; "" without CUDA kernels
  const char* problem;        // why no CUDA kernel runs here; "" where one can
  int32_t num_devices;
} lowbit_cuda_info;

typedef struct lowbit_cuda_device_info {
  const char* name;
  int32_t arch;  // 90: compute capability 9.0
  int32_t sms;
  int64_t shared_bytes;  // that one CTA may have
  int64_t l2_bytes, memory_bytes;
} lowbit_cuda_device_info;

// The first of these calls, of lowbit_explain or of a product on LOWBIT_CUDA loads the driver; nothing before does.
LOWBIT_API void lowbit_cuda_get(lowbit_cuda_info* info);
LOWBIT_API lowbit_status lowbit_cuda_device_get(int32_t device, lowbit_cuda_device_info* info);

// The machine's limits, measured: "read_bandwidth" in bytes/s; "f32", "bf16", "int8" in operations/s at the current
// CPU level (a multiply-add counts two). Takes about `seconds`.
LOWBIT_API lowbit_status lowbit_probe(const char* what, double seconds, const lowbit_parallel* parallel,
                                      double* result);

#ifdef __cplusplus
}
#endif
#endif  // LOWBIT_LOWBIT_H
