// The tables of one instruction set. Dtypes are listed here, in the order of DType, and nowhere else in the
// kernels. A small build for inference on a device defines what it goes without: SEPCONV_WITHOUT_FLOAT64,
// SEPCONV_WITHOUT_BFLOAT16, SEPCONV_WITHOUT_FLOAT16, SEPCONV_WITHOUT_TRAINING.

#ifdef SEPCONV_WITHOUT_FLOAT64
#define SEPCONV_FLOAT64(kernel) nullptr
#else
#define SEPCONV_FLOAT64(kernel) kernel<double>
#endif
#ifdef SEPCONV_WITHOUT_BFLOAT16
#define SEPCONV_BFLOAT16(kernel) nullptr
#else
#define SEPCONV_BFLOAT16(kernel) kernel<BFloat16>
#endif
#ifdef SEPCONV_WITHOUT_FLOAT16
#define SEPCONV_FLOAT16(kernel) nullptr
#else
#define SEPCONV_FLOAT16(kernel) kernel<Float16>
#endif
#define SEPCONV_FOR_EACH_DTYPE(kernel) \
  {kernel<float>, SEPCONV_FLOAT64(kernel), SEPCONV_BFLOAT16(kernel), SEPCONV_FLOAT16(kernel)}
#ifdef SEPCONV_WITHOUT_TRAINING
#define SEPCONV_IN_TRAINING(kernel) \
  {                                 \
  }
#else
#define SEPCONV_IN_TRAINING(kernel) SEPCONV_FOR_EACH_DTYPE(kernel)
#endif

constexpr Kernels make_kernels() {
  return {{tile_shape<float>(), tile_shape<double>(), tile_shape<float>(), tile_shape<float>()},
          SEPCONV_FOR_EACH_DTYPE(packed_bytes),
          SEPCONV_FOR_EACH_DTYPE(pack),
          SEPCONV_FOR_EACH_DTYPE(separable_conv2d),
          SEPCONV_IN_TRAINING(separable_conv2d_backward),
          SEPCONV_FOR_EACH_DTYPE(row_average),
          SEPCONV_IN_TRAINING(row_average_backward),
          SEPCONV_FOR_EACH_DTYPE(row_average_conv2d),
          SEPCONV_IN_TRAINING(row_average_conv2d_backward)};
}

constexpr BatchNormKernels make_batch_norm_kernels() {
  return {SEPCONV_IN_TRAINING(batch_norm_statistics), SEPCONV_IN_TRAINING(batch_norm),
          SEPCONV_IN_TRAINING(batch_norm_backward)};
}

#undef SEPCONV_FLOAT64
#undef SEPCONV_BFLOAT16
#undef SEPCONV_FLOAT16
#undef SEPCONV_FOR_EACH_DTYPE
#undef SEPCONV_IN_TRAINING
