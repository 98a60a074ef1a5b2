/* sepconv in C99: separable convolutions, the 3-row average, and dense convolutions of averaged rows, on
 * CPUs.
 *
 * An operation is described once, planned once and run often:
 *
 *     sepconv_separable_conv2d layer;
 *     sepconv_init_separable_conv2d(&layer);           fill in the sizes
 *     sepconv_plan_separable_conv2d(&layer, 1, &plan);  checks them; says how large output and workspace are
 *     sepconv_run_separable_conv2d(&plan, &data, &resources);
 *
 * Memory is the caller's: tensors, packed weights, workspace. Descriptions and plans are plain data; they own
 * nothing, and may be copied and thrown away; a plan is for the process that made it. sepconv_run_* allocates
 * nothing, and keeps nothing from one run to the next. The other functions may allocate for as long as they
 * take.
 *
 * Tensors are dense. Images are NHWC or NCHW, both of one call alike. A depthwise weight is
 * (in_channels * depth_multiplier, 1, kernel height, kernel width), a pointwise weight
 * (out_channels, in_channels * depth_multiplier), a dense weight (out_channels, in_channels, kernel height,
 * kernel width), a vector has one value a channel. Pairs are (height, width).
 *
 * Results have the same bits for any number of threads. They depend on dtype, shape and instruction set.
 *
 * Functions that can fail return a status; sepconv_last_error() then says which argument
 * it is about, what it got and what it wanted. Where a plan or a check fails nothing was written. Functions
 * may be called from several threads at once: a plan is only read, and each run has a workspace of its own.
 */
#ifndef SEPCONV_H
#define SEPCONV_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define SEPCONV_API __attribute__((visibility("default")))
#else
#define SEPCONV_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum sepconv_status {
  SEPCONV_OK = 0,
  SEPCONV_INVALID_ARGUMENT = 1,    /* a null pointer, a size or an enumerator that is none of those allowed */
  SEPCONV_OVERFLOW = 2,            /* a tensor larger than any memory */
  SEPCONV_WORKSPACE_TOO_SMALL = 3, /* the plan, or the size that was asked for, says how large it has to be */
  SEPCONV_PACKED_MISMATCH = 4,     /* packed weights of another layer, dtype or instruction set, or broken */
  SEPCONV_PLAN_MISMATCH = 5,       /* no plan, or that of another operation or instruction set */
  SEPCONV_OUT_OF_MEMORY = 6,       /* where a function that may allocate could not */
  SEPCONV_PARALLEL_FOR_FAILED = 7, /* it did not run each task once */
  SEPCONV_INTERNAL_ERROR = 8,      /* a mistake of this library */
  SEPCONV_NOT_BUILT = 9            /* a dtype, or the backward, that this build of the library leaves out */
} sepconv_status;

/* Storage of tensors. float32, bfloat16 and float16 are computed in float32 and rounded once. */
typedef enum sepconv_dtype {
  SEPCONV_FLOAT32 = 0,
  SEPCONV_FLOAT64 = 1,
  SEPCONV_BFLOAT16 = 2,
  SEPCONV_FLOAT16 = 3
} sepconv_dtype;

typedef enum sepconv_layout { SEPCONV_NHWC = 0, SEPCONV_NCHW = 1 } sepconv_layout;

typedef enum sepconv_activation {
  SEPCONV_NO_ACTIVATION = 0,
  SEPCONV_RELU = 1,
  SEPCONV_RELU6 = 2,
  SEPCONV_HARD_SWISH = 3
} sepconv_activation;

/* What happens to each channel at one place: y = activation(scale * x + shift). A bias is a shift; an
 * inference batch norm is a scale and a shift. All zeros: nothing. */
typedef struct sepconv_stage {
  sepconv_activation activation;
  int has_scale, has_shift; /* whether the run brings these vectors */
  int wide;                 /* vectors are float32 (float64 for float64), else of the tensors' dtype */
} sepconv_stage;

typedef struct sepconv_window {
  int64_t kernel[2], stride[2], padding[2], dilation[2];
} sepconv_window;

/* output = epilogue(residual + pointwise(middle(depthwise(prologue(input))))); the residual is added after
 * the epilogue's scale and shift, before its activation. Padding adds zeros after the prologue. */
typedef struct sepconv_separable_conv2d {
  sepconv_dtype dtype;
  sepconv_layout layout;
  int64_t batch, in_channels, height, width; /* of the input; the batch may be 0 */
  int64_t out_channels, depth_multiplier;
  sepconv_window window;      /* of the depthwise convolution */
  int64_t row_average_stride; /* of an average of rows before the prologue; 0: none */
  sepconv_stage prologue;     /* vectors of in_channels */
  sepconv_stage middle;       /* of in_channels * depth_multiplier; its shift is the depthwise bias */
  sepconv_stage epilogue;     /* of out_channels; its shift is the pointwise bias */
  int has_residual;           /* shaped as the output */
  int has_packed_weights;     /* instead of the two weights: see sepconv_pack_separable_conv2d */
} sepconv_separable_conv2d;

/* Each output row is the mean of input rows r * stride - 1, r * stride and r * stride + 1 that exist. */
typedef struct sepconv_row_average {
  sepconv_dtype dtype;
  sepconv_layout layout;
  int64_t batch, channels, height, width; /* of the forward's input */
  int64_t row_stride;
} sepconv_row_average;

/* output = epilogue(residual + conv2d(prologue(row average of input))), a dense convolution. */
typedef struct sepconv_row_average_conv2d {
  sepconv_dtype dtype;
  sepconv_layout layout;
  int64_t batch, in_channels, height, width;
  int64_t out_channels;
  sepconv_window window;      /* over the averaged rows */
  int64_t row_average_stride; /* 0: no average, a plain convolution */
  sepconv_stage prologue;     /* vectors of in_channels */
  sepconv_stage epilogue;     /* of out_channels; its shift is the bias */
  int has_residual;
} sepconv_row_average_conv2d;

/* An operation that was checked, for one number of threads and one instruction set. */
typedef struct sepconv_plan {
  size_t workspace_bytes;              /* what a run needs */
  int64_t output_height, output_width; /* of the forward */
  uint64_t internal[64];
} sepconv_plan;

/* Runs task(task_context, i) once for every i in [0, count), in any order, on any threads, and returns when
 * all are done; count is at most the number of threads that was planned for. */
typedef void (*sepconv_task)(void* task_context, int64_t index);
typedef void (*sepconv_parallel_for)(void* context, int64_t count, sepconv_task task, void* task_context);

/* What a run may use. The workspace has any alignment, and is free again when the run returns. Without a
 * parallel_for the tasks run on OpenMP's threads where the library was built with it (sepconv_has_openmp),
 * else one after the other. */
typedef struct sepconv_resources {
  void* workspace;
  size_t workspace_bytes;
  sepconv_parallel_for parallel_for;
  void* context; /* of parallel_for */
} sepconv_resources;

/* --- The library --- */

SEPCONV_API const char* sepconv_version(void); /* "major.minor.patch" */
SEPCONV_API int sepconv_has_openmp(void);

/* What the last call that failed on this thread had to say; "" before the first. Valid until the next one. */
SEPCONV_API const char* sepconv_last_error(void);

/* The instruction set in use: "scalar", "avx2", "avx512", "avx512_bf16", "amx", "neon" or "neon_bf16". It is
 * the strongest that pays off on this CPU, capped by the environment variable SEPCONV_CPU_CAPABILITY. "" with
 * a sepconv_last_error() where the variable has another value. */
SEPCONV_API const char* sepconv_cpu_capability(void);

/* Another instruction set from now on, for tests and comparisons: not while a run is under way. Plans and
 * packed weights are to be made again. SEPCONV_INVALID_ARGUMENT where this CPU or build has none of that
 * name. */
SEPCONV_API sepconv_status sepconv_set_cpu_capability(const char* name);

/* --- Separable convolution --- */

/* float32, NHWC, a 1x1 window of stride and dilation 1 without padding, a depth multiplier of 1, nothing
 * else. */
SEPCONV_API void sepconv_init_separable_conv2d(sepconv_separable_conv2d* layer);

/* Packed weights: both weights in the order in which the kernels read them, for layers that run often. They
 * are for one instruction set; of the layer they depend on dtype, channels, multiplier and kernel alone. */
SEPCONV_API sepconv_status sepconv_packed_bytes_of_separable_conv2d(const sepconv_separable_conv2d* layer,
                                                                    size_t* bytes);
/* `packed` is aligned to 64 bytes. */
SEPCONV_API sepconv_status sepconv_pack_separable_conv2d(const sepconv_separable_conv2d* layer,
                                                         const void* depthwise_weight,
                                                         const void* pointwise_weight, void* packed,
                                                         size_t packed_bytes);

/* Null for what the layer does not have. */
typedef struct sepconv_separable_conv2d_data {
  const void* input;
  const void *depthwise_weight, *pointwise_weight;
  const void* packed_weights; /* as they were packed, at an address aligned to 64 bytes */
  size_t packed_bytes;
  const void *prologue_scale, *prologue_shift, *middle_scale, *middle_shift, *epilogue_scale, *epilogue_shift;
  const void* residual;
  void* output;
} sepconv_separable_conv2d_data;

/* `threads` is between 1 and 1024: how many tasks may run at once. More threads need more workspace. */
SEPCONV_API sepconv_status sepconv_plan_separable_conv2d(const sepconv_separable_conv2d* layer, int threads,
                                                         sepconv_plan* plan);
SEPCONV_API sepconv_status sepconv_run_separable_conv2d(const sepconv_plan* plan,
                                                        const sepconv_separable_conv2d_data* data,
                                                        const sepconv_resources* resources);

/* Null for a gradient that is not wanted. Shapes are those of what it is the gradient of. */
typedef struct sepconv_separable_conv2d_gradients {
  void* input; /* of the affine part of the prologue: not yet times the prologue's scale */
  void *depthwise_weight, *pointwise_weight;
  void *depthwise_bias, *pointwise_bias;
} sepconv_separable_conv2d_gradients;

/* Which gradients a backward computes: ORed. */
enum {
  SEPCONV_GRAD_INPUT = 1,
  SEPCONV_GRAD_DEPTHWISE_WEIGHT = 2,
  SEPCONV_GRAD_POINTWISE_WEIGHT = 4,
  SEPCONV_GRAD_DEPTHWISE_BIAS = 8,
  SEPCONV_GRAD_POINTWISE_BIAS = 16
};

/* The backward of a layer with plain weights, a prologue without row average whose activation is none, ReLU
 * or ReLU6, and beyond that shifts only. It computes the depthwise output again: of the forward it needs
 * nothing. */
SEPCONV_API sepconv_status sepconv_plan_separable_conv2d_backward(const sepconv_separable_conv2d* layer,
                                                                  unsigned gradients, int threads,
                                                                  sepconv_plan* plan);
/* Of `data` it reads input, the weights, the prologue's vectors and middle_shift; the rest is not looked at.
 */
SEPCONV_API sepconv_status sepconv_run_separable_conv2d_backward(
    const sepconv_plan* plan, const sepconv_separable_conv2d_data* data, const void* grad_output,
    const sepconv_separable_conv2d_gradients* gradients, const sepconv_resources* resources);

/* --- Row average --- */

SEPCONV_API sepconv_status sepconv_plan_row_average(const sepconv_row_average* average, int threads,
                                                    sepconv_plan* plan);
SEPCONV_API sepconv_status sepconv_run_row_average(const sepconv_plan* plan, const void* input, void* output,
                                                   const sepconv_resources* resources);

SEPCONV_API sepconv_status sepconv_plan_row_average_backward(const sepconv_row_average* average, int threads,
                                                             sepconv_plan* plan);
SEPCONV_API sepconv_status sepconv_run_row_average_backward(const sepconv_plan* plan, const void* grad_output,
                                                            void* grad_input,
                                                            const sepconv_resources* resources);

/* --- Dense convolution of averaged rows --- */

/* As sepconv_init_separable_conv2d, with a row average of stride 1. */
SEPCONV_API void sepconv_init_row_average_conv2d(sepconv_row_average_conv2d* layer);

typedef struct sepconv_row_average_conv2d_data {
  const void *input, *weight;
  const void *prologue_scale, *prologue_shift, *epilogue_scale, *epilogue_shift;
  const void* residual;
  void* output;
} sepconv_row_average_conv2d_data;

SEPCONV_API sepconv_status sepconv_plan_row_average_conv2d(const sepconv_row_average_conv2d* layer,
                                                           int threads, sepconv_plan* plan);
SEPCONV_API sepconv_status sepconv_run_row_average_conv2d(const sepconv_plan* plan,
                                                          const sepconv_row_average_conv2d_data* data,
                                                          const sepconv_resources* resources);

typedef struct sepconv_row_average_conv2d_gradients {
  void *input, *weight, *bias;
} sepconv_row_average_conv2d_gradients;

enum { SEPCONV_GRAD_WEIGHT = 2, SEPCONV_GRAD_BIAS = 4 }; /* with SEPCONV_GRAD_INPUT */

/* The backward of a layer without prologue, whose epilogue has a shift at most. */
SEPCONV_API sepconv_status sepconv_plan_row_average_conv2d_backward(const sepconv_row_average_conv2d* layer,
                                                                    unsigned gradients, int threads,
                                                                    sepconv_plan* plan);
/* Of `data` it reads input and weight; the rest is not looked at. */
SEPCONV_API sepconv_status sepconv_run_row_average_conv2d_backward(
    const sepconv_plan* plan, const sepconv_row_average_conv2d_data* data, const void* grad_output,
    const sepconv_row_average_conv2d_gradients* gradients, const sepconv_resources* resources);

#ifdef __cplusplus
}
#endif

#endif
